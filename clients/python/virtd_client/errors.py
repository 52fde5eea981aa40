# ruff: noqa: N818 - these are the names of kinds of error, as they stand in the API; "Error" would only be repeated
"""What a call can raise: one class per kind of failure, the cause in ``reason``.

Branch on the class or on ``error.reason``, never on the message.  ``reason`` is one of

* the daemon's own stable reasons (``GUEST_NOT_FOUND``, ``INVALID_STATE``, ...; see the reference),
* :data:`DAEMON_UNREACHABLE`, :data:`CLIENT_TIMEOUT`, :data:`LOCAL_FILE_CHANGED` and
  :data:`TRANSFER_DAMAGED`, which this client sets itself,
* ``GRPC_`` and the name of the code, for a failure that carries nothing of virtd's, for example
  from a proxy.

This module imports neither grpc nor protobuf, so that a program can name errors before it needs a
connection.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import IntEnum
from functools import partial
from typing import ClassVar, Final

DAEMON_UNREACHABLE: Final = "DAEMON_UNREACHABLE"
"""No daemon answers at the target, or the connection was lost."""
CLIENT_TIMEOUT: Final = "CLIENT_TIMEOUT"
"""This client's time limit passed.  What the daemon was doing goes on."""
LOCAL_FILE_CHANGED: Final = "LOCAL_FILE_CHANGED"
"""A file that is being sent became shorter."""
TRANSFER_DAMAGED: Final = "TRANSFER_DAMAGED"
"""The bytes that arrived are not those that the daemon sent."""


class Code(IntEnum):
    """The codes of gRPC (``google.rpc.Code``)."""

    OK = 0
    CANCELLED = 1
    UNKNOWN = 2
    INVALID_ARGUMENT = 3
    DEADLINE_EXCEEDED = 4
    NOT_FOUND = 5
    ALREADY_EXISTS = 6
    PERMISSION_DENIED = 7
    RESOURCE_EXHAUSTED = 8
    FAILED_PRECONDITION = 9
    ABORTED = 10
    OUT_OF_RANGE = 11
    UNIMPLEMENTED = 12
    INTERNAL = 13
    UNAVAILABLE = 14
    DATA_LOSS = 15
    UNAUTHENTICATED = 16


@dataclass(frozen=True, slots=True)
class FieldViolation:
    """One field of the request that cannot be accepted.

    ``field`` is its path (``guest.spec.disks[0].name``); ``alternatives`` are values that would be
    accepted there (may be empty).
    """

    field: str
    description: str
    alternatives: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class NativeError:
    """What the hypervisor's own API said, verbatim."""

    call: str
    code: str
    message: str


