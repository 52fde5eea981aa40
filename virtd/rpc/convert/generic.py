"""One converter between the frozen records of :mod:`virtd.model` and their protobuf messages.

The names of the fields are equal on both sides, so the rules are few and are worked out once per
pair of types:

==========================  ==================================================================
record                      message
==========================  ==================================================================
``str int float bool bytes``  the scalar of that kind
``T | None``                a field with presence; None is "not set"
``StrEnum`` member ``X``    enum value ``PREFIX_X``; ``PREFIX_UNSPECIFIED`` is the field's default
``datetime`` (aware, UTC)   ``google.protobuf.Timestamp``, microseconds
``UUID``                    string; empty is "not set"
dataclass                   message
``tuple[T, ...]``           repeated field
``Mapping[str, str]``       map
==========================  ==================================================================

A oneof is a set of optional fields of which one is not None.  A pair of types whose fields differ
is refused when its plan is made, except for the fields that :data:`MESSAGE_ONLY` names.
"""

from __future__ import annotations

import types
import typing
from collections.abc import Callable, Mapping
from dataclasses import MISSING, Field, dataclass, fields, is_dataclass
from datetime import UTC, datetime
from enum import StrEnum
from typing import Any, Final, TypeVar
from uuid import UUID

from google.protobuf.descriptor import Descriptor, EnumDescriptor, FieldDescriptor
from google.protobuf.message import Message

from virtd.errors import invalid_field

M = TypeVar("M", bound=Message)
R = TypeVar("R")

MESSAGE_ONLY: Final[Mapping[str, frozenset[str]]] = {
    # The sample does not know its guest's name; the servicer adds it.
    "virtd.v1.GuestMetrics": frozenset({"name"}),
}
"""Fields of messages that have no field in the record, by message."""

Write = Callable[[Message, Any], None]
Read = Callable[[Message, str], Any]

_ABSENT: Final = object()
_TIMESTAMP: Final = "google.protobuf.Timestamp"
_PLANS: dict[tuple[type, str], _Plan] = {}


@dataclass(frozen=True, slots=True)
class _Step:
    """How one field is carried over, in both directions."""

    name: str
    write: Write
    read: Read
    required: bool
    optional: bool


@dataclass(frozen=True, slots=True)
class _Plan:
    record: type
    steps: tuple[_Step, ...]

    def fill(self, message: Message, record: Any) -> None:
        for step in self.steps:
            value = getattr(record, step.name)
            if value is not None:
                step.write(message, value)

    def build(self, message: Message, path: str) -> Any:
        values: dict[str, Any] = {}
        for step in self.steps:
            value = step.read(message, path)
            if value is not _ABSENT:
                values[step.name] = value
            elif step.required:
                if not step.optional:
                    raise invalid_field(join(path, step.name), "is required")
                values[step.name] = None
        return self.record(**values)


def to_message(record: object, message_type: type[M]) -> M:
    """The message that says what ``record`` says.

    :raises ValueError: a number of the record does not fit its field.
    """
    message = message_type()
    _plan(type(record), _descriptor(message)).fill(message, record)
    return message


def from_message(message: Message, record_type: type[R], path: str = "") -> R:
    """The record that says what ``message`` says.

    :param path: where the message stands in the request, for error messages.
    :raises InvalidArgumentError: FIELD_INVALID: a required field is not set, an enum number is not
        known, a UUID or a time is malformed.
    """
    record: R = _plan(record_type, _descriptor(message)).build(message, path)
    return record


def enum_member(message: Message, field: str, enum: type[E], path: str = "") -> E | None:
    """The member that an enum field of a request holds, or None for UNSPECIFIED.

    :raises InvalidArgumentError: FIELD_INVALID for a number that is not known.
    """
    descriptor = _descriptor(message).fields_by_name[field]
    value = _read_enum(descriptor, enum)(message, path)
    member: E | None = None if value is _ABSENT else value
    return member


E = TypeVar("E", bound=StrEnum)


def join(path: str, name: str) -> str:
    """The path of a field within the field at ``path``."""
    return f"{path}.{name}" if path else name


def enum_prefix(enum: EnumDescriptor) -> str:
    """``GUEST_STATE_`` for the enum GuestState."""
    unspecified = enum.values_by_number[0].name
    return unspecified.removesuffix("UNSPECIFIED")


# ------------------------------------------------------------------------------------------- plans


