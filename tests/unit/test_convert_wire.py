"""Answers that are put together from encoded parts are the ones that protobuf would write."""

from __future__ import annotations

from datetime import UTC, datetime
from uuid import uuid4

import pytest
from google.longrunning import operations_pb2
from google.rpc import code_pb2
from hypothesis import given
from hypothesis import strategies as st

from virtd.errors import GUEST_EXISTS, ErrorRecord
from virtd.model.event import Event, EventType
from virtd.model.guest import Guest, GuestSpec, GuestStatus
from virtd.model.operation import Operation, OperationState
from virtd.model.snapshot import Snapshot
from virtd.model.storage import Image, Volume
from virtd.rpc.convert import ENCODERS
from virtd.rpc.convert.events import EventEncoder, encode_event
from virtd.rpc.convert.operations import Response, to_longrunning
from virtd.rpc.convert.wire import nested, repeated, tag, varint
from virtd.rpc.status import from_status
from virtd.v1 import event_pb2, guest_pb2, guest_service_pb2, image_pb2, operation_pb2, snapshot_pb2, storage_pb2

NOW = datetime(2026, 1, 2, 3, 4, 5, 678901, tzinfo=UTC)
GUEST = Guest("hosts/a/guests/b", uuid4(), GuestSpec(vcpus=2), GuestStatus(), labels={"env": "x" * 200})


@given(st.lists(st.binary(max_size=400), max_size=5), st.text(st.characters(exclude_categories=["Cs"]), max_size=9))
def test_a_joined_list_is_a_message(names: list[bytes], token: str) -> None:
    guests = [guest_pb2.Guest(display_name=name.hex()) for name in names]
    rest = guest_service_pb2.ListGuestsResponse(next_page_token=token, resume_token="r")
    field = tag(guest_service_pb2.ListGuestsResponse.DESCRIPTOR, "guests")
    joined = repeated(field, (guest.SerializeToString() for guest in guests), rest.SerializeToString())
    rest.guests.extend(guests)
    assert guest_service_pb2.ListGuestsResponse.FromString(joined) == rest


@pytest.mark.parametrize("value", [0, 1, 127, 128, 300, 16383, 16384, 2**32])
def test_varint(value: int) -> None:
    # An int64 field with number 1 is the tag 8 and the same varint.
    event = event_pb2.Event.FromString(b"\x08" + varint(value))
    assert event.revision == value


def test_nested() -> None:
    encoded = nested(tag(guest_service_pb2.GetGuestResponse.DESCRIPTOR, "guest"), ENCODERS.guest(GUEST))
    assert guest_service_pb2.GetGuestResponse.FromString(encoded).guest.name == GUEST.name


# ------------------------------------------------------------------------------------------ events


def _event(type_: EventType, payload: bytes, revision: int = 7) -> Event:
    return Event(revision, NOW, type_, "hosts/a/guests/b", "u", payload, {"state": "RUNNING"})


@pytest.mark.parametrize("type_", list(EventType))
def test_an_event_carries_its_payload_by_type(type_: EventType) -> None:
    decoded = event_pb2.Event.FromString(encode_event(_event(type_, b"")))
    assert decoded.WhichOneof("payload") is None
    assert event_pb2.EventType.Name(decoded.type) == f"EVENT_TYPE_{type_.value}"
    assert (decoded.revision, decoded.resource, decoded.uid) == (7, "hosts/a/guests/b", "u")
    assert decoded.time.ToDatetime(tzinfo=UTC) == NOW
    assert dict(decoded.attributes) == {"state": "RUNNING"}


def test_the_payload_is_taken_as_it_is() -> None:
    payload = ENCODERS.guest(GUEST)
    decoded = event_pb2.Event.FromString(encode_event(_event(EventType.GUEST_CHANGED, payload)))
    assert decoded.guest == guest_pb2.Guest.FromString(payload)
    operation = ENCODERS.operation(Operation("operations/1", "start", GUEST.name))
    decoded = event_pb2.Event.FromString(encode_event(_event(EventType.OPERATION_CHANGED, operation)))
    assert decoded.operation.verb == "start"
    assert not event_pb2.Event.FromString(
        encode_event(_event(EventType.GUEST_CHANGED, payload), payload=False)
    ).HasField("guest")


