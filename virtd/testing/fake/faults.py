"""Failures, delays and hangs of native calls, on request."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Awaitable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from virtd.backend.api import CallContext
from virtd.testing.clock import Clock


class NativeFailure(Exception):  # noqa: N818 - named for what it is: a native call's refusal
    """What a native call of the fake hypervisor raises: the session translates it.

    :param call: the native call's name.
    :param code: a word of the fake's own (``no-guest``, ``unreachable``, ``injected`` ...).
    """

    def __init__(self, call: str, code: str, message: str) -> None:
        super().__init__(message)
        self.call = call
        self.code = code
        self.message = message


class Hang:
    """A call that does not return until :meth:`release`.

    :param deaf: the call does not notice that its operation is cancelled, as a stuck native call would not.
    """

    def __init__(self, *, deaf: bool = False) -> None:
        self.deaf = deaf
        self.entered = 0
        self._released = False
        self._waiters: list[tuple[asyncio.AbstractEventLoop, asyncio.Event]] = []

    def release(self) -> None:
        """Let the calls that hang, and all later ones, go on.  May be called from any thread."""
        self._released = True
        for loop, event in self._waiters:
            loop.call_soon_threadsafe(event.set)
        self._waiters.clear()

    async def wait(self, context: CallContext | None) -> None:
        """Hang.

        :raises virtd.errors.CancelledError: the operation was cancelled (unless ``deaf``).
        """
        self.entered += 1
        if self._released:
            return
        event = asyncio.Event()
        self._waiters.append((asyncio.get_running_loop(), event))
        waits: set[asyncio.Future[object]] = {asyncio.ensure_future(_as_object(event.wait()))}
        if context is not None and not self.deaf:
            waits.add(asyncio.ensure_future(_as_object(context.wait_cancelled())))
        try:
            await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for wait in waits:
                wait.cancel()
            await asyncio.gather(*waits, return_exceptions=True)
        if context is not None and not event.is_set():
            context.checkpoint()


async def _as_object(wait: Awaitable[object]) -> object:
    return await wait


@dataclass
class _Failure:
    call: str
    nth: int
    error: BaseException | None
    after: bool
    seen: int = 0


@dataclass
class Faults:
    """The faults of one world.  Calls are named as in :class:`virtd.testing.fake.native.NativeHypervisor`."""

    clock: Clock
    counts: Counter[str] = field(default_factory=Counter)
    _failures: list[_Failure] = field(default_factory=list)
    _delays: dict[str, float] = field(default_factory=dict)
    _hangs: dict[str, Hang] = field(default_factory=dict)

    def fail(self, call: str, nth: int = 1, error: BaseException | None = None, *, after: bool = False) -> None:
        """Let the nth call of this name from now on fail, once.

        :param error: what it raises; a :class:`NativeFailure` with the code ``injected`` by default.
        :param after: it fails after it has done its work (an answer that got lost).
        """
        self._failures.append(_Failure(call, nth, error, after))

    def delay(self, call: str, seconds: float) -> None:
        """Let every call of this name take so long; zero ends it."""
        self._delays[call] = seconds

    def hang(self, call: str, *, deaf: bool = False) -> Hang:
        """Let every call of this name hang until the answer's ``release()``."""
        self._hangs[call] = hang = Hang(deaf=deaf)
        return hang

    def clear(self) -> None:
        """No faults any more; what hangs goes on."""
        self._failures.clear()
        self._delays.clear()
        for hang in self._hangs.values():
            hang.release()
        self._hangs.clear()

    @contextmanager
    def cleared(self) -> Iterator[None]:
        """A block after which there are no faults."""
        try:
            yield
        finally:
            self.clear()

    async def before(self, call: str, context: CallContext | None) -> BaseException | None:
        """What a native call does first.  The answer is an error to raise when its work is done."""
        self.counts[call] += 1
        if self._delays.get(call):
            await self.clock.sleep(self._delays[call])
        if call in self._hangs:
            await self._hangs[call].wait(context)
        late: BaseException | None = None
        for failure in [failure for failure in self._failures if failure.call == call]:
            failure.seen += 1
            if failure.seen == failure.nth:
                self._failures.remove(failure)
                error = failure.error or NativeFailure(call, "injected", f"{call} was told to fail")
                if not failure.after:
                    raise error
                late = error
        return late
