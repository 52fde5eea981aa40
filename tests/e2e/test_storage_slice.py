"""Pools and volumes through the public API, on a real libvirt: what is stored is what was sent."""

from __future__ import annotations

import contextlib
import hashlib
import os
import subprocess
import time
import uuid
from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest
from virtd_client import Client, errors

from tests.e2e.conftest import MIB, Virtd
from virtd.v1.guest_pb2 import DiskSpec, Guest, GuestSpec
from virtd.v1.storage_pb2 import POOL_STATE_ACTIVE, POOL_STATE_INACTIVE, DownloadVolumeRequest
from virtd.v1.storage_pb2_grpc import VolumeServiceStub
from virtd.v1.upload_pb2 import UploadStart, WriteUploadRequest
from virtd.v1.upload_pb2_grpc import UploadServiceStub

pytestmark = pytest.mark.qemu

HOST = "hosts/kvm"


def new_id(what: str) -> str:
    return f"{what}-{uuid.uuid4().hex[:6]}"


def sha256(path: str | Path) -> str:
    with Path(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def make_file(path: Path, mib: int, *, holes: bool = False) -> str:
    """A file of random bytes, of which only the first and the last MiB are there with ``holes``; its digest."""
    with path.open("wb") as file:
        for index in range(mib):
            if holes and index not in (0, mib - 1):
                file.seek(MIB, os.SEEK_CUR)
            else:
                file.write(os.urandom(MIB))
    return sha256(path)


def qemu_img(*arguments: str) -> str:
    return subprocess.run(["qemu-img", *arguments], check=True, capture_output=True, text=True).stdout


@contextlib.contextmanager
def made_pool(virtd: Virtd, name: str = "") -> Iterator[tuple[str, Path]]:
    """A directory pool of a test: its name and directory."""
    pool_id = name or new_id("pool")
    directory = virtd.directory / "import" / pool_id
    with Client.connect(virtd.target, timeout_s=60) as client:
        pool = client.pools.create_directory(HOST, pool_id, str(directory)).result(timeout_s=60)
        try:
            yield pool.name, directory
        finally:
            for upload in client.uploads.list():
                client.uploads.delete(upload.name)
            for guest in client.guests.list().guests:
                if "delete" in guest.status.allowed_actions:
                    client.guests.delete(guest.name, force=True).result(timeout_s=60)
            for entry in client.pools.list(HOST):
                if entry.name == pool.name:
                    client.pools.start(pool.name).result(timeout_s=60)
                    for volume in client.volumes.list(pool.name):
                        client.volumes.delete(volume.name).result(timeout_s=60)
                    client.pools.delete(pool.name, remove_directory=True).result(timeout_s=60)


@pytest.fixture
def pool(virtd: Virtd) -> Iterator[tuple[str, Path]]:
    with made_pool(virtd) as made:
        yield made


def guest_with(volume: str) -> Guest:
    return Guest(spec=GuestSpec(memory_bytes=32 * MIB, disks=[DiskSpec(name="data", volume=volume)]))


def test_the_life_of_a_pool(virtd: Virtd, tmp_path: Path) -> None:
    client, pool_id = virtd.client(), new_id("life")
    directory = virtd.directory / "import" / pool_id
    checked = client.pools.create_directory(HOST, pool_id, str(directory), validate_only=True)
    assert checked.name == ""
    assert not directory.exists()
    made = client.pools.create_directory(HOST, pool_id, str(directory), autostart=True).result(timeout_s=60)
    name = f"{HOST}/pools/{pool_id}"
    assert (made.name, made.kind, made.path, made.state) == (name, "dir", str(directory), POOL_STATE_ACTIVE)
    assert made.autostart
    assert made.capacity_bytes > 0
    assert name in [entry.name for entry in client.pools.list(HOST)]

    # Neither the name nor the place is given twice, however the place is spelt.
    with pytest.raises(errors.AlreadyExists) as refused:
        client.pools.create_directory(HOST, pool_id, str(directory) + "-other")
    assert refused.value.reason == "POOL_EXISTS"
    link = virtd.directory / "import" / f"{pool_id}-link"
    link.symlink_to(directory)
    for spelling in (f"{directory}/", f"{directory}/./", str(link)):
        with pytest.raises(errors.AlreadyExists) as refused:
            client.pools.create_directory(HOST, "again", spelling)
        assert refused.value.reason == "POOL_EXISTS"
    # Outside the allowed directories, also by a link, and within what is virtd's own.
    link.unlink()
    link.symlink_to(tmp_path)
    for outside in ("/etc", str(link / "x"), str(virtd.directory / "hosts"), str(virtd.directory)):
        with pytest.raises(errors.InvalidArgument) as wrong:
            client.pools.create_directory(HOST, "outside", outside)
        assert wrong.value.reason == "PATH_NOT_ALLOWED"
        assert wrong.value.violations[0].field == "directory.path"
    link.unlink()

    # Stopped is stopped: looking at its volumes does not start it again.
    assert client.pools.stop(name).result(timeout_s=60).state == POOL_STATE_INACTIVE
    for use in (
        lambda: client.volumes.list(name),
        lambda: client.volumes.create(name, "v", MIB),
        lambda: client.uploads.start_volume(name, "v", MIB, "raw"),
        lambda: client.pools.refresh(name),
    ):
        with pytest.raises(errors.FailedPrecondition) as stopped:
            use()
        assert stopped.value.reason == "POOL_INACTIVE"
    assert client.pools.get(name).state == POOL_STATE_INACTIVE
    assert client.pools.start(name).result(timeout_s=60).state == POOL_STATE_ACTIVE
    assert not client.pools.update(name, autostart=False).result(timeout_s=60).autostart
    assert "no" in virtd.virsh("pool-info", pool_id).partition("Autostart:")[2].split()

    # What comes behind virtd's back is seen, and never deleted with the pool.
    (directory / "stranger.raw").write_bytes(b"precious" * 64)
    client.pools.refresh(name).result(timeout_s=60)
    assert [entry.name for entry in client.volumes.list(name)] == [f"{name}/volumes/stranger.raw"]
    with pytest.raises(errors.FailedPrecondition) as not_empty:
        client.pools.delete(name, remove_directory=True)
    assert not_empty.value.reason == "POOL_NOT_EMPTY"
    (directory / "folder").mkdir()  # is no volume
    client.volumes.delete(f"{name}/volumes/stranger.raw").result(timeout_s=60)
    with pytest.raises(errors.FailedPrecondition) as not_empty:
        client.pools.delete(name, remove_directory=True).result(timeout_s=60)
    assert not_empty.value.reason == "POOL_NOT_EMPTY"
    assert client.pools.get(name).state == POOL_STATE_ACTIVE, "a refused deletion stopped the pool"
    client.pools.delete(name).result(timeout_s=60)
    with pytest.raises(errors.NotFound) as gone:
        client.pools.get(name)
    assert gone.value.reason == "POOL_NOT_FOUND"
    (directory / "folder").rmdir()
    directory.rmdir()  # which it left


def test_a_pool_that_guests_use_is_kept(virtd: Virtd, pool: tuple[str, Path]) -> None:
    client, (name, _) = virtd.client(), pool
    volume = client.volumes.create(name, "disk", MIB, format="raw").result(timeout_s=60)
    guest = client.guests.create(HOST, new_id("user"), guest_with(volume.name), start=True).result(timeout_s=90)
    for refused in (lambda: client.pools.stop(name), lambda: client.pools.delete(name)):
        with pytest.raises(errors.FailedPrecondition) as used:
            refused()
        assert used.value.reason == "POOL_IN_USE"
        assert used.value.metadata["used_by"] == guest.name
    client.guests.stop(guest.name).result(timeout_s=60)
    with pytest.raises(errors.FailedPrecondition):
        client.pools.delete(name)
    client.pools.stop(name).result(timeout_s=60)


def test_kinds_of_pools_that_this_machine_cannot_start_leave_nothing(virtd: Virtd) -> None:
    """libvirt takes the configuration; what is missing (the volume group, the server) is said when it starts."""
    client = virtd.client()
    mount = virtd.directory / "import" / new_id("mount")
    before = {entry.name for entry in client.pools.list(HOST)}
    for operation in (
        client.pools.create_logical(HOST, "lvm", "no-such-group"),
        client.pools.create_nfs(HOST, "nfs", "127.0.0.1", "/no/such/export", str(mount)),
    ):
        with pytest.raises(errors.VirtdError) as failed:
            operation.result(timeout_s=120)
        assert failed.value.native is not None, failed.value
    assert {entry.name for entry in client.pools.list(HOST)} == before
    assert not mount.exists()


def test_content_survives_upload_clone_resize_and_download(
    virtd: Virtd, pool: tuple[str, Path], tmp_path: Path
) -> None:
    client, (name, directory) = virtd.client(), pool
    source = tmp_path / "source.raw"
    digest = make_file(source, 40, holes=True)
    told: list[tuple[int, int]] = []
    uploaded = client.volumes.upload(
        name, "data", source, "raw", progress=lambda done, size: told.append((done, size))
    ).result(timeout_s=120)
    assert (uploaded.name, uploaded.format, uploaded.capacity_bytes) == (f"{name}/volumes/data", "raw", 40 * MIB)
    assert sha256(directory / "data") == digest
    assert (directory / "data").stat().st_blocks * 512 < 4 * MIB, "holes were filled"
    assert told[-1] == (40 * MIB, 40 * MIB)
    assert not client.uploads.list()
    assert not list((virtd.directory / "uploads").iterdir())

    with made_pool(virtd) as (other, other_directory):
        twin = client.volumes.clone(uploaded.name, "twin", destination_parent=other).result(timeout_s=120)
        assert sha256(twin.path) == digest
        converted = client.volumes.clone(uploaded.name, "conv", format="qcow2").result(timeout_s=120)
        assert (converted.format, converted.capacity_bytes) == ("qcow2", 40 * MIB)
        assert "Images are identical" in qemu_img("compare", "-f", "raw", "-F", "qcow2", str(source), converted.path)
        # A clone of an overlay stands alone.
        overlay = other_directory / "overlay"
        qemu_img("create", "-q", "-f", "qcow2", "-b", converted.path, "-F", "qcow2", str(overlay))
        client.pools.refresh(other).result(timeout_s=60)
        whole = client.volumes.clone(f"{other}/volumes/overlay", "whole").result(timeout_s=120)
        assert not whole.backing_path
        assert "Images are identical" in qemu_img("compare", "-f", "raw", "-F", "qcow2", str(source), whole.path)
        # What others are based on keeps its size.
        with pytest.raises(errors.FailedPrecondition) as based:
            client.volumes.resize(converted.name, 80 * MIB)
        assert based.value.reason == "VOLUME_IN_USE"
        assert based.value.metadata["used_by"] == f"{other}/volumes/overlay"
        client.volumes.delete(f"{other}/volumes/overlay").result(timeout_s=60)

    grown = client.volumes.resize(converted.name, 80 * MIB).result(timeout_s=60)
    assert grown.capacity_bytes == 80 * MIB
    received = tmp_path / "received.qcow2"
    assert client.volumes.download(converted.name, received) == "qcow2"
    assert sha256(received) == sha256(converted.path)
    qemu_img("resize", "-q", "--shrink", str(received), str(40 * MIB))
    assert "Images are identical" in qemu_img("compare", "-f", "raw", "-F", "qcow2", str(source), str(received))
    raw = tmp_path / "received.raw"
    assert client.volumes.download(uploaded.name, raw) == "raw"
    assert sha256(raw) == digest
    assert raw.stat().st_blocks * 512 < 4 * MIB, "holes were filled"

    with pytest.raises(errors.FailedPrecondition) as shrunk:
        client.volumes.resize(uploaded.name, 20 * MIB)
    assert shrunk.value.reason == "SHRINK_REFUSED"
    assert sha256(uploaded.path) == digest
    small = client.volumes.resize(uploaded.name, 20 * MIB, allow_shrink=True).result(timeout_s=60)
    assert small.capacity_bytes == 20 * MIB


def test_a_volume_of_a_running_guest_is_left_alone(virtd: Virtd, pool: tuple[str, Path], tmp_path: Path) -> None:
    client, (name, _) = virtd.client(), pool
    volume = client.volumes.create(name, "disk", 4 * MIB, format="raw").result(timeout_s=60)
    guest = client.guests.create(HOST, new_id("busy"), guest_with(volume.name), start=True).result(timeout_s=90)
    target = tmp_path / "disk"
    for what, call in {
        "resize": lambda: client.volumes.resize(volume.name, 8 * MIB),
        "clone": lambda: client.volumes.clone(volume.name, "twin"),
        "download": lambda: client.volumes.download(volume.name, target),
        "delete": lambda: client.volumes.delete(volume.name),
    }.items():
        with pytest.raises(errors.FailedPrecondition) as used:
            call()
        assert used.value.reason == "VOLUME_IN_USE", what
        assert guest.name in used.value.metadata["used_by"]
        assert ("resize the disk of that guest instead" in used.value.message) == (what == "resize")
    assert list(tmp_path.iterdir()) == []
    client.guests.stop(guest.name).result(timeout_s=60)
    assert client.volumes.resize(volume.name, 8 * MIB).result(timeout_s=60).capacity_bytes == 8 * MIB
    with pytest.raises(errors.FailedPrecondition) as used:  # a guest that is stopped misses its end as well
        client.volumes.resize(volume.name, MIB, allow_shrink=True)
    assert used.value.reason == "VOLUME_IN_USE"
    client.volumes.download(volume.name, target)
    assert target.stat().st_size == 8 * MIB


def test_preallocation_takes_the_room_at_once(virtd: Virtd, pool: tuple[str, Path]) -> None:
    client, (name, _) = virtd.client(), pool

    def taken(volume_id: str, format_: str, preallocation: str) -> int:
        made = client.volumes.create(
            name,
            volume_id,
            16 * MIB,
            format=format_,
            preallocation=preallocation,  # type: ignore[arg-type]  # words
        ).result(timeout_s=60)
        assert (made.format, made.capacity_bytes) == (format_, 16 * MIB)
        return Path(made.path).stat().st_blocks * 512

    assert taken("raw-none", "raw", "none") < MIB
    assert taken("raw-full", "raw", "full") >= 16 * MIB
    assert taken("qcow2-none", "qcow2", "none") < MIB
    assert taken("qcow2-metadata", "qcow2", "metadata") < MIB
    assert taken("qcow2-full", "qcow2", "full") >= 16 * MIB
    assert Path(client.volumes.get(f"{name}/volumes/qcow2-metadata").path).stat().st_size > 16 * MIB
    with pytest.raises(errors.InvalidArgument) as wrong:
        client.volumes.create(name, "v", MIB, format="raw", preallocation="metadata")
    assert wrong.value.violations[0].field == "preallocation"


def cut_upload(client: Client, name: str, offset: int, data: bytes) -> None:
    """Send some bytes, wait until the daemon has taken them up, and drop the call."""
    stub = UploadServiceStub(client._transport.channel)  # the cut itself is what is tested

    def requests() -> Iterator[WriteUploadRequest]:
        yield WriteUploadRequest(start=UploadStart(name=name, offset=offset))
        for start in range(0, len(data), MIB):
            yield WriteUploadRequest(data=data[start : start + MIB])
        time.sleep(1.0)
        call.cancel()

    call = stub.WriteUpload(requests())
    with contextlib.suppress(Exception):
        for _ in call:
            pass


def test_an_upload_that_is_cut_goes_on_and_is_never_a_volume_before(
    virtd: Virtd, pool: tuple[str, Path], tmp_path: Path
) -> None:
    client, (name, directory) = virtd.client(), pool
    source = tmp_path / "source.raw"
    digest = make_file(source, 12)
    upload = client.uploads.start_volume(name, "cut", 12 * MIB, "raw")
    cut_upload(client, upload.name, 0, source.read_bytes()[: 5 * MIB])
    deadline = time.monotonic() + 30
    while (seen := client.uploads.get(upload.name)).received_bytes < 5 * MIB:
        assert time.monotonic() < deadline, seen
        time.sleep(0.05)
    assert seen.target == f"{name}/volumes/cut"
    assert not client.volumes.list(name)
    assert not list(directory.iterdir())
    with pytest.raises(errors.FailedPrecondition) as incomplete:
        client.uploads.commit(upload.name, "")
    assert incomplete.value.reason == "UPLOAD_INCOMPLETE"
    for offset in (0, 6 * MIB):
        with pytest.raises(grpc.RpcError) as wrong:
            list(
                UploadServiceStub(client._transport.channel).WriteUpload(
                    iter([WriteUploadRequest(start=UploadStart(name=upload.name, offset=offset))])
                )
            )
        error = client._transport.error(wrong.value)
        assert (error.reason, error.metadata["received_bytes"]) == ("UPLOAD_OFFSET_MISMATCH", str(5 * MIB))
    made = client.uploads.complete(upload, source).result(timeout_s=60)
    assert sha256(made.path) == digest
    assert not client.uploads.list()


def test_an_upload_with_another_content_makes_nothing(virtd: Virtd, pool: tuple[str, Path], tmp_path: Path) -> None:
    client, (name, directory) = virtd.client(), pool
    source = tmp_path / "source"
    make_file(source, 1)
    backing = tmp_path / "backing.qcow2"
    qemu_img("create", "-q", "-f", "qcow2", "-b", str(source), "-F", "raw", str(backing))
    plain = tmp_path / "plain.qcow2"
    qemu_img("create", "-q", "-f", "qcow2", str(plain), "4M")
    padded = tmp_path / "padded.raw"
    padded.write_bytes(plain.read_bytes().ljust(-(-plain.stat().st_size // 512) * 512, b"\0"))
    for path, format_, digest, reason in (
        (source, "raw", f"sha256:{'0' * 64}", "DIGEST_MISMATCH"),
        (source, "qcow2", f"sha256:{sha256(source)}", "IMAGE_INVALID"),
        (backing, "qcow2", f"sha256:{sha256(backing)}", "IMAGE_INVALID"),
        (padded, "raw", f"sha256:{sha256(padded)}", "IMAGE_INVALID"),
    ):
        upload = client.uploads.start_volume(
            name,
            "wrong",
            path.stat().st_size,
            format_,  # type: ignore[arg-type]  # words
        )
        client.uploads.send(upload.name, path)
        with pytest.raises(errors.InvalidArgument) as wrong:
            client.uploads.commit(upload.name, digest).result(timeout_s=60)
        assert wrong.value.reason == reason, path
        assert str(virtd.directory) not in wrong.value.message
        assert client.uploads.get(upload.name).operation == "", "it can be looked at, and deleted"
        client.uploads.delete(upload.name)
    assert not list(directory.iterdir())
    assert not list((virtd.directory / "uploads").iterdir())


def test_uploads_and_downloads_go_on_after_the_daemon_is_killed(
    virtd: Virtd, pool: tuple[str, Path], tmp_path: Path
) -> None:
    client, (name, _) = virtd.client(), pool
    source = tmp_path / "source.raw"
    digest = make_file(source, 96)
    told: list[int] = []

    def kill_once(done: int, _size: int) -> None:
        told.append(done)
        if len(told) == 1:
            virtd.kill()
            virtd.start()

    operation = client.volumes.upload(name, "big", source, "raw", progress=kill_once)
    assert told[0] < 96 * MIB, "it was killed before the end"
    # Killed once more while it is committed: the journal brings it to its end.
    deadline = time.monotonic() + 60
    while operation.refresh().stage not in ("send", "forget"):
        assert time.monotonic() < deadline
        time.sleep(0.01)
    virtd.kill()
    virtd.start()
    volume = operation.result(timeout_s=120)
    assert operation.metadata.recovered
    assert sha256(volume.path) == digest
    assert not client.uploads.list()
    assert not list((virtd.directory / "uploads").iterdir())

    told.clear()
    target = tmp_path / "target.raw"
    client.volumes.download(volume.name, target, progress=kill_once)
    assert sha256(target) == digest
    assert told[0] < 96 * MIB
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["source.raw", "target.raw"]


def test_a_download_of_a_volume_that_has_changed_does_not_go_on(
    virtd: Virtd, pool: tuple[str, Path], tmp_path: Path
) -> None:
    client, (name, _) = virtd.client(), pool
    source = tmp_path / "source.raw"
    make_file(source, 3)
    volume = client.volumes.upload(name, "v", source, "raw").result(timeout_s=60)
    stub = VolumeServiceStub(client._transport.channel)

    def read(offset: int, etag: str) -> tuple[str, bytes, str]:
        started, data, ended = "", b"", ""
        for response in stub.DownloadVolume(DownloadVolumeRequest(name=volume.name, offset=offset, etag=etag)):
            started = started or response.start.etag
            data += response.data or bytes(response.zero_bytes)
            ended = ended or response.end.digest
        return started, data, ended

    etag, whole, ended = read(0, "")
    assert whole == source.read_bytes()
    assert ended == f"sha256:{sha256(source)}"
    again, rest, ended = read(MIB + 7, etag)
    assert (again, rest) == (etag, whole[MIB + 7 :])
    assert ended == f"sha256:{hashlib.sha256(rest).hexdigest()}"
    assert read(3 * MIB, etag)[1] == b""
    for offset, tag, reason in ((MIB, "", "FIELD_INVALID"), (4 * MIB, etag, "FIELD_INVALID")):
        with pytest.raises(grpc.RpcError) as wrong:
            read(offset, tag)
        assert client._transport.error(wrong.value).reason == reason
    with Path(volume.path).open("r+b") as file:
        file.write(b"changed")
    with pytest.raises(grpc.RpcError) as wrong:
        read(MIB, etag)
    assert client._transport.error(wrong.value).reason == "ETAG_MISMATCH"


# ------------------------------------------------------------------------------------- a full disk


@pytest.fixture
def tiny(virtd: Virtd) -> Iterator[str]:
    """A pool on a file system of 2 MiB, mounted where libvirt's daemon sees it."""
    pid = (virtd.libvirt.directory / "libvirtd.pid").read_text().strip()
    enter = ["nsenter", f"--mount=/proc/{pid}/ns/mnt"]
    client = virtd.client()
    with made_pool(virtd, new_id("tiny")) as (name, directory):
        client.pools.stop(name).result(timeout_s=60)
        subprocess.run([*enter, "mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(directory)], check=True)
        try:
            client.pools.start(name).result(timeout_s=60)
            yield name
        finally:
            with contextlib.suppress(errors.VirtdError):
                client.pools.stop(name).result(timeout_s=60)
            subprocess.run([*enter, "umount", "--lazy", str(directory)], check=True)


def test_a_full_disk_is_said_and_nothing_is_left(
    virtd: Virtd, tiny: str, pool: tuple[str, Path], tmp_path: Path
) -> None:
    client, (name, _) = virtd.client(), pool
    source = tmp_path / "source.raw"
    make_file(source, 6)
    volume = client.volumes.upload(name, "v", source, "raw").result(timeout_s=60)

    def full(started: object) -> None:
        with pytest.raises(errors.ResourceExhausted) as failed:
            started.result(timeout_s=60)  # type: ignore[attr-defined]  # any operation
        assert failed.value.reason == "STORAGE_FULL"
        assert not client.volumes.list(tiny)

    full(client.volumes.upload(tiny, "uploaded", source, "raw"))
    (upload,) = client.uploads.list()
    assert (upload.received_bytes, upload.operation) == (6 * MIB, ""), "what was sent need not be sent again"
    client.uploads.delete(upload.name)
    full(client.volumes.clone(volume.name, "cloned", destination_parent=tiny))
    full(client.volumes.clone(volume.name, "converted", destination_parent=tiny, format="qcow2"))
    full(client.volumes.create(tiny, "raw", 6 * MIB, format="raw", preallocation="full"))
    full(client.volumes.create(tiny, "qcow2", 6 * MIB, format="qcow2", preallocation="full"))
    made = client.volumes.create(tiny, "fits", MIB, format="raw", preallocation="full").result(timeout_s=60)
    client.volumes.delete(made.name).result(timeout_s=60)
