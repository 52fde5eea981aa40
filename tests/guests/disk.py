"""The demo guest as a disk: boots by BIOS and by UEFI, made without root and without loop devices.

A master boot record with one FAT partition, which is also the EFI system partition. GRUB for the
BIOS is in the gap before the partition, GRUB for UEFI is a file in it.
"""

from __future__ import annotations

import struct
from pathlib import Path

from tests.guests.tools import GuestBuildError, need_file, run

_MIB = 1024 * 1024
_SECTOR = 512
_SIZE = 40 * _MIB
_PARTITION_START = 1 * _MIB
_BOOT_CODE_SIZE = 440
_HEADS, _SECTORS_PER_TRACK = 64, 32
# GRUB reads cluster by cluster: large ones, though not so large that the file system is no FAT16.
_SECTORS_PER_CLUSTER = 16
_SIGNATURE = 0x564D4430
_EFI_SYSTEM_PARTITION = 0xEF
_LINUX = 0x83
_GRUB = Path("/usr/lib/grub")

_GRUB_MODULES = (
    *("boot", "configfile", "echo", "fat", "linux", "normal"),
    *("part_msdos", "search", "search_fs_file", "serial", "terminal"),
)

_EARLY_CONFIG = """\
search --no-floppy --file /vmlinuz --set=root
set prefix=($root)/
configfile /grub.cfg
"""

_CONFIG = """\
serial --unit=0 --speed=115200
set timeout=0
linux /vmlinuz {cmdline}
initrd /initrd
boot
"""


def build(kernel: Path, initrd: Path, cmdline: str, scratch: Path, target: Path) -> None:
    """Write the disk, a qcow2 file."""
    raw = scratch / "disk.raw"
    write_raw(raw, kernel, initrd, cmdline, scratch)
    run("qemu-img", "convert", "-f", "raw", "-O", "qcow2", raw, target)


def write_raw(raw: Path, kernel: Path, initrd: Path, cmdline: str, scratch: Path, root_size: int = 0) -> int:
    """Write a raw disk that boots the kernel; return where its second partition begins, in bytes.

    The second partition, for a root file system, is there if ``root_size`` (bytes) is given; it is
    empty, and ends the disk, so that it can grow with it.
    """
    core = _grub_image("i386-pc", "grub-pc-bin", scratch / "core.img", "biosdisk")
    efi = _grub_image("x86_64-efi", "grub-efi-amd64-bin", scratch / "BOOTX64.EFI")
    _write_boot_record(raw, core.read_bytes(), root_size)
    config = scratch / "grub.cfg"
    config.write_text(_CONFIG.format(cmdline=cmdline))
    partition = f"{raw}@@{_PARTITION_START}"
    sectors = (_SIZE - _PARTITION_START) // _SECTOR
    geometry = ("-T", str(sectors), "-h", str(_HEADS), "-s", str(_SECTORS_PER_TRACK), "-c", str(_SECTORS_PER_CLUSTER))
    # The serial number is given so that the same content gives the same bytes.
    run("mformat", "-i", partition, *geometry, "-N", f"{_SIGNATURE:08x}", "-v", "DEMO", "::")
    run("mmd", "-i", partition, "::/EFI", "::/EFI/BOOT")
    for source, name in (
        (efi, "EFI/BOOT/BOOTX64.EFI"),
        (config, "grub.cfg"),
        (kernel, "vmlinuz"),
        (initrd, "initrd"),
    ):
        run("mcopy", "-i", partition, source, f"::/{name}")
    return _SIZE


def _grub_image(platform: str, package: str, target: Path, *modules: str) -> Path:
    """Make a GRUB that reads the configuration in the partition."""
    early = target.with_suffix(".cfg")
    early.write_text(_EARLY_CONFIG)
    folder = need_file(_GRUB / platform / "moddep.lst", package).parent
    options = ("-d", folder, "-O", platform, "-p", "/", "-c", early, "-o", target)
    run("grub-mkimage", *options, *modules, *_GRUB_MODULES)
    return target


def _write_boot_record(disk: Path, core: bytes, root_size: int) -> None:
    """Write GRUB's boot code, the partition table and GRUB itself into the first MiB."""
    boot = need_file(_GRUB / "i386-pc/boot.img", "grub-pc-bin").read_bytes()
    if _SECTOR + len(core) > _PARTITION_START:
        raise GuestBuildError(f"GRUB is too large for the gap: {len(core)} bytes")
    entries = _entry(0x80, _EFI_SYSTEM_PARTITION, _PARTITION_START, _SIZE - _PARTITION_START)
    if root_size:
        entries += _entry(0, _LINUX, _SIZE, root_size)
    table = struct.pack("<IH", _SIGNATURE, 0) + entries.ljust(4 * 16, b"\0") + b"\x55\xaa"
    with disk.open("wb") as stream:
        stream.write(boot[:_BOOT_CODE_SIZE] + table + core)
        stream.truncate(_SIZE + root_size)


def _entry(active: int, kind: int, start: int, size: int) -> bytes:
    """Return an entry of the partition table; start and size are in bytes."""
    unused_chs = b"\xfe\xff\xff"
    return struct.pack("<B3sB3sII", active, unused_chs, kind, unused_chs, start // _SECTOR, size // _SECTOR)
