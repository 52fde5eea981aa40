"""Is a guest spec right, whatever the host?  Every wrong field is named at once, with what to do.

No I/O except resolving symbolic links of host paths, so that a link cannot lead out of the allowed
directories.
"""

from __future__ import annotations

import ipaddress
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import PurePosixPath
from typing import Final

from virtd.errors import (
    FIELD_INVALID,
    PATH_NOT_ALLOWED,
    FieldViolation,
    InvalidArgumentError,
)
from virtd.model.guest import DiskSpec, GuestSpec, InterfaceKind, InterfaceSpec
from virtd.model.names import parse, shown

MEMORY_MIN: Final = 16 * 2**20
MEMORY_MAX: Final = 2**44
VCPUS_MAX: Final = 512
CAPACITY_MAX: Final = 2**50
DISKS_MAX: Final = 64
TEXT_MAX: Final = 256
LABELS_MAX: Final = 64
ANNOTATIONS_BYTES_MAX: Final = 64 * 1024
COMMAND_LINE_MAX: Final = 2048
SECTOR: Final = 512

_PART_NAME: Final = re.compile(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?")
_MAC: Final = re.compile(r"[0-9a-f]{2}(:[0-9a-f]{2}){5}", re.IGNORECASE)
_LABEL_KEY: Final = re.compile(r"[a-zA-Z0-9]([a-zA-Z0-9._/-]{0,61}[a-zA-Z0-9])?")
_CONTROL: Final = re.compile(r"[\x00-\x1f\x7f]")
_NETWORK: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+@-]{0,62}")


class Violations:
    """Collects what is wrong; raises it all at once."""

    def __init__(self) -> None:
        self.found: list[FieldViolation] = []

    def add(self, field: str, description: str, *alternatives: str) -> None:
        """One more."""
        self.found.append(FieldViolation(field, description, alternatives))

    def check(self) -> None:
        """Raise if there is any.

        :raises InvalidArgumentError: FIELD_INVALID with all of them.
        """
        if self.found:
            raise InvalidArgumentError(
                FIELD_INVALID,
                "; ".join(f"{violation.field}: {violation.description}" for violation in self.found[:5]),
                violations=tuple(self.found),
            )


def check_spec(spec: GuestSpec, host: str, prefix: str = "guest.spec") -> None:
    """Check everything about a spec that no host is needed for.

    :raises InvalidArgumentError: FIELD_INVALID naming every wrong field.
    """
    wrong = Violations()
    if spec.vcpus is not None and not 1 <= spec.vcpus <= VCPUS_MAX:
        wrong.add(f"{prefix}.vcpus", f"must be 1 to {VCPUS_MAX}, not {spec.vcpus}")
    if spec.memory_bytes is None:
        wrong.add(f"{prefix}.memory_bytes", "is required")
    elif not MEMORY_MIN <= spec.memory_bytes <= MEMORY_MAX:
        wrong.add(
            f"{prefix}.memory_bytes", f"must be {MEMORY_MIN} (16 MiB) to {MEMORY_MAX} (16 TiB), not {spec.memory_bytes}"
        )
    if _CONTROL.search(spec.machine) or len(spec.machine) > TEXT_MAX:
        wrong.add(f"{prefix}.machine", "must be a short text without control characters")
    if spec.direct_kernel_boot is not None:
        boot = spec.direct_kernel_boot
        _check_path_form(wrong, boot.kernel_path, f"{prefix}.direct_kernel_boot.kernel_path")
        if boot.initrd_path:
            _check_path_form(wrong, boot.initrd_path, f"{prefix}.direct_kernel_boot.initrd_path")
        if _CONTROL.search(boot.command_line) or len(boot.command_line) > COMMAND_LINE_MAX:
            wrong.add(
                f"{prefix}.direct_kernel_boot.command_line",
                f"must be at most {COMMAND_LINE_MAX} characters without control characters",
            )
    _check_disks(wrong, spec.disks, host, f"{prefix}.disks")
    _check_interfaces(wrong, spec.interfaces, f"{prefix}.interfaces")
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
    if _CONTROL.search(display_name) or len(display_name) > TEXT_MAX:
        wrong.add("guest.display_name", f"must be at most {TEXT_MAX} characters without control characters")
    if len(labels) > LABELS_MAX:
        wrong.add("guest.labels", f"must be at most {LABELS_MAX}")
    for key, value in labels.items():
        if not _LABEL_KEY.fullmatch(key):
            wrong.add(f"guest.labels[{shown(key)}]", "is not a valid key: use letters, digits, '.', '_', '-', '/'")
        if _CONTROL.search(value) or len(value) > TEXT_MAX:
            wrong.add(
                f"guest.labels[{shown(key)}]", f"must be at most {TEXT_MAX} characters without control characters"
            )
    size = sum(len(key) + len(value) for key, value in annotations.items())
    if size > ANNOTATIONS_BYTES_MAX:
        wrong.add("guest.annotations", f"must be at most {ANNOTATIONS_BYTES_MAX} characters in all, not {size}")
    for key in annotations:
        if not key or _CONTROL.search(key) or len(key) > TEXT_MAX:
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


