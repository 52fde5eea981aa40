"""Policy: what a resolved guest becomes as a libvirt domain.

Pure: the same guest on the same platform gives the same XML, and nothing is asked of any host.
Facts behind the choices: Debian's cloud kernel has no ahci driver, so CD-ROMs sit on virtio-scsi;
TCG needs ``cpu mode='maximum'`` to offer what it can emulate; q35 wants its PCIe root named.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Final

from virtd.backend.api import Fidelity, FieldVerdict, NativePlan, OptionSchema, ResolvedDisk, ResolvedGuest
from virtd.libvirt.xml.boot import Boot
from virtd.libvirt.xml.character import Channel, Console, Serial
from virtd.libvirt.xml.controller import Balloon, Controller, RandomSource
from virtd.libvirt.xml.disk import Disk
from virtd.libvirt.xml.display import Graphics, Video
from virtd.libvirt.xml.domain import Domain
from virtd.libvirt.xml.interface import Interface
from virtd.libvirt.xml.metadata import Metadata
from virtd.model.guest import Accelerator, DiskBus, DiskDevice, DiskFormat, Firmware, InterfaceKind

AGENT_CHANNEL: Final = "org.qemu.guest_agent.0"
"""The name by which the QEMU guest agent finds its channel in the guest."""

DEFAULT_LISTEN: Final = "127.0.0.1"
_KIB: Final = 1024
_BALLOON_PERIOD_S: Final = 5
_PC: Final = ("x86_64", "i686")

OPTIONS: Final = (
    OptionSchema(
        "cpu_mode",
        "CPU model that the guest sees: host-passthrough needs KVM, maximum is all that the accelerator offers; "
        "not said, it is host-passthrough with KVM and maximum with TCG.",
        ("host-passthrough", "host-model", "maximum"),
    ),
    OptionSchema(
        "disk_cache",
        "How writes to disk images are cached on the host; the default is QEMU's own (writeback).",
        ("none", "writeback", "writethrough", "directsync", "unsafe"),
    ),
    OptionSchema("disk_discard", "Whether a guest's TRIM frees space in the image.", ("unmap", "ignore"), "unmap"),
    OptionSchema("video_model", "Display adapter.", ("vga", "virtio", "qxl", "bochs", "cirrus"), "vga"),
    OptionSchema("random_source", "A virtio random number generator fed by the host.", ("yes", "no"), "yes"),
)
"""The keys of ``backend_options`` that the designer understands."""

_PREFIXES: Final = {DiskBus.VIRTIO: "vd", DiskBus.SCSI: "sd", DiskBus.SATA: "sd", DiskBus.IDE: "hd"}
_MAX_IDE: Final = 4
_INTERFACE_KINDS: Final = {
    InterfaceKind.USER: "user",
    InterfaceKind.NETWORK: "network",
    InterfaceKind.BRIDGE: "bridge",
}
_INTERFACE_MODELS: Final = ("virtio", "e1000", "e1000e", "rtl8139")


@dataclass(frozen=True, slots=True)
class Platform:
    """What the designer has to know of the host's driver.

    :param driver: libvirt's driver, ``qemu`` or ``test``.
    :param arch: libvirt's name of the guests' architecture.
    """

    driver: str = "qemu"
    arch: str = "x86_64"


@dataclass(slots=True)
class _Notes:
    verdicts: list[FieldVerdict] = field(default_factory=list)

    def reject(self, path: str, reason: str, *alternatives: str) -> None:
        self.verdicts.append(FieldVerdict(path, Fidelity.REJECTED, reason, alternatives))

    def degrade(self, path: str, reason: str) -> None:
        self.verdicts.append(FieldVerdict(path, Fidelity.DEGRADED, reason))

    def ignore(self, path: str, reason: str) -> None:
        self.verdicts.append(FieldVerdict(path, Fidelity.IGNORED, reason))


def design(guest: ResolvedGuest, platform: Platform) -> NativePlan:
    """The guest's domain XML, and a verdict for each field that is not carried out exactly."""
    domain, verdicts = design_domain(guest, platform)
    return NativePlan(domain.to_xml(), verdicts)


