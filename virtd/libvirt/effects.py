"""What a change of each field does to a guest, as it is now: the rules that do not depend on the hypervisor.

Pure: it is given what the hypervisor says of the guest, and asks nothing.  A backend puts its own rules
and these together into an :class:`UpdatePolicy`: one table, which its documentation is checked against.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from virtd.backend import capabilities as ids
from virtd.backend.api import FieldEffect, ResolvedGuest, UpdateEffect
from virtd.libvirt.xml.build import Element, attribute, integer, scaled, text
from virtd.libvirt.xml.merge import names_of_disks, names_of_interfaces
from virtd.model.changes import Part, parse_path
from virtd.model.guest import DiskDevice

_E: Final = UpdateEffect
Answer = tuple[UpdateEffect, str]

LIVE: Final[Answer] = (_E.LIVE, "")
_OFF: Final[Answer] = (_E.NEXT_BOOT, "the guest does not run")
_SUSPENDED: Final[Answer] = (
    _E.NEXT_BOOT,
    "the guest is suspended and continues as it was; it takes effect when it is stopped and started after that",
)
_CONTENT: Final = (
    "the disk would have another content under the same name: detach it and attach the other under a new name"
)
MEDIUM_FIELDS: Final = ("source", "image", "volume", "host_file", "blank")
"""Parts of a disk that say what is in it."""


@dataclass(frozen=True, slots=True)
class Facts:
    """A guest as libvirt describes it.

    :param live: the running domain; None: it does not run.
    :param capacities: sizes of the disks' files in bytes, where they are known.
    :param missing: capabilities that this host has not, and why.
    """

    config: Element
    live: Element | None
    suspended: bool = False
    capacities: Mapping[str, int] = field(default_factory=dict)
    missing: Mapping[str, str] = field(default_factory=dict)


@dataclass(slots=True)
class Case:
    """One change under examination.

    :param rest: the path below the field, for example ``io_tune`` of a disk.
    :param slots: one entry for each device that can still be plugged in; None: there is no such limit.
    """

    facts: Facts
    current: ResolvedGuest
    wanted: ResolvedGuest
    part: Part
    rest: tuple[Part, ...]
    slots: Iterator[None] | None

    @property
    def live(self) -> Element:
        """The running domain."""
        assert self.facts.live is not None  # asked for running guests only
        return self.facts.live

    @property
    def what(self) -> str:
        """The first name below the field; empty where the entry itself is meant."""
        return self.rest[0].name if self.rest else ""

    def old(self) -> Any:
        """The entry of the list as it is, or None."""
        return _named(getattr(self.current, self.part.name), self.part.key)

    def new(self) -> Any:
        """The entry of the list as it shall be, or None."""
        return _named(getattr(self.wanted, self.part.name), self.part.key)

    def unless_missing(self, capability: str) -> Answer:
        """LIVE, or why the host cannot."""
        why = self.facts.missing.get(capability)
        return LIVE if why is None else (_E.NEXT_BOOT, why)

    def takes_slot(self) -> bool:
        """Whether the running machine has room for one device more; that room is then taken."""
        return self.slots is None or next(self.slots, self) is None


Rule = Callable[[Case], Answer]
Verdict = Callable[[Case], Answer | None]


@dataclass(frozen=True, slots=True)
class UpdatePolicy:
    """What changes do to the guests of one backend.

    :param always: by field: what holds whatever the guest's state is; None: the state decides.
    :param running: by field: what a change does to a running guest.
    :param at_start: why every other field waits for the next start.
    :param free_slots: how many devices the running domain has room for; None: there is no such limit.
    """

    always: Mapping[str, Verdict]
    running: Mapping[str, Rule]
    at_start: str
    free_slots: Callable[[Element], int | None] = lambda _live: None


def effects_of(
    policy: UpdatePolicy, facts: Facts, current: ResolvedGuest, wanted: ResolvedGuest, fields: Sequence[str]
) -> tuple[FieldEffect, ...]:
    """What the change of each field does."""
    room = None if facts.live is None else policy.free_slots(facts.live)
    slots = None if room is None else iter([None] * room)
    found = []
    for path in fields:
        part, *rest = parse_path(path)
        effect, reason = _effect(policy, Case(facts, current, wanted, part, tuple(rest), slots))
        found.append(FieldEffect(path, effect, reason))
    return tuple(found)


def _effect(policy: UpdatePolicy, case: Case) -> Answer:
    always = policy.always.get(case.part.name)
    answer = always(case) if always is not None else None
    if answer is not None:
        return answer
    if case.facts.suspended:
        return _SUSPENDED
    if case.facts.live is None:
        return _OFF
    running = policy.running.get(case.part.name)
    return (_E.NEXT_BOOT, policy.at_start) if running is None else running(case)


# ------------------------------------------------------------------- whatever the guest's state is


def firmware(_case: Case) -> Answer:
    """Another firmware."""
    return _E.REPLACE, "another firmware does not find what the system has installed for this one"


def disk_content(case: Case) -> Answer | None:
    """A disk's size, its content and its kind."""
    old, new = case.old(), case.new()
    if not case.rest or old is None or new is None:
        return None
    what = case.rest[-1].name
    if what == "capacity_bytes":
        return _size(case, new.path)
    drive = old.device is DiskDevice.CDROM and new.device is DiskDevice.CDROM
    if not drive and case.what in MEDIUM_FIELDS:
        return _E.REJECTED, _CONTENT
    if what == "device":
        return _E.REJECTED, "a disk does not become a CD-ROM drive: detach it and attach the other under a new name"
    return None


