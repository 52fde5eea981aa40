"""The working half of the engine: steps forward, steps backward, one end.

It never decides *whether* an operation runs; :mod:`virtd.operations.engine` does.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any, Final

import structlog

from virtd.errors import (
    DEADLINE_EXCEEDED,
    HOST_UNREACHABLE,
    INTERNAL_ERROR,
    OPERATION_CANCELLED,
    OPERATION_INTERRUPTED,
    AbortedError,
    CancelledError,
    DeadlineExceededError,
    InternalError,
    UnavailableError,
    VirtdError,
    from_record,
)
from virtd.model.operation import Operation, OperationState
from virtd.obs import tracing
from virtd.operations.task import Task
from virtd.operations.verb import Outcome, Probe, Response, Step

log = structlog.get_logger(__name__)

CANCEL_GRACE_S: Final = 10.0
"""How long a step may take to obey a cancel by itself before its task is cut off."""
RETRY_FIRST_S: Final = 0.2
RETRY_MAX_S: Final = 5.0
HOST_RETRY_MAX_S: Final = 1.0
"""How long a host can be back before an operation that waits for it notices: to ask costs nothing while it is away."""


class Worker:
    """Works tasks off.

    :param write: makes the task's present state durable.
    :param write_end: makes its terminal record durable.
    :param tell_end: tells the world, after that.
    """

    def __init__(
        self,
        write: Callable[[Task], Awaitable[None]],
        write_end: Callable[[Task, Operation, Response | None], Awaitable[None]],
        tell_end: Callable[[Operation], None],
    ) -> None:
        self._write = write
        self._write_end = write_end
        self._tell_end = tell_end

    async def work(self, task: Task) -> None:
        """From wherever the task is to its end."""
        facts = {"operation": task.record.name, "verb": task.record.verb, "target": task.record.target}
        with tracing.span(f"operation {task.record.verb}", **facts):
            await self._work(task)

    async def _work(self, task: Task) -> None:
        task.start_clock()
        if task.record.state is OperationState.PENDING:
            task.change(state=OperationState.RUNNING, start_time=datetime.now(UTC))
        response: Response | None = None
        try:
            if task.undoing:
                error = _recorded_error(task)
                await self._undo(task, marked=True)
                await self._end(task, error, None)
                return
            await self._forward(task)
            outcome = await self._finish(task)
            task.change(result=outcome.result, result_data=outcome.data)
            response = outcome.response
        except VirtdError as failure:
            await self._give_up(task, failure)
        except Exception as failure:
            log.exception("operation_defect", operation=task.record.name, verb=task.record.verb)
            name = type(failure).__name__
            await self._give_up(task, InternalError(INTERNAL_ERROR, f"{task.record.verb} hit a defect ({name})"))
        else:
            await self._end(task, None, response)

    async def _forward(self, task: Task) -> None:
        first = task.step
        for index in range(first, len(task.steps)):
            step = task.steps[index]
            taken_up = task.recovered and index == first
            # Between two steps that cannot be cancelled there is no way back either.
            before_it = index > 0 and (task.steps[index - 1].decides or not task.steps[index - 1].cancellable)
            asks_itself = taken_up and step.decides
            if not asks_itself and (step.cancellable or not (taken_up or before_it)):
                task.give_up_if_asked()
            task.enter(index)
            try:
                await self._write(task)
            except VirtdError:
                if not taken_up:
                    task.retreat()
                raise
            with tracing.span(f"step {step.name}", operation=task.record.name):
                await self._supervise(task, step, doubtful=taken_up)

    async def _attempt(self, task: Task, step: Step[Any], *, doubtful: bool) -> None:
        """Do one step.

        A host that falls silent is waited for: whether the step took effect is then as unknown as after
        a crash of the daemon, and is found out in the same way.

        :param doubtful: whether the step may have been begun before.
        """
        delay = RETRY_FIRST_S
        while True:
            task.repeated = doubtful
            try:
                if not (doubtful and await self._already_done(task, step)):
                    await step.do(task)
            except UnavailableError as error:
                if error.reason is not HOST_UNREACHABLE:
                    raise
                doubtful = True
                _waits(task, error)
            else:
                task.wait_for("")
                return
            await self._pause(task, delay)
            if step.decides:
                # What became of it can only be told by those who do not answer.
                delay = min(delay * 2, HOST_RETRY_MAX_S)
                continue
            try:
                task.checkpoint()
            except DeadlineExceededError as error:
                raise DeadlineExceededError(
                    DEADLINE_EXCEEDED,
                    f"{error.message}: {task.record.waiting_for or 'the host'} does not answer, "
                    f"and whether {step.name} took effect cannot be told",
                    resource=task.record.target,
                ) from error
            if task.cancel_event.is_set():
                # It cannot be taken back, and nobody answers.  Waiting on would make the cancel a lie;
                # so would "cancelled".
                raise AbortedError(
                    OPERATION_INTERRUPTED,
                    f"cancelled while the host did not answer; whether {step.name} took effect cannot be told",
                    resource=task.record.target,
                )
            delay = min(delay * 2, HOST_RETRY_MAX_S)

    async def _already_done(self, task: Task, step: Step[Any]) -> bool:
        """Whether a step that was interrupted need not be done again."""
        if step.probe is None:
            return False
        verdict = await step.probe(task)
        task.note(f"step {step.name} was interrupted and is found {verdict.name}")
        if verdict is Probe.LOST:
            raise AbortedError(
                OPERATION_INTERRUPTED,
                f"{step.name} was interrupted, and whether it took effect cannot be told",
                resource=task.record.target,
            )
        return verdict is Probe.DONE

    async def _finish(self, task: Task) -> Outcome:
        """The answer.  The work is done: an answer that cannot be read does not make it undone."""
        delay = RETRY_FIRST_S
        while True:
            try:
                return await task.verb.finish(task)
            except VirtdError as error:
                if error.reason is not HOST_UNREACHABLE or task.deadline_s == 0 or task.cancel_event.is_set():
                    task.warn(f"done, but the result could not be read: {error.message}")
                    return Outcome()
                _waits(task, error)
            except Exception as error:
                log.exception("operation_defect", operation=task.record.name, verb=task.record.verb)
                task.warn(f"done, but the result could not be read ({type(error).__name__})")
                return Outcome()
            await self._pause(task, delay)
            delay = min(delay * 2, HOST_RETRY_MAX_S)

    async def _pause(self, task: Task, seconds: float) -> None:
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(task.cancel_event.wait(), seconds)
        if task.cancel_event.is_set() and (not task.interruptible or task.steps[task.step].decides):
            await asyncio.sleep(seconds)  # a set event must not turn the wait into a busy loop

    async def _supervise(self, task: Task, step: Step[Any], *, doubtful: bool) -> None:
        """Run one step; obey cancel and deadline even if the step does not look at them."""
        work = asyncio.ensure_future(self._attempt(task, step, doubtful=doubtful))
        cancelled = asyncio.ensure_future(task.wait_cancelled())
        try:
            await asyncio.wait({work, cancelled}, timeout=task.deadline_s, return_when=asyncio.FIRST_COMPLETED)
            if not work.done():
                await asyncio.wait({work}, timeout=None if step.decides else CANCEL_GRACE_S)
            if not work.done():
                work.cancel()
                await asyncio.wait({work}, timeout=CANCEL_GRACE_S)
                if not work.done() or work.cancelled():
                    task.checkpoint()
                    what = f"{step.name} did not end in time"
                    if silent := task.record.waiting_for:
                        what += f", for {silent} does not answer; whether it took effect cannot be told"
                    raise DeadlineExceededError(DEADLINE_EXCEEDED, what, resource=task.record.target)
            if work.cancelled():  # not by us: something inside gave up in a way that it must not
                raise InternalError(INTERNAL_ERROR, f"{step.name} was cancelled from inside")
            work.result()
        finally:
            cancelled.cancel()
            if not work.done():
                work.cancel()
                await asyncio.wait({work}, timeout=1.0)
            work.add_done_callback(_seen)

    async def _give_up(self, task: Task, failure: VirtdError) -> None:
        failure.with_resource(task.record.target)
        task.undoing = True
        task.change(error=failure.record, cancellable=False)
        await self._undo(task, marked=await self._try_write(task))
        await self._end(task, failure, None)

    async def _try_write(self, task: Task) -> bool:
        try:
            await self._write(task)
        except VirtdError as problem:
            log.warning("journal_write_failed", operation=task.record.name, error=problem.message)
            return False
        return True

    async def _undo(self, task: Task, *, marked: bool) -> None:
        """Take back what was done, last step first.

        :param marked: whether the journal knows that there is no way forward any more.
        """
        if not task.begun:
            return
        last = min(task.step, len(task.steps) - 1)
        for index in range(last, -1, -1):
            undo = task.steps[index].undo
            if undo is None:
                continue
            task.enter(index, undoing=True)
            delay = RETRY_FIRST_S
            written = await self._try_write(task)
            while not (written or marked or index == last):
                # After a crash now, the journal would send us forward over steps that are undone.  Only
                # the last one may be undone before: it would be done again.  That often is what makes
                # room again on a disk that is full.
                await asyncio.sleep(delay)
                delay = min(delay * 2, RETRY_MAX_S)
                written = await self._try_write(task)
            marked = marked or written
            delay = RETRY_FIRST_S
            while True:
                try:
                    await undo(task)
                except UnavailableError as error:
                    task.note_once(f"cannot undo {task.steps[index].name} yet: {error.message}")
                    if error.reason is HOST_UNREACHABLE:
                        task.wait_for(_host_of(task, error))
                    await asyncio.sleep(delay)
                    delay = min(delay * 2, RETRY_MAX_S)
                    continue
                except Exception as error:
                    log.exception("undo_failed", operation=task.record.name, step=task.steps[index].name)
                    task.warn(f"{task.steps[index].name} could not be undone: {error}")
                task.wait_for("")
                break

    async def _end(self, task: Task, error: VirtdError | None, response: Response | None) -> None:
        if error is None:
            state = OperationState.SUCCEEDED
        elif isinstance(error, CancelledError):
            state = OperationState.CANCELLED
        else:
            state = OperationState.FAILED
        now = datetime.now(UTC)
        ended = replace(
            task.record,
            state=state,
            error=None if error is None else error.record,
            fraction=1.0 if error is None else task.record.fraction,
            cancellable=False,
            waiting_for="",
            end_time=now,
            update_time=now,
            revision=task.record.revision + 1,
        )
        task.ending = True  # from here on nobody else may write the row
        delay = RETRY_FIRST_S
        while True:
            # Nobody is told before it is durable; a full disk delays the end, it does not falsify it.
            try:
                await self._write_end(task, ended, response)
                break
            except VirtdError as problem:
                log.error("journal_write_failed", operation=task.record.name, error=problem.message)  # noqa: TRY400 - no news in the traceback
            except Exception:
                log.exception("operation_defect", operation=task.record.name, verb=task.record.verb)
                response = None  # what cannot be encoded must not keep the operation from ending
            await asyncio.sleep(delay)
            delay = min(delay * 2, RETRY_MAX_S)
        task.record = ended
        self._tell_end(ended)


def _seen(work: asyncio.Future[None]) -> None:
    """Nobody waits for it any more: how it ended is of no interest, also not to the log."""
    if not work.cancelled():
        work.exception()


def _waits(task: Task, error: VirtdError) -> None:
    task.note_once(f"waiting for the host: {error.message}")
    task.wait_for(_host_of(task, error))


def _host_of(task: Task, error: VirtdError) -> str:
    """The host that does not answer: the error says which, or it is the target's."""
    for name in (error.record.resource, task.record.target):
        collection, _, rest = name.partition("/")
        if collection == "hosts":
            return f"hosts/{rest.partition('/')[0]}"
    return ""


def _recorded_error(task: Task) -> VirtdError:
    if task.record.error is not None:
        return from_record(task.record.error)
    return CancelledError(OPERATION_CANCELLED, "cancelled on request", resource=task.record.target)