def _plan(record: type, descriptor: Descriptor) -> _Plan:
    key = (record, descriptor.full_name)
    plan = _PLANS.get(key)
    if plan is None:
        plan = _PLANS[key] = _make_plan(record, descriptor)
    return plan


def _descriptor(message: Message) -> Descriptor:
    # The stubs also allow for upb's own class, which has the same attributes.
    return typing.cast("Descriptor", message.DESCRIPTOR)


def _make_plan(record: type, descriptor: Descriptor) -> _Plan:
    if not is_dataclass(record):
        message = f"{record.__name__} is not a record that {descriptor.full_name} can carry"
        raise TypeError(message)
    ours = {field.name: field for field in fields(record)}
    theirs = {field.name: field for field in descriptor.fields}
    differing = set(ours) ^ set(theirs) - MESSAGE_ONLY.get(descriptor.full_name, frozenset())
    if differing:
        message = f"{record.__name__} and {descriptor.full_name} differ in {', '.join(sorted(differing))}"
        raise TypeError(message)
    hints = typing.get_type_hints(record)
    return _Plan(record, tuple(_step(field, hints[name], theirs[name]) for name, field in ours.items()))


def _step(field: Field[Any], hint: Any, descriptor: FieldDescriptor) -> _Step:
    optional = False
    if typing.get_origin(hint) in (types.UnionType, typing.Union):
        (hint,) = (arm for arm in typing.get_args(hint) if arm is not types.NoneType)
        optional = True
    required = field.default is MISSING and field.default_factory is MISSING
    write, read = _converters(hint, descriptor, optional=optional)
    return _Step(field.name, write, read, required, optional)


def _converters(hint: Any, descriptor: FieldDescriptor, *, optional: bool) -> tuple[Write, Read]:
    name, origin = descriptor.name, typing.get_origin(hint)
    inner = descriptor.message_type
    if inner is not None and inner.GetOptions().map_entry:
        if typing.get_args(hint) != (str, str):
            raise _mismatch(hint, descriptor)
        return _map_writer(name), lambda message, _path: dict(getattr(message, name))
    if origin is tuple:
        return _repeated(typing.get_args(hint)[0], descriptor)
    if descriptor.is_repeated:
        raise _mismatch(hint, descriptor)
    if inner is not None:
        return _singular_message(hint, descriptor)
    if descriptor.enum_type is not None:
        return _enum_writer(name, hint, descriptor.enum_type), _read_enum(descriptor, hint)
    if hint is UUID:
        return _uuid_writer(name), _read_uuid(name)
    if optional and not descriptor.has_presence:
        raise _mismatch(hint, descriptor)
    return _scalar(hint, descriptor)


def _mismatch(hint: Any, descriptor: FieldDescriptor) -> TypeError:
    return TypeError(f"{descriptor.full_name} cannot carry {hint}")


# ----------------------------------------------------------------------------------------- scalars

_SCALARS: Final[Mapping[type, frozenset[int]]] = {
    str: frozenset({FieldDescriptor.TYPE_STRING}),
    bytes: frozenset({FieldDescriptor.TYPE_BYTES}),
    bool: frozenset({FieldDescriptor.TYPE_BOOL}),
    float: frozenset({FieldDescriptor.TYPE_DOUBLE}),
    int: frozenset(
        {
            FieldDescriptor.TYPE_INT32,
            FieldDescriptor.TYPE_INT64,
            FieldDescriptor.TYPE_UINT32,
            FieldDescriptor.TYPE_UINT64,
        }
    ),
}


def _scalar(hint: Any, descriptor: FieldDescriptor) -> tuple[Write, Read]:
    name = descriptor.name
    if descriptor.type not in _SCALARS.get(hint, ()):
        raise _mismatch(hint, descriptor)

    def write(message: Message, value: Any) -> None:
        setattr(message, name, value)

    def write_text(message: Message, value: Any) -> None:
        try:
            setattr(message, name, value)
        except UnicodeEncodeError:
            setattr(message, name, _utf8(value))

    def read(message: Message, _path: str) -> Any:
        return getattr(message, name)

    def read_present(message: Message, _path: str) -> Any:
        return getattr(message, name) if message.HasField(name) else _ABSENT

    return (write_text if hint is str else write), (read_present if descriptor.has_presence else read)


def _utf8(value: str) -> str:
    # Native names may hold bytes that are no UTF-8 (lone surrogates in Python).  One such guest
    # must not make the whole list impossible to send.
    return value.encode("utf-8", "backslashreplace").decode()


