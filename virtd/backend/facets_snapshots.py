"""The facet of snapshots: plans first, then deeds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol
from uuid import UUID

from virtd.model.snapshot import Snapshot, SnapshotKind, SnapshotLocation

if TYPE_CHECKING:
    from virtd.backend.api import CallContext


@dataclass(frozen=True, slots=True)
class SnapshotRequest:
    """A snapshot to take.

    :param memory: include the running guest's memory and devices.
    :param quiesce: freeze the file systems by the guest's agent for the moment in which a running
        guest's disks are snapshotted without memory.
    """

    name: str
    description: str = ""
    memory: bool = False
    location: SnapshotLocation = SnapshotLocation.AUTO
    quiesce: bool = False


@dataclass(frozen=True, slots=True)
class SnapshotPlan:
    """What a call will do, decided before its first side effect, and journalled by the core.

    :param location: ``internal``, ``external`` or ``copy`` (or the backend's own word).
    :param reason: why there, for a person.
    :param volumes: the files that will be made, as ``pool/volume``: the guest owns them from now on.
    :param removed: the files that will be removed, in the same form.
    :param replaced: for a revert: volumes that the guest will use no more, in the same form.  The backend
        leaves them; the core deletes those that the guest owned and nothing else needs.
    :param detail: the backend's own text: names, paths, chains.  The core gives it back unread.
    """

    location: str = ""
    reason: str = ""
    kind: SnapshotKind = SnapshotKind.DISK
    volumes: tuple[str, ...] = ()
    removed: tuple[str, ...] = ()
    replaced: tuple[str, ...] = ()
    detail: str = ""


class SnapshotFacet(Protocol):
    """Snapshots with revert.  One guest's snapshots form a tree, and are all of one kind.

    Each change is planned by a ``plan_`` call, which has no side effect and raises what there is to
    refuse, and then made by a call that is given the plan.  After a crash the same call comes again
    with the same plan, whatever of it was done.  Without a plan the call makes its own.
    """

    async def list_snapshots(self, uuid: UUID) -> Sequence[Snapshot]:
        """All of them, parents before children.  ``Snapshot.name`` is the bare id here."""

    async def plan_create(self, uuid: UUID, request: SnapshotRequest) -> SnapshotPlan:
        """Where it would be kept, and why.

        :raises UnsupportedError: this guest cannot have this kind now; the reason says why.
        :raises FailedPreconditionError: SNAPSHOT_MIXED, SNAPSHOT_BLOCKED or SNAPSHOT_CHAIN_BROKEN;
            INVALID_STATE where only a guest that does not run can have any.
        :raises ResourceExhaustedError: STORAGE_FULL, where the room that it takes is known before.
        """

    async def create_snapshot(
        self, uuid: UUID, request: SnapshotRequest, context: CallContext, plan: SnapshotPlan | None = None
    ) -> Snapshot:
        """Take one.  Idempotent by name: one that is complete is returned as it is.

        :raises UnsupportedError: this guest cannot have this kind now; the reason says why.
        """

    async def describe_snapshot(self, uuid: UUID, name: str, description: str) -> None:
        """Change the description.  Idempotent.

        :raises NotFoundError: SNAPSHOT_NOT_FOUND.
        """

    async def plan_revert(self, uuid: UUID, name: str) -> SnapshotPlan:
        """How the guest would be made what it was.

        :raises NotFoundError: SNAPSHOT_NOT_FOUND.
        :raises FailedPreconditionError: SNAPSHOT_CHAIN_BROKEN, SNAPSHOT_BLOCKED or VOLUME_IN_USE; INVALID_STATE
            where only a guest that does not run can be reverted.
        :raises ResourceExhaustedError: STORAGE_FULL, where the room that it takes is known before.
        """

    async def revert_snapshot(
        self, uuid: UUID, name: str, context: CallContext, plan: SnapshotPlan | None = None
    ) -> None:
        """Make the guest what it was.  Idempotent in effect (reverting twice is reverting once).

        :raises NotFoundError: SNAPSHOT_NOT_FOUND.
        """

    async def plan_delete(self, uuid: UUID, name: str) -> SnapshotPlan:
        """What deleting it would merge and remove; for one that is not there, nothing.

        :raises FailedPreconditionError: SNAPSHOT_CHAIN_BROKEN, SNAPSHOT_BLOCKED or VOLUME_IN_USE.
        """

    async def delete_snapshot(
        self, uuid: UUID, name: str, context: CallContext, plan: SnapshotPlan | None = None
    ) -> None:
        """Delete one; its children keep their data and become children of its parent.  Idempotent.

        :raises FailedPreconditionError: SNAPSHOT_CHAIN_BROKEN, and then nothing was touched.
        """
