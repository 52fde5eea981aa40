"""Snapshots of fake guests: real content, so that a revert can be checked."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from dataclasses import replace
from uuid import UUID

from virtd.backend import capabilities as caps
from virtd.backend.api import CallContext, SnapshotPlan, SnapshotRequest
from virtd.errors import (
    SNAPSHOT_MIXED,
    SNAPSHOT_NOT_FOUND,
    FailedPreconditionError,
    NotFoundError,
    unsupported,
)
from virtd.model.guest import Firmware, GuestState
from virtd.model.snapshot import EXTERNAL, Snapshot, SnapshotKind, SnapshotLocation
from virtd.testing.fake import lowering
from virtd.testing.fake.faults import NativeFailure
from virtd.testing.fake.link import Facet, spi
from virtd.testing.fake.state import FakeGuest, FakeSnapshot


class Snapshots(Facet):
    """See :class:`virtd.backend.api.SnapshotFacet`."""

    @spi
    async def list_snapshots(self, uuid: UUID) -> Sequence[Snapshot]:
        """See the SPI."""
        guest = await self._native.guest_lookup(uuid)
        found = await self._native.snapshot_list(uuid)
        return [_record(item, guest.current_snapshot) for item in found]

    @spi
    async def plan_create(self, uuid: UUID, request: SnapshotRequest) -> SnapshotPlan:
        """See the SPI."""
        return await self._plan_create(uuid, request)

    async def _plan_create(self, uuid: UUID, request: SnapshotRequest) -> SnapshotPlan:
        guest = await self._native.guest_lookup(uuid)
        if request.memory:
            self._link.refuse_without(caps.SNAPSHOT_MEMORY)
            if not guest.active_now:
                raise unsupported(caps.SNAPSHOT_MEMORY, f"the guest has no memory now: it is {guest.state}")
        found = await self._native.snapshot_list(uuid)
        kinds = {item.location for item in found}
        no_internal = _not_internal(guest, memory=request.memory)
        location = request.location
        reason = "asked for"
        if location is SnapshotLocation.AUTO:
            outside = EXTERNAL in kinds or bool(no_internal)
            location = SnapshotLocation.EXTERNAL if outside else SnapshotLocation.INTERNAL
            reason = no_internal or ("the others are external" if outside else "a fake guest's disks hold snapshots")
        if location is SnapshotLocation.INTERNAL and no_internal:
            raise unsupported(caps.SNAPSHOT_MEMORY if request.memory else caps.SNAPSHOT, no_internal)
        if location is SnapshotLocation.EXTERNAL:
            self._link.refuse_without(caps.SNAPSHOT_EXTERNAL)
        if request.quiesce:
            self._link.refuse_without(caps.SNAPSHOT_QUIESCE)
        chosen = location.value.lower()
        if kinds - {chosen}:
            raise FailedPreconditionError(SNAPSHOT_MIXED, f"the guest has {', '.join(sorted(kinds))} snapshots")
        kind = SnapshotKind.DISK_AND_MEMORY if request.memory else SnapshotKind.DISK
        return SnapshotPlan(chosen, reason, kind)

    @spi
    async def create_snapshot(
        self, uuid: UUID, request: SnapshotRequest, context: CallContext, plan: SnapshotPlan | None = None
    ) -> Snapshot:
        """See the SPI."""
        guest = await self._native.guest_lookup(uuid)
        for item in await self._native.snapshot_list(uuid):
            if item.name == request.name:
                return _record(item, guest.current_snapshot)
        chosen = await self._plan_create(uuid, request)
        context.checkpoint()
        try:
            await self._native.snapshot_begin(
                uuid, request.name, request.description, memory=request.memory, location=chosen.location
            )
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
        return replace(_record(made, request.name), reason=chosen.reason)

    @spi
    async def describe_snapshot(self, uuid: UUID, name: str, description: str) -> None:
        """See the SPI."""
        await self._native.snapshot_describe(uuid, name, description)

    @spi
    async def plan_revert(self, uuid: UUID, name: str) -> SnapshotPlan:
        """See the SPI."""
        return await self._plan_revert(uuid, name)

    async def _plan_revert(self, uuid: UUID, name: str) -> SnapshotPlan:
        self._link.refuse_without(caps.SNAPSHOT_REVERT)
        found = {item.name: item for item in await self._native.snapshot_list(uuid)}
        if name not in found:
            raise NotFoundError(SNAPSHOT_NOT_FOUND, f"the guest has no snapshot {name}")
        return SnapshotPlan(found[name].location)

    @spi
    async def revert_snapshot(
        self, uuid: UUID, name: str, context: CallContext, plan: SnapshotPlan | None = None
    ) -> None:
        """See the SPI."""
        await self._plan_revert(uuid, name)
        context.checkpoint()
        await self._native.snapshot_restore(uuid, name, context)

    @spi
    async def plan_delete(self, uuid: UUID, name: str) -> SnapshotPlan:
        """See the SPI."""
        found = {item.name: item for item in await self._native.snapshot_list(uuid)}
        return SnapshotPlan(found[name].location) if name in found else SnapshotPlan()

    @spi
    async def delete_snapshot(
        self, uuid: UUID, name: str, context: CallContext, plan: SnapshotPlan | None = None
    ) -> None:
        """See the SPI."""
        context.checkpoint()
        await self._native.snapshot_delete(uuid, name)


def _not_internal(guest: FakeGuest, *, memory: bool) -> str:
    if guest.active_now and not memory:
        return "a running guest's disks change while they are copied: include its memory, or stop it first"
    if lowering.parse(guest.native).firmware is Firmware.UEFI:
        return "a fake host takes no internal snapshots of guests with UEFI firmware"
    return ""


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
        location=item.location,
        create_time=item.time,
    )
