"""What commonly goes wrong on a host with QEMU guests, and what to do about it.

What libvirt tells is asked of every host; what only files tell (``/dev/kvm``, loaded modules, the CPU's
flags) is looked at where the host is this machine, and is UNKNOWN elsewhere.
"""

from __future__ import annotations

import asyncio
import os
import stat
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, Final

import libvirt

from virtd.libvirt import checks
from virtd.libvirt.checks import LIBVIRT_TESTED
from virtd.libvirt.connections import HostConnections
from virtd.libvirt.xml.build import parse
from virtd.model.host import AcceleratorStatus, CheckStatus, HostCheck

QEMU_TESTED: Final = (7, 2, 0)

S = CheckStatus


class Doctor:
    """Looks a host over.

    :param statuses: the accelerators as the last probe found them.
    :param root: where this machine's files are (for tests).
    """

    def __init__(
        self,
        connections: HostConnections,
        statuses: Callable[[], Sequence[AcceleratorStatus]],
        root: Path = Path("/"),
    ) -> None:
        self._connections: Final = connections
        self._statuses: Final = statuses
        self._root: Final = root

    async def diagnose(self) -> Sequence[HostCheck]:
        """Every check, in the order in which a person would make them."""
        asked = await self._connections.call("virConnectGetLibVersion", _ask)
        way = self._connections.way
        of_the_way = () if way is None else await self._connections.call("virConnectGetLibVersion", way.checks)
        checks = [*of_the_way, *asked, *_accelerators(self._statuses())]
        if self._connections.local:
            checks += await asyncio.to_thread(machine, self._root)
        else:
            reason = "the host is another machine, whose files virtd does not see; run `guestctl doctor` there"
            checks.append(HostCheck("machine", S.UNKNOWN, reason))
        return checks


def _ask(connection: Any) -> list[HostCheck]:
    return [
        *checks.version("libvirt", connection.getLibVersion(), LIBVIRT_TESTED, "libvirt-daemon-system"),
        *checks.version("QEMU", connection.getVersion(), QEMU_TESTED, "qemu-system-x86"),
        *checks.pools(connection),
        *checks.networks(connection),
        *_optional_parts(connection),
    ]


def _optional_parts(connection: Any) -> Iterable[HostCheck]:
    """Firmware and TPM, as libvirt's domain capabilities list them."""
    try:
        root = parse(connection.getDomainCapabilities(None, None, "q35", "qemu", 0))
    except libvirt.libvirtError as error:
        yield HostCheck("firmware.uefi", S.UNKNOWN, f"libvirt does not tell what guests can have: {error}")
        return
    firmware = {(entry.text or "").strip() for entry in root.findall("os/enum[@name='firmware']/value")}
    if "efi" in firmware:
        yield HostCheck("firmware.uefi", S.OK, "UEFI firmware is installed")
    else:
        yield HostCheck("firmware.uefi", S.WARNING, "no UEFI firmware: guests boot by BIOS only",
                        "install the package ovmf")  # fmt: skip
    tpm = root.find("devices/tpm")
    backends = {(entry.text or "").strip() for entry in root.findall("devices/tpm/enum[@name='backendModel']/value")}
    if tpm is not None and "emulator" in backends:
        yield HostCheck("tpm", S.OK, "swtpm is installed: guests can have a TPM")
    else:
        yield HostCheck("tpm", S.WARNING, "no swtpm: guests cannot have a TPM", "install the package swtpm-tools")


def _accelerators(statuses: Sequence[AcceleratorStatus]) -> Iterable[HostCheck]:
    for status in statuses:
        id_ = f"accelerator.{status.accelerator.lower()}"
        if status.usable:
            yield HostCheck(id_, S.OK, f"{status.accelerator} works: {status.reason}")
        elif status.accelerator == "KVM":
            yield HostCheck(
                id_, S.PROBLEM, f"KVM does not work: {status.reason}",
                "guests are emulated, many times slower; see the checks of /dev/kvm and of the CPU below",
            )  # fmt: skip
        else:
            yield HostCheck(id_, S.WARNING, f"{status.accelerator} does not work: {status.reason}",
                            "install the package qemu-system-x86")  # fmt: skip


