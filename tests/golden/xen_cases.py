"""Guests of Xen whose domain XML is kept in golden files, each with the platform that it is for."""

from __future__ import annotations

from typing import Any
from uuid import UUID

from virtd_xen.dialect import PV
from virtd_xen.platform import Platform

from virtd.backend import capabilities as cap
from virtd.backend.api import ResolvedDisk, ResolvedGuest, ResolvedInterface
from virtd.model.devices import (
    ClockBase,
    CpuSpec,
    DiskCache,
    FilesystemSpec,
    HostDeviceSpec,
    IoTune,
    LinkState,
    MemorySpec,
    NumaNode,
    NumaSpec,
    PciHostDevice,
    PortForward,
    SoundSpec,
    TpmSpec,
    UsbHostDevice,
    UsbSpec,
    VcpuPin,
    WatchdogSpec,
)
from virtd.model.guest import (
    Accelerator,
    DirectKernelBoot,
    DiskBus,
    DiskDevice,
    DiskFormat,
    Firmware,
    GraphicsSpec,
    InterfaceKind,
)

MIB = 1 << 20
UUID1 = UUID("11111111-2222-4333-8444-555555555555")
HOST = Platform(cpus=frozenset({0, 1}))
KERNEL = DirectKernelBoot("/srv/vmlinux", "/srv/initrd.img", "console=hvc0 quiet")
DATA = ResolvedDisk("data", "/srv/data.img", DiskFormat.RAW, DiskBus.VIRTIO)
ROOT = ResolvedDisk("root", "/srv/root.qcow2", DiskFormat.QCOW2, DiskBus.VIRTIO)
ISO = ResolvedDisk("iso", "/srv/cd.iso", DiskFormat.RAW, DiskBus.IDE, DiskDevice.CDROM, read_only=True)
EMPTY = ResolvedDisk("cd", "", DiskFormat.RAW, DiskBus.IDE, DiskDevice.CDROM, read_only=True)
NET = ResolvedInterface("net0", InterfaceKind.BRIDGE, "00:16:3e:00:00:01", "xenbr0")
NAT = ResolvedInterface("net1", InterfaceKind.NETWORK, "00:16:3e:00:00:02", "default")


def guest(**changes: Any) -> ResolvedGuest:
    values: dict[str, Any] = {
        "uuid": UUID1, "name": "demo", "vcpus": 1, "memory_bytes": 128 * MIB, "accelerator": Accelerator.NATIVE,
        "guest_agent": False, "rng": False,
    }  # fmt: skip
    return ResolvedGuest(**{**values, **changes})


def kernel(machine: str = "", **changes: Any) -> ResolvedGuest:
    return guest(machine=machine, direct_kernel_boot=KERNEL, **changes)


