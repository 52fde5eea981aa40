"""libvirt's callbacks as a stream of :class:`NativeEvent`.

Callbacks come on libvirt's event thread, where no native call may be made: they copy what they were
given and hand it to the event loop, which keeps the order.  What an event alone does not tell is
asked for later, by the consumer.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any, Final
from uuid import UUID

import libvirt

from virtd.backend.api import NativeEvent, NativeEventType
from virtd.errors import NotFoundError, VirtdError
from virtd.libvirt.guests import Guests
from virtd.libvirt.states import state_after
from virtd.model.guest import GuestState

_log: Final = logging.getLogger(__name__)

_AGENT_STATES: Final = {
    libvirt.VIR_CONNECT_DOMAIN_EVENT_AGENT_LIFECYCLE_STATE_CONNECTED: NativeEventType.AGENT_CONNECTED,
    libvirt.VIR_CONNECT_DOMAIN_EVENT_AGENT_LIFECYCLE_STATE_DISCONNECTED: NativeEventType.AGENT_DISCONNECTED,
}

# Events that only say "look again", and the word that each is reported with.
_CHANGES: Final = {
    libvirt.VIR_DOMAIN_EVENT_ID_DEVICE_ADDED: "DEVICE_ADDED",
    libvirt.VIR_DOMAIN_EVENT_ID_DEVICE_REMOVED: "DEVICE_REMOVED",
    libvirt.VIR_DOMAIN_EVENT_ID_METADATA_CHANGE: "METADATA",
    libvirt.VIR_DOMAIN_EVENT_ID_BALLOON_CHANGE: "BALLOON",
    libvirt.VIR_DOMAIN_EVENT_ID_TRAY_CHANGE: "TRAY",
    libvirt.VIR_DOMAIN_EVENT_ID_IO_ERROR: "IO_ERROR",
    libvirt.VIR_DOMAIN_EVENT_ID_BLOCK_JOB_2: "BLOCK_JOB",
}

# What libvirt says that it did when a watchdog was not fed.
_WATCHDOG_ACTIONS: Final = {
    libvirt.VIR_DOMAIN_EVENT_WATCHDOG_NONE: "NONE",
    libvirt.VIR_DOMAIN_EVENT_WATCHDOG_PAUSE: "PAUSE",
    libvirt.VIR_DOMAIN_EVENT_WATCHDOG_RESET: "RESET",
    libvirt.VIR_DOMAIN_EVENT_WATCHDOG_POWEROFF: "POWEROFF",
    libvirt.VIR_DOMAIN_EVENT_WATCHDOG_SHUTDOWN: "SHUTDOWN",
}

# Where the state after the event has to be asked for: see states.state_after.
_ASK: Final = frozenset({"SAVED", "FAILED"})
_DOWN: Final = (GuestState.STOPPED, GuestState.SUSPENDED, GuestState.CRASHED)
# All later events wait for the answer.
_ASK_S: Final = 2.0
# ... which decides, where reboots stop, whether a guest is down at all.
_ASK_ABOUT_REBOOT_S: Final = 10.0


class EventSource:
    """All events of one host.  One consumer.

    :param hidden: names of guests that are nobody's business (a backend's own probes).
    :param reboots_stop: the driver tells a reboot by a start and the end of what ran before, in this order: a guest
        that runs after its end has rebooted.
    """

    def __init__(
        self, guests: Guests, *, hidden: Callable[[str], bool] = lambda _name: False, reboots_stop: bool = False
    ) -> None:
        self._guests: Final = guests
        self._hidden: Final = hidden
        self._asked_about: Final = _ASK | {"SHUTDOWN"} if reboots_stop else _ASK
        self._queue: Final[asyncio.Queue[NativeEvent | None]] = asyncio.Queue()
        self._loop: Final = asyncio.get_running_loop()
        self._closed = False

    def register(self, connection: Any) -> list[int]:
        """Register every callback on a (new) event connection; their ids.  Blocking; any thread."""
        ids = [connection.domainEventRegisterAny(None, libvirt.VIR_DOMAIN_EVENT_ID_LIFECYCLE, self._lifecycle, None)]
        optional: list[tuple[int, Callable[..., None], object]] = [
            (libvirt.VIR_DOMAIN_EVENT_ID_AGENT_LIFECYCLE, self._agent, None),
            (libvirt.VIR_DOMAIN_EVENT_ID_REBOOT, self._reboot, None),
            (libvirt.VIR_DOMAIN_EVENT_ID_WATCHDOG, self._watchdog, None),
        ]
        optional += [(event, self._change, word) for event, word in _CHANGES.items()]
        for event, callback, opaque in optional:
            try:
                ids.append(connection.domainEventRegisterAny(None, event, callback, opaque))
            except libvirt.libvirtError as error:
                if error.get_error_code() not in (libvirt.VIR_ERR_NO_SUPPORT, libvirt.VIR_ERR_INVALID_ARG):
                    raise
                _log.debug("the driver has no event %d", event)
        return ids

    def connection_changed(self, *, connected: bool, why: str) -> None:
        """Report a lost or regained host.  On the loop."""
        kind = NativeEventType.CONNECTED if connected else NativeEventType.DISCONNECTED
        self._put(NativeEvent(kind, datetime.now(UTC), detail=why))

    def close(self) -> None:
        """End the stream."""
        self._closed = True
        self._queue.put_nowait(None)

    async def events(self) -> AsyncIterator[NativeEvent]:
        """Yield events until the session closes."""
        while not self._closed:
            event = await self._queue.get()
            if event is None:
                return
            yield await self._complete(event)

    async def _complete(self, event: NativeEvent) -> NativeEvent:
        """Ask for the state where the event alone does not tell it."""
        if event.type is not NativeEventType.GUEST_STATE or event.reason not in self._asked_about or event.uuid is None:
            return event
        try:
            limit_s = _ASK_ABOUT_REBOOT_S if event.reason == "SHUTDOWN" else _ASK_S
            found = await self._guests.state(event.uuid, timeout_s=limit_s)
        except NotFoundError:
            # A transient guest is gone with its process; then FAILED can only have been a crash.
            return event if event.reason == "FAILED" else replace(event, state=GuestState.STOPPED)
        except VirtdError:
            return event
        if found.state in _DOWN:
            return replace(event, state=found.state, reason=found.reason or event.reason)
        if event.reason == "SHUTDOWN" and event.state in _DOWN:
            return replace(event, type=NativeEventType.GUEST_REBOOTED, state=None, reason="REBOOT")
        return event  # it already runs again: the events that follow say so

    # ------------------------------------------------------------ on libvirt's event thread

    def _lifecycle(self, _connection: Any, domain: Any, event: int, detail: int, _opaque: object) -> None:
        now = datetime.now(UTC)
        if event == libvirt.VIR_DOMAIN_EVENT_DEFINED:
            self._hand_over(_event(NativeEventType.GUEST_DEFINED, domain, now))
            return
        if event == libvirt.VIR_DOMAIN_EVENT_UNDEFINED:
            self._hand_over(_event(NativeEventType.GUEST_UNDEFINED, domain, now))
            return
        after = state_after(event, detail)
        if after is None:
            self._hand_over(_event(NativeEventType.GUEST_CHANGED, domain, now, detail=f"lifecycle {event}/{detail}"))
            return
        state, reason = after
        self._hand_over(_event(NativeEventType.GUEST_STATE, domain, now, state=state, reason=reason))

    def _agent(self, _connection: Any, domain: Any, state: int, _reason: int, _opaque: object) -> None:
        kind = _AGENT_STATES.get(state)
        if kind is not None:
            self._hand_over(_event(kind, domain, datetime.now(UTC)))

    def _reboot(self, _connection: Any, domain: Any, _opaque: object) -> None:
        # One reboot or reset can be told two or three times.
        self._hand_over(_event(NativeEventType.GUEST_REBOOTED, domain, datetime.now(UTC), reason="REBOOT"))

    def _watchdog(self, _connection: Any, domain: Any, action: int, _opaque: object) -> None:
        word = _WATCHDOG_ACTIONS.get(action, "NONE")
        self._hand_over(_event(NativeEventType.GUEST_WATCHDOG, domain, datetime.now(UTC), reason=word))

    def _change(self, _connection: Any, domain: Any, *rest: Any) -> None:
        self._hand_over(_event(NativeEventType.GUEST_CHANGED, domain, datetime.now(UTC), reason=str(rest[-1])))

    def _hand_over(self, event: NativeEvent) -> None:
        with contextlib.suppress(RuntimeError):  # the loop is closed: nobody listens any more
            self._loop.call_soon_threadsafe(self._put, event)

    def _put(self, event: NativeEvent) -> None:
        if not self._closed and not self._hidden(event.name):
            self._queue.put_nowait(event)


def _event(
    kind: NativeEventType,
    domain: Any,
    time: datetime,
    *,
    state: GuestState | None = None,
    reason: str = "",
    detail: str = "",
) -> NativeEvent:
    # Name and UUID come with the domain object; no call is made.
    return NativeEvent(kind, time, UUID(bytes=domain.UUID()), domain.name(), state, reason, detail)
