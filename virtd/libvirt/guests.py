"""Lists, states and the life cycle of guests."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Collection, Sequence
from typing import Any, Final, TypeVar
from uuid import UUID

import libvirt

from virtd.backend.api import CallContext, GuestSummary
from virtd.errors import (
    GUEST_EXISTS,
    GUEST_NOT_FOUND,
    INVALID_STATE,
    AlreadyExistsError,
    FailedPreconditionError,
    NotFoundError,
    VirtdError,
)
from virtd.libvirt.connections import HostConnections, LaneName
from virtd.libvirt.errors import translate
from virtd.libvirt.states import ACTIVE, State, state_of
from virtd.libvirt.xml.records import records_of, with_records
from virtd.model.guest import GuestState

_T = TypeVar("_T")

Description = tuple[State, str, bool]
"""State, XML as it is now, and whether the definition is persistent."""

_DISSOLVE_S: Final = 25.0  # less than a call may take
_DISSOLVE_POLL_S: Final = 0.1
_OLD_XML_FLAGS: Final = libvirt.VIR_DOMAIN_XML_INACTIVE | libvirt.VIR_DOMAIN_XML_SECURE
_UNDEFINE_FLAGS: Final = (
    libvirt.VIR_DOMAIN_UNDEFINE_MANAGED_SAVE
    | libvirt.VIR_DOMAIN_UNDEFINE_SNAPSHOTS_METADATA
    | libvirt.VIR_DOMAIN_UNDEFINE_NVRAM
    | libvirt.VIR_DOMAIN_UNDEFINE_CHECKPOINTS_METADATA
)


def native_state(domain: Any) -> State:
    """The guest's state now (one or two native calls)."""
    state, reason = domain.state()
    saved = state == libvirt.VIR_DOMAIN_SHUTOFF and bool(domain.hasManagedSaveImage())
    return state_of(state, reason, saved=saved)


def is_active(domain: Any) -> bool:
    """Whether a process of the guest exists."""
    return domain.state()[0] in ACTIVE


def require_active(domain: Any, action: str) -> None:
    """Raise INVALID_STATE unless the guest runs or is paused."""
    if not is_active(domain):
        raise FailedPreconditionError(
            INVALID_STATE, f"cannot {action}: the guest does not run", allowed_actions=("start",)
        )


