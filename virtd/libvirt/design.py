"""Parts of a designer that every hypervisor behind libvirt needs in the same way.  Pure."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import fields
from typing import Final

from virtd.backend.api import ResolvedGuest
from virtd.backend.notes import Notes
from virtd.libvirt.words import LIMITS
from virtd.libvirt.xml.disk import Limits
from virtd.libvirt.xml.hostdev import HostDevice, PciSource, UsbSource
from virtd.libvirt.xml.metadata import Metadata
from virtd.model.devices import HostDeviceSpec, IoTune

KIB: Final = 1024


def vcpus_of(guest: ResolvedGuest) -> tuple[int, int | None]:
    """The most that it can have, and what is on at the start (None: all)."""
    most = max(guest.max_vcpus or 0, guest.vcpus)
    return most, guest.vcpus if most != guest.vcpus else None


def memory_of(guest: ResolvedGuest, notes: Notes) -> tuple[int, int | None]:
    """The most that it can have, and what it is to have (None: all of it)."""
    most = max(guest.max_memory_bytes or 0, guest.memory_bytes)
    for value, field in ((guest.memory_bytes, "memory_bytes"), (guest.max_memory_bytes or 0, "max_memory_bytes")):
        if value % KIB:
            notes.degrade(f"spec.{field}", "libvirt counts memory in KiB: rounded up to the next")
    if most == guest.memory_bytes:
        return most, None
    if guest.memory is not None and guest.memory.balloon is False:
        notes.reject("spec.max_memory_bytes", "without a balloon the guest always has all of its memory")
    return most, guest.memory_bytes


def limits_of(tune: IoTune | None) -> Limits | None:
    """``<iotune>``."""
    if tune is None or tune == IoTune():
        return None
    return Limits(**{field.name: getattr(tune, LIMITS[field.name]) for field in fields(Limits)})


def letters(position: int) -> str:
    """0 -> a, 25 -> z, 26 -> aa: how Linux and libvirt count disks."""
    text = ""
    position += 1
    while position:
        position, rest = divmod(position - 1, 26)
        text = chr(ord("a") + rest) + text
    return text


def next_target(prefix: str, taken: Iterable[str]) -> str:
    """The first name of a disk with this prefix (``vd``, ``xvd``) that is free."""
    taken, position = set(taken), 0
    while (name := prefix + letters(position)) in taken:
        position += 1
    return name


def boot_orders(guest: ResolvedGuest, notes: Notes) -> list[int | None]:
    """Of the disks.  As given; where nothing is given and no kernel is booted directly, in order of the disks."""
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


def metadata_of(guest: ResolvedGuest, targets: Iterable[str]) -> Metadata:
    """Virtd's own element: which disk and which interface has which name in the spec."""
    return Metadata(
        disks={target: spec.name for target, spec in zip(targets, guest.disks, strict=True)},
        interfaces={interface.mac: interface.name for interface in guest.interfaces},
        options=dict(sorted(guest.backend_options.items())),
    )


def host_device(device: HostDeviceSpec) -> HostDevice:
    """One ``<hostdev>``."""
    if device.pci is not None:
        domain, bus, rest = device.pci.address.lower().split(":")
        slot, _, function = rest.partition(".")
        return HostDevice(device.name, "pci", pci=PciSource(domain, bus, slot, function))
    assert device.usb is not None  # exactly one is set: the core has seen to it
    usb = device.usb
    return HostDevice(device.name, "usb", usb=UsbSource(usb.vendor_id, usb.product_id, usb.bus, usb.device))
