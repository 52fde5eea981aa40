"""Images on hosts of other machines: sent once, in parts that are gone on with, and swept when nobody needs them."""

from __future__ import annotations

import asyncio
import base64
import os
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from uuid import uuid4

import pytest

from tests.support.daemons import Lab, call, running_lab, short_directory
from virtd.errors import HOST_UNREACHABLE, UnavailableError
from virtd.model.guest import DiskFormat, DiskSpec, ImageSource
from virtd.model.operation import Operation, OperationState
from virtd.service import bases
from virtd.testing.fake import WORLDS

PARTS = 4
CONTENT = os.urandom(64 * 1024) * 16 * PARTS


@pytest.fixture(autouse=True)
def small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bases, "PART_BYTES", len(CONTENT) // PARTS)


@pytest.fixture
def place() -> Iterator[Path]:
    with short_directory() as found:
        (found / "import").mkdir()
        (found / "import/disk.raw").write_bytes(CONTENT)
        yield found


@pytest.fixture
def uri() -> Iterator[str]:
    """A host that is another machine."""
    uri = f"fake://far.example/{uuid4().hex[:8]}"
    yield uri
    WORLDS.forget(uri)


@pytest.fixture
async def lab(place: Path, uri: str) -> AsyncIterator[Lab]:
    async with running_lab(place, uri=uri, storage={"allowed_directories": [str(place / "import")]}) as lab:
        await imported(lab, place)
        yield lab


async def imported(lab: Lab, place: Path) -> None:
    path = str(place / "import/disk.raw")
    await lab.done(await lab.services.images.import_(call(), "disk", path, DiskFormat.RAW))


def of_image() -> DiskSpec:
    return DiskSpec("root", image=ImageSource("images/disk", format=DiskFormat.QCOW2))


def base(lab: Lab) -> str:
    """The one base that there is, by its name."""
    (found,) = [name for name in lab.world.native.pools["virtd"].volumes if name.startswith("sha256-")]
    return found


def whole(lab: Lab) -> bool:
    volume = lab.world.native.pools["virtd"].volumes[base(lab)]
    return base64.b64decode(volume.content) == CONTENT


def notes(operation: Operation) -> str:
    return " ".join(note.message for note in operation.notes)


async def delete(lab: Lab, guest: str) -> Operation | None:
    return await lab.services.guests.delete(call(), lab.name(guest), force=False, keep_disks=False, etag="")


async def transfers(lab: Lab) -> int:
    rows = await lab.core.database.read(lambda c: c.execute("SELECT count(*) FROM image_transfers").fetchone())
    return int(rows[0])


async def test_it_is_sent_once_for_all_its_disks(lab: Lab) -> None:
    with lab.world.recording() as calls:
        first = await lab.create("a", of_image())
        second = await lab.create("b", of_image())
        assert "once for all its disks" in notes(await lab.done(first)) + notes(await lab.done(second))
    assert calls.count("volume_write") == PARTS - 1, "and the first part makes the volume"
    assert whole(lab)
    assert await transfers(lab) == 0


async def test_a_cut_transfer_is_gone_on_with(lab: Lab) -> None:
    lab.world.faults.fail("volume_write", 2, UnavailableError(HOST_UNREACHABLE, "cut"))
    with lab.world.recording() as calls:
        ended = await lab.done(await lab.create("a", of_image()))
    half = len(CONTENT) // 2
    assert f"it goes on from byte {half} of {len(CONTENT)}" in notes(ended)
    assert calls.count("volume_write") == PARTS, "one part twice"
    assert whole(lab)


async def test_a_first_part_that_was_cut_is_sent_again(lab: Lab) -> None:
    lab.world.faults.fail("volume_commit", 1, UnavailableError(HOST_UNREACHABLE, "cut"), after=True)
    await lab.created("a", of_image())
    assert whole(lab)
    assert await transfers(lab) == 0


async def test_who_waits_for_it_can_give_up(lab: Lab) -> None:
    hang = lab.world.faults.hang("volume_write")
    first = await lab.create("a", of_image())
    await lab.until(lambda: hang.entered > 0)
    second, third = await lab.create("b", of_image()), await lab.create("c", of_image())

    async def waits() -> bool:
        return "for somebody else" in notes(await lab.core.engine.get(second.name))

    while not await waits():
        await asyncio.sleep(0.01)
    await lab.core.engine.cancel(second.name)
    assert (await lab.end(second, 5)).state is OperationState.CANCELLED
    hang.release()
    await lab.done(first)
    await lab.done(third)
    assert whole(lab)


