"""Golden files of the KVM designer: the domain XML of each case, and its verdicts.

``VIRTD_REGENERATE=1 pytest tests/golden`` writes them anew; look at the difference before it is kept.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from virtd_kvm.designer import OPTIONS, Platform, design, design_domain
from virtd_kvm.dialect import DIALECT

from tests.golden.cases import CASES, UUID1
from virtd.backend.api import Fidelity, NativePlan, ResolvedGuest
from virtd.backend.needs import needs_of
from virtd.libvirt.reader import read_guest
from virtd.libvirt.states import State
from virtd.libvirt.unmodelled import unmodelled_of
from virtd.libvirt.xml import (
    boot,
    character,
    controller,
    cpu,
    disk,
    display,
    domain,
    filesystem,
    hostdev,
    inputs,
    interface,
    metadata,
    override,
    sound,
    tpm,
    tuning,
    watchdog,
)
from virtd.libvirt.xml.domain import Domain
from virtd.model import devices
from virtd.model import guest as guest_model
from virtd.model.devices import (
    ClockBase,
    CpuSpec,
    TpmModel,
    TpmSpec,
)
from virtd.model.guest import (
    Accelerator,
    DiskDevice,
    DiskSpec,
    GraphicsSpec,
    GuestSpec,
    GuestState,
    HostFileSource,
    InterfaceSpec,
)

HERE = Path(__file__).parent / "kvm"


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
    found = read_guest(UUID1, State(GuestState.STOPPED, "", "shutoff"), parsed, DIALECT, persistent=True)
    assert (found.name, found.spec.vcpus, found.spec.direct_kernel_boot) == (
        wanted.name,
        wanted.vcpus,
        wanted.direct_kernel_boot,
    )
    assert [(disk.name, disk.path) for disk in found.disks] == [(disk.name, disk.path) for disk in wanted.disks]
    assert [entry.name for entry in found.interfaces] == [entry.name for entry in wanted.interfaces]
    assert found.spec == as_spec(wanted, *CASES[name])
    assert unmodelled_of(plan.native, DIALECT) == ()


def as_spec(wanted: ResolvedGuest, case: ResolvedGuest, platform: Platform) -> GuestSpec:
    """The spec that says what the resolved guest says, with the defaults that the designer chose written out."""
    chosen, _ = design_domain(case, platform)
    orders = [disk.boot_order for disk in chosen.disks]
    graphics = wanted.graphics
    if graphics is not None and graphics.vnc:
        graphics = GraphicsSpec(True, graphics.listen or "127.0.0.1", chosen.videos[0].model)
    tpm_spec = None if wanted.tpm is None else TpmSpec(wanted.tpm.model or TpmModel.CRB)
    cpu_spec = wanted.cpu
    if not platform.test:
        base = wanted.cpu or CpuSpec()
        model = base.model or ("host-passthrough" if wanted.accelerator is Accelerator.KVM else "maximum")
        cpu_spec = dataclasses.replace(base, model=model)
    memory = wanted.memory
    if memory is not None and memory.balloon is True:
        memory = dataclasses.replace(memory, balloon=None)  # the default
    return GuestSpec(
        vcpus=wanted.vcpus,
        memory_bytes=-(-wanted.memory_bytes // 1024) * 1024,
        accelerator=None if platform.test else wanted.accelerator,
        firmware=wanted.firmware,
        machine=chosen.boot.machine,
        direct_kernel_boot=wanted.direct_kernel_boot,
        disks=tuple(
            DiskSpec(
                name=entry.name,
                host_file=HostFileSource(entry.path, entry.format) if entry.path else None,
                bus=entry.bus,
                device=entry.device,
                read_only=entry.read_only or entry.device is DiskDevice.CDROM,
                boot_order=order,
                cache=entry.cache,
                io_tune=entry.io_tune,
                discard=entry.discard,
                serial=entry.serial,
            )
            for entry, order in zip(wanted.disks, orders, strict=True)
        ),
        interfaces=tuple(
            InterfaceSpec(
                name=entry.name,
                kind=entry.kind,
                network=entry.network,
                mac=entry.mac,
                model=entry.model or "virtio",
                port_forwards=tuple(
                    dataclasses.replace(rule, host_address=rule.host_address or "127.0.0.1")
                    for rule in entry.port_forwards
                ),
                link_state=entry.link_state,
                mtu=entry.mtu,
                boot_order=entry.boot_order,
            )
            for entry in wanted.interfaces
        ),
        serial_console=wanted.serial_console,
        guest_agent=wanted.guest_agent,
        graphics=graphics,
        backend_options=wanted.backend_options,
        max_vcpus=wanted.max_vcpus,
        max_memory_bytes=wanted.max_memory_bytes,
        cpu=cpu_spec,
        memory=memory,
        numa=wanted.numa,
        secure_boot=wanted.secure_boot,
        tpm=tpm_spec,
        rng=wanted.rng,
        watchdog=wanted.watchdog,
        filesystems=wanted.filesystems,
        usb=wanted.usb,
        sound=wanted.sound,
        host_devices=wanted.host_devices,
        clock=None if platform.test else (wanted.clock or ClockBase.UTC),
    )


# What is no part of the native configuration: the core or the host's own daemon keeps it.
NOT_LOWERED = {
    "DiskSpec.blank", "DiskSpec.image", "DiskSpec.volume",
    "GuestSpec.run_strategy", "GuestSpec.cloud_init", "GuestSpec.autostart", "GuestSpec.deletion_protection",
}  # fmt: skip
SPEC_CLASSES = (
    *(value for value in vars(devices).values() if dataclasses.is_dataclass(value) and isinstance(value, type)),
    guest_model.GuestSpec,
    guest_model.DiskSpec,
    guest_model.InterfaceSpec,
    guest_model.GraphicsSpec,
    guest_model.DirectKernelBoot,
    guest_model.HostFileSource,
)


def test_every_field_of_the_spec_is_exercised() -> None:
    """A field of the API that no golden case sets, and none reads back, would be ignored silently."""
    declared = {f"{cls.__name__}.{field.name}" for cls in SPEC_CLASSES for field in dataclasses.fields(cls)}
    seen: set[str] = set()
    for name, case in CASES.items():
        if not name.startswith("rejected"):
            parsed = Domain.parse(design(*case).native)
            found = read_guest(UUID1, State(GuestState.STOPPED, "", "shutoff"), parsed, DIALECT, persistent=True)
            seen |= set(_fields_with_values(found.spec))
    assert declared - seen - NOT_LOWERED == set()
    assert not NOT_LOWERED - declared


@pytest.mark.parametrize("capability", sorted({need.capability for need in needs_of(CASES["rejected-by-the-host"][0])}))
def test_what_a_host_has_not_is_rejected_with_its_reason(capability: str) -> None:
    wanted, _ = CASES["rejected-by-the-host"]
    plan = design(wanted, Platform(missing={capability: "because"}))
    fields = {need.field for need in needs_of(wanted) if need.capability == capability}
    found = {verdict.field for verdict in plan.verdicts if verdict.reason == "because"}
    assert found == fields


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
    "Serial.kind", "Serial.port", "Graphics.kind", "Graphics.port", "Disk.kind", "Disk.driver", "Boot.devices",
    "Interface.target", "Boot.os_type", "Controller.index", "Balloon.model", "RandomSource.model",
    "RandomSource.path", "Filesystem.kind", "HostDevice.mode", "Tpm.backend", "Tpm.version", "Input.bus",
}  # fmt: skip


def test_every_declared_property_is_exercised() -> None:
    """A property of an XML class that no golden case sets is a property that nobody tests."""
    declared = {
        f"{cls.__name__}.{field.name}"
        for module in (
            boot,
            character,
            controller,
            cpu,
            disk,
            display,
            domain,
            filesystem,
            hostdev,
            inputs,
            interface,
            metadata,
            override,
            sound,
            tpm,
            tuning,
            watchdog,
        )
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
