"""Use cases of events: watch and pull."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Final

from virtd.errors import RESUME_TOKEN_EXPIRED, OutOfRangeError, ResourceExhaustedError, invalid_field
from virtd.events.log import ForeignTokenError
from virtd.model.event import Event, EventType
from virtd.service.core import Core
from virtd.service.filters import compile_filter

FILTER_FIELDS: Final = ("type", "resource", "uid", "attributes.*")
HEARTBEAT_DEFAULT_S: Final = 15.0
HEARTBEAT_MIN_S: Final = 1.0
PULL_MAX: Final = 1000
PULL_WAIT_MAX_S: Final = 60.0


@dataclass(frozen=True, slots=True)
class WatchBatch:
    """Events, in order, and the token behind them."""

    events: tuple[Event, ...]
    token: str


@dataclass(frozen=True, slots=True)
class WatchBookmark:
    """Nothing matched since; the token moves on."""

    token: str


@dataclass(frozen=True, slots=True)
class WatchInitialDone:
    """The present state has been sent."""

    token: str


@dataclass(frozen=True, slots=True)
class WatchReset:
    """The log was replaced: forget everything, list again, go on from this token."""

    token: str


WatchItem = WatchBatch | WatchBookmark | WatchInitialDone | WatchReset


class Events:
    """Use cases of events."""

    def __init__(self, core: Core) -> None:
        self._core = core
        self.watchers = 0
        """How many watch now (for metrics)."""
        self.on_too_slow: Callable[[], None] = lambda: None

    async def watch(
        self, filter_: str, resume_token: str, initial_state: bool, heartbeat_s: float
    ) -> AsyncIterator[WatchItem]:
        """Events after a token, or from now on; ends when the daemon stops.

        :raises InvalidArgumentError: FILTER_INVALID or FIELD_INVALID.
        :raises OutOfRangeError: RESUME_TOKEN_EXPIRED.
        :raises ResourceExhaustedError: WATCHER_TOO_SLOW.
        """
        match = _match(filter_)
        heartbeat = max(HEARTBEAT_MIN_S, heartbeat_s or HEARTBEAT_DEFAULT_S)
        log = self._core.events
        after: int | None = None
        reset = False
        if resume_token:
            if initial_state:
                raise invalid_field("initial_state", "cannot be combined with resume_token")
            try:
                after = log.parse_token(resume_token)
            except ForeignTokenError:
                reset = True
        subscription = log.subscribe(after, match, buffer=self._core.options.watcher_buffer)
        self.watchers += 1
        try:
            if reset:
                yield WatchReset(subscription.token)
            elif not resume_token:
                for batch in self._initial(match) if initial_state else ():
                    # No token yet: who is cut off in the middle has to start over.
                    yield WatchBatch(batch, "")
                if initial_state:
                    yield WatchInitialDone(subscription.token)
                else:
                    # The first bookmark tells from where a client can resume if nothing ever comes.
                    yield WatchBookmark(subscription.token)
            while (events := await subscription.next_batch(heartbeat)) is not None:
                yield WatchBatch(tuple(events), subscription.token) if events else WatchBookmark(subscription.token)
        except ResourceExhaustedError:
            self.on_too_slow()
            raise
        finally:
            self.watchers -= 1

    async def pull(
        self, filter_: str, resume_token: str, max_events: int, wait_s: float
    ) -> tuple[tuple[Event, ...], str]:
        """The unary form of :meth:`watch`.

        :raises OutOfRangeError: RESUME_TOKEN_EXPIRED, also for a token of another state directory.
        """
        match = _match(filter_)
        if max_events < 0:
            raise invalid_field("max_events", "must not be negative")
        log = self._core.events
        if not resume_token:
            return (), log.token()
        try:
            after = log.parse_token(resume_token)
        except ForeignTokenError:
            raise OutOfRangeError(
                RESUME_TOKEN_EXPIRED, "the token comes from another state directory; list again"
            ) from None
        subscription = log.subscribe(after, match)
        events = await subscription.next_batch(min(max(0.0, wait_s), PULL_WAIT_MAX_S)) or []
        limit = min(max_events or 100, PULL_MAX)
        if len(events) > limit:
            events = events[:limit]
            return tuple(events), log.token(events[-1].revision)
        return tuple(events), subscription.token

    def _initial(self, match: Callable[[Event], bool]) -> list[tuple[Event, ...]]:
        """The present state as events, in the order hosts, guests; their revision is 0."""
        now = datetime.now(UTC)
        blank = Event(0, now, EventType.HOST_ADDED, "")
        events = [
            replace(
                blank,
                resource=host.name,
                payload=self._core.inventory.encoded_host(host),
                attributes={"state": host.state.value},
            )
            for host in self._core.inventory.hosts()
        ]
        events += [
            replace(
                blank,
                type=EventType.GUEST_ADDED,
                resource=view.guest.name,
                uid=str(view.guest.uid),
                payload=view.encoded,
                attributes={"state": view.guest.status.state.value},
            )
            for view in self._core.inventory.guests()
        ]
        chosen = [event for event in events if match(event)]
        return [tuple(chosen[i : i + 100]) for i in range(0, len(chosen), 100)]


def _match(filter_: str) -> Callable[[Event], bool]:
    predicate = compile_filter(filter_, FILTER_FIELDS)
    if not filter_.strip():
        return lambda _event: True

    def match(event: Event) -> bool:
        def lookup(name: str) -> str | None:
            if name == "type":
                return event.type.value
            if name == "resource":
                return event.resource
            if name == "uid":
                return event.uid
            return event.attributes.get(name.removeprefix("attributes."))

        return predicate(lookup)

    return match
