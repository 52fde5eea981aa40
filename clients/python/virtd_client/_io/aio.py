"""Primitives of the async flavour, on grpc.aio.  :mod:`virtd_client._io.blocking` has the same names."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Iterator
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any, Generic, TypeAlias, TypeVar, cast

import grpc
import grpc.aio

from virtd_client._io import CLOSED
from virtd_client._target import Target

RequestT = TypeVar("RequestT")
ResponseT = TypeVar("ResponseT")
T = TypeVar("T")
Metadata = tuple[tuple[str, str | bytes], ...]

if TYPE_CHECKING:
    # At run time these are not generic.
    UnaryMethod: TypeAlias = grpc.aio.UnaryUnaryMultiCallable[RequestT, ResponseT]
    StreamMethod: TypeAlias = grpc.aio.UnaryStreamMultiCallable[RequestT, ResponseT]
    BidiMethod: TypeAlias = grpc.aio.StreamStreamMultiCallable[RequestT, ResponseT]
    Channel: TypeAlias = grpc.aio.Channel
RpcError = grpc.RpcError

sleep = asyncio.sleep
in_thread = asyncio.to_thread
"""Do something that blocks."""


async def call(
    method: UnaryMethod[RequestT, ResponseT], request: RequestT, timeout_s: float | None, metadata: Metadata
) -> ResponseT:
    """One attempt at a unary call.

    :raises RpcError: it failed.
    """
    with _cancelled_here():
        return await method(request, timeout=timeout_s, metadata=metadata)


@contextmanager
def _cancelled_here() -> Iterator[None]:
    """Keep asyncio's CancelledError for tasks that are being cancelled.

    grpc.aio raises it to whoever waits for a call, also when somebody else has cancelled the call or
    closed the channel; in a task that nobody has cancelled it would look like a cancellation, and
    tear down a task group.
    """
    try:
        yield
    except asyncio.CancelledError:
        task = asyncio.current_task()
        if task is not None and task.cancelling():
            raise
        raise grpc.aio.AioRpcError(grpc.StatusCode.CANCELLED, details="cancelled by this client") from None


class Connection:
    """The channel to a daemon, made when it is first needed: it belongs to the running event loop."""

    def __init__(self, target: Target) -> None:
        self.target = target
        self._channel: grpc.aio.Channel | None = None
        self.closed = False

    @property
    def channel(self) -> grpc.aio.Channel:
        """The channel.

        :raises RuntimeError: the client is closed, or no event loop runs.
        """
        if self.closed:
            raise RuntimeError(CLOSED)
        if self._channel is None:
            asyncio.get_running_loop()
            self._channel = grpc.aio.insecure_channel(self.target.address, options=self.target.options)
        return self._channel

    async def close(self) -> None:
        """Close the channel; calls that are under way end with CANCELLED."""
        self.closed = True
        channel, self._channel = self._channel, None
        if channel is not None:
            await channel.close()


class Stream(Generic[RequestT, ResponseT]):
    """Responses of one call."""

    def __init__(
        self, method: StreamMethod[RequestT, ResponseT], request: RequestT, timeout_s: float | None, metadata: Metadata
    ) -> None:
        self._call = method(request, timeout=timeout_s, metadata=metadata)

    async def read(self) -> ResponseT | None:
        """The next response; None: the end."""
        with _cancelled_here():
            response = await self._call.read()
        # The stubs give the end no type of its own.
        return None if response is grpc.aio.EOF else response  # type: ignore[return-value]

    def cancel(self) -> None:
        """End the call; harmless when it has ended."""
        self._call.cancel()

    def __del__(self) -> None:
        # Somebody has left an `async for` without closing. grpc.aio's own __del__ waits for the cycle collector.
        if hasattr(self, "_call"):
            self._call.cancel()


class Bidi(Generic[RequestT, ResponseT]):
    """A dialogue.  One task may read while another writes."""

    def __init__(self, method: BidiMethod[RequestT, ResponseT], metadata: Metadata) -> None:
        self._call = method(metadata=metadata)
        self._end: list[grpc.aio.AioRpcError] = []
        self._call.add_done_callback(partial(_keep_end, self._end))

    async def write(self, request: RequestT) -> bool:
        """Send; waits while the daemon does not take it.  False: the daemon has ended the call in good order.

        :raises RpcError: the call has failed.
        """
        try:
            with _cancelled_here():
                await self._call.write(request)
        except asyncio.InvalidStateError:
            # It is over; this raises if it failed, and returns the end otherwise.
            return await self.read() is not None
        except grpc.aio.AioRpcError as error:
            return await self._ended(error)
        return True

    async def read(self) -> ResponseT | None:
        """The next response; None: the end."""
        try:
            with _cancelled_here():
                response = await self._call.read()
        except grpc.aio.AioRpcError as error:
            await self._ended(error)
            return None
        return None if response is grpc.aio.EOF else response  # type: ignore[return-value] # as above

    async def done_writing(self) -> None:
        """Say that nothing more will be sent."""
        await self._call.done_writing()

    def cancel(self) -> None:
        """End the call; harmless when it has ended."""
        self._call.cancel()

    def __del__(self) -> None:
        # Somebody has left an `async for` without closing. grpc.aio's own __del__ waits for the cycle collector.
        if hasattr(self, "_call"):
            self._call.cancel()

    async def _ended(self, error: grpc.aio.AioRpcError) -> bool:
        """Raise how the daemon ended the call; False: in good order.

        When a write fails because the call has just ended, grpc.aio puts an INTERNAL of its own in
        the place of the daemon's status (https://github.com/grpc/grpc/issues/36066), or lets the
        daemon's follow a moment later.
        """
        end = self._end[0] if self._end else error
        for _ in range(_STATUS_LOOKS):
            if end.details() != _FAILED_WRITE:
                break
            await asyncio.sleep(_STATUS_PAUSE_S)
            end = _status_of(self._call)
        if end.code() is grpc.StatusCode.OK:
            return False
        raise end from None


_FAILED_WRITE = "Internal error from Core"
_STATUS_LOOKS = 20
_STATUS_PAUSE_S = 0.02


def _keep_end(end: list[grpc.aio.AioRpcError], call: grpc.aio.Call) -> None:
    """Keep the first status of a call: the daemon's, if it came before a write failed."""
    end.append(_status_of(call))


def _status_of(call: grpc.aio.Call) -> grpc.aio.AioRpcError:
    """The present status of a call that has ended, as an error."""
    return grpc.aio.AioRpcError(
        _finished(call.code()),
        _finished(call.initial_metadata()),
        _finished(call.trailing_metadata()),
        _finished(call.details()),
    )


def _finished(coroutine: Coroutine[Any, Any, T]) -> T:
    """What a coroutine returns that has nothing to wait for."""
    try:
        coroutine.send(None)
    except StopIteration as stop:
        return cast("T", stop.value)
    coroutine.close()
    raise RuntimeError("the status of an ended call is not there")
