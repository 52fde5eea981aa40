"""A home of its own for commands from the documentation, and its clean-up.

Everything lives below one short temporary directory (unix sockets have short names).  What the commands leave
running there, such as the private libvirt daemon and guests, is ended by process id: it is found by that directory
in its command line, which nobody else has.
"""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil

ROOT = Path(__file__).resolve().parents[2]


@contextmanager
def home() -> Iterator[tuple[Path, dict[str, str]]]:
    """A home directory, and the environment for a shell in it."""
    place = Path(tempfile.mkdtemp(prefix="vt-"))
    kept = {key: value for key, value in os.environ.items() if not key.startswith(("XDG_", "VIRTD_", "GUESTCTL_"))}
    environ = {
        **kept,
        "HOME": str(place),
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', os.defpath)}",
        "NO_COLOR": "1",
        "COLUMNS": "100",
        # The demo guest is found, or built, where every other test has it.
        "XDG_CACHE_HOME": os.environ.get("XDG_CACHE_HOME", str(Path.home() / ".cache")),
    }
    try:
        yield place, environ
    finally:
        end_processes(place)
        shutil.rmtree(place, ignore_errors=True)


def end_processes(place: Path) -> None:
    """End what runs on behalf of ``place``."""
    mine = [process for process in psutil.process_iter() if _belongs(process, place)]
    for process in mine:
        _quietly(process.terminate)
    _, alive = psutil.wait_procs(mine, timeout=5)
    for process in alive:
        _quietly(process.kill)
    psutil.wait_procs(alive, timeout=5)


def _belongs(process: psutil.Process, place: Path) -> bool:
    try:
        return process.pid != os.getpid() and any(f"{place}/" in part for part in process.cmdline())
    except psutil.Error:
        return False


def _quietly(action: object) -> None:
    try:
        assert callable(action)
        action()
    except psutil.Error:
        pass