def design_domain(guest: ResolvedGuest, platform: Platform) -> tuple[Domain, tuple[FieldVerdict, ...]]:
    """As :func:`design`, with the domain as an object."""
    notes = _Notes()
    machine = _machine(guest, platform, notes)
    disks = _disks(guest, platform, machine, notes)
    options = _options(guest, notes)
    interfaces = tuple(_interfaces(guest, notes))
    graphics = _graphics(guest, platform, notes)
    if platform.driver == "test" and guest.firmware is Firmware.UEFI:
        notes.reject("spec.firmware", "libvirt's test driver has no firmware", Firmware.BIOS.value)
    if guest.memory_bytes % _KIB:
        notes.degrade("spec.memory_bytes", "libvirt counts memory in KiB: rounded up to the next")
    domain = Domain(
        kind=_kind(guest, platform),
        name=guest.name,
        uuid=guest.uuid,
        memory_bytes=guest.memory_bytes,
        vcpus=guest.vcpus,
        boot=_boot(guest, platform, machine),
        metadata=Metadata(
            disks={disk.target: spec.name for disk, spec in zip(disks, guest.disks, strict=True)},
            interfaces={interface.mac: interface.name for interface in guest.interfaces},
            options=dict(sorted(guest.backend_options.items())),
        ),
        features=_features(guest, platform),
        cpu_mode=_cpu_mode(guest, platform, options, notes),
        on_poweroff="destroy",
        on_reboot="restart",
        on_crash="destroy",
        controllers=tuple(_controllers(disks, machine)),
        disks=_with_cache(disks, options),
        interfaces=interfaces,
        serials=(Serial(),) if guest.serial_console else (),
        consoles=(Console(),) if guest.serial_console else (),
        channels=(Channel(AGENT_CHANNEL),) if guest.guest_agent else (),
        graphics=graphics,
        videos=(Video(options.get("video_model") or ("vga" if platform.arch in _PC else "virtio")),)
        if graphics
        else (),
        balloon=Balloon(stats_period_s=_BALLOON_PERIOD_S),
        random=RandomSource() if options.get("random_source", "yes") == "yes" else None,
    )
    return domain, tuple(notes.verdicts)


def _kind(guest: ResolvedGuest, platform: Platform) -> str:
    if platform.driver == "test":
        return "test"
    return "kvm" if guest.accelerator is Accelerator.KVM else "qemu"


def _features(guest: ResolvedGuest, platform: Platform) -> tuple[str, ...]:
    """ACPI is what makes a graceful shutdown reach the guest; other architectures have it with UEFI only."""
    if platform.arch in _PC:
        return ("acpi", "apic")
    return ("acpi",) if guest.firmware is Firmware.UEFI else ()


def _machine(guest: ResolvedGuest, platform: Platform, notes: _Notes) -> str:
    if platform.driver == "test":
        if guest.machine:
            notes.ignore("spec.machine", "libvirt's test driver has no machine types")
        return ""
    if not guest.machine:
        return "q35" if platform.arch in _PC else "virt"
    if not all(part.isalnum() for part in guest.machine.replace(".", "-").replace("_", "-").split("-")):
        notes.reject("spec.machine", "is not the name of a machine type", "q35", "pc")
    return guest.machine


def _is_q35(machine: str) -> bool:
    return "q35" in machine


def _boot(guest: ResolvedGuest, platform: Platform, machine: str) -> Boot:
    kernel = guest.direct_kernel_boot
    return Boot(
        arch=platform.arch,
        machine=machine,
        efi=guest.firmware is Firmware.UEFI,
        kernel="" if kernel is None else kernel.kernel_path,
        initrd="" if kernel is None else kernel.initrd_path,
        command_line="" if kernel is None else kernel.command_line,
    )


def _cpu_mode(guest: ResolvedGuest, platform: Platform, options: Mapping[str, str], notes: _Notes) -> str:
    wanted = options.get("cpu_mode")
    if platform.driver == "test":
        return ""
    if guest.accelerator is Accelerator.KVM:
        return wanted or "host-passthrough"
    if wanted == "host-passthrough":
        notes.reject("spec.backend_options.cpu_mode", "host-passthrough needs KVM", "maximum", "host-model")
    return wanted or "maximum"


def _options(guest: ResolvedGuest, notes: _Notes) -> Mapping[str, str]:
    known = {option.name: option for option in OPTIONS}
    accepted = {}
    for name, value in guest.backend_options.items():
        option = known.get(name)
        if option is None:
            notes.reject(f"spec.backend_options.{name}", "is not an option of this backend", *known)
        elif value not in option.values:
            notes.reject(f"spec.backend_options.{name}", f"{value!r} is not one of its values", *option.values)
        else:
            accepted[name] = value
    return accepted


