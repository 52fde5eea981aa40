"""Text for people: quantities in and out, and what a terminal may be shown."""

from __future__ import annotations

import os
import re
import time
import unicodedata
from collections.abc import Iterable
from typing import IO, Final

_UNITS: Final = {
    "": 1,
    "B": 1,
    "K": 2**10,
    "M": 2**20,
    "G": 2**30,
    "T": 2**40,
    "P": 2**50,
    "KIB": 2**10,
    "MIB": 2**20,
    "GIB": 2**30,
    "TIB": 2**40,
    "PIB": 2**50,
    "KB": 10**3,
    "MB": 10**6,
    "GB": 10**9,
    "TB": 10**12,
    "PB": 10**15,
}
_SIZE: Final = re.compile(r"(\d+)(?:\.(\d{1,6}))?\s*([A-Za-z]*)", re.ASCII)
_DURATION: Final = re.compile(r"(\d+(?:\.\d+)?)(ms|s|m|h|d)", re.ASCII)
_SECONDS: Final = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
_MAX_SIZE: Final = 2**63 - 1


def parse_size(text: str) -> int:
    """Bytes of ``256MiB``, ``1.5GiB``, ``10GB`` or ``4096``.

    KiB, MiB, ... and the bare letters K, M, ... (as QEMU reads them) count in 1024, KB, MB, ... in 1000.

    :raises ValueError: with a message for a person.
    """
    found = _SIZE.fullmatch(text.strip())
    if not found or found[3].upper() not in _UNITS:
        message = f"{text!r} is not a size: write bytes or a number with a unit, such as 256MiB or 10GiB"
        raise ValueError(message)
    unit = _UNITS[found[3].upper()]
    fraction = found[2] or ""
    scaled = int(found[1] + fraction) * unit
    bytes_, rest = divmod(scaled, int(10 ** len(fraction)))
    if rest:
        message = f"{text!r} is not a whole number of bytes"
        raise ValueError(message)
    if bytes_ > _MAX_SIZE:
        message = f"{text!r} is more than any disk or memory holds"
        raise ValueError(message)
    return bytes_


def parse_duration(text: str) -> float:
    """Seconds of ``90``, ``1.5``, ``500ms``, ``30s``, ``2m`` or ``1h30m``.

    :raises ValueError: with a message for a person; also for zero.
    """
    clean = text.strip()
    if re.fullmatch(r"[0-9]+(\.[0-9]+)?", clean):
        seconds = float(clean)
    else:
        parts = _DURATION.findall(clean)
        if not parts or "".join(n + u for n, u in parts) != clean:
            message = f"{text!r} is not a duration: write seconds or a number with a unit, such as 30s or 5m"
            raise ValueError(message)
        seconds = sum(float(number) * _SECONDS[unit] for number, unit in parts)
    if seconds <= 0:
        message = f"{text!r} is not a duration: it must be longer than zero"
        raise ValueError(message)
    return seconds


def size(value: int | None) -> str:
    """``256 MiB``: exact where a unit fits, else with one decimal; ``-`` for unknown."""
    if value is None:
        return "-"
    for unit in ("PiB", "TiB", "GiB", "MiB", "KiB"):
        factor = _UNITS[unit.upper()]
        if value >= factor:
            return f"{value // factor} {unit}" if value % factor == 0 else f"{value / factor:.1f} {unit}"
    return f"{value} B"


def duration(seconds: float) -> str:
    """``3.2s``, ``45s``, ``12m``, ``5h``, ``3d``: the largest unit that says enough."""
    if seconds < 0:
        return "0s"
    if seconds < 10:  # noqa: PLR2004 - one decimal says enough for small numbers only
        return f"{seconds:.1f}s"
    for limit, divisor, unit in ((120, 1, "s"), (7200, 60, "m"), (172_800, 3600, "h")):
        if seconds < limit:
            return f"{int(seconds // divisor)}{unit}"
    return f"{int(seconds // 86_400)}d"


def age(stamp: object) -> str:
    """Time since a protobuf Timestamp, ``-`` where it is not set."""
    seconds = getattr(stamp, "seconds", 0)
    if not seconds:
        return "-"
    return duration(max(0.0, float(int(time.time() - seconds)))).replace(".0s", "s")


def moment(stamp: object) -> str:
    """``2031-05-06T07:08:09.123Z`` for a protobuf Timestamp, ``-`` where it is not set."""
    seconds = getattr(stamp, "seconds", 0)
    if not seconds:
        return "-"
    milliseconds = getattr(stamp, "nanos", 0) // 1_000_000
    return time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(seconds)) + f".{milliseconds:03d}Z"


def clean(text: str, *, keep: str = "") -> str:
    """``text`` without what could move a terminal's cursor, colour it or hide something.

    Names and messages come from guests and hypervisors: a guest must not be able to write
    escape sequences to its administrator's terminal.
    """
    if text.isascii() and text.isprintable():
        return text
    return "".join(c if c.isprintable() or c in keep else _escaped(c) for c in text)


def _escaped(character: str) -> str:
    return character.encode("unicode_escape").decode()


def width(text: str) -> int:
    """Columns that a terminal uses for printable ``text``."""
    if text.isascii():
        return len(text)
    return sum(0 if unicodedata.combining(c) else 2 if unicodedata.east_asian_width(c) in "WF" else 1 for c in text)


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """``; did you mean 'x'?`` or nothing."""
    from difflib import get_close_matches

    candidates = {name.lower().replace("-", "_"): name for name in known}
    close = get_close_matches(re.sub(r"(?<=[a-z])(?=[A-Z])", "_", word).lower().replace("-", "_"), candidates, n=1)
    return f"; did you mean {candidates[close[0]]!r}?" if close else ""


def wants_color(stream: IO[str], *, off: bool = False) -> bool:
    """Whether to colour what goes to ``stream``: a terminal that can, and nobody who forbids it."""
    return not off and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb" and stream.isatty()
