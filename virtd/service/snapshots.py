"""Use cases of snapshots."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC

from virtd.backend import capabilities as cap
from virtd.errors import (
    SNAPSHOT_EXISTS,
    SNAPSHOT_NOT_FOUND,
    AlreadyExistsError,
    NotFoundError,
    unsupported,
)
from virtd.model.guest import GuestState
from virtd.model.names import GuestName, check_new_id
from virtd.model.operation import Operation
from virtd.model.snapshot import Snapshot
from virtd.service.call import Call, Page, page_of
from virtd.service.core import Core, once, submission
from virtd.service.validate import TEXT_MAX, Violations
from virtd.service.verbs.snapshot import (
    CreateSnapshot,
    DeleteSnapshot,
    RevertSnapshot,
    SnapshotArguments,
)


class Snapshots:
    """Use cases of snapshots."""

    def __init__(self, core: Core) -> None:
        self._core = core
        self._create = CreateSnapshot(core)
        self._revert = RevertSnapshot(core)
        self._delete = DeleteSnapshot(core)
        for verb in (self._create, self._revert, self._delete):
            core.engine.register(verb)

    @once
    async def create(
        self, call: Call, name: GuestName, snapshot_id: str, description: str, memory: bool
    ) -> Operation | None:
        """Take a snapshot; see the RPC's documentation for the errors."""
        check_new_id(snapshot_id, "snapshot_id")
        wrong = Violations()
        if len(description) > TEXT_MAX or not (description.isprintable() or not description):
            wrong.add("description", f"must be at most {TEXT_MAX} printable characters")
        wrong.check()
        await self._core.settled(name.host)
        busy = bool(self._core.engine.current(str(name)))
        view = self._core.check_verb(name, "snapshot", now=not busy)
        # Whether there is any memory is seen when the turn comes.
        if memory and (busy or view.guest.status.state in (GuestState.RUNNING, GuestState.PAUSED)):
            cap.require(self._core.link(name.host).capabilities, cap.SNAPSHOT_MEMORY, resource=str(name))
        if any(known.name == snapshot_id for known in await self._all(name)):
            raise AlreadyExistsError(
                SNAPSHOT_EXISTS,
                f"{name.guest} has a snapshot {snapshot_id} already",
                resource=f"{name}/snapshots/{snapshot_id}",
            )
        if call.validate_only:
            return None
        arguments = SnapshotArguments(
            name.host, name.guest, view.guest.uid, snapshot=snapshot_id, description=description, memory=memory
        )
        return await self._core.engine.submit(self._create, arguments, submission(call, str(name), str(name)))

    async def get(self, name: GuestName, snapshot_id: str) -> Snapshot:
        """A snapshot.

        :raises NotFoundError: SNAPSHOT_NOT_FOUND.
        """
        for snapshot in await self._all(name):
            if snapshot.name == snapshot_id:
                return replace(snapshot, name=f"{name}/snapshots/{snapshot.name}")
        raise NotFoundError(
            SNAPSHOT_NOT_FOUND,
            f"{name.guest} has no snapshot {snapshot_id}",
            resource=f"{name}/snapshots/{snapshot_id}",
        )

    async def list(self, name: GuestName, page_size: int, page_token: str) -> Page[Snapshot]:
        """All of a guest's snapshots, parents before children."""
        records = [replace(s, name=f"{name}/snapshots/{s.name}") for s in await self._all(name)]
        # A child is never older than its parent, so that this is the tree's order, too.
        depth: dict[str, int] = {}
        for record in records:
            depth[record.name] = depth.get(f"{name}/snapshots/{record.parent}", 0) + 1
        order = {r.name: f"{_stamp(r)} {depth[r.name]:06} {r.name}" for r in records}
        records.sort(key=lambda record: order[record.name])
        return page_of(records, page_size, page_token, lambda record: order[record.name])

    async def revert(self, call: Call, name: GuestName, snapshot_id: str) -> Operation | None:
        """Make the guest what it was."""
        return await self._existing(call, name, snapshot_id, self._revert, "revert")

    async def delete(self, call: Call, name: GuestName, snapshot_id: str) -> Operation | None:
        """Delete a snapshot."""
        return await self._existing(call, name, snapshot_id, self._delete, "snapshot")

    @once
    async def _existing(
        self, call: Call, name: GuestName, snapshot_id: str, verb: RevertSnapshot | DeleteSnapshot, rule: str
    ) -> Operation | None:
        await self._core.settled(name.host)
        busy = bool(self._core.engine.current(str(name)))
        view = self._core.check_verb(name, rule, now=not busy)
        if not busy:
            await self.get(name, snapshot_id)
        if call.validate_only:
            return None
        arguments = SnapshotArguments(name.host, name.guest, view.guest.uid, snapshot=snapshot_id)
        return await self._core.engine.submit(verb, arguments, submission(call, str(name), str(name)))

    async def _all(self, name: GuestName) -> Sequence[Snapshot]:
        view = self._core.view(name)
        link = self._core.link(name.host)
        cap.require(link.capabilities, cap.SNAPSHOT, resource=str(name))
        facet = link.facets.snapshots
        if facet is None:
            raise unsupported(cap.SNAPSHOT, "the host offers no snapshots", resource=str(name))
        return await link.call(facet.list_snapshots(view.guest.uid))


def _stamp(snapshot: Snapshot) -> str:
    when = snapshot.create_time
    return "" if when is None else when.astimezone(UTC).isoformat(timespec="microseconds")
