"""Checks of what a backend says of itself, and of the translation to its native configuration."""

from __future__ import annotations

import dataclasses
import re
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Final
from uuid import UUID

import pytest

from virtd.backend import capabilities as caps
from virtd.backend.api import (
    BackendDescriptor,
    Facets,
    Fidelity,
    HostSession,
    NativePlan,
    ResolvedDisk,
    ResolvedGuest,
    ResolvedInterface,
)
from virtd.backend.conformance.checks_inside import booted, wait_ready
from virtd.backend.conformance.deeds import by_core
from virtd.backend.conformance.kit import Kit, NotRun, check
from virtd.backend.conformance.provision import MIB, GuestMaker
from virtd.errors import CONFIG_INVALID, FIELD_UNSUPPORTED, HOST_UNREACHABLE
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
from virtd.model.host import CapabilityLevel

_UUID: Final = UUID("00000000-0000-4000-8000-00000000c0de")
_BASE: Final = ResolvedGuest(_UUID, "golden", 2, 256 * MIB, Accelerator.TCG)
_DISK: Final = ResolvedDisk("root", "/images/root.qcow2", DiskFormat.QCOW2, DiskBus.VIRTIO, boot_order=1)

GUESTS: Final[Mapping[str, ResolvedGuest]] = {
    "plain": _BASE,
    "kernel": dataclasses.replace(
        _BASE, direct_kernel_boot=DirectKernelBoot("/images/kernel", "/images/initrd", "console=ttyS0 quiet")
    ),
    "disks": dataclasses.replace(
        _BASE,
        disks=(
            _DISK,
            ResolvedDisk("data", "/images/data.raw", DiskFormat.RAW, DiskBus.SCSI, read_only=True),
            ResolvedDisk("seed", "/images/seed.iso", DiskFormat.RAW, DiskBus.SATA, DiskDevice.CDROM, read_only=True),
        ),
    ),
    "interfaces": dataclasses.replace(
        _BASE,
        interfaces=(
            ResolvedInterface("net0", InterfaceKind.USER, "52:54:00:00:00:01"),
            ResolvedInterface("net1", InterfaceKind.NETWORK, "52:54:00:00:00:02", "default"),
            ResolvedInterface("net2", InterfaceKind.BRIDGE, "52:54:00:00:00:03", "br0", "virtio"),
        ),
    ),
    "uefi": dataclasses.replace(_BASE, firmware=Firmware.UEFI, disks=(_DISK,)),
    "display": dataclasses.replace(_BASE, graphics=GraphicsSpec(), serial_console=False, guest_agent=False),
    "markup": dataclasses.replace(
        _BASE, name="a&b<c>\"d'", disks=(dataclasses.replace(_DISK, path="/images/a&b <c>.qcow2"),)
    ),
}
"""The guests whose lowering is compared with golden files: one per thing that a guest can have."""


def example(kit: Kit, case: str) -> ResolvedGuest:
    """An example, of the kind that is checked."""
    return dataclasses.replace(GUESTS[case], accelerator=kit.provision.accelerator, machine=kit.provision.machine)


# What needs a field of the guest, and a guest that has it.
_BY_FIELD: Final = {
    caps.UEFI: ("spec.firmware", "uefi"),
    caps.DIRECT_KERNEL_BOOT: ("spec.direct_kernel_boot", "kernel"),
    caps.DISK_BOOT: ("spec.disks", "disks"),
    caps.CONSOLE_GRAPHICAL: ("spec.graphics", "display"),
}


class _Watcher:
    """Notices I/O of this thread while it is on (an audit hook cannot be removed, so there is one)."""

    def __init__(self) -> None:
        self.seen: list[str] | None = None
        self._installed = False

    def _hook(self, event: str, arguments: tuple[Any, ...]) -> None:
        if self.seen is not None and event in ("open", "socket.connect", "subprocess.Popen", "os.listdir"):
            self.seen.append(f"{event} {arguments[:2]}")

    @contextmanager
    def watching(self) -> Iterator[list[str]]:
        if not self._installed:
            self._installed = True
            sys.addaudithook(self._hook)
        seen: list[str] = []
        self.seen = seen
        try:
            yield seen
        finally:
            self.seen = None


