"""What a type that guestctl shows is made of: names, columns, and how values are taken and shown.

A column knows the value (for CSV) and how people read it (for tables).  Values come from protobuf
messages, taken by duck typing: this module imports none of them, so that ``--help`` stays quick.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from virtd.cli.ctl import text


@dataclass(frozen=True, slots=True)
class Column:
    """One column.

    ``title`` heads tables, ``key`` heads CSV; ``value`` takes the message and gives a text, a
    number or None; ``show`` makes it readable; ``wide`` columns appear in ``-o wide`` and CSV only.
    """

    title: str
    key: str
    value: Callable[[Any], object]
    show: Callable[[Any], str] = lambda value: "-" if value is None or value == "" else str(value)
    wide: bool = False
    state: bool = False


@dataclass(frozen=True, slots=True)
class Kind:
    """One type of resource.

    ``plural`` is the word in the grammar; ``kind`` the word in documents (``Guest``); ``message``
    says where the protobuf message is (``module:Message``); ``pattern`` is the form of its names.
    """

    plural: str
    kind: str
    message: str
    pattern: str
    columns: tuple[Column, ...]
    aliases: tuple[str, ...] = ()

    def load(self) -> type[Any]:
        """The protobuf message class."""
        from importlib import import_module

        module, name = self.message.split(":")
        cls: type[Any] = getattr(import_module(f"virtd.v1.{module}_pb2"), name)
        return cls


def last(name: str) -> str:
    """The id: the last part of a resource name."""
    return name.rpartition("/")[2]


def part(name: str, collection: str) -> str:
    """The id that follows ``collection`` in a resource name, or ``""``."""
    parts = name.split("/")
    return next((parts[i + 1] for i in range(0, len(parts) - 1, 2) if parts[i] == collection), "")


def enum(message: Any, field: str) -> str:
    """The short name of an enum field's value: ``RUNNING`` for ``GUEST_STATE_RUNNING``."""
    descriptor = message.DESCRIPTOR.fields_by_name[field].enum_type
    number = getattr(message, field)
    value = descriptor.values_by_number.get(number)
    if value is None:
        return str(number)  # a newer server's
    return short(descriptor, value.name)


def short(descriptor: Any, name: str) -> str:
    """A value's name without the prefix of its enum."""
    prefix = descriptor.values_by_number[0].name.removesuffix("UNSPECIFIED")
    return str(name).removeprefix(prefix)


def optional(field: str) -> Callable[[Any], object]:
    """The value of a field with presence; None where it is not set (never zero)."""
    return lambda message: getattr(message, field) if message.HasField(field) else None


def attribute(field: str) -> Callable[[Any], object]:
    """The value of a field that is always there."""
    return lambda message: getattr(message, field)


def time_of(field: str) -> Callable[[Any], object]:
    """A time, as RFC 3339; None where it is not set."""
    return lambda message: text.moment(getattr(message, field)) if message.HasField(field) else None


def age_of(title: str, field: str, *, wide: bool = False) -> Column:
    """A column with how long ago something was."""
    return Column(title, field, lambda m: getattr(m, field) if m.HasField(field) else None, _show_age, wide=wide)


def _show_age(value: Any) -> str:
    return text.age(value)


def labels_of(message: Any) -> str:
    """Labels as one text."""
    return ",".join(f"{key}={value}" for key, value in sorted(message.labels.items()))


def join(values: Iterable[str]) -> str:
    """Values as one text."""
    return ",".join(values)


def name_column(title: str = "NAME") -> Column:
    """The column with the id."""
    return Column(title, "name", attribute("name"), last)


def host_column() -> Column:
    """The column with the host's id."""
    return Column("HOST", "host", lambda m: part(m.name, "hosts"))


def bytes_column(title: str, field: str, *, wide: bool = False) -> Column:
    """A column with a size."""
    return Column(title, field, optional(field), text.size, wide=wide)


def total(metrics: Any, group: str, field: str) -> int | None:
    """The sum of a counter over all disks or interfaces; None where none of them knows it."""
    known = [getattr(m, field) for m in getattr(metrics, group) if m.HasField(field)]
    return sum(known) if known else None
