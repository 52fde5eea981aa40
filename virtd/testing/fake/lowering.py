"""The fake hypervisor's native configuration: JSON, written from a resolved guest and read back.

Both directions are pure.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, fields
from typing import Final

from pydantic import TypeAdapter

from virtd.backend import capabilities as caps
from virtd.backend.api import (
    Fidelity,
    FieldVerdict,
    NativePlan,
    OptionSchema,
    ResolvedGuest,
)
from virtd.backend.needs import missing_of, rejected_fields
from virtd.model.guest import Accelerator, DiskBus, DiskSpec, GuestSpec, HostFileSource, InterfaceSpec
from virtd.model.host import Capability
from virtd.testing.fake.options import FIRST, SECOND

NATIVE_FORMAT: Final = "fake-json"
MACHINES: Final = (FIRST, SECOND)
_ADAPTER: Final = TypeAdapter(ResolvedGuest)
# Fields that the specification and a resolved guest have in common, and mean the same by.
_SAME: Final = frozenset(field.name for field in fields(GuestSpec)) & frozenset(
    field.name for field in fields(ResolvedGuest)
) - {"vcpus", "memory_bytes", "accelerator", "firmware", "machine", "disks", "interfaces"}
OPTIONS: Final = (
    OptionSchema("mood", "what the guest prints when it boots", ("calm", "loud"), "calm"),
    OptionSchema("presses", "how often the power button must be pressed; 0: it is always ignored"),
)


def lower(guest: ResolvedGuest, capabilities: Iterable[Capability]) -> NativePlan:
    """Translate a guest for a host that has these capabilities."""
    missing = missing_of(capabilities)
    document = asdict(guest)
    document["uuid"] = str(guest.uuid)
    return NativePlan(json.dumps(document, indent=2, sort_keys=True) + "\n", tuple(_verdicts(guest, missing)))


def _verdicts(guest: ResolvedGuest, missing: Mapping[str, str]) -> Iterator[FieldVerdict]:
    yield from _missing_abilities(guest, missing)
    if guest.machine and guest.machine not in MACHINES:
        yield _rejected("machine", "a fake host has no such machine", *MACHINES)
    for index, disk in enumerate(guest.disks):
        if disk.bus is DiskBus.IDE:
            reason = "a fake guest sees an IDE disk as SATA"
            yield FieldVerdict(f"spec.disks[{index}].bus", Fidelity.DEGRADED, reason, (DiskBus.SATA,))
    if guest.accelerator is Accelerator.NATIVE:
        reason = "a fake host has the choice between KVM and TCG"
        yield _rejected("accelerator", reason, Accelerator.KVM, Accelerator.TCG)
    known = {option.name: option for option in OPTIONS}
    for name, value in sorted(guest.backend_options.items()):
        if name not in known:
            yield _rejected(f"backend_options[{name}]", "a fake host knows no such option", *known)
        elif known[name].values and value not in known[name].values:
            yield _rejected(f"backend_options[{name}]", "not a value of this option", *known[name].values)
        elif name == "presses" and not value.isdecimal():
            yield _rejected(f"backend_options[{name}]", "not a number")


def _missing_abilities(guest: ResolvedGuest, missing: Mapping[str, str]) -> Iterator[FieldVerdict]:
    yield from rejected_fields(guest, missing)
    wanted = (
        ("accelerator", caps.ACCELERATION, guest.accelerator is Accelerator.KVM, (Accelerator.TCG,)),
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
    return _ADAPTER.validate_json(native)


def to_spec(guest: ResolvedGuest) -> GuestSpec:
    """The guest's specification as the core knows specifications."""
    return GuestSpec(
        vcpus=guest.vcpus,
        memory_bytes=guest.memory_bytes,
        accelerator=guest.accelerator,
        firmware=guest.firmware,
        machine=guest.machine or MACHINES[0],
        disks=tuple(
            DiskSpec(
                name=disk.name,
                host_file=HostFileSource(disk.path, disk.format) if disk.path else None,
                bus=disk.bus,
                device=disk.device,
                read_only=disk.read_only,
                boot_order=disk.boot_order,
                cache=disk.cache,
                io_tune=disk.io_tune,
                discard=disk.discard,
                serial=disk.serial,
            )
            for disk in guest.disks
        ),
        interfaces=tuple(
            InterfaceSpec(**{field.name: getattr(item, field.name) for field in fields(InterfaceSpec)})
            for item in guest.interfaces
        ),
        **{name: getattr(guest, name) for name in _SAME},
    )
