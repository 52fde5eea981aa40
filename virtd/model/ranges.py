"""Sets of small numbers as text: ``0-3,8``, as Linux and libvirt write CPUs and NUMA nodes."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Final

_FORM: Final = re.compile(r"[0-9]{1,5}(-[0-9]{1,5})?(,[0-9]{1,5}(-[0-9]{1,5})?)*")


def parse_ranges(text: str) -> tuple[int, ...]:
    """The numbers, ascending and each once; empty text is the empty set.

    :raises ValueError: it is not of the form, or a range goes backwards.
    """
    if not text:
        return ()
    if not _FORM.fullmatch(text):
        message = f"{text!r} is not a list of numbers and ranges such as 0-3,8"
        raise ValueError(message)
    found: set[int] = set()
    for part in text.split(","):
        first, _, last = part.partition("-")
        if last and int(last) < int(first):
            message = f"the range {part} goes backwards"
            raise ValueError(message)
        found.update(range(int(first), int(last or first) + 1))
    return tuple(sorted(found))


def format_ranges(numbers: Iterable[int]) -> str:
    """The shortest text for a set of numbers: ``0-3,8``."""
    parts: list[str] = []
    ordered = sorted(set(numbers))
    while ordered:
        first = last = ordered.pop(0)
        while ordered and ordered[0] == last + 1:
            last = ordered.pop(0)
        parts.append(str(first) if first == last else f"{first}-{last}")
    return ",".join(parts)
