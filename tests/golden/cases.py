"""The guests whose domain XML is kept in golden files, each with the platform that it is for."""

from __future__ import annotations

from typing import Any
from uuid import UUID

from virtd_kvm.designer import Platform

from virtd.backend import capabilities as cap
from virtd.backend.api import ResolvedDisk, ResolvedGuest, ResolvedInterface
from virtd.model.devices import (
    ClockBase,
    CpuFeature,
    CpuFeaturePolicy,
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
    NumaPolicy,
    NumaSpec,
    PciHostDevice,
    PortForward,
    PortProtocol,
    SoundModel,
    SoundSpec,
    TpmModel,
    TpmSpec,
    UsbHostDevice,
    UsbSpec,
    VcpuPin,
    WatchdogAction,
    WatchdogModel,
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

UUID1 = UUID("11111111-2222-4333-8444-555555555555")
QEMU = Platform()
KNOWN = Platform(
    cpu_vendor="AMD",
    cpus=frozenset({0, 1}),
    nodes=frozenset({0}),
    huge_pages={2 << 20: 300, 1 << 30: 0},
    cpu_models={"qemu": frozenset({"Nehalem", "qemu64"})},
    video_models=("vga", "none"),
)
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
            backend_options={"disk_io": "threads", "balloon_stats": "no"},
        ),
        QEMU,
    ),
    "cpu": (
        guest(
            vcpus=2,
            max_vcpus=8,
            cpu=CpuSpec(
                topology=CpuTopology(sockets=2, dies=2, cores=1, threads=2),
                model="Nehalem",
                features=(CpuFeature("aes"), CpuFeature("pcid", CpuFeaturePolicy.DISABLE)),
                pins=(VcpuPin(0, "0"), VcpuPin(7, "0-1")),
                emulator_host_cpus="1",
                nested=True,
            ),
        ),
        KNOWN,
    ),
    "cpu-kvm": (
        guest(accelerator=Accelerator.KVM, cpu=CpuSpec(model="host-model", nested=True)),
        Platform(cpu_vendor="Intel"),
    ),
    "cpu-threads-tcg": (guest(cpu=CpuSpec(topology=CpuTopology(1, 1, 2))), QEMU),
    "cpu-not-nested": (guest(accelerator=Accelerator.KVM, cpu=CpuSpec(model="maximum", nested=False)), QEMU),
    "rejected-not-nested": (guest(cpu=CpuSpec(nested=False)), KNOWN),
    "memory": (
        guest(
            memory_bytes=256 << 20,
            max_memory_bytes=512 << 20,
            memory=MemorySpec(hugepage_bytes=2 << 20, balloon=True, locked=True, shared=True),
        ),
        KNOWN,
    ),
    "no-balloon": (guest(memory=MemorySpec(balloon=False), rng=False), QEMU),
    "numa": (
        guest(
            numa=NumaSpec((NumaNode("0", 256 << 20, "0"), NumaNode("1", 256 << 20, "0")), policy=NumaPolicy.INTERLEAVE)
        ),
        KNOWN,
    ),
    "numa-preferred": (
        guest(numa=NumaSpec((NumaNode("0-1", 512 << 20, "1"),), policy=NumaPolicy.PREFERRED)),
        Platform(nodes=frozenset({0, 1})),
    ),
    "secure-boot": (guest(firmware=Firmware.UEFI, secure_boot=True, disks=(ROOT,), tpm=TpmSpec()), QEMU),
    "devices": (
        guest(
            graphics=GraphicsSpec(video_model="virtio"),
            tpm=TpmSpec(TpmModel.TIS),
            watchdog=WatchdogSpec(WatchdogModel.I6300ESB, WatchdogAction.PAUSE),
            usb=UsbSpec(tablet=True, keyboard=True),
            sound=SoundSpec(SoundModel.AC97),
            clock=ClockBase.LOCALTIME,
        ),
        QEMU,
    ),
    "watchdog-itco": (
        guest(watchdog=WatchdogSpec(WatchdogModel.ITCO, WatchdogAction.SHUTDOWN)),
        Platform(version=(10, 0, 0)),
    ),
    "headless-video": (guest(graphics=GraphicsSpec(vnc=False, video_model="bochs")), QEMU),
    "filesystems": (
        guest(
            filesystems=(
                FilesystemSpec("share", "/srv/share"),
                FilesystemSpec("docs", "/srv/docs & more", FilesystemKind.P9, read_only=True),
            )
        ),
        QEMU,
    ),
    "passthrough": (
        guest(
            host_devices=(
                HostDeviceSpec("gpu", pci=PciHostDevice("0000:01:00.1")),
                HostDeviceSpec("stick", usb=UsbHostDevice(vendor_id=0x1D6B, product_id=2)),
                HostDeviceSpec("port", usb=UsbHostDevice(bus=1, device=4)),
            )
        ),
        QEMU,
    ),
    "disk-tuning": (
        guest(
            disks=(
                ResolvedDisk(
                    "root",
                    "/pool/root.qcow2",
                    DiskFormat.QCOW2,
                    DiskBus.VIRTIO,
                    cache=DiskCache.NONE,
                    io_tune=IoTune(read_bytes_per_s=1 << 20, write_bytes_per_s=2 << 20, total_requests_per_s=100),
                    discard=True,
                    serial="ROOT_1",
                ),
                raw(
                    "data",
                    DiskBus.SCSI,
                    cache=DiskCache.DIRECTSYNC,
                    io_tune=IoTune(total_bytes_per_s=1 << 20, read_requests_per_s=10, write_requests_per_s=20),
                ),
                ResolvedDisk("empty", "", DiskFormat.RAW, DiskBus.SCSI, DiskDevice.CDROM, read_only=True),
            ),
            backend_options={"disk_io": "native"},
        ),
        QEMU,
    ),
    "network-boot": (
        guest(
            disks=(raw("a", DiskBus.VIRTIO, boot_order=2),),
            interfaces=(
                ResolvedInterface(
                    "lan",
                    InterfaceKind.NETWORK,
                    "52:54:00:00:00:02",
                    "default",
                    link_state=LinkState.DOWN,
                    mtu=1400,
                    boot_order=1,
                ),
            ),
        ),
        QEMU,
    ),
    "port-forwards": (
        guest(
            interfaces=(
                ResolvedInterface(
                    "net",
                    InterfaceKind.USER,
                    "52:54:00:00:00:01",
                    port_forwards=(
                        PortForward(8080, 80),
                        PortForward(5353, 53, PortProtocol.UDP, "192.0.2.1"),
                    ),
                    link_state=LinkState.UP,
                ),
                ResolvedInterface("other", InterfaceKind.USER, "52:54:00:00:00:02"),
            )
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
            backend_options={"disk_io": "sometimes", "nonsense": "1"},
        ),
        QEMU,
    ),
    "rejected-cpu": (
        guest(
            cpu=CpuSpec(model="Cray-1", nested=True, pins=(VcpuPin(0, "0-3"),), emulator_host_cpus="9"),
            numa=NumaSpec((NumaNode("0-1", 512 << 20, "0,1"),), NumaPolicy.PREFERRED),
            memory=MemorySpec(hugepage_bytes=1 << 30),
        ),
        KNOWN,
    ),
    "rejected-host-cpu": (
        guest(cpu=CpuSpec(model="host-passthrough"), memory=MemorySpec(hugepage_bytes=64 << 10)),
        KNOWN,
    ),
    "rejected-memory": (
        guest(memory_bytes=1024 << 20, max_memory_bytes=2048 << 20, memory=MemorySpec(2 << 20, balloon=False)),
        KNOWN,
    ),
    "rejected-secure-boot-bios": (guest(secure_boot=True), QEMU),
    "rejected-secure-boot-pc": (guest(secure_boot=True, firmware=Firmware.UEFI, machine="pc"), QEMU),
    "rejected-devices": (
        guest(
            graphics=GraphicsSpec(video_model="3dfx"),
            watchdog=WatchdogSpec(WatchdogModel.ITCO),
            filesystems=(FilesystemSpec("share", "/srv/share", read_only=True),),
            disks=(raw("a", DiskBus.VIRTIO),),
            interfaces=(
                ResolvedInterface("a", InterfaceKind.USER, "52:54:00:00:00:02", mtu=1400),
                ResolvedInterface(
                    "b", InterfaceKind.USER, "52:54:00:00:00:03", port_forwards=(PortForward(1, 2, host_address="::1"),)
                ),
                ResolvedInterface(
                    "c", InterfaceKind.BRIDGE, "52:54:00:00:00:04", "br0", port_forwards=(PortForward(1, 2),)
                ),
            ),
            backend_options={"disk_io": "native"},
        ),
        KNOWN,
    ),
    "rejected-itco-on-pc": (guest(machine="pc", watchdog=WatchdogSpec(WatchdogModel.ITCO)), QEMU),
    "rejected-nested": (guest(cpu=CpuSpec(nested=True)), Platform("qemu", "aarch64")),
    "rejected-by-the-host": (
        guest(
            firmware=Firmware.UEFI,
            secure_boot=True,
            max_vcpus=4,
            max_memory_bytes=1024 << 20,
            cpu=CpuSpec(
                topology=CpuTopology(4, 1, 1),
                model="maximum",
                features=(CpuFeature("aes"),),
                pins=(VcpuPin(0, "0"),),
                emulator_host_cpus="0",
                nested=False,
            ),
            memory=MemorySpec(2 << 20, balloon=True, locked=True, shared=True),
            numa=NumaSpec((NumaNode("0-3", 1024 << 20),)),
            tpm=TpmSpec(),
            watchdog=WatchdogSpec(),
            usb=UsbSpec(tablet=True),
            sound=SoundSpec(),
            filesystems=(FilesystemSpec("a", "/a"), FilesystemSpec("b", "/b", FilesystemKind.P9)),
            host_devices=(
                HostDeviceSpec("gpu", pci=PciHostDevice("0000:01:00.1")),
                HostDeviceSpec("stick", usb=UsbHostDevice(vendor_id=1)),
            ),
            disks=(raw("a", DiskBus.VIRTIO, cache=DiskCache.NONE, io_tune=IoTune(1), discard=True, serial="A"),),
            interfaces=(
                ResolvedInterface("a", InterfaceKind.USER, "52:54:00:00:00:02", port_forwards=(PortForward(1, 2),)),
            ),
        ),
        Platform(missing={id_: f"there is no {id_} here" for id_ in cap.SUMMARIES}),
    ),
    "rejected-ide": (guest(disks=(raw("a", DiskBus.IDE),)), QEMU),
    "rejected-ide-fifth": (guest(machine="pc", disks=tuple(raw(f"d{n}", DiskBus.IDE) for n in range(5))), QEMU),
}
