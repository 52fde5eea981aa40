"""Whether a spec's disks, interfaces and lesser devices are right in themselves, and with each other."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterator, Sequence
from dataclasses import fields
from typing import Final

from virtd.model.devices import FilesystemKind, HostDeviceSpec, IoTune, PortForward, UsbHostDevice
from virtd.model.guest import DiskDevice, DiskSpec, Firmware, GuestSpec, InterfaceKind, InterfaceSpec
from virtd.model.names import shown
from virtd.service.violations import CONTROL, TEXT_MAX, Violations, check_part_names, check_path_form

DEVICES_MAX: Final = 64
PORT_MAX: Final = 65535
MTU: Final = (68, 65535)
BOOT_ORDER_MAX: Final = 1000
RATE_MAX: Final = 2**50
TAG_MAX: Final = {FilesystemKind.VIRTIOFS: 36, FilesystemKind.P9: 31}
"""Letters that the guest's driver takes as the name of a share."""

_SERIAL: Final = re.compile(r"[A-Za-z0-9_-]{1,20}")
_PCI: Final = re.compile(r"[0-9a-f]{4}:[0-9a-f]{2}:[01][0-9a-f]\.[0-7]", re.IGNORECASE)
_VIDEO: Final = re.compile(r"[a-z0-9][a-z0-9_-]{0,31}")
_ID_MAX: Final = 0xFFFF
_USB_BUS_MAX: Final = 255
_USB_DEVICE_MAX: Final = 127
_EVERY: Final = ("0.0.0.0", "::")  # noqa: S104 - what a caller may have said


def check_devices(wrong: Violations, spec: GuestSpec, prefix: str) -> None:
    """Everything but names and sources of disks, and networks of interfaces."""
    for index, disk in enumerate(spec.disks):
        _check_disk(wrong, disk, f"{prefix}.disks[{index}]")
    _check_serials(wrong, spec.disks, f"{prefix}.disks")
    for index, interface in enumerate(spec.interfaces):
        _check_interface(wrong, interface, f"{prefix}.interfaces[{index}]")
    _check_forwards(wrong, spec.interfaces, f"{prefix}.interfaces")
    _check_boot_orders(wrong, spec, prefix)
    _check_filesystems(wrong, spec, f"{prefix}.filesystems")
    _check_host_devices(wrong, spec.host_devices, f"{prefix}.host_devices")
    _check_shared_names(wrong, spec, prefix)
    if spec.graphics is not None and spec.graphics.video_model and not _VIDEO.fullmatch(spec.graphics.video_model):
        wrong.add(
            f"{prefix}.graphics.video_model", f"{shown(spec.graphics.video_model)} is not a video card", "virtio", "vga"
        )
    if spec.secure_boot and spec.firmware is not Firmware.UEFI:
        wrong.add(f"{prefix}.secure_boot", "is a matter of UEFI: set firmware UEFI, or leave it out", "false")


# --------------------------------------------------------------------------------------------- disks


def _check_disk(wrong: Violations, disk: DiskSpec, field: str) -> None:
    cdrom = disk.device is DiskDevice.CDROM
    if cdrom and disk.blank is not None:
        wrong.add(f"{field}.blank", "nobody can write to a CD-ROM: give it an image, a volume, a host_file or nothing")
    if disk.discard and (disk.read_only or cdrom):
        wrong.add(f"{field}.discard", "a disk that is not written to has nothing to discard", "false")
    if disk.serial and not _SERIAL.fullmatch(disk.serial):
        wrong.add(f"{field}.serial", f"{shown(disk.serial)} is not 1 to 20 letters, digits, '_' or '-'")
    if disk.io_tune is not None:
        _check_limits(wrong, disk.io_tune, f"{field}.io_tune")


def _check_limits(wrong: Violations, tune: IoTune, field: str) -> None:
    for limit in fields(tune):
        value = getattr(tune, limit.name)
        if value > RATE_MAX:
            wrong.add(f"{field}.{limit.name}", f"must be at most {RATE_MAX}, not {value}; 0 is no limit", "0")
    for kind in ("bytes_per_s", "requests_per_s"):
        parts = [name for name in (f"read_{kind}", f"write_{kind}") if getattr(tune, name)]
        if getattr(tune, f"total_{kind}") and parts:
            wrong.add(f"{field}.total_{kind}", f"cannot be together with {parts[0]}: give the total, or its parts")


def _check_serials(wrong: Violations, disks: Sequence[DiskSpec], field: str) -> None:
    seen: dict[str, str] = {}
    for index, disk in enumerate(disks):
        if disk.serial and disk.serial in seen:
            wrong.add(f"{field}[{index}].serial", f"{disk.serial} is the serial number of {seen[disk.serial]} too")
        seen[disk.serial] = disk.name


# ---------------------------------------------------------------------------------------- interfaces


def _check_interface(wrong: Violations, interface: InterfaceSpec, field: str) -> None:
    least, most = MTU
    if interface.mtu is not None and not least <= interface.mtu <= most:
        wrong.add(f"{field}.mtu", f"must be {least} to {most}, not {interface.mtu}")
    if interface.port_forwards and interface.kind is not InterfaceKind.USER:
        wrong.add(
            f"{field}.port_forwards",
            f"ports are forwarded to kind USER only; a guest on a {interface.kind.value} is reached by its address",
        )
    for index, forward in enumerate(interface.port_forwards):
        name = f"{field}.port_forwards[{index}]"
        for which in ("host_port", "guest_port"):
            if not 1 <= getattr(forward, which) <= PORT_MAX:
                wrong.add(f"{name}.{which}", f"must be 1 to {PORT_MAX}, not {getattr(forward, which)}")
        if forward.host_address and not _is_address(forward.host_address):
            wrong.add(f"{name}.host_address", f"{shown(forward.host_address)} is not an IP address", "127.0.0.1")


