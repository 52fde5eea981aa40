"""From ``google.rpc.Status`` and gRPC's exceptions to :mod:`virtd_client.errors`."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Final, Protocol, cast

from virtd_client import errors
from virtd_client.errors import Code, FieldViolation, NativeError, VirtdError

if TYPE_CHECKING:
    import grpc
    from google.protobuf import any_pb2

    from virtd.v1 import capability_pb2

DETAILS_KEY: Final = "grpc-status-details-bin"
DOMAIN: Final = "virtd"


class StatusMessage(Protocol):
    """``google.rpc.Status``, as far as it is read here."""

    @property
    def code(self) -> int: ...
    @property
    def message(self) -> str: ...
    @property
    def details(self) -> Iterable[any_pb2.Any]: ...


def from_status(status: StatusMessage) -> VirtdError:
    """The error that a Status stands for.

    The details are read in any order and may be missing.  virtd's own ErrorRecord, where it is
    attached, holds everything and wins over the standard details.
    """
    # Imported here: a program that never sees an error need not load these.
    from google.rpc import error_details_pb2

    from virtd.v1 import capability_pb2

    code = _code(status.code)
    reason = ""
    metadata: dict[str, str] = {}
    violations: list[FieldViolation] = []
    actions: list[str] = []
    resource = ""
    retry_after_s: float | None = None
    info = error_details_pb2.ErrorInfo()
    bad_request = error_details_pb2.BadRequest()
    precondition = error_details_pb2.PreconditionFailure()
    resource_info = error_details_pb2.ResourceInfo()
    retry_info = error_details_pb2.RetryInfo()
    record = capability_pb2.ErrorRecord()
    for detail in status.details:
        if detail.Unpack(record):
            return from_record(record, code=code)
        if detail.Unpack(info):
            if info.domain == DOMAIN:
                reason = info.reason
                metadata = dict(info.metadata)
        elif detail.Unpack(bad_request):
            violations = [FieldViolation(v.field, v.description) for v in bad_request.field_violations]
        elif detail.Unpack(precondition):
            actions = [v.subject for v in precondition.violations if v.type == "ALLOWED_ACTION"]
        elif detail.Unpack(resource_info):
            resource = resource_info.resource_name
        elif detail.Unpack(retry_info):
            delay = retry_info.retry_delay
            retry_after_s = delay.seconds + delay.nanos / 1e9
    return errors.error_class(code, reason, "")(
        status.message,
        reason=reason,
        code=code,
        metadata=metadata,
        violations=violations,
        retry_after_s=retry_after_s,
        resource=resource,
        allowed_actions=actions,
    )


def from_record(record: capability_pb2.ErrorRecord, *, code: Code | None = None) -> VirtdError:
    """The error that a record stands for, as in an operation, beside a partial list or in an event.

    :param code: the gRPC code that it came with; without one, the kind's own.
    """
    if code is None:
        cls = errors.KINDS.get(record.kind, errors.Internal)
        code = cls.default_code
    else:
        cls = errors.error_class(code, record.reason, record.kind)
    native = None
    if record.HasField("native"):
        native = NativeError(record.native.call, record.native.code, record.native.message)
    return cls(
        record.message,
        reason=record.reason,
        code=code,
        metadata=record.metadata,
        violations=[FieldViolation(v.field, v.description, tuple(v.alternatives)) for v in record.violations],
        retry_after_s=record.retry_after_s if record.HasField("retry_after_s") else None,
        resource=record.resource,
        allowed_actions=record.allowed_actions,
        native=native,
    )


def from_rpc_error(error: grpc.RpcError, target: str) -> VirtdError:
    """The error that a failed call stands for.

    :param target: what was called, for the message of a connection that failed.
    """
    code = _code(error.code().value[0])
    message = error.details() or code.name
    payload = _details(error)
    if payload is not None:
        from google.protobuf.message import DecodeError
        from google.rpc import status_pb2

        try:
            status = status_pb2.Status.FromString(payload)
        except DecodeError:
            # Whatever stands between may have damaged the trailer; the code and message are still true.
            status = None
        # gRPC's own code wins: a Status that says otherwise did not come from virtd.
        if status is not None and status.code == code:
            return from_status(status)
    if code is Code.UNAVAILABLE:
        return errors.Unavailable(
            f"no daemon answers at {target}: {message}",
            reason=errors.DAEMON_UNREACHABLE,
            code=code,
            metadata={"target": target},
        )
    if code is Code.DEADLINE_EXCEEDED:
        return errors.WaitTimeout(
            f"no answer from {target} in time", reason=errors.CLIENT_TIMEOUT, code=code, metadata={"target": target}
        )
    return errors.error_class(code, "", "")(message, code=code)


def _code(value: int) -> Code:
    try:
        return Code(value)
    except ValueError:
        return Code.UNKNOWN


def _details(error: grpc.RpcError) -> bytes | None:
    # Pairs in both flavours; the stubs know them as something else.
    pairs = cast("Iterable[tuple[str, str | bytes]]", error.trailing_metadata() or ())
    for key, value in pairs:
        if key == DETAILS_KEY and isinstance(value, bytes):
            return value
    return None
