"""Where built guests are kept: outside the repository, safe for several builders at once."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import shutil
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path

_HERE = Path(__file__).parent


def cache_root() -> Path:
    """Return the cache folder, which may not exist yet."""
    if chosen := os.environ.get("VIRTD_TEST_CACHE"):
        return Path(chosen).absolute()
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base).absolute() / "virtd-images"


def recipe_hash(inputs: Iterable[Path], *words: str) -> str:
    """Return a hash of how a guest is made: this package's files, other inputs, and words."""
    digest = hashlib.sha256()
    files = [path for path in _HERE.rglob("*") if path.is_file() and _is_recipe(path)]
    for path in sorted(files):
        digest.update(f"{path.relative_to(_HERE)} {os.access(path, os.X_OK)}\0".encode())
        digest.update(hashlib.sha256(path.read_bytes()).digest())
    for path in inputs:
        digest.update(hashlib.sha256(path.read_bytes()).digest())
    digest.update("\0".join(words).encode())
    return digest.hexdigest()[:12]


def _is_recipe(path: Path) -> bool:
    # debian.py makes another guest; its own recipe names it.
    return path.suffix != ".pyc" and path.name not in {"__main__.py", "boot_check.py", "debian.py"}


@contextlib.contextmanager
def building() -> Iterator[Path]:
    """Hold the lock of the cache, and give a temporary folder inside it, gone at the end."""
    root = cache_root()
    root.mkdir(parents=True, exist_ok=True)
    with (root / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        # Nobody else builds now, so these are what a builder that was killed left behind.
        for left in root.glob("tmp-*"):
            shutil.rmtree(left, ignore_errors=True)
        with tempfile.TemporaryDirectory(prefix="tmp-", dir=root) as scratch:
            yield Path(scratch)
