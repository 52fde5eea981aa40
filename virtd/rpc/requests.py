"""What is checked of every request, whatever its method, before anybody looks at what it asks for.

* **Unknown fields** are refused.  A newer client that asks an older daemon for something it does
  not know must not be told "done": a guest without the protection that was asked for is worse than
  an error.
* **Texts** hold no characters that the hypervisors' XML cannot carry (NUL and most control
  characters).  Arguments and environment of a guest command may hold all but NUL.
* **Enum numbers** are known; **numbers** are finite; sizes of pages and spans of time are not
  negative; a ``request_id`` is a UUID.

Each violation names its field by its path in the request (``guest.spec.disks[0].name``).  All of
them are reported at once, up to a limit.
"""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Iterable, Iterator
from typing import Any, Final, cast

from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.message import Message
from google.protobuf.unknown_fields import UnknownFieldSet

from virtd.errors import FIELD_INVALID, FieldViolation, InvalidArgumentError
from virtd.model.names import shown
from virtd.rpc.convert.generic import join

_MAX_VIOLATIONS: Final = 20
_UUID: Final = re.compile(r"[0-9a-fA-F]{8}(-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}")
# What XML 1.0 cannot hold, and DEL.
_FORBIDDEN: Final = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f\ufffe\uffff]")
_NUL: Final = re.compile("\x00")
_RAW_TEXTS: Final = frozenset({"virtd.v1.ExecCommandRequest.arguments", "virtd.v1.ExecCommandRequest.environment"})
_COUNTS: Final = frozenset({"page_size", "max_events"})
_SECONDS: Final = "_s"

# Output-only parts of a resource that stands in a request are ignored (AIP-203), so that a resource
# that was read can be sent back; nothing in them is checked.
OUTPUT_ONLY: Final = frozenset(
    {
        "virtd.v1.Guest.uid",
        "virtd.v1.Guest.status",
        "virtd.v1.Guest.native_ref",
        "virtd.v1.Guest.generation",
        "virtd.v1.Guest.create_time",
        "virtd.v1.Guest.update_time",
    }
)
"""Fields that the daemon does not read in a request.

``Guest.name`` is read by UpdateGuest alone, ``Guest.etag`` by nobody: the request has its own.
"""


def check(request: Message) -> None:
    """Check a request.

    :raises InvalidArgumentError: FIELD_INVALID, with a violation for each field that is wrong.
    """
    violations: list[FieldViolation] = []
    for violation in _message(request, ""):
        violations.append(violation)
        if len(violations) == _MAX_VIOLATIONS:
            break
    if violations:
        first = violations[0]
        more = f" (and {len(violations) - 1} more)" if len(violations) > 1 else ""
        raise InvalidArgumentError(
            FIELD_INVALID, f"{first.field}: {first.description}{more}", violations=tuple(violations)
        )


def fingerprint(method: str, request: Any) -> str:
    """A hash of what is asked for: the method and the request without its ``request_id``."""
    digest = hashlib.sha256(method.encode() + b"\0")
    if getattr(request, "request_id", ""):
        copy = type(request)()
        copy.CopyFrom(request)
        copy.ClearField("request_id")
        request = copy
    digest.update(request.SerializeToString(deterministic=True))
    return digest.hexdigest()


def resource_of(request: Any) -> str:
    """The name of the resource that a request is about, for the audit log; ``""`` for none.

    For a creation it is the name that the new resource would have.
    """
    if isinstance(name := getattr(request, "name", None), str):
        return name
    parent = getattr(request, "parent", "")
    for field in request.DESCRIPTOR.fields:
        if field.name.endswith("_id") and field.name != "request_id":
            own = f"{field.name.removesuffix('_id')}s/{getattr(request, field.name)}"
            return f"{parent}/{own}" if parent else own
    guest = getattr(request, "guest", None)
    return guest.name if guest is not None else parent


# ------------------------------------------------------------------------------------------- walk


def _message(message: Message, path: str) -> Iterator[FieldViolation]:
    descriptor = cast("Descriptor", message.DESCRIPTOR)
    for unknown in cast("Iterable[Any]", UnknownFieldSet(message)):  # the stubs lack __iter__
        yield FieldViolation(
            path or descriptor.name,
            f"field number {unknown.field_number} of {descriptor.full_name} is not known to this daemon",
        )
    for field, value in message.ListFields():
        if field.full_name not in OUTPUT_ONLY:
            yield from _field(field, value, join(path, field.name))


def _field(field: FieldDescriptor, value: Any, path: str) -> Iterator[FieldViolation]:
    if field.message_type is not None and field.message_type.GetOptions().map_entry:
        for key, item in value.items():
            yield from _text(field, key, path)
            yield from _text(field, item, f"{path}[{shown(key)}]")
        return
    items: Iterable[tuple[str, Any]]
    items = ((f"{path}[{index}]", item) for index, item in enumerate(value)) if field.is_repeated else ((path, value),)
    if field.message_type is not None:
        for where, item in items:
            yield from _message(item, where)
        return
    one = _CHECKS.get(field.cpp_type)
    if one is not None:
        for where, item in items:
            yield from one(field, item, where)


def _text(field: FieldDescriptor, value: Any, path: str) -> Iterator[FieldViolation]:
    if isinstance(value, bytes):
        return
    found = (_NUL if field.full_name in _RAW_TEXTS else _FORBIDDEN).search(value)
    if found:
        yield FieldViolation(path, f"{shown(value)} holds the character U+{ord(found[0]):04X}, which is not allowed")
    elif field.name == "request_id" and not _UUID.fullmatch(value):
        yield FieldViolation(path, f"{shown(value)} is not a UUID (such as 123e4567-e89b-42d3-a456-426614174000)")


def _enum(field: FieldDescriptor, value: int, path: str) -> Iterator[FieldViolation]:
    assert field.enum_type is not None
    if value not in field.enum_type.values_by_number:
        known = tuple(entry.name for entry in field.enum_type.values if entry.number)
        yield FieldViolation(path, f"{value} is not a value of {field.enum_type.name}", known)


def _float(field: FieldDescriptor, value: float, path: str) -> Iterator[FieldViolation]:
    if not math.isfinite(value):
        yield FieldViolation(path, f"{value} is not a finite number")
    elif field.name.endswith(_SECONDS) and value < 0:
        yield FieldViolation(path, f"{value} is negative; it is a span of time in seconds")


def _count(field: FieldDescriptor, value: int, path: str) -> Iterator[FieldViolation]:
    if field.name in _COUNTS and value < 0:
        yield FieldViolation(path, f"{value} is negative")


_CHECKS: Final[dict[int, Any]] = {
    FieldDescriptor.CPPTYPE_STRING: _text,
    FieldDescriptor.CPPTYPE_ENUM: _enum,
    FieldDescriptor.CPPTYPE_DOUBLE: _float,
    FieldDescriptor.CPPTYPE_INT32: _count,
}
