"""Policy: what a resolved guest becomes as a domain of libvirt's libxl driver.

Pure: the same guest on the same platform gives the same XML, and nothing is asked of any host.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Sequence
from typing import Final

from virtd.backend.api import FieldVerdict, NativePlan, ResolvedDisk, ResolvedGuest, ResolvedInterface
from virtd.backend.needs import needs_of, rejected_fields
from virtd.backend.notes import Notes
from virtd.libvirt.design import boot_orders, host_device, memory_of, metadata_of, next_target, vcpus_of
from virtd.libvirt.words import CLOCKS, FORMATS, INTERFACE_KINDS
from virtd.libvirt.xml.boot import Boot
from virtd.libvirt.xml.character import Console, Serial
from virtd.libvirt.xml.disk import Disk
from virtd.libvirt.xml.display import Graphics, Video
from virtd.libvirt.xml.domain import Domain
from virtd.libvirt.xml.inputs import Input
from virtd.libvirt.xml.interface import Interface
from virtd.libvirt.xml.tuning import CpuTune
from virtd.model.devices import ClockBase, CpuSpec, LinkState
from virtd.model.guest import Accelerator, DiskBus, DiskDevice, Firmware, InterfaceKind
from virtd.model.ranges import parse_ranges
from virtd_xen import capabilities
from virtd_xen.dialect import HVM, MACHINES, PV, PVH, XEN_BUS
from virtd_xen.platform import Platform
from virtd_xen.update_policy import needs_qemu

DEFAULT_LISTEN: Final = "127.0.0.1"
NETFRONT: Final = "netfront"
MODELS: Final = {PV: (NETFRONT,), PVH: (NETFRONT,), HVM: (NETFRONT, "rtl8139", "e1000")}
VIDEOS: Final = {PV: ("xen",), HVM: ("vga", "cirrus")}
AGENT_IGNORED: Final = capabilities.NO_AGENT
RNG_IGNORED: Final = (
    "libvirt's libxl driver has no random number generators: the guest has its CPU's, as far as that has one"
)
_OS_TYPES: Final = {PV: "linux", PVH: "xenpvh", HVM: "hvm"}
_FEATURES: Final = {PV: (), PVH: ("acpi",), HVM: ("acpi", "apic", "pae")}
_PREFIXES: Final = {XEN_BUS: "xvd", "scsi": "sd"}
_DISKS_AT: Final = "abcd"
_DRIVES_AT: Final = "cdba"  # where people look for a CD-ROM drive
_BOOT_WORDS: Final = {DiskDevice.DISK: "hd", DiskDevice.CDROM: "cdrom"}


def design(guest: ResolvedGuest, platform: Platform) -> NativePlan:
    """The guest's domain XML, and a verdict for each field that is not carried out exactly."""
    domain, verdicts = design_domain(guest, platform)
    return NativePlan(domain.to_xml(), verdicts)


def design_domain(guest: ResolvedGuest, platform: Platform) -> tuple[Domain, tuple[FieldVerdict, ...]]:
    """As :func:`design`, with the domain as an object."""
    notes = Notes(list(rejected_fields(guest, platform.missing)))
    machine = choose_machine(guest, platform, notes)
    _check_type(guest, machine, notes)
    _check_choices(guest, notes)
    disks = disks_of(guest, machine, notes)
    most_memory, current_memory = memory_of(guest, notes)
    most_vcpus, current_vcpus = vcpus_of(guest)
    hvm = machine == HVM
    console = Console() if hvm else Console(target="xen")
    domain = Domain(
        kind="xen",
        name=guest.name,
        uuid=guest.uuid,
        memory_bytes=most_memory,
        current_memory_bytes=current_memory,
        vcpus=most_vcpus,
        current_vcpus=current_vcpus,
        boot=boot_of(guest, machine, platform, notes),
        metadata=metadata_of(guest, (disk.target for disk in disks)),
        features=_FEATURES[machine],
        cpu_tune=cpu_tune_of(guest, platform, notes),
        clock=CLOCKS[guest.clock or ClockBase.UTC],
        on_poweroff="destroy",
        on_reboot="restart",
        on_crash="destroy",
        disks=disks,
        interfaces=interfaces_of(guest, machine, notes),
        serials=(Serial(),) if guest.serial_console and hvm else (),
        consoles=(console,) if guest.serial_console else (),
        graphics=graphics_of(guest, machine, notes),
        videos=videos_of(guest, machine, notes),
        inputs=inputs_of(guest, machine),
        host_devices=tuple(map(host_device, guest.host_devices)),
    )
    return domain, tuple(notes.verdicts)


