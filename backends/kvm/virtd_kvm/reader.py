"""A libvirt domain, read back as virtd's words."""

from __future__ import annotations

from typing import Final
from uuid import UUID

from virtd.backend.api import NativeGuest
from virtd.libvirt.states import State
from virtd.libvirt.xml.disk import Disk
from virtd.libvirt.xml.domain import Domain
from virtd.libvirt.xml.interface import Interface
from virtd.model.guest import (
    Accelerator,
    DirectKernelBoot,
    DiskBus,
    DiskDevice,
    DiskFormat,
    DiskSpec,
    DiskStatus,
    Firmware,
    GraphicsSpec,
    GuestSpec,
    GuestState,
    HostFileSource,
    InterfaceKind,
    InterfaceSpec,
    InterfaceStatus,
)
from virtd_kvm.designer import AGENT_CHANNEL

_BUSES: Final = {"virtio": DiskBus.VIRTIO, "scsi": DiskBus.SCSI, "sata": DiskBus.SATA, "ide": DiskBus.IDE}
_FORMATS: Final = {"qcow2": DiskFormat.QCOW2, "raw": DiskFormat.RAW}
_DEVICES: Final = {"disk": DiskDevice.DISK, "cdrom": DiskDevice.CDROM}
_KINDS: Final = {"user": InterfaceKind.USER, "network": InterfaceKind.NETWORK, "bridge": InterfaceKind.BRIDGE}
_ACCELERATORS: Final = {"kvm": Accelerator.KVM, "qemu": Accelerator.TCG}


def read_guest(uuid: UUID, state: State, domain: Domain, *, persistent: bool) -> NativeGuest:
    """What the hypervisor says of the guest.

    Disks and interfaces carry the names of the spec where virtd defined the guest, else what
    libvirt calls them (``vda``; an interface without a device yet: ``net0``).
    """
    disks = [(disk, _disk_name(disk, domain)) for disk in domain.disks]
    interfaces = [
        (interface, _interface_name(index, interface, domain)) for index, interface in enumerate(domain.interfaces)
    ]
    graphics = domain.graphics[0] if domain.graphics else None
    return NativeGuest(
        uuid=uuid,
        name=domain.name,
        state=state.state,
        state_reason=state.reason,
        native_state=state.native,
        native_ref=str(uuid),
        spec=_spec(domain, disks, interfaces),
        disks=tuple(_disk_status(disk, name) for disk, name in disks),
        interfaces=tuple(
            InterfaceStatus(name, interface.mac, interface.kind, interface.source, interface.model, interface.target)
            for interface, name in interfaces
        ),
        accelerator=_ACCELERATORS.get(domain.kind),
        graphics_address=graphics.address if graphics is not None else "",
        persistent=persistent,
        has_saved_state=state.state is GuestState.SUSPENDED,
    )


def _spec(domain: Domain, disks: list[tuple[Disk, str]], interfaces: list[tuple[Interface, str]]) -> GuestSpec:
    boot = domain.boot
    vnc = next((graphics for graphics in domain.graphics if graphics.kind == "vnc"), None)
    return GuestSpec(
        vcpus=domain.vcpus or None,
        memory_bytes=domain.memory_bytes or None,
        accelerator=_ACCELERATORS.get(domain.kind),
        firmware=Firmware.UEFI if boot.efi else Firmware.BIOS,
        machine=boot.machine,
        direct_kernel_boot=DirectKernelBoot(boot.kernel, boot.initrd, boot.command_line) if boot.kernel else None,
        disks=tuple(_disk_spec(disk, name) for disk, name in disks),
        interfaces=tuple(
            InterfaceSpec(name, _KINDS[interface.kind], interface.source, interface.mac, interface.model)
            for interface, name in interfaces
            if interface.kind in _KINDS
        ),
        serial_console=bool(domain.serials or domain.consoles),
        guest_agent=any(channel.name == AGENT_CHANNEL for channel in domain.channels),
        graphics=GraphicsSpec(vnc=True, listen=vnc.listen) if vnc is not None else None,
        backend_options=dict(domain.metadata.options),
    )


def _disk_name(disk: Disk, domain: Domain) -> str:
    return domain.metadata.disks.get(disk.target) or disk.target


def _interface_name(index: int, interface: Interface, domain: Domain) -> str:
    return domain.metadata.interfaces.get(interface.mac) or f"net{index}"


def _disk_spec(disk: Disk, name: str) -> DiskSpec:
    # A format that virtd does not know (or an empty CD-ROM drive) has no file that it could name.
    known = disk.kind == "file" and disk.path and disk.format in _FORMATS
    return DiskSpec(
        name=name,
        host_file=HostFileSource(disk.path, _FORMATS[disk.format]) if known else None,
        bus=_BUSES.get(disk.bus),
        device=_DEVICES.get(disk.device),
        read_only=disk.read_only,
        boot_order=disk.boot_order,
    )


def _disk_status(disk: Disk, name: str) -> DiskStatus:
    return DiskStatus(
        name=name,
        path=disk.path,
        target=disk.target,
        format=disk.format,
        bus=disk.bus,
        device=_DEVICES.get(disk.device),
        read_only=disk.read_only,
    )
