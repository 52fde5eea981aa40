"""Pools, volumes, uploads and downloads through the real daemon's socket and the Python client, on a fake host."""

from __future__ import annotations

import asyncio
import hashlib
import os
import tempfile
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from virtd_client import AsyncClient, Client, errors

from tests.support.daemons import HOST, MIB, running_lab
from virtd.v1 import storage_pb2 as pb
from virtd.v1 import upload_pb2 as up
from virtd.v1.guest_pb2 import DISK_FORMAT_RAW
from virtd.v1.storage_pb2_grpc import PoolServiceStub, VolumeServiceStub
from virtd.v1.upload_pb2_grpc import UploadServiceStub

PARENT = f"hosts/{HOST}"
POOL = f"{PARENT}/pools/p"


@pytest.fixture
async def place() -> AsyncIterator[Path]:
    with tempfile.TemporaryDirectory(prefix="vt-") as name:
        (Path(name) / "disks").mkdir()
        yield Path(name)


@pytest.fixture
async def client(place: Path) -> AsyncIterator[AsyncClient]:
    async with (
        running_lab(place, storage={"allowed_directories": [str(place / "disks")]}),
        AsyncClient.connect(f"unix:{place}/virtd.sock") as made,
    ):
        yield made


async def test_the_way_of_a_disk_through_the_client(client: AsyncClient, place: Path) -> None:
    checked = await client.pools.create_directory(PARENT, "p", str(place / "disks" / "p"), validate_only=True)
    assert checked.validated_only
    pool = await (await client.pools.create_directory(PARENT, "p", str(place / "disks" / "p"))).result(10)
    assert (pool.name, pool.state) == (POOL, pb.POOL_STATE_ACTIVE)
    assert (await (await client.pools.update(POOL, autostart=True)).result(10)).autostart
    assert (await (await client.pools.stop(POOL)).result(10)).state == pb.POOL_STATE_INACTIVE
    assert (await (await client.pools.start(POOL)).result(10)).state == pb.POOL_STATE_ACTIVE
    await (await client.pools.refresh(POOL)).result(10)
    for other in (
        await client.pools.create_nfs(PARENT, "n", "files.example", "/e", str(place / "disks" / "n"), autostart=True),
        await client.pools.create_logical(PARENT, "l", "vg0"),
    ):
        made = await other.result(10)
        assert made.source in ("files.example:/e", "vg0")
        await (await client.pools.delete(made.name)).result(10)

    source = place / "source.raw"
    with source.open("wb") as file:
        file.write(os.urandom(3 * MIB))
        file.truncate(5 * MIB)
    told: list[tuple[int, int]] = []
    operation = await client.volumes.upload(
        POOL, "v", source, "raw", progress=lambda done, size: told.append((done, size))
    )
    volume = await operation.result(20)
    assert volume.name == f"{POOL}/volumes/v"
    assert told[0] == (0, 5 * MIB)
    assert told[-1] == (5 * MIB, 5 * MIB)
    assert await client.uploads.list() == ()
    clone = await (await client.volumes.clone(volume.name, "w")).result(20)
    assert (await (await client.volumes.resize(clone.name, 6 * MIB)).result(20)).capacity_bytes == 6 * MIB
    target = place / "target.raw"
    await client.volumes.download(clone.name, target)
    assert target.read_bytes() == source.read_bytes() + bytes(MIB)
    made_full = await client.volumes.create(POOL, "full", MIB, preallocation="full")
    await made_full.result(10)
    for each in await client.volumes.list(POOL):
        await (await client.volumes.delete(each.name)).result(10)
    await (await client.pools.delete(POOL, remove_directory=True)).result(10)
    assert POOL not in [entry.name for entry in await client.pools.list(PARENT)]


async def test_the_sync_client_does_the_same(client: AsyncClient, place: Path) -> None:
    await (await client.pools.create_directory(PARENT, "p", str(place / "disks" / "p"))).result(10)
    source, target = place / "source.raw", place / "target.raw"
    source.write_bytes(os.urandom(2 * MIB))

    def work() -> None:
        with Client.connect(f"unix:{place}/virtd.sock") as sync:
            volume = sync.volumes.upload(POOL, "v", source, "raw").result(20)
            assert sync.volumes.download(volume.name, target) == "raw"

    await asyncio.to_thread(work)
    assert target.read_bytes() == source.read_bytes()


