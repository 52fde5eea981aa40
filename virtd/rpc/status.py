"""Errors on the wire: :class:`virtd.errors.ErrorRecord` to ``google.rpc.Status`` and back.

The code follows from the error's kind; the details are those of api.md's table, and always the
whole ``virtd.v1.ErrorRecord``, from which a client can rebuild the error.

A status travels in HTTP/2 trailers, and gRPC implementations refuse headers of more than 8 KiB in
all: an error that is too long would reach its caller as "RESOURCE_EXHAUSTED: received trailing
metadata size exceeds limit" and the cause would be lost.  :func:`trailers` therefore shortens the
details, step by step, until they fit; the ErrorInfo then carries ``truncated: true``.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from typing import Final

from google.protobuf.any_pb2 import Any as AnyMessage
from google.protobuf.message import DecodeError, Message
from google.rpc import code_pb2, error_details_pb2, status_pb2

from virtd.errors import (
    CAPABILITY_UNSUPPORTED,
    DOMAIN,
    INTERNAL_ERROR,
    INVALID_STATE,
    ErrorRecord,
    VirtdError,
    catalogue,
)
from virtd.rpc.convert.generic import from_message, to_message
from virtd.v1 import capability_pb2

CODES: Final[dict[str, int]] = {
    "InvalidArgument": code_pb2.INVALID_ARGUMENT,
    "NotFound": code_pb2.NOT_FOUND,
    "AlreadyExists": code_pb2.ALREADY_EXISTS,
    "FailedPrecondition": code_pb2.FAILED_PRECONDITION,
    "Unsupported": code_pb2.FAILED_PRECONDITION,
    "Conflict": code_pb2.ABORTED,
    "Aborted": code_pb2.ABORTED,
    "ResourceExhausted": code_pb2.RESOURCE_EXHAUSTED,
    "OutOfRange": code_pb2.OUT_OF_RANGE,
    "Unavailable": code_pb2.UNAVAILABLE,
    "PermissionDenied": code_pb2.PERMISSION_DENIED,
    "DeadlineExceeded": code_pb2.DEADLINE_EXCEEDED,
    "Cancelled": code_pb2.CANCELLED,
    "Internal": code_pb2.INTERNAL,
}
"""The gRPC code of each kind of error."""

DETAILS_KEY: Final = "grpc-status-details-bin"

# Details are base64 on the wire (4/3), and the message stands in a header of its own as well.
_MAX_DETAILS: Final = 4096
_MAX_MESSAGE: Final = 512
# How far texts and lists are cut, tried in turn: (characters of a text, entries of a list).
_CUTS: Final = ((1000, 20), (300, 10), (120, 5), (60, 2), (30, 1))

_RESOURCE_TYPES: Final = {
    "hosts": "virtd.v1.Host",
    "guests": "virtd.v1.Guest",
    "snapshots": "virtd.v1.Snapshot",
    "backups": "virtd.v1.Backup",
    "pools": "virtd.v1.Pool",
    "volumes": "virtd.v1.Volume",
    "networks": "virtd.v1.Network",
    "images": "virtd.v1.Image",
    "operations": "google.longrunning.Operation",
}


def to_status(error: VirtdError | ErrorRecord) -> status_pb2.Status:
    """The whole error, of any length (for operations; in trailers use :func:`trailers`)."""
    record = error.record if isinstance(error, VirtdError) else error
    try:
        return _build(record)
    except UnicodeEncodeError:
        # A native message may hold bytes that are no UTF-8; cutting also escapes them.
        return _build(_cut(record, *_CUTS[0]))


def _build(record: ErrorRecord) -> status_pb2.Status:
    status = status_pb2.Status(code=CODES.get(record.kind, code_pb2.INTERNAL), message=record.message)
    for detail in _details(record):
        packed = AnyMessage()
        packed.Pack(detail)
        status.details.append(packed)
    return status


def trailers(record: ErrorRecord) -> status_pb2.Status:
    """The error, short enough for gRPC's trailing metadata."""
    status = to_status(record)
    for length, entries in _CUTS:
        if status.ByteSize() <= _MAX_DETAILS:
            break
        status = to_status(_cut(record, length, entries))
    status.message = _shorten(status.message, _MAX_MESSAGE)
    return status


def from_status(status: status_pb2.Status) -> ErrorRecord:
    """The record that a status carries, or the best that can be made of a stranger's status."""
    info = error_details_pb2.ErrorInfo()
    for detail in status.details:
        try:
            if detail.Is(capability_pb2.ErrorRecord.DESCRIPTOR):
                packed = capability_pb2.ErrorRecord()
                detail.Unpack(packed)
                return from_message(packed, ErrorRecord)
            if detail.Is(error_details_pb2.ErrorInfo.DESCRIPTOR):
                detail.Unpack(info)
        except DecodeError:
            continue
    kinds = {code: kind for kind, code in reversed(CODES.items())}
    kind = kinds.get(status.code, INTERNAL_ERROR.kind)
    known = catalogue().get(info.reason) if info.domain == DOMAIN else None
    if known is not None:
        return ErrorRecord(known.kind, known.name, status.message, dict(info.metadata))
    return ErrorRecord(kind, info.reason or INTERNAL_ERROR.name, status.message, dict(info.metadata))


