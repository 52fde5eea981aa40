"""Disks, and the controllers that they hang on.

Debian's cloud kernel has no ahci driver, so CD-ROMs sit on virtio-scsi unless something else is asked.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import fields
from typing import Final

from virtd.backend.api import ResolvedDisk, ResolvedGuest
from virtd.libvirt.xml.controller import Controller
from virtd.libvirt.xml.disk import Disk, Limits
from virtd.model.devices import DiskCache, IoTune
from virtd.model.guest import DiskBus, DiskDevice, DiskFormat
from virtd_kvm.design.machine import has_pcie
from virtd_kvm.design.notes import Notes
from virtd_kvm.design.platform import Platform

PREFIXES: Final = {DiskBus.VIRTIO: "vd", DiskBus.SCSI: "sd", DiskBus.SATA: "sd", DiskBus.IDE: "hd"}
_MAX_IDE: Final = 4
_UNCACHED: Final = (DiskCache.NONE, DiskCache.DIRECTSYNC)

LIMITS: Final = {
    "total_bytes_sec": "total_bytes_per_s",
    "read_bytes_sec": "read_bytes_per_s",
    "write_bytes_sec": "write_bytes_per_s",
    "total_iops_sec": "total_requests_per_s",
    "read_iops_sec": "read_requests_per_s",
    "write_iops_sec": "write_requests_per_s",
}
"""libvirt's word for a limit -> the spec's."""


def disks_of(
    guest: ResolvedGuest, platform: Platform, machine: str, options: Mapping[str, str], notes: Notes
) -> tuple[Disk, ...]:
    """``<disk>`` for each, in the order of the spec."""
    orders = _boot_orders(guest, notes)
    taken: list[str] = []
    made = []
    for index, disk in enumerate(guest.disks):
        path = f"spec.disks[{index}]"
        if not platform.test:
            check_disk(disk, path, machine, notes)
            if disk.bus is DiskBus.IDE and sum(target.startswith("hd") for target in taken) >= _MAX_IDE:
                notes.reject(f"{path}.bus", "the IDE bus takes four disks", "VIRTIO", "SCSI")
            if options.get("disk_io") == "native" and disk.path and disk.cache not in _UNCACHED:
                notes.reject(f"{path}.cache", "disk_io native needs the cache mode NONE or DIRECTSYNC", *_UNCACHED)
        target = next_target(disk.bus, taken)
        taken.append(target)
        made.append(disk_device(disk, target, boot_order=orders[index], io=options.get("disk_io", "")))
    return tuple(made)


def disk_device(disk: ResolvedDisk, target: str, *, boot_order: int | None = None, io: str = "") -> Disk:
    """One ``<disk>``."""
    return Disk(
        target=target,
        bus=disk.bus.value.lower(),
        path=disk.path,
        format="qcow2" if disk.format is DiskFormat.QCOW2 else "raw",
        device="cdrom" if disk.device is DiskDevice.CDROM else "disk",
        read_only=disk.read_only or disk.device is DiskDevice.CDROM,
        boot_order=boot_order,
        cache="" if disk.cache is None else disk.cache.value.lower(),
        discard="unmap" if disk.discard else "",
        io=io,
        serial=disk.serial,
        limits=_limits(disk.io_tune),
    )


def check_disk(disk: ResolvedDisk, path: str, machine: str, notes: Notes) -> None:
    """What a single disk cannot have on this machine."""
    plain = disk.device is DiskDevice.DISK
    if disk.bus is DiskBus.VIRTIO and not plain:
        notes.reject(f"{path}.bus", "QEMU has no virtio CD-ROM", "SCSI", "SATA")
    if disk.bus is DiskBus.IDE and has_pcie(machine):
        notes.reject(f"{path}.bus", f"the machine {machine} has no IDE bus", "VIRTIO", "SCSI", "SATA")
    if disk.bus in (DiskBus.IDE, DiskBus.SATA) and disk.read_only and plain:
        notes.reject(f"{path}.read_only", f"a disk on the {disk.bus.value} bus cannot be read-only", "VIRTIO", "SCSI")


def next_target(bus: DiskBus, taken: Iterable[str]) -> str:
    """The first name of a device on this bus that is free: ``vda``, ``sdb``."""
    taken, position = set(taken), 0
    while (name := PREFIXES[bus] + letters(position)) in taken:
        position += 1
    return name


def controllers_of(disks: Iterable[Disk], machine: str, *, usb: bool) -> Iterator[Controller]:
    """What libvirt would not choose by itself, or would choose otherwise."""
    if has_pcie(machine):
        yield Controller("pci", 0, "pcie-root")
    if any(disk.bus == "scsi" for disk in disks):
        yield Controller("scsi", 0, "virtio-scsi")
    if usb:
        yield Controller("usb", 0, "qemu-xhci")


def _limits(tune: IoTune | None) -> Limits | None:
    if tune is None or tune == IoTune():
        return None
    return Limits(**{field.name: getattr(tune, LIMITS[field.name]) for field in fields(Limits)})


def _boot_orders(guest: ResolvedGuest, notes: Notes) -> list[int | None]:
    """As given; where nothing is given and no kernel is booted directly, in order of the disks."""
    given = [disk.boot_order for disk in guest.disks]
    of_interfaces = [interface.boot_order for interface in guest.interfaces]
    if all(order is None for order in (*given, *of_interfaces)):
        if guest.direct_kernel_boot is not None:
            return given
        return list(range(1, len(given) + 1))
    seen: set[int] = set()
    for kind, orders in (("disks", given), ("interfaces", of_interfaces)):
        for index, order in enumerate(orders):
            if order is None:
                continue
            if order < 1 or order in seen:
                notes.reject(f"spec.{kind}[{index}].boot_order", "must be 1 or more and different for each device")
            seen.add(order)
    return given


def letters(position: int) -> str:
    """0 -> a, 25 -> z, 26 -> aa: how Linux and libvirt count disks."""
    text = ""
    position += 1
    while position:
        position, rest = divmod(position - 1, 26)
        text = chr(ord("a") + rest) + text
    return text
