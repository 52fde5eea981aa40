"""The capability matrix is made of reports, and of nothing else."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest

from tests.tools import matrix

REPORT: dict[str, Any] = {
    "schema": "virtd.conformance/1",
    "label": "lab",
    "host": "a | b",
    "date": "2026-01-02",
    "complete": True,
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


@pytest.mark.parametrize(
    ("report", "words"),
    [
        (_changed(complete=False), "left out"),
        (_changed(schema="other"), "schema"),
        (_changed(checks=[{"name": "A.bad", "outcome": "FAILED", "message": "", "capabilities": []}]), "A.bad"),
    ],
)
def test_what_is_no_evidence_is_refused(
    report: dict[str, Any], words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "lab.json").write_text(json.dumps(report))
    output = tmp_path / "out.md"
    assert matrix.main(["--reports", str(tmp_path), "--output", str(output)]) == 1
    assert words in capsys.readouterr().err
    assert not output.exists()


def test_check(tmp_path: Path) -> None:
    (tmp_path / "lab.json").write_text(json.dumps(REPORT))
    arguments = ["--reports", str(tmp_path), "--output", str(tmp_path / "out.md")]
    assert matrix.main([*arguments, "--check"]) == 1
    assert matrix.main(arguments) == 0
    assert matrix.main([*arguments, "--check"]) == 0
    (tmp_path / "out.md").write_text("edited by hand")
    assert matrix.main([*arguments, "--check"]) == 1


def test_the_committed_page_is_up_to_date() -> None:
    assert matrix.main(["--check"]) == 0