def test_watchers_share_one_encoding() -> None:
    encoder = EventEncoder(remembered=2)
    event = _event(EventType.GUEST_CHANGED, ENCODERS.guest(GUEST))
    assert encoder.event(event) is encoder.event(event)
    assert encoder.event(event, payload=False) != encoder.event(event)
    for revision in range(5):
        encoder.event(_event(EventType.HOST_CHANGED, b"", revision))
    assert len(encoder._cache) == 2
    # An equal event that is another object is encoded on its own, and equally.
    assert encoder.event(_event(EventType.GUEST_CHANGED, event.payload)) == encoder.event(event)


def test_a_batch_and_a_pull() -> None:
    encoder = EventEncoder()
    events = [_event(EventType.GUEST_ADDED, ENCODERS.guest(GUEST), n) for n in (1, 2, 3)]
    batch = event_pb2.WatchEventsResponse.FromString(encoder.batch(events, "t"))
    assert batch.WhichOneof("response") == "events"
    assert [event.revision for event in batch.events.events] == [1, 2, 3]
    assert batch.events.resume_token == "t"
    assert batch.events.events[0].guest.labels["env"] == "x" * 200
    pulled = event_pb2.PullEventsResponse.FromString(encoder.pull(events[:1], "p"))
    assert (len(pulled.events), pulled.resume_token) == (1, "p")
    bare = event_pb2.WatchEventsResponse.FromString(encoder.batch(events, "t", payload=False))
    assert bare.events.events[0].WhichOneof("payload") is None


# -------------------------------------------------------------------------------------- operations


def _operation(state: OperationState, error: ErrorRecord | None = None) -> Operation:
    return Operation("operations/1", "create", GUEST.name, state, error=error, result_data={"k": "v"}, create_time=NOW)


@pytest.mark.parametrize("state", [OperationState.PENDING, OperationState.RUNNING])
def test_an_operation_under_way(state: OperationState) -> None:
    message = to_longrunning(_operation(state), GUEST)
    assert not message.done
    assert message.WhichOneof("result") is None
    metadata = operation_pb2.OperationMetadata()
    assert message.metadata.Unpack(metadata)
    assert metadata.state == operation_pb2.OperationState.Value(f"OPERATION_STATE_{state.value}")
    assert metadata.create_time.ToDatetime(tzinfo=UTC) == NOW


@pytest.mark.parametrize(
    ("response", "kind"),
    [
        (GUEST, guest_pb2.Guest),
        (Snapshot("hosts/a/guests/b/snapshots/c"), snapshot_pb2.Snapshot),
        (Volume("hosts/a/pools/p/volumes/v"), storage_pb2.Volume),
        (Image("images/i"), image_pb2.Image),
        (None, operation_pb2.OperationResult),
    ],
)
def test_the_response_of_a_success(response: Response | None, kind: type) -> None:
    message = to_longrunning(_operation(OperationState.SUCCEEDED), response)
    assert message.done
    answer = kind()
    assert message.response.Unpack(answer)
    if response is None:
        assert (answer.target, dict(answer.data)) == (GUEST.name, {"k": "v"})
    else:
        assert answer.name == response.name


def test_the_error_of_a_failure() -> None:
    record = ErrorRecord("AlreadyExists", GUEST_EXISTS.name, "b exists", resource=GUEST.name)
    message = to_longrunning(_operation(OperationState.FAILED, record), None)
    assert message.error.code == code_pb2.ALREADY_EXISTS
    assert from_status(message.error) == record
    cancelled = to_longrunning(_operation(OperationState.CANCELLED), None)
    assert cancelled.error.code == code_pb2.CANCELLED
    assert from_status(cancelled.error).reason == "OPERATION_CANCELLED"
    # A failed operation always has an error: without one, clients would take it for a success.
    nameless = to_longrunning(_operation(OperationState.FAILED), None)
    assert nameless.error.code == code_pb2.INTERNAL
    assert isinstance(nameless, operations_pb2.Operation)