def machine_of(machine: str, *, kernel: bool) -> str:
    """The type of a guest whose spec says this of it: without a word the one that suits what is booted."""
    return machine or (PVH if kernel else HVM)


def choose_machine(guest: ResolvedGuest, platform: Platform, notes: Notes) -> str:
    """The type of guest as asked, or the one that suits what is booted."""
    chosen = machine_of(guest.machine, kernel=guest.direct_kernel_boot is not None)
    if chosen not in MACHINES:
        notes.reject("spec.machine", f"{chosen!r} is not a type of Xen guest", *MACHINES)
        return HVM
    if chosen not in platform.machines:
        notes.reject("spec.machine", f"the host has no guests of the type {chosen}", *platform.machines)
    return chosen


def _check_type(guest: ResolvedGuest, machine: str, notes: Notes) -> None:
    """What guests of this type cannot have, though their host can."""
    limits = capabilities.LIMITS[machine]
    for need in needs_of(guest):
        if need.capability in limits:
            notes.reject(need.field, limits[need.capability], *need.alternatives)
    if machine != HVM and guest.direct_kernel_boot is None:
        notes.reject("spec.direct_kernel_boot", f"is missing: {capabilities.KERNEL_ONLY}")


def _check_choices(guest: ResolvedGuest, notes: Notes) -> None:
    """Fields that are no choice on Xen."""
    if guest.accelerator is not Accelerator.NATIVE:
        reason = "Xen itself runs its guests: there is no choice between KVM and emulation"
        notes.reject("spec.accelerator", reason, Accelerator.NATIVE.value)
    if guest.secure_boot and guest.firmware is not Firmware.UEFI:
        notes.reject("spec.secure_boot", "is a matter of UEFI", "false")
    if guest.memory is not None and guest.memory.balloon is False:
        notes.reject("spec.memory.balloon", "every Xen guest has a balloon", "true")
    if guest.guest_agent:
        notes.ignore("spec.guest_agent", AGENT_IGNORED)
    if guest.rng:
        notes.ignore("spec.rng", RNG_IGNORED)
    for name in guest.backend_options:
        notes.reject(f"spec.backend_options.{name}", "is not an option of this backend, which has none")


def boot_of(guest: ResolvedGuest, machine: str, platform: Platform, notes: Notes) -> Boot:
    """``<os>``.  Xen's firmware knows an order of kinds of devices only: of each the first is tried."""
    kernel = guest.direct_kernel_boot
    return Boot(
        os_type=_OS_TYPES[machine],
        arch=platform.arch,
        machine=machine,
        kernel="" if kernel is None else kernel.kernel_path,
        initrd="" if kernel is None else kernel.initrd_path,
        command_line="" if kernel is None else kernel.command_line,
        devices=_boot_devices(guest, machine, notes),
    )


def _boot_devices(guest: ResolvedGuest, machine: str, notes: Notes) -> tuple[str, ...]:
    orders = boot_orders(guest, notes)
    said = [
        *((f"spec.disks[{index}].boot_order", disk.boot_order) for index, disk in enumerate(guest.disks)),
        *((f"spec.interfaces[{index}].boot_order", found.boot_order) for index, found in enumerate(guest.interfaces)),
    ]
    asked = [path for path, order in said if order is not None]
    if machine != HVM or guest.direct_kernel_boot is not None:
        return ()  # it boots the kernel, whatever the order
    if asked and _passes_over(guest):
        for path in asked:
            notes.reject(path, "Xen's firmware tries the first disk and the first CD-ROM drive: list it first")
    words = [(order, _BOOT_WORDS[disk.device]) for disk, order in zip(guest.disks, orders, strict=True) if order]
    words += [(interface.boot_order, "network") for interface in guest.interfaces if interface.boot_order]
    return tuple(dict.fromkeys(word for _, word in sorted(words))) or ("hd",)


