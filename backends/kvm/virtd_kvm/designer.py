"""Policy: what a resolved guest becomes as a libvirt domain.

Pure: the same guest on the same platform gives the same XML, and nothing is asked of any host.
The areas are in :mod:`virtd_kvm.design`; here they are put together.
"""

from __future__ import annotations

from collections.abc import Mapping

from virtd.backend.api import FieldVerdict, NativePlan, ResolvedGuest
from virtd.backend.needs import rejected_fields
from virtd.backend.notes import Notes
from virtd.libvirt.design import host_device, memory_of, metadata_of, vcpus_of
from virtd.libvirt.words import AGENT_CHANNEL, CLOCKS
from virtd.libvirt.xml.character import Channel, Console, Serial
from virtd.libvirt.xml.controller import RandomSource
from virtd.libvirt.xml.domain import Domain
from virtd.model.devices import ClockBase
from virtd.model.guest import Accelerator, Firmware
from virtd_kvm.design import devices, disks, interfaces, machine, memory, ports, processor
from virtd_kvm.design.platform import OPTIONS, Platform

__all__ = ["OPTIONS", "Platform", "design", "design_domain"]


def design(guest: ResolvedGuest, platform: Platform) -> NativePlan:
    """The guest's domain XML, and a verdict for each field that is not carried out exactly."""
    domain, verdicts = design_domain(guest, platform)
    return NativePlan(domain.to_xml(), verdicts)


def design_domain(guest: ResolvedGuest, platform: Platform) -> tuple[Domain, tuple[FieldVerdict, ...]]:
    """As :func:`design`, with the domain as an object."""
    notes = Notes(list(rejected_fields(guest, platform.missing)))
    chosen = machine.choose_machine(guest, platform, notes)
    machine.check_firmware(guest, platform, chosen, notes)
    if guest.accelerator is Accelerator.NATIVE and not platform.test:
        reason = "on a host with QEMU a guest runs with KVM or by emulation: NATIVE is for hosts without this choice"
        notes.reject("spec.accelerator", reason, Accelerator.KVM.value, Accelerator.TCG.value)
    if platform.test and guest.firmware is Firmware.UEFI:
        notes.reject("spec.firmware", "libvirt's test driver has no firmware", Firmware.BIOS.value)
    options = _options(guest, notes)
    made_disks = disks.disks_of(guest, platform, chosen, options, notes)
    made_interfaces = interfaces.interfaces_of(guest, platform, notes)
    most_memory, current_memory = memory_of(guest, notes)
    most_vcpus, current_vcpus = vcpus_of(guest)
    domain = Domain(
        kind=machine.kind_of(guest, platform),
        name=guest.name,
        uuid=guest.uuid,
        memory_bytes=most_memory,
        current_memory_bytes=current_memory,
        vcpus=most_vcpus,
        current_vcpus=current_vcpus,
        boot=machine.boot_of(guest, platform, chosen),
        metadata=metadata_of(guest, (disk.target for disk in made_disks)),
        features=machine.features_of(guest, platform),
        cpu=processor.cpu_of(guest, platform, notes),
        cpu_tune=processor.cpu_tune_of(guest, platform, notes),
        numa_tune=processor.numa_tune_of(guest, platform, notes),
        memory_backing=memory.backing_of(guest, platform, notes),
        clock="" if platform.test else CLOCKS[guest.clock or ClockBase.UTC],
        on_poweroff="destroy",
        on_reboot="restart",
        on_crash="destroy",
        controllers=(
            *disks.controllers_of(made_disks, chosen, usb=devices.needs_usb(guest)),
            *ports.root_ports_of(guest, chosen),
        ),
        disks=made_disks,
        interfaces=made_interfaces,
        serials=(Serial(),) if guest.serial_console else (),
        consoles=(Console(),) if guest.serial_console else (),
        channels=(Channel(AGENT_CHANNEL),) if guest.guest_agent else (),
        graphics=devices.graphics_of(guest, platform, notes),
        videos=devices.videos_of(guest, platform, notes),
        balloon=memory.balloon_of(guest, options),
        random=RandomSource() if guest.rng else None,
        filesystems=devices.filesystems_of(guest, platform, notes),
        inputs=devices.inputs_of(guest),
        tpm=devices.tpm_of(guest, platform),
        sound=devices.sound_of(guest),
        watchdog=devices.watchdog_of(guest, platform, chosen, notes),
        host_devices=tuple(map(host_device, guest.host_devices)),
        user_nets=tuple(interfaces.user_nets_of(guest, notes)),
    )
    return domain, tuple(notes.verdicts)


def _options(guest: ResolvedGuest, notes: Notes) -> Mapping[str, str]:
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
