"""The demo guest: built when it is not in the cache."""

from __future__ import annotations

import os
import shutil
from dataclasses import dataclass
from pathlib import Path

from tests.guests import disk, initramfs, kernel
from tests.guests.cache import building, cache_root, recipe_hash

# For a direct kernel boot. What is switched off costs time under emulation and proves nothing.
CMDLINE = "console=ttyS0 quiet mitigations=off nokaslr cryptomgr.notests"


@dataclass(frozen=True, slots=True)
class DemoGuest:
    """Where the files of the demo guest are; they are shared, so never write to them.

    Boot ``kernel`` and ``initrd`` directly with ``CMDLINE``, or ``disk``, a qcow2 image with both
    on it, by BIOS or UEFI. A guest that writes to its disk needs an overlay or a copy.
    """

    kernel: Path
    initrd: Path
    disk: Path


def build_demo(*, refresh: bool = False) -> DemoGuest:
    """Return the demo guest, built first if the cache has none that was made this way.

    A guest in the cache is used whatever its kernel's version; ``refresh`` asks the package lists
    for today's kernel, and builds if that is another one. Raises ``GuestBuildError``, which says
    what to install, where the guest cannot be built.
    """
    recipe = recipe_hash(initramfs.host_inputs().values())
    if not refresh and (guest := _find(recipe)):
        return guest
    with building() as scratch:
        if not refresh and (guest := _find(recipe)):
            return guest
        return _build(recipe, scratch)


def _find(recipe: str) -> DemoGuest | None:
    found = sorted(cache_root().glob(f"demo-{recipe}-*"), key=lambda path: path.stat().st_mtime)
    return _guest(found[-1]) if found else None


def _guest(folder: Path) -> DemoGuest:
    return DemoGuest(folder / "vmlinuz", folder / "initrd.img", folder / "disk.qcow2")


def _build(recipe: str, scratch: Path) -> DemoGuest:
    root = cache_root()
    wanted, options = kernel.resolve(scratch)
    target = root / f"demo-{recipe}-{wanted.version.replace(':', '%3a')}"
    if target.is_dir():
        target.touch()
        return _guest(target)
    packages = kernel.download(wanted, options, scratch, root / "packages")
    unpacked = kernel.unpack(packages, scratch / "kernel")
    made = scratch / "made"
    made.mkdir()
    guest = _guest(made)
    shutil.copyfile(unpacked.image, guest.kernel)
    guest.initrd.write_bytes(initramfs.build(unpacked))
    disk.build(guest.kernel, guest.initrd, f"console=tty0 {CMDLINE}", scratch, guest.disk)
    for path in (guest.kernel, guest.initrd, guest.disk):
        path.chmod(0o444)
    os.replace(made, target)
    return _guest(target)
