"""Bad input in CPUs, memory, NUMA, disks, ports, shares and host devices: every row names its field."""

from __future__ import annotations

import dataclasses
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest

from tests.support.daemons import HOST, MIB, Lab, call, running_lab, short_directory
from virtd.backend import capabilities as cap
from virtd.backend.api import ResolvedDisk, ResolvedGuest, ResolvedInterface
from virtd.errors import InvalidArgumentError
from virtd.model.devices import (
    ClockBase,
    CpuFeature,
    CpuSpec,
    CpuTopology,
    DiskCache,
    FilesystemKind,
    FilesystemSpec,
    HostDeviceSpec,
    IoTune,
    LinkState,
    MemorySpec,
    NumaNode,
    NumaSpec,
    PciHostDevice,
    PortForward,
    PortProtocol,
    SoundSpec,
    TpmSpec,
    UsbHostDevice,
    UsbSpec,
    VcpuPin,
    WatchdogSpec,
)
from virtd.model.guest import (
    Accelerator,
    BlankSource,
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
from virtd.model.ranges import format_ranges, parse_ranges
from virtd.service.guests import GuestDraft
from virtd.service.resolve import Resolution, resolved_guest
from virtd.service.resolve_host import check_host_devices
from virtd.service.validate import check_spec

GOOD = GuestSpec(vcpus=2, memory_bytes=64 * MIB)
D0, I0, F0, H0 = "disks[0]", "interfaces[0]", "filesystems[0]", "host_devices[0]"


def disk(**changes: Any) -> GuestSpec:
    return replace(GOOD, disks=(DiskSpec(**{"name": "root", "blank": BlankSource(MIB), **changes}),))


def cdrom(**changes: Any) -> GuestSpec:
    return disk(**{"blank": None, "device": DiskDevice.CDROM, **changes})


def nic(**changes: Any) -> GuestSpec:
    return replace(GOOD, interfaces=(InterfaceSpec(**{"name": "net", **changes}),))


def forwards(*rules: PortForward) -> GuestSpec:
    return nic(port_forwards=rules)


def cpu(**changes: Any) -> GuestSpec:
    return replace(GOOD, cpu=CpuSpec(**changes))


def numa(*nodes: NumaNode) -> GuestSpec:
    return replace(GOOD, numa=NumaSpec(nodes))


def share(*filesystems: FilesystemSpec) -> GuestSpec:
    return replace(GOOD, filesystems=filesystems)


def given_device(**changes: Any) -> GuestSpec:
    return replace(GOOD, host_devices=(HostDeviceSpec("dev", **changes),))


def usb(**changes: Any) -> GuestSpec:
    return given_device(usb=UsbHostDevice(**changes))


HALF = 32 * MIB

WRONG: list[tuple[GuestSpec, str, str]] = [
    (replace(GOOD, max_vcpus=0), "max_vcpus", "must be 1 to 512"),
    (replace(GOOD, max_vcpus=513), "max_vcpus", "must be 1 to 512"),
    (replace(GOOD, max_vcpus=1), "max_vcpus", "less than vcpus"),
    (replace(GOOD, max_memory_bytes=1), "max_memory_bytes", "16 MiB"),
    (replace(GOOD, max_memory_bytes=32 * MIB), "max_memory_bytes", "less than memory_bytes"),
    (cpu(topology=CpuTopology(0, 1, 1)), "cpu.topology.sockets", "at least 1"),
    (cpu(topology=CpuTopology(1, 0, 1)), "cpu.topology.cores", "at least 1"),
    (cpu(topology=CpuTopology(1, 1, 0)), "cpu.topology.threads", "at least 1"),
    (cpu(topology=CpuTopology(2, 2, 1)), "cpu.topology", "are 4 virtual CPUs, and the guest has up to 2"),
    (replace(cpu(topology=CpuTopology(1, 2, 1)), max_vcpus=4), "cpu.topology", "up to 4 (max_vcpus)"),
    (cpu(model="../etc"), "cpu.model", "not the name of a CPU"),
    (cpu(features=(CpuFeature("a b"),)), "cpu.features[0].name", "not the name of a feature"),
    (cpu(features=(CpuFeature("aes"),) * 2), "cpu.features[1].name", "twice"),
    (cpu(features=(CpuFeature("svm"),)), "cpu.features[0].name", "cpu.nested"),
    (cpu(pins=(VcpuPin(2, "0"),)), "cpu.pins[0].vcpu", "there is no virtual CPU 2: the guest has 0 to 1"),
    (cpu(pins=(VcpuPin(0, "0"), VcpuPin(0, "1"))), "cpu.pins[1].vcpu", "pinned twice"),
    (cpu(pins=(VcpuPin(0, ""),)), "cpu.pins[0].host_cpus", "is required"),
    (cpu(pins=(VcpuPin(0, "0-"),)), "cpu.pins[0].host_cpus", "0-3,8"),
    (cpu(pins=(VcpuPin(0, "3-1"),)), "cpu.pins[0].host_cpus", "backwards"),
    (cpu(emulator_host_cpus="all"), "cpu.emulator_host_cpus", "0-3,8"),
    (replace(GOOD, memory=MemorySpec(hugepage_bytes=4096)), "memory.hugepage_bytes", "power of two"),
    (replace(GOOD, memory=MemorySpec(hugepage_bytes=3 * MIB)), "memory.hugepage_bytes", "power of two"),
    (
        replace(GOOD, max_memory_bytes=128 * MIB, memory=MemorySpec(balloon=False)),
        "memory.balloon",
        "only by a balloon",
    ),
    (numa(), "numa.nodes", "must be 1 to 64"),
    (numa(NumaNode("", 64 * MIB)), "numa.nodes[0].vcpus", "is required"),
    (numa(NumaNode("0-2", 64 * MIB)), "numa.nodes[0].vcpus", "there is no virtual CPU 2"),
    (numa(NumaNode("0-1", HALF), NumaNode("1", HALF)), "numa.nodes[1].vcpus", "in two nodes"),
    (numa(NumaNode("0-1", 0)), "numa.nodes[0].memory_bytes", "1 MiB"),
    (numa(NumaNode("0-1", 64 * MIB, "x")), "numa.nodes[0].host_nodes", "0-3,8"),
    (numa(NumaNode("0", 64 * MIB)), "numa.nodes", "virtual CPUs 1 are in no node"),
    (numa(NumaNode("0", HALF), NumaNode("1", MIB)), "numa.nodes", "the guest has 67108864"),
    (replace(GOOD, secure_boot=True), "secure_boot", "UEFI"),
    (replace(GOOD, secure_boot=True, firmware=Firmware.BIOS), "secure_boot", "UEFI"),
    (replace(GOOD, graphics=GraphicsSpec(video_model="<x>")), "graphics.video_model", "not a video card"),
    (disk(serial="x" * 21), f"{D0}.serial", "20 letters"),
    (disk(serial="a b"), f"{D0}.serial", "20 letters"),
    (disk(discard=True, read_only=True), f"{D0}.discard", "nothing to discard"),
    (cdrom(discard=True), f"{D0}.discard", "nothing to discard"),
    (cdrom(blank=BlankSource(MIB)), f"{D0}.blank", "CD-ROM"),
    (disk(blank=None), f"{D0}.source", "exactly one"),
    (
        disk(io_tune=IoTune(total_bytes_per_s=1, read_bytes_per_s=1)),
        f"{D0}.io_tune.total_bytes_per_s",
        "cannot be together with read_bytes_per_s",
    ),
    (
        disk(io_tune=IoTune(total_requests_per_s=1, write_requests_per_s=1)),
        f"{D0}.io_tune.total_requests_per_s",
        "write_requests_per_s",
    ),
    (disk(io_tune=IoTune(read_bytes_per_s=2**51)), f"{D0}.io_tune.read_bytes_per_s", "at most"),
    (
        replace(GOOD, disks=tuple(DiskSpec(n, blank=BlankSource(MIB), serial="S") for n in "ab")),
        "disks[1].serial",
        "is the serial number of a too",
    ),
    (
        replace(disk(boot_order=1), interfaces=(InterfaceSpec("net", boot_order=1),)),
        f"{I0}.boot_order",
        "taken by disk root",
    ),
    (nic(boot_order=0), f"{I0}.boot_order", "must be 1"),
    (nic(boot_order=1001), f"{I0}.boot_order", "must be 1"),
    (nic(mtu=67), f"{I0}.mtu", "68 to 65535"),
    (nic(mtu=65536), f"{I0}.mtu", "68 to 65535"),
    (
        nic(kind=InterfaceKind.NETWORK, network="default", port_forwards=(PortForward(1, 2),)),
        f"{I0}.port_forwards",
        "kind USER only",
    ),
    (forwards(PortForward(0, 80)), f"{I0}.port_forwards[0].host_port", "1 to 65535"),
    (forwards(PortForward(80, 65536)), f"{I0}.port_forwards[0].guest_port", "1 to 65535"),
    (forwards(PortForward(80, 80, host_address="here")), f"{I0}.port_forwards[0].host_address", "IP address"),
    (forwards(PortForward(80, 80, host_address="1.2.3.4,x")), f"{I0}.port_forwards[0].host_address", "IP address"),
    (forwards(PortForward(80, 1), PortForward(80, 2)), f"{I0}.port_forwards[1].host_port", "TCP port 80 is taken"),
    (
        forwards(PortForward(80, 1), PortForward(80, 2, host_address="0.0.0.0")),
        f"{I0}.port_forwards[1].host_port",
        "is taken",
    ),
    (
        replace(GOOD, interfaces=tuple(InterfaceSpec(n, port_forwards=(PortForward(80, 1),)) for n in "ab")),
        "interfaces[1].port_forwards[0].host_port",
        "is taken by guest.spec.interfaces[0].port_forwards[0]",
    ),
    (share(FilesystemSpec("a", "srv")), f"{F0}.path", "absolute"),
    (share(FilesystemSpec("a", "")), f"{F0}.path", "is required"),
    (share(FilesystemSpec("A", "/srv")), f"{F0}.name", "not a valid name"),
    (share(FilesystemSpec("a" * 37, "/srv")), f"{F0}.name", "at most 36"),
    (share(FilesystemSpec("a" * 32, "/srv", FilesystemKind.P9)), f"{F0}.name", "at most 31"),
    (share(FilesystemSpec("a", "/srv"), FilesystemSpec("a", "/tmp")), "filesystems[1].name", "used twice"),
    (share(*(FilesystemSpec(f"f{n}", "/srv") for n in range(65))), "filesystems", "at most 64"),
    (
        replace(disk(), filesystems=(FilesystemSpec("root", "/srv"),)),
        f"{F0}.name",
        "root is a name in disks too",
    ),
    (given_device(), f"{H0}.device", "exactly one of pci, usb"),
    (given_device(pci=PciHostDevice("0000:01:00.0"), usb=UsbHostDevice(1, 1)), f"{H0}.device", "exactly one"),
    (given_device(pci=PciHostDevice("01:00.0")), f"{H0}.pci.address", "0000:01:00.0"),
    (given_device(pci=PciHostDevice("0000:01:00.8")), f"{H0}.pci.address", "0000:01:00.0"),
    (usb(), f"{H0}.usb", "either vendor_id"),
    (usb(vendor_id=1, product_id=1, bus=1, device=1), f"{H0}.usb", "either vendor_id"),
    (usb(product_id=1), f"{H0}.usb.vendor_id", "1 to 65535"),
    (usb(vendor_id=65536), f"{H0}.usb.vendor_id", "1 to 65535"),
    (usb(bus=1), f"{H0}.usb.device", "1 to 127"),
    (usb(bus=256, device=1), f"{H0}.usb.bus", "1 to 255"),
    (
        replace(
            GOOD,
            host_devices=tuple(
                HostDeviceSpec(n, pci=PciHostDevice(a)) for n, a in (("a", "0000:0A:00.0"), ("b", "0000:0a:00.0"))
            ),
        ),
        "host_devices[1]",
        "same device as a",
    ),
]


@pytest.mark.parametrize(("spec", "field", "what"), WRONG, ids=[f"{row[1]}-{n}" for n, row in enumerate(WRONG)])
def test_every_wrong_field_is_named(spec: GuestSpec, field: str, what: str) -> None:
    with pytest.raises(InvalidArgumentError) as caught:
        check_spec(spec, HOST)
    error = caught.value
    assert error.reason.name == "FIELD_INVALID"
    found = {violation.field: violation.description for violation in error.record.violations}
    assert f"guest.spec.{field}" in found, found
    assert what in found[f"guest.spec.{field}"]
    assert all(text.isprintable() for text in (error.message, *found.values()))


@pytest.mark.parametrize(
    "spec",
    [
        replace(GOOD, max_vcpus=8, cpu=CpuSpec(topology=CpuTopology(2, 2, 1, 2), pins=(VcpuPin(7, "0-3,8"),))),
        replace(GOOD, max_memory_bytes=128 * MIB, numa=NumaSpec((NumaNode("0-1", 128 * MIB, "0,2"),))),
        replace(GOOD, firmware=Firmware.UEFI, secure_boot=True),
        cdrom(),
        disk(io_tune=IoTune(total_bytes_per_s=1, read_requests_per_s=1, write_requests_per_s=1), serial="A_b-1"),
        forwards(
            PortForward(80, 1), PortForward(80, 2, PortProtocol.UDP), PortForward(80, 3, host_address="192.0.2.1")
        ),
        usb(vendor_id=0x1D6B, product_id=0),
    ],
    ids=str,
)
def test_what_is_right_passes(spec: GuestSpec) -> None:
    check_spec(spec, HOST)


def test_ranges() -> None:
    assert parse_ranges("") == ()
    assert parse_ranges("8,0-3,2") == (0, 1, 2, 3, 8)
    assert format_ranges((8, 3, 2, 1, 0)) == "0-3,8"
    for text in ("-1", "1,,2", "a", "1-2-3", " 1", "9" * 6):
        with pytest.raises(ValueError, match="0-3,8"):
            parse_ranges(text)


# ------------------------------------------------------------------------------------- with a host


@pytest.fixture
async def lab() -> AsyncIterator[Lab]:
    with short_directory() as directory:
        async with running_lab(directory) as opened:
            yield opened


def everything(directory: Path) -> GuestSpec:
    """A spec in which no field is at its default, as far as one spec can have them all."""
    image = directory / "disk.raw"
    image.write_bytes(bytes(MIB))
    return GuestSpec(
        vcpus=2,
        memory_bytes=64 * MIB,
        accelerator=Accelerator.TCG,
        firmware=Firmware.UEFI,
        machine="fake-2",
        direct_kernel_boot=DirectKernelBoot(str(image), str(image), "quiet"),
        disks=(
            DiskSpec(
                "root",
                host_file=HostFileSource(str(image), DiskFormat.RAW),
                bus=DiskBus.SCSI,
                read_only=True,
                boot_order=2,
                cache=DiskCache.NONE,
                io_tune=IoTune(total_bytes_per_s=1),
                serial="S",
            ),
            DiskSpec("cd", device=DiskDevice.CDROM, discard=False),
            DiskSpec("data", host_file=HostFileSource(str(image), DiskFormat.RAW), discard=True),
        ),
        interfaces=(
            InterfaceSpec(
                "net",
                InterfaceKind.USER,
                mac="52:54:00:00:00:01",
                model="e1000",
                port_forwards=(PortForward(8080, 80),),
                link_state=LinkState.DOWN,
                mtu=1400,
                boot_order=1,
            ),
            InterfaceSpec("lan", InterfaceKind.NETWORK, "default", "52:54:00:00:00:02"),
        ),
        serial_console=False,
        guest_agent=False,
        graphics=GraphicsSpec(vnc=False, listen="::1", video_model="virtio"),
        backend_options={"mood": "loud"},
        max_vcpus=4,
        max_memory_bytes=128 * MIB,
        cpu=CpuSpec(model="maximum"),
        memory=MemorySpec(locked=True),
        numa=NumaSpec((NumaNode("0-3", 128 * MIB),)),
        secure_boot=True,
        tpm=TpmSpec(),
        rng=False,
        watchdog=WatchdogSpec(),
        filesystems=(FilesystemSpec("share", str(directory)),),
        usb=UsbSpec(tablet=True),
        sound=SoundSpec(),
        host_devices=(HostDeviceSpec("gpu", pci=PciHostDevice("0000:01:00.0")),),
        autostart=True,
        clock=ClockBase.LOCALTIME,
    )


async def test_every_field_is_carried_to_the_backend(lab: Lab) -> None:
    """A field that the resolver forgets would be ignored without a word."""
    files = lab.daemon.config.state.import_directory
    wanted = everything(files)
    uid = UUID("11111111-2222-4333-8444-555555555555")
    found = await resolved_guest(lab.link, "all", uid, Resolution(wanted, (), Accelerator.TCG, ""))
    own = {"uuid", "name", "disks", "interfaces"}
    for field in dataclasses.fields(ResolvedGuest):
        if field.name not in own:
            assert getattr(found, field.name) == getattr(wanted, field.name), field.name
            assert getattr(found, field.name) != field.default, f"{field.name} proves nothing at its default"
    pairs: tuple[tuple[type, Any, Any, set[str]], ...] = (
        (ResolvedDisk, found.disks, wanted.disks, {"path", "format"}),
        (ResolvedInterface, found.interfaces, wanted.interfaces, set()),
    )
    for cls, got, asked, resolved in pairs:
        for field in dataclasses.fields(cls):
            if field.name in resolved:
                continue
            for one, other in zip(got, asked, strict=True):
                value = getattr(other, field.name)
                assert value is None or getattr(one, field.name) == value, field.name
            assert any(getattr(entry, field.name) != field.default for entry in got), field.name
    assert [entry.path for entry in found.disks] == [str(files / "disk.raw"), "", str(files / "disk.raw")]


async def test_a_guest_with_everything_is_read_back(lab: Lab) -> None:
    """The fake backend too keeps every field that it takes."""
    wanted = replace(everything(lab.daemon.config.state.import_directory), host_devices=())
    ended = await lab.done(await lab.services.guests.create(call(), HOST, "all", GuestDraft(wanted), False))
    assert not ended.warnings
    native = await lab.link.session.get_guest(lab.guest("all").uid)
    for field in dataclasses.fields(GuestSpec):
        if field.name not in ("disks", "interfaces", "run_strategy"):
            assert getattr(native.spec, field.name) == getattr(wanted, field.name), field.name
    assert [disk.name for disk in native.disks] == ["root", "cd", "data"]


@pytest.mark.parametrize("what", ["outside", "missing", "file", "link"])
async def test_a_share_stays_in_the_allowed_directories(lab: Lab, what: str) -> None:
    files = lab.daemon.config.state.import_directory
    (files / "file").write_text("x")
    (files / "link").symlink_to("/etc")
    path = "/etc" if what == "outside" else str(files / what)
    before = lab.world.digest()
    with pytest.raises(InvalidArgumentError) as caught:
        await lab.create("a", filesystems=(FilesystemSpec("share", path),))
    assert caught.value.reason.name == ("PATH_NOT_ALLOWED" if what in ("outside", "link") else "FIELD_INVALID")
    assert caught.value.record.violations[0].field == "guest.spec.filesystems[0].path"
    assert lab.world.digest() == before


@pytest.mark.parametrize(
    ("device", "field"),
    [
        (HostDeviceSpec("gpu", pci=PciHostDevice("ffff:ff:1f.7")), "pci.address"),
        (HostDeviceSpec("stick", usb=UsbHostDevice(vendor_id=0xFFFF, product_id=0xFFFF)), "usb"),
        (HostDeviceSpec("port", usb=UsbHostDevice(bus=255, device=127)), "usb"),
    ],
    ids=lambda value: getattr(value, "name", ""),
)
async def test_a_device_that_the_host_has_not(lab: Lab, device: HostDeviceSpec, field: str) -> None:
    """Looked at where the host is this machine."""
    with pytest.raises(InvalidArgumentError) as caught:
        check_host_devices(replace(GOOD, host_devices=(device,)))
    assert caught.value.reason.name == "FIELD_INVALID"
    assert caught.value.record.violations[0].field == f"guest.spec.host_devices[0].{field}"
    assert "the host has no" in caught.value.message


async def test_what_the_host_cannot_is_named_all_at_once() -> None:
    """Each capability that a field needs is asked for before anything is made, with its reason."""
    wanted = GuestSpec(
        vcpus=1,
        memory_bytes=64 * MIB,
        tpm=TpmSpec(),
        watchdog=WatchdogSpec(),
        interfaces=(InterfaceSpec("net", port_forwards=(PortForward(8080, 80),)),),
    )
    missing = (cap.TPM, cap.WATCHDOG, cap.PORT_FORWARD)
    with short_directory() as directory:
        async with running_lab(directory, f"without={','.join(missing)}") as poor:
            before = poor.world.digest()
            with pytest.raises(InvalidArgumentError) as caught:
                await poor.services.guests.create(call(), HOST, "a", GuestDraft(wanted), False)
            assert caught.value.reason.name == "FIELD_UNSUPPORTED"
            assert {violation.field for violation in caught.value.record.violations} == {
                "guest.spec.tpm",
                "guest.spec.watchdog",
                "guest.spec.interfaces[0].port_forwards",
            }
            assert all("switched off" in violation.description for violation in caught.value.record.violations)
            assert poor.world.digest() == before