def _passes_over(guest: ResolvedGuest) -> bool:
    """Whether a disk is to be booted although another of its kind is listed before it."""
    kinds = [[disk.boot_order for disk in guest.disks if disk.device is device] for device in DiskDevice]
    return any(orders[:1] == [None] and any(orders) for orders in kinds)


def cpu_tune_of(guest: ResolvedGuest, platform: Platform, notes: Notes) -> CpuTune:
    """``<cputune>``."""
    spec = guest.cpu or CpuSpec()
    if spec.emulator_host_cpus:
        notes.reject(
            "spec.cpu.emulator_host_cpus", "a Xen guest has no emulator's threads: they are the control domain's"
        )
    for index, pin in enumerate(spec.pins):
        absent = sorted(set(parse_ranges(pin.host_cpus)) - platform.cpus) if platform.cpus else []
        if absent:
            listed = ",".join(map(str, sorted(platform.cpus)))
            reason = f"the host has no CPU {absent[0]}; it has {listed}"
            notes.reject(f"spec.cpu.pins[{index}].host_cpus", reason, listed)
    return CpuTune(tuple((pin.vcpu, pin.host_cpus) for pin in spec.pins))


# ---------------------------------------------------------------------------------------------- disks


def disks_of(guest: ResolvedGuest, machine: str, notes: Notes) -> tuple[Disk, ...]:
    """``<disk>`` for each, in the order of the spec."""
    buses = [_bus_of(disk, f"spec.disks[{index}]", machine, notes) for index, disk in enumerate(guest.disks)]
    targets = _targets(guest, buses, notes)
    return tuple(disk_device(disk, target, bus) for disk, target, bus in zip(guest.disks, targets, buses, strict=True))


def _targets(guest: ResolvedGuest, buses: Sequence[str], notes: Notes) -> list[str]:
    """A name for each.

    Xen emulates the first four of its own disks for an HVM guest's firmware, too, in places of the IDE bus: ``xvda``
    and ``hda`` cannot be there both.
    """
    found = dict.fromkeys(range(len(buses)), "")
    taken: set[str] = set()
    for index, (disk, bus) in enumerate(zip(guest.disks, buses, strict=True)):
        if bus != "ide":
            continue
        order = _DRIVES_AT if disk.device is DiskDevice.CDROM else _DISKS_AT
        free = [letter for letter in order if letter not in taken]
        if not free:
            notes.reject(f"spec.disks[{index}].bus", "the IDE bus takes four disks", "VIRTIO", "SCSI")
        taken.add(letter := (free or order)[0])
        found[index] = f"hd{letter}"
    own, emulated = [f"xvd{letter}" for letter in taken], list[str]()
    for index, bus in enumerate(buses):
        if bus != "ide":
            names = own if bus == XEN_BUS else emulated
            names.append(next_target(_PREFIXES[bus], names))
            found[index] = names[-1]
    return list(found.values())


def disk_device(disk: ResolvedDisk, target: str, bus: str) -> Disk:
    """One ``<disk>``: by the control domain's kernel where that can serve it, else by its QEMU."""
    by_kernel = bus == XEN_BUS and not needs_qemu(disk)
    return Disk(
        target=target,
        bus=bus,
        path=disk.path,
        format=FORMATS[disk.format],
        device="cdrom" if disk.device is DiskDevice.CDROM else "disk",
        read_only=disk.read_only or disk.device is DiskDevice.CDROM,
        driver="phy" if by_kernel else "qemu",
    )


def _bus_of(disk: ResolvedDisk, path: str, machine: str, notes: Notes) -> str:
    """The bus as asked; where there is none such, the next best, with what that means."""
    if disk.device is DiskDevice.CDROM:
        return _bus_of_drive(disk, path, machine, notes)
    if disk.bus is DiskBus.VIRTIO:
        return XEN_BUS
    if machine != HVM:
        reason = f"a guest of the type {machine} has no emulated disks: VIRTIO is Xen's own paravirtual bus here"
        notes.reject(f"{path}.bus", reason, DiskBus.VIRTIO.value)
        return XEN_BUS
    if disk.bus is DiskBus.SATA:
        notes.reject(f"{path}.bus", "Xen emulates no SATA bus beside others", "VIRTIO", "SCSI", "IDE")
        return XEN_BUS
    if disk.bus is DiskBus.IDE and disk.read_only:
        notes.reject(f"{path}.read_only", "a disk on the IDE bus cannot be read-only", "VIRTIO", "SCSI")
    return disk.bus.value.lower()


