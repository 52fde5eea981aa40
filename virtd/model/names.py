"""Resource names: parsing, building, and what an id may look like.

Names follow AIP-122 (``hosts/{host}/guests/{guest}``); ids that a client chooses follow AIP-133.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Final

from virtd.errors import InvalidArgumentError, invalid_field

ID_PATTERN: Final = r"[a-z0-9]([a-z0-9._-]{0,61}[a-z0-9])?"
"""What virtd accepts as a new id: 1 to 63 characters, lower case, digits, ``. _ -`` inside."""

_ID: Final = re.compile(ID_PATTERN)
# Ids of guests that somebody else defined are taken as they are where a name can carry them.
_FOREIGN_ID: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._~+@-]{0,127}")
_SLUG: Final = re.compile(r"[^A-Za-z0-9._~+@-]+")

SHOWN_MAX: Final = 80
"""Somebody else's text in a message of ours is cut to so many characters."""

WILDCARD: Final = "-"
"""In a parent, reads across all collections (AIP-159)."""


@dataclass(frozen=True, slots=True)
class GuestName:
    """``hosts/{host}/guests/{guest}``."""

    host: str
    guest: str

    def __str__(self) -> str:
        return f"hosts/{self.host}/guests/{self.guest}"


def check_new_id(value: str, field: str) -> str:
    """Return ``value`` if it may name a new resource.

    :raises InvalidArgumentError: FIELD_INVALID naming ``field`` otherwise.
    """
    if not value:
        raise invalid_field(field, "is required")
    if not _ID.fullmatch(value):
        raise invalid_field(
            field,
            f"{shown(value)} is not a valid id: use 1 to 63 lower-case letters, digits, '.', '_' or '-', "
            "beginning and ending with a letter or digit",
        )
    return value


def shown(value: str) -> str:
    """``value`` quoted, escaped and cut, fit to stand in an error message or a log line."""
    text = ascii(value)
    return text if len(text) <= SHOWN_MAX else text[: SHOWN_MAX - 4] + "..." + text[-1]


def slug(native_name: str) -> str:
    """An id for a guest whose native name may not be one (spaces, slashes, markup)."""
    text = _SLUG.sub("-", native_name).strip("-.")[:100]
    return text if _FOREIGN_ID.fullmatch(text) else "guest"


def parse(name: str, pattern: str, field: str = "name", *, wildcard: bool = False) -> dict[str, str]:
    """Split a resource name by a pattern such as ``hosts/{host}/guests/{guest}``.

    :param wildcard: whether ``-`` is accepted for a collection id.
    :returns: the ids by their names in the pattern.
    :raises InvalidArgumentError: FIELD_INVALID when the name does not have that form.
    """
    parts, wanted = name.split("/"), pattern.split("/")
    ids: dict[str, str] = {}
    if len(parts) != len(wanted):
        raise _bad_name(name, pattern, field)
    for part, want in zip(parts, wanted, strict=True):
        if not want.startswith("{"):
            if part != want:
                raise _bad_name(name, pattern, field)
            continue
        if not (_FOREIGN_ID.fullmatch(part) or (wildcard and part == WILDCARD)):
            raise _bad_name(name, pattern, field)
        ids[want[1:-1]] = part
    return ids


def parse_guest(name: str, field: str = "name") -> GuestName:
    """Parse ``hosts/{host}/guests/{guest}``.

    :raises InvalidArgumentError: FIELD_INVALID naming ``field``.
    """
    ids = parse(name, "hosts/{host}/guests/{guest}", field)
    return GuestName(ids["host"], ids["guest"])


def parse_host(name: str, field: str = "name", *, wildcard: bool = False) -> str:
    """Parse ``hosts/{host}`` and return the host's id.

    :raises InvalidArgumentError: FIELD_INVALID naming ``field``.
    """
    return parse(name, "hosts/{host}", field, wildcard=wildcard)["host"]


def _bad_name(name: str, pattern: str, field: str) -> InvalidArgumentError:
    return invalid_field(field, f"{shown(name)} is not a name of the form {pattern}")
