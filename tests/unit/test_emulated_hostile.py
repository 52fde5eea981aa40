"""Snapshots by copies of disks, in a hostile world: whatever comes in between, no data of a guest is lost."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from uuid import UUID

import pytest

from tests.support.daemons import MIB, Lab, blank, call, running_lab, short_directory
from tests.unit.test_emulated_snapshots import (
    EMULATE,
    delete,
    disks_are_whole_and_owned,
    native,
    read,
    redefine,
    refused,
    revert,
    take,
    taken,
    tree,
    volumes,
    write,
)
from virtd.backend.api import SnapshotRequest
from virtd.backend.conformance.context import KitContext
from virtd.errors import VirtdError
from virtd.model.guest import BlankSource, DiskFormat, DiskSpec, GuestState
from virtd.model.operation import Operation, OperationState
from virtd.model.storage import Pool, PoolState
from virtd.service.snapshots import Draft
from virtd.service.verbs.snapshot import COPYING_S, CreateSnapshot, SnapshotArguments
from virtd.testing.fake.storage import Storage


@pytest.fixture
async def lab(tmp_path: Path) -> AsyncIterator[Lab]:
    async with running_lab(tmp_path, EMULATE) as made:
        yield made


async def begin(lab: Lab, name: str) -> Operation:
    operation = await lab.services.snapshots.create(call(), lab.name("a"), Draft(name))
    assert isinstance(operation, Operation)
    return operation


async def begin_revert(lab: Lab, name: str) -> Operation:
    operation = await lab.services.snapshots.revert(call(), lab.name("a"), name)
    assert operation is not None
    return operation


async def past_virtd(lab: Lab, what: str) -> None:
    """The guest is started, or its power is cut, by somebody else."""
    guest = native(lab)
    if what == "start":
        await lab.world.native.guest_create(guest.uuid, KitContext())
    else:
        await lab.world.native.guest_destroy(guest.uuid)


@pytest.mark.parametrize("stopped", [False, True], ids=["runs on", "stopped again"])
async def test_a_start_past_virtd_while_it_is_copied(lab: Lab, stopped: bool) -> None:
    """The copies are of two moments: they are thrown away, and what the guest wrote stays."""
    await lab.created("a", blank(), blank("data"))
    await taken(lab, "before")
    known = set(volumes(lab))
    hang = lab.world.faults.hang("volume_fill")
    operation = await begin(lab, "s")
    await lab.until(lambda: len(volumes(lab)) > len(known))
    await past_virtd(lab, "start")
    write(lab, b"written meanwhile")
    if stopped:
        await past_virtd(lab, "stop")
    hang.release()
    ended = await lab.failed(operation, "INVALID_STATE")
    assert ended.error is not None
    assert ("somebody has written" in ended.error.message) or not stopped
    assert set(volumes(lab)) == known
    assert await tree(lab) == {"before": ""}
    assert read(lab) == b"written meanwhile"
    disks_are_whole_and_owned(lab)


async def test_a_start_past_virtd_in_a_revert(lab: Lab) -> None:
    """The guest keeps the disks that it runs on."""
    await lab.created("a", blank(), blank("data"))
    await taken(lab, "s")
    write(lab, b"now")
    known, definition = set(volumes(lab)), native(lab).native
    hang = lab.world.faults.hang("volume_fill")
    operation = await begin_revert(lab, "s")
    await lab.until(lambda: len(volumes(lab)) > len(known))
    await past_virtd(lab, "start")
    hang.release()
    await lab.failed(operation, "INVALID_STATE")
    assert (set(volumes(lab)), native(lab).native, read(lab)) == (known, definition, b"now")
    disks_are_whole_and_owned(lab)


async def test_other_disks_past_virtd_in_a_revert(lab: Lab) -> None:
    """What was attached in the middle was never looked at: the guest is not said to be reverted, and loses nothing."""
    await lab.created("a", blank(), blank("data"))
    await taken(lab, "s")
    known = set(volumes(lab))
    hang = lab.world.faults.hang("volume_fill")
    operation = await begin_revert(lab, "s")
    await lab.until(lambda: len(volumes(lab)) > len(known))
    root, data = json.loads(native(lab).native)["disks"]
    redefine(lab, disks=[root, {**data, "path": "/elsewhere/other.qcow2"}])
    hang.release()
    ended = await lab.failed(operation, "INVALID_STATE")
    assert ended.error is not None
    assert "/elsewhere/other.qcow2" in ended.error.message
    assert set(volumes(lab)) == known
    assert [disk["path"] for disk in json.loads(native(lab).native)["disks"]] == [
        root["path"],
        "/elsewhere/other.qcow2",
    ]


async def test_a_revert_that_is_taken_up_long_after_the_switch(lab: Lab) -> None:
    """Killed after it; the guest has run, and lost a disk to somebody: its new volumes hold what it wrote since."""
    await lab.created("a", blank(), blank("data"))
    write(lab, b"one")
    await taken(lab, "s")
    uid, facet = lab.guest("a").uid, lab.link.facets.snapshots
    assert facet is not None
    plan = await facet.plan_revert(uid, "s")
    await facet.revert_snapshot(uid, "s", KitContext(), plan)
    write(lab, b"since")
    for left in (1, 0):
        redefine(lab, disks=json.loads(native(lab).native)["disks"][:left])
        with pytest.raises(VirtdError, match="now, not"):
            await facet.revert_snapshot(uid, "s", KitContext(), plan)
        assert {*plan.volumes, *plan.replaced} <= {f"virtd/{name}" for name in volumes(lab)}
    assert read(lab) == b"since"


async def test_a_record_that_cannot_be_written_after_the_switch(lab: Lab) -> None:
    """The guest has its disks: that is what the end says."""
    await lab.created("a", blank())
    write(lab, b"one")
    await taken(lab, "one", "two")
    write(lab, b"two")
    lab.world.faults.fail("guest_write_records")
    ended = await revert(lab, "one")
    assert read(lab) == b"one"
    assert any("could not be written down" in warning for warning in ended.warnings), ended.warnings
    disks_are_whole_and_owned(lab)


@pytest.mark.parametrize("read_only", [False, True])
async def test_a_disk_that_another_guest_has_too(lab: Lab, read_only: bool) -> None:
    """It is not copied while that one runs and can write to it, and a revert takes it away from neither."""
    await lab.created("a", blank())
    await lab.created("b", start=True)
    (mine,) = lab.view("a").owned_volumes
    (root,) = json.loads(native(lab).native)["disks"]
    other, shared = native(lab, "b"), {**root, "read_only": read_only}
    other.native = json.dumps({**json.loads(other.native), "disks": [shared]})
    other.active = other.native
    await lab.link.refresh(other.uuid)
    if not read_only:
        error = await refused(lab, "s", "SNAPSHOT_BLOCKED")
        assert error.record.metadata == {"disk": "root", "used_by": "hosts/lab/guests/b"}
        await lab.done(await lab.services.guests.stop(call(), lab.name("b")))
    await taken(lab, "s")
    ended = await revert(lab, "s")
    assert mine.partition("/")[2] in volumes(lab)
    assert any("is a disk of hosts/lab/guests/b" in warning for warning in ended.warnings), ended.warnings
    assert mine in lab.view("a").owned_volumes


@pytest.mark.parametrize("seen", [DiskFormat.QCOW2, "VMDK"])
async def test_a_raw_disk_that_looks_like_something_else(lab: Lab, seen: str) -> None:
    """A guest may write the head of an image that names files of the host: nobody may follow it."""
    await lab.created("a", blank(), DiskSpec("raw", blank=BlankSource(8 * MIB, DiskFormat.RAW)))
    await taken(lab, "s")
    name = next(name for name in volumes(lab) if name.startswith("a-raw") and "snapshot" not in name)
    volumes(lab)[name].format = seen
    error = await refused(lab, "t", "SNAPSHOT_BLOCKED")
    assert f"looks like {seen}" in error.message
    copy = next(name for name in volumes(lab) if name.startswith("a-raw-snapshot"))
    volumes(lab)[name].format, volumes(lab)[copy].format = DiskFormat.RAW, seen
    with pytest.raises(VirtdError, match="looks like"):
        await lab.services.snapshots.revert(call(), lab.name("a"), "s")
    await delete(lab, "s")


async def test_two_at_once(lab: Lab) -> None:
    """One after the other: the second is the first one's child, and both are whole."""
    await lab.created("a", blank(), blank("data"))
    write(lab, b"both")
    first, second = await begin(lab, "one"), await begin(lab, "two")
    again = await begin(lab, "one")
    for operation in (first, second):
        await lab.done(operation)
    await lab.failed(again, "SNAPSHOT_EXISTS")
    assert await tree(lab) == {"one": "", "two": "one"}
    assert len(volumes(lab)) == 6
    write(lab, b"later")
    await revert(lab, "one")
    assert read(lab) == b"both"
    disks_are_whole_and_owned(lab)


