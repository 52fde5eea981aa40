"""Guests of Xen that libvirt described, read back: live ones, and those that come from configurations of xl.

The files in libvirt-xen were written by libvirt 9.0 with Xen 4.17: ``*-live.xml`` of running guests,
``xl-*.xml`` by ``virsh domxml-from-native xen-xl`` and a define.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any
from uuid import UUID

import libvirt
import pytest
from virtd_xen.dialect import DIALECT

from virtd.backend.api import NativeGuest
from virtd.libvirt import facts
from virtd.libvirt.reader import read_guest
from virtd.libvirt.states import State
from virtd.libvirt.unmodelled import unmodelled_of
from virtd.libvirt.xml.domain import Domain
from virtd.model.guest import (
    Accelerator,
    DirectKernelBoot,
    DiskBus,
    DiskDevice,
    DiskFormat,
    GraphicsSpec,
    GuestState,
    HostFileSource,
    InterfaceKind,
)

FILES = Path(__file__).parent / "libvirt-xen"
MIB = 1 << 20
BASE = (FILES / "pv-live.xml").read_text()


def read(name: str, state: GuestState = GuestState.RUNNING) -> NativeGuest:
    domain = Domain.parse((FILES / f"{name}.xml").read_text())
    return read_guest(UUID(int=1), State(state, "", "running"), domain, DIALECT, persistent=True)


@pytest.mark.parametrize(("kind", "machine"), [("pv", "xenpv"), ("pvh", "xenpvh")])
def test_a_running_guest_of_each_type(kind: str, machine: str) -> None:
    found = read(f"{kind}-live")
    assert (found.accelerator, found.spec.accelerator, found.spec.machine) == (
        Accelerator.NATIVE, Accelerator.NATIVE, machine,
    )  # fmt: skip
    assert (found.vcpus, found.spec.vcpus, found.spec.max_vcpus) == (1, 1, 2)
    assert (found.memory_bytes, found.spec.max_memory_bytes) == (128 * MIB, 192 * MIB)
    assert found.spec.direct_kernel_boot == DirectKernelBoot(
        "/srv/guest/vmlinux", "/srv/guest/guest-initrd.img", "console=hvc0 quiet"
    )
    (disk,) = found.spec.disks
    assert (disk.name, disk.bus, disk.host_file) == (
        "xvda", DiskBus.VIRTIO, HostFileSource("/srv/guest/data.img", DiskFormat.RAW),
    )  # fmt: skip
    (interface,) = found.spec.interfaces
    assert (interface.kind, interface.network, interface.mac) == (InterfaceKind.BRIDGE, "xenbr0", "00:16:3e:5a:00:01")
    assert found.interfaces[0].target == "vif2.0"
    assert found.spec.serial_console
    assert found.spec.graphics is None
    assert found.spec.memory is None, "Xen's own balloon is no choice of anybody's"


def test_an_hvm_guest_has_its_drives() -> None:
    found = read("hvm-live")
    assert found.spec.machine == "xenfv"
    cd, data = found.spec.disks
    assert (cd.name, cd.device, cd.bus, cd.host_file, cd.read_only) == (
        "hdc", DiskDevice.CDROM, DiskBus.IDE, None, True,
    )  # fmt: skip
    assert (data.name, data.bus) == ("xvda", DiskBus.VIRTIO)


def test_configurations_of_xl_keep_what_a_spec_can_say() -> None:
    pv = read("xl-pv", GuestState.STOPPED)
    assert [(disk.host_file.format, disk.read_only) for disk in pv.spec.disks if disk.host_file] == [
        (DiskFormat.RAW, False), (DiskFormat.RAW, True), (DiskFormat.QCOW2, False),
    ]  # fmt: skip
    assert pv.spec.graphics == GraphicsSpec(vnc=True, listen="127.0.0.1", video_model="xen")
    assert (pv.vcpus, pv.memory_bytes) == (None, None), "it does not run"
    hvm = read("xl-hvm", GuestState.STOPPED)
    assert hvm.spec.interfaces[0].model == "e1000"
    assert hvm.spec.usb is not None
    assert hvm.spec.usb.tablet
    assert [device.pci.address for device in hvm.spec.host_devices if device.pci] == ["0000:01:00.0"]
    assert read("xl-pvgrub", GuestState.STOPPED).spec.direct_kernel_boot is None


UNMODELLED: dict[str, tuple[str, ...]] = {
    "pv-live": (),
    "pvh-live": (),
    "hvm-live": (),
    "xl-pv": (
        "vcpu@cpuset",
        "on_crash",
        "devices/interface[00:16:3e:5a:00:0a]/bandwidth",
        "devices/interface[00:16:3e:5a:00:0a]/script",
    ),
    "xl-pvgrub": ("bootloader", "on_crash"),
    "xl-pvh": ("on_crash",),
    "xl-hvm": (
        "features/hap",
        "features/viridian",
        "clock/timer",
        "clock@offset",
        "on_crash",
        "devices/sound[es1370]",
    ),
}


@pytest.mark.parametrize("name", UNMODELLED)
def test_what_the_spec_cannot_say_is_named(name: str) -> None:
    assert unmodelled_of((FILES / f"{name}.xml").read_text(), DIALECT) == UNMODELLED[name]


CASES: list[tuple[str, str, str]] = [
    ("<features><acpi/><hap/></features>", "<clock", "features/hap"),
    ("<cpu><model>x</model><cache/></cpu>", "<clock", "cpu/cache"),
    ("<disk type='block' device='disk'><target dev='xvdb' bus='xen'/></disk>", "<controller", "devices/disk[xvdb]"),
    (
        "<disk type='file' device='disk'><driver name='qemu' type='vhd'/><target dev='xvdb' bus='xen'/></disk>",
        "<controller",
        "devices/disk[xvdb]",
    ),
    (
        "<disk type='file' device='disk'><target dev='xvdb' bus='xen'/><backenddomain name='storage'/></disk>",
        "<controller",
        "devices/disk[xvdb]/backenddomain",
    ),
    ("<vsock/>", "<controller", "devices/vsock[1]"),
]


@pytest.mark.parametrize(("part", "before", "path"), CASES, ids=[row[2] for row in CASES])
def test_each_part_that_is_not_modelled_is_found(part: str, before: str, path: str) -> None:
    changed = BASE.replace(before, part + before, 1)
    assert unmodelled_of(changed, DIALECT) == (path,)


def test_a_bus_of_another_hypervisor_is_not_known() -> None:
    changed: Any = BASE.replace("bus='xen'/>\n    </disk>", "bus='virtio'/>\n    </disk>")
    assert changed != BASE
    assert unmodelled_of(changed, DIALECT) == ("devices/disk[xvda]",)


class Host:
    """What libvirt's libxl driver said of a host with Xen 4.17."""

    def getCapabilities(self) -> str:  # noqa: N802 - libvirt's name
        return (FILES / "capabilities.xml").read_text()

    def getInfo(self) -> list[Any]:  # noqa: N802 - libvirt's name
        return ["x86_64", 4095, 2, 2596, 1, 1, 2, 1]

    def getType(self) -> str:  # noqa: N802 - libvirt's name
        return "Xen"

    def getVersion(self) -> int:  # noqa: N802 - libvirt's name
        return 4017000

    def getLibVersion(self) -> int:  # noqa: N802 - libvirt's name
        return 9000000

    def getHostname(self) -> str:  # noqa: N802 - libvirt's name
        return "xen"

    def getMemoryStats(self, _cell: int, _flags: int) -> dict[str, int]:  # noqa: N802 - libvirt's name
        error = libvirt.libvirtError("not supported")
        error.err = (libvirt.VIR_ERR_NO_SUPPORT, 0, "not supported", 0, "", None, None, 0, 0)
        raise error


def test_a_host_has_all_three_types_of_guests() -> None:
    found = facts.read(Host(), {"Xen": "Xen"})
    assert found.machines == ("xenfv", "xenpv", "xenpvh")
    assert found.domain_kinds == {"xen"}
    assert (found.hypervisor, found.hypervisor_version, found.api_version) == ("Xen", "4.17.0", "9.0.0")
    assert found.memory_bytes == 4095 * MIB, "libxl has no memory statistics: the node's information is what is left"
