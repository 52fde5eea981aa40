"""Snapshots by copies of disks, over the fake host, which then has none of its own: by the use cases and the facet."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.support.daemons import MIB, Lab, blank, call, running_lab
from virtd.backend.api import SnapshotPlan, SnapshotRequest
from virtd.backend.capabilities import SNAPSHOT, SNAPSHOT_EXTERNAL, SNAPSHOT_MEMORY
from virtd.backend.conformance.context import KitContext
from virtd.backend.emulate import copying
from virtd.backend.emulate.records import CopyTree
from virtd.backend.emulate.snapshots import HOW
from virtd.errors import InternalError, UnsupportedError, VirtdError
from virtd.model.guest import DiskSpec, GuestState, TpmSpec
from virtd.model.host import CapabilityLevel
from virtd.model.operation import Operation, OperationState
from virtd.model.snapshot import Snapshot, SnapshotLocation
from virtd.model.trash import DiskPolicy
from virtd.service.snapshots import Draft
from virtd.testing.fake.state import FakeGuest, FakeVolume

EMULATE = "emulate=guest.snapshot"


@pytest.fixture
async def lab(tmp_path: Path) -> AsyncIterator[Lab]:
    async with running_lab(tmp_path, EMULATE) as made:
        yield made


def native(lab: Lab, guest: str = "a") -> FakeGuest:
    return next(found for found in lab.world.native.guests.values() if found.name == guest)


def volumes(lab: Lab) -> dict[str, FakeVolume]:
    return lab.world.native.pools["virtd"].volumes


def write(lab: Lab, text: bytes) -> None:
    native(lab).files.disk["/data"] = text


def read(lab: Lab) -> bytes:
    return native(lab).files.disk.get("/data", b"")


async def take(lab: Lab, name: str, **fields: object) -> Operation:
    operation = await lab.services.snapshots.create(call(), lab.name("a"), Draft(name, **fields))  # type: ignore[arg-type]
    assert isinstance(operation, Operation)
    return await lab.end(operation)


async def taken(lab: Lab, *names: str) -> None:
    for name in names:
        ended = await take(lab, name, description=f"about {name}")
        assert ended.state is OperationState.SUCCEEDED, ended.error


async def revert(lab: Lab, name: str) -> Operation:
    return await lab.done(await lab.services.snapshots.revert(call(), lab.name("a"), name))


async def delete(lab: Lab, name: str, *, children: bool = False) -> Operation:
    return await lab.done(await lab.services.snapshots.delete(call(), lab.name("a"), name, children=children))


async def tree(lab: Lab) -> dict[str, str]:
    page = await lab.services.snapshots.list("lab", "a", 100, "")
    return {item.name.rpartition("/")[2]: item.parent for item in page.items}


async def refused(lab: Lab, name: str, reason: str, **fields: object) -> VirtdError:
    with pytest.raises(VirtdError) as refusal:
        await lab.services.snapshots.create(call(), lab.name("a"), Draft(name, **fields))  # type: ignore[arg-type]
    assert refusal.value.reason.name == reason, refusal.value
    return refusal.value


def disks_are_whole_and_owned(lab: Lab) -> None:
    """Each volume is complete and somebody's, each disk of the guest and each copy of a snapshot is there."""
    found = volumes(lab)
    assert all(volume.complete for volume in found.values())
    assert {f"virtd/{name}" for name in found} == set(lab.view("a").owned_volumes)
    paths = {volume.path for volume in found.values()}
    assert {disk.path for disk in lab.guest("a").status.disks} <= paths
    for record in CopyTree.of_text(native(lab).records).records:
        assert set(record.volumes) <= {f"virtd/{name}" for name in found}


async def test_it_is_said_to_be_emulated(lab: Lab) -> None:
    stated = {entry.id: entry for entry in lab.link.capabilities}
    assert (stated[SNAPSHOT].level, stated[SNAPSHOT].reason) == (CapabilityLevel.EMULATED, HOW)
    assert stated[SNAPSHOT_MEMORY].level is CapabilityLevel.UNSUPPORTED


