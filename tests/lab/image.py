"""Images of lab hosts: built from Debian's packages when the cache has none made this way.

An image's key is a hash of everything that is ours in it: this package's files, the kind's recipe and the guests
that go onto it.  The versions of Debian's packages are not part of it: an image in the cache is used until the recipe
changes, or ``python -m tests.lab build --refresh`` is run; ``manifest.json`` beside it says what it holds.
"""

from __future__ import annotations

import contextlib
import fcntl
import inspect
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from tests.guests.cache import cache_root, recipe_hash
from tests.guests.initramfs import host_inputs
from tests.lab import keys, root
from tests.lab.kind import Kind

HERE = root.HERE
# What is written here decides what is in an image; the other modules only run it.
_RECIPE = ("root.py", "kind.py", "keys.py", "libvirtd.py", "tree.py", "vmlinux.py", "xenguest.py")
_UNUSED_S = 7 * 86400.0


@dataclass(frozen=True, slots=True)
class Image:
    """An image of a kind of host; it is shared, so never write to its disk."""

    kind: Kind
    folder: Path

    @property
    def disk(self) -> Path:
        """The root file system, raw."""
        return self.folder / "root.ext4"

    @property
    def boot_folder(self) -> Path:
        """What QEMU loads."""
        return self.folder / "boot"

    @property
    def pki(self) -> Path:
        """The certificates of the libvirt client."""
        return self.folder / "pki"

    @property
    def ssh_key(self) -> Path:
        """The private key that the host lets in as root."""
        return self.pki / keys.SSH_KEY


def key(kind: Kind) -> str:
    """The key of the image that is wanted today."""
    inputs = [*(HERE / name for name in _RECIPE), Path(inspect.getfile(type(kind)))]
    files = sorted(path for folder in ("common", kind.name) for path in (HERE / "rootfs" / folder).rglob("*"))
    inputs += [path for path in files if path.is_file()]
    inputs += kind.inputs()
    names = [f"{path.name} {os.access(path, os.X_OK)}" for path in inputs]
    return recipe_hash([*inputs, *host_inputs().values()], kind.name, *names)


def build(kind: Kind, *, refresh: bool = False) -> Image:
    """Return the image, built first (a minute or two) if the cache has none that was made this way.

    :raises GuestBuildError: which says what to do, where it cannot be built.
    """
    target = cache_root() / f"lab-{kind.name}-{key(kind)}"
    if refresh or not target.is_dir():
        with locked(f"lab-{kind.name}") as scratch:
            if refresh or not target.is_dir():
                say(f"building the {kind.name} image")
                started = time.monotonic()
                root.build(kind, scratch, target)
                _remove_old(kind)
                say(f"the {kind.name} image took {time.monotonic() - started:.0f} s")
    os.utime(target)
    return Image(kind, target)


def _remove_old(kind: Kind) -> None:
    """Remove images of the kind that nobody has used for a while: other recipes' of other clones stay."""
    for folder in cache_root().glob(f"lab-{kind.name}-*"):
        if time.time() - folder.stat().st_mtime > _UNUSED_S:
            shutil.rmtree(folder, ignore_errors=True)


def say(message: str) -> None:
    """Tell a person who waits."""
    print(f"lab: {message}", file=sys.stderr, flush=True)


@contextlib.contextmanager
def locked(name: str) -> Iterator[Path]:
    """Hold a lock of that name in the cache, and give a temporary folder, gone at the end."""
    root = cache_root()
    root.mkdir(parents=True, exist_ok=True)
    with (root / f"{name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        # Under the lock these can only be what a builder that was killed left behind.
        for left in root.glob(f"{name}.tmp-*"):
            shutil.rmtree(left, ignore_errors=True)
        with tempfile.TemporaryDirectory(prefix=f"{name}.tmp-", dir=root) as scratch:
            yield Path(scratch)
