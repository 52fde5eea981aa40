"""Serial consoles shared by many clients, with a ring buffer; and screenshots.

One task per guest holds the hypervisor's stream, so that clients share it and nothing printed is
lost while nobody looks.  Managed guests only: opening a console can take it away from somebody.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import Final
from uuid import UUID

import structlog

from virtd.backend import capabilities as cap
from virtd.backend.api import ConsoleStream
from virtd.errors import (
    HOST_UNREACHABLE,
    INVALID_STATE,
    FailedPreconditionError,
    UnavailableError,
    UnsupportedError,
    VirtdError,
    invalid_field,
    unsupported,
)
from virtd.inventory import GuestView
from virtd.model.console import Screenshot
from virtd.model.event import Event, EventType
from virtd.model.guest import GuestState, Origin
from virtd.model.names import GuestName
from virtd.service.core import Core

log = structlog.get_logger(__name__)

RING_BYTES: Final = 256 * 1024
READ_DEFAULT: Final = 64 * 1024
WRITE_MAX: Final = 64 * 1024
REOPEN_S: Final = 0.5
LASTING_FAILURES: Final = 10
"""After so many attempts in a row a console that does not open is a trouble to tell of."""
_ACTIVE: Final = (GuestState.RUNNING, GuestState.PAUSED)


@dataclass(frozen=True, slots=True)
class ConsoleChunk:
    """Output.  ``offset`` is that of its first byte."""

    offset: int
    data: bytes


@dataclass(frozen=True, slots=True)
class ConsoleNotice:
    """``CLOSED`` or ``OPENED``."""

    kind: str


class ConsoleHub:
    """One guest's console: the ring, and those who read it."""

    def __init__(self) -> None:
        self._ring = bytearray()
        self.end = 0
        """Offset after the last byte."""
        self.stream: ConsoleStream | None = None
        self.trouble: VirtdError | None = None
        """Why the console of a running guest does not open, if it lasts."""
        self.generation = 0
        """Changes whenever the stream opens or closes."""
        self._news = asyncio.Event()

    @property
    def start(self) -> int:
        """Offset of the oldest byte that is held."""
        return self.end - len(self._ring)

    def append(self, data: bytes) -> None:
        """The guest printed something."""
        self._ring += data
        self.end += len(data)
        if len(self._ring) > RING_BYTES:
            del self._ring[: len(self._ring) - RING_BYTES]
        self.wake()

    def read(self, offset: int, limit: int = READ_DEFAULT) -> bytes:
        """Bytes from an offset on, as far as they are held."""
        begin = max(offset, self.start) - self.start
        return bytes(self._ring[begin : begin + limit])

    def wake(self) -> None:
        """Tell the readers to look."""
        self._news.set()
        self._news = asyncio.Event()

    @property
    def news(self) -> asyncio.Event:
        """Is set at the next change.  To be taken *before* looking, or a change in between is missed."""
        return self._news


class ConsoleClient:
    """One attached client: a place in the hub's output."""

    def __init__(self, hub: ConsoleHub, offset: int | None, read_only: bool) -> None:
        self._hub = hub
        wanted = hub.end if offset is None else min(offset, hub.end)
        self.offset = max(wanted, hub.start)
        self.truncated = offset is not None and self.offset > wanted
        self._read_only = read_only
        self._generation = hub.generation
        self._open = hub.stream is not None
        self._closed = asyncio.Event()

    async def read(self) -> ConsoleChunk | ConsoleNotice | None:
        """The next output or notice; None after :meth:`close`."""
        while not self._closed.is_set():
            change = self._hub.news
            self.offset = max(self.offset, self._hub.start)  # read too slowly: the offset says so
            data = self._hub.read(self.offset)
            if data:
                chunk = ConsoleChunk(self.offset, data)
                self.offset += len(data)
                return chunk
            if self._generation != self._hub.generation:
                self._generation = self._hub.generation
                is_open = self._hub.stream is not None
                if is_open != self._open:
                    self._open = is_open
                    return ConsoleNotice("OPENED" if is_open else "CLOSED")
            news, closed = asyncio.ensure_future(change.wait()), asyncio.ensure_future(self._closed.wait())
            try:
                await asyncio.wait({news, closed}, return_when=asyncio.FIRST_COMPLETED)
            finally:
                news.cancel()
                closed.cancel()
        return None

    async def write(self, data: bytes) -> None:
        """Send to the guest.

        :raises InvalidArgumentError: FIELD_INVALID, read-only or too much at a time.
        :raises FailedPreconditionError: INVALID_STATE, the console is closed: the guest is down.
        """
        if self._read_only:
            raise invalid_field("input", "this console was attached read-only")
        if len(data) > WRITE_MAX:
            raise invalid_field("input", f"must be at most {WRITE_MAX} bytes at a time")
        stream = self._hub.stream
        if stream is None:
            raise FailedPreconditionError(INVALID_STATE, "the console is closed: the guest does not run")
        await stream.write(data)

    async def close(self) -> None:
        """Detach.  Idempotent; a pending read returns None."""
        self._closed.set()


