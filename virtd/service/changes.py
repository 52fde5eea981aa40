"""From a request to change a spec to the spec as it shall be.

The rules, which the API documents at UpdateGuest:

* a path takes the value that the request has there, also when it is not set: then it is the default;
* entries of named lists are matched by name and merged field by field: what an entry leaves out stays,
  entries that the list leaves out go, new ones come last;
* the path ``spec`` stands for every field that the request's spec sets; what it leaves out stays.

What a request sets is its *presence* (:class:`Presence`): a value that equals a default may have been
said or not, and only the wire tells.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import MISSING, dataclass, field, fields, is_dataclass, replace
from enum import Enum
from typing import Any, Final

from virtd.backend.api import UpdateEffect
from virtd.errors import FieldViolation, InvalidArgumentError, invalid_field
from virtd.model.changes import NAMED_LISTS, ONEOFS, Part, assign, entry_of, parse_path
from virtd.model.guest import GuestSpec
from virtd.model.names import shown

KEYS: Final[Mapping[str, str]] = {
    **dict.fromkeys((*NAMED_LISTS, "users"), "name"),
    "write_files": "path",
}
"""Lists whose entries are matched, and the field that they are matched by."""

SECRETS: Final = frozenset({"password_hash", "content", "user_data"})
"""Fields whose values are never shown."""


@dataclass(frozen=True, slots=True)
class FieldChange:
    """What becomes of one field; ``old`` and ``new`` are JSON."""

    field: str
    old: str
    new: str
    effect: UpdateEffect
    reason: str = ""


@dataclass(frozen=True, slots=True)
class UpdatePlan:
    """What an update would do; without changes it does nothing."""

    name: str
    changes: tuple[FieldChange, ...] = ()
    native: str = ""
    native_format: str = ""
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Presence:
    """Which fields a message sets: the presence of each, by name; of a matched list by its entries' keys."""

    parts: Mapping[str, Presence] = field(default_factory=dict)

    @classmethod
    def of(cls, value: Any) -> Presence:
        """Of a record: every field that is not at its default."""
        if not is_dataclass(value):
            return cls()
        parts = {}
        for entry in fields(value):
            held = getattr(value, entry.name)
            default = entry.default_factory() if callable(entry.default_factory) else entry.default
            if held == default and default is not MISSING:
                continue
            key = KEYS.get(entry.name)
            parts[entry.name] = cls({getattr(item, key): cls.of(item) for item in held}) if key else cls.of(held)
        return cls(parts)


def merged(current: GuestSpec, given: GuestSpec, present: Presence, paths: Sequence[str]) -> GuestSpec:
    """``current`` with what a request says.

    :param paths: as in ``update_fields``, each ``spec`` or below it.
    :raises InvalidArgumentError: FIELD_INVALID, a path that there is not, or a name that stands twice.
    """
    for name in NAMED_LISTS:
        _check_names(getattr(given, name), f"guest.spec.{name}")
    for index, path in enumerate(paths):
        where = f"update_fields[{index}]"
        try:
            parts = parse_path(path)
        except ValueError:
            raise invalid_field(where, f"{shown(path)} is not a path such as spec.vcpus or spec.disks[data]") from None
        current = _fold(current, given, present) if not parts else _at(current, given, present, parts, where)
    return current


def _check_names(entries: Iterable[Any], where: str) -> None:
    seen: set[str] = set()
    for index, entry in enumerate(entries):
        if entry.name in seen:
            raise invalid_field(f"{where}[{index}].name", f"{shown(entry.name)} is used twice")
        seen.add(entry.name)


# -------------------------------------------------------------------------------------------- paths


def _at(current: GuestSpec, given: GuestSpec, present: Presence, parts: Sequence[Part], where: str) -> GuestSpec:
    part, rest = parts[0], tuple(parts[1:])
    if part.name not in {entry.name for entry in fields(GuestSpec)}:
        raise _no_field(where, part.name, GuestSpec)
    below = present.parts.get(part.name, Presence())
    if part.name in NAMED_LISTS and part.key:
        return _entry(current, given, below, part, rest, where)
    if not rest and part.name in NAMED_LISTS:
        entries: Any = _matched(getattr(current, part.name), given, part.name, below, "name")
        return replace(current, **{part.name: entries})
    value = _value_at(given, parts, where)
    if rest and getattr(current, part.name) is None:
        # A part of something that is not there yet: what the request says of the whole comes with it.
        whole = getattr(given, part.name)
        return current if whole is None else replace(current, **{part.name: whole})
    return _assign(current, tuple(parts), value, where)