async def test_an_upload_by_hand(client: AsyncClient, place: Path) -> None:
    await (await client.pools.create_directory(PARENT, "p", str(place / "disks" / "p"))).result(10)
    upload = await client.uploads.start_volume(POOL, "v", 1024, "raw")
    assert (upload.kind, upload.target) == (up.UPLOAD_KIND_VOLUME, f"{POOL}/volumes/v")
    assert upload.caller.startswith("unix:")
    stub = UploadServiceStub(client._transport.channel)
    requests = [
        up.WriteUploadRequest(start=up.UploadStart(name=upload.name)),
        up.WriteUploadRequest(data=b"x" * 1000),
        up.WriteUploadRequest(zero_bytes=24),
    ]
    received = [answer.upload.received_bytes async for answer in stub.WriteUpload(iter(requests))]
    assert received == [0, 1024]
    assert (await client.uploads.get(upload.name)).received_bytes == 1024
    checked = await client.uploads.commit(upload.name, "", validate_only=True)
    assert checked.validated_only
    digest = hashlib.sha256(b"x" * 1000 + bytes(24)).hexdigest()
    volume = await (await client.uploads.commit(upload.name, f"sha256:{digest}")).result(10)
    assert volume.capacity_bytes == 1024
    second = await client.uploads.start_volume(POOL, "w", 1024, "raw")
    await client.uploads.delete(second.name)
    with pytest.raises(errors.NotFound):
        await client.uploads.get(second.name)


async def _field(client: AsyncClient, call: Any) -> tuple[str, str]:
    """The reason, and the first field concerned, of a call that fails."""
    try:
        if hasattr(call, "__aiter__"):
            async for _ in call:
                pass
        else:
            await call
    except Exception as raised:
        error = client._transport.error(raised)  # type: ignore[arg-type]  # an RpcError
        return error.reason, error.violations[0].field if error.violations else ""
    return "", ""


