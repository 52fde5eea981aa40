"""Pools that come and go, and volumes that change, on the fake hypervisor."""

from __future__ import annotations

import hashlib
from collections.abc import AsyncIterator
from contextlib import aclosing
from dataclasses import replace
from pathlib import Path

import pytest

from tests.support.daemons import HOST, MIB, Lab, call, running_lab, short_directory, spec
from virtd.backend.api import Hole
from virtd.errors import (
    AlreadyExistsError,
    ConflictError,
    FailedPreconditionError,
    InvalidArgumentError,
    NotFoundError,
    UnsupportedError,
    VirtdError,
)
from virtd.model.guest import DiskFormat, DiskSpec
from virtd.model.storage import Pool, PoolKind, PoolState, Preallocation, Volume
from virtd.service.downloads import DownloadEnd, DownloadStart
from virtd.service.guests import GuestDraft
from virtd.service.verbs.pools import CreatePoolArguments

RAW, QCOW2 = DiskFormat.RAW, DiskFormat.QCOW2


@pytest.fixture
async def place() -> AsyncIterator[Path]:
    with short_directory() as directory:
        (directory / "disks").mkdir()
        yield directory


@pytest.fixture
async def lab(place: Path) -> AsyncIterator[Lab]:
    async with running_lab(place, storage={"allowed_directories": [str(place / "disks"), str(place)]}) as made:
        yield made


def arguments(lab: Lab, pool: str = "p", **changes: object) -> CreatePoolArguments:
    place = Path(lab.core.options.allowed_directories[0])
    return replace(CreatePoolArguments(HOST, pool, PoolKind.DIR, str(place / pool)), **changes)


async def made(lab: Lab, pool: str = "p") -> Pool:
    await lab.done(await lab.services.pools.create(call(), arguments(lab, pool)))
    return await lab.services.pools.get(HOST, pool)


async def volume(lab: Lab, name: str = "v", mib: int = 4, format_: DiskFormat = RAW, pool: str = "p") -> Volume:
    await lab.done(await lab.services.storage.create_volume(call(), HOST, pool, name, mib * MIB, format_))
    return await lab.services.storage.get_volume(HOST, pool, name)


async def guest_on(lab: Lab, used: Volume, guest: str = "g", *, start: bool = False) -> None:
    draft = GuestDraft(spec(DiskSpec("data", volume=used.name)))
    await lab.done(await lab.services.guests.create(call(), HOST, guest, draft, start))


async def refused(work: object, reason: str, error: type[VirtdError] = FailedPreconditionError) -> VirtdError:
    with pytest.raises(error) as raised:
        await work  # type: ignore[misc]  # any awaitable
    assert raised.value.reason.name == reason, raised.value
    return raised.value


async def pools(lab: Lab) -> dict[str, PoolState]:
    page = await lab.services.storage.list_pools(HOST, 0, "")
    return {pool.name.rpartition("/")[2]: pool.state for pool in page.items}


# ---------------------------------------------------------------------------------------- pools


async def test_a_pool_is_made_started_stopped_and_forgotten(lab: Lab) -> None:
    service = lab.services.pools
    assert await service.create(call(validate_only=True), arguments(lab)) is None
    assert await pools(lab) == {}
    pool = await made(lab)
    assert (pool.kind, pool.state, pool.autostart) == ("dir", PoolState.ACTIVE, False)
    await lab.done(await service.update(call(), HOST, "p", autostart=True))
    await lab.done(await service.update(call(), HOST, "p", autostart=None))
    assert (await service.get(HOST, "p")).autostart is True
    for _ in range(2):
        await lab.done(await service.stop(call(), HOST, "p"))
    stopped = await service.get(HOST, "p")
    assert (stopped.state, stopped.capacity_bytes) == (PoolState.INACTIVE, None)
    await refused(lab.services.storage.list_volumes(HOST, "p", 0, ""), "POOL_INACTIVE")
    await refused(service.refresh(call(), HOST, "p"), "POOL_INACTIVE")
    for _ in range(2):
        await lab.done(await service.start(call(), HOST, "p"))
    await lab.done(await service.refresh(call(), HOST, "p"))
    await lab.done(await service.delete(call(), HOST, "p", remove_directory=True))
    for gone in (service.start, service.stop, service.refresh):
        await refused(gone(call(), HOST, "p"), "POOL_NOT_FOUND", NotFoundError)
    await refused(service.delete(call(), HOST, "p", remove_directory=False), "POOL_NOT_FOUND", NotFoundError)