class Consoles:
    """Use cases of consoles, and the task that keeps them open."""

    def __init__(self, core: Core) -> None:
        self._core = core
        self._hubs: dict[UUID, ConsoleHub] = {}
        self._pumps: dict[UUID, asyncio.Task[None]] = {}
        self._watcher: asyncio.Task[None] | None = None
        self._refused: dict[UUID, VirtdError] = {}

    def start(self) -> None:
        """Begin to hold the consoles of running managed guests open."""
        self._watcher = asyncio.create_task(self._watch(), name="consoles")

    async def stop(self) -> None:
        """Let go of all consoles."""
        tasks = [task for task in (self._watcher, *self._pumps.values()) if task is not None]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def attach(self, name: GuestName, read_only: bool, offset: int | None) -> ConsoleClient:
        """Attach; the stream goes on over a restart of the guest.

        :raises UnsupportedError: CAPABILITY_UNSUPPORTED.
        :raises FailedPreconditionError: GUEST_NOT_ADOPTED.
        """
        await self._core.settled(name.host)
        view = self._core.check_verb(name, "console")
        self._check_has_console(view)
        hub = self._hub(view.guest.uid)
        self._look_after(view)
        return ConsoleClient(hub, offset, read_only)

    async def read_log(self, name: GuestName, offset: int | None, max_bytes: int) -> tuple[int, bytes, int]:
        """The tail of what was printed: (offset, bytes, next offset)."""
        view = self._core.view(name)
        hub = self._hub(view.guest.uid)
        limit = max_bytes or READ_DEFAULT
        begin = hub.start if offset is None else max(hub.start, min(offset, hub.end))
        if offset is None:
            begin = max(begin, hub.end - limit)
        data = hub.read(begin, limit)
        return begin, data, begin + len(data)

    async def screenshot(self, name: GuestName) -> Screenshot:
        """A picture of the display.  Reads only, so foreign guests have it too.

        :raises FailedPreconditionError: INVALID_STATE.
        :raises UnsupportedError: CAPABILITY_UNSUPPORTED.
        """
        view = self._core.check_verb(name, "screenshot", managed=False)
        link = self._core.link(name.host)
        facet = link.facets.screenshot
        if facet is None:
            raise unsupported(cap.SCREENSHOT, "the host cannot take screenshots", resource=str(name))
        return await link.call(facet.screenshot(view.guest.uid))

    def _check_has_console(self, view: GuestView) -> None:
        if view.guest.spec.serial_console is False:
            raise unsupported(
                cap.CONSOLE_SERIAL, "the guest was created without a serial console", resource=view.guest.name
            )
        refused = self._refused.get(view.guest.uid)
        if isinstance(refused, UnsupportedError):
            raise refused
        trouble = self._hub(view.guest.uid).trouble
        if trouble is not None:
            raise trouble

    def _hub(self, uid: UUID) -> ConsoleHub:
        return self._hubs.setdefault(uid, ConsoleHub())

    async def _watch(self) -> None:
        kinds = (
            EventType.GUEST_ADDED,
            EventType.GUEST_CHANGED,
            EventType.GUEST_STATE_CHANGED,
            EventType.GUEST_REMOVED,
            EventType.HOST_CHANGED,
        )
        events = self._core.events.subscribe(None, lambda event: event.type in kinds, buffer=1_000_000)
        news: list[Event] = []
        while True:
            try:
                self._look_at(news)
            except Exception:
                log.exception("consoles_defect")
            batch = await events.next_batch(30.0)
            if batch is None:
                return
            news = batch

    def _look_at(self, news: list[Event]) -> None:
        """Look after the guests that events speak of; after all of them where none do, or a host's."""
        if news and all(event.uid for event in news):
            views = [self._core.inventory.by_uid(UUID(event.uid)) for event in news]
        else:
            views = list(self._core.inventory.guests())
        for view in views:
            if view is not None:
                self._look_after(view)
        for uid in [uid for uid in self._hubs if self._core.inventory.by_uid(uid) is None]:
            self._drop(uid)

    def _look_after(self, view: GuestView) -> None:
        """Open the console of a guest that should have it open."""
        guest = view.guest
        if guest.status.state not in _ACTIVE:
            self._refused.pop(guest.uid, None)
            return
        wanted = (
            guest.status.origin is Origin.MANAGED
            and guest.spec.serial_console is not False
            and guest.status.stale_since is None
            and guest.uid not in self._refused
        )
        if wanted and guest.uid not in self._pumps:
            task = asyncio.create_task(self._pump(guest.uid, view.key.host), name=f"console-{guest.uid}")
            self._pumps[guest.uid] = task
            task.add_done_callback(lambda done: self._pump_ended(guest.uid, done))

    def _pump_ended(self, uid: UUID, pump: asyncio.Task[None]) -> None:
        if self._pumps.get(uid) is pump:
            del self._pumps[uid]
        if not pump.cancelled() and (error := pump.exception()) is not None:
            log.error("console_defect", uid=str(uid), exc_info=error)

    def _drop(self, uid: UUID) -> None:
        self._hubs.pop(uid, None)
        self._refused.pop(uid, None)
        pump = self._pumps.pop(uid, None)
        if pump is not None:
            pump.cancel()

    async def _pump(self, uid: UUID, host: str) -> None:
        """Hold the stream open while the guest runs; try again where it closes under a running guest."""
        hub = self._hub(uid)
        failures = 0
        while self._is_active(uid):
            try:
                stream = await self._open(host, uid)
            except UnavailableError as error:
                if error.reason is not HOST_UNREACHABLE:
                    log.info("console_unavailable", uid=str(uid), error=error.message)
                await asyncio.sleep(REOPEN_S)
                continue
            except UnsupportedError as error:
                self._refused[uid] = error
                log.info("console_refused", uid=str(uid), error=error.message)
                return
            except VirtdError as error:
                # It has just gone down, or comes up (a revert takes the terminal away for a moment).
                # What does not pass is said, once.
                failures += 1
                if failures == LASTING_FAILURES:
                    log.warning("console_not_open", uid=str(uid), error=error.message)
                hub.trouble = error if failures >= LASTING_FAILURES else None
                await asyncio.sleep(REOPEN_S)
                continue
            failures, hub.trouble = 0, None
            hub.stream = stream
            hub.generation += 1
            hub.wake()
            try:
                while data := await stream.read():
                    hub.append(data)
            except VirtdError as error:
                log.info("console_lost", uid=str(uid), error=error.message)
            finally:
                hub.stream = None
                hub.generation += 1
                hub.wake()
                await stream.close()
            await asyncio.sleep(REOPEN_S)

    async def _open(self, host: str, uid: UUID) -> ConsoleStream:
        link = self._core.link(host)
        facet = link.facets.serial_console
        if facet is None:
            raise unsupported(cap.CONSOLE_SERIAL, "the host offers no serial console")
        return await link.call(facet.open_console(uid))

    def _is_active(self, uid: UUID) -> bool:
        view = self._core.inventory.by_uid(uid)
        return view is not None and view.guest.status.state in _ACTIVE
