"""Events on the wire: encoded once, shared by every watcher."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable
from typing import Final

from virtd.model.event import Event, EventType
from virtd.rpc.convert.wire import nested, repeated, tag
from virtd.v1 import event_pb2 as pb

_PAYLOAD_FIELDS: Final[dict[EventType, str]] = {
    EventType.GUEST_ADDED: "guest",
    EventType.GUEST_CHANGED: "guest",
    EventType.GUEST_STATE_CHANGED: "guest",
    EventType.OPERATION_CHANGED: "operation",
    EventType.HOST_ADDED: "host",
    EventType.HOST_CHANGED: "host",
}
"""What the payload of an event is; the other types have none."""

_PAYLOAD_TAGS: Final = {type_: tag(pb.Event.DESCRIPTOR, field) for type_, field in _PAYLOAD_FIELDS.items()}
_NUMBERS: Final = {type_: pb.EventType.Value(f"EVENT_TYPE_{type_.value}") for type_ in EventType}
_EVENTS_OF_BATCH: Final = tag(pb.EventBatch.DESCRIPTOR, "events")
_EVENTS_OF_PULL: Final = tag(pb.PullEventsResponse.DESCRIPTOR, "events")
_BATCH: Final = tag(pb.WatchEventsResponse.DESCRIPTOR, "events")


def encode_event(event: Event, *, payload: bool = True) -> bytes:
    """The encoding of ``virtd.v1.Event``; the payload's bytes are taken as they are."""
    message = pb.Event(
        revision=event.revision,
        type=_NUMBERS[event.type],
        resource=event.resource,
        uid=event.uid,
        attributes=dict(event.attributes),
    )
    message.time.FromDatetime(event.time)
    encoded = message.SerializeToString()
    field = _PAYLOAD_TAGS.get(event.type)
    if payload and event.payload and field is not None:
        return encoded + nested(field, event.payload)
    return encoded


class EventEncoder:
    """Encodes the answers of the event service and remembers the last events that it encoded.

    :param remembered: how many events; the memory that it takes is that times their size.
    """

    def __init__(self, remembered: int = 1024) -> None:
        self._remembered = remembered
        self._cache: OrderedDict[tuple[int, bool], tuple[Event, bytes]] = OrderedDict()

    def event(self, event: Event, *, payload: bool = True) -> bytes:
        """As :func:`encode_event`; watchers of the same event get the same bytes."""
        # The entry keeps the event alive, so its id cannot come to mean another one.
        key = (id(event), payload)
        found = self._cache.get(key)
        if found is not None:
            return found[1]
        encoded = encode_event(event, payload=payload)
        self._cache[key] = (event, encoded)
        if len(self._cache) > self._remembered:
            self._cache.popitem(last=False)
        return encoded

    def batch(self, events: Iterable[Event], token: str, *, payload: bool = True) -> bytes:
        """A ``WatchEventsResponse`` with events."""
        rest = pb.EventBatch(resume_token=token).SerializeToString()
        parts = (self.event(event, payload=payload) for event in events)
        return nested(_BATCH, repeated(_EVENTS_OF_BATCH, parts, rest))

    def pull(self, events: Iterable[Event], token: str) -> bytes:
        """A ``PullEventsResponse``."""
        rest = pb.PullEventsResponse(resume_token=token).SerializeToString()
        return repeated(_EVENTS_OF_PULL, (self.event(event) for event in events), rest)