def _bus_of_drive(disk: ResolvedDisk, path: str, machine: str, notes: Notes) -> str:
    if machine != HVM:
        if not disk.path:
            reason = f"a guest of the type {machine} has no drives that a medium could be put into: name one"
            notes.reject(f"{path}.source", reason)
        notes.degrade(f"{path}.device", f"a guest of the type {machine} sees a CD-ROM as a read-only disk")
        return XEN_BUS
    if disk.bus is not DiskBus.IDE:
        notes.degrade(f"{path}.bus", f"Xen's CD-ROM drives are on the IDE bus, not on {disk.bus.value}")
    return "ide"


# ----------------------------------------------------------------------------------------- interfaces


def interfaces_of(guest: ResolvedGuest, machine: str, notes: Notes) -> tuple[Interface, ...]:
    """``<interface>`` for each, in the order of the spec."""
    for index, interface in enumerate(guest.interfaces):
        _check_interface(interface, f"spec.interfaces[{index}]", machine, notes)
    return tuple(
        Interface(
            kind=INTERFACE_KINDS[interface.kind],
            mac=interface.mac,
            source="" if interface.kind is InterfaceKind.USER else interface.network,
            model=interface.model,  # nothing said: libxl gives each type what suits it
        )
        for interface in guest.interfaces
    )


def _check_interface(interface: ResolvedInterface, path: str, machine: str, notes: Notes) -> None:
    models = MODELS[machine]
    if interface.model and interface.model not in models:
        notes.reject(f"{path}.model", f"a guest of the type {machine} has no interface {interface.model!r}", *models)
    if interface.kind is InterfaceKind.USER:
        notes.reject(f"{path}.kind", capabilities.NO_PORT_FORWARD, "NETWORK", "BRIDGE")
    elif not interface.network:
        notes.reject(f"{path}.network", f"is required for kind {interface.kind.value}")
    elif interface.port_forwards:
        notes.reject(f"{path}.port_forwards", capabilities.NO_PORT_FORWARD)
    if interface.link_state is LinkState.DOWN:
        notes.reject(f"{path}.link_state", "libvirt's libxl driver starts every interface with its cable in", "UP")
    if interface.mtu is not None:
        notes.reject(f"{path}.mtu", "libvirt's libxl driver passes no MTU on: an interface has that of its bridge")


# -------------------------------------------------------------------------------------------- display


def graphics_of(guest: ResolvedGuest, machine: str, notes: Notes) -> tuple[Graphics, ...]:
    """``<graphics>``."""
    if guest.graphics is None or not guest.graphics.vnc:
        return ()
    if machine == PVH:
        notes.reject("spec.graphics", capabilities.NO_DISPLAY)
        return ()
    listen = guest.graphics.listen or DEFAULT_LISTEN
    try:
        ipaddress.ip_address(listen)
    except ValueError:
        notes.reject("spec.graphics.listen", f"{listen!r} is not an IP address", DEFAULT_LISTEN, "::1")
    return (Graphics(listen=listen),)


def videos_of(guest: ResolvedGuest, machine: str, notes: Notes) -> tuple[Video, ...]:
    """``<video>``: as asked, or what every system can show where there is a display."""
    if guest.graphics is None or machine == PVH:
        return ()
    asked, known = guest.graphics.video_model, VIDEOS[machine]
    if asked and asked not in known:
        reason = f"a guest of the type {machine} has no video card {asked!r}"
        notes.reject("spec.graphics.video_model", reason, *known)
    if not guest.graphics.vnc:
        return (Video(asked),) if asked else ()
    return (Video(asked or known[0]),)


def inputs_of(guest: ResolvedGuest, machine: str) -> tuple[Input, ...]:
    """``<input>``, the USB ones."""
    if guest.usb is None or machine != HVM:
        return ()
    wanted = (("tablet", guest.usb.tablet), ("keyboard", guest.usb.keyboard))
    return tuple(Input(kind) for kind, asked in wanted if asked)
