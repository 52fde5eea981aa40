"""Run strategies: who decides that a guest runs, enforced.

==================  ===========================================================================
MANUAL              nothing is done
ALWAYS              a guest that is STOPPED or CRASHED is started
HALTED              a guest that is RUNNING is asked to shut down (never forced)
RERUN_ON_FAILURE    a guest that is CRASHED, or did not come up, is started, unless its user stopped it since
ONCE                a guest that has never run since virtd knows it is started
==================  ===========================================================================

What a person does goes first, as with KubeVirt: stopping a guest that is ALWAYS makes it HALTED, starting
one that is HALTED makes it ALWAYS (:mod:`virtd.service.verbs.lifecycle`).  Guests that are paused or
suspended are left as they are, and so is every guest on which an operation works, that is not virtd's own,
or whose host does not answer: what is not known is not acted upon.

A guest that does not stay up is started again at once, then after 10 s, 20 s, 40 s ... up to 5 minutes;
meanwhile it has the condition CRASH_LOOP.  What is remembered of it survives a restart of the daemon.
"""

from __future__ import annotations

import asyncio
import contextlib
import sqlite3
import time
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Final
from uuid import UUID

import structlog

from virtd.backend.capabilities import SHUTDOWN
from virtd.errors import DAEMON_STOPPING, OutOfRangeError, VirtdError
from virtd.inventory import GuestView
from virtd.inventory.inventory import MOVED
from virtd.model.event import Event, EventType
from virtd.model.guest import ConditionStatus, ConditionType, GuestState, Origin, Presence, RunStrategy
from virtd.model.host import CapabilityLevel
from virtd.model.names import GuestName, parse_guest
from virtd.model.operation import OperationState
from virtd.operations import Submission, Verb
from virtd.service.core import Core
from virtd.service.verbs.base import GuestArguments
from virtd.service.verbs.lifecycle import STRATEGY_CALLER, ShutdownArguments
from virtd.store import Codec

log = structlog.get_logger(__name__)

SWEEP_S: Final = 30.0
"""How often every guest is looked at, whatever the events say."""
_BATCH: Final = 256
_STOPS: Final = frozenset({"stop", "shutdown"})
_STARTING: Final = frozenset({RunStrategy.ALWAYS, RunStrategy.RERUN_ON_FAILURE, RunStrategy.ONCE})
_DOWN: Final = frozenset({GuestState.STOPPED, GuestState.CRASHED})
_FAILED: Final = frozenset({"FAILED"})
"""Why a guest is STOPPED that did not come up."""
_UP: Final = frozenset({GuestState.RUNNING, GuestState.PAUSED, GuestState.SUSPENDED})


@dataclass(frozen=True, slots=True)
class Memory:
    """What is remembered of a guest.

    :param ran: it has run since virtd knows it (ONCE).
    :param held: its user has stopped it, and has not started it since (RERUN_ON_FAILURE).
    :param failures: how often in a row it did not stay up.
    :param up_since: when it was last seen to start (UNIX seconds); 0: it is down.
    :param next_start: when it may be started again (UNIX seconds).
    """

    ran: bool = False
    held: bool = False
    failures: int = 0
    up_since: float = 0.0
    next_start: float = 0.0