async def test_names_and_places_are_given_once(lab: Lab) -> None:
    pool = await made(lab)
    service = lab.services.pools
    await refused(service.create(call(), arguments(lab)), "POOL_EXISTS", AlreadyExistsError)
    for path in (pool.path, f"{pool.path}/", f"{pool.path}/./"):
        await refused(service.create(call(), arguments(lab, "q", path=path)), "POOL_EXISTS", AlreadyExistsError)
    # Two at once: the second finds out when its turn comes, and takes nothing back that is not its own.
    hang = lab.world.faults.hang("pool_define")
    one = await service.create(call(), arguments(lab, "twice"))
    two = await service.create(call(), arguments(lab, "twice"))
    await lab.until(lambda: hang.entered > 0)
    hang.release()
    await lab.done(one)
    await lab.failed(two, "POOL_EXISTS")
    assert (await pools(lab))["twice"] is PoolState.ACTIVE


async def test_a_pool_that_does_not_start_leaves_nothing(lab: Lab) -> None:
    before = lab.world.digest()
    lab.world.faults.fail("pool_start")
    await lab.failed(await lab.services.pools.create(call(), arguments(lab)), "BACKEND_ERROR")
    assert lab.world.digest() == before


BAD = [
    ({"path": ""}, "directory.path", "required"),
    ({"path": "relative"}, "directory.path", "absolute"),
    ({"path": "/x/../y"}, "directory.path", "'..'"),
    ({"path": "/x\ny"}, "directory.path", "control"),
    ({"path": "/" + "x" * 2000}, "directory.path", "at most"),
    ({"kind": PoolKind.NFS, "path": "/x", "export": "/e", "server": ""}, "nfs.server", "host name"),
    ({"kind": PoolKind.NFS, "path": "/x", "export": "/e", "server": "-o rw"}, "nfs.server", "host name"),
    ({"kind": PoolKind.NFS, "path": "/x", "export": "/e", "server": "a/b"}, "nfs.server", "host name"),
    ({"kind": PoolKind.NFS, "path": "/x", "export": "e", "server": "a"}, "nfs.export", "absolute"),
    ({"kind": PoolKind.NFS, "path": "", "export": "/e", "server": "a"}, "nfs.path", "required"),
    ({"kind": PoolKind.LOGICAL, "path": "", "volume_group": ""}, "logical.volume_group", "volume group"),
    ({"kind": PoolKind.LOGICAL, "path": "", "volume_group": "-x"}, "logical.volume_group", "volume group"),
    ({"kind": PoolKind.LOGICAL, "path": "", "volume_group": "../x"}, "logical.volume_group", "volume group"),
]


async def test_pools_that_cannot_be(lab: Lab) -> None:
    for changes, field, says in BAD:
        wrong = await refused(
            lab.services.pools.create(call(), arguments(lab, **changes)), "FIELD_INVALID", InvalidArgumentError
        )
        assert [violation.field for violation in wrong.record.violations] == [field]
        assert says in wrong.message
    assert await pools(lab) == {}


async def test_paths_outside_the_allowed_directories(lab: Lab, place: Path) -> None:
    (place / "disks" / "out").symlink_to("/etc")
    own = str(place / "state")  # within an allowed directory, but virtd's own
    for path in ("/etc", "/etc/disks", str(place / "disks" / "out" / "x"), own, f"{own}/hosts/{HOST}"):
        wrong = await refused(
            lab.services.pools.create(call(), arguments(lab, path=path)), "PATH_NOT_ALLOWED", InvalidArgumentError
        )
        assert wrong.record.violations[0].field == "directory.path"
    nfs = arguments(lab, kind=PoolKind.NFS, path="/mnt", server="10.0.0.1", export="/e")
    wrong = await refused(lab.services.pools.create(call(), nfs), "PATH_NOT_ALLOWED", InvalidArgumentError)
    assert wrong.record.violations[0].field == "nfs.path"
    assert await pools(lab) == {}


