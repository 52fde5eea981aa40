"""Create, revert and delete snapshots."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from virtd.backend.api import SnapshotFacet, SnapshotRequest
from virtd.backend.capabilities import SNAPSHOT, SNAPSHOT_MEMORY, require
from virtd.errors import (
    SNAPSHOT_EXISTS,
    SNAPSHOT_NOT_FOUND,
    AlreadyExistsError,
    NotFoundError,
    unsupported,
)
from virtd.model.event import EventType
from virtd.model.guest import GuestState
from virtd.model.snapshot import Snapshot
from virtd.operations import Outcome, Probe, Run, Step
from virtd.service.verbs.base import GuestArguments, GuestVerb, patience


@dataclass(frozen=True, slots=True)
class SnapshotArguments(GuestArguments):
    """Which snapshot, and what it holds."""

    snapshot: str = ""
    description: str = ""
    memory: bool = False

    @property
    def snapshot_name(self) -> str:
        """Its resource name."""
        return f"{self.guest_name}/snapshots/{self.snapshot}"


class _SnapshotVerb(GuestVerb[SnapshotArguments]):
    @property
    def arguments(self) -> type[SnapshotArguments]:
        """Journalled."""
        return SnapshotArguments

    def facet(self, run: Run[SnapshotArguments]) -> SnapshotFacet:
        """The host's snapshots."""
        facet = self.link(run).facets.snapshots
        if facet is None:
            raise unsupported(SNAPSHOT, "the host offers no snapshots")
        return facet

    async def find(self, run: Run[SnapshotArguments]) -> Snapshot | None:
        """The snapshot, if the hypervisor has it."""
        link = self.link(run)
        for snapshot in await link.call(self.facet(run).list_snapshots(run.arguments.uid)):
            if snapshot.name == run.arguments.snapshot:
                return snapshot
        return None


class CreateSnapshot(_SnapshotVerb):
    """Take one."""

    name = "snapshot-create"

    def steps(self, arguments: SnapshotArguments) -> Sequence[Step[SnapshotArguments]]:
        """After the check, a snapshot of this name is this operation's own: to be found again, or undone."""
        return [Step("check", self._check, weight=0.1), Step("snapshot", self._do, probe=self._probe, undo=self._undo)]

    async def _check(self, run: Run[SnapshotArguments]) -> None:
        if await self.find(run) is not None:
            raise AlreadyExistsError(
                SNAPSHOT_EXISTS,
                f"{run.arguments.guest} has a snapshot {run.arguments.snapshot} already",
                resource=run.arguments.snapshot_name,
            )

    async def _do(self, run: Run[SnapshotArguments]) -> None:
        arguments, link = run.arguments, self.link(run)
        await self.refresh(run)
        memory = arguments.memory and self.state(run) in (GuestState.RUNNING, GuestState.PAUSED)
        if memory:
            require(link.capabilities, SNAPSHOT_MEMORY, resource=str(arguments.guest_name))
        request = SnapshotRequest(arguments.snapshot, arguments.description, memory)
        await link.call(self.facet(run).create_snapshot(arguments.uid, request, run), timeout_s=patience(run))
        await self.refresh(run)

    async def _probe(self, run: Run[SnapshotArguments]) -> Probe:
        return Probe.DONE if await self.find(run) is not None else Probe.TODO

    async def _undo(self, run: Run[SnapshotArguments]) -> None:
        if await self.find(run) is not None:
            await self.link(run).call(self.facet(run).delete_snapshot(run.arguments.uid, run.arguments.snapshot, run))
        await self.refresh(run)

    async def finish(self, run: Run[SnapshotArguments]) -> Outcome:
        """The snapshot."""
        snapshot = await self.find(run)
        name = run.arguments.snapshot_name
        self.core.events.emit(
            EventType.SNAPSHOT_ADDED, name, uid=str(run.arguments.uid), attributes={"snapshot": run.arguments.snapshot}
        )
        if snapshot is None:
            return Outcome(name)
        return Outcome(name, replace(snapshot, name=name))


class RevertSnapshot(_SnapshotVerb):
    """Make the guest what it was."""

    name = "snapshot-revert"

    def steps(self, arguments: SnapshotArguments) -> Sequence[Step[SnapshotArguments]]:
        """Reverting twice is reverting once; half of it cannot be taken back, so it is not cancellable."""
        return [Step("revert", self._do, cancellable=False)]

    async def _do(self, run: Run[SnapshotArguments]) -> None:
        link = self.link(run)
        if await self.find(run) is None:
            raise NotFoundError(
                SNAPSHOT_NOT_FOUND,
                f"{run.arguments.guest} has no snapshot {run.arguments.snapshot}",
                resource=run.arguments.snapshot_name,
            )
        await link.call(
            self.facet(run).revert_snapshot(run.arguments.uid, run.arguments.snapshot, run), timeout_s=patience(run)
        )
        await self.refresh(run)


class DeleteSnapshot(_SnapshotVerb):
    """Delete one; its children keep their data."""

    name = "snapshot-delete"

    def steps(self, arguments: SnapshotArguments) -> Sequence[Step[SnapshotArguments]]:
        """One step, idempotent."""
        return [Step("delete", self._do, cancellable=False)]

    async def _do(self, run: Run[SnapshotArguments]) -> None:
        link = self.link(run)
        await link.call(
            self.facet(run).delete_snapshot(run.arguments.uid, run.arguments.snapshot, run), timeout_s=patience(run)
        )
        await self.refresh(run)

    async def finish(self, run: Run[SnapshotArguments]) -> Outcome:
        """Nothing is left to show."""
        self.core.events.emit(
            EventType.SNAPSHOT_REMOVED,
            run.arguments.snapshot_name,
            uid=str(run.arguments.uid),
            attributes={"snapshot": run.arguments.snapshot},
        )
        return Outcome()
