"""What a change of each field does to a guest of Xen, as it is now: one table.

Whose limit it is, is said: most are those of libvirt's libxl driver, not of Xen.  Each was seen with
libvirt 9.0 and Xen 4.17.  The page ``docs/howto/update.md`` is checked against :data:`POLICY`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from virtd.backend import capabilities as ids
from virtd.backend.api import ResolvedDisk, UpdateEffect
from virtd.libvirt import effects
from virtd.libvirt.effects import Answer, Case, UpdatePolicy
from virtd.libvirt.xml.build import Element, attribute
from virtd.libvirt.xml.merge import names_of_disks
from virtd.model.devices import LinkState
from virtd.model.guest import DiskDevice, DiskFormat
from virtd_xen.dialect import HVM

_E: Final = UpdateEffect

IO_TUNE_REASON: Final = "neither Xen nor libvirt's libxl driver limits a guest's disk"
RESIZE_LIMITS: Final = (
    "stopped guests only: libvirt's libxl driver has no call that tells a running guest of its disk's new size"
)
LINK_REASON: Final = "libvirt's libxl driver cannot change an interface of a running guest: detach and attach it"
INTERFACE_LIMITS: Final = f"in and out, but not its cable: {LINK_REASON}"
DISK_LIMITS: Final = (
    "on Xen's own bus; one that QEMU serves (qcow2) only where the guest was started with such a disk, "
    "a display or as HVM: libxl starts that QEMU together with the guest"
)
EMPTY_DRIVE: Final = (
    "Xen's QEMU 7.2 crashes when a medium is put into a drive that was empty when the guest started, "
    "and whether this one was is not known any more"
)
"""Seen with qemu-system-xen 7.2.22: it answers libxl by a segmentation fault; the guest lives on without it."""
MEDIUM_LIMITS: Final = f"HVM guests only (others have no drives), and never into an empty drive: {EMPTY_DRIVE}"
VCPU_LIMITS: Final = "the guest's system has to switch the new processor on (on Linux: a udev rule does)"
NO_QEMU: Final = (
    "libxl serves qcow2 by a QEMU that it starts together with the guest, and this guest was started without: "
    "use a raw disk, or wait for the next start"
)

UNSUPPORTED: Final[Mapping[str, str]] = {ids.UPDATE_IO_TUNE: IO_TUNE_REASON}
"""Capabilities about updates that no Xen host has behind libvirt, and why."""

PARTIAL: Final[Mapping[str, str]] = {
    ids.UPDATE_DISKS: DISK_LIMITS,
    ids.UPDATE_INTERFACES: INTERFACE_LIMITS,
    ids.UPDATE_MEDIUM: MEDIUM_LIMITS,
    ids.UPDATE_RESIZE: RESIZE_LIMITS,
    ids.UPDATE_VCPUS: VCPU_LIMITS,
}
"""Capabilities about updates that hosts have in part, and what is missing."""

_AT_START: Final = "Xen is told at the guest's start only"


def needs_qemu(disk: ResolvedDisk) -> bool:
    """Whether dom0 serves the disk by a QEMU: blkback, the kernel's own way, knows raw disks only.

    The emulated drives of an HVM guest are QEMU's anyway.
    """
    return disk.format is not DiskFormat.RAW or disk.device is DiskDevice.CDROM


def has_qemu(live: Element) -> bool:
    """Whether libxl has started a QEMU for the running domain."""
    return (
        attribute(live, "os/type", "machine") == HVM
        or live.find("devices/graphics") is not None
        or any(found.get("name") == "qemu" for found in live.findall("devices/disk/driver"))
    )


def _machine(_case: Case) -> Answer:
    return _E.REPLACE, "a guest of another type sees other devices"


def _disk_always(case: Case) -> Answer | None:
    resized = bool(case.rest) and case.rest[-1].name == "capacity_bytes"
    if resized and case.facts.live is not None and case.old() is not None and case.new() is not None:
        return _E.REJECTED, RESIZE_LIMITS
    return effects.disk_content(case)


def _disk(case: Case) -> Answer:
    if case.what == "io_tune":
        return _E.REJECTED, IO_TUNE_REASON  # at the next start just as little
    held = names_of_disks(case.live).get(case.part.key)
    if case.what in effects.MEDIUM_FIELDS and held is not None and held.find("source") is None:
        return _E.NEXT_BOOT, EMPTY_DRIVE
    return _OTHERWISE(case)


def _plug_disk(case: Case, disk: ResolvedDisk, held: Element | None) -> Answer:
    if disk.device is DiskDevice.CDROM:
        return _E.NEXT_BOOT, "libxl takes CD-ROM drives in and out at the guest's start only"
    bus = attribute(held, "target", "bus") if held is not None else disk.bus.value.lower()
    if bus in ("ide", "sata", "scsi"):
        return _E.NEXT_BOOT, f"nothing is plugged into a running guest's {bus.upper()} bus, which QEMU emulates"
    answer = case.unless_missing(ids.UPDATE_DISKS)
    if answer[0] is _E.LIVE and case.old() is None and needs_qemu(disk) and not has_qemu(case.live):
        return _E.NEXT_BOOT, NO_QEMU
    return answer


def _plug_interface(case: Case, interface: Any, _held: Element | None) -> Answer:
    answer = case.unless_missing(ids.UPDATE_INTERFACES)
    if answer[0] is _E.LIVE and case.old() is None and interface.model not in _PARAVIRTUAL:
        return _E.NEXT_BOOT, f"the model {interface.model} is emulated by QEMU, which libxl tells at the start only"
    return answer


_PARAVIRTUAL: Final = ("", "netfront")


def _link(case: Case) -> Answer:
    if case.new() is not None and case.new().link_state is not LinkState.DOWN:
        return effects.LIVE  # every cable is plugged in
    return _E.REJECTED, LINK_REASON


_OTHERWISE: Final = effects.disks(_plug_disk, _AT_START)

POLICY: Final = UpdatePolicy(
    always={
        "firmware": effects.firmware,
        "secure_boot": effects.firmware,
        "machine": _machine,
        "disks": _disk_always,
    },
    running={
        "vcpus": effects.vcpus,
        "memory_bytes": effects.memory,
        "max_vcpus": effects.limit,
        "max_memory_bytes": effects.limit,
        "disks": _disk,
        "interfaces": effects.interfaces(_plug_interface, _link, _AT_START),
    },
    at_start=_AT_START,
)
"""The fields that can change in a running guest are under ``running``; every other one waits for its next start."""
