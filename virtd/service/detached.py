"""A call context for work that is not an operation."""

from __future__ import annotations

import asyncio
import time

from virtd.errors import DEADLINE_EXCEEDED, DeadlineExceededError


class DetachedContext:
    """Implements :class:`virtd.backend.api.CallContext` with a deadline and nothing else."""

    def __init__(self, timeout_s: float) -> None:
        self._deadline = time.monotonic() + timeout_s

    @property
    def operation_id(self) -> str:
        """None: there is no operation."""
        return ""

    @property
    def deadline_s(self) -> float | None:
        """Seconds left."""
        return max(0.0, self._deadline - time.monotonic())

    def progress(
        self, fraction: float | None = None, *, bytes_done: int | None = None, bytes_total: int | None = None
    ) -> None:
        """Nobody looks."""

    def note(self, message: str) -> None:
        """Nobody looks."""

    def warn(self, message: str) -> None:
        """Nobody looks."""

    def checkpoint(self) -> None:
        """Raise when the time is over."""
        if time.monotonic() >= self._deadline:
            raise DeadlineExceededError(DEADLINE_EXCEEDED, "the call took too long")

    async def wait_cancelled(self) -> None:
        """Cancelled only by being cancelled."""
        await asyncio.Event().wait()