_WATCHER: Final = _Watcher()


def _rejected(plan: NativePlan, field: str) -> list[str]:
    return [
        verdict.reason
        for verdict in plan.verdicts
        if verdict.fidelity is Fidelity.REJECTED and verdict.field.startswith(field)
    ]


class TestDescriptor:
    """The descriptor and the probe."""

    @check()
    async def test_descriptor(self, kit: Kit) -> None:
        """It is constant and complete."""
        descriptor = kit.provision.backend.descriptor
        assert isinstance(descriptor, BackendDescriptor)
        assert descriptor == kit.provision.backend.descriptor, "the descriptor changes"
        assert re.fullmatch(r"[a-z][a-z0-9-]{0,30}", descriptor.id), f"{descriptor.id!r} is not a backend id"
        assert descriptor.title
        assert descriptor.version
        assert descriptor.native_format
        assert kit.provision.uri.partition(":")[0] in descriptor.uri_schemes
        for option in descriptor.options:
            assert option.name, "an option has no name"
            assert option.description, f"option {option.name} has no description"
            assert not option.default or not option.values or option.default in option.values

    @check()
    async def test_discover_is_quick(self, kit: Kit) -> None:
        """It never raises, and names hosts that the backend takes."""
        start = time.monotonic()
        candidates = await kit.provision.backend.discover()
        kit.report.notes["discover_s"] = round(time.monotonic() - start, 3)
        for candidate in candidates:
            assert candidate.uri.partition(":")[0] in kit.provision.backend.descriptor.uri_schemes
            assert candidate.id
            assert candidate.title

    @check()
    async def test_wrong_uri_is_refused(self, kit: Kit) -> None:
        """A URI of another scheme is CONFIG_INVALID, not a crash and not a hang."""
        for uri in ("no-such-scheme:///x", "", "://"):
            error = await kit.error(
                kit.provision.backend.open(dataclasses.replace(kit.config(), uri=uri)), CONFIG_INVALID
            )
            assert error.message

    @check()
    async def test_probe(self, kit: Kit) -> None:
        """Facts are consistent, and every value that is not known is None or empty."""
        facts = kit.narrowed(await kit.session.probe())
        assert facts.hypervisor, "the probe does not say which hypervisor this is"
        assert facts.cpus is None or facts.cpus > 0
        assert facts.memory_bytes is None or facts.memory_bytes > MIB
        usable = {item.accelerator for item in facts.accelerators if item.usable}
        assert not facts.default_accelerator or not usable or facts.default_accelerator in usable
        for item in facts.accelerators:
            assert item.reason, f"accelerator {item.accelerator} has no reason"
        assert {entry.id: entry.level for entry in facts.capabilities} == {
            entry.id: entry.level for entry in kit.facts.capabilities
        }, "two probes of the same host differ"

    @check()
    async def test_close_is_idempotent(self, kit: Kit) -> None:
        """A session closes twice, others go on, and a closed one says that it is unreachable."""
        session: HostSession = await kit.open_session()
        await session.list_guests()
        await session.close()
        await session.close()
        await kit.error(session.list_guests(), HOST_UNREACHABLE)
        await kit.session.list_guests()


