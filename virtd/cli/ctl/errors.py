"""Errors on standard error: what is wrong, the reason, and what to do next."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from virtd.cli.ctl import text
from virtd.cli.ctl.exits import Exit, for_error


@dataclass
class CtlError(Exception):
    """An error that guestctl itself finds; ``exit_code`` is what the process ends with."""

    message: str
    exit_code: Exit = Exit.FAILED
    reason: str = ""
    next: str = ""
    details: dict[str, str] = field(default_factory=dict)

    def __str__(self) -> str:
        return self.message


class UsageError(CtlError):
    """The command line, or a file that it names, is wrong: nothing was sent."""

    def __init__(self, message: str, *, next: str = "") -> None:  # noqa: A002 - the word of the output
        super().__init__(message, Exit.USAGE, next=next)


def explain(error: BaseException, *, verbose: bool = False) -> CtlError:
    """Any error of a command in guestctl's terms.

    :param verbose: write the traceback of a defect of guestctl's own.
    """
    if isinstance(error, CtlError):
        return error
    from virtd.cli.ctl.remote import from_client

    found = from_client(error)
    if found is not None:
        return found
    if isinstance(error, OSError):
        where = f"{error.filename}: " if error.filename else ""
        return CtlError(f"{where}{error.strerror or error}")
    if verbose:
        import traceback

        traceback.print_exception(error)
    return CtlError(
        f"a defect in guestctl: {type(error).__name__}: {error}",
        Exit.FAILED,
        "INTERNAL_ERROR",
        "Report it with the output of the same command with -v.",
    )


def from_record(record: Any) -> CtlError:
    """An ErrorRecord message (of a failed operation, of a host) in guestctl's terms."""
    details = details_of(record.message, record.violations, record.allowed_actions)
    if record.HasField("native"):
        details["native"] = f"{record.native.call} code {record.native.code}: {record.native.message}"
    if record.HasField("retry_after_s"):
        details["retry after"] = text.duration(record.retry_after_s)
    return CtlError(
        record.message or record.reason or record.kind,
        for_error(record.kind, record.reason),
        record.reason,
        remedy(record.reason),
        details,
    )


def details_of(message: str, violations: Iterable[Any], actions: Iterable[str]) -> dict[str, str]:
    """What the message does not say already of the fields concerned and the actions allowed."""
    details: dict[str, str] = {}
    for violation in violations:
        said = [] if violation.description in message else [violation.description]
        others = [value for value in violation.alternatives if value not in message]
        if others:
            said.append(f"accepted here: {', '.join(violation.alternatives)}")
        if said:
            details[violation.field] = "; ".join(said)
    if any(action not in message for action in actions):
        details["allowed now"] = ", ".join(actions)
    return details


def remedy(reason: str) -> str:
    """What to do next, from the catalogue of reasons; empty for a reason of a newer server."""
    from virtd.errors import catalogue

    entry = catalogue().get(reason)
    return entry.remedy if entry else ""


def report(error: CtlError, *, subject: str = "", color: bool = False) -> None:
    """Write the error to standard error."""
    head = "\x1b[31merror:\x1b[0m" if color else "error:"
    about = f"{subject}: " if subject and subject not in error.message else ""
    lines = [f"{head} {about}{text.clean(error.message)}"]
    lines += [f"  {text.clean(name)}: {text.clean(value)}" for name, value in error.details.items()]
    if error.reason:
        lines.append(f"reason: {error.reason}")
    if error.next:
        lines.append(f"next: {text.clean(error.next)}")
    sys.stderr.write("\n".join(lines) + "\n")
    sys.stderr.flush()
