"""``<os>``: machine, firmware and what is booted."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

from virtd.libvirt.xml.build import Element, attribute, child, element, text


@dataclass(frozen=True, slots=True)
class Boot:
    """How a guest starts.

    ``efi`` lets libvirt choose UEFI firmware; ``secure`` is its secure boot together with enrolled
    keys: off, so that unsigned loaders run, or on.  ``os_type`` is libvirt's (``hvm``).  ``devices`` are kinds of
    devices (``hd``, ``cdrom``, ``network``) in the order in which they are tried, for hypervisors whose firmware
    does not know an order of single devices.
    """

    os_type: str = "hvm"
    arch: str = ""
    machine: str = ""
    efi: bool = False
    secure: bool = False
    kernel: str = ""
    initrd: str = ""
    command_line: str = ""
    devices: tuple[str, ...] = ()

    def build(self) -> Element:
        """The element."""
        root = element("os", firmware="efi" if self.efi else None)
        child(root, "type", self.os_type, arch=self.arch or None, machine=self.machine or None)
        if self.efi:
            firmware = child(root, "firmware")
            wanted = "yes" if self.secure else "no"
            child(firmware, "feature", enabled=wanted, name="enrolled-keys")
            child(firmware, "feature", enabled=wanted, name="secure-boot")
        if self.kernel:
            child(root, "kernel", self.kernel)
        if self.initrd:
            child(root, "initrd", self.initrd)
        if self.kernel and self.command_line:
            child(root, "cmdline", self.command_line)
        for device in self.devices:
            child(root, "boot", dev=device)
        return root

    @classmethod
    def parse(cls, root: Element | None) -> Self:
        """From an element; firmware that is given as a flash image counts as ``efi`` too."""
        if root is None:
            return cls()
        features = {found.get("name"): found.get("enabled") == "yes" for found in root.findall("firmware/feature")}
        flash = attribute(root, "loader", "type") == "pflash"
        return cls(
            os_type=text(root, "type"),
            arch=attribute(root, "type", "arch"),
            machine=attribute(root, "type", "machine"),
            efi=root.get("firmware") == "efi" or flash,
            # Without the list of features (a guest that somebody else defined) the loader is what is left.
            secure=features.get("secure-boot", attribute(root, "loader", "secure") == "yes"),
            kernel=text(root, "kernel"),
            initrd=text(root, "initrd"),
            command_line=text(root, "cmdline"),
            devices=tuple(found.get("dev") or "" for found in root.findall("boot")),
        )
