"""Snapshots of fake guests: real content, so that a revert can be checked."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from uuid import UUID

from virtd.backend import capabilities as caps
from virtd.backend.api import CallContext, SnapshotRequest
from virtd.errors import INVALID_STATE, SNAPSHOT_NOT_FOUND, FailedPreconditionError, NotFoundError
from virtd.model.guest import GuestState
from virtd.model.snapshot import Snapshot, SnapshotKind
from virtd.testing.fake.faults import NativeFailure
from virtd.testing.fake.link import Facet, spi
from virtd.testing.fake.state import FakeSnapshot


class Snapshots(Facet):
    """See :class:`virtd.backend.api.SnapshotFacet`."""

    @spi
    async def list_snapshots(self, uuid: UUID) -> Sequence[Snapshot]:
        """See the SPI."""
        guest = await self._native.guest_lookup(uuid)
        found = await self._native.snapshot_list(uuid)
        return [_record(item, guest.current_snapshot) for item in found]

    @spi
    async def create_snapshot(self, uuid: UUID, request: SnapshotRequest, context: CallContext) -> Snapshot:
        """See the SPI."""
        if request.memory:
            self._link.refuse_without(caps.SNAPSHOT_MEMORY)
        guest = await self._native.guest_lookup(uuid)
        for item in await self._native.snapshot_list(uuid):
            if item.name == request.name:
                return _record(item, guest.current_snapshot)
        if request.memory and not guest.active_now:
            raise FailedPreconditionError(INVALID_STATE, f"guest {guest.name} has no memory now: it is {guest.state}")
        context.checkpoint()
        try:
            await self._native.snapshot_begin(uuid, request.name, request.description, memory=request.memory)
            context.progress(0.1)
            context.checkpoint()
            if request.memory:
                await self._native.snapshot_copy_memory(uuid, request.name, context)
            context.progress(0.5)
            context.checkpoint()
            await self._native.snapshot_copy_disk(uuid, request.name, context)
            context.progress(0.9)
            context.checkpoint()
            made = await self._native.snapshot_commit(uuid, request.name)
        except BaseException:
            with contextlib.suppress(NativeFailure):
                await self._native.snapshot_delete(uuid, request.name)
            raise
        context.progress(1.0)
        return _record(made, request.name)

    @spi
    async def revert_snapshot(self, uuid: UUID, name: str, context: CallContext) -> None:
        """See the SPI."""
        self._link.refuse_without(caps.SNAPSHOT_REVERT)
        found = {item.name for item in await self._native.snapshot_list(uuid)}
        if name not in found:
            raise NotFoundError(SNAPSHOT_NOT_FOUND, f"the guest has no snapshot {name}")
        context.checkpoint()
        await self._native.snapshot_restore(uuid, name, context)

    @spi
    async def delete_snapshot(self, uuid: UUID, name: str, context: CallContext) -> None:
        """See the SPI."""
        context.checkpoint()
        await self._native.snapshot_delete(uuid, name)


def _record(item: FakeSnapshot, current: str) -> Snapshot:
    # A guest that was suspended or stopped has no memory to revert to.
    state = item.state if item.state in (GuestState.RUNNING, GuestState.PAUSED) else GuestState.STOPPED
    return Snapshot(
        name=item.name,
        description=item.description,
        kind=SnapshotKind.DISK_AND_MEMORY if item.memory else SnapshotKind.DISK,
        parent=item.parent,
        current=item.name == current,
        guest_state=state,
        location="fake",
        create_time=item.time,
    )