async def test_disks_come_back(lab: Lab) -> None:
    await lab.created("a", blank(), blank("data", 4))
    write(lab, b"one")
    plan = await lab.services.snapshots.create(call(validate_only=True), lab.name("a"), Draft("one"))
    assert isinstance(plan, Snapshot)
    assert (plan.location, plan.reason) == ("copy", HOW)
    for volume in volumes(lab).values():
        volume.allocation_bytes = 3 * MIB
    ended = await take(lab, "one")
    assert ended.bytes_total == 6 * MIB, "the progress is not that of all disks"
    assert 0 < (ended.bytes_done or 0) <= 6 * MIB
    copies = sorted(name for name in volumes(lab) if "snapshot" in name)
    assert [name.rpartition("-")[0] for name in copies] == ["a-data-snapshot-one", "a-root-snapshot-one"]
    assert len(volumes(lab)) == 4
    write(lab, b"two")
    before = {disk.path for disk in lab.guest("a").status.disks}
    ended = await revert(lab, "one")
    assert read(lab) == b"one"
    assert lab.state("a") is GuestState.STOPPED
    assert len(volumes(lab)) == 4, ended.notes
    assert not before & {disk.path for disk in lab.guest("a").status.disks}, "reverted in place"
    disks_are_whole_and_owned(lab)
    await revert(lab, "one")
    assert len(volumes(lab)) == 4
    await lab.done(await lab.services.guests.start(call(), lab.name("a")))
    assert read(lab) == b"one"


async def test_the_tree(lab: Lab) -> None:
    await lab.created("a", blank())
    await taken(lab, "one", "two", "three")
    assert await tree(lab) == {"one": "", "two": "one", "three": "two"}
    await revert(lab, "one")
    await taken(lab, "branch")
    assert await tree(lab) == {"one": "", "two": "one", "three": "two", "branch": "one"}
    found = await lab.services.snapshots.get(lab.name("a"), "branch")
    assert (found.current, found.description, found.guest_state) == (True, "about branch", "STOPPED")
    await delete(lab, "two")
    assert await tree(lab) == {"one": "", "three": "one", "branch": "one"}
    await delete(lab, "one", children=True)
    assert await tree(lab) == {}
    assert len(volumes(lab)) == 1
    assert native(lab).records == ""
    disks_are_whole_and_owned(lab)


async def test_each_keeps_its_own_content(lab: Lab) -> None:
    await lab.created("a", blank())
    for text in ("one", "two", "three"):
        write(lab, text.encode())
        await taken(lab, text)
    await delete(lab, "two")
    for text in ("three", "one", "three"):
        await revert(lab, text)
        assert read(lab) == text.encode()
    disks_are_whole_and_owned(lab)


def redefine(lab: Lab, **changes: object) -> None:
    """As somebody would from outside."""
    config = json.loads(native(lab).native)
    native(lab).native = json.dumps({**config, **changes})


async def test_only_disks_are_reverted(lab: Lab) -> None:
    """What is not on disks is what it is now; a disk that came later stays as it is."""
    await lab.created("a", blank())
    await taken(lab, "small")
    (root,) = json.loads(native(lab).native)["disks"]
    redefine(lab, vcpus=4, disks=[root, {**root, "name": "later", "path": "/elsewhere/later.qcow2"}])
    await lab.link.refresh(lab.guest("a").uid)
    ended = await revert(lab, "small")
    assert json.loads(native(lab).native)["vcpus"] == 4
    assert [disk.name for disk in lab.guest("a").status.disks] == ["root", "later"]
    assert any("later" in warning for warning in ended.warnings), ended.warnings


async def test_a_disk_that_is_not_there_any_more(lab: Lab) -> None:
    await lab.created("a", blank(), blank("data"))
    await taken(lab, "s")
    redefine(lab, disks=[disk for disk in json.loads(native(lab).native)["disks"] if disk["name"] == "root"])
    await lab.link.refresh(lab.guest("a").uid)
    with pytest.raises(VirtdError, match="attach a disk of this name first") as blocked:
        await lab.services.snapshots.revert(call(), lab.name("a"), "s")
    assert blocked.value.reason.name == "SNAPSHOT_BLOCKED"
    assert len(volumes(lab)) == 4


@pytest.mark.parametrize(
    ("fields", "reason", "words"),
    [
        ({"location": SnapshotLocation.EXTERNAL}, "CAPABILITY_UNSUPPORTED", "no images over images"),
        ({"location": SnapshotLocation.INTERNAL}, "CAPABILITY_UNSUPPORTED", "hold no snapshots"),
    ],
)
async def test_what_it_cannot(lab: Lab, fields: dict[str, object], reason: str, words: str) -> None:
    await lab.created("a", blank())
    assert words in (await refused(lab, "s", reason, **fields)).message
    assert len(volumes(lab)) == 1


async def test_a_running_guest_is_refused(lab: Lab) -> None:
    await lab.created("a", blank())
    await taken(lab, "s")
    await lab.done(await lab.services.guests.start(call(), lab.name("a")))
    error = await refused(lab, "t", "INVALID_STATE")
    assert HOW in error.message
    assert error.record.allowed_actions == ("shutdown", "stop")
    assert (await refused(lab, "t", "CAPABILITY_UNSUPPORTED", memory=True)).record.metadata[
        "capability"
    ] == SNAPSHOT_MEMORY
    with pytest.raises(VirtdError, match="stop it first"):
        await lab.services.snapshots.revert(call(), lab.name("a"), "s")
    await lab.done(await lab.services.guests.suspend(call(), lab.name("a")))
    error = await refused(lab, "t", "INVALID_STATE")
    assert "saved memory" in error.message
    assert error.record.allowed_actions == ("start", "discard")
    await delete(lab, "s")  # that needs no disk of the guest
    assert len(volumes(lab)) == 1


