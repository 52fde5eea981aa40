"""What a change of each field does to a guest of QEMU, as it is now: one table.

The page ``docs/howto/update.md`` is checked against :data:`POLICY`.
"""

from __future__ import annotations

from typing import Any, Final

from virtd.backend import capabilities as ids
from virtd.backend.api import ResolvedDisk, UpdateEffect
from virtd.libvirt import effects
from virtd.libvirt.effects import Answer, Case, UpdatePolicy
from virtd.libvirt.xml.build import Element
from virtd.model.guest import DiskBus, DiskDevice

_E: Final = UpdateEffect

UNPLUG_REASON: Final = (
    "QEMU 7.2 with TCG refuses to take a virtual processor out of a running guest, "
    "and crashes at the guest's next reset if it was asked to"
)
"""Why virtual processors are not taken out live; the capability guest.update.vcpus.unplug has it too."""

_AT_START: Final = "QEMU is told at the guest's start only"
_NO_PORT: Final[Answer] = (
    _E.NEXT_BOOT,
    "no PCI Express port is free in the running guest; its next start has new ones",
)


def _machine(case: Case) -> Answer | None:
    if _family(case.current.machine) == _family(case.wanted.machine):
        return None
    return _E.REPLACE, "another kind of machine has its devices at other addresses"


def _family(machine: str) -> str:
    if "q35" in machine or not machine:
        return "q35"
    return "pc" if machine in ("pc", "ubuntu") or "i440fx" in machine else machine


def _vcpus(case: Case) -> Answer:
    answer = effects.vcpus(case)
    fewer = case.wanted.vcpus < effects.vcpus_of(case.live)[1]
    if answer[0] is _E.LIVE and fewer and case.live.get("type") != "kvm":
        return _E.NEXT_BOOT, UNPLUG_REASON
    return answer


def _plug_disk(case: Case, disk: ResolvedDisk, held: Element | None) -> Answer:
    if disk.device is DiskDevice.CDROM:
        return _E.NEXT_BOOT, "QEMU takes CD-ROM drives in and out at the guest's start only; their media any time"
    if disk.bus in (DiskBus.SATA, DiskBus.IDE):
        return _E.NEXT_BOOT, f"nothing is plugged into a running guest's {disk.bus.value} bus"
    answer = case.unless_missing(ids.UPDATE_DISKS)
    if answer[0] is not _E.LIVE:
        return answer
    if case.old() is not None:
        return _unplug(held, case)
    with_controller = disk.bus is DiskBus.SCSI and any(
        found.get("type") == "scsi" for found in case.live.findall("devices/controller")
    )
    return answer if with_controller or case.takes_slot() else _NO_PORT


def _plug_interface(case: Case, interface: Any, held: Element | None) -> Answer:
    answer = case.unless_missing(ids.UPDATE_INTERFACES)
    if answer[0] is not _E.LIVE:
        return answer
    if interface.port_forwards:
        return _E.NEXT_BOOT, "QEMU forwards ports from the guest's start on only"
    if case.old() is not None:
        return _unplug(held, case)
    if _is_pcie(case.live) and interface.model not in ("", "virtio", "e1000e"):
        return _E.NEXT_BOOT, f"there is no hot-plug slot for the model {interface.model} on this machine"
    return answer if case.takes_slot() else _NO_PORT


def _link(case: Case) -> Answer:
    return case.unless_missing(ids.UPDATE_INTERFACES)


def _unplug(device: Element | None, case: Case) -> Answer:
    place = None if device is None else device.find("address")
    if place is not None and _is_pcie(case.live) and place.get("type") == "pci" and not int(place.get("bus") or "0", 0):
        return _E.NEXT_BOOT, "the device sits on the machine's root bus, from which nothing can be unplugged"
    return effects.LIVE


def _is_pcie(domain: Element) -> bool:
    return any(found.get("model") == "pcie-root" for found in domain.findall("devices/controller"))


def free_ports(domain: Element) -> int | None:
    """PCI Express root ports of a running domain that no device uses; None: it needs none."""
    if not _is_pcie(domain):
        return None
    ports = {
        int(found.get("index") or 0)
        for found in domain.findall("devices/controller")
        if found.get("model") == "pcie-root-port"
    }
    used = {
        int(found.get("bus") or "0", 0) for found in domain.iterfind("devices/*/address") if found.get("type") == "pci"
    }
    return len(ports - used)


POLICY: Final = UpdatePolicy(
    always={
        "firmware": effects.firmware,
        "secure_boot": effects.firmware,
        "machine": _machine,
        "disks": effects.disk_content,
    },
    running={
        "vcpus": _vcpus,
        "memory_bytes": effects.memory,
        "max_vcpus": effects.limit,
        "max_memory_bytes": effects.limit,
        "disks": effects.disks(_plug_disk, _AT_START),
        "interfaces": effects.interfaces(_plug_interface, _link, _AT_START),
    },
    at_start=_AT_START,
    free_slots=free_ports,
)
"""The fields that can change in a running guest are under ``running``; every other one waits for its next start."""
