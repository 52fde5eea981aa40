"""Turn conformance reports into the capability matrix.

``python -m tests.tools.matrix`` reads ``docs/capabilities/*.json`` and writes ``docs/capabilities.md``;
``--check`` only says whether it is up to date.  Make the reports with

    pytest tests/conformance --virtd-conformance-report=docs/capabilities

A report that is incomplete, or that has a failed check, is refused: it is no evidence.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from virtd.backend.capabilities import SUMMARIES
from virtd.backend.conformance.report import SCHEMA, Outcome

ROOT = Path(__file__).resolve().parents[2]
REPORTS = ROOT / "docs" / "capabilities"
MATRIX = ROOT / "docs" / "capabilities.md"

WORDS = {"NATIVE": "yes", "EMULATED": "emulated", "PARTIAL": "partly", "UNSUPPORTED": "no", "UNKNOWN": "unknown"}
HEAD = """\
# What each host can do

<!-- Written by `python -m tests.tools.matrix` from the reports in docs/capabilities/. Do not edit. -->

Each column is a host on which virtd's conformance kit was run, each row an ability. **yes** is native,
**emulated** is done by virtd itself, **partly** has limits that the note gives, **no** is refused with the
reason that the note gives. ✓ means *verified*: every check of the kit that proves the ability, or its
refusal, was run there and passed; without it the host only says so.

Make it anew:

```
pytest tests/conformance --virtd-conformance-report=docs/capabilities
python -m tests.tools.matrix
```
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
    if not report["complete"]:
        raise BadReportError(f"{path.name}: checks were left out: run the whole suite")
    failed = [check["name"] for check in report["checks"] if check["outcome"] == Outcome.FAILED]
    if failed:
        raise BadReportError(f"{path.name}: failed checks: {', '.join(failed)}")
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


def render(reports: Sequence[dict[str, Any]]) -> str:
    """The whole page."""
    notes = Notes()
    ordered = sorted(reports, key=lambda report: (report["backend"]["id"], report["label"]))
    table = [["Ability", "", *(report["label"] for report in ordered)]]
    table += [[f"`{id_}`", what, *(_cell(report, id_, notes) for report in ordered)] for id_, what in SUMMARIES.items()]
    hosts = [["Host", "What it is", "Backend", "Hypervisor", "Checked", "Passed", "Refused", "Not run"]]
    hosts += [
        [
            report["label"],
            _escape(report["host"]),
            f"{report['backend']['id']} {report['backend']['version']}",
            _version(report),
            report["date"],
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


def main(arguments: Sequence[str] | None = None) -> int:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else "")
    parser.add_argument("--reports", type=Path, default=REPORTS, help="directory of the reports")
    parser.add_argument("--output", type=Path, default=MATRIX, help="the page to write")
    parser.add_argument("--check", action="store_true", help="write nothing; fail if the page is not up to date")
    options = parser.parse_args(arguments)
    paths = sorted(options.reports.glob("*.json"))
    if not paths:
        print(f"matrix: no reports in {options.reports}", file=sys.stderr)
        return 1
    try:
        text = render([load(path) for path in paths])
    except BadReportError as error:
        print(f"matrix: {error}", file=sys.stderr)
        return 1
    if options.check:
        if not options.output.exists() or options.output.read_text() != text:
            print(f"matrix: {options.output} is not up to date: run python -m tests.tools.matrix", file=sys.stderr)
            return 1
        return 0
    options.output.write_text(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
