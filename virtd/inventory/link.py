"""One host's link: it opens the session, feeds the inventory from it, and keeps trying.

A host that hangs costs its own tasks and threads, never another host's: every link is a task of its
own, and every call on a session has a time limit.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any, Final, TypeVar
from uuid import UUID

import structlog

from virtd.backend import verified
from virtd.backend.api import (
    Backend,
    EventSourceFacet,
    Facets,
    HostConfig,
    HostSession,
    NativeEvent,
    NativeEventType,
)
from virtd.backend.capabilities import EVENTS, complete, emulated, of_kind
from virtd.errors import (
    BACKEND_ERROR,
    HOST_UNREACHABLE,
    InternalError,
    NotFoundError,
    UnavailableError,
    VirtdError,
)
from virtd.inventory.inventory import Inventory
from virtd.inventory.readiness import Readiness
from virtd.inventory.records import without_password
from virtd.inventory.tasks import Tasks
from virtd.model.guest import ConditionStatus, ConditionType, GuestState
from virtd.model.host import Capability, CapabilityLevel, Host, HostFacts, HostState
from virtd.obs import tracing

log = structlog.get_logger(__name__)
T = TypeVar("T")

RETRY_FIRST_S: Final = 0.5
RETRY_MAX_S: Final = 15.0
Prepare = Callable[[HostConfig], Awaitable[HostConfig]]
"""What must happen before a host can be opened; gives the configuration to open it with."""
DETAIL_PARALLEL: Final = 4
"""How many guests are read in full at the same time."""
RESUBSCRIBE_S: Final = 1.0
PROBE_AGAIN_S: Final = 15.0
"""How long after a probe that failed the next one is tried."""


@dataclass(frozen=True, slots=True)
class LinkOptions:
    """How a link works; times in seconds."""

    resync_s: float = 60.0
    poll_s: float = 2.0
    metrics_s: float = 10.0
    readiness_s: float = 2.0
    open_timeout_s: float = 20.0


class HostLink:
    """One host: its session when it answers, and the tasks that keep the inventory true."""

    def __init__(
        self,
        backend: Backend,
        config: HostConfig,
        inventory: Inventory,
        options: LinkOptions,
        *,
        origin: str,
        prepare: Prepare | None = None,
    ) -> None:
        self.backend = backend
        self._prepare = prepare
        self.config = config
        self._inventory = inventory
        self._options = options
        self._origin = origin
        self._session: HostSession | None = None
        self._task: asyncio.Task[None] | None = None
        self._tasks = Tasks(config.id)
        self._facts = asyncio.Event()
        self._connecting = asyncio.Lock()
        self._settled = asyncio.Event()
        self._marks: dict[UUID, int] = {}
        self._detail_slots = asyncio.Semaphore(DETAIL_PARALLEL)
        self._readiness = Readiness(self, inventory)
        self.on_resync: Callable[[float, int], None] = lambda _seconds, _differences: None
        """Called after each comparison with the host: how long it took, how many guests differed."""
        self.on_sampled: Callable[[float], None] = lambda _seconds: None
        self.on_reconnected: Callable[[], None] = lambda: None

    @property
    def id(self) -> str:
        """The host's id."""
        return self.config.id

    @property
    def host(self) -> Host:
        """The host's record."""
        return self._inventory.host(self.id)

    def start(self, *, labels: dict[str, str] | None = None) -> None:
        """Begin to connect; returns at once."""
        self._inventory.put_host(
            Host(
                name=f"hosts/{self.id}",
                backend=self.backend.descriptor.id,
                uri=without_password(self.config.uri),
                origin=self._origin,
                labels=dict(labels or {}),
            )
        )
        self._task = asyncio.create_task(self._run(), name=f"host-{self.id}")

    async def stop(self) -> None:
        """Let go of the host; guests run on.  Idempotent."""
        self._readiness.stop()
        await self._tasks.stop(self._task)
        session, self._session = self._session, None
        if session is not None:
            with contextlib.suppress(Exception):
                await asyncio.wait_for(session.close(), 5.0)

    # ------------------------------------------------------------------------------------- access

    @property
    def session(self) -> HostSession:
        """The session.

        :raises UnavailableError: HOST_UNREACHABLE, the host does not answer now.
        """
        if self._session is None or self.host.state is not HostState.CONNECTED:
            raise self._unreachable()
        return self._session

    @property
    def facets(self) -> Facets:
        """The session's facets.

        :raises UnavailableError: HOST_UNREACHABLE.
        """
        return self.session.facets

    @property
    def capabilities(self) -> tuple[Capability, ...]:
        """What the host can do: probed if it was, else as the backend declares."""
        probed = self.host.facts.capabilities
        return probed or complete(self.backend.descriptor.capabilities)

    def capabilities_of(self, machine: str) -> tuple[Capability, ...]:
        """What can be done with guests of this machine: what the host can do, where that is no kind of its own."""
        return of_kind(self.host.facts, machine) or self.capabilities

    async def facts(self, timeout_s: float = 45.0) -> HostFacts:
        """What the probe found; waits for a probe that is under way.

        :raises UnavailableError: HOST_UNREACHABLE.
        """
        await self.settled(timeout_s)
        _ = self.session
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._facts.wait(), timeout_s)
        if not self._facts.is_set():
            error = self.host.last_error
            raise self._unreachable(error.message if error is not None else "the probe of the host has not ended")
        return self.host.facts

    async def settled(self, timeout_s: float) -> bool:
        """Wait until the first attempt to connect has succeeded or failed; whether it did in time."""
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._settled.wait(), timeout_s)
        return self._settled.is_set()

    async def call(self, work: Coroutine[Any, Any, T], *, timeout_s: float | None = None) -> T:
        """Await a session's call with a time limit, and turn strangers' exceptions into contract errors.

        A call that does not end when it is told to is left to itself: it costs its own resources only.

        :raises VirtdError: what the call raised; HOST_UNREACHABLE when the time is over;
            BACKEND_ERROR for anything that is not a contract error.
        """
        name = getattr(work, "__qualname__", "call").rpartition(".")[2]
        limit = self.config.call_timeout_s + 5.0 if timeout_s is None else timeout_s
        with tracing.span(f"backend {name}", host=self.id):
            task: asyncio.Task[T] | None = await self._tasks.ended(work, f"{self.id} {name}", limit)
            if task is None:
                raise self._unreachable("the call was not answered in time")
            try:
                return task.result()
            except VirtdError as error:
                if error.reason is HOST_UNREACHABLE:
                    error.with_resource(f"hosts/{self.id}")  # of an operation's hosts, which one
                raise
            except Exception as error:
                log.exception("backend_defect", host=self.id, call=name)
                raise InternalError(
                    BACKEND_ERROR,
                    f"the backend {self.backend.descriptor.id} hit a defect ({type(error).__name__})",
                    resource=f"hosts/{self.id}",
                ) from error

    async def probe(self) -> Host:
        """Probe the host now.

        :raises UnavailableError: HOST_UNREACHABLE.
        """
        facts = await self.call(self.session.probe(), timeout_s=90.0)
        self._put_facts(facts)
        return self.host

    async def refresh(self, uid: UUID) -> None:
        """Read a guest in full and put it into the inventory, or note that it is gone.

        :raises UnavailableError: HOST_UNREACHABLE.
        """
        while True:
            mark = self._marks.get(uid, 0)
            try:
                native = await self.call(self.session.get_guest(uid))
            except NotFoundError:
                if self._marks.get(uid, 0) == mark:
                    self._inventory.observe_absent(self.id, uid)
                    self._marks.pop(uid, None)
                    return
                continue
            if self._marks.get(uid, 0) == mark:  # no event overtook the answer
                self._inventory.observe(self.id, native)
                return

    async def resync(self) -> None:
        """Compare the inventory with the host's own list.

        :raises UnavailableError: HOST_UNREACHABLE.
        """
        started = time.monotonic()
        marks = dict(self._marks)
        summaries = await self.call(self.session.list_guests())
        # What an event has changed since the list was asked for is known better already.
        moved = {uid for uid in {*marks, *self._marks} if self._marks.get(uid, 0) != marks.get(uid, 0)}
        wanted = self._inventory.observe_list(self.id, summaries, moved)
        await asyncio.gather(*(self._refresh_quietly(uid) for uid in wanted))
        self.on_resync(time.monotonic() - started, len(wanted))

    # ------------------------------------------------------------------------------------ the task

    async def _run(self) -> None:
        delay = RETRY_FIRST_S
        while self._session is None:
            try:
                self._session = await self.call(self._open(), timeout_s=self._options.open_timeout_s)
            except VirtdError as error:
                self._lost(error)
                await asyncio.sleep(delay * random.uniform(0.8, 1.2))  # noqa: S311 - jitter, not a secret
                delay = min(delay * 2, RETRY_MAX_S)
        source = self._session.facets.event_source
        if source is not None:
            # Subscribed before the first list: nothing can fall between them.
            self._tasks.spawn(self._consume(source, source.events()))
        self._connected()
        await self._periodically(source is not None)

    async def _open(self) -> HostSession:
        if self._prepare is not None:
            self.config = await self._prepare(self.config)
            self._inventory.put_host(replace(self.host, uri=without_password(self.config.uri)))
        return await self.backend.open(self.config)

    async def _periodically(self, has_events: bool) -> None:
        due = {"resync": time.monotonic() + (self._options.resync_s if has_events else self._options.poll_s)}
        while True:
            await asyncio.sleep(min(self._options.readiness_s, self._options.resync_s, self._options.metrics_s))
            try:
                await self._tick(has_events, due)
            except UnavailableError:
                pass  # noted by who found it out
            except Exception:
                log.exception("link_defect", host=self.id)

    async def _tick(self, has_events: bool, due: dict[str, float]) -> None:
        def is_due(what: str, every_s: float) -> bool:
            now = time.monotonic()
            if now < due.get(what, 0.0):
                return False
            due[what] = now + every_s
            return True

        if self.host.state is not HostState.CONNECTED:
            if is_due("contact", self._options.poll_s):
                await self._try_again()
            return
        if is_due("resync", self._options.resync_s if has_events else self._options.poll_s):
            await self._resync_or_lose()
        if is_due("metrics", self._options.metrics_s):
            self._tasks.spawn(self._sample())
        if not self._facts.is_set() and not self._connecting.locked() and is_due("probe", PROBE_AGAIN_S):
            self._tasks.spawn(self._after_connect())
        await self._readiness.check()

    async def _try_again(self) -> None:
        """Ask whether the host is back: without events nobody tells, and a session may have missed it."""
        if self._session is None:
            return
        try:
            await self.call(self._session.list_guests())
        except VirtdError:
            return
        self._connected()

    async def _resync_or_lose(self) -> None:
        try:
            await self.resync()
        except UnavailableError as error:
            self._lost(error)
            raise
        except VirtdError as error:
            log.warning("resync_failed", host=self.id, error=error.message)

    def _connected(self) -> None:
        self._inventory.put_host(
            replace(self.host, state=HostState.CONNECTED, last_error=None, last_contact_time=datetime.now(UTC))
        )
        self._tasks.spawn(self._after_connect())

    async def _after_connect(self) -> None:
        async with self._connecting:
            try:
                await self.resync()
                self._settled.set()
                self._put_facts(await self.call(self.session.probe(), timeout_s=90.0))
            except UnavailableError as error:
                self._lost(error)
            except VirtdError as error:
                log.warning("probe_failed", host=self.id, error=error.message)
                self._inventory.put_host(replace(self.host, last_error=error.record))
            finally:
                self._settled.set()

    def _lost(self, error: VirtdError) -> None:
        now = datetime.now(UTC)
        self._settled.set()
        if self.host.state is not HostState.UNREACHABLE:
            log.warning("host_unreachable", host=self.id, error=error.message)
        self._inventory.put_host(replace(self.host, state=HostState.UNREACHABLE, last_error=error.record))
        self._inventory.mark_stale(self.id, now)

    def _put_facts(self, facts: HostFacts) -> None:
        capabilities = complete(facts.capabilities or self.backend.descriptor.capabilities)
        if self._session is not None and self._session.facets.event_source is None:
            polled = emulated(EVENTS, f"virtd compares the list every {self._options.poll_s:g} s")
            capabilities = tuple(
                polled if entry.id == EVENTS and entry.level is CapabilityLevel.UNSUPPORTED else entry
                for entry in capabilities
            )
        self._inventory.put_host(
            replace(
                self.host,
                facts=verified.known(self.backend.descriptor, replace(facts, capabilities=capabilities)),
                last_contact_time=datetime.now(UTC),
            )
        )
        self._facts.set()

    # -------------------------------------------------------------------------------------- events

    async def _consume(self, source: EventSourceFacet, events: AsyncIterator[NativeEvent]) -> None:
        while True:
            try:
                async for event in events:
                    try:
                        self._handle(event)
                    except Exception:
                        log.exception("link_defect", host=self.id, event=event.type.value)
            except Exception:
                log.exception("event_source_failed", host=self.id)
            else:
                return  # the session was closed
            await asyncio.sleep(RESUBSCRIBE_S)
            events = source.events()
            with contextlib.suppress(UnavailableError):
                await self._resync_or_lose()  # what was missed

    def _handle(self, event: NativeEvent) -> None:
        match event.type:
            case NativeEventType.CONNECTED:
                if self.host.state is not HostState.CONNECTED:
                    self.on_reconnected()
                self._connected()  # also if it was found out before: events may have been lost until now
            case NativeEventType.DISCONNECTED:
                self._lost(self._unreachable(event.detail or "the connection was lost"))
            case _ if event.uuid is None:
                pass
            case NativeEventType.GUEST_UNDEFINED:
                self._mark(event.uuid)
                # Redefining also says "undefined" on some drivers: ask before believing.
                self._tasks.spawn(self._refresh_quietly(event.uuid))
            case NativeEventType.GUEST_STATE if event.state is not None:
                self._mark(event.uuid)
                self._inventory.observe_state(
                    self.id, event.uuid, event.state, reason=event.reason, native_state=event.detail, name=event.name
                )
                self._tasks.spawn(self._refresh_quietly(event.uuid))
            case NativeEventType.GUEST_WATCHDOG:
                self._inventory.observe_watchdog(event.uuid, event.reason)
            case NativeEventType.GUEST_REBOOTED | NativeEventType.AGENT_CONNECTED | NativeEventType.AGENT_DISCONNECTED:
                self._handle_inside(event.type, event.uuid, event.reason)
            case _:
                if event.type is NativeEventType.GUEST_DEFINED and self._inventory.by_uid(event.uuid) is None:
                    # Shown at once with what the event says; a full read follows.
                    self._inventory.observe_state(
                        self.id, event.uuid, event.state or GuestState.STOPPED, name=event.name
                    )
                self._mark(event.uuid)
                self._tasks.spawn(self._refresh_quietly(event.uuid))

    def _handle_inside(self, type_: NativeEventType, uid: UUID, reason: str) -> None:
        if type_ is NativeEventType.GUEST_REBOOTED:
            self._inventory.observe_reboot(uid, reason)
            self._readiness.look_again(uid)
        elif type_ is NativeEventType.AGENT_CONNECTED:
            self._tasks.spawn(self._readiness.check_guest(uid))
        else:
            self._inventory.observe_condition(uid, ConditionType.AGENT_READY, ConditionStatus.FALSE, "DISCONNECTED")

    def _mark(self, uid: UUID) -> None:
        self._marks[uid] = self._marks.get(uid, 0) + 1

    async def _refresh_quietly(self, uid: UUID) -> None:
        async with self._detail_slots:
            try:
                await self.refresh(uid)
            except UnavailableError:
                pass  # the resync after the reconnection reads it
            except VirtdError as error:
                log.warning("guest_unreadable", host=self.id, uid=str(uid), error=error.message)

    async def _sample(self) -> None:
        started = time.monotonic()
        try:
            metrics = self.facets.metrics
            if metrics is not None:
                self._inventory.observe_metrics(self.id, await self.call(metrics.sample_guests()))
                self.on_sampled(time.monotonic() - started)
        except VirtdError as error:
            log.info("metrics_unavailable", host=self.id, error=error.message)

    def _unreachable(self, why: str = "") -> UnavailableError:
        error = None
        with contextlib.suppress(NotFoundError):
            error = self.host.last_error
        detail = why or (error.message if error is not None else "not connected yet")
        return UnavailableError(
            HOST_UNREACHABLE,
            f"host {self.id} does not answer: {detail}",
            resource=f"hosts/{self.id}",
            native=error.native if error is not None else None,
            retry_after_s=2.0,
        )