class TestCapabilities:
    """What is declared is there; what is not is refused."""

    @check()
    async def test_every_capability_once(self, kit: Kit) -> None:
        """The probe answers for each known capability, with reasons; it promises no more than the descriptor."""
        found = [entry.id for entry in kit.facts.capabilities]
        assert sorted(found) == sorted(caps.SUMMARIES), "missing, unknown or doubled capabilities"
        promised = {entry.id: entry for entry in caps.complete(kit.provision.backend.descriptor.capabilities)}
        for entry in kit.facts.capabilities:
            assert entry.level is CapabilityLevel.NATIVE or entry.reason, f"{entry.id} is {entry.level} without reason"
            if entry.level is not CapabilityLevel.UNSUPPORTED and entry.level is not CapabilityLevel.UNKNOWN:
                assert promised[entry.id].level is not CapabilityLevel.UNSUPPORTED, (
                    f"{entry.id} is {entry.level} here, but the descriptor rules it out"
                )

    @pytest.mark.parametrize("capability", tuple(caps.FACET_OF))
    @check(about=lambda capability: capability, proof=False)
    async def test_facet(self, kit: Kit, capability: str) -> None:
        """A declared capability has its facet (an undeclared one is checked to be refused)."""
        if by_core(kit, capability):
            assert capability != caps.REBOOT or kit.declared(caps.SHUTDOWN), "the core needs the power button for it"
            return
        assert kit.facet(caps.FACET_OF[capability]) is not None

    @check()
    async def test_no_facet_without_a_capability(self, kit: Kit) -> None:
        """Each facet stands behind a declared capability, and facets are constant (the guard sees to that)."""
        for field in dataclasses.fields(Facets):
            if getattr(kit.facets, field.name) is not None:
                name = caps.COMPANIONS.get(field.name, field.name)
                behind = [id_ for id_, facet in caps.FACET_OF.items() if facet == name]
                there = any(kit.declared(id_) or kit.narrower(id_) for id_ in behind)
                assert there, f"there is a facet {field.name!r}, but none of {behind}"


class TestLowering:
    """The translation to the native configuration."""

    @pytest.mark.parametrize("case", tuple(GUESTS))
    @check(caps.LIFECYCLE)
    async def test_pure(self, kit: Kit, case: str) -> None:
        """Same input, same output, in every session, without I/O; each verdict has a field and a reason."""
        guest = example(kit, case)
        before = dataclasses.replace(guest)
        first = kit.session.lower(guest)
        with _WATCHER.watching() as seen:
            second = kit.session.lower(guest)
        assert not seen, f"lower() did I/O: {seen}"
        assert first == second, "lower() is not deterministic"
        assert guest == before, "lower() changed its input"
        other = await kit.open_session()
        try:
            assert other.lower(guest) == first, "two sessions lower differently"
        finally:
            await other.close()
        for verdict in first.verdicts:
            assert verdict.field.startswith("spec."), f"{verdict.field!r} is not a field of the request"
            assert verdict.fidelity is Fidelity.EXACT or verdict.reason, f"{verdict.field}: no reason"

    @pytest.mark.parametrize("case", tuple(GUESTS))
    @check(caps.LIFECYCLE, proof=False)
    async def test_golden(self, kit: Kit, case: str) -> None:
        """It is what it was: compare with the golden file, or write it with the option for that."""
        if kit.provision.golden_directory is None:
            raise NotRun("the provision names no golden directory")
        plan = kit.session.lower(example(kit, case))
        lines = [f"# {item.field}: {item.fidelity} ({item.reason})" for item in plan.verdicts]
        text = "\n".join([plan.native.rstrip("\n"), *lines, ""])
        path = kit.provision.golden_directory / f"{case}.{kit.provision.backend.descriptor.native_format}"
        if kit.regenerate:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
        assert path.exists(), f"{path.name} is missing: run with --virtd-conformance-regenerate and look at it"
        assert text == path.read_text(), f"{path.name} differs: run with --virtd-conformance-regenerate and look at it"

    @pytest.mark.parametrize("capability", tuple(_BY_FIELD))
    @check()
    async def test_field(self, kit: Kit, capability: str) -> None:
        """A field that needs a capability is taken where it is declared, and REJECTED with the reason elsewhere."""
        field, case = _BY_FIELD[capability]
        reasons = _rejected(kit.session.lower(example(kit, case)), field)
        if kit.declared(capability):
            assert not reasons, f"{capability} is declared, but lower() rejects {field}: {reasons}"
        else:
            assert reasons, f"{capability} is not declared, but lower() takes {field}"
            await kit.assert_refused(capability)

    @check(caps.LIFECYCLE)
    async def test_rejected_is_refused(self, kit: Kit) -> None:
        """Defining what lower() rejects is FIELD_UNSUPPORTED for every such field, and leaves nothing."""
        subject = kit.subject()
        candidates: tuple[dict[str, Any], ...] = (
            {"backend_options": {"virtd.no-such-option": "1"}},
            {"machine": "no-such-machine"},
            {"firmware": Firmware.UEFI},
            {"accelerator": Accelerator.KVM},
            {"interfaces": (ResolvedInterface("net0", InterfaceKind.BRIDGE, "52:54:00:00:00:09", "no-such-bridge"),)},
        )
        tried = 0
        for change in candidates:
            guest = dataclasses.replace(subject.resolved, **change)
            fields = {v.field for v in kit.session.lower(guest).verdicts if v.fidelity is Fidelity.REJECTED}
            if not fields:
                continue
            tried += 1
            before = await kit.digest()
            error = await kit.error(kit.session.define_guest(guest, kit.context()), FIELD_UNSUPPORTED)
            assert {violation.field for violation in error.record.violations} == fields
            assert all(violation.description for violation in error.record.violations)
            await kit.unchanged(before, f"refusing {sorted(fields)}")
        assert tried, "lower() rejects nothing, not even an unknown backend option"


