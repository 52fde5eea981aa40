"""The kit's pytest options.  Loaded by the entry point ``virtd_conformance`` of the group ``pytest11``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from virtd.backend.conformance.report import Report

# No other imports: every pytest run on a machine with virtd loads this module.

MARKER = "conformance_brief"
"""Marks modules of which only :mod:`virtd.backend.conformance.brief` is run."""

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
    group.addoption(
        "--virtd-conformance-all",
        action="store_true",
        help=f"run every check, also where a module is marked {MARKER}",
    )


def pytest_configure(config: pytest.Config) -> None:
    """Register the marker."""
    config.addinivalue_line("markers", f"{MARKER}: only a part of the conformance kit; see --virtd-conformance-all")


def runs_brief(node: pytest.Item | pytest.Collector, config: pytest.Config) -> bool:
    """Whether only the kit's own choice of checks is run there."""
    whole = config.getoption("--virtd-conformance-all", default=False)
    return not whole and node.get_closest_marker(MARKER) is not None


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out what a brief run does not check; pytest counts it as deselected."""
    left_out = [item for item in items if runs_brief(item, config) and not _is_brief(item)]
    if left_out:
        config.hook.pytest_deselected(items=left_out)
        items[:] = [item for item in items if item not in left_out]


def _is_brief(item: pytest.Item) -> bool:
    from virtd.backend.conformance.brief import is_brief
    from virtd.backend.conformance.marks import check_name

    body = getattr(getattr(item, "function", None), "virtd_check", None)
    called = getattr(item, "callspec", None)
    return body is None or is_brief(check_name(body, called.params if called is not None else {}))


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    """Say what was checked, and name every check that was not run."""
    reports = config.stash.get(REPORTS, [])
    if reports:
        from virtd.backend.conformance.report import summary

        terminalreporter.section("virtd conformance")
        for line in summary(reports):
            terminalreporter.write_line(line)
