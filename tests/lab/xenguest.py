"""The guests that run on the Xen lab host: BusyBox as an initramfs, and a disk for full virtualization.

The first takes what is the same from the demo guest, and differs from that in what its tests look for: a ready line
that says in which way it runs on Xen, and a counter.  The disk boots 512 bytes of ours: reading a Linux kernel from an
emulated disk takes a virtual BIOS minutes under emulation.
"""

from __future__ import annotations

import gzip
import io
import os
from pathlib import Path

from tests.guests.cpio import CpioWriter
from tests.guests.initramfs import ROOTFS, host_inputs
from tests.guests.kernel import Kernel
from tests.guests.tools import run

HERE = Path(__file__).parent / "rootfs/xenguest"
ASSEMBLY = Path(__file__).with_name("hvm.S")

_DISK_BYTES = 1 << 20

# For a direct kernel boot; what is switched off costs time under emulation and proves nothing.
CMDLINE = "quiet cryptomgr.notests rodata=off mitigations=off audit=0 lsm=none"

_SAME = ("etc/passwd", "etc/group", "etc/shadow", "etc/udhcpc.sh", "etc/acpi/PWRF/00000080")
_SAME_PROGRAMS = ("sbin/dhcp", "sbin/hotplug")
_MODULES = (
    *("xen_blkfront", "xen_netfront", "button", "evdev", "ata_piix", "sd_mod", "sr_mod", "isofs"),
    *("ext4", "crc32c_generic", "8139cp", "e1000"),
)
_DIRECTORIES = ("proc", "sys", "dev", "run", "mnt", "tmp", "var", "root", "etc", "bin", "sbin")


def inputs() -> list[Path]:
    """The files that decide what is in the guest."""
    return [ASSEMBLY, *_own(), *(ROOTFS / name for name in (*_SAME, *_SAME_PROGRAMS))]


def build_initramfs(kernel: Kernel) -> bytes:
    """Return the initramfs, a compressed cpio archive."""
    stream = io.BytesIO()
    archive = CpioWriter(stream)
    for folder in _DIRECTORIES:
        archive.directory(folder)
    archive.character_device("dev/console", 5, 1)
    archive.character_device("dev/null", 1, 3, 0o666)
    archive.symlink("init", "bin/busybox")
    for path in _own():
        archive.file(str(path.relative_to(HERE)), path.read_bytes(), executable=os.access(path, os.X_OK))
    for name in (*_SAME, *_SAME_PROGRAMS):
        archive.file(name, (ROOTFS / name).read_bytes(), executable=os.access(ROOTFS / name, os.X_OK))
    _add_busybox(archive)
    _add_modules(archive, kernel)
    archive.end()
    # Fast to unpack under emulation, and small enough to be read by a BIOS.
    return gzip.compress(stream.getvalue(), compresslevel=6, mtime=0)


def build_disk(scratch: Path) -> Path:
    """Return a raw disk that boots by BIOS and says at once that it did; see ``hvm.S``."""
    linked, raw = scratch / "hvm.o", scratch / "hvm.img"
    run("as", "--32", "-o", linked, ASSEMBLY)
    run("ld", "-m", "elf_i386", "-Ttext", "0x7c00", "--oformat", "binary", "-o", raw, linked)
    with raw.open("r+b") as stream:
        stream.truncate(_DISK_BYTES)
    return raw


def _own() -> list[Path]:
    return sorted(path for path in HERE.rglob("*") if path.is_file())


def _add_busybox(archive: CpioWriter) -> None:
    busybox = host_inputs()["bin/busybox"]
    archive.file("bin/busybox", busybox.read_bytes(), executable=True)
    ours = {path.name for path in (HERE / "sbin").iterdir()} | {Path(name).name for name in _SAME_PROGRAMS}
    for applet in run(str(busybox), "--list").decode().split():
        if applet != "busybox" and applet not in ours:
            archive.symlink(f"bin/{applet}", "busybox")
    # The kernel runs these by their full path when Xen asks a guest to shut down.
    for applet in ("init", "poweroff", "reboot", "halt", "modprobe"):
        archive.symlink(f"sbin/{applet}", "../bin/busybox")


def _add_modules(archive: CpioWriter, kernel: Kernel) -> None:
    folder = f"lib/modules/{kernel.release}"
    modules = kernel.closure(_MODULES)
    lines = []
    for name, content in modules.items():
        archive.file(f"{folder}/{name}.ko", content.data)
        needs: dict[str, None] = {}
        pending = list(content.needs)
        while pending:
            need = pending.pop(0)
            needs.pop(need, None)
            needs[need] = None
            pending += modules[need].needs
        lines.append(f"{name}.ko: {' '.join(f'{need}.ko' for need in needs)}\n")
    archive.file(f"{folder}/modules.dep", "".join(lines).encode())
    archive.file(f"{folder}/modules.alias", b"")