async def test_virtds_own_start_waits(lab: Lab) -> None:
    await lab.created("a", blank())
    hang = lab.world.faults.hang("volume_fill")
    operation = await begin(lab, "s")
    await lab.until(lambda: len(volumes(lab)) == 2)
    start = await lab.services.guests.start(call(), lab.name("a"))
    assert lab.state("a") is GuestState.STOPPED
    hang.release()
    await lab.done(operation)
    await lab.done(start)
    assert await tree(lab) == {"s": ""}
    disks_are_whole_and_owned(lab)


async def test_a_pool_that_fills_up_meanwhile(lab: Lab) -> None:
    """The room was there when it was planned."""
    await lab.created("a", blank(), blank("data"))
    write(lab, b"now")
    await taken(lab, "s")
    known = set(volumes(lab))
    used = sum(volume.capacity_bytes for volume in volumes(lab).values())
    lab.world.native.pool_capacity_bytes = used + volumes(lab)[min(known)].capacity_bytes
    for ended in (await take(lab, "t"), await lab.end(await begin_revert(lab, "s"))):
        assert ended.state is OperationState.FAILED
        assert ended.error is not None
        assert ended.error.reason == "STORAGE_FULL"
        assert set(volumes(lab)) == known
        assert read(lab) == b"now"
        disks_are_whole_and_owned(lab)


async def test_a_pool_that_vanishes_is_no_matter_of_others(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    """Somebody removes a pool of no concern while the host's pools are looked through."""
    await lab.created("a", blank())
    uid, facet = lab.guest("a").uid, lab.link.facets.snapshots
    assert facet is not None
    listed = Storage.list_pools

    async def too_many(self: Storage) -> Sequence[Pool]:
        return [Pool("gone", state=PoolState.ACTIVE), *await listed(self)]

    monkeypatch.setattr(Storage, "list_pools", too_many)
    await facet.create_snapshot(uid, SnapshotRequest("s"), KitContext())
    assert [snapshot.name for snapshot in await facet.list_snapshots(uid)] == ["s"]


async def test_large_disks_have_time(lab: Lab) -> None:
    """Where snapshots are copies; elsewhere they have as long as all operations."""
    arguments = SnapshotArguments("lab", "a", UUID(int=1))
    assert CreateSnapshot(lab.core).timeout_s(arguments) == COPYING_S
    with short_directory() as place:
        async with running_lab(place) as other:
            assert CreateSnapshot(other.core).timeout_s(arguments) is None