def _size(case: Case, path: str) -> Answer:
    why = case.facts.missing.get(ids.UPDATE_RESIZE)
    if why is not None:
        return _E.REJECTED, why
    if case.facts.suspended:
        return _E.REJECTED, "the guest is suspended and expects its disks as they are: start it first"
    if path not in case.facts.capacities:
        return _E.REJECTED, "the size of the disk's file is not known here"
    return LIVE


# ------------------------------------------------------------------------------- of a running guest


def vcpus(case: Case) -> Answer:
    """Up to what the guest was started with; fewer where the host can."""
    most, now = vcpus_of(case.live)
    wanted = case.wanted.vcpus
    answer = case.unless_missing(ids.UPDATE_VCPUS if wanted >= now else ids.UPDATE_VCPUS_UNPLUG)
    if answer[0] is _E.LIVE and wanted > most:
        return _E.NEXT_BOOT, f"the running guest has room for {most} virtual processors"
    return answer


def vcpus_of(live: Element) -> tuple[int, int]:
    """The most virtual processors of a running domain, and what it has."""
    most = integer(text(live, "vcpu")) or 1
    return most, integer(attribute(live, "vcpu", "current")) or most


def memory(case: Case) -> Answer:
    """Up to what the guest was started with, by its balloon."""
    answer = case.unless_missing(ids.UPDATE_MEMORY)
    if answer[0] is not _E.LIVE:
        return answer
    most = scaled(case.live, "memory") or 0
    if case.wanted.memory_bytes > most:
        return _E.NEXT_BOOT, f"the running guest has room for {most} bytes of memory"
    if attribute(case.live, "devices/memballoon", "model") in ("", "none"):
        return _E.NEXT_BOOT, "the running guest has no balloon"
    return answer


def limit(_case: Case) -> Answer:
    """The most that a guest can have."""
    return _E.NEXT_BOOT, "how far a guest can grow is settled at its start"


def disks(plug: Callable[[Case, Any, Element | None], Answer], at_start: str) -> Rule:
    """A disk in, out, its medium, its limits.

    :param plug: is given the disk, and its element in the running domain if that has it; ``case.old()`` is None
        where it is to come in.
    """

    def rule(case: Case) -> Answer:
        old, new = case.old(), case.new()
        held = names_of_disks(case.live).get(case.part.key)
        if not case.rest and (old is None or new is None):
            return plug(case, new or old, held)
        if held is None:
            return _E.NEXT_BOOT, "the running guest has no such disk"
        if case.what == "io_tune":
            return case.unless_missing(ids.UPDATE_IO_TUNE)
        if case.what in MEDIUM_FIELDS:
            return case.unless_missing(ids.UPDATE_MEDIUM)
        return _E.NEXT_BOOT, at_start

    return rule


def interfaces(plug: Callable[[Case, Any, Element | None], Answer], link: Rule, at_start: str) -> Rule:
    """An interface in, out, its link.

    :param plug: as for :func:`disks`.
    :param link: of an interface that the running guest has.
    """

    def rule(case: Case) -> Answer:
        old, new = case.old(), case.new()
        held = names_of_interfaces(case.live).get(case.part.key)
        if not case.rest and (old is None or new is None):
            return plug(case, new or old, held)
        if case.what == "link_state" and held is not None:
            return link(case)
        return _E.NEXT_BOOT, at_start

    return rule


def _named(entries: Sequence[Any], name: str) -> Any:
    return next((entry for entry in entries if entry.name == name), None)
