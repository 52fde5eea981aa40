"""Which capability stands behind which field of a guest: one table for the core and every backend.

The core asks it before any side effect; a backend's ``lower`` uses it to reject what its host cannot
do, with the capability's own reason.  Specs and resolved guests have the same names of fields here.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Final

from virtd.backend import capabilities as cap
from virtd.backend.api import Fidelity, FieldVerdict, ResolvedDisk, ResolvedGuest, ResolvedInterface
from virtd.model.devices import FilesystemKind
from virtd.model.guest import DiskSpec, Firmware, GuestSpec, InterfaceSpec
from virtd.model.host import Capability, CapabilityLevel

GuestLike = GuestSpec | ResolvedGuest


@dataclass(frozen=True, slots=True)
class Need:
    """A field that is used, the capability behind it, and what could be said instead."""

    capability: str
    field: str
    alternatives: tuple[str, ...] = ()


def needs_of(guest: GuestLike) -> Iterator[Need]:
    """The needs of the fields that are set, in the order of the spec; fields begin with ``spec.``."""
    if guest.firmware is Firmware.UEFI:
        yield Need(cap.UEFI, "spec.firmware", (Firmware.BIOS.value,))
    if guest.direct_kernel_boot is not None:
        yield Need(cap.DIRECT_KERNEL_BOOT, "spec.direct_kernel_boot")
    yield from _of_disks(guest)
    interfaces: tuple[InterfaceSpec | ResolvedInterface, ...] = guest.interfaces
    for index, interface in enumerate(interfaces):
        if interface.port_forwards:
            yield Need(cap.PORT_FORWARD, f"spec.interfaces[{index}].port_forwards")
    yield from _of_processor(guest)
    yield from _of_memory(guest)
    yield from _of_devices(guest)


def _of_devices(guest: GuestLike) -> Iterator[Need]:
    if guest.secure_boot:
        yield Need(cap.SECURE_BOOT, "spec.secure_boot", ("false",))
    for used, capability, field in (
        (guest.tpm is not None, cap.TPM, "spec.tpm"),
        (guest.watchdog is not None, cap.WATCHDOG, "spec.watchdog"),
        (guest.usb is not None and (guest.usb.tablet or guest.usb.keyboard), cap.USB, "spec.usb"),
        (guest.sound is not None, cap.SOUND, "spec.sound"),
    ):
        if used:
            yield Need(capability, field)
    for index, filesystem in enumerate(guest.filesystems):
        virtiofs = filesystem.kind is FilesystemKind.VIRTIOFS
        other = FilesystemKind.P9 if virtiofs else FilesystemKind.VIRTIOFS
        yield Need(cap.VIRTIOFS if virtiofs else cap.P9, f"spec.filesystems[{index}].kind", (other.value,))
    for index, device in enumerate(guest.host_devices):
        if device.pci is not None:
            yield Need(cap.PASSTHROUGH_PCI, f"spec.host_devices[{index}].pci")
        if device.usb is not None:
            yield Need(cap.PASSTHROUGH_USB, f"spec.host_devices[{index}].usb")


def _of_disks(guest: GuestLike) -> Iterator[Need]:
    disks: tuple[DiskSpec | ResolvedDisk, ...] = guest.disks
    for index, disk in enumerate(disks):
        for used, name in (
            (disk.cache is not None, "cache"),
            (disk.io_tune is not None, "io_tune"),
            (disk.discard, "discard"),
            (bool(disk.serial), "serial"),
        ):
            if used:
                yield Need(cap.DISK_TUNING, f"spec.disks[{index}].{name}")


def _of_processor(guest: GuestLike) -> Iterator[Need]:
    if guest.max_vcpus is not None and guest.max_vcpus != (guest.vcpus or 1):
        yield Need(cap.CPU_HOTPLUG_RANGE, "spec.max_vcpus")
    if guest.cpu is None:
        return
    for used, capability, name in (
        (guest.cpu.topology is not None, cap.CPU_MODEL, "topology"),
        (bool(guest.cpu.model), cap.CPU_MODEL, "model"),
        (bool(guest.cpu.features), cap.CPU_MODEL, "features"),
        (bool(guest.cpu.pins), cap.CPU_PINNING, "pins"),
        (bool(guest.cpu.emulator_host_cpus), cap.CPU_PINNING, "emulator_host_cpus"),
        (guest.cpu.nested is not None, cap.CPU_MODEL, "nested"),
    ):
        if used:
            yield Need(capability, f"spec.cpu.{name}")


def _of_memory(guest: GuestLike) -> Iterator[Need]:
    if guest.max_memory_bytes is not None and guest.max_memory_bytes != guest.memory_bytes:
        yield Need(cap.BALLOON, "spec.max_memory_bytes")
    if guest.memory is not None:
        for used, capability, name in (
            (bool(guest.memory.hugepage_bytes), cap.HUGEPAGES, "hugepage_bytes"),
            (guest.memory.balloon is True, cap.BALLOON, "balloon"),
            (guest.memory.locked, cap.MEMORY_BACKING, "locked"),
            (guest.memory.shared, cap.MEMORY_BACKING, "shared"),
        ):
            if used:
                yield Need(capability, f"spec.memory.{name}")
    if guest.numa is not None and guest.numa.nodes:
        yield Need(cap.NUMA, "spec.numa")


_NOT_THERE: Final = (CapabilityLevel.UNSUPPORTED, CapabilityLevel.UNKNOWN)


def missing_of(capabilities: Iterable[Capability]) -> Mapping[str, str]:
    """Capability -> reason, for those that are not there."""
    return {entry.id: entry.reason for entry in capabilities if entry.level in _NOT_THERE}


def rejected_fields(guest: GuestLike, missing: Mapping[str, str]) -> Iterator[FieldVerdict]:
    """A REJECTED verdict for each field whose capability is missing.

    :param missing: capability -> why it is not there; see :func:`missing_of`.
    """
    for need in needs_of(guest):
        if need.capability in missing:
            yield FieldVerdict(need.field, Fidelity.REJECTED, missing[need.capability], need.alternatives)
