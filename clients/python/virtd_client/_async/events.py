"""Events: a watch that resumes by itself, and the unary form."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from functools import cached_property
from types import TracebackType
from typing import TYPE_CHECKING, Self

from virtd_client._async.service import AsyncService
from virtd_client._io import aio as io
from virtd_client._retry import Backoff, Deadline
from virtd_client.errors import Cancelled, Internal, OutOfRange, ResourceExhausted, Unavailable, VirtdError
from virtd_client.types import EventPage, InitialDone, Reset, ResetCause, WatchItem

if TYPE_CHECKING:
    from virtd.v1.event_pb2 import EventBatch, WatchEventsRequest, WatchEventsResponse
    from virtd.v1.event_pb2_grpc import EventServiceAsyncStub

_GRACE_S = 5.0
_STRANGE_ENDS = 5
"""So many ends in a row without a word from virtd are no longer taken for lost connections."""


@dataclass(slots=True)
class _Outage:
    """Since the daemon was last heard."""

    patience: Deadline
    backoff: Backoff = field(default_factory=Backoff)
    strange_ends: int = 0


class AsyncEvents(AsyncService):
    """The event log."""

    @cached_property
    def _stub(self) -> EventServiceAsyncStub:
        from virtd.v1.event_pb2_grpc import EventServiceStub

        return EventServiceStub(self._transport.channel)

    def watch(
        self,
        filter: str = "",  # noqa: A002 - the API's name
        *,
        resume_token: str = "",
        initial_state: bool = False,
        omit_payload: bool = False,
        heartbeat_s: float = 0,
    ) -> AsyncEventWatch:
        """Watch events from a token, from the present state on, or from now on.

        "Now" is when the watch is entered (``async with``) or its first item is asked for.

        :param filter: for example ``type=GUEST_STATE_CHANGED AND attributes.state=STOPPED``.
        :param resume_token: from a list, or kept from another watch; excludes ``initial_state``.
        :param initial_state: the present guests and hosts first, then InitialDone.
        :param omit_payload: leave the resources out of the events.
        :param heartbeat_s: how often the daemon says that nothing happened; 0: 15.
        :raises ValueError: both a token and ``initial_state``.
        """
        from virtd.v1 import event_pb2 as pb

        if resume_token and initial_state:
            raise ValueError("a watch begins at a token or with the present state, not both")
        request = pb.WatchEventsRequest(
            filter=filter,
            resume_token=resume_token,
            initial_state=initial_state,
            omit_payload=omit_payload,
            heartbeat_s=heartbeat_s,
        )
        return AsyncEventWatch(self, request)

    async def pull(
        self,
        resume_token: str = "",
        *,
        filter: str = "",  # noqa: A002 - the API's name
        max_events: int = 0,
        wait_s: float = 0,
    ) -> EventPage:
        """Events after a token; without one, no events and the present token.

        :param wait_s: wait so long for the first one, at most 60.
        :raises OutOfRange: RESUME_TOKEN_EXPIRED: list again.
        """
        from virtd.v1 import event_pb2 as pb

        request = pb.PullEventsRequest(filter=filter, resume_token=resume_token, max_events=max_events, wait_s=wait_s)
        response = await self._transport.unary(
            self._stub.PullEvents, request, timeout_s=max(self._transport.timeout_s, wait_s + _GRACE_S)
        )
        return EventPage(tuple(response.events), response.resume_token)

    def _open(self, request: WatchEventsRequest) -> io.Stream[WatchEventsRequest, WatchEventsResponse]:
        return self._transport.stream(self._stub.WatchEvents, request)


class AsyncEventWatch:
    """An endless iterator of events that comes back over lost connections and restarts of the daemon.

    It yields events, in order, each once; :class:`Reset` where some may be missing; and
    :class:`InitialDone`.  ``resume_token`` belongs to the last item that was handed out: another
    watch that begins there continues behind it, or, since the daemon sends events in batches, up to
    one batch before (never after).  Use it as a context manager, or close it.  A wait for the next
    item that is given up, as by a timeout, loses nothing: the following one goes on.

    It raises VirtdError for what repetition does not help (a wrong filter, no permission), and
    Unavailable when the daemon does not answer at the very beginning within the client's time
    limit.  Once the daemon has answered, it keeps trying for as long as the client's ``retry_s``
    allows; by default, for ever.
    """

    # No generator, though it would be shorter: one would refer to this object and it to the generator,
    # and a `for` that is left by `break` would keep its stream until the next garbage collection.

    def __init__(self, events: AsyncEvents, request: WatchEventsRequest) -> None:
        self._events = events
        self._request = request
        self._wants_initial = request.initial_state
        self._token = request.resume_token
        self._pending: deque[tuple[WatchItem, str]] = deque()
        self._revision = 0
        self._in_initial = False
        self._shown_initial = False
        self._answered = False
        self._outage: _Outage | None = None
        self._call: io.Stream[WatchEventsRequest, WatchEventsResponse] | None = None
        self._closed = False

    @property
    def resume_token(self) -> str:
        """Where another watch would go on; empty before there is such a place."""
        return self._token

    async def open(self) -> None:
        """Fix where the watch begins.  Entering it does so too.

        :raises VirtdError: as for :meth:`AsyncEvents.pull`.
        """
        if not self._token and not self._wants_initial:
            # A stream "from now on" that is lost before its first token could not be resumed without
            # a gap, so there is a token from the start.
            self._token = (await self._events.pull(filter=self._request.filter)).resume_token
            self._answered = True

    async def close(self) -> None:
        """End the watch; harmless when it has.  A reader comes to its end."""
        self._closed = True
        self._drop()

    async def __aenter__(self) -> Self:
        await self.open()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> WatchItem:
        while not self._over():
            if self._pending:
                item, self._token = self._pending.popleft()
                return item
            await self._advance()
        raise StopAsyncIteration

    async def _advance(self) -> None:
        """Read one response, opening a stream where there is none."""
        await self.open()
        error: VirtdError | None = None
        try:
            call = self._call or self._next_call()
            if call is None:
                return
            response = await call.read()
            if response is not None:
                self._answered, self._outage = True, None
                self._take(response)
                return
        except io.RpcError as rpc_error:
            error = self._events._transport.error(rpc_error)  # noqa: SLF001 - its own service
        except BaseException:
            # Ctrl-C, or a cancelled task: the call must not go on without a reader.
            self._drop()
            raise
        self._drop()
        if not self._over():
            await self._recover(error)

    async def _recover(self, error: VirtdError | None) -> None:
        """After the end of a stream, of which nobody here was the cause: return when to open the next one.

        :param error: how it ended; None: in good order, as by a daemon that stops.
        :raises VirtdError: the error, if another stream would not help, or the patience is at its end.
        """
        if isinstance(error, OutOfRange):
            await self._expired()
            return
        outage = self._outage = self._outage or _Outage(self._patience())
        if error is not None:
            outage.strange_ends += not _is_lost(error)
            if (
                not (_is_lost(error) or _is_strange(error))
                or outage.strange_ends > _STRANGE_ENDS
                or outage.patience.passed
            ):
                self._closed = True
                raise error
        await io.sleep(outage.backoff.next_s(error.retry_after_s if error is not None else None))

    def _over(self) -> bool:
        return self._closed or self._events._transport.closed  # noqa: SLF001 - its own service

    def _drop(self) -> None:
        call, self._call = self._call, None
        if call is not None:
            call.cancel()

    def _next_call(self) -> io.Stream[WatchEventsRequest, WatchEventsResponse] | None:
        """Open the next stream; None: first there is something to hand out, or it is over."""
        from virtd.v1 import event_pb2 as pb

        if self._in_initial and self._shown_initial:
            # What was removed since would not be missed in the second initial state.
            self._in_initial = False
            self._pending.append((Reset("INITIAL_INTERRUPTED", ""), ""))
            return None
        request = pb.WatchEventsRequest()
        request.CopyFrom(self._request)
        request.resume_token = self._token
        request.initial_state = self._wants_initial and not self._token
        self._in_initial = request.initial_state
        self._shown_initial = False
        call = self._call = self._events._open(request)  # noqa: SLF001 - its own service
        if self._closed:
            # By somebody else, who may have come too early to see this call.
            self._drop()
            return None
        return call

    def _take(self, response: WatchEventsResponse) -> None:
        """Lay out what is to be handed out for a response, each item with the token that comes with it."""
        kind = response.WhichOneof("response")
        if kind == "events":
            self._take_batch(response.events)
        elif kind == "bookmark":
            if not self._in_initial:
                self._token = response.bookmark.resume_token
        elif kind == "initial_done":
            self._in_initial = False
            token = response.initial_done.resume_token
            self._pending.append((InitialDone(token), token))
        elif kind == "reset":
            self._reset("LOG_REPLACED", response.reset.resume_token)

    def _take_batch(self, batch: EventBatch) -> None:
        if self._in_initial:
            # These are no changes: their revisions are in no order, and no token leads into their middle.
            self._shown_initial = True
            self._pending.extend((event, self._token) for event in batch.events)
            return
        behind = batch.resume_token or self._token
        fresh = []
        for event in batch.events:
            if event.revision > self._revision:
                self._revision = event.revision
                fresh.append(event)
        if not fresh:
            self._token = behind
            return
        self._pending.extend((event, self._token) for event in fresh[:-1])
        self._pending.append((fresh[-1], behind))

    async def _expired(self) -> None:
        """The daemon no longer holds what came after the token."""
        token = ""
        if not self._wants_initial:
            token = (await self._events.pull(filter=self._request.filter)).resume_token
        self._reset("EXPIRED", token)

    def _reset(self, cause: ResetCause, token: str) -> None:
        # A new log may count its revisions anew.
        self._revision = 0
        self._in_initial = False
        if self._wants_initial:
            # Another stream, that begins with the present state.
            token = ""
            self._drop()
        self._pending.append((Reset(cause, token), token))

    def _patience(self) -> Deadline:
        """How long an outage that begins now is borne."""
        transport = self._events._transport  # noqa: SLF001 - its own service
        if self._answered or transport.retry_s is not None:
            return Deadline(transport.retry_s)
        return Deadline(transport.timeout_s)


def _is_lost(error: VirtdError) -> bool:
    """Whether the stream ended for a reason after which it can be resumed."""
    return isinstance(error, Unavailable) or (
        isinstance(error, ResourceExhausted) and error.reason == "WATCHER_TOO_SLOW"
    )


def _is_strange(error: VirtdError) -> bool:
    """Whether it may be a lost connection that gRPC reports in other words (a reset stream, a dying server)."""
    return isinstance(error, Cancelled | Internal) and error.reason.startswith("GRPC_")