@pytest.mark.parametrize("kind", [PoolKind.LOGICAL, PoolKind.NFS])
async def test_kinds_that_a_host_has_not(place: Path, kind: PoolKind) -> None:
    async with running_lab(
        place,
        f"without=host.pools.{kind.lower()}",
        storage={"allowed_directories": [str(place / "disks")]},
    ) as lab:
        wanted = arguments(lab, kind=kind, server="10.0.0.1", export="/e", volume_group="vg0")
        await refused(lab.services.pools.create(call(), wanted), "CAPABILITY_UNSUPPORTED", UnsupportedError)
        await made(lab)


async def test_other_kinds_are_taken_as_they_are(lab: Lab) -> None:
    nfs = arguments(lab, "n", kind=PoolKind.NFS, server="files.example", export="/e")
    vg = arguments(lab, "l", kind=PoolKind.LOGICAL, path="", volume_group="vg0")
    for wanted, source in ((nfs, "files.example:/e"), (vg, "vg0")):
        await lab.done(await lab.services.pools.create(call(), wanted))
        assert (await lab.services.pools.get(HOST, wanted.pool)).source == source


async def test_a_pool_that_guests_use_is_neither_stopped_nor_deleted(lab: Lab) -> None:
    service = lab.services.pools
    await made(lab)
    await guest_on(lab, await volume(lab), start=True)
    for use in (service.stop(call(), HOST, "p"), service.delete(call(), HOST, "p", remove_directory=False)):
        used = await refused(use, "POOL_IN_USE")
        assert used.record.metadata["used_by"] == f"hosts/{HOST}/guests/g"
    await lab.done(await lab.services.guests.stop(call(), lab.name("g")))
    await refused(service.delete(call(), HOST, "p", remove_directory=False), "POOL_IN_USE")
    await lab.done(await service.stop(call(), HOST, "p"))


async def test_volumes_are_never_deleted_with_their_pool(lab: Lab) -> None:
    service = lab.services.pools
    await made(lab)
    await volume(lab)
    await refused(service.delete(call(), HOST, "p", remove_directory=True), "POOL_NOT_EMPTY")
    assert (await pools(lab))["p"] is PoolState.ACTIVE
    await lab.done(await service.delete(call(), HOST, "p", remove_directory=False))


# -------------------------------------------------------------------------------------- volumes


async def test_a_volume_grows_and_shrinks_only_on_demand(lab: Lab) -> None:
    storage = lab.services.storage
    await made(lab)
    await volume(lab)
    await lab.done(await storage.resize_volume(call(), HOST, "p", "v", 8 * MIB, allow_shrink=False))
    shrink = storage.resize_volume(call(), HOST, "p", "v", MIB, allow_shrink=False)
    assert (await refused(shrink, "SHRINK_REFUSED")).record.metadata["capacity_bytes"] == str(8 * MIB)
    assert await storage.resize_volume(call(validate_only=True), HOST, "p", "v", MIB, allow_shrink=True) is None
    assert (await storage.get_volume(HOST, "p", "v")).capacity_bytes == 8 * MIB
    await lab.done(await storage.resize_volume(call(), HOST, "p", "v", MIB, allow_shrink=True))
    assert (await storage.get_volume(HOST, "p", "v")).capacity_bytes == MIB
    for size in (0, -512, 513, 2**51):
        wrong = await refused(
            storage.resize_volume(call(), HOST, "p", "v", size, allow_shrink=True),
            "FIELD_INVALID",
            InvalidArgumentError,
        )
        assert wrong.record.violations[0].field == "capacity_bytes"
    missing = storage.resize_volume(call(), HOST, "p", "w", MIB, allow_shrink=False)
    await refused(missing, "VOLUME_NOT_FOUND", NotFoundError)