def _check_path_form(wrong: Violations, path: str, field: str) -> None:
    if not path:
        wrong.add(field, "is required")
    elif _CONTROL.search(path) or len(path) > os.pathconf("/", "PC_PATH_MAX"):
        wrong.add(field, "must be a path without control characters")
    elif not path.startswith("/"):
        wrong.add(field, f"{shown(path)} must be an absolute path")


def _check_disks(wrong: Violations, disks: Sequence[DiskSpec], host: str, prefix: str) -> None:
    if len(disks) > DISKS_MAX:
        wrong.add(prefix, f"must be at most {DISKS_MAX}, not {len(disks)}")
        return
    _check_part_names(wrong, [disk.name for disk in disks], prefix)
    orders: dict[int, str] = {}
    for index, disk in enumerate(disks):
        field = f"{prefix}[{index}]"
        _check_source(wrong, disk, host, field)
        if disk.boot_order is not None:
            if disk.boot_order < 1:
                wrong.add(f"{field}.boot_order", "must be at least 1")
            if disk.boot_order in orders:
                wrong.add(f"{field}.boot_order", f"{disk.boot_order} is taken by disk {orders[disk.boot_order]}")
            orders[disk.boot_order] = disk.name


def _check_source(wrong: Violations, disk: DiskSpec, host: str, field: str) -> None:
    sources = [source for source in (disk.blank, disk.image, disk.volume, disk.host_file) if source is not None]
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
        _check_path_form(wrong, disk.host_file.path, f"{field}.host_file.path")


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
    _check_part_names(wrong, [interface.name for interface in interfaces], prefix)
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
        if _CONTROL.search(interface.model) or len(interface.model) > TEXT_MAX:
            wrong.add(f"{field}.model", "must be a short text without control characters")


def _check_mac(wrong: Violations, mac: str, field: str) -> None:
    if not _MAC.fullmatch(mac):
        wrong.add(field, f"{shown(mac)} is not a MAC address of the form aa:bb:cc:dd:ee:ff")
    elif int(mac[:2], 16) & 1:
        wrong.add(field, f"{mac} is a multicast address: the first octet must be even")


def _check_part_names(wrong: Violations, names: Iterable[str], prefix: str) -> None:
    seen: set[str] = set()
    for index, name in enumerate(names):
        if not _PART_NAME.fullmatch(name):
            wrong.add(
                f"{prefix}[{index}].name",
                f"{shown(name)} is not a valid name: use 1 to 63 lower-case letters, digits or '-'",
            )
        elif name in seen:
            wrong.add(f"{prefix}[{index}].name", f"{name} is used twice")
        seen.add(name)
