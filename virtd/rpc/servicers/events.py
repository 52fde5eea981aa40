"""virtd.v1.EventService."""
# ruff: noqa: N802 - the methods have the RPCs' names

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing
from typing import Final, cast

from virtd.errors import DAEMON_STOPPING, UnavailableError
from virtd.rpc.context import Context, current
from virtd.rpc.convert.events import EventEncoder
from virtd.rpc.servicers.base import Servicer
from virtd.service import Services
from virtd.service.events import WatchBatch, WatchBookmark, WatchInitialDone, WatchItem
from virtd.v1 import event_pb2 as pb

_HEARTBEAT_S: Final = 15.0
_MIN_HEARTBEAT_S: Final = 1.0
_MAX_HEARTBEAT_S: Final = 3600.0
_PULL_DEFAULT: Final = 100
_PULL_MAX: Final = 1000
_MAX_WAIT_S: Final = 60.0


class EventServicer(Servicer):
    """The event log.  Every event is encoded once, however many watch."""

    def __init__(self, services: Services) -> None:
        super().__init__(services)
        self._encoder = EventEncoder()

    async def WatchEvents(self, request: pb.WatchEventsRequest, _context: Context) -> AsyncIterator[bytes]:
        """Events as they happen, until the caller ends it or the daemon stops."""
        token = request.resume_token
        watch = self.services.events.watch(
            request.filter, token, request.initial_state, _heartbeat(request.heartbeat_s)
        )
        try:
            async with aclosing(cast("AsyncGenerator[WatchItem]", watch)) as items:
                async for item in items:
                    token = item.token
                    yield self._encode(item, payload=not request.omit_payload)
        except asyncio.CancelledError:
            if current().draining and token:
                yield self._bookmark(token)
            raise
        # The log has closed.  An end without an error would look like the end of all events.
        if token:
            yield self._bookmark(token)
        raise UnavailableError(DAEMON_STOPPING, "the daemon is shutting down", retry_after_s=1.0)

    async def PullEvents(self, request: pb.PullEventsRequest, _context: Context) -> bytes:
        """Events after a token."""
        events, token = await self.services.events.pull(
            request.filter,
            request.resume_token,
            min(request.max_events or _PULL_DEFAULT, _PULL_MAX),
            current().within_deadline(min(request.wait_s, _MAX_WAIT_S)),
        )
        return self._encoder.pull(events, token)

    def _bookmark(self, token: str) -> bytes:
        """The last word to a watcher: where to go on with the restarted daemon."""
        return self._encode(WatchBookmark(token), payload=False)

    def _encode(self, item: WatchItem, *, payload: bool) -> bytes:
        if isinstance(item, WatchBatch):
            return self._encoder.batch(item.events, item.token, payload=payload)
        mark = pb.Bookmark(resume_token=item.token)
        if isinstance(item, WatchBookmark):
            return pb.WatchEventsResponse(bookmark=mark).SerializeToString()
        if isinstance(item, WatchInitialDone):
            return pb.WatchEventsResponse(initial_done=mark).SerializeToString()
        return pb.WatchEventsResponse(reset=mark).SerializeToString()


def _heartbeat(seconds: float) -> float:
    return min(max(seconds or _HEARTBEAT_S, _MIN_HEARTBEAT_S), _MAX_HEARTBEAT_S)
