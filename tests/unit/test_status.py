"""Errors as google.rpc.Status: codes, details, size, and the way back."""

from __future__ import annotations

from typing import Any

import pytest
from google.rpc import code_pb2, error_details_pb2, status_pb2
from hypothesis import given, settings
from hypothesis import strategies as st

from virtd import errors
from virtd.errors import ErrorRecord, FieldViolation, NativeError, VirtdError
from virtd.rpc.status import CODES, from_status, to_status, trailers
from virtd.v1 import capability_pb2

GUEST = "hosts/a/guests/b"


def details(status: status_pb2.Status, kind: Any) -> list[Any]:
    found = []
    for packed in status.details:
        if packed.Is(kind.DESCRIPTOR):
            message = kind()
            packed.Unpack(message)
            found.append(message)
    return found


def one(status: status_pb2.Status, kind: Any) -> Any:
    (message,) = details(status, kind)
    return message


def test_every_kind_has_a_code_and_every_reason_a_kind() -> None:
    assert set(CODES) == set(errors._KINDS)
    assert {reason.kind for reason in errors.catalogue().values()} <= set(CODES)


@pytest.mark.parametrize(
    ("reason", "code"),
    [
        ("FIELD_INVALID", "INVALID_ARGUMENT"),
        ("FIELD_UNSUPPORTED", "INVALID_ARGUMENT"),
        ("CAPABILITY_UNSUPPORTED", "FAILED_PRECONDITION"),
        ("INVALID_STATE", "FAILED_PRECONDITION"),
        ("OPERATION_IN_PROGRESS", "ABORTED"),
        ("ETAG_MISMATCH", "ABORTED"),
        ("REQUEST_ID_REUSED", "INVALID_ARGUMENT"),
        ("GUEST_NOT_FOUND", "NOT_FOUND"),
        ("GUEST_EXISTS", "ALREADY_EXISTS"),
        ("ACCESS_DENIED", "PERMISSION_DENIED"),
        ("STORAGE_FULL", "RESOURCE_EXHAUSTED"),
        ("RESUME_TOKEN_EXPIRED", "OUT_OF_RANGE"),
        ("HOST_UNREACHABLE", "UNAVAILABLE"),
        ("SHUTDOWN_IGNORED", "DEADLINE_EXCEEDED"),
        ("OPERATION_CANCELLED", "CANCELLED"),
        ("BACKEND_ERROR", "INTERNAL"),
    ],
)
def test_the_table_of_codes(reason: str, code: str) -> None:
    entry = errors.catalogue()[reason]
    status = to_status(ErrorRecord(entry.kind, reason, "text"))
    assert code_pb2.Code.Name(status.code) == code
    info = one(status, error_details_pb2.ErrorInfo)
    assert (info.reason, info.domain) == (reason, "virtd")
    assert info.metadata["remedy"] == entry.remedy


def test_bad_request_names_the_field_and_the_alternatives() -> None:
    error = errors.invalid_field("guest.spec.firmware", "is not known", "BIOS", "UEFI")
    violation = one(to_status(error), error_details_pb2.BadRequest).field_violations[0]
    assert violation.field == "guest.spec.firmware"
    assert violation.description == "is not known (possible here: BIOS, UEFI)"


def test_invalid_state_lists_the_allowed_actions() -> None:
    error = errors.FailedPreconditionError(
        errors.INVALID_STATE, "it is stopped", resource=GUEST, allowed_actions=("start", "delete")
    )
    violations = one(to_status(error), error_details_pb2.PreconditionFailure).violations
    assert [(violation.type, violation.subject) for violation in violations] == [
        ("ALLOWED_ACTION", "start"),
        ("ALLOWED_ACTION", "delete"),
    ]


def test_unsupported_names_the_capability_and_why() -> None:
    (violation,) = one(
        to_status(errors.unsupported("guest.pause", "no such thing")), error_details_pb2.PreconditionFailure
    ).violations
    assert (violation.type, violation.subject) == ("CAPABILITY_UNSUPPORTED", "guest.pause")
    assert violation.description == "no such thing"


def test_a_conflict_names_the_blocking_operation_and_when_to_try_again() -> None:
    error = errors.ConflictError(
        errors.OPERATION_IN_PROGRESS, "busy", resource=GUEST, metadata={"operation": "operations/7"}, retry_after_s=1.5
    )
    status = to_status(error)
    assert [(info.resource_type, info.resource_name) for info in details(status, error_details_pb2.ResourceInfo)] == [
        ("virtd.v1.Guest", GUEST),
        ("google.longrunning.Operation", "operations/7"),
    ]
    assert one(status, error_details_pb2.RetryInfo).retry_delay.ToMicroseconds() == 1_500_000


