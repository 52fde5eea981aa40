"""The URI of a fake host: ``fake:///NAME?guests=5&seed=1&latency=0.01&without=guest.pause``.

The path names the world: every session with the same path sees the same guests for as long as the
process lives.  ``fake://MACHINE/NAME`` plays the host of another machine, whose files are not the
daemon's: images are sent there.  The other options, each with its default:

``guests=0``
    how many stopped guests the world has when it is made;
``seed=1``
    what their UUIDs and the host's facts are drawn from;
``latency=0``
    seconds that each native call takes;
``boot=0``
    seconds from start to ``fake: ready`` on the serial console and a ready agent;
``presses=1``
    how often the power button must be pressed before a guest obeys; 0: it never does;
``volume_mib_s=0``
    how fast volumes are filled, in MiB a second; 0: at once;
``without=``
    capabilities that the host does not have, separated by commas;
``emulate=``
    what virtd does itself, because the host cannot, of ``guest.snapshot``, ``guest.reboot``, ``guest.reset`` and
    ``guest.screenshot``;
``second_without=``
    what guests of the machine ``fake-2`` do not have, of ``guest.suspend`` and ``guest.screenshot``: guests are then of
    two kinds, as on hosts where that decides what can be done with them;
``persist=0``
    1: the world is kept in ``fake-world.json`` in the host's directory, with volumes as small real
    files beside it, so that it survives a kill of the process; sessions with the same directory
    share it.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final
from urllib.parse import parse_qsl, urlsplit

from virtd.backend.capabilities import (
    FACET_OF,
    LIFECYCLE,
    REBOOT,
    RESET,
    SCREENSHOT,
    SNAPSHOT,
    SUMMARIES,
    SUSPEND,
)
from virtd.errors import CONFIG_INVALID, FieldViolation, InvalidArgumentError

SCHEME: Final = "fake"
_MACHINE: Final = re.compile(r"[A-Za-z0-9.-]*")
_LARGEST: Final = 1e6
_KNOWN: Final = (
    "guests",
    "seed",
    "latency",
    "boot",
    "presses",
    "volume_mib_s",
    "without",
    "emulate",
    "second_without",
    "persist",
)


EMULATED: Final = (SNAPSHOT, REBOOT, RESET, SCREENSHOT)
_OF_THE_SECOND: Final = (SCREENSHOT, SUSPEND)
FIRST: Final = "fake-1"
SECOND: Final = "fake-2"
"""The machines; guests of the second are of another kind where that is asked for."""


@dataclass(frozen=True, slots=True)
class FakeOptions:
    """A parsed URI.  ``path`` begins with ``//MACHINE`` where the URI names one."""

    path: str = "/"
    guests: int = 0
    seed: int = 1
    latency_s: float = 0.0
    boot_s: float = 0.0
    presses: int = 1
    volume_mib_s: float = 0.0
    without: frozenset[str] = frozenset()
    emulate: frozenset[str] = frozenset()
    second_without: frozenset[str] = frozenset()
    persist: bool = False


def parse_uri(uri: str) -> FakeOptions:
    """Parse a fake host's URI.

    :raises InvalidArgumentError: CONFIG_INVALID, naming what is wrong.
    """
    parts = urlsplit(uri)
    if parts.scheme != SCHEME or parts.fragment or not _MACHINE.fullmatch(parts.netloc):
        raise _invalid(f"a fake host's URI is {SCHEME}:///NAME?OPTIONS or {SCHEME}://MACHINE/NAME?OPTIONS")
    query: dict[str, str] = {}
    for name, value in parse_qsl(parts.query, keep_blank_values=True):
        if name not in _KNOWN:
            raise _invalid(f"{name[:40]!r} is not an option of a fake host", *_KNOWN)
        query[name] = value
    return FakeOptions(
        path=(f"//{parts.netloc}" if parts.netloc else "") + (parts.path or "/"),
        guests=int(_number(query, "guests", 0)),
        seed=int(_number(query, "seed", 1)),
        latency_s=_number(query, "latency", 0),
        boot_s=_number(query, "boot", 0),
        presses=int(_number(query, "presses", 1)),
        volume_mib_s=_number(query, "volume_mib_s", 0),
        without=_without(query.get("without", "")),
        emulate=_some_of("emulate", query.get("emulate", ""), EMULATED),
        second_without=_some_of("second_without", query.get("second_without", ""), _OF_THE_SECOND),
        persist=bool(_number(query, "persist", 0)),
    )


def _number(query: Mapping[str, str], name: str, default: float) -> float:
    try:
        value = float(query.get(name, default))
    except ValueError:
        raise _invalid(f"{name}={query[name][:40]!r} is not a number") from None
    if not 0 <= value < _LARGEST:
        raise _invalid(f"{name}={query[name][:40]!r} is not between 0 and 1000000")
    return value


def _some_of(option: str, text: str, known: tuple[str, ...]) -> frozenset[str]:
    ids = frozenset(part for part in text.split(",") if part)
    if unknown := ids - set(known):
        raise _invalid(f"{option}={min(unknown)[:40]!r} is not among these", *known)
    return ids


def _without(text: str) -> frozenset[str]:
    ids = {part for part in text.split(",") if part}
    for id_ in ids:
        if id_ not in SUMMARIES or id_ == LIFECYCLE:
            raise _invalid(f"without={id_[:40]!r}: there is no such optional capability", *SUMMARIES)
    # What is nothing without the other goes with it.
    for id_ in tuple(ids):
        if id_ in ("guest.snapshot", "guest.update", "guest.agent.exec", "host.pools", "host.events"):
            ids.update(other for other, facet in FACET_OF.items() if facet == FACET_OF[id_])
    if "guest.migrate.live" in ids:
        ids.update(("guest.migrate.live", "guest.migrate.storage", "guest.migrate.postcopy"))
    if "guest.trash" in ids:
        ids.add("guest.migrate")
    if "host.volumes" in ids:  # which goes with host.pools
        ids.update(other for other in SUMMARIES if other.startswith("host.volumes."))
    if ids & {"host.pools", "host.pools.manage"}:
        ids.update(other for other in SUMMARIES if other.startswith("host.pools."))
    return frozenset(ids)


def _invalid(message: str, *alternatives: str) -> InvalidArgumentError:
    return InvalidArgumentError(
        CONFIG_INVALID, f"uri: {message}", violations=(FieldViolation("uri", message, alternatives),)
    )
