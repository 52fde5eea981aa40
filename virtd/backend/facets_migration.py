"""The facet behind migration: a guest that runs moves to another host of the same hypervisor.

Part of :mod:`virtd.backend.api`, whose rules hold here too; import from there.

The hypervisors do it between themselves: virtd begins it, looks on, and may die meanwhile.  Whatever
happens, the guest runs on exactly one of the two hosts, and :meth:`MigrationFacet.migration_side` of
both tells on which.  Stopped guests need no facet: the core moves their definition and their disks.

What a move to *another* hypervisor will need (conversion, export, import) is not here: it reads and
writes definitions and volumes, and gets a facet of its own.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, Protocol
from uuid import UUID

from virtd.model.guest import DiskFormat
from virtd.model.migration import MigrationFinding

if TYPE_CHECKING:
    from virtd.backend.api import CallContext


class MigrationSide(StrEnum):
    """What one host has of a guest that is, or was, on its way.

    ABSENT: it does not know the guest.  DOWN: defined, no process.  INCOMING: a process that waits for
    the guest to arrive, and that the hypervisor itself removes if it does not.  OUTGOING: the guest's
    migration is under way from here.  ACTIVE: it is here: it runs or is paused, and no migration is under
    way.  BROKEN: a part of its memory is on each host and the way between them is lost (post-copy).
    """

    ABSENT = "ABSENT"
    DOWN = "DOWN"
    INCOMING = "INCOMING"
    OUTGOING = "OUTGOING"
    ACTIVE = "ACTIVE"
    BROKEN = "BROKEN"


@dataclass(frozen=True, slots=True)
class MovedDisk:
    """One disk of the guest that has another file on the target.

    ``mirrored``: the hypervisors fill that file while the guest runs; else it is filled already.
    """

    path: str
    target_path: str
    format: DiskFormat
    mirrored: bool


@dataclass(frozen=True, slots=True)
class MigrationOrder:
    """What the hypervisor is to do; see :class:`virtd.model.migration.MigrationRequest`."""

    disks: tuple[MovedDisk, ...] = ()
    mirrors: bool = False
    post_copy: bool = False
    auto_converge: bool = False
    bandwidth_bytes_per_s: int | None = None
    max_downtime_ms: int | None = None


@dataclass(frozen=True, slots=True)
class MigrationTimes:
    """What the hypervisor measured.  None: it does not say."""

    downtime_ms: int | None = None
    total_ms: int | None = None
    sent_bytes: int | None = None


class MigrationFacet(Protocol):
    """Live migration.  Methods are the *source* session's, except where they say otherwise.

    ``target`` is the facet of a session of the same backend.
    """

    async def shared_paths(self, paths: Sequence[str], target: MigrationFacet) -> Mapping[str, str]:
        """Which of these files are the same file on both hosts, and how that is known.  Reads.

        A path that is missing in the answer is not known to be shared, whatever lies there.
        """

    async def check_migration(
        self, uuid: UUID, order: MigrationOrder, target: MigrationFacet, *, live: bool
    ) -> Sequence[MigrationFinding]:
        """What only the hypervisors know about it: processors, memory, devices, bridges, firmware.  Reads.

        ``order.disks`` need not have paths on the target yet.

        :raises NotFoundError: GUEST_NOT_FOUND.
        """

    async def migration_side(self, uuid: UUID) -> MigrationSide:
        """What this host, source or target, has of the guest now.  Reads."""

    async def migrate_guest(
        self,
        uuid: UUID,
        order: MigrationOrder,
        target: MigrationFacet,
        context: CallContext,
        *,
        committed: Callable[[], None],
    ) -> None:
        """Send the guest, and return when the target has it, with its definition; the source then has neither.

        Where a migration of the guest is under way already it is followed to its end.  Reports the bytes of
        memory and disks.  A cancel aborts it: the guest runs on here.  So it does after every error, except
        BROKEN.

        :param committed: called when it cannot be cancelled any more (post-copy), before it is so.
        :raises CancelledError: OPERATION_CANCELLED, it was aborted, by the context or from outside.
        :raises FailedPreconditionError: MIGRATION_FAILED, the hypervisors gave up.
        """

    async def migration_times(self, uuid: UUID) -> MigrationTimes:
        """Of the guest's last migration; asked of the target when it is over."""

    async def discard_arrival(self, uuid: UUID, context: CallContext) -> None:
        """As target: remove what there is of a guest that is INCOMING or DOWN; its volumes stay.  Idempotent.

        :raises FailedPreconditionError: INVALID_STATE, it is ACTIVE: it has arrived.
        """
