"""Pools and volumes on a real libvirt."""

from __future__ import annotations

import asyncio
import os
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from uuid import uuid4

import libvirt
import pytest

from tests.qemu.fixtures import MIB, Context, Lab
from virtd.backend.api import HostConfig, StorageFacet, VolumeRequest
from virtd.errors import VirtdError
from virtd.libvirt.places import SYSTEM_POOL, default_pool_path
from virtd.model.guest import DiskFormat
from virtd.model.storage import PoolState

QCOW2, RAW = DiskFormat.QCOW2, DiskFormat.RAW


def storage_of(lab: Lab) -> StorageFacet:
    storage = lab.session.facets.storage
    assert storage is not None
    return storage


def qemu_info(path: str) -> str:
    return subprocess.run(["qemu-img", "info", path], capture_output=True, text=True, check=True).stdout


def same_content(raw: Path, qcow2: str) -> bool:
    command = ["qemu-img", "compare", "-f", "raw", "-F", "qcow2", str(raw), qcow2]
    return subprocess.run(command, check=False).returncode == 0


async def fails(call: object, reason: str) -> VirtdError:
    with pytest.raises(VirtdError) as failed:
        await call  # type: ignore[misc]  # any awaitable
    assert failed.value.reason.name == reason, failed.value
    return failed.value


async def test_default_pool_is_made_once(lab: Lab) -> None:
    first = await storage_of(lab).ensure_default_pool(Context())
    again = await storage_of(lab).ensure_default_pool(Context())
    assert (first.name, first.path, first.state) == ("virtd", str(lab.directory / "pool"), PoolState.ACTIVE)
    assert again.path == first.path
    assert [pool.name for pool in await storage_of(lab).list_pools()].count("virtd") == 1


async def test_default_pool_is_restarted(lab: Lab) -> None:
    await storage_of(lab).ensure_default_pool(Context())
    lab.virsh("pool-destroy", "virtd")
    (pool,) = [pool for pool in await storage_of(lab).list_pools() if pool.name == "virtd"]
    assert (pool.state, pool.capacity_bytes) == (PoolState.INACTIVE, None)
    assert (await storage_of(lab).ensure_default_pool(Context())).state is PoolState.ACTIVE


@pytest.mark.parametrize("format_", [QCOW2, RAW])
async def test_blank_volume(lab: Lab, format_: DiskFormat) -> None:
    name = f"blank-{uuid4().hex[:6]}"
    disk = await lab.volume(name, format_, capacity_bytes=8 * MIB)
    assert disk.path == await storage_of(lab).volume_path("virtd", name)
    assert f"file format: {format_.value.lower()}" in qemu_info(disk.path)
    assert Path(disk.path).stat().st_blocks * 512 < MIB
    await fails(storage_of(lab).create_volume(VolumeRequest("virtd", name, format_, MIB), Context()), "VOLUME_EXISTS")
    (listed,) = [volume for volume in await storage_of(lab).list_volumes("virtd") if volume.name == name]
    assert (listed.capacity_bytes, listed.format) == (8 * MIB, format_.value.lower())
    await storage_of(lab).delete_volume("virtd", name, Context())
    await storage_of(lab).delete_volume("virtd", name, Context())
    assert not Path(disk.path).exists()


async def test_file_made_behind_the_pools_back_is_not_overwritten(lab: Lab) -> None:
    pool = await storage_of(lab).ensure_default_pool(Context())
    path = Path(pool.path) / f"precious-{uuid4().hex[:6]}"
    path.write_bytes(b"precious")
    try:
        request = VolumeRequest("virtd", path.name, RAW, MIB)
        await fails(storage_of(lab).create_volume(request, Context()), "VOLUME_EXISTS")
        assert path.read_bytes() == b"precious"
    finally:
        await storage_of(lab).delete_volume("virtd", path.name, Context())
    assert not path.exists()


@pytest.fixture
def holes(tmp_path: Path) -> Path:
    """A raw file of 64 MiB with data at both ends and a hole between."""
    path = tmp_path / "holes.raw"
    with path.open("wb") as file:
        file.write(b"begin" * 1000)
        file.seek(64 * MIB - 5)
        file.write(b"ended")
    return path


async def test_copy_keeps_holes_and_reports_bytes(lab: Lab, holes: Path) -> None:
    name, context = f"copy-{uuid4().hex[:6]}", Context()
    lab.volumes.append(name)
    request = VolumeRequest("virtd", name, RAW, None, str(holes), RAW)
    made = await storage_of(lab).create_volume(request, context)
    assert Path(made.path).read_bytes() == holes.read_bytes()
    assert Path(made.path).stat().st_blocks * 512 < 2 * MIB
    assert (made.capacity_bytes, made.format) == (64 * MIB, "raw")
    assert context.fractions[-1] == 1.0 and context.bytes_done[-1] == 64 * MIB