async def test_requests_that_cannot_be(client: AsyncClient, place: Path) -> None:
    await (await client.pools.create_directory(PARENT, "p", str(place / "disks" / "p"))).result(10)
    channel = client._transport.channel
    pools, volumes, uploads = PoolServiceStub(channel), VolumeServiceStub(channel), UploadServiceStub(channel)
    start, volume = up.StartUploadRequest, up.VolumeUpload(parent=POOL, volume_id="v")
    write, missing = up.WriteUploadRequest, up.UploadStart(name="uploads/none")
    directory = pb.DirectoryPool(path=str(place / "disks" / "q"))
    # One for each stream: they all run at once, and the second to the same would take it over.
    opened = [(await client.uploads.start_volume(POOL, f"u{index}", 1024, "raw")).name for index in range(4)]
    starts = iter([up.UploadStart(name=name) for name in opened])
    name = f"{POOL}/volumes/v"
    rows: list[tuple[Any, str, str]] = [
        (pools.CreatePool(pb.CreatePoolRequest(parent=PARENT, pool_id="q")), "FIELD_INVALID", "kind"),
        (
            pools.CreatePool(pb.CreatePoolRequest(parent=PARENT, pool_id="Q", directory=directory)),
            "FIELD_INVALID",
            "pool_id",
        ),
        (
            pools.CreatePool(pb.CreatePoolRequest(parent="x", pool_id="q", directory=directory)),
            "FIELD_INVALID",
            "parent",
        ),
        (pools.StartPool(pb.StartPoolRequest(name="hosts/x")), "FIELD_INVALID", "name"),
        (pools.DeletePool(pb.DeletePoolRequest(name=f"{PARENT}/pools/none")), "POOL_NOT_FOUND", ""),
        (volumes.ResizeVolume(pb.ResizeVolumeRequest(name=name)), "FIELD_INVALID", "capacity_bytes"),
        (volumes.ResizeVolume(pb.ResizeVolumeRequest(name=name, capacity_bytes=MIB)), "VOLUME_NOT_FOUND", ""),
        (volumes.CloneVolume(pb.CloneVolumeRequest(name=name)), "FIELD_INVALID", "volume_id"),
        (
            volumes.CloneVolume(
                pb.CloneVolumeRequest(name=name, volume_id="w", destination_parent="hosts/other/pools/p")
            ),
            "FIELD_INVALID",
            "destination_parent",
        ),
        (
            volumes.CreateVolume(
                pb.CreateVolumeRequest(parent=POOL, volume_id="v", capacity_bytes=MIB, preallocation=9)  # type: ignore[arg-type]  # no such number
            ),
            "FIELD_INVALID",
            "preallocation",
        ),
        (volumes.DownloadVolume(pb.DownloadVolumeRequest(name=POOL)), "FIELD_INVALID", "name"),
        (volumes.DownloadVolume(pb.DownloadVolumeRequest(name=name)), "VOLUME_NOT_FOUND", ""),
        (volumes.DownloadVolume(pb.DownloadVolumeRequest(name=name, offset=1)), "FIELD_INVALID", "etag"),
        (uploads.StartUpload(start(size_bytes=512, format=DISK_FORMAT_RAW)), "FIELD_INVALID", "target"),
        (uploads.StartUpload(start(volume=volume, size_bytes=512)), "FIELD_INVALID", "format"),
        (uploads.StartUpload(start(volume=volume, format=DISK_FORMAT_RAW)), "FIELD_INVALID", "size_bytes"),
        (
            uploads.StartUpload(
                start(volume=up.VolumeUpload(parent="x", volume_id="v"), size_bytes=512, format=DISK_FORMAT_RAW)
            ),
            "FIELD_INVALID",
            "volume.parent",
        ),
        (
            uploads.StartUpload(
                start(volume=up.VolumeUpload(parent=POOL, volume_id="../v"), size_bytes=512, format=DISK_FORMAT_RAW)
            ),
            "FIELD_INVALID",
            "volume.volume_id",
        ),
        (
            uploads.StartUpload(start(image=up.ImageUpload(image_id=""), size_bytes=512, format=DISK_FORMAT_RAW)),
            "FIELD_INVALID",
            "image.image_id",
        ),
        (uploads.GetUpload(up.GetUploadRequest(name="uploads/none")), "UPLOAD_NOT_FOUND", ""),
        (uploads.GetUpload(up.GetUploadRequest(name="none")), "FIELD_INVALID", "name"),
        (uploads.DeleteUpload(up.DeleteUploadRequest(name="uploads/none")), "UPLOAD_NOT_FOUND", ""),
        (uploads.CommitUpload(up.CommitUploadRequest(name="uploads/none")), "UPLOAD_NOT_FOUND", ""),
        (uploads.WriteUpload(iter([])), "FIELD_INVALID", "start"),
        (uploads.WriteUpload(iter([write(data=b"x")])), "FIELD_INVALID", "start"),
        (uploads.WriteUpload(iter([write(start=missing)])), "UPLOAD_NOT_FOUND", ""),
        (uploads.WriteUpload(iter([write(start=next(starts)), write(start=missing)])), "FIELD_INVALID", "start"),
        (uploads.WriteUpload(iter([write(start=next(starts)), write()])), "FIELD_INVALID", "request"),
        (uploads.WriteUpload(iter([write(start=next(starts)), write(data=bytes(1025))])), "FIELD_INVALID", "data"),
        (uploads.WriteUpload(iter([write(start=next(starts)), write(zero_bytes=2**63)])), "FIELD_INVALID", "data"),
    ]
    for call, reason, field in rows:
        assert await _field(client, call) == (reason, field)
    assert [upload.received_bytes for upload in await client.uploads.list()] == [0] * 4
    assert not await client.volumes.list(POOL)
    assert [entry.name for entry in await client.pools.list(PARENT)] == [POOL]
