"""How long to wait, and how often to try: pure arithmetic, the same for both flavours."""

from __future__ import annotations

import random
import time
from dataclasses import dataclass, field

from virtd_client.errors import DAEMON_UNREACHABLE, Unavailable, VirtdError


class Deadline:
    """A moment after which to stop; None: never."""

    def __init__(self, timeout_s: float | None) -> None:
        self._end = None if timeout_s is None else time.monotonic() + timeout_s

    def remaining_s(self) -> float | None:
        """Seconds left, at least 0; None: any number."""
        return None if self._end is None else max(0.0, self._end - time.monotonic())

    def at_most(self, seconds: float) -> float:
        """``seconds``, or what is left if that is less."""
        left = self.remaining_s()
        return seconds if left is None else min(seconds, left)

    @property
    def passed(self) -> bool:
        """Whether nothing is left."""
        return self._end is not None and time.monotonic() >= self._end

    def earlier(self, timeout_s: float | None) -> Deadline:
        """This deadline, or the one in ``timeout_s`` seconds if that comes first."""
        left = self.remaining_s()
        if left is None:
            return Deadline(timeout_s)
        return Deadline(left if timeout_s is None else min(left, timeout_s))


@dataclass(slots=True)
class Backoff:
    """Exponential, with full jitter, so that a thousand clients do not come back at the same moment."""

    initial_s: float = 0.1
    max_s: float = 5.0
    _attempt: int = field(default=0, init=False)

    def next_s(self, retry_after_s: float | None = None) -> float:
        """Seconds to wait before the next attempt, at least what the daemon asked for."""
        # 2**16 times any sensible start is past any sensible maximum; unbounded powers overflow.
        ceiling = min(self.max_s, self.initial_s * 2.0 ** min(self._attempt, 16))
        self._attempt += 1
        # Not below a tenth: a jitter of zero again and again would be a busy loop.
        jittered = ceiling * random.uniform(0.1, 1.0)  # noqa: S311 - spreads load, keeps no secret
        return max(jittered, retry_after_s or 0.0)

    def reset(self) -> None:
        """Begin small again, after a success."""
        self._attempt = 0


def is_outage(error: VirtdError) -> bool:
    """Whether the daemon itself was away, so that the same call may simply be repeated.

    UNAVAILABLE with another reason (HOST_UNREACHABLE, AGENT_NOT_READY, ...) is the daemon's answer
    about something else: the caller learns it at once.
    """
    return isinstance(error, Unavailable) and error.reason in {
        DAEMON_UNREACHABLE,
        "DAEMON_STOPPING",
        "GRPC_UNAVAILABLE",
    }
