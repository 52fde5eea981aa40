"""Primitives of the sync flavour, on grpc.  :mod:`virtd_client._io.aio` has the same names."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Generic, ParamSpec, TypeAlias, TypeVar

import grpc

from virtd_client._io import CLOSED
from virtd_client._target import Target

RequestT = TypeVar("RequestT")
ResponseT = TypeVar("ResponseT")
P = ParamSpec("P")
T = TypeVar("T")
Metadata = tuple[tuple[str, str | bytes], ...]

if TYPE_CHECKING:
    # At run time these are not generic.
    UnaryMethod: TypeAlias = grpc.UnaryUnaryMultiCallable[RequestT, ResponseT]
    StreamMethod: TypeAlias = grpc.UnaryStreamMultiCallable[RequestT, ResponseT]
    BidiMethod: TypeAlias = grpc.StreamStreamMultiCallable[RequestT, ResponseT]
    Channel: TypeAlias = grpc.Channel
RpcError = grpc.RpcError

sleep = time.sleep


def in_thread(function: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> T:
    """Do something that blocks: here and now."""
    return function(*args, **kwargs)


_QUEUED_WRITES = 64


def call(
    method: UnaryMethod[RequestT, ResponseT], request: RequestT, timeout_s: float | None, metadata: Metadata
) -> ResponseT:
    """One attempt at a unary call.

    :raises RpcError: it failed.
    """
    return method(request, timeout=timeout_s, metadata=metadata)


class Connection:
    """The channel to a daemon, made when it is first needed.  Threads may share it."""

    def __init__(self, target: Target) -> None:
        self.target = target
        self._lock = threading.Lock()
        self._channel: grpc.Channel | None = None
        self.closed = False

    @property
    def channel(self) -> grpc.Channel:
        """The channel.

        :raises RuntimeError: the client is closed.
        """
        with self._lock:
            if self.closed:
                raise RuntimeError(CLOSED)
            if self._channel is None:
                self._channel = grpc.insecure_channel(self.target.address, options=self.target.options)
            return self._channel

    def close(self) -> None:
        """Close the channel; calls that are under way end with CANCELLED."""
        with self._lock:
            self.closed = True
            channel, self._channel = self._channel, None
        if channel is not None:
            channel.close()


class Stream(Generic[RequestT, ResponseT]):
    """Responses of one call."""

    def __init__(
        self, method: StreamMethod[RequestT, ResponseT], request: RequestT, timeout_s: float | None, metadata: Metadata
    ) -> None:
        self._call = method(request, timeout=timeout_s, metadata=metadata)

    def read(self) -> ResponseT | None:
        """The next response; None: the end."""
        return next(self._call, None)

    def cancel(self) -> None:
        """End the call; harmless when it has ended, and from any thread."""
        self._call.cancel()

    def __del__(self) -> None:
        # Somebody has left a `for` without closing: the daemon must not go on sending.
        if hasattr(self, "_call"):
            self._call.cancel()


class Bidi(Generic[RequestT, ResponseT]):
    """A dialogue.  One thread may read while another writes."""

    def __init__(self, method: BidiMethod[RequestT, ResponseT], metadata: Metadata) -> None:
        # gRPC takes the requests from an iterator, on a thread of its own.
        self._requests: queue.Queue[RequestT | None] = queue.Queue(_QUEUED_WRITES)
        self._ended = threading.Event()
        self._call = method(_outgoing(self._requests, self._ended), metadata=metadata)
        # Called at once if it has ended already.
        self._call.add_callback(self._ended.set)

    def write(self, request: RequestT) -> bool:
        """Send; waits while the daemon does not take it.  False: the daemon has ended the call in good order.

        :raises RpcError: the call has failed.
        """
        if self._put(request):
            return True
        # The call is its own exception, which its stubs do not say.
        call: object = self._call
        if isinstance(call, grpc.RpcError) and call.code() is not grpc.StatusCode.OK:
            raise call
        return False

    def read(self) -> ResponseT | None:
        """The next response; None: the end."""
        return next(self._call, None)

    def done_writing(self) -> None:
        """Say that nothing more will be sent."""
        self._put(None)

    def cancel(self) -> None:
        """End the call; harmless when it has ended, and from any thread."""
        self._ended.set()
        self._call.cancel()

    def _put(self, request: RequestT | None) -> bool:
        while not self._ended.is_set():
            try:
                self._requests.put(request, timeout=0.2)
            except queue.Full:
                continue
            return True
        return False

    def __del__(self) -> None:
        # Somebody has dropped it without closing.
        if hasattr(self, "_call"):
            self.cancel()


def _outgoing(requests: queue.Queue[RequestT | None], ended: threading.Event) -> Iterator[RequestT]:
    # No method: gRPC's thread would keep the dialogue alive. It looks up now and then, as gRPC does
    # not wake this thread when the call ends.
    while not ended.is_set():
        try:
            request = requests.get(timeout=0.2)
        except queue.Empty:
            continue
        if request is None:
            return
        yield request
