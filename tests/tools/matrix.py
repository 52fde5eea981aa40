"""Turn conformance reports into the capability matrix, and into what a daemon calls verified.

``python -m tests.tools.matrix`` reads ``docs/capabilities/*.json`` and writes ``docs/capabilities.md`` and
``virtd/data/verified.json``; ``--check`` only says whether they are up to date.  ``--run`` makes the reports first,
by running the conformance kit on every host: the fake one, libvirt's test driver, QEMU, and the lab's.  ``--run kvm``
makes one of them.  Of the lab's hosts, which are slow, ``--brief`` runs the kit's own choice of checks; the page then
says so, and calls verified only what was proven whole.

A report that is incomplete without being brief, that has a failed check, or that was made before a capability was
thought of, is refused: it is no evidence.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from virtd.backend import verified
from virtd.backend.capabilities import SUMMARIES
from virtd.backend.conformance.report import SCHEMA, Outcome

ROOT = Path(__file__).resolve().parents[2]
REPORTS = ROOT / "docs" / "capabilities"
MATRIX = ROOT / "docs" / "capabilities.md"
VERIFIED = ROOT / "virtd" / "data" / verified.FILE

RUNS = {
    "fake": "tests/conformance/test_fake.py",
    "libvirt-test": "tests/conformance/test_libvirt_test_driver.py",
    "qemu-tcg": "tests/conformance/test_qemu.py",
    "kvm": "tests/lab/test_conformance_kvm.py",
    "xen-pv": "tests/lab/test_conformance_xen_pv.py",
    "xen-pvh": "tests/lab/test_conformance_xen_pvh.py",
    "xen-hvm": "tests/lab/test_conformance_xen_hvm.py",
}
"""Label of a report -> the tests that make it."""

WORDS = {"NATIVE": "yes", "EMULATED": "emulated", "PARTIAL": "partly", "UNSUPPORTED": "no", "UNKNOWN": "unknown"}
HEAD = """\
# What each host can do

<!-- Written by `python -m tests.tools.matrix` from the reports in docs/capabilities/. Do not edit. -->

