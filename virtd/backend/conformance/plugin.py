"""The kit's pytest options.  Loaded by the entry point ``virtd_conformance`` of the group ``pytest11``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from virtd.backend.conformance.report import Report

# No other imports: every pytest run on a machine with virtd loads this module.

REPORTS = pytest.StashKey[list["Report"]]()


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the options."""
    group = parser.getgroup("virtd", "conformance of virtd backends")
    group.addoption(
        "--virtd-conformance-report",
        metavar="FILE",
        type=Path,
        help="write the conformance report to FILE (.json), or as LABEL.json into the directory FILE",
    )
    group.addoption(
        "--virtd-conformance-regenerate",
        action="store_true",
        help="write the golden results of lower() anew instead of comparing with them",
    )


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    """Say what was checked, and name every check that was not run."""
    reports = config.stash.get(REPORTS, [])
    if reports:
        from virtd.backend.conformance.report import summary

        terminalreporter.section("virtd conformance")
        for line in summary(reports):
            terminalreporter.write_line(line)
