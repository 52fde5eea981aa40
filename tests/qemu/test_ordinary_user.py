"""A private session daemon for a user without privileges, in a directory with a long name."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import libvirt
import pytest
import virtd_kvm

import virtd
from tests.guests.cache import cache_root

NOBODY = 65534
SCRIPT = """
import asyncio, sys
from uuid import uuid4
from virtd.backend.api import *
from virtd.model.guest import *
from virtd.libvirt.private import PrivateLibvirt
from virtd_kvm.backend import KvmBackend

class Context:
    operation_id, deadline_s = "", None
    def progress(self, *_, **__): pass
    def checkpoint(self): pass

async def main(directory):
    backend, context = KvmBackend(), Context()
    candidate = await backend.embedded(directory)
    try:
        session = await backend.open(HostConfig("x", candidate.uri, directory))
        await session.facets.storage.ensure_default_pool(context)
        volume = await session.facets.storage.create_volume(
            VolumeRequest("virtd", "v.qcow2", DiskFormat.QCOW2, 1 << 26), context)
        disk = ResolvedDisk("v", volume.path, DiskFormat.QCOW2, DiskBus.VIRTIO)
        guest = ResolvedGuest(uuid4(), "a-guest-with-quite-a-long-name", 1, 1 << 25, Accelerator.TCG, disks=(disk,))
        await session.define_guest(guest, context)
        await session.start_guest(guest.uuid, context)
        print("STATE", (await session.get_guest(guest.uuid)).state.value)
        await session.stop_guest(guest.uuid, context)
        await session.close()
    finally:
        await PrivateLibvirt(directory).stop()
    print("STOPPED", PrivateLibvirt(directory).pid)

asyncio.run(main(sys.argv[1]))
"""


@pytest.fixture
def home() -> Iterator[Path]:
    """A directory of nobody's, as deep as a state directory is."""
    top = Path(tempfile.mkdtemp(prefix="virtd-nobody-"))
    path = top / "home" / "somebody" / ".local" / "state" / "virtd" / "hosts" / "local"
    path.mkdir(parents=True)
    # As /run/user/1000 is: short, and somewhere else.
    runtime = Path(tempfile.mkdtemp(prefix="vr", dir="/tmp"))
    os.chown(runtime, NOBODY, NOBODY)
    (path / "runtime").symlink_to(runtime)
    for made in (top, *top.rglob("*")):
        os.chown(made, NOBODY, NOBODY, follow_symlinks=False)
    try:
        yield path
    finally:
        shutil.rmtree(top)
        shutil.rmtree(runtime)


def as_nobody(command: list[str], home: Path) -> subprocess.CompletedProcess[str]:
    packages = {Path(module.__file__).resolve().parent for module in (libvirt,)}
    packages |= {Path(package.__file__).resolve().parents[1] for package in (virtd, virtd_kvm)}
    environment = {
        "PATH": "/usr/bin:/bin:/usr/sbin",
        "HOME": str(home),
        "XDG_RUNTIME_DIR": str((home / "runtime").readlink()),
        "PYTHONPATH": ":".join(map(str, sorted(packages))),
        "PYTHONDONTWRITEBYTECODE": "1",
    }
    return subprocess.run(
        command,
        env=environment,
        cwd="/",
        user=NOBODY,
        group=NOBODY,
        extra_groups=[],
        capture_output=True,
        text=True,
        check=False,
        timeout=100,
    )


def interpreter(home: Path) -> str:
    """A Python that nobody may run: the tests' own can lie in somebody's home."""
    for candidate in (sys.executable, f"/usr/bin/python3.{sys.version_info.minor}"):
        try:
            if as_nobody([candidate, "-c", "import libvirt, lxml, virtd_kvm"], home).returncode == 0:
                return candidate
        except OSError:
            continue
    pytest.skip("no Python interpreter of this version can be run by another user on this machine")


@pytest.mark.skipif(os.geteuid() != 0, reason="starts a process as another user, which only root can do")
def test_ordinary_user_gets_a_working_daemon(home: Path) -> None:
    # The cache spares the examination of the emulators; theirs is not readable for others, so copy it.
    known = cache_root() / "libvirt" / "qemu"
    if known.is_dir():
        shutil.copytree(known, home / "cache" / "libvirt" / "qemu")
        for made in (home / "cache", *(home / "cache").rglob("*")):
            os.chown(made, NOBODY, NOBODY)
    done = as_nobody([interpreter(home), "-c", SCRIPT, str(home)], home)
    assert done.returncode == 0, done.stderr
    assert "STATE RUNNING" in done.stdout and "STOPPED None" in done.stdout
