"""What ``apply``, ``diff``, ``plan`` and ``edit`` share: documents, and the daemon's plan for each.

The daemon compares, not this program: what a document leaves out stays as it is, so that a document
which was applied twice changes nothing the second time.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from virtd.cli.ctl import kinds
from virtd.cli.ctl.errors import CtlError, UsageError, from_record
from virtd.cli.ctl.session import Session


@dataclass(frozen=True, slots=True)
class Wanted:
    """One document: the guest that it is for, and what it says."""

    name: str
    guest: Any
    where: str


@dataclass(slots=True)
class Planned:
    """What the daemon would do for a document: create, change fields, or nothing."""

    wanted: Wanted
    plan: Any

    @property
    def exists(self) -> bool:
        """Whether there is such a guest."""
        return bool(self.plan.HasField("update"))

    @property
    def changes(self) -> list[Any]:
        """The changes of an existing guest."""
        return list(self.plan.update.changes) if self.exists else []

    @property
    def different(self) -> bool:
        """Whether applying it would do anything."""
        return not self.exists or bool(self.changes)


def read(session: Session, files: Sequence[str], host: str | None) -> list[Wanted]:
    """The documents of all files, each mistake named before anything is sent.

    :raises UsageError: a file or a document is wrong, or two are for the same guest.
    """
    from virtd.cli.ctl.manifest import load
    from virtd.cli.ctl.remote import host_name

    found: list[Wanted] = []
    for file in files:
        source = "stdin" if file == "-" else file
        for entry in load(text_of(file), source):
            if not entry.name:
                raise UsageError(f"{entry.where}: metadata.name: is required")
            parent = host_name(session, host or entry.host or None)
            found.append(Wanted(f"{parent}/guests/{entry.name}", entry.guest, entry.where))
    first: dict[str, Wanted] = {}
    for wanted in found:
        if wanted.name in first:
            raise UsageError(f"{wanted.where}: {wanted.name} is in {first[wanted.name].where} already")
        first[wanted.name] = wanted
    return found


def text_of(file: str) -> str:
    """A file's text; ``-`` is standard input.

    :raises UsageError: it cannot be read.
    """
    try:
        return sys.stdin.read() if file == "-" else Path(file).read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise UsageError(f"{file}: this is not text in UTF-8") from error
    except OSError as error:
        raise UsageError(f"{file}: {error.strerror}") from error


def plan(session: Session, wanted: Wanted, mode: Any) -> Planned:
    """What the daemon would do.

    :raises CtlError: the document cannot be carried out; the daemon's reason.
    """
    found = session.client().guests.plan_for(wanted.name, wanted.guest, mode=mode)
    planned = Planned(wanted, found)
    said = found.update if planned.exists else found
    for warning in said.warnings:
        session.warn(f"{kinds.last(wanted.name)}: {warning}")
    if found.HasField("error"):
        raise from_record(found.error)
    return planned


def rows_of(planned: Planned) -> list[tuple[str, Any]]:
    """What ``kinds.CHANGES`` shows of it."""
    from virtd.v1 import guest_service_pb2 as pb

    if planned.exists:
        return [(planned.wanted.name, change) for change in planned.changes]
    return [(planned.wanted.name, pb.FieldChange(field="(the guest)", new="created"))]


def refuse(planned: Planned) -> CtlError | None:
    """Why it cannot be applied as it is; None: it can."""
    from virtd.cli.ctl.exits import Exit

    for change in planned.changes:
        if kinds.enum(change, "effect") == "REJECTED":
            return CtlError(f"{planned.wanted.name}: {change.field}: {change.reason}", Exit.UNSUPPORTED)
    for verdict in () if planned.exists else planned.plan.verdicts:
        if kinds.enum(verdict, "fidelity") == "REJECTED":
            return CtlError(f"{planned.wanted.name}: {verdict.field}: {verdict.reason}", Exit.UNSUPPORTED)
    return None