CASES: dict[str, tuple[ResolvedGuest, Platform]] = {
    "pv": (kernel("xenpv", disks=(DATA, ROOT), interfaces=(NET, NAT)), HOST),
    "pv-display": (kernel("xenpv", graphics=GraphicsSpec(vnc=True)), HOST),
    "pvh": (kernel("xenpvh", disks=(DATA,), interfaces=(NET,)), HOST),
    "kernel-without-a-type": (kernel(), HOST),
    "hvm": (
        guest(machine="xenfv", disks=(ROOT, EMPTY), interfaces=(NET,), graphics=GraphicsSpec(vnc=True, listen="::1")),
        HOST,
    ),
    "disk-without-a-type": (guest(disks=(DATA,)), HOST),
    "hvm-kernel": (kernel("xenfv", disks=(DATA,)), HOST),
    "hvm-install": (
        guest(
            machine="xenfv",
            disks=(DATA.__class__("root", "/srv/r.img", DiskFormat.RAW, DiskBus.SCSI, boot_order=2),
                   ResolvedDisk("iso", "/srv/cd.iso", DiskFormat.RAW, DiskBus.IDE, DiskDevice.CDROM, boot_order=1)),
            interfaces=(ResolvedInterface("net0", InterfaceKind.BRIDGE, NET.mac, "xenbr0", "e1000", boot_order=3),),
            usb=UsbSpec(tablet=True, keyboard=True),
            clock=ClockBase.LOCALTIME,
        ),
        HOST,
    ),
    "sizes": (
        kernel(
            "xenpv",
            vcpus=1,
            max_vcpus=2,
            max_memory_bytes=192 * MIB,
            cpu=CpuSpec(pins=(VcpuPin(0, "1"),)),
        ),
        HOST,
    ),
    "passthrough": (kernel("xenpv", host_devices=(HostDeviceSpec("card", pci=PciHostDevice("0000:01:00.0")),)), HOST),
    "told-pv-disc": (kernel("xenpv", disks=(DATA, ISO)), HOST),
    "told-scsi-drive": (
        guest(disks=(DATA, ResolvedDisk("cd", "", DiskFormat.RAW, DiskBus.SCSI, DiskDevice.CDROM))), HOST,
    ),
    "told-agent-and-rng": (kernel(guest_agent=True, rng=True, memory_bytes=128 * MIB + 1), HOST),
    "markup-in-names": (
        kernel(name="a<b>&\"c'", disks=(ResolvedDisk("d", "/srv/a&b.img", DiskFormat.RAW, DiskBus.VIRTIO),)), HOST,
    ),
    "rejected-choices": (
        guest(
            accelerator=Accelerator.KVM,
            machine="q35",
            backend_options={"disk_io": "native"},
            memory=MemorySpec(balloon=False),
            cpu=CpuSpec(pins=(VcpuPin(0, "7"),), emulator_host_cpus="0"),
        ),
        HOST,
    ),
    "rejected-capabilities": (
        guest(
            firmware=Firmware.UEFI,
            secure_boot=True,
            tpm=TpmSpec(),
            watchdog=WatchdogSpec(),
            sound=SoundSpec(),
            filesystems=(FilesystemSpec("share", "/srv"),),
            cpu=CpuSpec(model="host-model"),
            numa=NumaSpec((NumaNode("0", 128 * MIB),)),
            memory=MemorySpec(hugepage_bytes=2 * MIB, locked=True),
            host_devices=(HostDeviceSpec("stick", usb=UsbHostDevice(vendor_id=1)),),
            disks=(ResolvedDisk("d", "/d", DiskFormat.RAW, DiskBus.VIRTIO, cache=DiskCache.NONE, io_tune=IoTune(1)),),
        ),
        HOST,
    ),
    "rejected-devices": (
        guest(
            machine="xenfv",
            disks=(
                ResolvedDisk("s", "/s", DiskFormat.RAW, DiskBus.SATA),
                ResolvedDisk("r", "/r", DiskFormat.RAW, DiskBus.IDE, read_only=True),
                *(ResolvedDisk(f"i{n}", f"/{n}", DiskFormat.RAW, DiskBus.IDE) for n in range(4)),
            ),
            interfaces=(
                ResolvedInterface("a", InterfaceKind.USER, "00:16:3e:00:00:0a", port_forwards=(PortForward(80, 80),)),
                ResolvedInterface("b", InterfaceKind.BRIDGE, "00:16:3e:00:00:0b", model="virtio"),
                ResolvedInterface("c", InterfaceKind.BRIDGE, "00:16:3e:00:00:0c", "br0", "", (), LinkState.DOWN, 9000),
            ),
            graphics=GraphicsSpec(vnc=True, listen="nowhere", video_model="qxl"),
        ),
        HOST,
    ),
    "rejected-pvh": (
        guest(
            machine="xenpvh",
            disks=(ResolvedDisk("d", "/d", DiskFormat.RAW, DiskBus.IDE, boot_order=1), EMPTY),
            graphics=GraphicsSpec(vnc=True),
            usb=UsbSpec(tablet=True),
            host_devices=(HostDeviceSpec("card", pci=PciHostDevice("0000:01:00.0")),),
            interfaces=(ResolvedInterface("n", InterfaceKind.BRIDGE, NET.mac, "br0", "e1000", boot_order=2),),
        ),
        HOST,
    ),
    "rejected-boot-order": (
        guest(disks=(DATA, ResolvedDisk("second", "/2", DiskFormat.RAW, DiskBus.VIRTIO, boot_order=1))), HOST,
    ),
    "rejected-types-of-the-host": (
        guest(machine="xenfv"), Platform(machines=(PV,), missing={cap.DISK_BOOT: "no"}),
    ),
}  # fmt: skip
