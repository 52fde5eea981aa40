"""Disks, and the controllers that they hang on.

Debian's cloud kernel has no ahci driver, so CD-ROMs sit on virtio-scsi unless something else is asked.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Final

from virtd.backend.api import ResolvedDisk, ResolvedGuest
from virtd.backend.notes import Notes
from virtd.libvirt.design import boot_orders, limits_of, next_target
from virtd.libvirt.words import FORMATS
from virtd.libvirt.xml.controller import Controller
from virtd.libvirt.xml.disk import Disk
from virtd.model.devices import DiskCache
from virtd.model.guest import DiskBus, DiskDevice
from virtd_kvm.design.machine import has_pcie
from virtd_kvm.design.platform import Platform

PREFIXES: Final = {DiskBus.VIRTIO: "vd", DiskBus.SCSI: "sd", DiskBus.SATA: "sd", DiskBus.IDE: "hd"}
_MAX_IDE: Final = 4
_UNCACHED: Final = (DiskCache.NONE, DiskCache.DIRECTSYNC)


def disks_of(
    guest: ResolvedGuest, platform: Platform, machine: str, options: Mapping[str, str], notes: Notes
) -> tuple[Disk, ...]:
    """``<disk>`` for each, in the order of the spec."""
    orders = boot_orders(guest, notes)
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
        target = next_target(PREFIXES[disk.bus], taken)
        taken.append(target)
        made.append(disk_device(disk, target, boot_order=orders[index], io=options.get("disk_io", "")))
    return tuple(made)


def disk_device(disk: ResolvedDisk, target: str, *, boot_order: int | None = None, io: str = "") -> Disk:
    """One ``<disk>``."""
    return Disk(
        target=target,
        bus=disk.bus.value.lower(),
        path=disk.path,
        format=FORMATS[disk.format],
        device="cdrom" if disk.device is DiskDevice.CDROM else "disk",
        read_only=disk.read_only or disk.device is DiskDevice.CDROM,
        boot_order=boot_order,
        cache="" if disk.cache is None else disk.cache.value.lower(),
        discard="unmap" if disk.discard else "",
        io=io,
        serial=disk.serial,
        limits=limits_of(disk.io_tune),
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


def controllers_of(disks: Iterable[Disk], machine: str, *, usb: bool) -> Iterator[Controller]:
    """What libvirt would not choose by itself, or would choose otherwise."""
    if has_pcie(machine):
        yield Controller("pci", 0, "pcie-root")
    if any(disk.bus == "scsi" for disk in disks):
        yield Controller("scsi", 0, "virtio-scsi")
    if usb:
        yield Controller("usb", 0, "qemu-xhci")