async def test_a_volume_in_use_is_left_alone(lab: Lab) -> None:
    storage = lab.services.storage
    await made(lab)
    used = await volume(lab)
    await guest_on(lab, used, start=True)
    grow = await refused(storage.resize_volume(call(), HOST, "p", "v", 8 * MIB, allow_shrink=False), "VOLUME_IN_USE")
    assert "resize the disk of that guest instead" in grow.message
    await refused(storage.clone_volume(call(), HOST, "p", "v", "w", "", None), "VOLUME_IN_USE")
    await refused(anext(lab.services.downloads.download(HOST, "p", "v", 0, "")), "VOLUME_IN_USE")
    await lab.done(await lab.services.guests.suspend(call(), lab.name("g")))  # it expects its disk as it left it
    await refused(storage.resize_volume(call(), HOST, "p", "v", 8 * MIB, allow_shrink=False), "VOLUME_IN_USE")
    await lab.done(await lab.services.guests.start(call(), lab.name("g")))
    await lab.done(await lab.services.guests.stop(call(), lab.name("g")))
    await lab.done(await storage.resize_volume(call(), HOST, "p", "v", 8 * MIB, allow_shrink=False))
    await refused(storage.resize_volume(call(), HOST, "p", "v", MIB, allow_shrink=True), "VOLUME_IN_USE")


async def test_a_guest_that_starts_first_is_noticed_when_the_turn_comes(lab: Lab) -> None:
    storage = lab.services.storage
    await made(lab)
    used = await volume(lab)
    await guest_on(lab, used)
    hang = lab.world.faults.hang("volume_resize")
    one = await storage.resize_volume(call(), HOST, "p", "v", 8 * MIB, allow_shrink=False)
    two = await storage.resize_volume(call(), HOST, "p", "v", 16 * MIB, allow_shrink=False)
    await lab.until(lambda: hang.entered > 0)
    await lab.done(await lab.services.guests.start(call(), lab.name("g")))
    hang.release()
    await lab.done(one)
    await lab.failed(two, "VOLUME_IN_USE")
    assert (await storage.get_volume(HOST, "p", "v")).capacity_bytes == 8 * MIB


async def test_clones(lab: Lab) -> None:
    storage = lab.services.storage
    await made(lab)
    await made(lab, "q")
    await volume(lab)
    await lab.done(await storage.clone_volume(call(), HOST, "p", "v", "same", "", None))
    await lab.done(await storage.clone_volume(call(), HOST, "p", "v", "other", "q", QCOW2))
    same, other = await storage.get_volume(HOST, "p", "same"), await storage.get_volume(HOST, "q", "other")
    assert (same.format.lower(), same.capacity_bytes) == ("raw", 4 * MIB)
    assert (other.format.lower(), other.capacity_bytes) == ("qcow2", 4 * MIB)
    clone = storage.clone_volume
    await refused(clone(call(), HOST, "p", "v", "same", "", None), "VOLUME_EXISTS", AlreadyExistsError)
    await refused(clone(call(), HOST, "p", "w", "x", "", None), "VOLUME_NOT_FOUND", NotFoundError)
    await refused(clone(call(), HOST, "p", "v", "x", "none", None), "POOL_NOT_FOUND", NotFoundError)
    await refused(clone(call(), HOST, "p", "v", "X", "", None), "FIELD_INVALID", InvalidArgumentError)


async def test_a_source_that_changes_while_it_is_cloned_gives_no_clone(lab: Lab) -> None:
    await made(lab)
    await volume(lab)
    hang = lab.world.faults.hang("volume_fill")
    operation = await lab.services.storage.clone_volume(call(), HOST, "p", "v", "w", "", None)
    await lab.until(lambda: hang.entered > 0)
    lab.world.native.pools["p"].volumes["v"].content = "Y2hhbmdlZA=="
    hang.release()
    await lab.failed(operation, "ETAG_MISMATCH")
    assert list(lab.world.native.pools["p"].volumes) == ["v"]


async def test_preallocation_of_metadata_is_for_qcow2(lab: Lab) -> None:
    await made(lab)
    create = lab.services.storage.create_volume
    wrong = await refused(
        create(call(), HOST, "p", "v", MIB, RAW, Preallocation.METADATA), "FIELD_INVALID", InvalidArgumentError
    )
    assert wrong.record.violations[0].field == "preallocation"
    await lab.done(await create(call(), HOST, "p", "v", MIB, QCOW2, Preallocation.METADATA))