class Guests:
    """The guests of one host.

    :param untouchable: domains that are no guests: for every caller they do not exist.
    """

    def __init__(self, connections: HostConnections, untouchable: Collection[UUID] = ()) -> None:
        self._connections: Final = connections
        self._untouchable: Final = frozenset(untouchable)
        self._in_bulk = True

    async def on_domain(
        self,
        uuid: UUID,
        name: str,
        function: Callable[[Any], _T],
        *,
        lane: LaneName = LaneName.READ,
        timeout_s: float | None = None,
        unlimited: bool = False,
    ) -> _T:
        """Run ``function(domain)`` on a worker.

        :raises NotFoundError: GUEST_NOT_FOUND.
        """
        self._refuse_untouchable(uuid)

        def run(connection: Any) -> _T:
            return function(connection.lookupByUUID(uuid.bytes))

        return await self._connections.call(name, run, lane=lane, timeout_s=timeout_s, unlimited=unlimited)

    def _refuse_untouchable(self, uuid: UUID) -> None:
        if uuid in self._untouchable:
            raise NotFoundError(GUEST_NOT_FOUND, f"the domain {uuid} is part of the host, and no guest")

    async def list(self) -> Sequence[GuestSummary]:
        """Every guest: one bulk call, and one more for those that are saved to disk.

        Drivers without such a call are asked for each guest, and for the bulk call only once.
        """

        def run(connection: Any) -> list[GuestSummary]:
            found = _states_in_bulk(connection) if self._in_bulk else None
            self._in_bulk = found is not None
            return _summaries(connection, _states_of_each(connection) if found is None else found)

        found = await self._connections.call("virConnectGetAllDomainStats", run)
        return [guest for guest in found if guest.uuid not in self._untouchable]

    async def describe(self, uuid: UUID) -> Description:
        """State, the XML as it is now, and whether the definition is persistent."""
        return await self.on_domain(
            uuid,
            "virDomainGetXMLDesc",
            _describe,
        )

    async def describe_both(self, uuid: UUID) -> tuple[Description, str]:
        """As :meth:`describe`, and what the guest is started with next, where it runs and that is kept (else "")."""

        def run(domain: Any) -> tuple[Description, str]:
            described = _describe(domain)
            kept = described[2] and is_active(domain)
            return described, domain.XMLDesc(libvirt.VIR_DOMAIN_XML_INACTIVE) if kept else ""

        return await self.on_domain(uuid, "virDomainGetXMLDesc", run)

    async def state(self, uuid: UUID, *, timeout_s: float | None = None) -> State:
        """The state now."""
        return await self.on_domain(uuid, "virDomainGetState", native_state, timeout_s=timeout_s)

    async def define(self, uuid: UUID, name: str, xml: str, *, autostart: bool | None = None) -> Description:
        """Define, or redefine the guest of this UUID, and describe it.  All or nothing.

        :raises AlreadyExistsError: GUEST_EXISTS, another guest has the name.
        """
        self._refuse_untouchable(uuid)

        def run(connection: Any) -> Description:
            holder = _find(lambda: connection.lookupByName(name))
            if holder is not None and holder.UUIDString() != str(uuid):
                raise AlreadyExistsError(
                    GUEST_EXISTS,
                    f"the host has a guest named {name}",
                    metadata={"name": name, "uuid": holder.UUIDString()},
                )
            before = _find(lambda: connection.lookupByUUID(uuid.bytes))
            old_xml = None if before is None else before.XMLDesc(_OLD_XML_FLAGS)
            records = "" if old_xml is None else records_of(old_xml)
            domain = connection.defineXML(with_records(xml, records) if records else xml)
            try:
                if autostart is not None and bool(domain.autostart()) != autostart:
                    domain.setAutostart(int(autostart))
                return _describe(domain)
            except libvirt.libvirtError:
                with contextlib.suppress(libvirt.libvirtError):
                    if old_xml is None:
                        _undefine(domain)
                    else:
                        connection.defineXML(old_xml)
                raise

        # The first define on a host can take many seconds: emulators are examined.
        return await self._connections.call("virDomainDefineXMLFlags", run, lane=LaneName.CHANGE, unlimited=True)

    async def undefine(self, uuid: UUID, _context: CallContext) -> None:
        """Forget it, with managed save, snapshot metadata and firmware variables.  Idempotent."""

        def run(domain: Any) -> None:
            if is_active(domain):
                raise FailedPreconditionError(
                    INVALID_STATE,
                    "cannot delete a guest that runs",
                    allowed_actions=("stop", "shutdown"),
                )
            _wait_inactive(domain)
            _undefine(domain)

        await self._unless_gone(uuid, "virDomainUndefineFlags", run)

    async def start(self, uuid: UUID, context: CallContext) -> None:
        """Start it, or restore it from its saved state.  Idempotent.

        A start can take long (memory is read back), so only keep-alive limits it.  Once begun it is not
        cancelled: a guest that was just restored has no saved state any more that it could go back to.
        """
        context.checkpoint()

        def run(domain: Any) -> None:
            try:
                domain.create()
            except libvirt.libvirtError:
                # Asked afterwards: a check before would race with others and cost a call.
                if is_active(domain):
                    return
                raise

        await self.on_domain(uuid, "virDomainCreate", run, lane=LaneName.CHANGE, unlimited=True)

    async def stop(self, uuid: UUID, _context: CallContext) -> None:
        """Cut the power.  Idempotent, whatever the state; a guest that is gone counts as stopped."""

        def run(domain: Any) -> None:
            try:
                domain.destroy()
            except libvirt.libvirtError:
                if is_active(domain):
                    raise

        await self._unless_gone(uuid, "virDomainDestroy", run)

    async def request_shutdown(self, uuid: UUID, _context: CallContext) -> None:
        """Press the power button once."""

        def run(domain: Any) -> None:
            require_active(domain, "shut down")
            domain.shutdown()

        await self.on_domain(uuid, "virDomainShutdownFlags", run, lane=LaneName.CHANGE)

    async def request_reboot(self, uuid: UUID, _context: CallContext) -> None:
        """Ask the guest's system to reboot, once."""

        def run(domain: Any) -> None:
            require_active(domain, "reboot")
            domain.reboot(0)

        await self.on_domain(uuid, "virDomainReboot", run, lane=LaneName.CHANGE)

    async def reset_guest(self, uuid: UUID, _context: CallContext) -> None:
        """Press the reset button."""

        def run(domain: Any) -> None:
            require_active(domain, "reset")
            domain.reset()

        await self.on_domain(uuid, "virDomainReset", run, lane=LaneName.CHANGE)

    async def pause_guest(self, uuid: UUID, _context: CallContext) -> None:
        """Pause.  Idempotent."""

        def run(domain: Any) -> None:
            require_active(domain, "pause")
            if native_state(domain).state is not GuestState.PAUSED:
                domain.suspend()

        await self.on_domain(uuid, "virDomainSuspend", run, lane=LaneName.CHANGE)

    async def resume_guest(self, uuid: UUID, _context: CallContext) -> None:
        """Continue.  Idempotent."""

        def run(domain: Any) -> None:
            require_active(domain, "resume")
            state, _ = domain.state()
            if state == libvirt.VIR_DOMAIN_PMSUSPENDED:
                domain.pMWakeup()
            elif state == libvirt.VIR_DOMAIN_PAUSED:
                domain.resume()

        await self.on_domain(uuid, "virDomainResume", run, lane=LaneName.CHANGE)

    async def _unless_gone(self, uuid: UUID, name: str, function: Callable[[Any], None]) -> None:
        try:
            await self.on_domain(uuid, name, function, lane=LaneName.CHANGE)
        except NotFoundError:
            return


