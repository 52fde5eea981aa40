"""Calls with deadlines, repetition and typed errors."""

from __future__ import annotations

from typing import TypeVar

from virtd_client import _status
from virtd_client._io import CLOSED
from virtd_client._io import aio as io
from virtd_client._retry import Backoff, Deadline, is_outage
from virtd_client.errors import CLIENT_TIMEOUT, VirtdError

RequestT = TypeVar("RequestT")
ResponseT = TypeVar("ResponseT")


class AsyncTransport:
    """One connection and how to use it.

    :param timeout_s: how long one call may take, repetitions included.
    :param retry_s: how long a call is repeated while the daemon is away; None: until its time is over.
    """

    def __init__(
        self, connection: io.Connection, *, timeout_s: float, retry_s: float | None, token: str | None
    ) -> None:
        self.connection = connection
        self.timeout_s = timeout_s
        self.retry_s = retry_s
        self.token = token
        self.metadata: io.Metadata = (("authorization", f"Bearer {token}"),) if token else ()

    def with_timeout(self, timeout_s: float) -> AsyncTransport:
        """The same connection with another time limit."""
        return AsyncTransport(self.connection, timeout_s=timeout_s, retry_s=self.retry_s, token=self.token)

    @property
    def channel(self) -> io.Channel:
        """The channel, for stubs."""
        return self.connection.channel

    @property
    def closed(self) -> bool:
        """Whether the client was closed."""
        return self.connection.closed

    async def unary(
        self,
        method: io.UnaryMethod[RequestT, ResponseT],
        request: RequestT,
        *,
        timeout_s: float | None = None,
        retry: bool = True,
    ) -> ResponseT:
        """Call, and call again with the same request while the daemon is away.

        :param timeout_s: for all attempts together; None: the client's.
        :param retry: False for calls that must not happen twice and carry no request_id.
        :raises VirtdError: as the daemon says; Unavailable or WaitTimeout when the time is over.
        """
        self._check_open()
        deadline = Deadline(self.timeout_s if timeout_s is None else timeout_s)
        patience: Deadline | None = None
        backoff = Backoff(max_s=2.0)
        outage: VirtdError | None = None
        while True:
            try:
                return await io.call(method, request, deadline.remaining_s(), self.metadata)
            except io.RpcError as rpc_error:
                error = self.error(rpc_error)
            if not retry or not is_outage(error):
                # That the time ran out says less than what kept the call from succeeding before.
                raise outage if outage is not None and error.reason == CLIENT_TIMEOUT else error
            outage = error
            # What counts is how long the daemon is away, not how long the call was waiting before that.
            patience = patience or deadline.earlier(self.retry_s)
            pause_s = backoff.next_s(error.retry_after_s)
            if patience.at_most(pause_s) < pause_s:
                raise error
            await io.sleep(pause_s)

    def stream(self, method: io.StreamMethod[RequestT, ResponseT], request: RequestT) -> io.Stream[RequestT, ResponseT]:
        """Open a stream of responses without a time limit."""
        self._check_open()
        return io.Stream(method, request, None, self.metadata)

    def bidi(self, method: io.BidiMethod[RequestT, ResponseT]) -> io.Bidi[RequestT, ResponseT]:
        """Open a dialogue without a time limit."""
        self._check_open()
        return io.Bidi(method, self.metadata)

    def _check_open(self) -> None:
        # gRPC would say it too, in other words for each kind of call and channel.
        if self.closed:
            raise RuntimeError(CLOSED)

    def error(self, error: io.RpcError) -> VirtdError:
        """The typed error of a failed call."""
        return _status.from_rpc_error(error, str(self.connection.target))

    async def close(self) -> None:
        """Close the connection."""
        await self.connection.close()
