"""Records and messages: complete on both sides, and the same after a round trip."""

from __future__ import annotations

import dataclasses
import importlib
import pkgutil
import types
import typing
from datetime import UTC, datetime
from enum import StrEnum
from uuid import UUID, uuid4

import pytest
from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.message import Message
from hypothesis import given, settings
from hypothesis import strategies as st

import virtd.model
import virtd.v1
from virtd.backend import api
from virtd.errors import ErrorRecord, FieldViolation, InvalidArgumentError, NativeError
from virtd.model import guest as model
from virtd.model.host import Capability, Host
from virtd.model.operation import Operation
from virtd.rpc.convert import ENCODERS, enum_member, from_message, generic, to_message
from virtd.rpc.convert.generic import MESSAGE_ONLY
from virtd.service.changes import FieldChange, UpdatePlan
from virtd.service.downloads import DownloadEnd, DownloadStart
from virtd.service.guests import HostPlan
from virtd.v1 import capability_pb2, guest_pb2, guest_service_pb2, host_pb2, operation_pb2, snapshot_pb2

# Records whose message has another name.
RENAMED = {
    "Operation": "OperationMetadata",
    "OptionSchema": "BackendOption",
    "AgentResult": "ExecCommandResponse",
    "Screenshot": "TakeScreenshotResponse",
}
# Records that are converted by hand, or not at all.
BY_HAND = {
    "MigrationRequest": "MigrationOptions, with the bare id of the host for its name, read by the servicer",
    "Event": "its payload is bytes: convert/events.py",
    "AgentCommand": "built from ExecCommandRequest by the servicer, which knows the default time limit",
    "AgentOutput": "one of ExecStreamResponse's steps: made in the servicer",
    "AgentExit": "as ExecExited: made in the servicer",
    "AgentFileRequest": "built from WriteFileStart and ReadFileRequest by the servicer and the service",
    "GuestName": "a name, not a resource",
    "Change": "a difference within the core; FieldChange shows it",
    "Part": "a part of a path",
}
# Messages of resources that no record stands behind.
NO_RECORD = {
    "MigrationOptions": "see MigrationRequest in BY_HAND",
    "Event": "see BY_HAND",
    "EventBatch": "joined from bytes: convert/events.py",
    "Bookmark": "a token",
    "OperationResult": "made from the operation: convert/operations.py",
    "HostError": "a pair: made in the servicer",
    "ConsoleStart": "read by the servicer",
    "ConsoleAttached": "made in the servicer",
    "ConsoleOutput": "made in the servicer",
    "ConsoleNotice": "made in the servicer",
    "ConsoleTake": "says nothing but itself",
    "ConsoleRelease": "says nothing but itself",
    "ExecStart": "read by the servicer",
    "ExecStarted": "made in the servicer",
    "ExecExited": "see AgentExit in BY_HAND",
    "WriteFileStart": "read by the servicer",
    "UploadStart": "read by the servicer",
    "VolumeUpload": "read by the servicer",
    "ImageUpload": "read by the servicer",
    "DirectoryPool": "read by the servicer",
    "LogicalPool": "read by the servicer",
    "NfsPool": "read by the servicer",
}


def _messages() -> dict[str, type[Message]]:
    found: dict[str, type[Message]] = {}
    for info in pkgutil.iter_modules(virtd.v1.__path__):
        if info.name.endswith("_pb2"):
            module = importlib.import_module(f"virtd.v1.{info.name}")
            for name in module.DESCRIPTOR.message_types_by_name:
                found[name] = getattr(module, name)
    return found


def _records() -> dict[str, type]:
    modules = [
        importlib.import_module(f"virtd.model.{info.name}") for info in pkgutil.iter_modules(virtd.model.__path__)
    ]
    found = {
        value.__name__: value
        for module in modules
        for value in vars(module).values()
        if isinstance(value, type) and dataclasses.is_dataclass(value)
    }
    plans = (HostPlan, UpdatePlan, FieldChange, DownloadStart, DownloadEnd)
    for value in (ErrorRecord, FieldViolation, NativeError, api.FieldVerdict, api.OptionSchema, *plans):
        found[value.__name__] = value
    return found


MESSAGES = _messages()
RECORDS = _records()
PAIRS = [
    (record, MESSAGES[RENAMED.get(name, name)])
    for name, record in sorted(RECORDS.items())
    if name not in BY_HAND and RENAMED.get(name, name) in MESSAGES
]


def test_every_record_has_its_message() -> None:
    unpaired = {name for name in RECORDS if RENAMED.get(name, name) not in MESSAGES}
    assert unpaired <= set(BY_HAND)


def test_every_resource_message_has_its_record() -> None:
    paired = {message.DESCRIPTOR.name for _, message in PAIRS}
    resources = {name for name in MESSAGES if not name.endswith(("Request", "Response"))}
    assert resources - paired - set(NO_RECORD) == set()


