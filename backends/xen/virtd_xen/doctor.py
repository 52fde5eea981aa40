"""What commonly goes wrong on a Xen host, and what to do about it.

What libvirt tells is asked of every host; what only files tell is looked at where the host is this machine.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Final

from virtd.libvirt import checks
from virtd.libvirt.checks import LIBVIRT_TESTED
from virtd.libvirt.connections import HostConnections
from virtd.libvirt.facts import optional
from virtd.model.host import CheckStatus, HostCheck
from virtd_xen import platform
from virtd_xen.dialect import HVM

XEN_TESTED: Final = (4, 17, 0)
FREE_LEAST: Final = 256 << 20
"""Less free memory than this lets hardly a guest start."""
EMULATORS: Final = (
    "usr/libexec/xen-qemu-system-i386",
    "usr/lib/xen/bin/qemu-system-i386",
    "usr/lib/xen/bin/qemu-system-x86_64",
)
"""Where distributions put the QEMU that serves Xen's guests."""
CPU_POOLS: Final = (
    "libvirt's libxl driver shows no CPU pools: where there are several, Xen runs a guest in the pool that its name or "
    "the host's administrator gave it, and virtd does not see which"
)

S = CheckStatus


class Doctor:
    """Looks a host over.

    :param root: where this machine's files are (for tests).
    """

    def __init__(self, connections: HostConnections, root: Path = Path("/")) -> None:
        self._connections: Final = connections
        self._root: Final = root

    async def diagnose(self) -> Sequence[HostCheck]:
        """Every check, in the order in which a person would make them."""
        way = self._connections.way
        of_the_way = () if way is None else await self._connections.call("virConnectGetLibVersion", way.checks)
        found = [*of_the_way, *await self._connections.call("virConnectGetLibVersion", ask)]
        if self._connections.local:
            return [*found, await asyncio.to_thread(emulator, self._root)]
        reason = "the host is another machine, whose files virtd does not see; run `guestctl doctor` there"
        return [*found, HostCheck("machine", S.UNKNOWN, reason)]


def ask(connection: Any) -> list[HostCheck]:
    """What libvirt tells (on a worker)."""
    return [
        _hypervisor(connection),
        *checks.version("libvirt", connection.getLibVersion(), LIBVIRT_TESTED, "libvirt-daemon-system"),
        *checks.version("Xen", connection.getVersion(), XEN_TESTED, "xen-hypervisor"),
        *_types(connection),
        *_memory(connection),
        HostCheck("xen.cpu_pools", S.UNKNOWN, CPU_POOLS, "xl cpupool-list on the host shows them"),
        *checks.pools(connection),
        *checks.networks(connection),
    ]


def _hypervisor(connection: Any) -> HostCheck:
    found = connection.getType()
    if found == "Xen":
        return HostCheck("xen.hypervisor", S.OK, "the host runs on Xen, and this is its control domain")
    return HostCheck("xen.hypervisor", S.PROBLEM, f"libvirt says that the hypervisor is {found}, not Xen",
                     "boot the host with Xen, and start libvirtd in its control domain")  # fmt: skip


def _types(connection: Any) -> Iterable[HostCheck]:
    learned = platform.learn(connection)
    if HVM in learned.machines:
        yield HostCheck("xen.guests", S.OK, f"guests can be of the types {', '.join(learned.machines)}")
    else:
        only = ", ".join(learned.machines) or "none"
        yield HostCheck("xen.guests", S.WARNING, f"the types of guests that Xen offers: {only}",
                        "switch on VT-x or AMD-V in the host's firmware for xenfv and xenpvh")  # fmt: skip


def _memory(connection: Any) -> Iterable[HostCheck]:
    control = platform.control_domain(connection)
    if control is None:
        yield HostCheck("xen.control_domain", S.UNKNOWN, "libvirt does not show the control domain")
    elif control.max_memory_bytes is None:
        yield HostCheck(
            "xen.control_domain", S.WARNING, "nothing limits the control domain's memory: it is made smaller as guests "
            "start, which is slow, and can leave it with too little",
            'boot Xen with dom0_mem=4G,max:4G (or what the control domain needs), and set autoballoon="off" for xl',
        )  # fmt: skip
    else:
        most, has = control.max_memory_bytes >> 20, (control.memory_bytes or 0) >> 20
        yield HostCheck("xen.control_domain", S.OK, f"the control domain has {has} MiB of memory, and {most} at most")
    free = optional(connection.getFreeMemory)
    if free is None:
        yield HostCheck("xen.memory", S.UNKNOWN, "libvirt does not tell how much memory is free")
    elif free < FREE_LEAST:
        yield HostCheck("xen.memory", S.WARNING, f"{free >> 20} MiB of memory are free for guests",
                        "stop guests, or give them less memory")  # fmt: skip
    else:
        yield HostCheck("xen.memory", S.OK, f"{free >> 20} MiB of memory are free for guests")


def emulator(root: Path) -> HostCheck:
    """Whether this machine has the QEMU without which there are no xenfv guests and no qcow2 disks.  Blocking."""
    places = (*EMULATORS, *(str(path.relative_to(root)) for path in root.glob("usr/lib/xen-*/bin/qemu-system-i386")))
    if any((root / place).exists() for place in places):
        return HostCheck("xen.emulator", S.OK, "the QEMU for Xen's guests is installed")
    return HostCheck(
        "xen.emulator", S.WARNING, "the QEMU for Xen's guests is missing: those of the type xenfv, qcow2 disks and "
        "displays do not work",
        "install the package qemu-system-xen",
    )  # fmt: skip