class Strategies:
    """Enforces the run strategies of all guests."""

    def __init__(self, core: Core, start: Verb[GuestArguments], shutdown: Verb[ShutdownArguments]) -> None:
        self._core = core
        self._options = core.options.strategy
        self._start = start
        self._shutdown = shutdown
        self._codec = Codec(Memory)
        rows = core.database.read_now(
            lambda connection: connection.execute("SELECT uid, record FROM strategies").fetchall()
        )
        self._known = {UUID(uid): self._codec.decode(record) for uid, record in rows}
        self._own: set[str] = set()
        self._due: dict[UUID, float] = {}
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Begin; returns at once."""
        self._task = asyncio.create_task(self._run(), name="run strategies")

    async def stop(self) -> None:
        """End.  Idempotent."""
        task, self._task = self._task, None
        if task is not None:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

    # ------------------------------------------------------------------------------------ the loop

    async def _run(self) -> None:
        revision, sweep = self._core.events.head, 0.0
        while not self._core.events.closed:
            try:
                if time.monotonic() >= sweep:
                    sweep = time.monotonic() + SWEEP_S
                    await self._look_at({view.guest.uid for view in self._core.inventory.guests()})
                await self._core.events.wait_news(revision, self._patience(sweep))
                touched: set[UUID] = set()
                try:
                    events = await self._core.events.read(revision, _BATCH)
                except OutOfRangeError:
                    revision, sweep = self._core.events.head, 0.0
                    continue
                for event in events:
                    revision = event.revision
                    touched |= self._heard(event)
                now = time.time()
                touched |= {uid for uid, due in self._due.items() if due <= now}
                await self._look_at(touched)
            except asyncio.CancelledError:
                raise
            except Exception:
                log.exception("strategy_defect")
                await asyncio.sleep(1.0)

    def _patience(self, sweep: float) -> float:
        soonest = min(self._due.values(), default=time.time() + SWEEP_S) - time.time()
        return max(0.05, min(soonest, sweep - time.monotonic()))

    def _heard(self, event: Event) -> set[UUID]:
        """The guests that an event is about."""
        if event.type is EventType.OPERATION_CHANGED:
            return self._heard_operation(event)
        if event.type is EventType.GUEST_REMOVED and event.attributes.get("reason") != MOVED:
            self._forget(UUID(event.uid))
            return set()
        if event.type is EventType.HOST_CHANGED:
            host = event.resource.removeprefix("hosts/")
            return {view.guest.uid for view in self._core.inventory.guests(host)}
        return {UUID(event.uid)} if event.uid and event.type.value.startswith("GUEST_") else set()

    def _heard_operation(self, event: Event) -> set[UUID]:
        """The guest on which an operation has ended."""
        target, verb, state = (event.attributes.get(key, "") for key in ("target", "verb", "state"))
        view = None
        with contextlib.suppress(VirtdError):
            view = self._core.inventory.find(parse_guest(target))
        if view is None or not OperationState(state).terminal:
            return set()
        uid, succeeded = view.guest.uid, state == OperationState.SUCCEEDED.value
        if event.resource not in self._own:
            if succeeded and verb in _STOPS:
                self._remember(uid, held=True)
        elif verb == "start" and not succeeded:
            # It did not come up: ONCE is once up, not once tried.
            self._remember(uid, ran=view.guest.status.state not in _DOWN)
        self._own.discard(event.resource)
        return {uid}

    async def _look_at(self, uids: set[UUID]) -> None:
        for uid in uids:
            self._due.pop(uid, None)
            view = self._core.inventory.by_uid(uid)
            if view is not None:
                try:
                    await self._decide(view)
                except VirtdError as error:
                    if error.reason is DAEMON_STOPPING:
                        return
                    log.warning("strategy_failed", guest=view.guest.name, error=error.message)
                    self._due[uid] = time.time() + SWEEP_S

    # -------------------------------------------------------------------------------- the decision

    async def _decide(self, view: GuestView) -> None:
        guest, status = view.guest, view.guest.status
        strategy = guest.spec.run_strategy or RunStrategy.MANUAL
        if status.origin is not Origin.MANAGED or status.presence is not Presence.PRESENT:
            return
        if status.stale_since is not None or status.state_reason == "CREATING":
            return
        memory = self._observe(view)
        if strategy is RunStrategy.MANUAL or self._core.engine.current(guest.name):
            return
        if strategy is RunStrategy.HALTED:
            if status.state is GuestState.RUNNING:
                await self._halt(view, memory)
            return
        if not _wanted(strategy, status.state, status.state_reason, memory):
            return
        if self._must_wait(view, memory):
            return
        self._remember(guest.uid, up_since=time.time(), ran=True)  # a start that fails counts as one that did not last
        await self._submit(self._start, view.key, GuestArguments(view.key.host, view.key.guest, guest.uid))

    def _observe(self, view: GuestView) -> Memory:
        """Bring what is remembered up to what is seen."""
        uid, state = view.guest.uid, view.guest.status.state
        memory, now = self._known.get(uid, Memory()), time.time()
        strategy = view.guest.spec.run_strategy or RunStrategy.MANUAL
        if state in _UP:
            since = view.guest.status.state_change_time
            up_since = memory.up_since or (since.timestamp() if since is not None else now)
            if memory.failures and now - up_since >= self._options.stable_s:
                self._tell(uid, Memory())
                memory = self._remember(uid, failures=0, next_start=0.0)
            elif memory.failures:
                self._due[uid] = up_since + self._options.stable_s
            if (memory.ran, memory.held, memory.up_since) != (True, False, up_since):
                memory = self._remember(uid, ran=True, held=False, up_since=up_since)
        elif state in _DOWN and memory.up_since:
            lasted = now - memory.up_since
            if strategy in _STARTING and not self._working(view):
                failures = 1 if lasted >= self._options.stable_s else memory.failures + 1
                memory = self._remember(uid, failures=failures, up_since=0.0, next_start=now + self._delay(failures))
            elif not self._working(view):
                memory = self._remember(uid, failures=0, up_since=0.0, next_start=0.0)
        if strategy not in _STARTING and memory.failures:
            memory = self._remember(uid, failures=0, next_start=0.0)
            self._tell(uid, memory)
        return memory

    def _working(self, view: GuestView) -> bool:
        return bool(self._core.engine.current(view.guest.name))

    def _delay(self, failures: int) -> float:
        """The first start after a failure does not wait; each later one twice as long as that before it."""
        if failures <= 1:
            return 0.0
        doublings = min(failures - 2, 30)
        return float(min(self._options.backoff_first_s * 2**doublings, self._options.backoff_max_s))

    def _must_wait(self, view: GuestView, memory: Memory) -> bool:
        now = time.time()
        if memory.failures > 1:
            self._tell(view.guest.uid, memory)
        # A clock that was set back must not make it wait for longer than it ever has to.
        if memory.next_start <= now or memory.next_start > now + self._options.backoff_max_s:
            return False
        self._due[view.guest.uid] = memory.next_start
        return True

    def _tell(self, uid: UUID, memory: Memory) -> None:
        view = self._core.inventory.by_uid(uid)
        if view is None:
            return
        known = any(condition.type is ConditionType.CRASH_LOOP for condition in view.guest.status.conditions)
        if memory.failures <= 1:
            if known:
                self._core.inventory.observe_condition(uid, ConditionType.CRASH_LOOP, ConditionStatus.FALSE, "STABLE")
            return
        when = datetime.fromtimestamp(memory.next_start, UTC).isoformat(timespec="seconds")
        message = f"it went down {memory.failures} times in a row soon after its start; it is started again at {when}"
        self._core.inventory.observe_condition(uid, ConditionType.CRASH_LOOP, ConditionStatus.TRUE, "BACK_OFF", message)

    async def _halt(self, view: GuestView, memory: Memory) -> None:
        now = time.time()
        if now < memory.next_start <= now + self._options.halt_s * 2:
            self._due[view.guest.uid] = memory.next_start
            return
        link = self._core.link(view.key.host)
        levels = {entry.id: entry.level for entry in link.capabilities}
        if levels.get(SHUTDOWN) in (None, CapabilityLevel.UNSUPPORTED, CapabilityLevel.UNKNOWN):
            return  # it cannot be asked, and it is never forced
        self._remember(view.guest.uid, next_start=now + self._options.halt_s * 2)
        arguments = ShutdownArguments(
            view.key.host, view.key.guest, view.guest.uid, wait_s=self._options.halt_s, force=False
        )
        await self._submit(self._shutdown, view.key, arguments)

    async def _submit(
        self, verb: Verb[GuestArguments] | Verb[ShutdownArguments], name: GuestName, arguments: object
    ) -> None:
        operation = await self._core.engine.submit(
            verb, arguments, Submission(caller=STRATEGY_CALLER, target=str(name), queue=str(name))
        )
        self._own.add(operation.name)
        log.info("strategy_acts", guest=str(name), verb=verb.name, operation=operation.name)

    # ---------------------------------------------------------------------------------- the memory

    def _remember(self, uid: UUID, **changes: bool | float) -> Memory:
        memory = replace(self._known.get(uid, Memory()), **changes)  # type: ignore[arg-type]  # each by its own name
        if memory != self._known.get(uid):
            self._known[uid] = memory
            row = (str(uid), self._codec.encode(memory))

            def upsert(connection: sqlite3.Connection) -> None:
                connection.execute("INSERT OR REPLACE INTO strategies VALUES (?, ?)", row)

            self._core.database.submit(upsert)
        return memory

    def _forget(self, uid: UUID) -> None:
        if self._known.pop(uid, None) is not None:
            self._core.database.submit(
                lambda connection: connection.execute("DELETE FROM strategies WHERE uid = ?", (str(uid),))
            )


def _wanted(strategy: RunStrategy, state: GuestState, reason: str, memory: Memory) -> bool:
    if strategy is RunStrategy.ALWAYS:
        return state in _DOWN
    if strategy is RunStrategy.RERUN_ON_FAILURE:
        return (state is GuestState.CRASHED or (state in _DOWN and reason in _FAILED)) and not memory.held
    return strategy is RunStrategy.ONCE and state in _DOWN and not memory.ran
