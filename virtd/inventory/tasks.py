"""The tasks that one host's link runs: each costs its own resources only, and none of them fails silently."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any, Final

import structlog

log = structlog.get_logger(__name__)
CLEAN_UP_S: Final = 5.0
"""So long a call that was given up may take to clean up; then it is left to itself."""


class Tasks:
    """Those of one host.

    :param host: its id, for the log.
    """

    def __init__(self, host: str) -> None:
        self._host: Final = host
        self._running: set[asyncio.Task[Any]] = set()

    def spawn(self, work: Coroutine[Any, Any, None]) -> None:
        """Run something beside; what it raises is a defect, and logged."""
        task = asyncio.create_task(work)
        self._keep(task)
        task.add_done_callback(self._report)

    async def ended(self, work: Coroutine[Any, Any, Any], name: str, limit_s: float) -> asyncio.Task[Any] | None:
        """Run something until it ends, whatever its end is.

        :returns: None if the time was over first.  It was told to end then, as it is when the waiting is cancelled;
            where it does not, it is left to itself.
        """
        task = asyncio.create_task(work, name=name)
        try:
            await asyncio.wait({task}, timeout=limit_s)
        finally:  # also when the waiting itself is cancelled
            if not task.done():
                task.cancel()
                self._keep(task)
                await asyncio.wait({task}, timeout=CLEAN_UP_S)
        return None if not task.done() or task.cancelled() else task

    async def stop(self, *others: asyncio.Task[Any] | None) -> None:
        """Cancel all, and ``others``.

        Bounded: a call that does not let itself be cancelled must not keep the daemon.
        """
        tasks = [task for task in (*others, *self._running) if task is not None]
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks, timeout=CLEAN_UP_S + 1.0)

    def _keep(self, task: asyncio.Task[Any]) -> None:
        """Hold on to a task until it ends."""
        self._running.add(task)
        task.add_done_callback(self._discard)

    def _discard(self, task: asyncio.Task[Any]) -> None:
        self._running.discard(task)
        if not task.cancelled():
            task.exception()  # seen

    def _report(self, task: asyncio.Task[None]) -> None:
        if not task.cancelled() and (error := task.exception()) is not None:
            log.error("link_defect", host=self._host, exc_info=error)