# ----------------------------------------------------------------------------------------- details


def _details(record: ErrorRecord) -> Iterable[Message]:
    yield _error_info(record)
    if record.kind == "InvalidArgument" and record.violations:
        yield error_details_pb2.BadRequest(
            field_violations=[
                error_details_pb2.BadRequest.FieldViolation(
                    field=violation.field,
                    description=_with_alternatives(violation.description, violation.alternatives),
                    reason=record.reason,
                )
                for violation in record.violations
            ]
        )
    if record.kind in {"FailedPrecondition", "Unsupported"}:
        yield _precondition(record)
    if record.kind == "ResourceExhausted":
        violation = error_details_pb2.QuotaFailure.Violation(subject=record.resource, description=record.message)
        yield error_details_pb2.QuotaFailure(violations=[violation])
    if record.resource:
        yield _resource(record.resource, record.message)
    blocking = record.metadata.get("operation", "")
    if blocking and blocking != record.resource:
        yield _resource(blocking, "the operation that is at work")
    if record.retry_after_s is not None:
        retry = error_details_pb2.RetryInfo()
        retry.retry_delay.FromMicroseconds(max(0, round(record.retry_after_s * 1e6)))
        yield retry
    yield to_message(record, capability_pb2.ErrorRecord)


def _error_info(record: ErrorRecord) -> error_details_pb2.ErrorInfo:
    info = error_details_pb2.ErrorInfo(reason=record.reason, domain=DOMAIN, metadata=dict(record.metadata))
    if record.native is not None:
        info.metadata["native_call"] = record.native.call
        info.metadata["native_code"] = record.native.code
        info.metadata["native_message"] = record.native.message
    reason = catalogue().get(record.reason)
    if reason is not None:
        info.metadata.setdefault("remedy", reason.remedy)
    return info


def _precondition(record: ErrorRecord) -> error_details_pb2.PreconditionFailure:
    kind = error_details_pb2.PreconditionFailure.Violation
    if record.reason == INVALID_STATE.name and record.allowed_actions:
        violations = [
            kind(type="ALLOWED_ACTION", subject=action, description=f"{action} is allowed now")
            for action in record.allowed_actions
        ]
    elif record.reason == CAPABILITY_UNSUPPORTED.name:
        capability, why = record.metadata.get("capability", ""), record.metadata.get("why", record.message)
        violations = [kind(type=record.reason, subject=capability, description=why)]
    else:
        violations = [kind(type=record.reason, subject=record.resource, description=record.message)]
    return error_details_pb2.PreconditionFailure(violations=violations)


def _resource(name: str, description: str) -> error_details_pb2.ResourceInfo:
    # hosts/a/guests/b: the collection is the last but one part.
    collection = name.split("/")[-2] if "/" in name else ""
    kind = _RESOURCE_TYPES.get(collection, "")
    return error_details_pb2.ResourceInfo(resource_type=kind, resource_name=name, description=description)


def _with_alternatives(description: str, alternatives: tuple[str, ...]) -> str:
    return f"{description} (possible here: {', '.join(alternatives)})" if alternatives else description


# ---------------------------------------------------------------------------------------- cutting


def _cut(record: ErrorRecord, length: int, entries: int) -> ErrorRecord:
    """The record with every text and list cut, marked as such."""
    metadata = {
        _shorten(key, 64): _shorten(value, length) for key, value in list(record.metadata.items())[: entries + 3]
    }
    native = record.native
    return replace(
        record,
        message=_shorten(record.message, length),
        metadata={**metadata, "truncated": "true"},
        resource=_shorten(record.resource, 300),
        violations=tuple(
            replace(
                violation,
                field=_shorten(violation.field, length),
                description=_shorten(violation.description, length),
                alternatives=tuple(_shorten(text, length) for text in violation.alternatives[:entries]),
            )
            for violation in record.violations[:entries]
        ),
        native=native
        and replace(
            native,
            call=_shorten(native.call, length),
            code=_shorten(native.code, length),
            message=_shorten(native.message, length),
        ),
        allowed_actions=tuple(_shorten(text, length) for text in record.allowed_actions[:entries]),
    )


def _shorten(text: str, length: int) -> str:
    """``text`` in at most ``length`` bytes of UTF-8; the cut shows."""
    encoded = text.encode("utf-8", "backslashreplace")
    if len(encoded) <= length:
        return encoded.decode()
    return encoded[: length - 3].decode("utf-8", "ignore") + "..."
