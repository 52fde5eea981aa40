"""The engine: it owns every operation from its journal row to its one terminal state.

The task that works belongs to the engine, never to the RPC that asked for it, so a client that goes
away changes nothing.  Order of things, for each operation:

1. the journal row is durable;
2. it waits for its turn in its queue (one queue a guest);
3. before each step, "this step begins" is durable;
4. on failure or cancel the steps are undone backwards, from the one that failed;
5. the terminal row is durable; then, and only then, anyone is told.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
import uuid
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any

import structlog

from virtd.errors import (
    DAEMON_STOPPING,
    INTERNAL_ERROR,
    INVALID_STATE,
    LIMIT_EXCEEDED,
    OPERATION_IN_PROGRESS,
    OPERATION_NOT_CANCELLABLE,
    OPERATION_NOT_FOUND,
    REQUEST_ID_REUSED,
    ConflictError,
    FailedPreconditionError,
    InternalError,
    InvalidArgumentError,
    NotFoundError,
    ResourceExhaustedError,
    UnavailableError,
)
from virtd.model.operation import Operation, OperationState
from virtd.operations import journal
from virtd.operations.task import Task
from virtd.operations.verb import Response, Verb
from virtd.operations.worker import Worker
from virtd.store import Codec, Database

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Submission:
    """What the engine needs to know of a request besides the verb's arguments.

    ``queue`` names what is worked on one at a time: a guest's resource name, as a rule.
    """

    caller: str
    target: str
    queue: str
    request_id: str = ""
    fingerprint: str = ""
    reject_conflict: bool = False
    warnings: tuple[str, ...] = ()


class Engine:
    """All operations of a daemon.  Every method belongs to the event loop."""

    def __init__(
        self, database: Database, *, parallel: int = 64, queued_max: int = 10_000, retention_s: float = 7 * 86_400
    ) -> None:
        self._database = database
        self._verbs: dict[str, Verb[Any]] = {}
        self._codecs: dict[str, Codec[Any]] = {}
        self._live: dict[str, Task] = {}
        self._queues: dict[str, deque[Task]] = {}
        self._requests: dict[tuple[str, str], tuple[str, asyncio.Future[Operation]]] = {}
        self._slots = asyncio.Semaphore(parallel)
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

    async def replay(self, caller: str, request_id: str, fingerprint: str) -> Operation | None:
        """The operation that this request started before, or None.

        To be asked before anything else is checked: a repetition gets the same answer whatever has
        become of the world.

        :raises InvalidArgumentError: REQUEST_ID_REUSED, the id came with another body.
        """
        if not request_id:
            return None
        key = (caller, request_id)
        if key in self._requests:
            known_fingerprint, future = self._requests[key]
            _check_fingerprint(request_id, fingerprint, known_fingerprint)
            return await asyncio.shield(future)
        known = await journal.known_request(self._database, caller, request_id)
        if known is None:
            return None
        _check_fingerprint(request_id, fingerprint, known.fingerprint)
        return await self.get(known.operation)

    async def submit(self, verb: Verb[Any], arguments: object, submission: Submission) -> Operation:
        """Journal and queue an operation; return it as soon as it is durable.

        :raises ConflictError: OPERATION_IN_PROGRESS, with ``reject_conflict`` and a busy queue.
        :raises UnavailableError: DAEMON_STOPPING.
        :raises ResourceExhaustedError: LIMIT_EXCEEDED, too many wait; or STORAGE_FULL, it could not be
            journalled.  Nothing happened.
        """
        if self._stopping:
            raise UnavailableError(DAEMON_STOPPING, "the daemon is shutting down", retry_after_s=2.0)
        request = (submission.caller, submission.request_id)
        if submission.request_id and request in self._requests:
            known_fingerprint, future = self._requests[request]
            _check_fingerprint(submission.request_id, submission.fingerprint, known_fingerprint)
            return await asyncio.shield(future)
        if len(self._live) >= self._queued_max:
            raise ResourceExhaustedError(
                LIMIT_EXCEEDED,
                f"{len(self._live)} operations wait or run; the limit is {self._queued_max} (operations.max_queued)",
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
        task = Task(self, record, submission.queue, verb, arguments, steps)
        future = asyncio.get_running_loop().create_future()
        if submission.request_id:
            self._requests[request] = (submission.fingerprint, future)
        try:
            row = self._row(task)
            await self._database.write(lambda connection: journal.insert(connection, row, submission.fingerprint))
        except BaseException as error:
            if not future.done():
                future.set_exception(error)
                future.exception()  # mark as seen: there may be nobody else who waits
            raise
        else:
            future.set_result(record)
        finally:
            self._requests.pop(request, None)
        self.on_change(record)
        self._preempt(task)
        self._enqueue(task)
        return record

    def _check_idle(self, submission: Submission) -> None:
        waiting = self._queues.get(submission.queue)
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
        for other in list(self._queues.get(task.queue, ())):
            if other.verb.name in task.verb.preempts and not other.record.state.terminal:
                other.note(f"cancelled in favour of {task.record.name} ({task.verb.name})")
                self._request_cancel(other)

    def _enqueue(self, task: Task) -> None:
        self._live[task.record.name] = task
        waiting = self._queues.setdefault(task.queue, deque())
        waiting.append(task)
        if waiting[0] is task:
            self._launch(task)

    def _launch(self, task: Task) -> None:
        task.runner = asyncio.create_task(self._run(task), name=task.record.name)

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
        """What runs or waits on a target, in order."""
        return tuple(task.record for task in self._live.values() if task.record.target == target)

    @property
    def depth(self) -> Mapping[str, int]:
        """Number of operations by state (for metrics)."""
        counts = {OperationState.PENDING.value: 0, OperationState.RUNNING.value: 0}
        for task in self._live.values():
            counts[task.record.state.value] = counts.get(task.record.state.value, 0) + 1
        return counts

    # ------------------------------------------------------------------------ cancel and delete

    async def cancel(self, name: str) -> Operation:
        """Ask an operation to stop; it reaches a valid state within seconds.  Idempotent.

        :raises NotFoundError: OPERATION_NOT_FOUND.
        :raises FailedPreconditionError: OPERATION_NOT_CANCELLABLE, it has ended otherwise.
        """
        task = self._live.get(name)
        if task is not None and task.ending:
            await task.ended.wait()
        if task is None or task.record.state.terminal:
            record = task.record if task is not None else await self.get(name)
            if record.state is OperationState.CANCELLED:
                return record
            raise FailedPreconditionError(
                OPERATION_NOT_CANCELLABLE, f"{name} has already ended: {record.state.value}", resource=name
            )
        self._request_cancel(task)
        await self._write(task)
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
        rows = await journal.open_rows(self._database)
        for row in rows:
            verb = self._verbs.get(row.record.verb)
            if verb is None:
                await self._abandon(row)
                continue
            arguments = self._codecs[verb.name].decode(row.arguments)
            task = Task(self, row.record, row.queue, verb, arguments, tuple(verb.steps(arguments)))
            task.step, task.undoing, task.scratch = row.step, row.undoing, dict(row.scratch)
            task.recovered = row.record.state is OperationState.RUNNING
            if task.recovered:
                task.begun = True
                task.note("taken up again after a restart of the daemon")
                task.change(recovered=True)
            if row.record.cancel_requested:
                task.cancel_event.set()
            self._enqueue(task)
        return len(rows)

    async def _abandon(self, row: journal.Row) -> None:
        error = InternalError(INTERNAL_ERROR, f"this virtd does not know the verb {row.record.verb}")
        ended = replace(
            row.record, state=OperationState.FAILED, error=error.record, end_time=datetime.now(UTC), cancellable=False
        )
        await self._database.write(lambda connection: journal.update(connection, replace(row, record=ended), None))
        self.on_change(ended)

    async def stop(self, grace_s: float) -> int:
        """Accept nothing more, let what runs end within a time, and leave the rest to the next start.

        :returns: how many operations were left.  They are in the journal and are recovered.
        """
        self._stopping = True
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
        try:
            async with self._slots:
                structlog.contextvars.bind_contextvars(operation=task.record.name)
                await self._worker.work(task)
        finally:
            if task.record.state.terminal:
                self._leave(task)

    def _leave(self, task: Task) -> None:
        self._live.pop(task.record.name, None)
        waiting = self._queues[task.queue]
        waiting.remove(task)
        if not waiting:
            del self._queues[task.queue]
        elif waiting[0].runner is None and not self._stopping:
            self._launch(waiting[0])
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
        self.on_change(ended)
        self.on_finished(ended)


def _check_fingerprint(request_id: str, fingerprint: str, known: str) -> None:
    if fingerprint != known:
        raise InvalidArgumentError(
            REQUEST_ID_REUSED,
            f"request_id {request_id} was used before with another request",
            metadata={"request_id": request_id},
        )
