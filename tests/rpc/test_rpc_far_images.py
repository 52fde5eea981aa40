"""Images on a host of another machine, through the daemon's socket and the Python client."""

from __future__ import annotations

import tempfile
from collections.abc import AsyncIterator
from pathlib import Path
from uuid import uuid4

import pytest
from virtd_client import AsyncClient, errors

from tests.support.daemons import HOST, MIB, Lab, running_lab
from virtd.errors import HOST_UNREACHABLE, UnavailableError
from virtd.service import bases
from virtd.testing.fake import WORLDS
from virtd.v1.guest_pb2 import DISK_FORMAT_QCOW2, DiskSpec, Guest, GuestSpec, ImageSource

PARENT = f"hosts/{HOST}"
POOL = f"{PARENT}/pools/virtd"
SIZE = 3 * 4096


@pytest.fixture
async def place() -> AsyncIterator[Path]:
    with tempfile.TemporaryDirectory(prefix="vt-") as name:
        yield Path(name)


@pytest.fixture
async def lab(place: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Lab]:
    monkeypatch.setattr(bases, "PART_BYTES", SIZE // 3)
    uri = f"fake://far.example/{uuid4().hex[:8]}"
    async with running_lab(place, uri=uri, storage={"allowed_directories": [str(place)]}) as lab:
        yield lab
    WORLDS.forget(uri)


@pytest.fixture
async def client(lab: Lab, place: Path) -> AsyncIterator[AsyncClient]:
    (place / "disk.raw").write_bytes(b"\1" * SIZE)
    async with AsyncClient.connect(f"unix:{place}/virtd.sock") as client:
        await (await client.images.import_("disk", str(place / "disk.raw"), format="raw")).result(10)
        yield client


def guest() -> Guest:
    image = ImageSource(image="images/disk", format=DISK_FORMAT_QCOW2)
    return Guest(spec=GuestSpec(memory_bytes=64 * MIB, disks=[DiskSpec(name="root", image=image)]))


async def volumes(client: AsyncClient) -> list[str]:
    return [volume.name.rpartition("/")[2] for volume in await client.volumes.list(POOL)]


async def test_an_image_is_sent_kept_and_removed(lab: Lab, client: AsyncClient) -> None:
    lab.world.faults.fail("volume_write", 1, UnavailableError(HOST_UNREACHABLE, "cut"))
    operation = await client.guests.create(PARENT, "a", guest())
    await operation.result(20)
    told = " ".join(note.message for note in (await operation.refresh()).notes)
    assert "once for all its disks there" in told
    assert f"it goes on from byte {SIZE // 3} of {SIZE}" in told
    names = await volumes(client)
    assert len(names) == 2
    assert [name for name in names if name.startswith("sha256-")]
    with pytest.raises(errors.FailedPrecondition) as refused:
        await client.images.delete("images/disk")
    assert refused.value.reason == "IMAGE_IN_USE"
    await (await client.guests.delete(f"{PARENT}/guests/a")).result(10)
    assert len(await volumes(client)) == 1, "the next guest needs it, too"
    lab.world.disconnect()
    await lab.until(lambda: lab.link.host.state == "UNREACHABLE")
    with pytest.raises(errors.Unavailable) as unknown:
        await client.images.delete("images/disk")
    assert unknown.value.reason == "HOST_UNREACHABLE", "not seen is not gone"
    lab.world.reconnect()
    await lab.until(lambda: lab.link.host.state == "CONNECTED")
    await (await client.images.delete("images/disk")).result(10)
    assert await volumes(client) == []


async def test_a_cancel_takes_back_what_was_sent(lab: Lab, client: AsyncClient) -> None:
    hang = lab.world.faults.hang("volume_write")
    operation = await client.guests.create(PARENT, "a", guest())
    await lab.until(lambda: hang.entered > 0)
    await operation.cancel()
    hang.release()
    with pytest.raises(errors.Cancelled):
        await operation.result(20)
    assert await volumes(client) == []
    assert list(await client.guests.list(PARENT)) == []


async def test_a_host_that_takes_no_files_says_so_before_anything_is_done(place: Path) -> None:
    uri = f"fake://far.example/{uuid4().hex[:8]}?without=host.volumes.transfer"
    async with (
        running_lab(place, uri=uri, storage={"allowed_directories": [str(place)]}) as lab,
        AsyncClient.connect(f"unix:{place}/virtd.sock") as client,
    ):
        (place / "disk.raw").write_bytes(b"\1" * SIZE)
        await (await client.images.import_("disk", str(place / "disk.raw"), format="raw")).result(10)
        with pytest.raises(errors.InvalidArgument) as refused:
            await client.guests.create(PARENT, "a", guest())
        assert refused.value.reason == "FIELD_UNSUPPORTED"
        assert "takes no files of the daemon's machine" in refused.value.message
        assert lab.world.native.guests == {}
    WORLDS.forget(uri)
