"""Calls of methods whose facet is there for a sibling, but which the host does not offer."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from typing import TYPE_CHECKING, Final
from uuid import uuid4

from virtd.backend import capabilities as caps
from virtd.backend.api import SnapshotRequest, VolumeRequest
from virtd.errors import CAPABILITY_UNSUPPORTED
from virtd.model.guest import DiskFormat, GuestState

if TYPE_CHECKING:
    from virtd.backend.conformance.kit import Kit


async def _snapshot_with_memory(kit: Kit) -> None:
    guest = await kit.in_state(GuestState.RUNNING)
    request = SnapshotRequest("refused", memory=True)
    await _refused(kit, kit.facet("snapshots").create_snapshot(guest.uuid, request, kit.context()))


async def _revert(kit: Kit) -> None:
    guest = await kit.in_state(GuestState.STOPPED)
    await _refused(kit, kit.facet("snapshots").revert_snapshot(guest.uuid, "refused", kit.context()))


async def _volume(kit: Kit) -> None:
    pool = await kit.facet("storage").ensure_default_pool(kit.context())
    request = VolumeRequest(pool.name, f"{kit.tag}-{uuid4().hex[:6]}", DiskFormat.RAW, capacity_bytes=1 << 20)
    await _refused(kit, kit.facet("storage").create_volume(request, kit.context()))


async def _refused(kit: Kit, call: Awaitable[object]) -> None:
    before = await kit.digest()
    await kit.error(call, CAPABILITY_UNSUPPORTED)
    await kit.unchanged(before, "the refusal")


async def _nothing_to_call(_kit: Kit) -> None:
    """The capability has no method of its own that only it offers."""


CALLS: Final[Mapping[str, Callable[[Kit], Awaitable[None]]]] = {
    caps.SNAPSHOT: _nothing_to_call,
    caps.SNAPSHOT_MEMORY: _snapshot_with_memory,
    caps.SNAPSHOT_REVERT: _revert,
    caps.POOLS: _nothing_to_call,
    caps.VOLUMES: _volume,
}
