"""The working half of the engine: steps forward, steps backward, one end.

It never decides *whether* an operation runs; :mod:`virtd.operations.engine` does.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any, Final, TypeVar

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
from virtd.operations.verb import Probe, Response, Step

log = structlog.get_logger(__name__)

T = TypeVar("T")

CANCEL_GRACE_S: Final = 10.0
"""How long a step may take to obey a cancel by itself before its task is cut off."""
RETRY_FIRST_S: Final = 0.2
RETRY_MAX_S: Final = 5.0


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
        if task.record.state is OperationState.PENDING:
            task.change(state=OperationState.RUNNING, start_time=datetime.now(UTC))
        response: Response | None = None
        try:
            if task.undoing:
                error = _recorded_error(task)
                await self._undo(task)
                await self._end(task, error, None)
                return
            await self._forward(task)
            outcome = await self._patiently(task, lambda: task.verb.finish(task))
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
        fresh = not task.recovered
        for index in range(task.step, len(task.steps)):
            step = task.steps[index]
            task.checkpoint()
            task.enter(index)
            await self._write(task)
            if not fresh:
                fresh = True
                if await self._already_done(task, step):
                    continue
            with tracing.span(f"step {step.name}", operation=task.record.name):
                await self._supervise(task, step)
        task.step = len(task.steps)

    async def _already_done(self, task: Task, step: Step[Any]) -> bool:
        if step.probe is None:
            return False
        probe = step.probe
        verdict = await self._patiently(task, lambda: probe(task))
        task.note(f"after the restart, step {step.name} is found {verdict.name}")
        if verdict is Probe.LOST:
            raise AbortedError(
                OPERATION_INTERRUPTED,
                f"the daemon died during {step.name}, and whether it took effect cannot be told",
                resource=task.record.target,
            )
        return verdict is Probe.DONE

    async def _patiently(self, task: Task, call: Callable[[], Awaitable[T]]) -> T:
        """Await a call; after a restart, wait for the host to answer instead of failing."""
        delay = RETRY_FIRST_S
        while True:
            try:
                return await call()
            except UnavailableError as error:
                if not task.recovered or error.reason is not HOST_UNREACHABLE:
                    raise
                task.note_once(f"waiting for the host: {error.message}")
            await self._pause(task, delay)
            delay = min(delay * 2, RETRY_MAX_S)

    async def _pause(self, task: Task, seconds: float) -> None:
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(task.cancel_event.wait(), seconds)
        if task.cancel_event.is_set():
            await asyncio.sleep(seconds)  # a set event must not turn the wait into a busy loop

    async def _supervise(self, task: Task, step: Step[Any]) -> None:
        """Run one step; obey cancel and deadline even if the step does not look at them."""
        work = asyncio.ensure_future(self._patiently(task, lambda: step.do(task)))
        cancelled = asyncio.ensure_future(task.cancel_event.wait())
        try:
            waits = {work, cancelled} if step.cancellable else {work}
            await asyncio.wait(waits, timeout=task.deadline_s, return_when=asyncio.FIRST_COMPLETED)
            if not work.done():
                await asyncio.wait({work}, timeout=CANCEL_GRACE_S)
            if not work.done():
                work.cancel()
                await asyncio.wait({work}, timeout=CANCEL_GRACE_S)
                task.checkpoint()
                raise DeadlineExceededError(
                    DEADLINE_EXCEEDED, f"{step.name} did not end in time", resource=task.record.target
                )
            work.result()
        finally:
            cancelled.cancel()
            if not work.done():
                work.cancel()
                with contextlib.suppress(asyncio.CancelledError):
                    await asyncio.wait({work}, timeout=1.0)

    async def _give_up(self, task: Task, failure: VirtdError) -> None:
        failure.with_resource(task.record.target)
        task.undoing = True
        task.change(error=failure.record, cancellable=False)
        await self._try_write(task)
        await self._undo(task)
        await self._end(task, failure, None)

    async def _try_write(self, task: Task) -> None:
        # A full disk must not keep us from undoing.  If we die before this is durable, recovery goes
        # forward again from the journalled step, which is as truthful an end.
        try:
            await self._write(task)
        except VirtdError as problem:
            log.warning("journal_write_failed", operation=task.record.name, error=problem.message)

    async def _undo(self, task: Task) -> None:
        if not task.begun:
            return
        for index in range(min(task.step, len(task.steps) - 1), -1, -1):
            undo = task.steps[index].undo
            if undo is None:
                continue
            task.enter(index, undoing=True)
            await self._try_write(task)
            delay = RETRY_FIRST_S
            while True:
                try:
                    await undo(task)
                except UnavailableError as error:
                    task.note_once(f"cannot undo {task.steps[index].name} yet: {error.message}")
                    await asyncio.sleep(delay)
                    delay = min(delay * 2, RETRY_MAX_S)
                    continue
                except Exception as error:
                    log.exception("undo_failed", operation=task.record.name, step=task.steps[index].name)
                    task.warn(f"{task.steps[index].name} could not be undone: {error}")
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
                await asyncio.sleep(delay)
                delay = min(delay * 2, RETRY_MAX_S)
        task.record = ended
        self._tell_end(ended)


def _recorded_error(task: Task) -> VirtdError:
    if task.record.error is not None:
        return from_record(task.record.error)
    return CancelledError(OPERATION_CANCELLED, "cancelled on request", resource=task.record.target)