async def test_copy_of_qcow2_grows(lab: Lab) -> None:
    name = f"grown-{uuid4().hex[:6]}"
    lab.volumes.append(name)
    request = VolumeRequest("virtd", name, QCOW2, 2048 * MIB, str(lab.demo.disk), QCOW2)
    made = await storage_of(lab).create_volume(request, Context())
    assert (made.capacity_bytes, made.format, made.backing_path) == (2048 * MIB, "qcow2", "")
    assert "virtual size: 2 GiB" in qemu_info(made.path)


async def test_conversion_by_the_host(lab: Lab, holes: Path) -> None:
    name = f"converted-{uuid4().hex[:6]}"
    lab.volumes.append(name)
    made = await storage_of(lab).create_volume(VolumeRequest("virtd", name, QCOW2, None, str(holes), RAW), Context())
    assert (made.format, made.capacity_bytes) == ("qcow2", 64 * MIB)
    assert same_content(holes, made.path)
    pools = {pool.name for pool in await storage_of(lab).list_pools()}
    assert not [pool for pool in pools if pool.startswith("virtd-")], "the source's pool is gone"


async def test_overlay_of_raw_and_of_qcow2(lab: Lab, holes: Path) -> None:
    for source, format_ in ((holes, RAW), (lab.demo.disk, QCOW2)):
        name = f"overlay-{uuid4().hex[:6]}"
        lab.volumes.append(name)
        request = VolumeRequest("virtd", name, QCOW2, None, str(source), format_, overlay=True)
        made = await storage_of(lab).create_volume(request, Context())
        assert made.backing_path == str(source)
        assert f"backing file format: {format_.value.lower()}" in qemu_info(made.path)
        assert Path(made.path).stat().st_size < MIB


async def test_wrong_formats_and_names_leave_nothing(lab: Lab, holes: Path, tmp_path: Path) -> None:
    storage = storage_of(lab)
    await storage.ensure_default_pool(Context())
    before = {volume.name for volume in await storage.list_volumes("virtd")}
    disguised = tmp_path / "disguised.raw"
    disguised.write_bytes(lab.demo.disk.read_bytes())

    async def refused(reason: str, *request: object, **fields: object) -> None:
        await fails(storage.create_volume(VolumeRequest("virtd", *request, **fields), Context()), reason)  # type: ignore[arg-type]

    await refused("IMAGE_INVALID", "x", QCOW2, None, str(holes), QCOW2)
    await refused("IMAGE_INVALID", "x", QCOW2, None, str(holes), QCOW2, overlay=True)
    await refused("IMAGE_INVALID", "x", RAW, None, str(holes), QCOW2)
    await refused("IMAGE_INVALID", "x", RAW, None, str(disguised), RAW)
    await refused("FIELD_INVALID", "a/b", QCOW2, MIB)
    await refused("FIELD_INVALID", "..", QCOW2, MIB)
    await refused("FIELD_INVALID", "x", QCOW2)
    await refused("FIELD_INVALID", "x", RAW, None, str(holes), RAW, overlay=True)
    with pytest.raises(VirtdError):
        await storage.create_volume(VolumeRequest("virtd", "x", QCOW2, None, "/no/such/file", QCOW2), Context())
    await fails(storage.create_volume(VolumeRequest("none", "x", QCOW2, MIB), Context()), "POOL_NOT_FOUND")
    await fails(storage.list_volumes("none"), "POOL_NOT_FOUND")
    await storage.delete_volume("none", "x", Context())
    assert {volume.name for volume in await storage.list_volumes("virtd")} == before


async def test_cancelled_copy_is_undone(lab: Lab, tmp_path: Path) -> None:
    big = tmp_path / "big.raw"
    with big.open("wb") as file:
        for _ in range(32):
            file.write(os.urandom(8 * MIB))
    storage, context, name = storage_of(lab), Context(), f"big-{uuid4().hex[:6]}"
    pool = await storage.ensure_default_pool(Context())
    work = asyncio.create_task(storage.create_volume(VolumeRequest("virtd", name, RAW, None, str(big), RAW), context))
    path = Path(pool.path) / name
    while not path.exists() or path.stat().st_blocks == 0:
        assert not work.done(), "too quick to be cancelled: make the file larger"
        await asyncio.sleep(0.005)
    context.cancel()
    async with asyncio.timeout(10):
        await fails(work, "OPERATION_CANCELLED")
    assert not path.exists()


