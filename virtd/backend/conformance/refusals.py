"""Calls of methods whose facet is there for a sibling, but which the host does not offer."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from typing import TYPE_CHECKING, Final
from uuid import uuid4

from virtd.backend import capabilities as caps
from virtd.backend.api import (
    BackupRequest,
    MigrationOrder,
    NativeEventType,
    PoolRequest,
    SnapshotRequest,
    VolumeRequest,
)
from virtd.backend.conformance.deeds import by_core
from virtd.backend.conformance.refusals_update import UPDATE_CALLS
from virtd.errors import CAPABILITY_UNSUPPORTED
from virtd.model.console import AgentCommand, AgentFileRequest
from virtd.model.guest import DiskFormat, GuestState
from virtd.model.snapshot import SnapshotLocation
from virtd.model.storage import PoolKind

if TYPE_CHECKING:
    from virtd.backend.conformance.kit import Kit


async def _snapshot_with_memory(kit: Kit) -> None:
    guest = await kit.in_state(GuestState.RUNNING)
    request = SnapshotRequest("refused", memory=True)
    await _refused(kit, kit.facet("snapshots").create_snapshot(guest.uuid, request, kit.context()))


async def _revert(kit: Kit) -> None:
    guest = await kit.in_state(GuestState.STOPPED)
    await _refused(kit, kit.facet("snapshots").revert_snapshot(guest.uuid, "refused", kit.context()))


async def _external(kit: Kit) -> None:
    guest = await kit.in_state(GuestState.STOPPED)
    request = SnapshotRequest("refused", location=SnapshotLocation.EXTERNAL)
    await _refused(kit, kit.facet("snapshots").create_snapshot(guest.uuid, request, kit.context()))


async def _unreported_reboot(kit: Kit) -> None:
    """There is no call to refuse: what is not declared must not be half there either."""
    guest = await kit.in_state(GuestState.RUNNING)
    seen = len(kit.events)
    if kit.declared(caps.RESET) and not by_core(kit, caps.RESET):
        await kit.facet("reset").reset_guest(guest.uuid, kit.context())
        await asyncio.sleep(0.5)
    assert not any(event.type is NativeEventType.GUEST_REBOOTED for event in kit.events[seen:])


async def _volume(kit: Kit) -> None:
    pool = await kit.facet("storage").ensure_default_pool(kit.context())
    request = VolumeRequest(pool.name, f"{kit.tag}-{uuid4().hex[:6]}", DiskFormat.RAW, capacity_bytes=1 << 20)
    await _refused(kit, kit.facet("storage").create_volume(request, kit.context()))


def _pool(kind: PoolKind) -> Callable[[Kit], Awaitable[None]]:
    async def refused(kit: Kit) -> None:
        name = f"{kit.tag}-{uuid4().hex[:6]}"
        request = {
            PoolKind.LOGICAL: PoolRequest(name, kind, volume_group="refused"),
            PoolKind.NFS: PoolRequest(name, kind, kit.host_path(name), server="192.0.2.1", export="/x"),
        }[kind]
        await _refused(kit, kit.facet("pools").define_pool(request, kit.context()))

    return refused


async def _resize(kit: Kit) -> None:
    await _refused(kit, kit.facet("volume_changes").resize_volume("refused", "refused", 1 << 20, kit.context()))


async def _clone(kit: Kit) -> None:
    clone = kit.facet("volume_changes").clone_volume
    await _refused(kit, clone("refused", "refused", "refused", "twin", DiskFormat.RAW, kit.context()))


async def _incremental(kit: Kit) -> None:
    guest = await kit.in_state(GuestState.STOPPED)
    request = BackupRequest("virtd-bk-refused", since="virtd-bk-before")
    await _refused(kit, kit.facet("backup").open_backup(guest.uuid, request, kit.context()))


async def _stream(kit: Kit) -> None:
    guest = await kit.in_state(GuestState.RUNNING)
    await _refused(kit, kit.facet("agent").start_command(guest.uuid, AgentCommand("/bin/true"), kit.context()))


async def _file(kit: Kit) -> None:
    guest = await kit.in_state(GuestState.RUNNING)
    await _refused(kit, kit.facet("agent").open_file(guest.uuid, AgentFileRequest("/refused"), kit.context()))


async def _freeze(kit: Kit) -> None:
    guest = await kit.in_state(GuestState.RUNNING)
    await _refused(kit, kit.facet("agent").freeze(guest.uuid, kit.context()))


async def _os_info(kit: Kit) -> None:
    guest = await kit.in_state(GuestState.RUNNING)
    await _refused(kit, kit.facet("agent").os_info(guest.uuid))


def _migration(order: MigrationOrder) -> Callable[[Kit], Awaitable[None]]:
    async def refused(kit: Kit) -> None:
        guest = await kit.in_state(GuestState.RUNNING)
        facet = kit.facet("migration")
        call = facet.migrate_guest(guest.uuid, order, facet, kit.context(), committed=lambda: None)
        await _refused(kit, call)

    return refused


async def _refused(kit: Kit, call: Awaitable[object]) -> None:
    before = await kit.digest()
    await kit.error(call, CAPABILITY_UNSUPPORTED)
    await kit.unchanged(before, "the refusal")


def _of_guest(facet: str, method: str, state: GuestState, *, context: bool = True) -> Callable[[Kit], Awaitable[None]]:
    """A call that takes a guest and nothing else, of guests that are of a kind that cannot do it."""

    async def refused(kit: Kit) -> None:
        guest = await kit.in_state(state)
        arguments = (guest.uuid, kit.context()) if context else (guest.uuid,)
        await _refused(kit, getattr(kit.facet(facet), method)(*arguments))

    return refused


async def _nothing_to_call(_kit: Kit) -> None:
    """The capability has no method of its own that only it offers."""


CALLS: Final[Mapping[str, Callable[[Kit], Awaitable[None]]]] = {
    caps.AGENT_EXEC: _nothing_to_call,
    caps.AGENT_STREAM: _stream,
    caps.AGENT_FILES: _file,
    caps.AGENT_FREEZE: _freeze,
    caps.AGENT_INFO: _os_info,
    caps.SNAPSHOT: _nothing_to_call,
    caps.SNAPSHOT_MEMORY: _snapshot_with_memory,
    caps.REBOOT_EVENTS: _unreported_reboot,
    caps.SNAPSHOT_REVERT: _revert,
    caps.SNAPSHOT_EXTERNAL: _external,
    caps.SNAPSHOT_QUIESCE: _nothing_to_call,
    caps.BACKUP: _nothing_to_call,
    caps.BACKUP_INCREMENTAL: _incremental,
    caps.POOLS: _nothing_to_call,
    caps.VOLUMES: _volume,
    caps.POOL_MANAGE: _nothing_to_call,
    caps.POOL_LOGICAL: _pool(PoolKind.LOGICAL),
    caps.POOL_NFS: _pool(PoolKind.NFS),
    caps.VOLUME_RESIZE: _resize,
    caps.VOLUME_CLONE: _clone,
    caps.TRASH: _nothing_to_call,
    caps.MIGRATE: _nothing_to_call,
    caps.MIGRATE_LIVE: _nothing_to_call,
    caps.MIGRATE_STORAGE: _migration(MigrationOrder(mirrors=True)),
    caps.MIGRATE_POSTCOPY: _migration(MigrationOrder(post_copy=True)),
    caps.SUSPEND: _of_guest("suspend", "suspend_guest", GuestState.RUNNING),
    caps.RESET: _of_guest("reset", "reset_guest", GuestState.RUNNING),
    caps.REBOOT: _of_guest("reboot", "request_reboot", GuestState.RUNNING),
    caps.SCREENSHOT: _of_guest("screenshot", "screenshot", GuestState.RUNNING, context=False),
    caps.CONSOLE_GRAPHICAL: _of_guest("display", "open_display", GuestState.RUNNING, context=False),
    **UPDATE_CALLS,
}