@pytest.mark.parametrize("what", ["resize", "clone", "transfer"])
async def test_what_a_host_cannot_do_with_volumes(place: Path, what: str) -> None:
    async with running_lab(
        place, f"without=host.volumes.{what}", storage={"allowed_directories": [str(place / "disks")]}
    ) as lab:
        storage = lab.services.storage
        await made(lab)
        await volume(lab)
        work = {
            "resize": lambda: storage.resize_volume(call(), HOST, "p", "v", 8 * MIB, allow_shrink=False),
            "clone": lambda: storage.clone_volume(call(), HOST, "p", "v", "w", "", None),
            "transfer": lambda: anext(lab.services.downloads.download(HOST, "p", "v", 0, "")),
        }[what]
        error = await refused(work(), "CAPABILITY_UNSUPPORTED", UnsupportedError)
        assert "switched off" in error.message


# ------------------------------------------------------------------------------------ downloads


async def read(lab: Lab, offset: int = 0, etag: str = "") -> tuple[DownloadStart, bytes, DownloadEnd]:
    start: DownloadStart | None = None
    data, end = b"", None
    async with aclosing(lab.services.downloads.download(HOST, "p", "v", offset, etag)) as items:
        async for item in items:
            if isinstance(item, DownloadStart):
                start = item
            elif isinstance(item, DownloadEnd):
                end = item
            else:
                data += bytes(item.length) if isinstance(item, Hole) else item
    assert start is not None
    assert end is not None
    return start, data, end


async def test_a_download_is_whole_and_goes_on_from_anywhere(lab: Lab) -> None:
    await made(lab)
    await volume(lab, mib=20)
    start, data, end = await read(lab)
    assert (start.size_bytes, len(data)) == (20 * MIB, 20 * MIB)
    assert end.digest == f"sha256:{hashlib.sha256(data).hexdigest()}"
    again, rest, _ = await read(lab, 12 * MIB + 5, start.etag)
    assert (again.etag, len(rest)) == (start.etag, 8 * MIB - 5)
    assert (await read(lab, 20 * MIB, start.etag))[1] == b""
    download = lab.services.downloads.download
    for offset, etag, field in ((5, "", "etag"), (20 * MIB + 1, start.etag, "offset")):
        wrong = await refused(anext(download(HOST, "p", "v", offset, etag)), "FIELD_INVALID", InvalidArgumentError)
        assert wrong.record.violations[0].field == field
    await lab.done(await lab.services.storage.resize_volume(call(), HOST, "p", "v", 24 * MIB, allow_shrink=False))
    await refused(anext(download(HOST, "p", "v", 5, start.etag)), "ETAG_MISMATCH", ConflictError)
    await refused(anext(download(HOST, "p", "w", 0, "")), "VOLUME_NOT_FOUND", NotFoundError)


async def test_a_volume_that_changes_while_it_is_read_has_no_good_end(lab: Lab) -> None:
    await made(lab)
    await volume(lab)

    async def read_slowly() -> None:
        async with aclosing(lab.services.downloads.download(HOST, "p", "v", 0, "")) as items:
            async for item in items:
                assert not isinstance(item, DownloadEnd)
                lab.world.native.pools["p"].volumes["v"].content = "Y2hhbmdlZA=="

    await refused(read_slowly(), "ETAG_MISMATCH", ConflictError)


async def test_the_number_of_downloads_is_limited(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    from virtd.service import downloads as module

    await made(lab)
    await volume(lab)
    monkeypatch.setattr(module, "DOWNLOADS_MAX", 1)
    download = lab.services.downloads.download
    async with aclosing(download(HOST, "p", "v", 0, "")) as first:
        await anext(first)
        with pytest.raises(VirtdError) as full:
            await anext(download(HOST, "p", "v", 0, ""))
        assert full.value.reason.name == "LIMIT_EXCEEDED"
    await read(lab)  # a download that was given up counts no more
