"""Serial consoles shared by many clients, with a log; and screenshots.

One task per guest holds the hypervisor's stream, so that clients share it and nothing printed is
lost while nobody looks.  Managed guests only: opening a console can take it away from somebody.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from pathlib import Path
from typing import Final
from uuid import UUID

import structlog

from virtd.backend import capabilities as cap
from virtd.backend.api import ConsoleStream
from virtd.errors import (
    GUEST_NOT_FOUND,
    HOST_UNREACHABLE,
    NotFoundError,
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
from virtd.service.call import Call
from virtd.service.console_hub import READ_DEFAULT, ConsoleClient, ConsoleHub
from virtd.service.console_hub import attach as attach_to
from virtd.service.console_log import ConsoleLog
from virtd.service.core import Core
from virtd.service.graphics import Graphics

log = structlog.get_logger(__name__)

READ_MAX: Final = 1024 * 1024
REOPEN_S: Final = 0.5
LASTING_FAILURES: Final = 10
"""After so many attempts in a row a console that does not open is a trouble to tell of."""
_ACTIVE: Final = (GuestState.RUNNING, GuestState.PAUSED)
_DOWN: Final = frozenset({GuestState.STOPPED.value, GuestState.CRASHED.value, GuestState.SUSPENDED.value})


@dataclass(frozen=True, slots=True)
class LogPart:
    """Some of what a guest printed.  ``start_offset``: the oldest byte that is held."""

    offset: int
    data: bytes
    next_offset: int
    truncated: bool
    start_offset: int


class Consoles:
    """Use cases of consoles, and the task that keeps them open."""

    def __init__(self, core: Core) -> None:
        self._core = core
        self._hubs: dict[UUID, ConsoleHub] = {}
        self._pumps: dict[UUID, asyncio.Task[None]] = {}
        self._watcher: asyncio.Task[None] | None = None
        self._saver: asyncio.Task[None] | None = None
        self._dirty = asyncio.Event()
        self._removals: set[asyncio.Task[None]] = set()
        self._refused: dict[UUID, VirtdError] = {}
        self.graphics = Graphics(core)

    @property
    def _directory(self) -> Path:
        return self._core.options.state_directory / "consoles"

    def start(self) -> None:
        """Begin to hold the consoles of running managed guests open."""
        self._watcher = asyncio.create_task(self._watch(), name="consoles")
        self._saver = asyncio.create_task(self._save(), name="console-logs")

    async def stop(self) -> None:
        """Let go of all consoles."""
        tasks = [task for task in (self._watcher, self._saver, *self._pumps.values()) if task is not None]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, *self._removals, return_exceptions=True)
        await asyncio.gather(*(hub.close() for hub in self._hubs.values()), return_exceptions=True)

    async def attach(
        self, call: Call, name: GuestName, *, read_only: bool, offset: int | None, take: bool = False
    ) -> ConsoleClient:
        """Attach; the stream goes on over a restart of the guest.

        :raises InvalidArgumentError: FIELD_INVALID.
        :raises UnsupportedError: CAPABILITY_UNSUPPORTED.
        :raises FailedPreconditionError: GUEST_NOT_ADOPTED.
        """
        if read_only and take:
            raise invalid_field("start.take", "cannot be together with read_only")
        await self._core.settled(name.host)
        view = self._core.check_verb(name, "console")
        self._check_has_console(view)
        hub = self._hub(view.guest.uid)
        self._look_after(view)
        client = await attach_to(hub, caller=call.caller, read_only=read_only, offset=offset)
        if take:
            client.take()
        return client

    async def read_log(self, name: GuestName, offset: int | None, max_bytes: int) -> LogPart:
        """Some of what was printed, without a gap: from an offset on, or the last.

        :raises InvalidArgumentError: FIELD_INVALID.
        """
        limit = max_bytes or READ_DEFAULT
        if limit > READ_MAX:
            raise invalid_field("max_bytes", f"must be at most {READ_MAX}")
        view = self._core.view(name)
        hub = self._hub(view.guest.uid)
        if offset is None:
            begin, data = await hub.tail(limit)
            return LogPart(begin, data, begin + len(data), truncated=False, start_offset=hub.oldest)
        begin, data = await hub.read(offset, limit)
        return LogPart(begin, data, begin + len(data), truncated=begin != offset, start_offset=hub.oldest)

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
        hub = self._hubs.get(uid)
        if hub is None:
            limit = self._core.options.console_log_bytes
            hub = ConsoleHub(ConsoleLog(self._directory / str(uid), limit) if limit else None)
            self._hubs[uid] = hub
        return hub

    async def _save(self) -> None:
        """Bring what guests print to the disk, soon after."""
        self._remove_strangers()
        while True:
            await self._dirty.wait()
            self._dirty.clear()
            for hub in [hub for hub in self._hubs.values() if hub.dirty]:
                try:
                    await hub.save()
                except Exception:
                    log.exception("console_log_defect")

    def _remove_strangers(self) -> None:
        """Remove the logs of guests that were deleted while virtd was away."""
        for directory in self._directory.glob("*-*"):
            try:
                known = self._core.inventory.by_uid(UUID(directory.name)) is not None
            except ValueError:
                continue
            if not known:
                ConsoleLog(directory, 1).remove()

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
        for event in news:
            if event.uid and (event.type is EventType.GUEST_REMOVED or event.attributes.get("state") in _DOWN):
                self.graphics.drop(UUID(event.uid))
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
            task = asyncio.create_task(self._pump(guest.uid), name=f"console-{guest.uid}")
            self._pumps[guest.uid] = task
            task.add_done_callback(lambda done: self._pump_ended(guest.uid, done))

    def _pump_ended(self, uid: UUID, pump: asyncio.Task[None]) -> None:
        if self._pumps.get(uid) is pump:
            del self._pumps[uid]
        if not pump.cancelled() and (error := pump.exception()) is not None:
            log.error("console_defect", uid=str(uid), exc_info=error)

    def _drop(self, uid: UUID) -> None:
        hub = self._hubs.pop(uid, None)
        if hub is not None:
            removal = asyncio.create_task(hub.remove(), name=f"console-log-{uid}")
            self._removals.add(removal)
            removal.add_done_callback(self._removals.discard)
        self._refused.pop(uid, None)
        pump = self._pumps.pop(uid, None)
        if pump is not None:
            pump.cancel()

    async def _pump(self, uid: UUID) -> None:
        """Hold the stream open while the guest runs; try again where it closes under a running guest.

        It may be on another host then: a guest that has moved has a console there.
        """
        hub, failures = self._hub(uid), 0
        while self._is_active(uid):
            try:
                stream = await self._open(uid)
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
                    self._dirty.set()
            except VirtdError as error:
                log.info("console_lost", uid=str(uid), error=error.message)
            finally:
                hub.stream = None
                hub.generation += 1
                hub.wake()
                await stream.close()
            await asyncio.sleep(REOPEN_S)

    async def _open(self, uid: UUID) -> ConsoleStream:
        view = self._core.inventory.by_uid(uid)
        if view is None:
            raise NotFoundError(GUEST_NOT_FOUND, "the guest is gone")
        link = self._core.link(view.key.host)
        facet = link.facets.serial_console
        if facet is None:
            raise unsupported(cap.CONSOLE_SERIAL, "the host offers no serial console")
        return await link.call(facet.open_console(uid))

    def _is_active(self, uid: UUID) -> bool:
        view = self._core.inventory.by_uid(uid)
        return view is not None and view.guest.status.state in _ACTIVE
