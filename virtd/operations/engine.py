"""The engine: it owns every operation from its journal row to its one terminal state.

The task that works belongs to the engine, never to the RPC that asked for it, so a client that goes
away changes nothing.  Order of things, for each operation:

1. it takes its place in its queue (one queue a guest), and the journal row is durable;
2. it waits for its turn;
3. before each step, "this step begins" is durable;
4. on failure or cancel the steps are undone backwards, from the one that failed;
5. the terminal row is durable; then, and only then, anyone is told.

Operations of different hosts do not wait for each other: each host has its own limit of operations
that work at once, so that a host that hangs does not stop the others.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
import uuid
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any, Final, TypeVar

import structlog

from virtd.errors import (
    DAEMON_STOPPING,
    INTERNAL_ERROR,
    INVALID_STATE,
    LIMIT_EXCEEDED,
    OPERATION_IN_PROGRESS,
    OPERATION_INTERRUPTED,
    OPERATION_NOT_CANCELLABLE,
    OPERATION_NOT_FOUND,
    AbortedError,
    ConflictError,
    FailedPreconditionError,
    InternalError,
    NotFoundError,
    ResourceExhaustedError,
    UnavailableError,
    VirtdError,
)
from virtd.model.operation import Operation, OperationState
from virtd.operations import journal
from virtd.operations.queues import Queues
from virtd.operations.requests import Requests
from virtd.operations.slots import Slots
from virtd.operations.task import Task
from virtd.operations.verb import Response, Verb
from virtd.operations.worker import Worker
from virtd.store import Codec, Database

log = structlog.get_logger(__name__)
R = TypeVar("R")

DEFAULT_TIMEOUT_S: Final = 1800.0
ENDING_S: Final = 2.0
"""How long a cancel waits for an operation that is about to end."""


@dataclass(frozen=True, slots=True)
class Submission:
    """What the engine needs to know of a request besides the verb's arguments.

    ``queue`` names what is worked on one at a time: a guest's resource name, as a rule;
    :func:`virtd.operations.queues.joined` names where there are several.
    """

    caller: str
    target: str
    queue: str
    request_id: str = ""
    fingerprint: str = ""
    reject_conflict: bool = False
    warnings: tuple[str, ...] = ()


class Engine:
    """All operations of a daemon.  Every method belongs to the event loop.

    :param parallel: so many operations of one host work at once.
    :param timeout_s: the time limit of verbs that have none of their own.
    :param timeouts_s: time limits by verb, before all others.
    """

    def __init__(
        self,
        database: Database,
        *,
        parallel: int = 16,
        queued_max: int = 10_000,
        retention_s: float = 7 * 86_400,
        timeout_s: float = DEFAULT_TIMEOUT_S,
        timeouts_s: Mapping[str, float] | None = None,
    ) -> None:
        self._database = database
        self._verbs: dict[str, Verb[Any]] = {}
        self._codecs: dict[str, Codec[Any]] = {}
        self._live: dict[str, Task] = {}
        self._queues = Queues()
        self._requests = Requests(database, self.get)
        self._accepting: set[asyncio.Task[Operation]] = set()
        self._slots = Slots(parallel)
        self._timeout_s = timeout_s
        self._timeouts_s = dict(timeouts_s or {})
        self._worker = Worker(self._write, self._write_end, self._tell_end)
        self._retention_s = retention_s
        self._queued_max = queued_max
        self._stopping = False
        self.on_change: Callable[[Operation], None] = lambda _operation: None
        """Called with every new version of a record, in order."""
        self.on_finished: Callable[[Operation], None] = lambda _operation: None
        """Called once when an operation has ended and its end is durable."""

    def register(self, verb: Verb[Any]) -> None:
        """Make a verb known.  All must be known before :meth:`recover`."""
        if verb.name in self._verbs:
            message = f"verb {verb.name} is registered twice"
            raise ValueError(message)
        self._verbs[verb.name] = verb
        self._codecs[verb.name] = Codec(verb.arguments)

    # ------------------------------------------------------------------------------- submitting

    async def once(
        self, caller: str, request_id: str, fingerprint: str, work: Callable[[], Awaitable[R]]
    ) -> R | Operation:
        """Carry a request out once, however often it comes, also at the same time.

        A repetition is answered with the operation that the first one started, before anything else is
        looked at: it gets the same answer whatever has become of the world.  One that failed before it
        started an operation has changed nothing, and is simply tried again.

        :param work: carries the request out; its :meth:`submit` must be given the same request id.
        :raises InvalidArgumentError: REQUEST_ID_REUSED, the id came with another body.
        """
        return await self._requests.once(caller, request_id, fingerprint, work)

    async def submit(self, verb: Verb[Any], arguments: object, submission: Submission) -> Operation:
        """Journal and queue an operation; return it as soon as it is durable.

        A caller that goes away meanwhile changes nothing.

        :raises ConflictError: OPERATION_IN_PROGRESS, with ``reject_conflict`` and a busy queue.
        :raises UnavailableError: DAEMON_STOPPING.
        :raises ResourceExhaustedError: LIMIT_EXCEEDED, too many wait; or STORAGE_FULL, it could not be
            journalled.  Nothing happened.
        """
        if self._stopping:
            raise UnavailableError(DAEMON_STOPPING, "the daemon is shutting down", retry_after_s=2.0)
        size = len(self._live) + len(self._accepting)
        if size >= self._queued_max:
            raise ResourceExhaustedError(
                LIMIT_EXCEEDED,
                f"{size} operations wait or run; the limit is {self._queued_max} (operations.max_queued)",
                retry_after_s=5.0,
            )
        if submission.reject_conflict:
            self._check_idle(submission)
        steps = tuple(verb.steps(arguments))
        now = datetime.now(UTC)
        record = Operation(
            name=f"operations/{uuid.uuid4()}",
            verb=verb.name,
            target=submission.target,
            stages=tuple(step.name for step in steps),
            caller=submission.caller,
            request_id=submission.request_id,
            warnings=submission.warnings,
            revision=1,
            create_time=now,
            update_time=now,
        )
        task = Task(self, record, submission.queue, verb, arguments, steps, self._limit(verb, arguments))
        # Its place is taken before it is durable, so that the order is that of the calls, and two
        # callers that ask for an idle guest do not both find it so.
        self._queues.join(task)
        accepting = asyncio.create_task(self._accept(task, submission), name=f"accept {record.name}")
        self._accepting.add(accepting)
        accepting.add_done_callback(self._accepted)
        return await asyncio.shield(accepting)

    async def _accept(self, task: Task, submission: Submission) -> Operation:
        record = task.record
        try:
            row = self._row(task)
            known = await self._database.write(
                lambda connection: journal.insert(connection, row, submission.fingerprint)
            )
        except BaseException:
            self._leave(task)
            raise
        if known is not None:
            self._leave(task)
            return await self._requests.replay(submission.request_id, submission.fingerprint, known)
        task.accepted = True
        self._live[record.name] = task
        self.tell(record)
        self._preempt(task)
        self._launch_first(task.queue)
        return record

    def _accepted(self, accepting: asyncio.Task[Operation]) -> None:
        self._accepting.discard(accepting)
        if not accepting.cancelled():
            accepting.exception()  # seen: the caller may have gone away

    def _limit(self, verb: Verb[Any], arguments: object) -> float:
        own = self._timeouts_s.get(verb.name)
        return own if own is not None else verb.timeout_s(arguments) or self._timeout_s

    def _check_idle(self, submission: Submission) -> None:
        waiting = self._queues.of(submission.queue)
        if waiting:
            blocking = waiting[0].record
            raise ConflictError(
                OPERATION_IN_PROGRESS,
                f"{blocking.name} ({blocking.verb}) works on {submission.target}",
                resource=submission.target,
                metadata={"operation": blocking.name, "verb": blocking.verb},
                retry_after_s=1.0,
            )

    def _preempt(self, task: Task) -> None:
        for other in self._queues.before(task):  # what came later was asked for in the knowledge of this one
            if other.verb.name in task.verb.preempts and other.accepted and not other.ending:
                other.note(f"cancelled in favour of {task.record.name} ({task.verb.name})")
                self._request_cancel(other)

    def _launch_first(self, queue: str) -> None:
        """Let the first of a queue work, if it may."""
        for task in self._queues.ready(queue):
            if task.accepted and task.runner is None:
                self._launch(task)

    def _launch(self, task: Task) -> None:
        if not self._stopping:  # else the next start takes it up from the journal
            task.runner = asyncio.create_task(self._run(task), name=task.record.name, context=task.context)

    def tell(self, operation: Operation) -> None:
        """Tell what an operation has become; a listener's defect is not the operation's."""
        try:
            self.on_change(operation)
        except Exception:
            log.exception("on_change_failed", operation=operation.name)

    # ---------------------------------------------------------------------------------- reading

    async def get(self, name: str) -> Operation:
        """One operation.

        :raises NotFoundError: OPERATION_NOT_FOUND.
        """
        if name in self._live:
            return self._live[name].record
        record = await journal.fetch(self._database, name)
        if record is None:
            raise NotFoundError(OPERATION_NOT_FOUND, f"there is no {name}", resource=name)
        return record

    def live(self) -> tuple[Operation, ...]:
        """What runs or waits, oldest first."""
        return tuple(task.record for task in self._live.values())

    async def list(self) -> list[Operation]:
        """All that are kept, newest first."""
        records = await journal.fetch_all(self._database)
        return [self._live[r.name].record if r.name in self._live else r for r in records]

    async def response(self, name: str) -> Response | None:
        """What a successful operation answered: the resource as it was at its end."""
        return await journal.fetch_response(self._database, name)

    async def wait(self, name: str, timeout_s: float) -> Operation:
        """The operation when it has ended, or as it is when the time is over.

        :raises NotFoundError: OPERATION_NOT_FOUND.
        """
        task = self._live.get(name)
        if task is not None:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(task.ended.wait(), timeout_s)
            return task.record
        return await self.get(name)

    def current(self, target: str) -> tuple[Operation, ...]:
        """What runs or waits on a target that is a queue of its own (a guest's name), in order."""
        return tuple(task.record for task in self._queues.of(target) if not task.record.state.terminal)

    @property
    def depth(self) -> Mapping[str, int]:
        """Number of operations by state (for metrics)."""
        return {"PENDING": 0, "RUNNING": 0, **Counter(task.record.state.value for task in self._live.values())}

    # ------------------------------------------------------------------------ cancel and delete

    async def cancel(self, name: str) -> Operation:
        """Ask an operation to stop; it reaches a valid state within seconds.  Idempotent.

        :raises NotFoundError: OPERATION_NOT_FOUND.
        :raises FailedPreconditionError: OPERATION_NOT_CANCELLABLE, it has ended otherwise.
        """
        task = self._live.get(name)
        if task is not None and task.ending:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(task.ended.wait(), ENDING_S)
            if not task.record.state.terminal:  # the disk is full: its end waits for room
                raise FailedPreconditionError(OPERATION_NOT_CANCELLABLE, f"{name} is about to end", resource=name)
        if task is None or task.record.state.terminal:
            record = task.record if task is not None else await self.get(name)
            if record.state is OperationState.CANCELLED:
                return record
            raise FailedPreconditionError(
                OPERATION_NOT_CANCELLABLE, f"{name} has already ended: {record.state.value}", resource=name
            )
        self._request_cancel(task)
        try:
            await self._write(task)
        except VirtdError as problem:  # it is cancelled all the same, unless the daemon dies now
            log.warning("journal_write_failed", operation=name, error=problem.message)
        return task.record

    def _request_cancel(self, task: Task) -> None:
        if not task.record.cancel_requested:
            task.change(cancel_requested=True)
            task.cancel_event.set()
            if task.runner is None:  # it still waits in its queue: it need not come to its turn
                self._launch(task)

    async def delete(self, name: str) -> None:
        """Forget an operation that has ended.

        :raises NotFoundError: OPERATION_NOT_FOUND.
        :raises FailedPreconditionError: INVALID_STATE, it has not ended.
        """
        if name in self._live:
            raise FailedPreconditionError(
                INVALID_STATE, f"{name} has not ended; cancel it first", resource=name, allowed_actions=("cancel",)
            )
        await self.get(name)
        await self._database.write(lambda connection: journal.delete(connection, name))

    async def expire(self) -> None:
        """Forget what ended longer ago than the retention."""
        before = time.time() - self._retention_s
        await self._database.write(lambda connection: journal.delete_older(connection, before))

    # --------------------------------------------------------------------------- start and stop

    async def recover(self) -> int:
        """Take up everything that the last daemon left unfinished; return how many there are.

        They keep their order within their queue.  An operation of a verb that is no longer known
        fails with INTERNAL_ERROR, and says so.
        """
        for record in await journal.untold(self._database):
            self.tell(record)  # its end is durable, but the daemon may have died before the event was
            self._mark_told(record)
        rows = await journal.open_rows(self._database)
        for row in rows:
            try:
                task = self._revive(row)
            except VirtdError as error:
                await self._abandon(row, error)
                continue
            if task.recovered:
                task.note("taken up again after a restart of the daemon")
                task.change(recovered=True)
            else:
                self.tell(task.record)
            if row.record.cancel_requested:
                task.cancel_event.set()
            self._queues.join(task)
        for queue in self._queues:
            self._launch_first(queue)
        return len(rows)

    def _revive(self, row: journal.Row) -> Task:
        """The task of a journal row.

        :raises VirtdError: it cannot be taken up.
        """
        record = row.record
        verb = self._verbs.get(record.verb)
        if verb is None:
            raise InternalError(INTERNAL_ERROR, f"this virtd does not know the verb {record.verb}")
        arguments = self._codecs[verb.name].decode(row.arguments)
        steps = tuple(verb.steps(arguments))
        names = tuple(step.name for step in steps)
        task = Task(self, record, row.queue, verb, arguments, steps, self._limit(verb, arguments))
        task.accepted = True
        task.step, task.undoing, task.scratch = row.step, row.undoing, dict(row.scratch)
        task.recovered = task.begun = record.state is OperationState.RUNNING
        if task.recovered and names != record.stages:
            # Another version of virtd began it: its steps are found again by their names.
            if record.stages[row.step] not in names:
                raise AbortedError(
                    OPERATION_INTERRUPTED,
                    f"another version of virtd died during {record.stages[row.step]}, which this one does not know",
                    resource=record.target,
                )
            task.step = names.index(record.stages[row.step])
        self._live[record.name] = task
        return task

    async def _abandon(self, row: journal.Row, error: VirtdError) -> None:
        now = datetime.now(UTC)
        ended = replace(
            row.record,
            state=OperationState.FAILED,
            error=error.record,
            end_time=now,
            update_time=now,
            cancellable=False,
            revision=row.record.revision + 1,
        )
        await self._database.write(lambda connection: journal.update(connection, replace(row, record=ended), None))
        self._tell_end(ended)

    async def stop(self, grace_s: float) -> int:
        """Accept nothing more, let what runs end within a time, and leave the rest to the next start.

        :returns: how many operations were left.  They are in the journal and are recovered.
        """
        self._stopping = True
        await asyncio.gather(*self._accepting, return_exceptions=True)
        runners = [task.runner for task in self._live.values() if task.runner is not None]
        if runners and grace_s > 0:
            await asyncio.wait(runners, timeout=grace_s)
        left = [task.runner for task in self._live.values() if task.runner is not None and not task.runner.done()]
        for runner in left:
            runner.cancel()
        await asyncio.gather(*left, return_exceptions=True)
        return len(self._live)

    # ---------------------------------------------------------------------------------- running

    async def _run(self, task: Task) -> None:
        held = await self._slots.acquire(task.record.target, task.cancel_event)
        try:
            if self._stopping:
                return
            with structlog.contextvars.bound_contextvars(operation=task.record.name):
                await self._worker.work(task)
        except Exception:
            # The queue stays closed: what the operation has done is not known.  A restart takes it up.
            log.exception("operation_stuck", operation=task.record.name, verb=task.record.verb)
        finally:
            if held:
                self._slots.release(task.record.target)
            if task.record.state.terminal:
                self._leave(task)

    def _leave(self, task: Task) -> None:
        self._live.pop(task.record.name, None)
        self._queues.leave(task)
        self._launch_first(task.queue)
        task.ended.set()

    def _row(self, task: Task) -> journal.Row:
        return journal.Row(
            record=task.record,
            queue=task.queue,
            arguments=self._codecs[task.verb.name].encode(task.arguments),
            step=task.step,
            undoing=task.undoing,
            scratch=dict(task.scratch),
        )

    async def _write(self, task: Task) -> None:
        row = self._row(task)
        await self._database.write(lambda connection: journal.update(connection, row, None))

    async def _write_end(self, task: Task, ended: Operation, response: Response | None) -> None:
        row = replace(self._row(task), record=ended)
        await self._database.write(lambda connection: journal.update(connection, row, response))

    def _tell_end(self, ended: Operation) -> None:
        self.tell(ended)
        self._mark_told(ended)
        try:
            self.on_finished(ended)
        except Exception:
            log.exception("on_finished_failed", operation=ended.name)

    def _mark_told(self, ended: Operation) -> None:
        # Written behind the event that on_change has just emitted: durable no sooner than that.
        self._database.submit(lambda connection: journal.mark_told(connection, ended.name))