def _wait_inactive(domain: Any) -> None:
    """Wait for what is left of a guest that is down already: libxl takes its devices apart after it has said so.

    Undefined before that, it would be listed for a while, and its disks in use.

    :raises FailedPreconditionError: INVALID_STATE, it takes too long.
    """
    deadline = time.monotonic() + _DISSOLVE_S
    while domain.isActive():
        if time.monotonic() >= deadline:
            raise FailedPreconditionError(
                INVALID_STATE,
                "cannot delete the guest: it is down, but the host has not yet taken its devices apart",
                allowed_actions=("stop",),
            )
        time.sleep(_DISSOLVE_POLL_S)


def _describe(domain: Any) -> Description:
    return native_state(domain), domain.XMLDesc(0), bool(domain.isPersistent())


def _find(lookup: Callable[[], Any]) -> Any:
    try:
        return lookup()
    except libvirt.libvirtError as error:
        if error.get_error_code() == libvirt.VIR_ERR_NO_DOMAIN:
            return None
        raise


def _undefine(domain: Any) -> None:
    """Undefine with every flag that this driver knows."""
    flags = _UNDEFINE_FLAGS
    refused: VirtdError | None = None
    # Drivers refuse flags that they do not know: drop the newest first.
    for drop in (
        0,
        libvirt.VIR_DOMAIN_UNDEFINE_CHECKPOINTS_METADATA,
        libvirt.VIR_DOMAIN_UNDEFINE_NVRAM,
        libvirt.VIR_DOMAIN_UNDEFINE_SNAPSHOTS_METADATA,
    ):
        flags &= ~drop
        try:
            domain.undefineFlags(flags)
        except libvirt.libvirtError as error:
            if error.get_error_code() not in (libvirt.VIR_ERR_INVALID_ARG, libvirt.VIR_ERR_ARGUMENT_UNSUPPORTED):
                raise
            refused = translate(error, "virDomainUndefineFlags")
        else:
            return
    if refused is not None:
        raise refused


_States = list[tuple[Any, int, int]]


def _states_in_bulk(connection: Any) -> _States | None:
    """None where the driver has no such call."""
    try:
        rows = connection.getAllDomainStats(
            libvirt.VIR_DOMAIN_STATS_STATE, libvirt.VIR_CONNECT_GET_ALL_DOMAINS_STATS_NOWAIT
        )
    except libvirt.libvirtError as error:
        if error.get_error_code() not in (libvirt.VIR_ERR_NO_SUPPORT, libvirt.VIR_ERR_INVALID_ARG):
            raise
        return None
    return [(domain, row["state.state"], row.get("state.reason", 0)) for domain, row in rows]


def _states_of_each(connection: Any) -> _States:
    found = []
    for domain in connection.listAllDomains(0):
        state, reason = _state_or_gone(domain)
        if state is not None:
            found.append((domain, state, reason))
    return found


def _summaries(connection: Any, found: _States) -> list[GuestSummary]:
    saved = _saved(connection) if any(state == libvirt.VIR_DOMAIN_SHUTOFF for _, state, _ in found) else frozenset()
    summaries = []
    for domain, state, reason in found:
        uuid = domain.UUIDString()
        ours = state_of(state, reason, saved=uuid in saved)
        summaries.append(GuestSummary(UUID(uuid), domain.name(), ours.state, ours.native, ours.reason))
    return summaries


def _saved(connection: Any) -> frozenset[str]:
    """UUIDs of the guests with a managed save image."""
    try:
        domains = connection.listAllDomains(libvirt.VIR_CONNECT_LIST_DOMAINS_MANAGEDSAVE)
    except libvirt.libvirtError as error:
        if error.get_error_code() in (libvirt.VIR_ERR_NO_SUPPORT, libvirt.VIR_ERR_INVALID_ARG):
            return frozenset()
        raise
    return frozenset(domain.UUIDString() for domain in domains)


def _state_or_gone(domain: Any) -> tuple[int | None, int]:
    try:
        state, reason = domain.state()
    except libvirt.libvirtError as error:
        if error.get_error_code() == libvirt.VIR_ERR_NO_DOMAIN:
            return None, 0
        raise
    return state, reason
