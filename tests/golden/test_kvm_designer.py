"""Golden files of the KVM designer: the domain XML of each case, and its verdicts.

``VIRTD_REGENERATE=1 pytest tests/golden`` writes them anew; look at the difference before it is kept.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
from virtd_kvm.designer import OPTIONS, Platform, design
from virtd_kvm.reader import read_guest

from virtd.backend.api import Fidelity, NativePlan, ResolvedDisk, ResolvedGuest, ResolvedInterface
from virtd.libvirt.states import State
from virtd.libvirt.xml import boot, character, controller, disk, display, domain, interface, metadata
from virtd.libvirt.xml.domain import Domain
from virtd.model.guest import (
    Accelerator,
    DirectKernelBoot,
    DiskBus,
    DiskDevice,
    DiskFormat,
    Firmware,
    GraphicsSpec,
    GuestState,
    InterfaceKind,
)

HERE = Path(__file__).parent / "kvm"
UUID1 = UUID("11111111-2222-4333-8444-555555555555")
QEMU = Platform()
KERNEL = DirectKernelBoot("/images/vmlinuz", "/images/initrd.img", "console=ttyS0 quiet")
ROOT = ResolvedDisk("root", "/pool/root.qcow2", DiskFormat.QCOW2, DiskBus.VIRTIO)
NET = ResolvedInterface("net", InterfaceKind.USER, "52:54:00:00:00:01")


def guest(**changes: Any) -> ResolvedGuest:
    fields: dict[str, Any] = {
        "uuid": UUID1,
        "name": "golden",
        "vcpus": 2,
        "memory_bytes": 512 << 20,
        "accelerator": Accelerator.TCG,
    }
    return ResolvedGuest(**{**fields, **changes})


def raw(name: str, bus: DiskBus, **changes: Any) -> ResolvedDisk:
    return ResolvedDisk(name, f"/pool/{name}.raw", DiskFormat.RAW, bus, **changes)


CASES: dict[str, tuple[ResolvedGuest, Platform]] = {
    "minimal": (guest(serial_console=False, guest_agent=False), QEMU),
    "kernel-tcg": (guest(direct_kernel_boot=KERNEL, disks=(ROOT,), interfaces=(NET,), graphics=GraphicsSpec()), QEMU),
    "disk-kvm": (guest(accelerator=Accelerator.KVM, disks=(ROOT,), interfaces=(NET,)), QEMU),
    "uefi": (guest(firmware=Firmware.UEFI, disks=(ROOT,)), QEMU),
    "every-bus": (
        guest(
            disks=(
                ROOT,
                raw("data", DiskBus.VIRTIO),
                raw("cd", DiskBus.SCSI, device=DiskDevice.CDROM),
                raw("sata", DiskBus.SATA),
                raw("scsi", DiskBus.SCSI, read_only=True),
            )
        ),
        QEMU,
    ),
    "boot-order": (guest(disks=(raw("a", DiskBus.VIRTIO, boot_order=2), raw("b", DiskBus.VIRTIO, boot_order=1))), QEMU),
    "ide-on-pc": (guest(machine="pc", disks=(raw("a", DiskBus.IDE),)), QEMU),
    "networks": (
        guest(
            interfaces=(
                ResolvedInterface("lan", InterfaceKind.NETWORK, "52:54:00:00:00:02", "default", "e1000e"),
                ResolvedInterface("wan", InterfaceKind.BRIDGE, "52:54:00:00:00:03", "br0"),
            )
        ),
        QEMU,
    ),
    "options": (
        guest(
            disks=(ROOT,),
            graphics=GraphicsSpec(listen="::1"),
            backend_options={
                "cpu_mode": "host-model",
                "disk_cache": "none",
                "disk_discard": "ignore",
                "video_model": "virtio",
                "random_source": "no",
            },
        ),
        QEMU,
    ),
    "markup-in-names": (
        guest(
            name="a <b> & 'c' \"d\"",
            direct_kernel_boot=DirectKernelBoot("/x/<k>&'\"", "", 'root="/dev/vda" <&>'),
            disks=(ResolvedDisk("<root>", "/pool/<&>'\".qcow2", DiskFormat.QCOW2, DiskBus.VIRTIO),),
        ),
        QEMU,
    ),
    "odd-memory": (guest(memory_bytes=(512 << 20) + 1), QEMU),
    "aarch64": (guest(disks=(ROOT,)), Platform("qemu", "aarch64")),
    "test-driver": (guest(disks=(ROOT,), interfaces=(NET,), machine="q35"), Platform("test", "i686")),
    "rejected": (
        guest(
            machine="q35; rm",
            disks=(
                ResolvedDisk("cd", "/cd.iso", DiskFormat.RAW, DiskBus.VIRTIO, DiskDevice.CDROM),
                raw("ro", DiskBus.SATA, read_only=True),
                raw("zero", DiskBus.VIRTIO, boot_order=0),
            ),
            interfaces=(ResolvedInterface("x", InterfaceKind.NETWORK, "52:54:00:00:00:02", "", "ne2k"),),
            graphics=GraphicsSpec(listen="everywhere"),
            backend_options={"cpu_mode": "host-passthrough", "disk_cache": "sometimes", "nonsense": "1"},
        ),
        QEMU,
    ),
    "rejected-ide": (guest(disks=(raw("a", DiskBus.IDE),)), QEMU),
    "rejected-ide-fifth": (guest(machine="pc", disks=tuple(raw(f"d{n}", DiskBus.IDE) for n in range(5))), QEMU),
}


def text_of(plan: NativePlan) -> str:
    lines = [
        f"<!-- {verdict.fidelity.value} {verdict.field}: {verdict.reason}"
        + (f" [{', '.join(verdict.alternatives)}]" if verdict.alternatives else "")
        + " -->\n"
        for verdict in plan.verdicts
    ]
    return plan.native + "".join(lines)


@pytest.mark.parametrize("name", CASES)
def test_golden(name: str) -> None:
    plan = design(*CASES[name])
    assert plan == design(*CASES[name]), "pure: the same twice"
    path = HERE / f"{name}.xml"
    if os.environ.get("VIRTD_REGENERATE"):
        path.write_text(text_of(plan))
    assert text_of(plan) == path.read_text()
    for verdict in plan.verdicts:
        assert verdict.reason and verdict.field.startswith("spec.")


def test_no_golden_file_is_left_over() -> None:
    assert {path.stem for path in HERE.glob("*.xml")} == set(CASES)


@pytest.mark.parametrize("name", [name for name in CASES if not name.startswith("rejected")])
def test_what_is_built_is_read_back(name: str) -> None:
    """Building and parsing are inverses, so nothing that is written gets lost or changed by reading."""
    plan = design(*CASES[name])
    assert not [verdict for verdict in plan.verdicts if verdict.fidelity is Fidelity.REJECTED]
    parsed = Domain.parse(plan.native)
    assert parsed.to_xml() == plan.native
    wanted, _ = CASES[name]
    found = read_guest(UUID1, State(GuestState.STOPPED, "", "shutoff"), parsed, persistent=True)
    assert (found.name, found.spec.vcpus, found.spec.direct_kernel_boot) == (
        wanted.name,
        wanted.vcpus,
        wanted.direct_kernel_boot,
    )
    assert [(disk.name, disk.path) for disk in found.disks] == [(disk.name, disk.path) for disk in wanted.disks]
    assert [entry.name for entry in found.interfaces] == [entry.name for entry in wanted.interfaces]
    assert found.spec.firmware is wanted.firmware
    assert found.spec.backend_options == wanted.backend_options


def _fields_with_values(value: object) -> Iterator[str]:
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        for field in dataclasses.fields(value):
            held = getattr(value, field.name)
            default = field.default if field.default is not dataclasses.MISSING else None
            if held not in (None, "", (), {}) and held != default:
                yield f"{type(value).__name__}.{field.name}"
            yield from _fields_with_values(held)
    elif isinstance(value, tuple):
        for entry in value:
            yield from _fields_with_values(entry)


# What the designer leaves at its default or only a running host shows: tests/qemu sees those.
PARSED_ONLY = {
    "Channel.kind", "Channel.target", "Channel.state", "Console.kind", "Console.target", "Console.port",
    "Serial.kind", "Serial.port", "Graphics.kind", "Graphics.port", "Disk.kind", "Disk.driver",
    "Interface.target", "Boot.os_type", "Controller.index", "Balloon.model", "RandomSource.model",
    "RandomSource.path",
}  # fmt: skip


def test_every_declared_property_is_exercised() -> None:
    """A property of an XML class that no golden case sets is a property that nobody tests."""
    declared = {
        f"{cls.__name__}.{field.name}"
        for module in (boot, character, controller, disk, display, domain, interface, metadata)
        for cls in vars(module).values()
        if isinstance(cls, type) and dataclasses.is_dataclass(cls) and cls.__module__ == module.__name__
        for field in dataclasses.fields(cls)
    }
    seen: set[str] = set()
    for case in CASES.values():
        seen |= set(_fields_with_values(Domain.parse(design(*case).native)))
    assert declared - seen - PARSED_ONLY == set()
    assert not PARSED_ONLY - declared


def test_every_option_is_exercised_with_an_accepted_value() -> None:
    used = {name for case, _ in CASES.values() for name in case.backend_options}
    assert {option.name for option in OPTIONS} <= used