@pytest.mark.parametrize(("record", "message"), PAIRS, ids=lambda value: getattr(value, "__name__", ""))
def test_the_fields_are_the_same_on_both_sides(record: type, message: type[Message]) -> None:
    ours = {field.name for field in dataclasses.fields(record)}
    theirs = {field.name for field in message.DESCRIPTOR.fields}
    assert ours == theirs - MESSAGE_ONLY.get(message.DESCRIPTOR.full_name, frozenset())
    generic._plan(record, message.DESCRIPTOR)  # type: ignore[arg-type]  # upb's descriptor class


def test_a_field_on_one_side_only_is_refused() -> None:
    @dataclasses.dataclass(frozen=True, slots=True)
    class NativeError:
        call: str
        code: str

    with pytest.raises(TypeError, match="differ in message"):
        to_message(NativeError("a", "b"), capability_pb2.NativeError)


def test_an_enum_member_on_one_side_only_is_refused() -> None:
    class Short(StrEnum):
        BIOS = "BIOS"

    with pytest.raises(TypeError, match=r"Short and virtd\.v1\.Firmware differ"):
        enum_member(guest_pb2.GuestSpec(), "firmware", Short)


# ------------------------------------------------------------------------------------- round trips

TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=12)
RANGES = {
    FieldDescriptor.TYPE_INT32: (-(2**31), 2**31 - 1),
    FieldDescriptor.TYPE_INT64: (-(2**63), 2**63 - 1),
    FieldDescriptor.TYPE_UINT32: (0, 2**32 - 1),
    FieldDescriptor.TYPE_UINT64: (0, 2**64 - 1),
}


def _values(hint: typing.Any, field: FieldDescriptor) -> st.SearchStrategy[typing.Any]:
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin is types.UnionType:
        (hint,) = (arm for arm in arguments if arm is not types.NoneType)
        return st.none() | _values(hint, field)
    if origin is tuple:
        return st.lists(_values(arguments[0], field), max_size=3).map(tuple)
    if origin is not None:
        return st.dictionaries(TEXT, TEXT, max_size=3)
    if dataclasses.is_dataclass(hint):
        assert field.message_type is not None
        return _records_of(typing.cast("type", hint), field.message_type)
    if issubclass(hint, StrEnum):
        return st.sampled_from(list(hint))
    if hint is int:
        return st.integers(*RANGES[field.type])
    simple: dict[type, st.SearchStrategy[typing.Any]] = {
        str: TEXT,
        bytes: st.binary(max_size=8),
        bool: st.booleans(),
        float: st.floats(allow_nan=False),
        UUID: st.uuids(),
        datetime: st.datetimes(timezones=st.just(UTC)),
    }
    return simple[hint]


def _records_of(record: type, descriptor: Descriptor) -> st.SearchStrategy[typing.Any]:
    hints = typing.get_type_hints(record)
    fields = {field.name: _values(hints[field.name], field) for field in descriptor.fields if field.name in hints}
    groups = [[field.name for field in oneof.fields] for oneof in descriptor.oneofs if not oneof.name.startswith("_")]

    def one_of_each(drawn: tuple[dict[str, typing.Any], int]) -> typing.Any:
        values, choice = drawn
        for group in groups:
            keep = group[choice % len(group)]
            values = {**values, **{name: None for name in group if name != keep}}
        return record(**values)

    return st.tuples(st.fixed_dictionaries(fields), st.integers(0, 7)).map(one_of_each)


@pytest.mark.parametrize(("record", "message"), PAIRS, ids=lambda value: getattr(value, "__name__", ""))
def test_round_trip(record: type, message: type[Message]) -> None:
    @settings(max_examples=25, deadline=None)
    @given(_records_of(record, message.DESCRIPTOR))  # type: ignore[arg-type]  # upb's descriptor class
    def check(value: typing.Any) -> None:
        encoded = to_message(value, message).SerializeToString()
        decoded = message.FromString(encoded)
        back: typing.Any = from_message(decoded, record)
        assert back == value

    check()


def test_encoders_give_the_bytes_of_the_api() -> None:
    guest = model.Guest(
        name="hosts/a/guests/b",
        uid=uuid4(),
        spec=model.GuestSpec(vcpus=0, guest_agent=False),
        status=model.GuestStatus(),
    )
    decoded = guest_pb2.Guest.FromString(ENCODERS.guest(guest))
    assert decoded.uid == str(guest.uid)
    assert decoded.status.state == guest_pb2.GUEST_STATE_UNKNOWN
    # A measured zero and a "no" are not "not said".
    assert decoded.spec.HasField("vcpus")
    assert decoded.spec.HasField("guest_agent")
    assert not decoded.spec.HasField("memory_bytes")
    host = Host("hosts/a", "kvm", "qemu:///system")
    assert host_pb2.Host.FromString(ENCODERS.host(host)).state == host_pb2.HOST_STATE_CONNECTING
    operation = Operation("operations/1", "start", guest.name)
    assert operation_pb2.OperationMetadata.FromString(ENCODERS.operation(operation)).cancellable


