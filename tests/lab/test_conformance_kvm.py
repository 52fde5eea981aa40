"""The kit over the KVM backend on a nested KVM host: hardware virtualization, on another machine, by TCP."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from uuid import UUID

import pytest
from virtd_kvm.backend import KvmBackend

from tests.conformance.libvirt_host import LibvirtFaults, LibvirtOutside
from tests.conformance.remote_host import RemoteFiles, remote
from tests.guests import CMDLINE, build_demo
from tests.lab.daemon import FILES
from tests.lab.hosts import LabHost
from tests.qemu.fixtures import MIB, READY, mac_of
from virtd.backend.api import ResolvedDisk, ResolvedGuest, ResolvedInterface
from virtd.backend.conformance.suite import *  # noqa: F403 - the kit is one import
from virtd.backend.conformance.suite import Bootable, Provision
from virtd.model.console import AgentCommand
from virtd.model.guest import Accelerator, DirectKernelBoot, DiskBus, DiskFormat, InterfaceKind

pytestmark = [pytest.mark.lab, pytest.mark.conformance_brief, pytest.mark.timeout(1500)]


@dataclass
class Guests:
    """Small guests, and the demo guest from its kernel and from its disk, with files of the host."""

    files: RemoteFiles
    blank: bytes  # an empty qcow2 image
    disk: Path  # the demo guest's, on this machine
    on_host: str = ""

    def _own_disk(self, name: str) -> ResolvedDisk:
        path = self.files.put(f"of-{name}.qcow2", self.blank)  # the kit looks after names of its own
        return ResolvedDisk("data", path, DiskFormat.QCOW2, DiskBus.VIRTIO)

    def plain(self, name: str, uuid: UUID) -> ResolvedGuest:
        return ResolvedGuest(
            uuid=uuid,
            name=name,
            vcpus=1,
            memory_bytes=32 * MIB,
            accelerator=Accelerator.KVM,
            disks=(self._own_disk(name),),
        )

    def kernel(self, name: str, uuid: UUID) -> ResolvedGuest:
        return ResolvedGuest(
            uuid=uuid,
            name=name,
            vcpus=1,
            memory_bytes=192 * MIB,
            accelerator=Accelerator.KVM,
            direct_kernel_boot=DirectKernelBoot(f"{FILES}/vmlinuz", f"{FILES}/initrd.img", CMDLINE),
            disks=(self._own_disk(name),),
            interfaces=(ResolvedInterface("net", InterfaceKind.USER, mac_of(uuid)),),
        )

    def from_disk(self, name: str, uuid: UUID) -> ResolvedGuest:
        self.on_host = self.on_host or self.files.put("root.qcow2", self.disk.read_bytes())
        disk = ResolvedDisk("root", self.on_host, DiskFormat.QCOW2, DiskBus.VIRTIO, boot_order=1)
        return ResolvedGuest(
            uuid=uuid, name=name, vcpus=1, memory_bytes=192 * MIB, accelerator=Accelerator.KVM, disks=(disk,)
        )


@pytest.fixture(scope="module")
def provision(lab_kvm1: LabHost, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Provision]:
    directory = tmp_path_factory.mktemp("kvm")
    blank = directory / "blank.qcow2"
    subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", str(blank), "8M"], check=True, timeout=20)
    with remote(lab_kvm1.uri) as (files, proxy):
        guests = Guests(files, blank.read_bytes(), build_demo().disk)
        outside = LibvirtOutside(lab_kvm1.uri, "kvm")
        yield Provision(
            backend=KvmBackend(),
            uri=proxy.uri,
            label="kvm",
            host="KVM (nested), another machine by TCP",
            accelerator=Accelerator.KVM,
            guest=guests.plain,
            bootable=Bootable(
                guest=guests.kernel,
                disk_guest=guests.from_disk,
                ready_line=READY.decode(),
                boot_timeout_s=300,
                agent=True,
                addresses=True,
                obeys_shutdown=True,
                write_disk=lambda text: AgentCommand("/bin/sh", ("-c", f"echo {text} >/dev/vda; sync")),
                read_disk=AgentCommand("/bin/sh", ("-c", "head -n 1 /dev/vda")),
            ),
            faults=LibvirtFaults(),
            outside=outside,
            connection=proxy,
            digest=files.guests,
            files=files,
            network_cidr="10.213.78.0/24",
            directory=directory,
            allowed_directories=(files.directory, FILES),
            parallel=2,
            robust_elsewhere="QEMU on this machine (qemu-tcg)",
            call_timeout_s=15,
            check_timeout_s=700,
            event_timeout_s=30,
        )
        outside.close()