def _entry(
    current: GuestSpec, given: GuestSpec, present: Presence, part: Part, rest: tuple[Part, ...], where: str
) -> GuestSpec:
    held, said = entry_of(current, part.name, part.key), entry_of(given, part.name, part.key)
    if not rest:
        below = present.parts.get(part.key, Presence())
        new = said if held is None or said is None else _fold(held, said, below)
        return assign(current, (part,), new)  # type: ignore[no-any-return]  # a record of the same type
    if held is None:
        if said is None:
            names = [entry.name for entry in getattr(current, part.name)]
            raise invalid_field(where, f"there is no {part.name}[{part.key}]", *names)
        return assign(current, (part,), said)  # type: ignore[no-any-return]  # a record of the same type
    if said is None:
        kind = type(held)
        said = kind(**{entry.name: held.name for entry in fields(kind) if entry.name == "name"})
    oneof = ONEOFS.get(type(said), {}).get(rest[0].name)
    if oneof is not None and len(rest) == 1:
        value = next((getattr(said, arm) for arm in oneof if getattr(said, arm) is not None), None)
    else:
        value = _value_at(said, rest, where)
        arms = next((group for group in ONEOFS.get(type(said), {}).values() if rest[0].name in group), None)
        if arms is not None and getattr(held, rest[0].name) is None:
            # Another arm of the oneof than the one that is set: it comes as a whole, in place of that.
            rest, value = (Part("source" if "blank" in arms else "device"),), getattr(said, rest[0].name)
    return _assign(current, (part, *rest), value, where)


def _value_at(record: Any, parts: Sequence[Part], where: str) -> Any:
    for part in parts:
        if record is None:
            return None
        if not is_dataclass(record) or part.name not in {entry.name for entry in fields(record)}:
            raise _no_field(where, part.name, type(record))
        record = getattr(record, part.name)
        if part.key:
            if not isinstance(record, Mapping):
                raise invalid_field(where, f"{part.name} has no entry that could be named {shown(part.key)}")
            record = record.get(part.key)
    return record


def _assign(current: GuestSpec, parts: tuple[Part, ...], value: Any, where: str) -> GuestSpec:
    try:
        return assign(current, parts, value)  # type: ignore[no-any-return]  # a record of the same type
    except ValueError as error:
        raise invalid_field(where, f"there is no {shown(str(error))} that could be changed alone") from None


def _no_field(where: str, name: str, record: type) -> InvalidArgumentError:
    known = tuple(entry.name for entry in fields(record)) if is_dataclass(record) else ()
    return invalid_field(where, f"there is no field {shown(name)}", *known)


# ---------------------------------------------------------------------------------------- documents


def _fold(current: Any, given: Any, present: Presence) -> Any:
    """``current`` with every field that ``given`` sets."""
    changed: dict[str, Any] = {}
    for group in ONEOFS.get(type(given), {}).values():
        if any(arm in present.parts for arm in group):
            changed |= dict.fromkeys(arm for arm in group if arm not in present.parts)
    for name, below in present.parts.items():
        held, said = getattr(current, name), getattr(given, name)
        if name in KEYS:
            changed[name] = _matched(held, given, name, below, KEYS[name])
        elif is_dataclass(held) and is_dataclass(said):
            changed[name] = _fold(held, said, below)
        else:
            changed[name] = said
    return replace(current, **changed)


def _matched(held: Sequence[Any], given: Any, name: str, present: Presence, key: str) -> tuple[Any, ...]:
    """A list of matched entries: those that stay, in their order, then the new ones."""
    said = {getattr(entry, key): entry for entry in getattr(given, name)}
    known = {getattr(entry, key) for entry in held}
    kept = [
        _fold(entry, said[getattr(entry, key)], present.parts.get(getattr(entry, key), Presence()))
        for entry in held
        if getattr(entry, key) in said
    ]
    return (*kept, *(entry for label, entry in said.items() if label not in known))


# --------------------------------------------------------------------------------------------- show


def without_secrets(value: Any) -> Any:
    """As data for JSON: without fields at their default, and with secrets hidden."""
    if is_dataclass(value) and not isinstance(value, type):
        found = {}
        for entry in fields(value):
            held = getattr(value, entry.name)
            default = entry.default_factory() if callable(entry.default_factory) else entry.default
            if held != default or default is MISSING:
                found[entry.name] = "(hidden)" if entry.name in SECRETS else without_secrets(held)
        return found
    if isinstance(value, Mapping):
        return {str(key): without_secrets(item) for key, item in value.items()}
    if isinstance(value, tuple | list):
        return [without_secrets(item) for item in value]
    if isinstance(value, Enum):
        return value.value
    return value.decode(errors="replace") if isinstance(value, bytes) else value


def by_name(error: InvalidArgumentError, spec: GuestSpec) -> InvalidArgumentError:
    """The error with entries named by their names, not by places that the caller has not given."""
    places = {
        f"spec.{name}[{index}]": f"spec.{name}[{entry.name}]"
        for name in NAMED_LISTS
        for index, entry in enumerate(getattr(spec, name))
    }

    def named(text: str) -> str:
        for place, better in places.items():
            text = text.replace(place, better)
        return text

    record = error.record
    return InvalidArgumentError(
        error.reason,
        named(record.message),
        resource=record.resource,
        violations=tuple(
            FieldViolation(named(v.field), named(v.description), v.alternatives) for v in record.violations
        ),
    )
