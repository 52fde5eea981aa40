"""The guest's initramfs: BusyBox, modules, the QEMU guest agent, and the files in ``rootfs/``."""

from __future__ import annotations

import gzip
import io
import os
import re
from pathlib import Path

from tests.guests.cpio import CpioWriter
from tests.guests.kernel import Content, Kernel
from tests.guests.tools import GuestBuildError, need_tool, run

ROOTFS = Path(__file__).with_name("rootfs")

# Loaded at boot, where the kernel does not have them built in.
BOOT_MODULES = (
    "virtio_pci",
    "virtio_mmio",
    "button",
    "evdev",
    "virtio_net",
    "virtio_blk",
    "virtio_scsi",
    "sd_mod",
    "sr_mod",
    "virtio_balloon",
    "virtio_console",
    "virtio_rng",
)

# There for modprobe and for mount, and not loaded until something asks.
MORE_MODULES = (
    "isofs",
    "vfat",
    "nls_ascii",
    "nls_cp437",
    "fuse",
    "virtiofs",
    "xen_blkfront",
    "xen_netfront",
    # A file system that can be frozen; the second is what it computes its sums with.
    "ext4",
    "crc32c_generic",
)

# Without these the guest would not be the one that is described; the others may be missing.
_ESSENTIAL = ("virtio_pci", "virtio_net", "virtio_blk", "virtio_console", "evdev")

_DIRECTORIES = (
    *("proc", "sys", "dev", "run", "mnt", "www", "var"),
    *("usr/bin", "usr/sbin", "lib64", "etc/acpi"),
)

_LIBRARY = re.compile(r"(?:=>\s*)?(/\S+)\s+\(0x")


def host_inputs() -> dict[str, Path]:
    """Return the programs of this machine that go into the initramfs, by their path in it."""
    return {"bin/busybox": _busybox(), "usr/sbin/qemu-ga": need_tool("qemu-ga")}


def build(kernel: Kernel) -> bytes:
    """Return the initramfs, a compressed cpio archive."""
    missing = kernel.unknown(_ESSENTIAL)
    if missing:
        raise GuestBuildError(f"kernel {kernel.release} lacks the modules {', '.join(missing)}")
    stream = io.BytesIO()
    archive = CpioWriter(stream)
    for path in _DIRECTORIES:
        archive.directory(path)
    archive.directory("root", 0o700)
    archive.directory("tmp", 0o1777)
    # Before devtmpfs is mounted, the kernel opens the first for init.
    archive.character_device("dev/console", 5, 1)
    archive.character_device("dev/null", 1, 3, 0o666)
    archive.symlink("var/run", "../run")
    archive.symlink("init", "bin/busybox")
    _add_rootfs(archive)
    _add_programs(archive)
    _add_modules(archive, kernel)
    archive.end()
    # Any kernel reads gzip; without a time in it, the same content gives the same bytes.
    return gzip.compress(stream.getvalue(), mtime=0)


def _add_rootfs(archive: CpioWriter) -> None:
    for path in sorted(path for path in ROOTFS.rglob("*") if path.is_file()):
        name = path.relative_to(ROOTFS).as_posix()
        archive.file(name, path.read_bytes(), executable=os.access(path, os.X_OK))


def _add_programs(archive: CpioWriter) -> None:
    ours = {path.name for path in (ROOTFS / "sbin").iterdir()}
    programs = host_inputs()
    for name, program in programs.items():
        archive.file(name, program.read_bytes(), executable=True)
    for applet in run(str(programs["bin/busybox"]), "--list").decode().split():
        if applet != "busybox" and applet not in ours:
            archive.symlink(f"bin/{applet}", "busybox")
    # The kernel and qemu-ga look for these by their full path.
    for applet in ("init", "poweroff", "reboot", "halt", "modprobe"):
        archive.symlink(f"sbin/{applet}", "../bin/busybox")
    for library in _libraries(programs["usr/sbin/qemu-ga"]):
        archive.file(str(library).lstrip("/"), library.read_bytes(), executable=True)


def _add_modules(archive: CpioWriter, kernel: Kernel) -> None:
    folder = f"lib/modules/{kernel.release}"
    modules = kernel.closure((*BOOT_MODULES, *MORE_MODULES))
    dependencies, aliases = [], []
    for name, content in modules.items():
        archive.file(f"{folder}/{name}.ko", content.data)
        files = [f"{need}.ko" for need in _all_needs(content.needs, modules)]
        aliases += [f"alias {alias} {name}\n" for alias in content.aliases]
        dependencies.append(f"{name}.ko: {' '.join(files)}\n")
    archive.file(f"{folder}/modules.dep", "".join(dependencies).encode())
    # With these, mounting a file system loads its module.
    archive.file(f"{folder}/modules.alias", "".join(aliases).encode())
    wanted = [name for name in BOOT_MODULES if name in modules]
    archive.file("etc/modules", ("\n".join(wanted) + "\n").encode())


def _all_needs(needs: tuple[str, ...], modules: dict[str, Content]) -> list[str]:
    """Return all that is needed, directly or not, in the order modules.dep wants: last first."""
    order: dict[str, None] = {}
    for need in needs:
        order[need] = None
        for deeper in _all_needs(modules[need].needs, modules):
            order.pop(deeper, None)
            order[deeper] = None
    return list(order)


def _libraries(program: Path) -> list[Path]:
    """Return the shared libraries of a program, its loader among them, as it names them."""
    found = _LIBRARY.findall(run("ldd", program).decode())
    return sorted(Path(path) for path in set(found))


def _busybox() -> Path:
    """Return BusyBox, which must be the static one: there are no libraries for it to find."""
    path = need_tool("busybox")
    if b"/ld-linux" in path.read_bytes()[:4096]:
        raise GuestBuildError(f"{path} is not static: apt-get install busybox-static")
    return path