async def test_a_guest_with_more_than_disks_is_refused(lab: Lab) -> None:
    await lab.created("a", blank(), tpm=TpmSpec())
    assert "TPM" in (await refused(lab, "s", "CAPABILITY_UNSUPPORTED")).message


async def test_no_room(lab: Lab) -> None:
    await lab.created("a", blank(mib=8))
    lab.world.native.pool_capacity_bytes = 12 * MIB
    for volume in volumes(lab).values():
        volume.allocation_bytes = 8 * MIB
    error = await refused(lab, "s", "STORAGE_FULL")
    assert error.record.metadata == {
        "pool": "virtd",
        "needed_bytes": str(8 * MIB),
        "available_bytes": str(4 * MIB),
    }
    assert str(8 * MIB) in error.message
    assert len(volumes(lab)) == 1
    lab.world.native.pool_capacity_bytes = 16 * MIB
    await taken(lab, "s")
    for volume in volumes(lab).values():
        volume.allocation_bytes = 8 * MIB
    with pytest.raises(VirtdError, match="bytes left"):
        await lab.services.snapshots.revert(call(), lab.name("a"), "s")
    disks_are_whole_and_owned(lab)


async def test_all_or_nothing(lab: Lab) -> None:
    await lab.created("a", blank(), blank("data"))
    await taken(lab, "before")
    known = set(volumes(lab))
    for native_call, number in (
        ("volume_fill", 3),
        ("volume_fill", 11),
        ("volume_commit", 2),
        ("guest_write_records", 2),
    ):
        lab.world.faults.fail(native_call, number)
        ended = await take(lab, "s")
        assert ended.state is OperationState.FAILED
        assert set(volumes(lab)) == known, native_call
        assert await tree(lab) == {"before": ""}
        disks_are_whole_and_owned(lab)
    await taken(lab, "s")


async def test_a_cancelled_one_leaves_nothing(tmp_path: Path) -> None:
    async with running_lab(tmp_path, f"{EMULATE}&volume_mib_s=16") as lab:
        await lab.created("a", blank(), blank("data"))
        operation = await lab.services.snapshots.create(call(), lab.name("a"), Draft("s"))
        assert isinstance(operation, Operation)
        await lab.until(lambda: len(volumes(lab)) == 4)
        await lab.core.engine.cancel(operation.name)
        ended = await lab.end(operation)
        assert ended.state is OperationState.CANCELLED
        assert len(volumes(lab)) == 2
        assert native(lab).records == ""
        disks_are_whole_and_owned(lab)


async def test_a_failed_revert_leaves_the_guest_as_it_was(lab: Lab) -> None:
    await lab.created("a", blank(), blank("data"))
    write(lab, b"one")
    await taken(lab, "one")
    write(lab, b"two")
    known, definition = set(volumes(lab)), native(lab).native
    for native_call, number in (("volume_fill", 3), ("volume_fill", 11), ("guest_switch_disks", 1)):
        lab.world.faults.fail(native_call, number)
        ended = await lab.end(await lab.services.snapshots.revert(call(), lab.name("a"), "one"))
        assert ended.state is OperationState.FAILED
        assert (read(lab), native(lab).native) == (b"two", definition)
        assert set(volumes(lab)) == known, native_call
    await revert(lab, "one")
    assert read(lab) == b"one"
    disks_are_whole_and_owned(lab)


async def test_a_copy_that_is_gone(lab: Lab) -> None:
    await lab.created("a", blank())
    await taken(lab, "s")
    copy = next(name for name in volumes(lab) if "snapshot" in name)
    del volumes(lab)[copy]
    with pytest.raises(VirtdError, match=copy) as broken:
        await lab.services.snapshots.revert(call(), lab.name("a"), "s")
    assert broken.value.reason.name == "SNAPSHOT_CHAIN_BROKEN"
    await delete(lab, "s")


async def test_a_copy_that_somebody_uses(lab: Lab) -> None:
    await lab.created("a", blank())
    await taken(lab, "s")
    copy = next(name for name in volumes(lab) if "snapshot" in name)
    borrowed = DiskSpec("root", volume=f"hosts/lab/pools/virtd/volumes/{copy}")
    await lab.created("b", borrowed)
    with pytest.raises(VirtdError, match=r"used by guest b|is a disk of") as used:
        await lab.services.snapshots.delete(call(), lab.name("a"), "s")
    assert used.value.reason.name == "VOLUME_IN_USE"


