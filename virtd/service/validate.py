"""Is a guest spec right, whatever the host?  Every wrong field is named at once, with what to do.

No I/O except resolving symbolic links of host paths, so that a link cannot lead out of the allowed
directories.
"""

from __future__ import annotations

import ipaddress
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import PurePosixPath
from typing import Final

from virtd.errors import (
    PATH_NOT_ALLOWED,
    FieldViolation,
    InvalidArgumentError,
)
from virtd.model.guest import DiskDevice, DiskSpec, GuestSpec, InterfaceKind, InterfaceSpec
from virtd.model.names import parse, shown
from virtd.service.cloud_init import check_cloud_init
from virtd.service.validate_devices import check_devices
from virtd.service.validate_processor import check_memory, check_processor
from virtd.service.violations import CONTROL, TEXT_MAX, Violations, check_part_names, check_path_form

__all__ = ["SECTOR", "TEXT_MAX", "Violations", "check_allowed_path", "check_capacity", "check_spec", "check_texts"]

CAPACITY_MAX: Final = 2**50
DISKS_MAX: Final = 64
LABELS_MAX: Final = 64
ANNOTATIONS_BYTES_MAX: Final = 64 * 1024
COMMAND_LINE_MAX: Final = 2048
SECTOR: Final = 512

_MAC: Final = re.compile(r"[0-9a-f]{2}(:[0-9a-f]{2}){5}", re.IGNORECASE)
_LABEL_KEY: Final = re.compile(r"[a-zA-Z0-9]([a-zA-Z0-9._/-]{0,61}[a-zA-Z0-9])?")
_NETWORK: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+@-]{0,62}")


def check_spec(spec: GuestSpec, host: str, prefix: str = "guest.spec") -> None:
    """Check everything about a spec that no host is needed for.

    :raises InvalidArgumentError: FIELD_INVALID naming every wrong field.
    """
    wrong = Violations()
    check_processor(wrong, spec, prefix)
    check_memory(wrong, spec, prefix)
    if CONTROL.search(spec.machine) or len(spec.machine) > TEXT_MAX:
        wrong.add(f"{prefix}.machine", "must be a short text without control characters")
    if spec.direct_kernel_boot is not None:
        boot = spec.direct_kernel_boot
        check_path_form(wrong, boot.kernel_path, f"{prefix}.direct_kernel_boot.kernel_path")
        if boot.initrd_path:
            check_path_form(wrong, boot.initrd_path, f"{prefix}.direct_kernel_boot.initrd_path")
        if CONTROL.search(boot.command_line) or len(boot.command_line) > COMMAND_LINE_MAX:
            wrong.add(
                f"{prefix}.direct_kernel_boot.command_line",
                f"must be at most {COMMAND_LINE_MAX} characters without control characters",
            )
    _check_disks(wrong, spec.disks, host, f"{prefix}.disks")
    _check_interfaces(wrong, spec.interfaces, f"{prefix}.interfaces")
    check_cloud_init(wrong, spec, prefix)
    check_devices(wrong, spec, prefix)
    if spec.graphics is not None and spec.graphics.listen:
        try:
            ipaddress.ip_address(spec.graphics.listen)
        except ValueError:
            wrong.add(f"{prefix}.graphics.listen", f"{shown(spec.graphics.listen)} is not an IP address", "127.0.0.1")
    wrong.check()


def check_texts(display_name: str, labels: Mapping[str, str], annotations: Mapping[str, str]) -> None:
    """Check what the user says of a guest.

    :raises InvalidArgumentError: FIELD_INVALID naming every wrong field.
    """
    wrong = Violations()
    if CONTROL.search(display_name) or len(display_name) > TEXT_MAX:
        wrong.add("guest.display_name", f"must be at most {TEXT_MAX} characters without control characters")
    if len(labels) > LABELS_MAX:
        wrong.add("guest.labels", f"must be at most {LABELS_MAX}")
    for key, value in labels.items():
        if not _LABEL_KEY.fullmatch(key):
            wrong.add(f"guest.labels[{shown(key)}]", "is not a valid key: use letters, digits, '.', '_', '-', '/'")
        if CONTROL.search(value) or len(value) > TEXT_MAX:
            wrong.add(
                f"guest.labels[{shown(key)}]", f"must be at most {TEXT_MAX} characters without control characters"
            )
    size = sum(len(key) + len(value) for key, value in annotations.items())
    if size > ANNOTATIONS_BYTES_MAX:
        wrong.add("guest.annotations", f"must be at most {ANNOTATIONS_BYTES_MAX} characters in all, not {size}")
    for key in annotations:
        if not key or CONTROL.search(key) or len(key) > TEXT_MAX:
            wrong.add(f"guest.annotations[{shown(key)}]", "is not a valid key")
    wrong.check()