def _uuid_writer(name: str) -> Write:
    def write(message: Message, value: Any) -> None:
        setattr(message, name, str(value))

    return write


def _read_uuid(name: str) -> Read:
    def read(message: Message, path: str) -> Any:
        text = getattr(message, name)
        if not text:
            return _ABSENT
        try:
            return UUID(text)
        except ValueError as error:
            raise invalid_field(join(path, name), "is not a UUID") from error

    return read


# ------------------------------------------------------------------------------------------- enums


def _numbers(enum: type[StrEnum], descriptor: EnumDescriptor) -> dict[StrEnum, int]:
    prefix = enum_prefix(descriptor)
    numbers = {value.name.removeprefix(prefix): value.number for value in descriptor.values if value.number}
    if set(numbers) != {member.value for member in enum}:
        message = f"{enum.__name__} and {descriptor.full_name} differ"
        raise TypeError(message)
    return {member: numbers[member.value] for member in enum}


def _enum_writer(name: str, enum: Any, descriptor: EnumDescriptor) -> Write:
    numbers = _numbers(enum, descriptor)

    def write(message: Message, value: Any) -> None:
        setattr(message, name, numbers[value])

    return write


def _read_enum(descriptor: FieldDescriptor, enum: Any) -> Read:
    name = descriptor.name
    assert descriptor.enum_type is not None
    members = {number: member for member, number in _numbers(enum, descriptor.enum_type).items()}
    known = tuple(value.name for value in descriptor.enum_type.values if value.number)

    def read(message: Message, path: str) -> Any:
        number = getattr(message, name)
        if number == 0:
            return _ABSENT
        try:
            return members[number]
        except KeyError:
            raise invalid_field(join(path, name), f"{number} is not a known value", *known) from None

    return read


# ------------------------------------------------------------------------------- messages, repeated


def _singular_message(hint: Any, descriptor: FieldDescriptor) -> tuple[Write, Read]:
    name, inner = descriptor.name, descriptor.message_type
    assert inner is not None
    if inner.full_name == _TIMESTAMP:
        if hint is not datetime:
            raise _mismatch(hint, descriptor)
        return _time_writer(name), _read_time(name)
    plan = _plan(hint, inner)

    def write(message: Message, value: Any) -> None:
        child = getattr(message, name)
        child.SetInParent()
        plan.fill(child, value)

    def read(message: Message, path: str) -> Any:
        return plan.build(getattr(message, name), join(path, name)) if message.HasField(name) else _ABSENT

    return write, read


def _time_writer(name: str) -> Write:
    def write(message: Message, value: Any) -> None:
        getattr(message, name).FromDatetime(value)

    return write


def _read_time(name: str) -> Read:
    def read(message: Message, path: str) -> Any:
        if not message.HasField(name):
            return _ABSENT
        try:
            return getattr(message, name).ToDatetime(tzinfo=UTC)
        except (ValueError, OverflowError) as error:
            raise invalid_field(join(path, name), "is not a time between the years 1 and 9999") from error

    return read


def _map_writer(name: str) -> Write:
    def write(message: Message, value: Any) -> None:
        target = getattr(message, name)
        try:
            target.update(value)
        except UnicodeEncodeError:
            target.update({_utf8(key): _utf8(text) for key, text in value.items()})

    return write


def _repeated(hint: Any, descriptor: FieldDescriptor) -> tuple[Write, Read]:
    name, inner = descriptor.name, descriptor.message_type
    if not descriptor.is_repeated or descriptor.enum_type is not None:
        raise _mismatch(hint, descriptor)
    if inner is None:
        return _repeated_scalar(hint, descriptor)
    plan = _plan(hint, inner)

    def write(message: Message, value: Any) -> None:
        children = getattr(message, name)
        for item in value:
            plan.fill(children.add(), item)

    def read(message: Message, path: str) -> Any:
        here = join(path, name)
        return tuple(plan.build(item, f"{here}[{index}]") for index, item in enumerate(getattr(message, name)))

    return write, read


def _repeated_scalar(hint: Any, descriptor: FieldDescriptor) -> tuple[Write, Read]:
    name = descriptor.name
    if descriptor.type not in _SCALARS.get(hint, ()):
        raise _mismatch(hint, descriptor)

    def write(message: Message, value: Any) -> None:
        target = getattr(message, name)
        try:
            target.extend(value)
        except UnicodeEncodeError:
            del target[:]
            target.extend(_utf8(item) for item in value)

    return write, lambda message, _path: tuple(getattr(message, name))
