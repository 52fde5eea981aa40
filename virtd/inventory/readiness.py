"""Conditions that no hypervisor reports by itself: whether the agent is ready and an address is known.

Events start a check at once; a slow poll is the safety net.  A guest whose agent is stuck costs one
bounded call now and then, and never delays another guest.

Guests that virtd does not manage are left alone: a call to an agent is felt inside the guest, and can
be in the way of those who use it.
"""

from __future__ import annotations

import asyncio
import time
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Final
from uuid import UUID

import structlog

from virtd.backend.capabilities import AGENT_FREEZE
from virtd.errors import AGENT_NOT_CONFIGURED, VirtdError
from virtd.inventory.cloud_init import cloud_init_done
from virtd.inventory.inventory import Inventory
from virtd.inventory.records import GuestView
from virtd.model.guest import ConditionStatus, ConditionType, GuestState, Origin
from virtd.model.host import Capability, CapabilityLevel

if TYPE_CHECKING:
    from virtd.inventory.link import HostLink

log = structlog.get_logger(__name__)

PARALLEL: Final = 4
CHECK_TIMEOUT_S: Final = 10.0
SETTLED_EVERY_S: Final = 30.0
"""How often a guest that is ready is looked at again (its addresses may change)."""
YOUNG_S: Final = 180.0
"""So long after its start a guest is expected to become ready, and is looked at with every poll."""
OVERDUE_EVERY_S: Final = 15.0
"""How often one is looked at that is not ready by then."""


class Readiness:
    """The checks of one host's guests."""

    def __init__(self, link: HostLink, inventory: Inventory) -> None:
        self._link = link
        self._inventory = inventory
        self._slots = asyncio.Semaphore(PARALLEL)
        self._busy: set[UUID] = set()
        self._next: dict[UUID, float] = {}
        self._tasks: set[asyncio.Task[None]] = set()

    async def check(self) -> None:
        """Start the checks that are due; returns at once."""
        now = time.monotonic()
        for view in self._inventory.guests(self._link.id):
            uid = view.guest.uid
            if not _checkable(view):
                self._next.pop(uid, None)
            elif uid not in self._busy and self._next.get(uid, 0.0) <= now:
                task = asyncio.create_task(self.check_guest(uid))
                self._tasks.add(task)
                task.add_done_callback(self._tasks.discard)

    def look_again(self, uid: UUID) -> None:
        """What was found of a guest is past: check it with the next poll."""
        self._next.pop(uid, None)

    def stop(self) -> None:
        """End all checks."""
        for task in self._tasks:
            task.cancel()

    async def check_guest(self, uid: UUID) -> None:
        """Check one guest; at most one check of it at a time."""
        if uid in self._busy:
            return
        self._busy.add(uid)
        try:
            async with self._slots:
                view = self._inventory.by_uid(uid)
                if view is None or not _checkable(view):
                    return
                ready = await self._agent(view)
                # An agent that holds file systems frozen tells no addresses: those that are known stay.
                addressed = None if ready and await self._frozen(view) else await self._addresses(view)
                initialised = await self._cloud_init(view) if ready else None
                settled = ready is not False and addressed is not False and initialised is not False
                self._next[uid] = time.monotonic() + (SETTLED_EVERY_S if settled else _patience(view))
        except VirtdError:
            pass  # the host went away; its guests are stale now
        except Exception:
            log.exception("readiness_defect", host=self._link.id, uid=str(uid))
        finally:
            self._busy.discard(uid)

    async def _agent(self, view: GuestView) -> bool | None:
        agent = self._link.facets.agent
        if agent is None:
            return None
        uid = view.guest.uid
        try:
            await self._link.call(agent.ping_agent(uid), timeout_s=CHECK_TIMEOUT_S)
        except VirtdError as error:
            status = ConditionStatus.UNKNOWN if error.kind == "Internal" else ConditionStatus.FALSE
            self._observe(uid, ConditionType.AGENT_READY, status, error.reason.name)
            return None if error.reason is AGENT_NOT_CONFIGURED else False
        self._observe(uid, ConditionType.AGENT_READY, ConditionStatus.TRUE, "ANSWERED")
        # The agent is started by the guest's system: whoever hears it knows that the system is up.
        self._observe(uid, ConditionType.BOOTED, ConditionStatus.TRUE, "AGENT_ANSWERED")
        return True

    async def _cloud_init(self, view: GuestView) -> bool | None:
        agent = self._link.facets.agent
        if agent is None or view.guest.spec.cloud_init is None:
            return None
        if _holds(view, ConditionType.CLOUD_INIT_DONE):
            return True
        status, reason = await cloud_init_done(self._link, agent, view.guest.uid)
        self._observe(view.guest.uid, ConditionType.CLOUD_INIT_DONE, status, reason)
        return None if status is ConditionStatus.UNKNOWN else status is ConditionStatus.TRUE

    async def _frozen(self, view: GuestView) -> bool:
        """Whether the agent holds file systems frozen, for virtd or for somebody else."""
        agent, uid = self._link.facets.agent, view.guest.uid
        if agent is None or not any(entry.id == AGENT_FREEZE and _there(entry) for entry in self._link.capabilities):
            return False
        try:
            frozen = await self._link.call(agent.frozen(uid), timeout_s=CHECK_TIMEOUT_S)
        except VirtdError:
            return False  # an agent that does not know of it, or has just gone away
        known = [entry for entry in view.guest.status.conditions if entry.type is ConditionType.FILESYSTEMS_FROZEN]
        held = bool(known) and known[0].status is ConditionStatus.TRUE
        if frozen and not held:
            self._observe(uid, ConditionType.FILESYSTEMS_FROZEN, ConditionStatus.TRUE, "FROZEN_BY_OTHERS")
        elif held and not frozen:
            self._observe(uid, ConditionType.FILESYSTEMS_FROZEN, ConditionStatus.FALSE, "THAWED")
        return frozen

    async def _addresses(self, view: GuestView) -> bool | None:
        facet = self._link.facets.addresses
        if facet is None:
            return None
        uid = view.guest.uid
        found = await self._link.call(facet.guest_addresses(uid), timeout_s=CHECK_TIMEOUT_S)
        if self._running(uid):
            self._inventory.observe_addresses(uid, found)
        if found:
            self._observe(uid, ConditionType.NETWORK_READY, ConditionStatus.TRUE, found[0].source)
            return True
        if not view.guest.status.interfaces:
            return None
        self._observe(uid, ConditionType.NETWORK_READY, ConditionStatus.FALSE, "NO_ADDRESS_SEEN")
        return False

    def _observe(self, uid: UUID, type_: ConditionType, status: ConditionStatus, reason: str) -> None:
        if self._running(uid):
            self._inventory.observe_condition(uid, type_, status, reason)

    def _running(self, uid: UUID) -> bool:
        view = self._inventory.by_uid(uid)
        return view is not None and view.guest.status.state is GuestState.RUNNING


def _there(capability: Capability) -> bool:
    return capability.level not in (CapabilityLevel.UNSUPPORTED, CapabilityLevel.UNKNOWN)


def _checkable(view: GuestView) -> bool:
    status = view.guest.status
    return status.state is GuestState.RUNNING and status.origin is Origin.MANAGED


def _holds(view: GuestView, type_: ConditionType) -> bool:
    return any(entry.type is type_ and entry.status is ConditionStatus.TRUE for entry in view.guest.status.conditions)


def _patience(view: GuestView) -> float:
    since = view.guest.status.state_change_time
    young = since is None or (datetime.now(UTC) - since).total_seconds() < YOUNG_S
    return 0.0 if young else OVERDUE_EVERY_S