class VirtdError(Exception):
    """Base of everything that a call raises for a failure of the daemon, the host or the connection.

    ``reason``
        Stable name of the cause.
    ``message``
        One sentence for a person.
    ``code``
        The gRPC code.
    ``metadata``
        Machine-readable facts.
    ``violations``
        The fields concerned, for :class:`InvalidArgument`.
    ``retry_after_s``
        Seconds after which a repetition may succeed, or None.
    ``resource``
        Name of the resource concerned, or ``""``.
    ``allowed_actions``
        Actions that would be legal now, for ``INVALID_STATE``.
    ``native``
        What the hypervisor said, or None.
    """

    default_code: ClassVar[Code] = Code.UNKNOWN
    kind: ClassVar[str] = ""

    def __init_subclass__(cls) -> None:
        # A subclass that sets no code of its own (a client-side refinement) is not what a kind decodes to.
        if "default_code" in cls.__dict__:
            cls.kind = cls.__name__
            KINDS[cls.kind] = cls

    def __init__(
        self,
        message: str,
        *,
        reason: str = "",
        code: Code | None = None,
        metadata: Mapping[str, str] | None = None,
        violations: Sequence[FieldViolation] = (),
        retry_after_s: float | None = None,
        resource: str = "",
        allowed_actions: Sequence[str] = (),
        native: NativeError | None = None,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.code = self.default_code if code is None else code
        self.reason = reason or f"GRPC_{self.code.name}"
        self.metadata: dict[str, str] = dict(metadata or {})
        self.violations = tuple(violations)
        self.retry_after_s = retry_after_s
        self.resource = resource
        self.allowed_actions = tuple(allowed_actions)
        self.native = native

    def __str__(self) -> str:
        return f"{self.reason}: {self.message}"

    @property
    def alternatives(self) -> tuple[str, ...]:
        """Every value that the violations say would be accepted."""
        return tuple(value for violation in self.violations for value in violation.alternatives)

    def __reduce__(self) -> tuple[partial[VirtdError], tuple[str]]:
        # Keyword-only arguments do not survive the default pickling of exceptions.
        rebuild = partial(
            type(self),
            reason=self.reason,
            code=self.code,
            metadata=self.metadata,
            violations=self.violations,
            retry_after_s=self.retry_after_s,
            resource=self.resource,
            allowed_actions=self.allowed_actions,
            native=self.native,
        )
        return rebuild, (self.message,)


KINDS: Final[dict[str, type[VirtdError]]] = {}
"""Kinds of error by the name that the daemon gives them (``ErrorRecord.kind``)."""


class InvalidArgument(VirtdError):
    """The request is wrong whatever the state of the world; see ``violations``."""

    default_code = Code.INVALID_ARGUMENT


class NotFound(VirtdError):
    """The named resource is known to be absent."""

    default_code = Code.NOT_FOUND


class AlreadyExists(VirtdError):
    """The name is taken."""

    default_code = Code.ALREADY_EXISTS


class FailedPrecondition(VirtdError):
    """The request is fine, but not in the present state; see ``allowed_actions``."""

    default_code = Code.FAILED_PRECONDITION


class Unsupported(VirtdError):
    """The host cannot do this at all (``CAPABILITY_UNSUPPORTED``); nothing was done.

    Its code is FAILED_PRECONDITION, but waiting or changing the guest's state never helps, so it is
    not a :class:`FailedPrecondition`.
    """

    default_code = Code.FAILED_PRECONDITION


class Conflict(VirtdError):
    """Another operation works on the resource, or it has changed since it was read (ABORTED)."""

    default_code = Code.ABORTED


class Aborted(VirtdError):
    """An operation ended part-way for an outside cause, for example a crash of the daemon."""

    default_code = Code.ABORTED


class ResourceExhausted(VirtdError):
    """No space, or a limit."""

    default_code = Code.RESOURCE_EXHAUSTED


class OutOfRange(VirtdError):
    """A position that no longer exists, such as an old resume token."""

    default_code = Code.OUT_OF_RANGE


class Unavailable(VirtdError):
    """The daemon, a host or a guest's agent does not answer now; a repetition may succeed."""

    default_code = Code.UNAVAILABLE


class PermissionDenied(VirtdError):
    """The caller may not do this."""

    default_code = Code.PERMISSION_DENIED


class Unauthenticated(VirtdError):
    """The daemon does not know who the caller is."""

    default_code = Code.UNAUTHENTICATED


class DeadlineExceeded(VirtdError):
    """Time ran out: the daemon's, the guest's, or (``CLIENT_TIMEOUT``) this client's."""

    default_code = Code.DEADLINE_EXCEEDED


class WaitTimeout(DeadlineExceeded, TimeoutError):
    """This client stopped waiting (``CLIENT_TIMEOUT``).  The operation, if there is one, goes on."""


class Cancelled(VirtdError):
    """Ended on request.

    Not asyncio's CancelledError: this one is a result, not a signal.
    """

    default_code = Code.CANCELLED


class Unimplemented(VirtdError):
    """The daemon is older than this client and has no such method."""

    default_code = Code.UNIMPLEMENTED


class Internal(VirtdError):
    """A defect, or a native error of unknown meaning; see ``native``."""

    default_code = Code.INTERNAL


_BY_CODE: Final[dict[Code, type[VirtdError]]] = {
    Code.CANCELLED: Cancelled,
    Code.INVALID_ARGUMENT: InvalidArgument,
    Code.DEADLINE_EXCEEDED: DeadlineExceeded,
    Code.NOT_FOUND: NotFound,
    Code.ALREADY_EXISTS: AlreadyExists,
    Code.PERMISSION_DENIED: PermissionDenied,
    Code.RESOURCE_EXHAUSTED: ResourceExhausted,
    Code.FAILED_PRECONDITION: FailedPrecondition,
    Code.ABORTED: Conflict,
    Code.OUT_OF_RANGE: OutOfRange,
    Code.UNIMPLEMENTED: Unimplemented,
    Code.UNAVAILABLE: Unavailable,
    Code.UNAUTHENTICATED: Unauthenticated,
}
# FAILED_PRECONDITION and ABORTED stand for two kinds each; these reasons tell them apart where no kind is sent.
_BY_REASON: Final[dict[str, type[VirtdError]]] = {
    "CAPABILITY_UNSUPPORTED": Unsupported,
    "OPERATION_INTERRUPTED": Aborted,
}


def error_class(code: Code, reason: str, kind: str) -> type[VirtdError]:
    """The class for a failure; a kind that contradicts the code is not believed."""
    by_kind = KINDS.get(kind)
    if by_kind is not None and by_kind.default_code == code:
        return by_kind
    by_reason = _BY_REASON.get(reason)
    if by_reason is not None and by_reason.default_code == code:
        return by_reason
    return _BY_CODE.get(code, Internal)
