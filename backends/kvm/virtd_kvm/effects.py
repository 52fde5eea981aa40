"""What a change of each field does to a guest of QEMU, as it is now: one table.

Pure: it is given what the hypervisor says of the guest, and asks nothing.  The page
``docs/howto/update.md`` is checked against :data:`EFFECTS`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from virtd.backend import capabilities as ids
from virtd.backend.api import FieldEffect, ResolvedDisk, ResolvedGuest, UpdateEffect
from virtd.libvirt.xml.build import Element, attribute, integer, scaled, text
from virtd.libvirt.xml.merge import names_of_disks, names_of_interfaces
from virtd.model.changes import Part, parse_path
from virtd.model.guest import DiskBus, DiskDevice

_E: Final = UpdateEffect
Answer = tuple[UpdateEffect, str]

UNPLUG_REASON: Final = (
    "QEMU 7.2 with TCG refuses to take a virtual processor out of a running guest, "
    "and crashes at the guest's next reset if it was asked to"
)
"""Why virtual processors are not taken out live; the capability guest.update.vcpus.unplug has it too."""

_OFF: Final[Answer] = (_E.NEXT_BOOT, "the guest does not run")
_SUSPENDED: Final[Answer] = (
    _E.NEXT_BOOT,
    "the guest is suspended and continues as it was; it takes effect when it is stopped and started after that",
)
_AT_START: Final = "QEMU is told at the guest's start only"
_CONTENT: Final = (
    "the disk would have another content under the same name: detach it and attach the other under a new name"
)


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
class _Case:
    """One change under examination."""

    facts: Facts
    current: ResolvedGuest
    wanted: ResolvedGuest
    part: Part
    rest: tuple[Part, ...]
    ports: Iterator[None]

    @property
    def live(self) -> Element:
        assert self.facts.live is not None  # asked for running guests only
        return self.facts.live

    def old(self, list_name: str) -> Any:
        return _named(getattr(self.current, list_name), self.part.key)

    def new(self, list_name: str) -> Any:
        return _named(getattr(self.wanted, list_name), self.part.key)

    def unless_missing(self, capability: str) -> Answer:
        why = self.facts.missing.get(capability)
        return (_E.LIVE, "") if why is None else (_E.NEXT_BOOT, why)

    def takes_port(self) -> Answer | None:
        """None if the running machine has room for one device more."""
        if not _is_pcie(self.live):
            return None
        if next(self.ports, self) is None:
            return None
        return _E.NEXT_BOOT, "no PCI Express port is free in the running guest; its next start has new ones"


def effects_of(
    facts: Facts, current: ResolvedGuest, wanted: ResolvedGuest, fields: Sequence[str]
) -> tuple[FieldEffect, ...]:
    """What the change of each field does."""
    ports = iter([None] * (0 if facts.live is None else free_ports(facts.live)))
    found = []
    for path in fields:
        part, *rest = parse_path(path)
        case = _Case(facts, current, wanted, part, tuple(rest), ports)
        effect, reason = _effect(case)
        found.append(FieldEffect(path, effect, reason))
    return tuple(found)


def _effect(case: _Case) -> Answer:
    always = _ALWAYS.get(case.part.name)
    answer = always(case) if always is not None else None
    if answer is not None:
        return answer
    if case.facts.suspended:
        return _SUSPENDED
    if case.facts.live is None:
        return _OFF
    return EFFECTS.get(case.part.name, _at_start)(case)


# ------------------------------------------------------------------- whatever the guest's state is


def _firmware(_case: _Case) -> Answer:
    return _E.REPLACE, "another firmware does not find what the system has installed for this one"


def _machine(case: _Case) -> Answer | None:
    if _family(case.current.machine) == _family(case.wanted.machine):
        return None
    return _E.REPLACE, "another kind of machine has its devices at other addresses"


def _family(machine: str) -> str:
    if "q35" in machine or not machine:
        return "q35"
    return "pc" if machine in ("pc", "ubuntu") or "i440fx" in machine else machine


def _disk_always(case: _Case) -> Answer | None:
    old, new = case.old("disks"), case.new("disks")
    if not case.rest or old is None or new is None:
        return None
    what = case.rest[-1].name
    if what == "capacity_bytes":
        return _size(case, new)
    drive = old.device is DiskDevice.CDROM and new.device is DiskDevice.CDROM
    if not drive and case.rest[0].name in ("source", "blank", "image", "volume", "host_file"):
        return _E.REJECTED, _CONTENT
    if what == "device":
        return _E.REJECTED, "a disk does not become a CD-ROM drive: detach it and attach the other under a new name"
    return None


def _size(case: _Case, disk: ResolvedDisk) -> Answer:
    why = case.facts.missing.get(ids.UPDATE_RESIZE)
    if why is not None:
        return _E.REJECTED, why
    if case.facts.suspended:
        return _E.REJECTED, "the guest is suspended and expects its disks as they are: start it first"
    if disk.path not in case.facts.capacities:
        return _E.REJECTED, "the size of the disk's file is not known here"
    return _E.LIVE, ""


_ALWAYS: Final[Mapping[str, Callable[[_Case], Answer | None]]] = {
    "firmware": _firmware,
    "secure_boot": _firmware,
    "machine": _machine,
    "disks": _disk_always,
}


# ------------------------------------------------------------------------------- of a running guest


def _at_start(_case: _Case) -> Answer:
    return _E.NEXT_BOOT, _AT_START


def _vcpus(case: _Case) -> Answer:
    most = integer(text(case.live, "vcpu")) or 1
    now = integer(attribute(case.live, "vcpu", "current")) or most
    wanted = case.wanted.vcpus
    answer = case.unless_missing(ids.UPDATE_VCPUS if wanted >= now else ids.UPDATE_VCPUS_UNPLUG)
    if answer[0] is not _E.LIVE:
        return answer
    if wanted > most:
        return _E.NEXT_BOOT, f"the running guest has room for {most} virtual processors"
    if wanted < now and case.live.get("type") != "kvm":
        return _E.NEXT_BOOT, UNPLUG_REASON
    return answer


def _memory(case: _Case) -> Answer:
    answer = case.unless_missing(ids.UPDATE_MEMORY)
    if answer[0] is not _E.LIVE:
        return answer
    most = scaled(case.live, "memory") or 0
    if case.wanted.memory_bytes > most:
        return _E.NEXT_BOOT, f"the running guest has room for {most} bytes of memory"
    if attribute(case.live, "devices/memballoon", "model") in ("", "none"):
        return _E.NEXT_BOOT, "the running guest has no balloon"
    return answer


def _limit(_case: _Case) -> Answer:
    return _E.NEXT_BOOT, "how far a guest can grow is settled at its start"


def _disks(case: _Case) -> Answer:
    old, new = case.old("disks"), case.new("disks")
    if not case.rest and (old is None or new is None):
        return _plug_disk(case, new or old, added=old is None)
    held = names_of_disks(case.live).get(case.part.key)
    if held is None:
        return _E.NEXT_BOOT, "the running guest has no such disk"
    what = case.rest[0].name if case.rest else ""
    if what == "io_tune":
        return case.unless_missing(ids.UPDATE_IO_TUNE)
    if what in ("source", "image", "volume", "host_file", "blank"):
        return case.unless_missing(ids.UPDATE_MEDIUM)
    return _at_start(case)


def _plug_disk(case: _Case, disk: ResolvedDisk, *, added: bool) -> Answer:
    if disk.device is DiskDevice.CDROM:
        return _E.NEXT_BOOT, "QEMU takes CD-ROM drives in and out at the guest's start only; their media any time"
    if disk.bus in (DiskBus.SATA, DiskBus.IDE):
        return _E.NEXT_BOOT, f"nothing is plugged into a running guest's {disk.bus.value} bus"
    answer = case.unless_missing(ids.UPDATE_DISKS)
    if answer[0] is not _E.LIVE:
        return answer
    if not added:
        return _unplug(names_of_disks(case.live).get(disk.name), case)
    with_controller = disk.bus is DiskBus.SCSI and any(
        found.get("type") == "scsi" for found in case.live.findall("devices/controller")
    )
    return (None if with_controller else case.takes_port()) or answer


def _interfaces(case: _Case) -> Answer:
    old, new = case.old("interfaces"), case.new("interfaces")
    if not case.rest and (old is None or new is None):
        return _plug_interface(case, new or old, added=old is None)
    if case.rest and case.rest[0].name == "link_state" and case.part.key in names_of_interfaces(case.live):
        return case.unless_missing(ids.UPDATE_INTERFACES)
    return _at_start(case)


def _plug_interface(case: _Case, interface: Any, *, added: bool) -> Answer:
    answer = case.unless_missing(ids.UPDATE_INTERFACES)
    if answer[0] is not _E.LIVE:
        return answer
    if interface.port_forwards:
        return _E.NEXT_BOOT, "QEMU forwards ports from the guest's start on only"
    if not added:
        return _unplug(names_of_interfaces(case.live).get(interface.name), case)
    if _is_pcie(case.live) and interface.model not in ("", "virtio", "e1000e"):
        return _E.NEXT_BOOT, f"there is no hot-plug slot for the model {interface.model} on this machine"
    return case.takes_port() or answer


def _unplug(device: Element | None, case: _Case) -> Answer:
    place = None if device is None else device.find("address")
    if place is not None and _is_pcie(case.live) and place.get("type") == "pci" and not int(place.get("bus") or "0", 0):
        return _E.NEXT_BOOT, "the device sits on the machine's root bus, from which nothing can be unplugged"
    return _E.LIVE, ""


EFFECTS: Final[Mapping[str, Callable[[_Case], Answer]]] = {
    "vcpus": _vcpus,
    "memory_bytes": _memory,
    "max_vcpus": _limit,
    "max_memory_bytes": _limit,
    "disks": _disks,
    "interfaces": _interfaces,
}
"""The fields that can change in a running guest; every other one waits for its next start."""


# ------------------------------------------------------------------------------------------- helpers


def _named(entries: Sequence[Any], name: str) -> Any:
    return next((entry for entry in entries if entry.name == name), None)


def _is_pcie(domain: Element) -> bool:
    return any(found.get("model") == "pcie-root" for found in domain.findall("devices/controller"))


def free_ports(domain: Element) -> int:
    """PCI Express root ports of a running domain that no device uses."""
    ports = {
        int(found.get("index") or 0)
        for found in domain.findall("devices/controller")
        if found.get("model") == "pcie-root-port"
    }
    used = {
        int(found.get("bus") or "0", 0) for found in domain.iterfind("devices/*/address") if found.get("type") == "pci"
    }
    return len(ports - used)