def _check_forwards(wrong: Violations, interfaces: Sequence[InterfaceSpec], prefix: str) -> None:
    seen: list[tuple[PortForward, str]] = []
    for field, forward in _forwards(interfaces, prefix):
        for other, where in seen:
            if _meet(forward, other):
                wrong.add(
                    f"{field}.host_port", f"{forward.protocol.value} port {forward.host_port} is taken by {where}"
                )
                break
        seen.append((forward, field))


def _forwards(interfaces: Sequence[InterfaceSpec], prefix: str) -> Iterator[tuple[str, PortForward]]:
    for index, interface in enumerate(interfaces):
        for number, forward in enumerate(interface.port_forwards):
            yield f"{prefix}[{index}].port_forwards[{number}]", forward


def _meet(one: PortForward, other: PortForward) -> bool:
    """Whether both want to listen at the same place."""
    if (one.protocol, one.host_port) != (other.protocol, other.host_port):
        return False
    addresses = {forward.host_address or "127.0.0.1" for forward in (one, other)}
    return len(addresses) == 1 or any(address in _EVERY for address in addresses)


def _check_boot_orders(wrong: Violations, spec: GuestSpec, prefix: str) -> None:
    orders: dict[int, str] = {}
    devices: tuple[tuple[str, tuple[DiskSpec | InterfaceSpec, ...]], ...] = (
        ("disk", spec.disks),
        ("interface", spec.interfaces),
    )
    for kind, entries in devices:
        for index, device in enumerate(entries):
            if device.boot_order is None:
                continue
            field = f"{prefix}.{kind}s[{index}].boot_order"
            if not 1 <= device.boot_order <= BOOT_ORDER_MAX:
                wrong.add(field, f"must be 1 to {BOOT_ORDER_MAX}, not {device.boot_order}")
            if device.boot_order in orders:
                wrong.add(field, f"{device.boot_order} is taken by {orders[device.boot_order]}")
            orders[device.boot_order] = f"{kind} {device.name}"


# ------------------------------------------------------------------------- directories, host devices


def _check_filesystems(wrong: Violations, spec: GuestSpec, prefix: str) -> None:
    if len(spec.filesystems) > DEVICES_MAX:
        wrong.add(prefix, f"must be at most {DEVICES_MAX}, not {len(spec.filesystems)}")
        return
    check_part_names(wrong, [filesystem.name for filesystem in spec.filesystems], prefix)
    for index, filesystem in enumerate(spec.filesystems):
        most = TAG_MAX[filesystem.kind]
        if len(filesystem.name) > most:
            wrong.add(f"{prefix}[{index}].name", f"is the tag to mount it by: at most {most} letters")
        check_path_form(wrong, filesystem.path, f"{prefix}[{index}].path")


def _check_host_devices(wrong: Violations, devices: Sequence[HostDeviceSpec], prefix: str) -> None:
    if len(devices) > DEVICES_MAX:
        wrong.add(prefix, f"must be at most {DEVICES_MAX}, not {len(devices)}")
        return
    check_part_names(wrong, [device.name for device in devices], prefix)
    seen: dict[object, str] = {}
    for index, device in enumerate(devices):
        field = f"{prefix}[{index}]"
        if (device.pci is None) == (device.usb is None):
            wrong.add(f"{field}.device", "exactly one of pci, usb is required")
            continue
        if device.pci is not None and not _PCI.fullmatch(device.pci.address):
            wrong.add(
                f"{field}.pci.address", f"{shown(device.pci.address)} is not a PCI address of the form 0000:01:00.0"
            )
        if device.usb is not None:
            _check_usb(wrong, device.usb, f"{field}.usb")
        key: object = device.usb if device.pci is None else device.pci.address.lower()
        if key in seen:
            wrong.add(field, f"is the same device as {seen[key]}")
        seen[key] = device.name


def _check_usb(wrong: Violations, usb: UsbHostDevice, field: str) -> None:
    by_kind, by_place = bool(usb.vendor_id or usb.product_id), bool(usb.bus or usb.device)
    if by_kind == by_place:
        wrong.add(field, "give either vendor_id and product_id, or bus and device")
        return
    limits = {"vendor_id": (1, _ID_MAX), "product_id": (0, _ID_MAX)}
    if by_place:
        limits = {"bus": (1, _USB_BUS_MAX), "device": (1, _USB_DEVICE_MAX)}
    for name, (least, most) in limits.items():
        if not least <= getattr(usb, name) <= most:
            wrong.add(f"{field}.{name}", f"must be {least} to {most}, not {getattr(usb, name)}")


def _check_shared_names(wrong: Violations, spec: GuestSpec, prefix: str) -> None:
    """Disks, directories and devices of the host are named alike, in events as in commands."""
    seen: dict[str, str] = {}
    for kind in ("disks", "filesystems", "host_devices"):
        for index, part in enumerate(getattr(spec, kind)):
            if seen.get(part.name, kind) != kind:
                wrong.add(f"{prefix}.{kind}[{index}].name", f"{part.name} is a name in {seen[part.name]} too")
            seen.setdefault(part.name, kind)


def _is_address(text: str) -> bool:
    if CONTROL.search(text) or len(text) > TEXT_MAX:
        return False
    try:
        ipaddress.ip_address(text)
    except ValueError:
        return False
    return True
