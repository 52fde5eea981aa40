"""Machine, firmware, and what is booted."""

from __future__ import annotations

from virtd.backend.api import ResolvedGuest
from virtd.backend.notes import Notes
from virtd.libvirt.xml.boot import Boot
from virtd.model.guest import Accelerator, Firmware
from virtd_kvm.design.platform import Platform


def kind_of(guest: ResolvedGuest, platform: Platform) -> str:
    """The type of libvirt's domain."""
    if platform.test:
        return "test"
    return "kvm" if guest.accelerator is Accelerator.KVM else "qemu"


def is_q35(machine: str) -> bool:
    """``q35``, ``pc-q35-7.2``."""
    return "q35" in machine


def has_pcie(machine: str) -> bool:
    """Whether the machine's root bus is PCI Express."""
    return is_q35(machine) or machine.startswith("virt")


def choose_machine(guest: ResolvedGuest, platform: Platform, notes: Notes) -> str:
    """The machine type as asked, or the best that the architecture has."""
    if platform.test:
        if guest.machine:
            notes.ignore("spec.machine", "libvirt's test driver has no machine types")
        return ""
    if not guest.machine:
        return "q35" if platform.pc else "virt"
    if not all(part.isalnum() for part in guest.machine.replace(".", "-").replace("_", "-").split("-")):
        notes.reject("spec.machine", "is not the name of a machine type", "q35", "pc")
    return guest.machine


def check_firmware(guest: ResolvedGuest, platform: Platform, machine: str, notes: Notes) -> None:
    """Secure boot keeps its keys from the guest by System Management Mode, which only q35 has."""
    if not guest.secure_boot or platform.test:
        return
    if guest.firmware is not Firmware.UEFI:
        notes.reject("spec.secure_boot", "is a matter of UEFI: set firmware UEFI", "false")
    elif not is_q35(machine):
        notes.reject("spec.secure_boot", f"needs the machine q35, not {machine}", "false")


def features_of(guest: ResolvedGuest, platform: Platform) -> tuple[str, ...]:
    """ACPI is what makes a graceful shutdown reach the guest; other architectures have it with UEFI only."""
    if platform.pc:
        return ("acpi", "apic", "smm") if guest.secure_boot else ("acpi", "apic")
    return ("acpi",) if guest.firmware is Firmware.UEFI else ()


def boot_of(guest: ResolvedGuest, platform: Platform, machine: str) -> Boot:
    """``<os>``."""
    kernel = guest.direct_kernel_boot
    return Boot(
        arch=platform.arch,
        machine=machine,
        efi=guest.firmware is Firmware.UEFI,
        secure=guest.secure_boot,
        kernel="" if kernel is None else kernel.kernel_path,
        initrd="" if kernel is None else kernel.initrd_path,
        command_line="" if kernel is None else kernel.command_line,
    )
