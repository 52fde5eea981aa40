"""The fake hypervisor's native configuration: JSON, written from a resolved guest and read back.

Both directions are pure.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import asdict
from typing import Any, Final
from uuid import UUID

from virtd.backend import capabilities as caps
from virtd.backend.api import (
    Fidelity,
    FieldVerdict,
    NativePlan,
    OptionSchema,
    ResolvedDisk,
    ResolvedGuest,
    ResolvedInterface,
)
from virtd.model.guest import (
    Accelerator,
    DirectKernelBoot,
    DiskBus,
    DiskDevice,
    DiskFormat,
    DiskSpec,
    Firmware,
    GraphicsSpec,
    GuestSpec,
    HostFileSource,
    InterfaceKind,
    InterfaceSpec,
)
from virtd.model.host import Capability, CapabilityLevel

NATIVE_FORMAT: Final = "fake-json"
MACHINES: Final = ("fake-1", "fake-2")
OPTIONS: Final = (
    OptionSchema("mood", "what the guest prints when it boots", ("calm", "loud"), "calm"),
    OptionSchema("presses", "how often the power button must be pressed; 0: it is always ignored"),
)


def lower(guest: ResolvedGuest, capabilities: Iterable[Capability]) -> NativePlan:
    """Translate a guest for a host that has these capabilities."""
    missing = {entry.id: entry.reason for entry in capabilities if entry.level is CapabilityLevel.UNSUPPORTED}
    document = asdict(guest)
    document["uuid"] = str(guest.uuid)
    return NativePlan(json.dumps(document, indent=2, sort_keys=True) + "\n", tuple(_verdicts(guest, missing)))


def _verdicts(guest: ResolvedGuest, missing: dict[str, str]) -> Iterator[FieldVerdict]:
    yield from _missing_abilities(guest, missing)
    if guest.machine and guest.machine not in MACHINES:
        yield _rejected("machine", "a fake host has no such machine", *MACHINES)
    for index, disk in enumerate(guest.disks):
        if disk.bus is DiskBus.IDE:
            reason = "a fake guest sees an IDE disk as SATA"
            yield FieldVerdict(f"spec.disks[{index}].bus", Fidelity.DEGRADED, reason, (DiskBus.SATA,))
    known = {option.name: option for option in OPTIONS}
    for name, value in sorted(guest.backend_options.items()):
        if name not in known:
            yield _rejected(f"backend_options[{name}]", "a fake host knows no such option", *known)
        elif known[name].values and value not in known[name].values:
            yield _rejected(f"backend_options[{name}]", "not a value of this option", *known[name].values)
        elif name == "presses" and not value.isdecimal():
            yield _rejected(f"backend_options[{name}]", "not a number")


def _missing_abilities(guest: ResolvedGuest, missing: dict[str, str]) -> Iterator[FieldVerdict]:
    wanted = (
        ("firmware", caps.UEFI, guest.firmware is Firmware.UEFI, (Firmware.BIOS,)),
        ("accelerator", caps.ACCELERATION, guest.accelerator is Accelerator.KVM, (Accelerator.TCG,)),
        ("direct_kernel_boot", caps.DIRECT_KERNEL_BOOT, guest.direct_kernel_boot is not None, ()),
        ("disks", caps.DISK_BOOT, guest.direct_kernel_boot is None and bool(guest.disks), ()),
        ("graphics", caps.CONSOLE_GRAPHICAL, guest.graphics is not None and guest.graphics.vnc, ()),
    )
    for field, capability, asked, alternatives in wanted:
        if asked and capability in missing:
            yield _rejected(field, missing[capability], *alternatives)


def _rejected(field: str, reason: str, *alternatives: str) -> FieldVerdict:
    return FieldVerdict(f"spec.{field}", Fidelity.REJECTED, reason, alternatives)


def parse(native: str) -> ResolvedGuest:
    """Read a native configuration back (inverse of :func:`lower`)."""
    data: dict[str, Any] = json.loads(native)
    kernel, graphics = data["direct_kernel_boot"], data["graphics"]
    return ResolvedGuest(
        uuid=UUID(data["uuid"]),
        name=data["name"],
        vcpus=data["vcpus"],
        memory_bytes=data["memory_bytes"],
        accelerator=Accelerator(data["accelerator"]),
        firmware=Firmware(data["firmware"]),
        machine=data["machine"],
        direct_kernel_boot=DirectKernelBoot(**kernel) if kernel else None,
        disks=tuple(_disk(disk) for disk in data["disks"]),
        interfaces=tuple(_interface(interface) for interface in data["interfaces"]),
        serial_console=data["serial_console"],
        guest_agent=data["guest_agent"],
        graphics=GraphicsSpec(**graphics) if graphics else None,
        backend_options=data["backend_options"],
    )


def _disk(data: dict[str, Any]) -> ResolvedDisk:
    enums = {"format": DiskFormat(data["format"]), "bus": DiskBus(data["bus"]), "device": DiskDevice(data["device"])}
    return ResolvedDisk(**{**data, **enums})


def _interface(data: dict[str, Any]) -> ResolvedInterface:
    return ResolvedInterface(**{**data, "kind": InterfaceKind(data["kind"])})


def to_spec(guest: ResolvedGuest) -> GuestSpec:
    """The guest's specification as the core knows specifications."""
    return GuestSpec(
        vcpus=guest.vcpus,
        memory_bytes=guest.memory_bytes,
        accelerator=guest.accelerator,
        firmware=guest.firmware,
        machine=guest.machine or MACHINES[0],
        direct_kernel_boot=guest.direct_kernel_boot,
        disks=tuple(
            DiskSpec(
                name=disk.name,
                host_file=HostFileSource(disk.path, disk.format),
                bus=disk.bus,
                device=disk.device,
                read_only=disk.read_only,
                boot_order=disk.boot_order,
            )
            for disk in guest.disks
        ),
        interfaces=tuple(
            InterfaceSpec(item.name, item.kind, item.network, item.mac, item.model) for item in guest.interfaces
        ),
        serial_console=guest.serial_console,
        guest_agent=guest.guest_agent,
        graphics=guest.graphics,
        backend_options=dict(guest.backend_options),
    )