async def test_what_another_virtd_has_sent_is_not_sent_again(lab: Lab) -> None:
    """Disks of guests that only it knows are based on it."""
    await lab.created("a", of_image())

    def forget(connection: object) -> None:
        connection.execute("DELETE FROM image_bases")  # type: ignore[attr-defined]  # a database

    await lab.core.database.write(forget)
    with lab.world.recording() as calls:
        await lab.created("b", of_image())
    assert "volume_write" not in calls
    assert "volume_delete" not in calls
    assert whole(lab)


async def test_a_restart_of_virtd_goes_on_with_it_too(place: Path, uri: str) -> None:
    options = {"storage": {"allowed_directories": [str(place / "import")]}}
    async with running_lab(place, uri=uri, **options) as lab:
        await imported(lab, place)
        lab.world.faults.hang("volume_write")
        operation = await lab.create("a", of_image(), start=True)

        async def on_its_way() -> bool:
            return await transfers(lab) > 0

        while not await on_its_way():
            await asyncio.sleep(0.01)
    WORLDS.get(uri).faults.clear()
    async with running_lab(place, uri=uri, **options) as lab:
        ended = await lab.done(operation)
        assert "it goes on from byte" in notes(ended)
        assert whole(lab)
        assert await transfers(lab) == 0


@pytest.mark.parametrize("part", ["volume_allocate", "volume_write"])
async def test_a_cancel_leaves_nothing(lab: Lab, part: str) -> None:
    hang = lab.world.faults.hang(part)
    operation = await lab.create("a", of_image())
    await lab.until(lambda: hang.entered > 0)
    assert await transfers(lab) == 1, "known before there is anything of it: else nobody would sweep what is left"
    await lab.core.engine.cancel(operation.name)
    hang.release()
    assert (await lab.end(operation)).state is OperationState.CANCELLED
    assert lab.world.native.pools["virtd"].volumes == {}
    assert await transfers(lab) == 0
    await lab.created("b", of_image())
    assert whole(lab)


async def test_what_nobody_needs_any_more_is_swept_and_sent_again_when_asked_for(lab: Lab) -> None:
    now = 1_000_000.0
    lab.core.bases._clock = lambda: now

    async def sweep() -> int:
        return await lab.core.bases.sweep(lab.core.links)

    await lab.created("a", of_image())
    now += 10 * bases.UNUSED_KEEP_S
    assert await sweep() == 0, "a disk is based on it"
    await lab.done(await delete(lab, "a"))
    assert await sweep() == 0, "only from now on it is known to be unused"
    now += bases.UNUSED_KEEP_S / 2
    await lab.created("b", of_image())
    await lab.done(await delete(lab, "b"))
    now += bases.UNUSED_KEEP_S / 2 + 1
    assert await sweep() == 0, "it was used meanwhile"
    now += bases.UNUSED_KEEP_S + 1
    lab.world.disconnect()
    await lab.until(lambda: lab.link.host.state == "UNREACHABLE")
    assert await sweep() == 0, "a host that does not answer is left for the next time"
    lab.world.reconnect()
    await lab.until(lambda: lab.link.host.state == "CONNECTED")
    assert await sweep() == 1
    assert lab.world.native.pools["virtd"].volumes == {}
    await lab.created("c", of_image())
    assert whole(lab), "the image itself had stayed"


async def test_a_transfer_that_nobody_goes_on_with_is_swept(lab: Lab) -> None:
    now = 1_000_000.0
    lab.core.bases._clock = lambda: now
    await lab.created("a", of_image())
    volume = base(lab)

    def cut(connection: object) -> None:
        connection.execute("DELETE FROM image_bases")  # type: ignore[attr-defined]  # a database
        connection.execute(  # type: ignore[attr-defined]  # as above
            "INSERT INTO image_transfers VALUES ('lab', 'virtd', ?, '/x', 9, 4, ?)", (volume, now)
        )

    await lab.core.database.write(cut)
    assert await lab.core.bases.sweep(lab.core.links) == 0
    now += bases.UNUSED_KEEP_S + 1
    assert await lab.core.bases.sweep(lab.core.links) == 1
    assert volume not in lab.world.native.pools["virtd"].volumes
    assert await transfers(lab) == 0