async def test_a_disk_of_the_users_own_stays(lab: Lab) -> None:
    """A revert deletes what the guest owns, and nothing else."""
    await lab.created("owner", blank())
    (theirs,) = lab.view("owner").owned_volumes
    await lab.done(await lab.services.guests.delete(call(), lab.name("owner"), False, True, ""))
    disk = DiskSpec("root", volume=f"hosts/lab/pools/virtd/volumes/{theirs.partition('/')[2]}")
    await lab.created("a", disk)
    await taken(lab, "s")
    ended = await revert(lab, "s")
    assert theirs.partition("/")[2] in volumes(lab)
    assert any("not its own" in note.message for note in ended.notes), ended.notes


async def test_what_a_deletion_does(lab: Lab) -> None:
    await lab.created("a", blank())
    await taken(lab, "s")
    await lab.done(await lab.services.guests.delete(call(), lab.name("a"), force=False, keep_disks=False, etag=""))
    assert volumes(lab) == {}


async def test_the_trash_keeps_them(lab: Lab) -> None:
    await lab.created("a", blank())
    write(lab, b"one")
    await taken(lab, "s")
    write(lab, b"two")
    guests = lab.services.guests
    ended = await lab.done(await guests.delete(call(), lab.name("a"), False, False, "", DiskPolicy.TRASH))
    assert len(volumes(lab)) == 2
    await lab.done(await lab.services.trash.recover(call(), ended.result_data["trash"].partition("/")[2], ""))
    assert await tree(lab) == {"s": ""}
    await revert(lab, "s")
    assert read(lab) == b"one"
    disks_are_whole_and_owned(lab)


async def test_they_survive_the_loss_of_virtds_database(tmp_path: Path) -> None:
    uri = "fake:///survivor?emulate=guest.snapshot"
    for place in ("one", "two"):
        (tmp_path / place).mkdir()
    async with running_lab(tmp_path / "one", uri=uri) as lab:
        await lab.created("a", blank())
        write(lab, b"one")
        await taken(lab, "s")
        write(lab, b"two")
    async with running_lab(tmp_path / "two", uri=uri) as lab:
        await lab.done(await lab.services.guests.adopt(call(), lab.name("a")))
        assert await tree(lab) == {"s": ""}
        await revert(lab, "s")
        assert read(lab) == b"one"
        assert len(volumes(lab)) == 3, "nobody knows whose the disk was"


async def test_the_same_plan_again(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    """As after a crash: whatever of it was done, the end is the same."""
    monkeypatch.setattr(copying, "POLL_S", 0.0)
    await lab.created("a", blank(), blank("data"))
    uid, facet = lab.guest("a").uid, lab.link.facets.snapshots
    assert facet is not None
    request = SnapshotRequest("s")
    plan = await facet.plan_create(uid, request)
    lab.world.faults.fail("volume_commit", 2)
    lab.world.faults.fail("volume_delete")  # and its tidying up as well
    with pytest.raises(VirtdError):
        await facet.create_snapshot(uid, request, KitContext(), plan)
    for _ in range(2):
        made = await facet.create_snapshot(uid, request, KitContext(), plan)
        assert made.name == "s"
    assert {f"virtd/{name}" for name in volumes(lab)} == {*lab.view("a").owned_volumes, *plan.volumes}
    back = await facet.plan_revert(uid, "s")
    for _ in range(2):
        await facet.revert_snapshot(uid, "s", KitContext(), back)
    assert {f"virtd/{name}" for name in volumes(lab)} == {*back.replaced, *plan.volumes, *back.volumes}
    away = await facet.plan_delete(uid, "s")
    for _ in range(2):
        await facet.delete_snapshot(uid, "s", KitContext(), away)
    assert await facet.plan_delete(uid, "s") == SnapshotPlan()


def test_records_that_cannot_be_read() -> None:
    for text in ("{", "{}", '{"version":2,"current":"","snapshots":[]}', '{"version":1,"current":"","snapshots":[{}]}'):
        with pytest.raises(InternalError, match="cannot be read"):
            CopyTree.of_text(text)
    assert CopyTree.of_text("") == CopyTree()


async def test_external_is_refused_by_the_facet_itself(lab: Lab) -> None:
    await lab.created("a", blank())
    facet = lab.link.facets.snapshots
    assert facet is not None
    with pytest.raises(UnsupportedError) as refusal:
        await facet.plan_create(lab.guest("a").uid, SnapshotRequest("s", location=SnapshotLocation.EXTERNAL))
    assert refusal.value.record.metadata["capability"] == SNAPSHOT_EXTERNAL