class TestDevices:
    """Capabilities that are a property of a running guest."""

    @check(caps.ACCELERATION)
    async def test_acceleration(self, kit: Kit) -> None:
        """A guest really runs accelerated, and the host says so."""
        usable = [item for item in kit.facts.accelerators if item.usable and item.accelerator != Accelerator.TCG]
        assert usable, "host.acceleration is declared, but the probe found no usable accelerator"
        subject = kit.subject()
        fast = Accelerator(usable[0].accelerator)
        guest = dataclasses.replace(subject.resolved, accelerator=fast)
        await kit.session.define_guest(guest, kit.context())
        await kit.session.start_guest(guest.uuid, kit.context())
        assert (await kit.session.get_guest(guest.uuid)).accelerator is fast

    @check(caps.CONSOLE_GRAPHICAL)
    async def test_graphics(self, kit: Kit) -> None:
        """A running guest with a display has an address for it; a stopped one has none."""
        subject = kit.subject()
        guest = dataclasses.replace(subject.resolved, graphics=GraphicsSpec())
        defined = await kit.session.define_guest(guest, kit.context())
        assert not defined.graphics_address, "a stopped guest has the address of a display"
        await kit.session.start_guest(guest.uuid, kit.context())
        running = await kit.session.get_guest(guest.uuid)
        assert running.graphics_address, "the running guest's display has no address"

    @check(caps.DIRECT_KERNEL_BOOT)
    async def test_kernel_boot(self, kit: Kit) -> None:
        """A guest boots a kernel directly."""
        if kit.bootable().guest("x", _UUID).direct_kernel_boot is None:
            raise NotRun("the provision's bootable guest boots otherwise")
        await booted(kit)

    @check(caps.DISK_BOOT)
    async def test_disk_boot(self, kit: Kit) -> None:
        """A guest boots from a disk."""
        await _boots(kit, kit.bootable().disk_guest, "from a disk")

    @check(caps.UEFI)
    async def test_uefi_boot(self, kit: Kit) -> None:
        """A guest boots with UEFI."""
        await _boots(kit, kit.bootable().uefi_guest, "with UEFI")


async def _boots(kit: Kit, make: GuestMaker | None, how: str) -> None:
    """Start a guest and wait for its system."""
    if make is None:
        raise NotRun(f"the provision names no guest that boots {how}")
    kit.need(caps.CONSOLE_SERIAL, *(() if make("x", _UUID).direct_kernel_boot else (caps.DISK_BOOT,)))
    subject = await kit.new_guest(make=make, running=True)
    await wait_ready(kit, subject.uuid)
    assert await kit.state(subject.uuid) == GuestState.RUNNING