def test_a_nested_record_of_defaults_only_is_not_lost() -> None:
    # "No VNC" and "not said" are different wishes.
    spec = model.GuestSpec(graphics=model.GraphicsSpec(vnc=False))
    message = guest_pb2.GuestSpec.FromString(to_message(spec, guest_pb2.GuestSpec).SerializeToString())
    assert message.HasField("graphics")
    assert from_message(message, model.GuestSpec) == spec
    assert from_message(guest_pb2.GuestSpec(), model.GuestSpec).graphics is None


def test_a_native_name_that_is_no_utf8_does_not_break_the_list() -> None:
    guest = model.Guest(
        name="hosts/a/guests/b",
        uid=uuid4(),
        spec=model.GuestSpec(machine="pc\udcff", backend_options={"k\udcff": "v"}),
        status=model.GuestStatus(allowed_actions=("start", "st\udcffop")),
        display_name="caf\udce9",
    )
    decoded = guest_pb2.Guest.FromString(ENCODERS.guest(guest))
    assert decoded.display_name == "caf\\udce9"
    assert decoded.spec.machine == "pc\\udcff"
    assert dict(decoded.spec.backend_options) == {"k\\udcff": "v"}
    assert list(decoded.status.allowed_actions) == ["start", "st\\udcffop"]


# --------------------------------------------------------------------------------------- bad input


def _violation(error: InvalidArgumentError) -> FieldViolation:
    assert error.reason.name == "FIELD_INVALID"
    (violation,) = error.record.violations
    return violation


def test_an_unknown_enum_number_names_its_field_and_the_values() -> None:
    unknown = typing.cast("guest_pb2.DiskBus.ValueType", 77)
    spec = guest_pb2.GuestSpec(disks=[guest_pb2.DiskSpec(name="a"), guest_pb2.DiskSpec(name="b", bus=unknown)])
    with pytest.raises(InvalidArgumentError) as caught:
        from_message(spec, model.GuestSpec, "guest.spec")
    violation = _violation(caught.value)
    assert violation.field == "guest.spec.disks[1].bus"
    assert "77" in violation.description
    assert violation.alternatives == ("DISK_BUS_VIRTIO", "DISK_BUS_SCSI", "DISK_BUS_SATA", "DISK_BUS_IDE")


def test_a_required_enum_that_is_not_set_names_its_field() -> None:
    spec = guest_pb2.GuestSpec(disks=[guest_pb2.DiskSpec(name="a", host_file=guest_pb2.HostFileSource(path="/x"))])
    with pytest.raises(InvalidArgumentError) as caught:
        from_message(spec, model.GuestSpec, "guest.spec")
    assert _violation(caught.value).field == "guest.spec.disks[0].host_file.format"


def test_unspecified_is_the_default() -> None:
    disk = guest_pb2.DiskSpec(name="a", blank=guest_pb2.BlankSource(capacity_bytes=512))
    assert from_message(disk, model.DiskSpec) == model.DiskSpec("a", blank=model.BlankSource(512))


def test_a_malformed_uuid_and_a_time_out_of_range_are_refused() -> None:
    with pytest.raises(InvalidArgumentError) as caught:
        from_message(guest_pb2.Guest(uid="nonsense"), model.Guest, "guest")
    assert _violation(caught.value).field == "guest.uid"
    condition = guest_pb2.Condition(type=guest_pb2.CONDITION_TYPE_BOOTED, status=guest_pb2.CONDITION_STATUS_TRUE)
    condition.change_time.seconds = 2**60
    with pytest.raises(InvalidArgumentError) as caught:
        from_message(condition, model.Condition, "c")
    assert _violation(caught.value).field == "c.change_time"


def test_enum_member() -> None:
    request = guest_service_pb2.WaitGuestRequest(state=guest_pb2.GUEST_STATE_RUNNING)
    assert enum_member(request, "state", model.GuestState) is model.GuestState.RUNNING
    assert enum_member(guest_service_pb2.WaitGuestRequest(), "state", model.GuestState) is None


def test_every_pair_is_tried() -> None:
    # Guards the parametrisation itself: an empty list of pairs would pass everything above.
    assert (Capability, capability_pb2.Capability) in PAIRS
    assert {"Guest", "Host", "Operation", "Snapshot", "Volume", "ErrorRecord"} <= {r.__name__ for r, _ in PAIRS}
    assert MESSAGES["Snapshot"] is snapshot_pb2.Snapshot