def test_quota_and_native_error() -> None:
    error = errors.ResourceExhaustedError(
        errors.STORAGE_FULL,
        "pool p is full",
        resource="hosts/a/pools/p",
        native=NativeError("virStorageVolCreateXML", "1", "No space left on device"),
    )
    status = to_status(error)
    assert one(status, error_details_pb2.QuotaFailure).violations[0].subject == "hosts/a/pools/p"
    metadata = one(status, error_details_pb2.ErrorInfo).metadata
    assert metadata["native_call"] == "virStorageVolCreateXML"
    assert (metadata["native_code"], metadata["native_message"]) == ("1", "No space left on device")


@pytest.mark.parametrize("reason", list(errors.catalogue().values()), ids=lambda reason: reason.name)
def test_there_and_back(reason: errors.Reason) -> None:
    record = ErrorRecord(
        reason.kind,
        reason.name,
        "what is wrong",
        {"key": "value"},
        (FieldViolation("a.b[0]", "is wrong", ("x",)),),
        NativeError("call", "3", "text"),
        GUEST,
        2.5,
        ("start",),
    )
    assert from_status(to_status(record)) == record
    assert from_status(trailers(record)) == record
    error = errors.from_record(from_status(trailers(record)))
    assert isinstance(error, VirtdError)
    assert error.reason is reason


def test_a_strangers_status() -> None:
    bare = status_pb2.Status(code=code_pb2.NOT_FOUND, message="gone")
    assert from_status(bare).kind == "NotFound"
    assert from_status(bare).message == "gone"
    info = status_pb2.Status(code=code_pb2.NOT_FOUND, message="gone")
    info.details.add().Pack(error_details_pb2.ErrorInfo(reason="GUEST_NOT_FOUND", domain="virtd"))
    assert from_status(info).reason == "GUEST_NOT_FOUND"
    broken = status_pb2.Status(code=code_pb2.ABORTED, message="x")
    broken.details.add(type_url="type.googleapis.com/virtd.v1.ErrorRecord", value=b"\xff\xff\xff")
    assert from_status(broken).kind == "Conflict"
    assert from_status(status_pb2.Status(code=999)).kind == "Internal"


# ------------------------------------------------------------------------------------------- size


def test_a_long_error_is_cut_to_fit_the_trailers() -> None:
    record = ErrorRecord(
        "InvalidArgument",
        "FIELD_INVALID",
        "m" * 100_000,
        {f"key{n}": "v" * 5000 for n in range(100)},
        tuple(FieldViolation(f"guest.spec.disks[{n}].name", "d" * 3000, ("a" * 300,) * 50) for n in range(500)),
        NativeError("call", "1", "n" * 50_000),
        "hosts/" + "h" * 5000,
        allowed_actions=("a" * 100,) * 300,
    )
    status = trailers(record)
    assert status.ByteSize() <= 4096 + 512
    back = from_status(status)
    assert back.reason == "FIELD_INVALID"
    assert back.violations[0].field == "guest.spec.disks[0].name"
    assert one(status, error_details_pb2.ErrorInfo).metadata["truncated"] == "true"
    # The operation keeps all of it.
    assert from_status(to_status(record)) == record


def test_a_moderately_long_error_keeps_as_much_as_fits() -> None:
    record = ErrorRecord(
        "InvalidArgument",
        "FIELD_INVALID",
        "several fields are wrong",
        violations=tuple(FieldViolation(f"f{n}", "is wrong in its own way", ()) for n in range(18)),
    )
    assert len(from_status(trailers(record)).violations) == 18


@settings(max_examples=60, deadline=None)
@given(st.text(max_size=3000), st.integers(0, 60), st.dictionaries(st.text(max_size=300), st.text(max_size=900)))
def test_whatever_the_error_it_fits(text: str, count: int, metadata: dict[str, str]) -> None:
    # st.text() includes lone surrogates, as native messages may.
    record = ErrorRecord("Internal", "BACKEND_ERROR", text, metadata, (FieldViolation(text, text),) * count)
    status = trailers(record)
    assert status.ByteSize() <= 4096 + 512
    assert one(status, capability_pb2.ErrorRecord).reason == "BACKEND_ERROR"