def _disks(guest: ResolvedGuest, platform: Platform, machine: str, notes: _Notes) -> tuple[Disk, ...]:
    counts: dict[str, int] = {}
    boot_orders = _boot_orders(guest, notes)
    made = []
    for index, disk in enumerate(guest.disks):
        path = f"spec.disks[{index}]"
        if platform.driver != "test":
            _check_disk(disk, path, machine, notes)
            if disk.bus is DiskBus.IDE and counts.get("hd", 0) >= _MAX_IDE:
                notes.reject(f"{path}.bus", "the IDE bus takes four disks", "VIRTIO", "SCSI")
        prefix = _PREFIXES[disk.bus]
        position = counts.get(prefix, 0)
        counts[prefix] = position + 1
        made.append(
            Disk(
                target=prefix + _letters(position),
                bus=disk.bus.value.lower(),
                path=disk.path,
                format="qcow2" if disk.format is DiskFormat.QCOW2 else "raw",
                device="cdrom" if disk.device is DiskDevice.CDROM else "disk",
                read_only=disk.read_only or disk.device is DiskDevice.CDROM,
                boot_order=boot_orders[index],
            )
        )
    return tuple(made)


def _check_disk(disk: ResolvedDisk, path: str, machine: str, notes: _Notes) -> None:
    plain = disk.device is DiskDevice.DISK
    if disk.bus is DiskBus.VIRTIO and not plain:
        notes.reject(f"{path}.bus", "QEMU has no virtio CD-ROM", "SCSI", "SATA")
    if disk.bus is DiskBus.IDE and (_is_q35(machine) or machine == "virt"):
        notes.reject(f"{path}.bus", f"the machine {machine} has no IDE bus", "VIRTIO", "SCSI", "SATA")
    if disk.bus in (DiskBus.IDE, DiskBus.SATA) and disk.read_only and plain:
        notes.reject(f"{path}.read_only", f"a disk on the {disk.bus.value} bus cannot be read-only", "VIRTIO", "SCSI")


def _boot_orders(guest: ResolvedGuest, notes: _Notes) -> list[int | None]:
    """As given; where nothing is given and no kernel is booted directly, in order of the disks."""
    given = [disk.boot_order for disk in guest.disks]
    if any(order is not None for order in given):
        seen: set[int] = set()
        for index, order in enumerate(given):
            if order is None:
                continue
            if order < 1 or order in seen:
                notes.reject(f"spec.disks[{index}].boot_order", "must be 1 or more and different for each disk")
            seen.add(order)
        return given
    if guest.direct_kernel_boot is not None:
        return given
    return list(range(1, len(given) + 1))


def _with_cache(disks: tuple[Disk, ...], options: Mapping[str, str]) -> tuple[Disk, ...]:
    discard = options.get("disk_discard", "unmap")
    return tuple(
        Disk(
            target=disk.target,
            bus=disk.bus,
            path=disk.path,
            format=disk.format,
            device=disk.device,
            read_only=disk.read_only,
            boot_order=disk.boot_order,
            cache=options.get("disk_cache", ""),
            discard="" if disk.read_only else discard,
        )
        for disk in disks
    )


def _controllers(disks: tuple[Disk, ...], machine: str) -> Iterator[Controller]:
    if _is_q35(machine) or machine == "virt":
        yield Controller("pci", 0, "pcie-root")
    if any(disk.bus == "scsi" for disk in disks):
        yield Controller("scsi", 0, "virtio-scsi")


def _interfaces(guest: ResolvedGuest, notes: _Notes) -> Iterator[Interface]:
    for index, interface in enumerate(guest.interfaces):
        path = f"spec.interfaces[{index}]"
        if interface.model and interface.model not in _INTERFACE_MODELS:
            notes.reject(f"{path}.model", f"{interface.model!r} is not a model of this backend", *_INTERFACE_MODELS)
        if interface.kind is not InterfaceKind.USER and not interface.network:
            notes.reject(f"{path}.network", f"is required for kind {interface.kind.value}")
        yield Interface(
            kind=_INTERFACE_KINDS[interface.kind],
            mac=interface.mac,
            source="" if interface.kind is InterfaceKind.USER else interface.network,
            model=interface.model or "virtio",
        )


def _graphics(guest: ResolvedGuest, platform: Platform, notes: _Notes) -> tuple[Graphics, ...]:
    if guest.graphics is None or not guest.graphics.vnc:
        return ()
    if platform.driver == "test":
        notes.reject("spec.graphics", "libvirt's test driver has no displays that can be connected to")
        return ()
    listen = guest.graphics.listen or DEFAULT_LISTEN
    try:
        ipaddress.ip_address(listen)
    except ValueError:
        notes.reject("spec.graphics.listen", f"{listen!r} is not an IP address", DEFAULT_LISTEN, "::1")
    return (Graphics(listen=listen),)


def _letters(position: int) -> str:
    """0 -> a, 25 -> z, 26 -> aa: how Linux and libvirt count disks."""
    text = ""
    position += 1
    while position:
        position, rest = divmod(position - 1, 26)
        text = chr(ord("a") + rest) + text
    return text
