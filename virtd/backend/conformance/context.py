"""What the kit gives to calls: guests, and a context that can cancel at a chosen point, and watches."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from uuid import UUID

from virtd.backend.api import ResolvedGuest
from virtd.errors import OPERATION_CANCELLED, CancelledError


@dataclass(frozen=True, slots=True)
class Subject:
    """A guest that a check works on."""

    uuid: UUID
    name: str
    resolved: ResolvedGuest


class KitContext:
    """See :class:`virtd.backend.api.CallContext`.

    :param cancel_at: the checkpoint (1 is the first) at which the operation is cancelled; 0: never.
    """

    operation_id = "conformance"
    deadline_s: float | None = None

    def __init__(self, *, cancel_at: int = 0) -> None:
        self.cancel_at = cancel_at
        self.checkpoints = 0
        self.refused = 0  # how often checkpoint() raised
        self.fractions: list[float] = []
        self.bytes_done: list[int] = []
        self.notes: list[str] = []
        self.warnings: list[str] = []
        self._cancelled = asyncio.Event()

    def cancel(self) -> None:
        """Cancel now."""
        self._cancelled.set()

    def progress(
        self, fraction: float | None = None, *, bytes_done: int | None = None, bytes_total: int | None = None
    ) -> None:
        """See the SPI."""
        if fraction is not None:
            assert 0 <= fraction <= 1, f"progress of {fraction} is not between 0 and 1"
            assert not self.fractions or fraction >= self.fractions[-1], f"progress goes back to {fraction}"
            self.fractions.append(fraction)
        if bytes_done is not None:
            assert bytes_total is None or bytes_done <= bytes_total, f"{bytes_done} of {bytes_total} bytes are done"
            self.bytes_done.append(bytes_done)

    def note(self, message: str) -> None:
        """See the SPI."""
        self.notes.append(message)

    def warn(self, message: str) -> None:
        """See the SPI."""
        self.warnings.append(message)

    def checkpoint(self) -> None:
        """See the SPI."""
        self.checkpoints += 1
        if self.cancel_at and self.checkpoints >= self.cancel_at:
            self.cancel()
        if self._cancelled.is_set():
            self.refused += 1
            raise CancelledError(OPERATION_CANCELLED, "the conformance kit cancelled the call")

    async def wait_cancelled(self) -> None:
        """See the SPI."""
        await self._cancelled.wait()
