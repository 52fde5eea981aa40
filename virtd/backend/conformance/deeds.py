"""What several checks do, and have tidied up afterwards: snapshots, and what the core does for reboot and reset."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable
from typing import TYPE_CHECKING, Final
from uuid import UUID

from virtd.backend import capabilities as caps
from virtd.backend.api import SnapshotPlan, SnapshotRequest
from virtd.model.guest import GuestState
from virtd.model.host import CapabilityLevel
from virtd.model.snapshot import Snapshot

if TYPE_CHECKING:
    from virtd.backend.conformance.context import KitContext
    from virtd.backend.conformance.kit import Kit

PRESS_EVERY_S: Final = 3.0
_BY_CORE: Final = (caps.REBOOT, caps.RESET)


async def take(kit: Kit, uuid: UUID, request: SnapshotRequest, context: KitContext | None = None) -> Snapshot:
    """Take a snapshot; the volumes that it is made of go after the check."""
    facet = kit.facet("snapshots")
    plan = await facet.plan_create(uuid, request)
    _tidy_up(kit, plan)
    made: Snapshot = await facet.create_snapshot(uuid, request, context or kit.context(), plan)
    return made


async def revert(kit: Kit, uuid: UUID, name: str, context: KitContext | None = None) -> None:
    """Revert; the volumes that come of it, or that the guest uses no more, go after the check."""
    facet = kit.facet("snapshots")
    plan = await facet.plan_revert(uuid, name)
    _tidy_up(kit, plan)
    await facet.revert_snapshot(uuid, name, context or kit.context(), plan)


def _tidy_up(kit: Kit, plan: SnapshotPlan) -> None:
    for volume in plan.volumes:
        pool, _, name = volume.partition("/")
        kit.forget_later(volume=(pool, name))


def by_core(kit: Kit, capability: str) -> bool:
    """Whether it is the core that does this, of shutdown, stop and start."""
    return capability in _BY_CORE and kit.capability(capability).level is CapabilityLevel.EMULATED


async def reboot(kit: Kit, uuid: UUID) -> None:
    """Reboot a guest, by the facet or as the core does."""
    if not by_core(kit, caps.REBOOT):
        await kit.facet("reboot").request_reboot(uuid, kit.context())
        return
    await shut_down(kit, uuid)
    await kit.session.start_guest(uuid, kit.context())


async def reset(kit: Kit, uuid: UUID) -> None:
    """Reset a guest, by the facet or as the core does."""
    if not by_core(kit, caps.RESET):
        await kit.facet("reset").reset_guest(uuid, kit.context())
        return
    await kit.session.stop_guest(uuid, kit.context())
    await kit.session.start_guest(uuid, kit.context())


async def shut_down(kit: Kit, uuid: UUID) -> None:
    """Press the power button until the guest is down: a press that comes too early is lost."""
    loop = asyncio.get_running_loop()
    pressed = 0.0

    async def down() -> bool:
        nonlocal pressed
        if await kit.state(uuid) == GuestState.STOPPED:
            return True
        if loop.time() - pressed > PRESS_EVERY_S:
            pressed = loop.time()
            press: Awaitable[None] = kit.facet("shutdown").request_shutdown(uuid, kit.context())
            await press
        return False

    await kit.eventually(down, "the guest does not shut down", kit.bootable().boot_timeout_s)