Each column is a host on which virtd's conformance kit was run, each row an ability. **yes** is native,
**emulated** is done by virtd itself, **partly** has limits that the note gives, **no** is refused with the
reason that the note gives. ✓ means *verified*: every check of the kit that proves the ability was run there and
passed, or its refusal was proven, with the versions and on the day that [the hosts](#the-hosts) are listed with;
without it the host only says so. [](howto/capabilities.md) says how to ask a host of your own.

`make matrix` runs the kit on all of these hosts and makes this page anew.
"""


class BadReportError(Exception):
    """A report that is no evidence, and why."""


@dataclass
class Notes:
    """Footnotes, each text once, numbered in the order in which they are used."""

    texts: list[str] = field(default_factory=list)

    def mark(self, text: str) -> str:
        """The reference to a note."""
        if text not in self.texts:
            self.texts.append(text)
        return f"[^{self.texts.index(text) + 1}]"

    def lines(self) -> Iterable[str]:
        """The notes themselves."""
        return (f"[^{number}]: {text}" for number, text in enumerate(self.texts, 1))


def load(path: Path) -> dict[str, Any]:
    """Read a report.

    :raises BadReportError: it is no evidence.
    """
    try:
        report: dict[str, Any] = json.loads(path.read_text())
    except ValueError as error:
        raise BadReportError(f"{path.name}: not JSON: {error}") from error
    if report.get("schema") != SCHEMA:
        raise BadReportError(f"{path.name}: its schema is {report.get('schema')!r}, not {SCHEMA!r}")
    if not report["complete"] and not report.get("brief"):
        raise BadReportError(f"{path.name}: checks were left out: run the whole suite")
    failed = [check["name"] for check in report["checks"] if check["outcome"] == Outcome.FAILED]
    if failed:
        raise BadReportError(f"{path.name}: failed checks: {', '.join(failed)}")
    known, told = set(SUMMARIES), {entry["id"] for entry in report["capabilities"]}
    if known != told:
        raise BadReportError(
            f"{path.name}: older than the code: it says nothing of {', '.join(sorted(known - told)) or 'nothing'}, "
            f"and the code nothing of {', '.join(sorted(told - known)) or 'nothing'}: make it anew (make matrix)"
        )
    return report


def _escape(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")


def _cell(report: dict[str, Any], id_: str, notes: Notes) -> str:
    found = [entry for entry in report["capabilities"] if entry["id"] == id_]
    if not found:
        return "?"
    entry = found[0]
    word = WORDS[entry["level"]]
    verified = " ✓" if entry["provenance"] == "VERIFIED" else ""
    note = notes.mark(_escape(entry["reason"])) if entry["reason"] and entry["level"] != "NATIVE" else ""
    return f"{word}{verified}{note}"


def _table(rows: Sequence[Sequence[str]]) -> list[str]:
    lines = ["| " + " | ".join(row) + " |" for row in rows]
    lines.insert(1, "|" + "---|" * len(rows[0]))
    return lines


def _version(report: dict[str, Any]) -> str:
    facts = report["facts"]
    parts = [f"{facts['hypervisor']} {facts['hypervisor_version']}".strip()]
    if facts["api"] and facts["api"] != facts["hypervisor"]:
        parts.append(f"{facts['api']} {facts['api_version']}".strip())
    return ", ".join(filter(None, parts))


def _checks(report: dict[str, Any]) -> str:
    """How many there are; where some were left out, how many were run."""
    ran = len(report["checks"])
    return f"all {ran}" if report["complete"] else f"{ran} of {report['expected']}, in brief"


def _count(report: dict[str, Any], outcome: Outcome) -> str:
    return str(sum(check["outcome"] == outcome for check in report["checks"]))


def _not_run(report: dict[str, Any]) -> list[str]:
    """What was not checked, and why: one line for each test and reason."""
    grouped: dict[tuple[str, str], int] = {}
    for check in report["checks"]:
        if check["outcome"] == Outcome.NOT_RUN:
            key = (check["name"].partition("[")[0], check["message"])
            grouped[key] = grouped.get(key, 0) + 1
    return [
        f"- `{name}`{f' ({count} cases)' if count > 1 else ''}: {message}"
        for (name, message), count in sorted(grouped.items())
    ]


def _ordered(reports: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    return sorted(reports, key=lambda report: (report["backend"]["id"], report["label"]))


def render(reports: Sequence[dict[str, Any]]) -> str:
    """The whole page."""
    notes = Notes()
    ordered = _ordered(reports)
    table = [["Ability", "", *(report["label"] for report in ordered)]]
    table += [[f"`{id_}`", what, *(_cell(report, id_, notes) for report in ordered)] for id_, what in SUMMARIES.items()]
    hosts = [["Host", "What it is", "Backend", "Hypervisor", "Checked", "Checks", "Passed", "Refused", "Not run"]]
    hosts += [
        [
            report["label"],
            _escape(report["host"]),
            f"{report['backend']['id']} {report['backend']['version']}",
            _version(report),
            report["time"].partition("T")[0],
            _checks(report),
            _count(report, Outcome.PASSED),
            _count(report, Outcome.REFUSED),
            _count(report, Outcome.NOT_RUN),
        ]
        for report in ordered
    ]
    lines = [HEAD, *_table(table), "", *notes.lines(), "", "## The hosts", "", *_table(hosts), ""]
    for report in ordered:
        if missing := _not_run(report):
            lines += [f"### Not run on {report['label']}", "", *missing, ""]
    return "\n".join(lines).rstrip() + "\n"


def evidence(reports: Sequence[dict[str, Any]]) -> str:
    """What the reports have proven, for the daemon; see :mod:`virtd.backend.verified`."""
    runs = []
    for report in _ordered(reports):
        facts = report["facts"]
        runs.append(
            {
                "label": report["label"],
                "backend": report["backend"]["id"],
                "backend_version": report["backend"]["version"],
                **{name: facts[name] for name in ("hypervisor", "hypervisor_version", "api", "api_version")},
                "architecture": facts["architecture"],
                "accelerator": facts["accelerator"],
                "machine": report["machine"],
                "time": report["time"],
                "capabilities": {
                    entry["id"]: entry["level"] for entry in report["capabilities"] if entry["provenance"] == "VERIFIED"
                },
            }
        )
    return json.dumps({"schema": verified.SCHEMA, "runs": runs}, indent=1) + "\n"


def run_the_kit(labels: Sequence[str], reports: Path, *, brief: bool) -> int:
    """Run the kit on these hosts, or on all; the reports go into the directory."""
    files = [RUNS[label] for label in labels] or list(RUNS.values())
    # As in the tests' tiers: what waits for guests runs two at a time, and a host's checks one after the other.
    command = [sys.executable, "-m", "pytest", "-q", "-n", "2", "--dist", "loadfile", "--durations=5"]
    command += [] if brief else ["--virtd-conformance-all"]
    return subprocess.run([*command, f"--virtd-conformance-report={reports}", *files], cwd=ROOT, check=False).returncode


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else "")
    parser.add_argument("--reports", type=Path, default=REPORTS, help="directory of the reports")
    parser.add_argument("--output", type=Path, default=MATRIX, help="the page to write")
    parser.add_argument("--verified", type=Path, default=VERIFIED, help="the daemon's data to write")
    parser.add_argument("--check", action="store_true", help="write nothing; fail if something is not up to date")
    parser.add_argument(
        "--run", nargs="*", metavar="HOST", choices=RUNS, help="run the kit first: on these hosts, or all"
    )
    parser.add_argument("--brief", action="store_true", help="run only a part of the checks where they are slow")
    options = parser.parse_args(arguments)
    if options.run is not None and (code := run_the_kit(options.run, options.reports, brief=options.brief)):
        return code
    paths = sorted(options.reports.glob("*.json"))
    if not paths:
        print(f"matrix: no reports in {options.reports}", file=sys.stderr)
        return 1
    try:
        reports = [load(path) for path in paths]
        made = {options.output: render(reports), options.verified: evidence(reports)}
    except BadReportError as error:
        print(f"matrix: {error}", file=sys.stderr)
        return 1
    if options.check:
        old = [path for path, text in made.items() if not path.exists() or path.read_text() != text]
        for path in old:
            print(f"matrix: {path} is not up to date: run python -m tests.tools.matrix", file=sys.stderr)
        return int(bool(old))
    for path, text in made.items():
        path.write_text(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
