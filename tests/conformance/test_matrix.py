"""The capability matrix is made of reports, and of nothing else."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest

from tests.tools import matrix
from virtd.backend import verified
from virtd.backend.capabilities import SUMMARIES

REPORT: dict[str, Any] = {
    "schema": "virtd.conformance/1",
    "label": "lab",
    "host": "a | b",
    "machine": "",
    "time": "2026-01-02T03:04:05+00:00",
    "complete": True,
    "brief": False,
    "expected": 3,
    "backend": {"id": "one", "title": "One", "version": "3"},
    "facts": {
        "hypervisor": "qemu",
        "hypervisor_version": "7.2",
        "api": "libvirt",
        "api_version": "9.0",
        "architecture": "x86_64",
        "accelerator": "TCG",
    },
    "notes": {},
    "capabilities": [
        {"id": "guest.pause", "level": "NATIVE", "provenance": "VERIFIED", "reason": "", "checks": []},
        {"id": "guest.reset", "level": "UNSUPPORTED", "provenance": "VERIFIED", "reason": "no button", "checks": []},
        {"id": "guest.metrics", "level": "PARTIAL", "provenance": "PROBED", "reason": "no disks", "checks": []},
        {"id": "host.events", "level": "UNSUPPORTED", "provenance": "DECLARED", "reason": "no button", "checks": []},
    ],
    "checks": [
        {"name": "A.test[x]", "capabilities": [], "outcome": "NOT_RUN", "duration_s": 0, "message": "no way"},
        {"name": "A.test[y]", "capabilities": [], "outcome": "NOT_RUN", "duration_s": 0, "message": "no way"},
        {"name": "B.test", "capabilities": [], "outcome": "PASSED", "duration_s": 0, "message": ""},
    ],
}


def _changed(**changes: Any) -> dict[str, Any]:
    return {**copy.deepcopy(REPORT), **changes}


def _whole(**changes: Any) -> dict[str, Any]:
    """A report that says something of every capability."""
    told = {entry["id"]: entry for entry in REPORT["capabilities"]}
    blank = {"level": "NATIVE", "provenance": "DECLARED", "reason": "", "checks": []}
    return _changed(capabilities=[told.get(id_, {"id": id_, **blank}) for id_ in SUMMARIES], **changes)


def test_cells_and_notes() -> None:
    text = matrix.render([REPORT, _changed(label="other", capabilities=[])])
    rows = {
        line.split("|")[1].strip(): [cell.strip() for cell in line.split("|")[3:-1]]
        for line in text.splitlines()
        if line.startswith("| `")
    }
    assert rows["`guest.pause`"] == ["yes ✓", "?"]
    assert rows["`guest.reset`"] == ["no ✓[^1]", "?"]
    assert rows["`guest.metrics`"] == ["partly[^2]", "?"]
    assert rows["`host.events`"] == ["no[^1]", "?"], "a reason that is used twice is one note"
    assert text.count("no button") == 1
    assert "a \\| b" in text
    assert "qemu 7.2, libvirt 9.0" in text
    assert "- `A.test` (2 cases): no way" in text
    assert "| all 3 |" in text


def test_a_brief_run_says_so(tmp_path: Path) -> None:
    path = tmp_path / "lab.json"
    path.write_text(json.dumps(_whole(complete=False, brief=True, expected=400)))
    assert "| 3 of 400, in brief |" in matrix.render([matrix.load(path)])


def _with_unknown() -> dict[str, Any]:
    report = _whole()
    report["capabilities"].append({**report["capabilities"][0], "id": "guest.of.yesterday"})
    return report


@pytest.mark.parametrize(
    ("report", "words"),
    [
        (_changed(complete=False), "left out"),
        (_changed(schema="other"), "schema"),
        (_changed(checks=[{"name": "A.bad", "outcome": "FAILED", "message": "", "capabilities": []}]), "A.bad"),
        (REPORT, "it says nothing of guest.addresses"),
        (_with_unknown(), "the code nothing of guest.of.yesterday"),
    ],
)
def test_what_is_no_evidence_is_refused(
    report: dict[str, Any], words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    reports, output = tmp_path / "reports", tmp_path / "out.md"
    reports.mkdir()
    (reports / "lab.json").write_text(json.dumps(report))
    told = ["--reports", str(reports), "--output", str(output), "--verified", str(tmp_path / "verified.json")]
    assert matrix.main(told) == 1
    assert words in capsys.readouterr().err
    assert not output.exists()


def test_check(tmp_path: Path) -> None:
    reports, data = tmp_path / "reports", tmp_path / "verified.json"
    reports.mkdir()
    (reports / "lab.json").write_text(json.dumps(_whole()))
    arguments = ["--reports", str(reports), "--output", str(tmp_path / "out.md"), "--verified", str(data)]
    assert matrix.main([*arguments, "--check"]) == 1
    assert matrix.main(arguments) == 0
    assert matrix.main([*arguments, "--check"]) == 0
    for path in (tmp_path / "out.md", data):
        kept = path.read_text()
        path.write_text("edited by hand")
        assert matrix.main([*arguments, "--check"]) == 1
        path.write_text(kept)
        assert matrix.main([*arguments, "--check"]) == 0


def test_what_the_daemon_is_told() -> None:
    (run,) = verified.parse(json.loads(matrix.evidence([_whole(machine="xenpv")])))
    assert run.environment == verified.Environment("one", "3", "qemu", "7.2", "libvirt", "9.0", "x86_64", "TCG")
    assert run.machine == "xenpv"
    assert run.time.isoformat() == REPORT["time"]
    assert run.levels == {"guest.pause": "NATIVE", "guest.reset": "UNSUPPORTED"}, "what was proven, and nothing else"


def test_every_host_has_a_run(capsys: pytest.CaptureFixture[str]) -> None:
    """A report's label names the run that makes it anew, and each run there is."""
    labels = {json.loads(path.read_text())["label"] for path in matrix.REPORTS.glob("*.json")}
    assert labels <= set(matrix.RUNS)
    assert [file for file in matrix.RUNS.values() if not (matrix.ROOT / file).exists()] == []
    with pytest.raises(SystemExit):
        matrix.main(["--run", "no-such-host"])
    assert "no-such-host" in capsys.readouterr().err


def test_the_committed_page_is_up_to_date() -> None:
    assert matrix.main(["--check"]) == 0
