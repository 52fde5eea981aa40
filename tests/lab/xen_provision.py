"""A Xen host for the conformance kit: one provision for each type of guest."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final
from uuid import UUID, uuid4

from virtd_xen.backend import XenBackend
from virtd_xen.dialect import PVH

from tests.conformance.libvirt_host import LibvirtFaults, LibvirtOutside
from tests.conformance.remote_host import RemoteFiles, remote
from tests.lab.daemon import FILES, MIB, XEN_CMDLINE
from tests.lab.hosts import LabHost
from virtd.backend.api import ResolvedDisk, ResolvedGuest, ResolvedInterface
from virtd.backend.conformance.provision import Bootable, Provision
from virtd.model.console import AgentCommand
from virtd.model.guest import Accelerator, DirectKernelBoot, DiskBus, DiskFormat, InterfaceKind

BRIDGE: Final = "xenbr0"
READY: Final = "GUEST-READY"
_MEMORY: Final = 96 * MIB


@dataclass(frozen=True)
class Guests:
    """Guests of one type.  ``boot_disk`` is the content of a disk that boots, for HVM."""

    machine: str
    files: RemoteFiles
    boot_disk: bytes = b""

    def plain(self, name: str, uuid: UUID) -> ResolvedGuest:
        """As small as it can be: paravirtual guests need a kernel, and a system that obeys Xen's requests."""
        if self.boot_disk:
            return self._guest(name, uuid, memory_bytes=32 * MIB, disks=(self._root(name),))
        return self._guest(name, uuid, direct_kernel_boot=self._kernel())

    def booting(self, name: str, uuid: UUID) -> ResolvedGuest:
        """With a system that says so, a disk and an interface."""
        if self.boot_disk:
            return self.plain(name, uuid)
        mac = "00:16:3e:" + ":".join(f"{byte:02x}" for byte in uuid.bytes[:3])
        return self._guest(
            name,
            uuid,
            direct_kernel_boot=self._kernel(),
            disks=(self._disk("data", name, bytes(MIB)),),
            interfaces=(ResolvedInterface("net", InterfaceKind.BRIDGE, mac, BRIDGE),),
        )

    def _kernel(self) -> DirectKernelBoot:
        return DirectKernelBoot(f"{FILES}/vmlinux", f"{FILES}/guest-initrd.img", XEN_CMDLINE)

    def _root(self, name: str) -> ResolvedDisk:
        return self._disk("root", name, self.boot_disk, boot_order=1)

    def _disk(self, disk: str, guest: str, content: bytes, **more: Any) -> ResolvedDisk:
        path = self.files.put(f"of-{guest}.img", content)  # the kit looks after names of its own
        return ResolvedDisk(disk, path, DiskFormat.RAW, DiskBus.VIRTIO, **more)

    def _guest(self, name: str, uuid: UUID, **more: Any) -> ResolvedGuest:
        values: dict[str, Any] = {"vcpus": 1, "memory_bytes": _MEMORY, "serial_console": True, "guest_agent": False}
        return ResolvedGuest(
            uuid=uuid, name=name, accelerator=Accelerator.NATIVE, machine=self.machine, **{**values, **more}
        )


class XenOutside(LibvirtOutside):
    """See :class:`virtd.backend.conformance.provision.Outside`: what ``virsh`` would do."""

    async def define_guest(self, name: str) -> UUID:
        uuid = uuid4()
        xml = (
            f"<domain type='xen'><name>{name}</name><uuid>{uuid}</uuid><memory unit='MiB'>{_MEMORY // MIB}</memory>"
            f"<vcpu>1</vcpu><os><type machine='xenpv'>linux</type><kernel>{FILES}/vmlinux</kernel>"
            f"<initrd>{FILES}/guest-initrd.img</initrd><cmdline>{XEN_CMDLINE}</cmdline></os></domain>"
        )
        await asyncio.to_thread(lambda: self._connect().defineXML(xml))
        return uuid


@contextlib.contextmanager
def xen_provision(
    host: LabHost, machine: str, label: str, directory: Path, boot_disk: Callable[[Path], Path] | None = None
) -> Iterator[Provision]:
    """The provision, and nothing on the host afterwards.

    :param boot_disk: for HVM: makes a disk that boots, in a directory of this machine.
    """
    with remote(host.uri) as (files, proxy):
        guests = Guests(machine, files, boot_disk(directory).read_bytes() if boot_disk else b"")
        outside = XenOutside(host.uri, "xen")
        linux = boot_disk is None
        yield Provision(
            backend=XenBackend(),
            uri=proxy.uri,
            label=label,
            host=f"Xen (nested), guests of type {machine}, another machine by TCP",
            machine=machine,
            accelerator=Accelerator.NATIVE,
            guest=guests.plain,
            up_line=READY if linux else "",
            disk_format=DiskFormat.RAW,
            interface=ResolvedInterface("", InterfaceKind.BRIDGE, "", BRIDGE),
            bootable=Bootable(
                guest=guests.booting,
                disk_guest=None if linux else guests.booting,
                ready_line=READY,
                boot_timeout_s=300,
                shell=linux,
                obeys_shutdown=True,
                write_disk=_write_disk if linux else None,
                read_disk=AgentCommand("/bin/sh", ("-c", "head -n 1 /dev/xvda")) if linux else None,
            ),
            faults=LibvirtFaults(),
            outside=outside,
            connection=proxy,
            digest=files.guests,
            files=files,
            network_cidr="10.213.79.0/24",
            directory=directory,
            allowed_directories=(files.directory, FILES),
            parallel=2,
            max_faults=1,
            robust_elsewhere="" if machine == PVH else f"guests of the type {PVH} (xen-pvh)",
            call_timeout_s=120,
            check_timeout_s=700,
            event_timeout_s=120,
        )
        outside.close()


def _write_disk(text: str) -> AgentCommand:
    return AgentCommand("/bin/sh", ("-c", f"echo {text} >/dev/xvda; sync"))
