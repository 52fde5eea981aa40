"""The kit over the KVM backend on a private libvirtd with real QEMU guests."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from uuid import UUID

import pytest
from virtd_kvm.backend import KvmBackend

from tests.conformance.libvirt_host import GOLDEN, LibvirtFaults, LibvirtOutside
from tests.guests import CMDLINE, DemoGuest
from tests.qemu.fixtures import MIB, READY, DaemonConnection, demo, libvirt_host, mac_of, private_libvirt
from virtd.backend.api import ResolvedDisk, ResolvedGuest, ResolvedInterface
from virtd.backend.conformance.suite import *  # noqa: F403 - the kit is one import
from virtd.backend.conformance.suite import Bootable, Provision, plain_guest
from virtd.libvirt.private import PrivateLibvirt
from virtd.model.console import AgentCommand
from virtd.model.guest import (
    Accelerator,
    DirectKernelBoot,
    DiskBus,
    DiskFormat,
    Firmware,
    InterfaceKind,
)

__all__ = ["demo", "libvirt_host"]

pytestmark = [pytest.mark.qemu, pytest.mark.timeout(600)]

MEMORY = 192 * MIB
UEFI_MEMORY = 320 * MIB  # GRUB under UEFI runs out of memory with 192


@dataclass(frozen=True)
class Guests:
    """The demo guest in its forms."""

    demo: DemoGuest
    disk: Path  # a copy that guests may write to, one after the other
    blank: Path  # an empty qcow2 image
    directory: Path  # where each guest gets a copy of it

    def plain(self, name: str, uuid: UUID) -> ResolvedGuest:
        """Nothing to boot, but a disk: without one there is nothing to take a snapshot of."""
        return replace(plain_guest(name, uuid), disks=(self._own_disk(name),))

    def _own_disk(self, name: str) -> ResolvedDisk:
        path = self.directory / f"{name}.qcow2"
        shutil.copyfile(self.blank, path)
        return ResolvedDisk("data", str(path), DiskFormat.QCOW2, DiskBus.VIRTIO)

    def kernel(self, name: str, uuid: UUID) -> ResolvedGuest:
        return ResolvedGuest(
            uuid=uuid,
            name=name,
            vcpus=1,
            memory_bytes=MEMORY,
            accelerator=Accelerator.TCG,
            direct_kernel_boot=DirectKernelBoot(str(self.demo.kernel), str(self.demo.initrd), CMDLINE),
            disks=(self._own_disk(name),),
            interfaces=(ResolvedInterface("net", InterfaceKind.USER, mac_of(uuid)),),
        )

    def from_disk(self, name: str, uuid: UUID, firmware: Firmware = Firmware.BIOS) -> ResolvedGuest:
        disk = ResolvedDisk("root", str(self.disk), DiskFormat.QCOW2, DiskBus.VIRTIO, read_only=False, boot_order=1)
        return ResolvedGuest(
            uuid=uuid,
            name=name,
            vcpus=1,
            memory_bytes=UEFI_MEMORY if firmware is Firmware.UEFI else MEMORY,
            accelerator=Accelerator.TCG,
            firmware=firmware,
            disks=(disk,),
        )

    def uefi(self, name: str, uuid: UUID) -> ResolvedGuest:
        return self.from_disk(name, uuid, Firmware.UEFI)


@pytest.fixture(scope="module")
def peer() -> Iterator[PrivateLibvirt]:
    """Another daemon of this machine, to which guests migrate."""
    with private_libvirt() as daemon:
        yield daemon


@pytest.fixture(scope="module")
def provision(libvirt_host: PrivateLibvirt, peer: PrivateLibvirt, demo: DemoGuest) -> Iterator[Provision]:
    directory = libvirt_host.directory / "virtd"
    directory.mkdir(exist_ok=True)
    own = libvirt_host.directory / "conformance"
    own.mkdir()
    disk, blank = own / "root.qcow2", own / "blank.qcow2"
    shutil.copyfile(demo.disk, disk)
    subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", str(blank), "8M"], check=True, timeout=20)
    guests = Guests(demo, disk, blank, own)

    def kill(name: str) -> None:
        os.kill(int((libvirt_host.directory / "run" / "qemu" / f"{name}.pid").read_text()), signal.SIGKILL)

    outside = LibvirtOutside(libvirt_host.uri, "qemu", kill)
    yield Provision(
        backend=KvmBackend(),
        uri=libvirt_host.uri,
        label="qemu-tcg",
        host="QEMU without acceleration",
        guest=guests.plain,
        bootable=Bootable(
            guest=guests.kernel,
            disk_guest=guests.from_disk,
            uefi_guest=guests.uefi,
            ready_line=READY.decode(),
            boot_timeout_s=90,
            agent=True,
            addresses=True,
            obeys_shutdown=True,
            write_disk=lambda text: AgentCommand("/bin/sh", ("-c", f"echo {text} >/dev/vda; sync")),
            read_disk=AgentCommand("/bin/sh", ("-c", "head -n 1 /dev/vda")),
        ),
        faults=LibvirtFaults(),
        golden_directory=GOLDEN / "libvirt-qemu",
        outside=outside,
        connection=DaemonConnection(libvirt_host),
        network_cidr="10.213.77.0/24",
        directory=directory,
        peer=peer.uri,
        allowed_directories=(str(libvirt_host.directory), str(demo.kernel.parent)),
        parallel=8,
        max_faults=3,
        call_timeout_s=10,
        check_timeout_s=300,
        event_timeout_s=20,
    )
    outside.close()
    shutil.rmtree(own)
