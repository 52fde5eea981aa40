"""Clocks: the machine's, and one that a test moves by hand."""

from __future__ import annotations

import asyncio
import heapq
import itertools
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Protocol


class Timer(Protocol):
    """Something that is due later."""

    def cancel(self) -> None:
        """Let it not happen.  Idempotent."""


class Clock(Protocol):
    """Time of day, spans and waiting: all that a simulated host may know of time."""

    def now(self) -> datetime:
        """The time of day, aware, UTC."""

    def monotonic(self) -> float:
        """Seconds since some fixed moment."""

    async def sleep(self, seconds: float) -> None:
        """Wait.  Zero and less returns after one turn of the event loop."""

    def call_later(self, seconds: float, callback: Callable[[], None]) -> Timer:
        """Call back on the running event loop."""


class SystemClock:
    """The machine's own clock."""

    def now(self) -> datetime:
        """See :class:`Clock`."""
        return datetime.now(UTC)

    def monotonic(self) -> float:
        """See :class:`Clock`."""
        return time.monotonic()

    async def sleep(self, seconds: float) -> None:
        """See :class:`Clock`."""
        await asyncio.sleep(max(seconds, 0))

    def call_later(self, seconds: float, callback: Callable[[], None]) -> Timer:
        """See :class:`Clock`."""
        return asyncio.get_running_loop().call_later(seconds, callback)


class _ManualTimer:
    def __init__(self, callback: Callable[[], None]) -> None:
        self.callback: Callable[[], None] | None = callback

    def cancel(self) -> None:
        self.callback = None


class ManualClock:
    """Stands still until :meth:`advance` is called.

    :param start: the first time of day; fixed, so that what a test prints is the same every time.
    """

    def __init__(self, start: datetime = datetime(2026, 1, 1, tzinfo=UTC)) -> None:
        self._start = start
        self._elapsed = 0.0
        self._order = itertools.count()
        self._timers: list[tuple[float, int, _ManualTimer]] = []

    def now(self) -> datetime:
        """See :class:`Clock`."""
        return self._start + timedelta(seconds=self._elapsed)

    def monotonic(self) -> float:
        """See :class:`Clock`."""
        return self._elapsed

    async def sleep(self, seconds: float) -> None:
        """See :class:`Clock`."""
        if seconds <= 0:
            await asyncio.sleep(0)
            return
        done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        timer = self.call_later(seconds, lambda: None if done.done() else done.set_result(None))
        try:
            await done
        finally:
            timer.cancel()

    def call_later(self, seconds: float, callback: Callable[[], None]) -> Timer:
        """See :class:`Clock`."""
        timer = _ManualTimer(callback)
        heapq.heappush(self._timers, (self._elapsed + seconds, next(self._order), timer))
        return timer

    async def advance(self, seconds: float) -> None:
        """Let time pass: everything that falls due happens, in order, before this returns."""
        await settle()  # tasks that were only just made must set their timers first
        end = self._elapsed + seconds
        while self._timers and self._timers[0][0] <= end:
            due, _, timer = heapq.heappop(self._timers)
            self._elapsed = due
            if timer.callback is not None:
                timer.callback()
            await settle()
        self._elapsed = end
        await settle()


async def settle(turns: int = 20) -> None:
    """Let tasks that are ready run: enough turns of the event loop for any chain of callbacks here."""
    for _ in range(turns):
        await asyncio.sleep(0)
