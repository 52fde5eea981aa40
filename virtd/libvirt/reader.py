"""A libvirt domain, read back as virtd's words: the inverse of the designer."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields, replace
from enum import StrEnum
from typing import Final, TypeVar
from uuid import UUID

from virtd.backend.api import NativeGuest
from virtd.libvirt.dialect import Dialect
from virtd.libvirt.states import State
from virtd.libvirt.words import (
    AGENT_CHANNEL,
    BOOT_DEVICES,
    CLOCKS,
    CPU_MODES,
    FILESYSTEM_DRIVERS,
    FORMATS,
    INTERFACE_KINDS,
    LIMITS,
    LINKS,
    NUMA_MODES,
    SOUND_MODELS,
    TPM_MODELS,
    VIRTUALIZATION,
    WATCHDOG_ACTIONS,
    WATCHDOGS,
)
from virtd.libvirt.xml.disk import Disk, Limits
from virtd.libvirt.xml.domain import Domain
from virtd.libvirt.xml.hostdev import HostDevice
from virtd.libvirt.xml.interface import Interface
from virtd.libvirt.xml.override import UserNet
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
    DirectKernelBoot,
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

_E = TypeVar("_E", bound=StrEnum)

_DEVICES: Final = {"disk": DiskDevice.DISK, "cdrom": DiskDevice.CDROM}
_CACHES: Final = {cache.value.lower(): cache for cache in DiskCache}
_ACTIVE: Final = (GuestState.RUNNING, GuestState.PAUSED)


def _reversed(table: Mapping[_E, str]) -> dict[str, _E]:
    return {native: ours for ours, native in table.items()}


_FORMATS: Final[dict[str, DiskFormat]] = _reversed(FORMATS)
_LINKS: Final[dict[str, LinkState]] = _reversed(LINKS)
_KINDS: Final[dict[str, InterfaceKind]] = _reversed(INTERFACE_KINDS)
_CLOCKS: Final[dict[str, ClockBase]] = _reversed(CLOCKS)
_TPMS: Final[dict[str, TpmModel]] = _reversed(TPM_MODELS)
_WATCHDOGS: Final[dict[str, WatchdogModel]] = _reversed(WATCHDOGS)
_ACTIONS: Final[dict[str, WatchdogAction]] = _reversed(WATCHDOG_ACTIONS)
_SOUNDS: Final[dict[str, SoundModel]] = _reversed(SOUND_MODELS)
_FILESYSTEMS: Final[dict[str, FilesystemKind]] = {
    **_reversed(FILESYSTEM_DRIVERS),
    "handle": FilesystemKind.P9,
}
_POLICIES: Final[dict[str, NumaPolicy]] = _reversed(NUMA_MODES)


def read_guest(
    uuid: UUID,
    state: State,
    domain: Domain,
    dialect: Dialect,
    *,
    persistent: bool,
    unmodelled: tuple[str, ...] = (),
) -> NativeGuest:
    """What the hypervisor says of the guest.

    Disks and interfaces carry the names of the spec where virtd defined the guest, else what
    libvirt calls them (``vda``; an interface without a device yet: ``net0``).
    """
    if dialect.boot_devices:
        domain = _with_orders(domain)
    disks = [(disk, _disk_name(disk, domain)) for disk in domain.disks]
    interfaces = [
        (interface, _interface_name(index, interface, domain)) for index, interface in enumerate(domain.interfaces)
    ]
    graphics = domain.graphics[0] if domain.graphics else None
    active = state.state in _ACTIVE
    return NativeGuest(
        uuid=uuid,
        name=domain.name,
        state=state.state,
        state_reason=state.reason,
        native_state=state.native,
        native_ref=str(uuid),
        spec=_spec(domain, dialect, disks, interfaces),
        disks=tuple(_disk_status(disk, name) for disk, name in disks),
        interfaces=tuple(_interface_status(interface, name) for interface, name in interfaces),
        accelerator=dialect.accelerators.get(domain.kind),
        graphics_address=graphics.address if graphics is not None else "",
        persistent=persistent,
        has_saved_state=state.state is GuestState.SUSPENDED,
        # libvirt brings both up to date in the XML of a guest that runs.
        vcpus=(domain.current_vcpus or domain.vcpus or None) if active else None,
        memory_bytes=(domain.current_memory_bytes or domain.memory_bytes or None) if active else None,
        unmodelled=unmodelled,
    )


def _spec(
    domain: Domain, dialect: Dialect, disks: list[tuple[Disk, str]], interfaces: list[tuple[Interface, str]]
) -> GuestSpec:
    boot = domain.boot
    current = domain.current_memory_bytes or domain.memory_bytes
    vcpus = domain.current_vcpus or domain.vcpus
    return GuestSpec(
        vcpus=vcpus or None,
        memory_bytes=current or None,
        accelerator=dialect.accelerators.get(domain.kind),
        firmware=Firmware.UEFI if boot.efi else Firmware.BIOS,
        machine=boot.machine,
        direct_kernel_boot=DirectKernelBoot(boot.kernel, boot.initrd, boot.command_line) if boot.kernel else None,
        disks=tuple(_disk_spec(disk, name, dialect) for disk, name in disks),
        interfaces=tuple(
            _interface_spec(interface, name, domain.user_nets)
            for interface, name in interfaces
            if interface.kind in _KINDS
        ),
        serial_console=bool(domain.serials or domain.consoles),
        guest_agent=any(channel.name == AGENT_CHANNEL for channel in domain.channels),
        graphics=_graphics(domain),
        backend_options=dict(domain.metadata.options),
        max_vcpus=domain.vcpus if domain.vcpus != vcpus else None,
        max_memory_bytes=domain.memory_bytes if domain.memory_bytes != current else None,
        cpu=_cpu(domain),
        memory=_memory(domain),
        numa=_numa(domain),
        secure_boot=boot.secure,
        tpm=TpmSpec(_TPMS.get(domain.tpm.model)) if domain.tpm is not None else None,
        rng=domain.random is not None,
        watchdog=_watchdog(domain),
        filesystems=tuple(
            FilesystemSpec(found.tag, found.path, _FILESYSTEMS[found.driver], found.read_only)
            for found in domain.filesystems
            if found.driver in _FILESYSTEMS and found.kind == "mount"
        ),
        usb=_usb(domain),
        sound=_sound(domain),
        host_devices=tuple(
            _host_device(index, found)
            for index, found in enumerate(domain.host_devices)
            if found.pci is not None or found.usb is not None
        ),
        clock=_CLOCKS.get(domain.clock),
    )


# ------------------------------------------------------------------------------------------- devices


def _with_orders(domain: Domain) -> Domain:
    """An order of kinds of devices as one of single devices: of each kind it means the first."""
    if domain.boot.kernel:
        return domain
    orders = {BOOT_DEVICES.get(word): number for number, word in enumerate(domain.boot.devices, 1)}
    return replace(
        domain,
        disks=tuple(
            replace(disk, boot_order=disk.boot_order or orders.pop(disk.device, None)) for disk in domain.disks
        ),
        interfaces=tuple(
            replace(found, boot_order=found.boot_order or orders.pop("interface", None)) for found in domain.interfaces
        ),
    )


def _disk_name(disk: Disk, domain: Domain) -> str:
    return domain.metadata.disks.get(disk.target) or disk.target


def _interface_name(index: int, interface: Interface, domain: Domain) -> str:
    return domain.metadata.interfaces.get(interface.mac) or f"net{index}"


def _disk_spec(disk: Disk, name: str, dialect: Dialect) -> DiskSpec:
    # A format that virtd does not know (or an empty CD-ROM drive) has no file that it could name.
    known = disk.kind == "file" and disk.path and disk.format in _FORMATS
    return DiskSpec(
        name=name,
        host_file=HostFileSource(disk.path, _FORMATS[disk.format]) if known else None,
        bus=dialect.buses.get(disk.bus),
        device=_DEVICES.get(disk.device),
        read_only=disk.read_only,
        boot_order=disk.boot_order,
        cache=_CACHES.get(disk.cache),
        io_tune=_io_tune(disk.limits),
        discard=disk.discard == "unmap",
        serial=disk.serial,
    )


def _io_tune(limits: Limits | None) -> IoTune | None:
    if limits is None:
        return None
    return IoTune(**{LIMITS[field.name]: getattr(limits, field.name) for field in fields(Limits)})


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


def _interface_spec(interface: Interface, name: str, nets: tuple[UserNet, ...]) -> InterfaceSpec:
    forwards = next((net.forwards for net in nets if net.interface == interface.alias), ())
    return InterfaceSpec(
        name=name,
        kind=_KINDS[interface.kind],
        network=interface.source,
        mac=interface.mac,
        model=interface.model,
        port_forwards=tuple(
            PortForward(entry.host_port, entry.guest_port, PortProtocol(entry.protocol.upper()), entry.address)
            for entry in forwards
        ),
        link_state=_LINKS.get(interface.link),
        mtu=interface.mtu,
        boot_order=interface.boot_order,
    )


def _interface_status(interface: Interface, name: str) -> InterfaceStatus:
    return InterfaceStatus(
        name=name,
        mac=interface.mac,
        kind=interface.kind,
        network=interface.source,
        model=interface.model,
        target=interface.target,
        link_state=_LINKS.get(interface.link, LinkState.UP),
    )


def _graphics(domain: Domain) -> GraphicsSpec | None:
    vnc = next((graphics for graphics in domain.graphics if graphics.kind == "vnc"), None)
    video = domain.videos[0].model if domain.videos else ""
    if vnc is None and not video:
        return None
    return GraphicsSpec(vnc is not None, vnc.listen if vnc is not None else "", video)


def _watchdog(domain: Domain) -> WatchdogSpec | None:
    found = domain.watchdog
    if found is None or found.model not in _WATCHDOGS:
        return None
    return WatchdogSpec(_WATCHDOGS[found.model], _ACTIONS.get(found.action, WatchdogAction.RESET))


def _usb(domain: Domain) -> UsbSpec | None:
    kinds = {found.kind for found in domain.inputs if found.bus == "usb"}
    found = UsbSpec("tablet" in kinds, "keyboard" in kinds)
    return None if found == UsbSpec() else found


def _sound(domain: Domain) -> SoundSpec | None:
    if domain.sound is None or domain.sound.model not in _SOUNDS:
        return None
    return SoundSpec(_SOUNDS[domain.sound.model])


def _host_device(index: int, found: HostDevice) -> HostDeviceSpec:
    pci = usb = None
    if found.pci is not None:
        pci = PciHostDevice(f"{found.pci.domain}:{found.pci.bus}:{found.pci.slot}.{found.pci.function}")
    elif found.usb is not None:
        usb = UsbHostDevice(found.usb.vendor, found.usb.product, found.usb.bus, found.usb.device)
    return HostDeviceSpec(found.name or f"hostdev{index}", pci, usb)


# ------------------------------------------------------------------------------- processor and memory


def _cpu(domain: Domain) -> CpuSpec | None:
    cpu, tune = domain.cpu, domain.cpu_tune
    features = dict(cpu.features)
    topology = None
    if cpu.topology is not None:
        asked = cpu.topology
        topology = CpuTopology(asked.sockets, asked.cores, asked.threads, asked.dies if asked.dies > 1 else 0)
    found = CpuSpec(
        topology=topology,
        model=cpu.model if cpu.mode == "custom" else (cpu.mode if cpu.mode in CPU_MODES else ""),
        features=tuple(
            CpuFeature(name, CpuFeaturePolicy.DISABLE if policy == "disable" else CpuFeaturePolicy.REQUIRE)
            for name, policy in cpu.features
            if name not in VIRTUALIZATION and policy in ("require", "disable")
        ),
        pins=tuple(VcpuPin(vcpu, cpus) for vcpu, cpus in tune.pins),
        emulator_host_cpus=tune.emulator,
        nested=_nested(features),
    )
    return None if found == CpuSpec() else found


def _nested(features: Mapping[str, str]) -> bool | None:
    said = [features[name] for name in VIRTUALIZATION if name in features]
    if "require" in said:
        return True
    return False if "disable" in said else None


def _memory(domain: Domain) -> MemorySpec | None:
    backing = domain.memory_backing
    # Where there is a virtiofs, it is what needs shared memory.
    implied = any(found.driver == "virtiofs" for found in domain.filesystems)
    found = MemorySpec(
        hugepage_bytes=backing.hugepage_bytes,
        balloon=False if domain.balloon is not None and domain.balloon.model == "none" else None,
        locked=backing.locked,
        shared=backing.shared and not implied,
    )
    return None if found == MemorySpec() else found


def _numa(domain: Domain) -> NumaSpec | None:
    if not domain.cpu.cells:
        return None
    nodes = dict(domain.numa_tune.cells)
    return NumaSpec(
        tuple(
            NumaNode(cell.cpus, cell.memory_bytes, nodes.get(index, "")) for index, cell in enumerate(domain.cpu.cells)
        ),
        _POLICIES.get(domain.numa_tune.mode, NumaPolicy.STRICT),
    )