def machine(root: Path) -> list[HostCheck]:
    """What this machine's files tell.  Blocking."""
    return [_cpu(root), _device(root), _conflicts(root), _nested(root)]


def _cpu(root: Path) -> HostCheck:
    flags: set[str] = set()
    for line in _read(root / "proc/cpuinfo").splitlines():
        if line.startswith("flags"):
            flags = set(line.partition(":")[2].split())
            break
    if not flags:
        return HostCheck("cpu.virtualization", S.UNKNOWN, "the flags of the CPU cannot be read")
    if flags & {"vmx", "svm"}:
        return HostCheck("cpu.virtualization", S.OK, f"the CPU has {'VT-x' if 'vmx' in flags else 'AMD-V'}")
    remedy = "turn VT-x or AMD-V on in the firmware's set-up"
    if "hypervisor" in flags:
        remedy = "this machine is itself a guest: turn nested virtualization on in its hypervisor"
    return HostCheck("cpu.virtualization", S.PROBLEM, "the CPU shows neither VT-x nor AMD-V", remedy)


def _device(root: Path) -> HostCheck:
    path = root / "dev/kvm"
    try:
        found = path.stat()
    except OSError:
        return HostCheck("kvm.device", S.PROBLEM, "/dev/kvm is not there",
                         "modprobe kvm_intel or kvm_amd; its kernel message says why if it fails")  # fmt: skip
    by_all = found.st_mode & stat.S_IROTH and found.st_mode & stat.S_IWOTH
    by_group = found.st_gid and found.st_mode & stat.S_IRGRP and found.st_mode & stat.S_IWGRP
    if not by_all and not by_group:
        # Measured: QEMU as another user cannot open it, and libvirtd then forgets what it knows of the
        # emulators at every look-up, so that each definition of a guest takes minutes.
        return HostCheck(
            "kvm.device", S.WARNING, f"/dev/kvm has mode {stat.S_IMODE(found.st_mode):04o} and group {found.st_gid}: "
            "QEMU, which libvirt runs as another user, cannot open it",
            "chgrp kvm /dev/kvm && chmod 660 /dev/kvm; udev does so where its rule is installed",
        )  # fmt: skip
    if not os.access(path, os.R_OK | os.W_OK):
        return HostCheck("kvm.device", S.OK, "/dev/kvm is there, for its group; virtd itself need not open it")
    return HostCheck("kvm.device", S.OK, "/dev/kvm is there and can be opened")


def _conflicts(root: Path) -> HostCheck:
    loaded = {line.split(" ")[0] for line in _read(root / "proc/modules").splitlines()}
    if "vboxdrv" in loaded and loaded & {"kvm_intel", "kvm_amd"}:
        return HostCheck(
            "hypervisor.conflict", S.WARNING, "VirtualBox's kernel module is loaded beside KVM's: "
            "only one of them can hold VT-x or AMD-V, and the other's guests fail to start",
            "stop the guests of one of them; for good: modprobe -r vboxdrv, or VirtualBox 7.2 on Linux 6.16 and later",
        )  # fmt: skip
    return HostCheck("hypervisor.conflict", S.OK, "no other hypervisor's kernel module is loaded")


def _nested(root: Path) -> HostCheck:
    for module in ("kvm_intel", "kvm_amd"):
        value = _read(root / "sys/module" / module / "parameters/nested").strip()
        if value:
            on = value in {"1", "Y", "y"}
            return HostCheck("kvm.nested", S.OK, f"guests {'can' if on else 'cannot'} be hypervisors themselves")
    return HostCheck("kvm.nested", S.UNKNOWN, "KVM's module is not loaded")


def _read(path: Path) -> str:
    try:
        return path.read_text(errors="replace")
    except OSError:
        return ""
