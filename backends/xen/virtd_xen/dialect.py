"""What Xen's domains are made of, as libvirt's libxl driver writes them down."""

from __future__ import annotations

from typing import Final

from virtd.libvirt.dialect import Dialect
from virtd.model.guest import Accelerator, DiskBus

PV: Final = "xenpv"
PVH: Final = "xenpvh"
HVM: Final = "xenfv"
"""Libvirt's machines: the three types of guests."""
MACHINES: Final = (PV, PVH, HVM)

XEN_BUS: Final = "xen"
"""The bus of paravirtual disks (xen-blkfront in the guest)."""

DIALECT: Final = Dialect(
    accelerators={"xen": Accelerator.NATIVE},
    # The spec's word for the hypervisor's own paravirtual bus is VIRTIO.
    buses={XEN_BUS: DiskBus.VIRTIO, "ide": DiskBus.IDE, "scsi": DiskBus.SCSI},
    os_types=frozenset({"linux", "xen", "xenpvh", "hvm"}),
    features=frozenset({"acpi", "apic", "pae"}),
    controllers={"xenbus": frozenset(), "ide": frozenset(), "scsi": frozenset()},
    inputs={
        "xen": frozenset({"mouse", "keyboard"}),
        "ps2": frozenset({"mouse", "keyboard"}),
        "usb": frozenset({"tablet", "keyboard"}),
    },
    balloons=frozenset({"xen"}),
    clock_adjustments=frozenset({"reset"}),
    boot_devices=True,
)
