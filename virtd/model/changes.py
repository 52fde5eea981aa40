"""What differs between two guest specs, field by field, and how to carry it over.

A field is named by its path: ``spec.vcpus``, ``spec.cpu.model``, ``spec.disks[data].io_tune``,
``spec.backend_options[key]``.  Entries of the lists in :data:`NAMED_LISTS` are matched by their name,
never by their place: their order says nothing.  Of a oneof the path is its own name
(``spec.disks[data].source``) when another arm is set, and that of the arm's field when the same is.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, fields, is_dataclass, replace
from typing import Any, Final

from virtd.model.devices import CpuTopology, HostDeviceSpec, IoTune, NumaSpec, PciHostDevice, UsbHostDevice
from virtd.model.guest import BlankSource, DiskSpec, GuestSpec, HostFileSource, ImageSource

ROOT: Final = "spec"

NAMED_LISTS: Final = ("disks", "interfaces", "filesystems", "host_devices")
"""The spec's lists whose entries have names."""

ONEOFS: Final[Mapping[type, Mapping[str, tuple[str, ...]]]] = {
    DiskSpec: {"source": ("blank", "image", "volume", "host_file")},
    HostDeviceSpec: {"device": ("pci", "usb")},
}
"""Of each record the fields of which at most one is set, by the oneof's name."""

_ARM_OF: Final[Mapping[type, str]] = {
    BlankSource: "blank",
    ImageSource: "image",
    str: "volume",
    HostFileSource: "host_file",
    PciHostDevice: "pci",
    UsbHostDevice: "usb",
}
# Records whose parts make no sense alone: they change as a whole.
_UNITS: Final = (IoTune, CpuTopology, NumaSpec, PciHostDevice, UsbHostDevice)
_TOKEN: Final = re.compile(r"([a-z0-9_]+)(?:\[([^\]]+)\])?")


@dataclass(frozen=True, slots=True)
class Change:
    """One field that differs.  None: it is not there (an entry that is added or removed, a field not set)."""

    field: str
    old: Any
    new: Any


@dataclass(frozen=True, slots=True)
class Part:
    """One part of a path: a field, and of a list or map the entry's name."""

    name: str
    key: str = ""

    def __str__(self) -> str:
        return f"{self.name}[{self.key}]" if self.key else self.name


def parse_path(path: str) -> tuple[Part, ...]:
    """The parts of a path below ``spec``; empty for ``spec`` itself.

    :raises ValueError: it is not a path of that form.
    """
    head, _, rest = path.partition(".")
    if head != ROOT or path.endswith("."):
        raise ValueError(path)
    parts = []
    while rest:
        found = _TOKEN.match(rest)
        if found is None:
            raise ValueError(path)
        parts.append(Part(found[1], found[2] or ""))
        rest = rest[found.end() :]
        if rest and not rest.startswith("."):
            raise ValueError(path)
        rest = rest[1:]
    return tuple(parts)


def diff(old: GuestSpec, new: GuestSpec) -> tuple[Change, ...]:
    """Every field that differs, in the order of the spec's fields.  Empty for equal specs."""
    return tuple(_record(ROOT, old, new))


def apply(spec: GuestSpec, changes: Iterable[Change]) -> GuestSpec:
    """The spec with the changes carried over; entries that are added come last.

    ``apply(a, diff(a, b))`` equals ``b`` but for the order of named entries.

    :raises ValueError: a path that :func:`diff` does not give.
    """
    for change in changes:
        spec = assign(spec, parse_path(change.field), change.new)
    return spec


def entry_of(spec: GuestSpec, list_name: str, name: str) -> Any:
    """The entry of a named list, or None."""
    return next((entry for entry in getattr(spec, list_name) if entry.name == name), None)


def touches(path: str, *prefixes: str) -> bool:
    """Whether a path is one of these or lies below one."""
    return any(path == prefix or path.startswith((f"{prefix}.", f"{prefix}[")) for prefix in prefixes)


# ------------------------------------------------------------------------------------------ differ


