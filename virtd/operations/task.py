"""One operation at work: the record that changes, and what its steps are given."""

from __future__ import annotations

import asyncio
import contextvars
import time
from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Final

from virtd.errors import (
    DEADLINE_EXCEEDED,
    OPERATION_CANCELLED,
    CancelledError,
    DeadlineExceededError,
)
from virtd.model.operation import Operation, OperationNote

if TYPE_CHECKING:
    from virtd.operations.engine import Engine
    from virtd.operations.verb import Step, Verb

PROGRESS_INTERVAL_S: Final = 0.5
"""Progress is published at most this often for one operation."""
NOTES_MAX: Final = 50
"""The reason trail keeps the first and the last lines within this number."""


class Task:
    """Implements :class:`virtd.operations.verb.Run`."""

    def __init__(
        self,
        engine: Engine,
        record: Operation,
        queue: str,
        verb: Verb[Any],
        arguments: Any,
        steps: Sequence[Step[Any]],
        timeout_s: float,
    ) -> None:
        self._engine = engine
        self.record = record
        self.queue = queue
        self.verb = verb
        self.arguments = arguments
        self.steps = tuple(steps)
        self.step = 0
        self.undoing = False
        self.accepted = False
        """Whether its row is in the journal; it holds its place in the queue before."""
        self.begun = False
        """Whether any step may have had an effect."""
        self.committed = False
        """Whether it said itself that there is no way back."""
        self.ending = False
        self.recovered = False
        self.repeated = False
        self.scratch: dict[str, str] = {}
        self.cancel_event = asyncio.Event()
        self.ended = asyncio.Event()
        self.runner: asyncio.Task[None] | None = None
        self.context = contextvars.copy_context()
        """Of the call which asked for it, not of the operation whose end makes room for it: its trace, its logs."""
        self.timeout_s = timeout_s
        self._deadline = time.monotonic() + timeout_s
        self._last_progress = 0.0
        weights = [step.weight for step in self.steps]
        self._total_weight = sum(weights) or 1.0
        self._before = [sum(weights[:index]) for index in range(len(weights) + 1)]

    @property
    def operation(self) -> Operation:
        """The record as it is now."""
        return self.record

    @property
    def operation_id(self) -> str:
        """The id, without the collection."""
        return self.record.name.removeprefix("operations/")

    @property
    def deadline_s(self) -> float | None:
        """Seconds left, never negative; None while undoing, which takes the time that it takes."""
        return None if self.undoing else max(0.0, self._deadline - time.monotonic())

    @property
    def interruptible(self) -> bool:
        """Whether a cancel, or the end of the time, is obeyed now."""
        return not self.undoing and not self.committed and (not self.begun or self.steps[self.step].cancellable)

    def start_clock(self) -> None:
        """It begins to work: the time that it waited in its queue does not count."""
        self._deadline = time.monotonic() + self.timeout_s

    def change(self, **changes: Any) -> None:
        """Make a new version of the record and tell."""
        self.record = replace(self.record, revision=self.record.revision + 1, update_time=datetime.now(UTC), **changes)
        self._engine.tell(self.record)

    def enter(self, index: int, *, undoing: bool = False) -> None:
        """A step begins (or begins to be undone)."""
        self.begun = True
        self.step = index
        step = self.steps[index]
        if undoing:
            self.change(stage=f"undo:{step.name}", bytes_done=None, bytes_total=None)
            return
        self.change(
            stage=step.name,
            fraction=self._before[index] / self._total_weight,
            bytes_done=None,
            bytes_total=None,
            cancellable=step.cancellable,
        )

    def commit(self) -> None:
        """The point of no return."""
        if not self.committed and not self.undoing:
            self.committed = True
            self.change(cancellable=False)

    def wait_for(self, host: str) -> None:
        """Show that it waits for a host to answer again; an empty one: it works again."""
        if self.record.waiting_for != host:
            self.change(waiting_for=host)

    def retreat(self) -> None:
        """The step that was entered did not begin: its beginning could not be journalled."""
        self.begun = self.step > 0
        self.step = max(0, self.step - 1)

    def progress(
        self, fraction: float | None = None, *, bytes_done: int | None = None, bytes_total: int | None = None
    ) -> None:
        """Report how far this step is; published at most twice a second."""
        if self.undoing or self.record.state.terminal:
            return
        now = time.monotonic()
        if now - self._last_progress < PROGRESS_INTERVAL_S:
            return
        self._last_progress = now
        overall = self.record.fraction
        if fraction is None and bytes_done is not None and bytes_total:
            fraction = bytes_done / bytes_total
        if fraction is not None:
            share = min(1.0, max(0.0, fraction)) * self.steps[self.step].weight
            overall = max(overall or 0.0, (self._before[self.step] + share) / self._total_weight)
        self.change(fraction=overall, bytes_done=bytes_done, bytes_total=bytes_total)

    def note(self, message: str) -> None:
        """Add a line to the reason trail."""
        notes = (*self.record.notes, OperationNote(datetime.now(UTC), message))
        if len(notes) > NOTES_MAX:
            half = NOTES_MAX // 2
            notes = (*notes[:half], *notes[-half:])
        self.change(notes=notes)

    def note_once(self, message: str) -> None:
        """Add a line unless it is the last one already."""
        if not self.record.notes or self.record.notes[-1].message != message:
            self.note(message)

    def warn(self, message: str) -> None:
        """Add a warning."""
        if message not in self.record.warnings:
            self.change(warnings=(*self.record.warnings, message))

    def checkpoint(self) -> None:
        """Raise if it is time to give up; never while undoing or in a step that cannot be cancelled."""
        if self.interruptible:
            self.give_up_if_asked()

    def give_up_if_asked(self) -> None:
        """As :meth:`checkpoint`, whatever the step: between two steps."""
        if self.cancel_event.is_set():
            raise CancelledError(OPERATION_CANCELLED, "cancelled on request", resource=self.record.target)
        if time.monotonic() >= self._deadline:
            raise DeadlineExceededError(
                DEADLINE_EXCEEDED,
                f"{self.record.verb} took longer than {self.timeout_s:g} s",
                resource=self.record.target,
            )

    async def wait_cancelled(self) -> None:
        """Return when a cancel is requested that is to be obeyed: never while undoing, for example."""
        if self.interruptible:
            await self.cancel_event.wait()
        else:
            await asyncio.Event().wait()