@pytest.mark.parametrize("how", ["blank", "overlay", "upload", "convert"])
async def test_volume_that_cannot_be_read_is_not_left(
    lab: Lab, holes: Path, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    storage, name = storage_of(lab), f"unread-{uuid4().hex[:6]}"
    requests = {
        "blank": VolumeRequest("virtd", name, QCOW2, MIB),
        "overlay": VolumeRequest("virtd", name, QCOW2, None, str(lab.demo.disk), QCOW2, overlay=True),
        "upload": VolumeRequest("virtd", name, RAW, None, str(holes), RAW),
        "convert": VolumeRequest("virtd", name, QCOW2, None, str(holes), RAW),
    }
    path = Path((await storage.ensure_default_pool(Context())).path) / name
    read, existed = libvirt.virStorageVol.XMLDesc, []

    def fail(volume: Any, flags: int = 0) -> str:
        if volume.name() == name:
            existed.append(path.exists())
            raise libvirt.libvirtError("told to fail")
        return str(read(volume, flags))

    with monkeypatch.context() as patched:
        patched.setattr(libvirt.virStorageVol, "XMLDesc", fail)
        await fails(storage.create_volume(requests[how], Context()), "BACKEND_ERROR")
    assert existed == [True]
    assert not path.exists()
    lab.volumes.append(name)
    await storage.create_volume(requests[how], Context())


@pytest.mark.parametrize("how", ["upload", "convert"])
async def test_cancel_that_comes_when_the_copy_is_made(
    lab: Lab, holes: Path, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    """The last moment: all bytes are there, and only the answer is missing."""
    storage, context, name = storage_of(lab), Context(), f"late-{uuid4().hex[:6]}"
    path = Path((await storage.ensure_default_pool(Context())).path) / name
    read, existed = libvirt.virStorageVol.XMLDesc, []

    def read_late(volume: Any, flags: int = 0) -> str:
        if volume.name() == name:
            existed.append(path.exists())
            context.cancel()
            time.sleep(1)  # it is looked at four times a second whether somebody has cancelled
        return str(read(volume, flags))

    monkeypatch.setattr(libvirt.virStorageVol, "XMLDesc", read_late)
    request = VolumeRequest("virtd", name, RAW if how == "upload" else QCOW2, None, str(holes), RAW)
    await fails(storage.create_volume(request, context), "OPERATION_CANCELLED")
    assert existed == [True]
    assert not path.exists()


@pytest.fixture
def tiny_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 2 MiB.  Needs the right to mount, which the private system daemon needs as well."""
    path = tmp_path / "tiny"
    path.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(path)], check=True)
    try:
        yield path
    finally:
        subprocess.run(["umount", "--lazy", str(path)], check=True)


@pytest.mark.parametrize("how", ["upload", "convert"])
async def test_full_disk(lab: Lab, tiny_disk: Path, tmp_path: Path, how: str) -> None:
    # The daemon's mount namespace does not see mounts that are made later: go through the host's root.
    pool_path = Path(f"/proc/{os.getpid()}/root") / str(tiny_disk).lstrip("/")
    source = tmp_path / "source.raw"
    source.write_bytes(os.urandom(6 * MIB))
    name = f"tiny-{uuid4().hex[:6]}"
    lab.virsh("pool-create-as", name, "dir", "--target", str(pool_path))
    try:
        wanted = RAW if how == "upload" else QCOW2
        request = VolumeRequest(name, "v", wanted, None, str(source), RAW)
        await fails(storage_of(lab).create_volume(request, Context()), "STORAGE_FULL")
        assert not list(tiny_disk.iterdir())
    finally:
        lab.virsh("pool-destroy", name)


@pytest.mark.parametrize(
    ("uri", "options", "path"),
    [
        ("qemu:///system?socket=/run/x", {}, "/state/pool"),
        ("qemu:///session", {}, "/state/pool"),
        ("qemu:///system", {}, SYSTEM_POOL),
        ("qemu+ssh://host/system", {}, SYSTEM_POOL),
        ("qemu+tls://host/session", {}, None),
        ("qemu+ssh://host/session", {"pool_directory": "/home/x/disks"}, "/home/x/disks"),
        ("test:///default", {}, "/state/pool"),
    ],
)
def test_where_the_default_pool_lies(uri: str, options: dict[str, str], path: str | None) -> None:
    assert default_pool_path(HostConfig("h", uri, "/state", options=options)) == path