def _record(path: str, old: Any, new: Any) -> Iterator[Change]:
    oneofs = ONEOFS.get(type(old), {})
    arms = {arm for group in oneofs.values() for arm in group}
    for field in fields(old):
        here = f"{path}.{field.name}"
        before, after = getattr(old, field.name), getattr(new, field.name)
        if path == ROOT and field.name in NAMED_LISTS:
            yield from _named(here, before, after)
        elif isinstance(before, Mapping):
            yield from _mapping(here, before, after)
        elif field.name not in arms:
            yield from _value(here, before, after)
    for group, names in oneofs.items():
        yield from _oneof(path, group, names, old, new)


def _value(path: str, before: Any, after: Any) -> Iterator[Change]:
    if before == after:
        return
    same = type(before) is type(after) and is_dataclass(before) and not isinstance(before, _UNITS)
    if same:
        yield from _record(path, before, after)
    else:
        yield Change(path, before, after)


def _named(path: str, before: Iterable[Any], after: Iterable[Any]) -> Iterator[Change]:
    old = {entry.name: entry for entry in before}
    new = {entry.name: entry for entry in after}
    for name in (*old, *(name for name in new if name not in old)):
        yield from _value(f"{path}[{name}]", old.get(name), new.get(name))


def _mapping(path: str, before: Mapping[str, str], after: Mapping[str, str]) -> Iterator[Change]:
    for key in sorted({*before, *after}):
        if before.get(key) != after.get(key):
            yield Change(f"{path}[{key}]", before.get(key), after.get(key))


def _oneof(path: str, group: str, names: tuple[str, ...], old: Any, new: Any) -> Iterator[Change]:
    was = next((name for name in names if getattr(old, name) is not None), None)
    becomes = next((name for name in names if getattr(new, name) is not None), None)
    before = None if was is None else getattr(old, was)
    after = None if becomes is None else getattr(new, becomes)
    if was is not None and was == becomes and is_dataclass(before):
        yield from _value(f"{path}.{was}", before, after)
    elif before != after:
        yield Change(f"{path}.{group}", before, after)


# ------------------------------------------------------------------------------------------ assign


def assign(record: Any, parts: tuple[Part, ...], value: Any) -> Any:
    """The record with the value at a path; None takes a named entry or a map's key away.

    :raises ValueError: there is nothing at that path.
    """
    part, rest = parts[0], parts[1:]
    group = ONEOFS.get(type(record), {}).get(part.name)
    if group is not None and not rest:
        arms = dict.fromkeys(group)
        if value is not None:
            arms[_ARM_OF[type(value)]] = value
        return replace(record, **arms)
    if part.name not in {field.name for field in fields(record)}:
        raise ValueError(str(part))
    held = getattr(record, part.name)
    if part.key and isinstance(held, Mapping):
        items = {key: text for key, text in held.items() if key != part.key}
        return replace(record, **{part.name: items if value is None else {**items, part.key: value}})
    if part.key:
        return replace(record, **{part.name: _assign_entry(held, part.key, rest, value)})
    if not rest:
        return replace(record, **{part.name: _unset(record, part.name) if value is None else value})
    if held is None:
        raise ValueError(str(part))
    return replace(record, **{part.name: assign(held, rest, value)})


def _assign_entry(entries: tuple[Any, ...], name: str, rest: tuple[Part, ...], value: Any) -> tuple[Any, ...]:
    found = next((entry for entry in entries if entry.name == name), None)
    if rest:
        if found is None:
            raise ValueError(name)
        value = assign(found, rest, value)
    if value is None:
        return tuple(entry for entry in entries if entry.name != name)
    if found is None:
        return (*entries, value)
    return tuple(value if entry.name == name else entry for entry in entries)


def _unset(record: Any, name: str) -> Any:
    """What a field is when nobody sets it."""
    field = next(field for field in fields(record) if field.name == name)
    if callable(field.default_factory):
        return field.default_factory()
    return field.default if not hasattr(field.default, "__dataclass_fields__") and not _missing(field.default) else None


def _missing(default: object) -> bool:
    from dataclasses import MISSING

    return default is MISSING