def check_capacity(value: int, field: str, wrong: Violations) -> None:
    """A size that a disk can have."""
    if value <= 0:
        wrong.add(field, "must be greater than zero")
    elif value > CAPACITY_MAX:
        wrong.add(field, f"must be at most {CAPACITY_MAX} (1 PiB), not {value}")
    elif value % SECTOR:
        wrong.add(field, f"must be a multiple of {SECTOR}, not {value}", str(-(-value // SECTOR) * SECTOR))


def check_allowed_path(path: str, allowed: Sequence[str], field: str, *, local: bool) -> str:
    """Return the path if it lies in an allowed directory.

    :param local: the path is of this machine: links are followed before the comparison.
    :raises InvalidArgumentError: PATH_NOT_ALLOWED, naming the field and the allowed directories.
    """
    real = os.path.realpath(path) if local else os.path.normpath(path)
    for directory in allowed:
        root = os.path.realpath(directory) if local else os.path.normpath(directory)
        if PurePosixPath(real).is_relative_to(root):
            return real
    description = f"{shown(path)} lies outside the allowed directories"
    raise InvalidArgumentError(
        PATH_NOT_ALLOWED,
        f"{field}: {description} ({', '.join(allowed) or 'none'})",
        violations=(FieldViolation(field, description, tuple(allowed)),),
    )


def _check_disks(wrong: Violations, disks: Sequence[DiskSpec], host: str, prefix: str) -> None:
    if len(disks) > DISKS_MAX:
        wrong.add(prefix, f"must be at most {DISKS_MAX}, not {len(disks)}")
        return
    check_part_names(wrong, [disk.name for disk in disks], prefix)
    for index, disk in enumerate(disks):
        field = f"{prefix}[{index}]"
        _check_source(wrong, disk, host, field)


def _check_source(wrong: Violations, disk: DiskSpec, host: str, field: str) -> None:
    sources = [source for source in (disk.blank, disk.image, disk.volume, disk.host_file) if source is not None]
    if not sources and disk.device is DiskDevice.CDROM:
        return
    if len(sources) != 1:
        wrong.add(f"{field}.source", "exactly one of blank, image, volume, host_file is required")
        return
    if disk.blank is not None:
        check_capacity(disk.blank.capacity_bytes, f"{field}.blank.capacity_bytes", wrong)
        _check_pool(wrong, disk.blank.pool, f"{field}.blank.pool")
    elif disk.image is not None:
        if disk.image.capacity_bytes is not None:
            check_capacity(disk.image.capacity_bytes, f"{field}.image.capacity_bytes", wrong)
        _check_pool(wrong, disk.image.pool, f"{field}.image.pool")
        _check_name(wrong, disk.image.image, "images/{image}", f"{field}.image.image")
    elif disk.volume is not None:
        ids = _check_name(wrong, disk.volume, "hosts/{host}/pools/{pool}/volumes/{volume}", f"{field}.volume")
        if ids and ids["host"] != host:
            wrong.add(f"{field}.volume", f"is a volume of host {ids['host']}, the guest is on {host}")
    elif disk.host_file is not None:
        check_path_form(wrong, disk.host_file.path, f"{field}.host_file.path")


def _check_pool(wrong: Violations, pool: str, field: str) -> None:
    if pool and not _NETWORK.fullmatch(pool):
        wrong.add(field, f"{shown(pool)} is not a pool's id")


def _check_name(wrong: Violations, name: str, pattern: str, field: str) -> dict[str, str]:
    try:
        return parse(name, pattern, field)
    except InvalidArgumentError as error:
        wrong.found.extend(error.record.violations)
        return {}


def _check_interfaces(wrong: Violations, interfaces: Sequence[InterfaceSpec], prefix: str) -> None:
    if len(interfaces) > DISKS_MAX:
        wrong.add(prefix, f"must be at most {DISKS_MAX}, not {len(interfaces)}")
        return
    check_part_names(wrong, [interface.name for interface in interfaces], prefix)
    macs: dict[str, str] = {}
    for index, interface in enumerate(interfaces):
        field = f"{prefix}[{index}]"
        if interface.mac:
            _check_mac(wrong, interface.mac, f"{field}.mac")
            if interface.mac.lower() in macs:
                wrong.add(f"{field}.mac", f"is the address of interface {macs[interface.mac.lower()]} too")
            macs[interface.mac.lower()] = interface.name
        if interface.kind is InterfaceKind.USER:
            if interface.network:
                wrong.add(f"{field}.network", "must be empty for kind USER")
        elif not _NETWORK.fullmatch(interface.network):
            wrong.add(f"{field}.network", f"{shown(interface.network)} is not the name of a network or bridge")
        if CONTROL.search(interface.model) or len(interface.model) > TEXT_MAX:
            wrong.add(f"{field}.model", "must be a short text without control characters")


def _check_mac(wrong: Violations, mac: str, field: str) -> None:
    if not _MAC.fullmatch(mac):
        wrong.add(field, f"{shown(mac)} is not a MAC address of the form aa:bb:cc:dd:ee:ff")
    elif int(mac[:2], 16) & 1:
        wrong.add(field, f"{mac} is a multicast address: the first octet must be even")
