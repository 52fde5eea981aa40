"""Checks of a guest's devices: each field that needs a capability is taken, or refused with its reason.

No golden files: what a host lacks (an IOMMU, huge pages) differs from host to host.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, Final
from uuid import UUID

import pytest

from virtd.backend import capabilities as caps
from virtd.backend.api import Fidelity, ResolvedDisk, ResolvedGuest, ResolvedInterface
from virtd.backend.conformance.kit import Kit, check
from virtd.backend.conformance.provision import MIB
from virtd.backend.needs import needs_of
from virtd.errors import FIELD_UNSUPPORTED
from virtd.model.devices import (
    CpuSpec,
    CpuTopology,
    FilesystemKind,
    FilesystemSpec,
    HostDeviceSpec,
    IoTune,
    MemorySpec,
    NumaNode,
    NumaSpec,
    PciHostDevice,
    PortForward,
    SoundSpec,
    TpmSpec,
    UsbHostDevice,
    UsbSpec,
    VcpuPin,
    WatchdogSpec,
)
from virtd.model.guest import Accelerator, DiskBus, DiskFormat, Firmware, InterfaceKind

_BASE: Final = ResolvedGuest(UUID("00000000-0000-4000-8000-0000000de71c"), "devices", 2, 64 * MIB, Accelerator.TCG)

FIELDS: Final[Mapping[str, Mapping[str, Any]]] = {
    caps.CPU_MODEL: {"cpu": CpuSpec(topology=CpuTopology(2, 1, 1), model="maximum")},
    caps.CPU_HOTPLUG_RANGE: {"max_vcpus": 4},
    caps.CPU_PINNING: {"cpu": CpuSpec(pins=(VcpuPin(0, "0"),))},
    caps.NUMA: {"numa": NumaSpec((NumaNode("0-1", 64 * MIB),))},
    caps.BALLOON: {"max_memory_bytes": 128 * MIB},
    caps.HUGEPAGES: {"memory": MemorySpec(hugepage_bytes=2 * MIB)},
    caps.MEMORY_BACKING: {"memory": MemorySpec(shared=True)},
    caps.SECURE_BOOT: {"firmware": Firmware.UEFI, "secure_boot": True},
    caps.TPM: {"tpm": TpmSpec()},
    caps.WATCHDOG: {"watchdog": WatchdogSpec()},
    caps.SOUND: {"sound": SoundSpec()},
    caps.USB: {"usb": UsbSpec(tablet=True)},
    caps.VIRTIOFS: {"filesystems": (FilesystemSpec("share", "/srv"),)},
    caps.P9: {"filesystems": (FilesystemSpec("share", "/srv", FilesystemKind.P9),)},
    caps.PASSTHROUGH_PCI: {"host_devices": (HostDeviceSpec("card", pci=PciHostDevice("0000:01:00.0")),)},
    caps.PASSTHROUGH_USB: {"host_devices": (HostDeviceSpec("stick", usb=UsbHostDevice(vendor_id=0x1D6B)),)},
    caps.DISK_TUNING: {
        "disks": (
            ResolvedDisk(
                "root", "/images/root.qcow2", DiskFormat.QCOW2, DiskBus.VIRTIO, io_tune=IoTune(1 << 20), serial="ROOT"
            ),
        )
    },
    caps.PORT_FORWARD: {
        "interfaces": (
            ResolvedInterface("net", InterfaceKind.USER, "52:54:00:00:00:01", port_forwards=(PortForward(8080, 80),)),
        )
    },
}
"""Capability -> a guest's field that needs it."""


class TestDeviceFields:
    """Fields of the guest behind which a capability stands."""

    @pytest.mark.parametrize("capability", tuple(FIELDS))
    @check()
    async def test_device_field(self, kit: Kit, capability: str) -> None:
        """Taken where the capability is declared; REJECTED with its reason, and refused, elsewhere."""
        base = dataclasses.replace(_BASE, accelerator=kit.provision.accelerator, machine=kit.provision.machine)
        guest = dataclasses.replace(base, **FIELDS[capability])
        plan = kit.session.lower(guest)
        assert plan == kit.session.lower(guest), "lower() is not deterministic"
        fields = {need.field for need in needs_of(guest) if need.capability == capability}
        assert fields, f"no field of the example needs {capability}"
        rejected = {item.field: item.reason for item in plan.verdicts if item.fidelity is Fidelity.REJECTED}
        if kit.declared(capability):
            if capability != caps.HUGEPAGES:  # how many pages the host has reserved is another matter
                assert not fields & set(rejected), f"{capability} is declared, but lower() rejects it: {rejected}"
            return
        for field in fields:
            assert field in rejected, f"{capability} is not declared, but lower() takes {field}"
            assert rejected[field] == kit.capability(capability).reason, f"{field} is refused with another reason"
        await kit.assert_refused(capability)
        before = await kit.digest()
        error = await kit.error(kit.session.define_guest(guest, kit.context()), FIELD_UNSUPPORTED)
        assert fields <= {violation.field for violation in error.record.violations}
        await kit.unchanged(before, f"refusing {sorted(fields)}")
