"""What QEMU's domains are made of."""

from __future__ import annotations

from typing import Final

from virtd.libvirt.dialect import Dialect
from virtd.model.guest import Accelerator, DiskBus

DIALECT: Final = Dialect(
    accelerators={"kvm": Accelerator.KVM, "qemu": Accelerator.TCG},
    buses={bus.value.lower(): bus for bus in (DiskBus.VIRTIO, DiskBus.SCSI, DiskBus.SATA, DiskBus.IDE)},
    os_types=frozenset({"hvm"}),
    features=frozenset({"acpi", "apic", "smm"}),
    controllers={
        **dict.fromkeys(("pci", "usb", "sata", "ide", "virtio-serial"), frozenset()),
        "scsi": frozenset({"virtio-scsi"}),
    },
    inputs={"ps2": frozenset({"mouse", "keyboard"}), "usb": frozenset({"tablet", "keyboard"})},
    balloons=frozenset({"virtio", "none"}),
)
