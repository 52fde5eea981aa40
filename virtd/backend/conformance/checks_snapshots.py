"""Checks of snapshots: the tree is what it should be, and reverting brings the contents back."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from uuid import UUID

from virtd.backend import capabilities as caps
from virtd.backend.api import SnapshotPlan, SnapshotRequest
from virtd.backend.conformance.checks_inside import agent_answers, answers_again, ask, inside, run, with_agent
from virtd.backend.conformance.deeds import revert, take
from virtd.backend.conformance.kit import Kit, NotRun, check
from virtd.errors import CAPABILITY_UNSUPPORTED, SNAPSHOT_MIXED, SNAPSHOT_NOT_FOUND
from virtd.model.guest import GuestState
from virtd.model.snapshot import EXTERNAL, Snapshot, SnapshotKind, SnapshotLocation


async def _take(
    kit: Kit,
    uuid: UUID,
    name: str,
    *,
    memory: bool = False,
    location: SnapshotLocation = SnapshotLocation.AUTO,
    quiesce: bool = False,
) -> Snapshot:
    made = await take(kit, uuid, SnapshotRequest(name, f"about {name}", memory, location, quiesce))
    assert made.name == name
    assert made.kind is (SnapshotKind.DISK_AND_MEMORY if memory else SnapshotKind.DISK)
    return made


async def _tree(kit: Kit, uuid: UUID) -> dict[str, str]:
    """Parent by name; parents come first and exactly one snapshot, or none, is current."""
    found: Sequence[Snapshot] = await kit.facet("snapshots").list_snapshots(uuid)
    seen: set[str] = set()
    for item in found:
        assert not item.parent or item.parent in seen, f"{item.name} comes before its parent {item.parent}"
        seen.add(item.name)
    assert sum(item.current for item in found) <= 1, "two snapshots are current"
    return {item.name: item.parent for item in found}


async def _current(kit: Kit, uuid: UUID) -> str:
    return next((item.name for item in await kit.facet("snapshots").list_snapshots(uuid) if item.current), "")


class TestSnapshots:
    """Snapshots of stopped guests."""

    @check(caps.SNAPSHOT)
    async def test_record(self, kit: Kit) -> None:
        """A snapshot is listed as it was asked for."""
        subject = await kit.new_guest()
        made = await _take(kit, subject.uuid, "one")
        assert (made.description, made.parent) == ("about one", "")
        assert made.guest_state in ("", GuestState.STOPPED)
        assert made.create_time is None or made.create_time.tzinfo is not None
        listed = await kit.facet("snapshots").list_snapshots(subject.uuid)
        assert [item.name for item in listed] == ["one"]
        assert listed[0] == replace(made, reason=""), "create_snapshot and list_snapshots describe it differently"

    @check(caps.SNAPSHOT)
    async def test_create_twice(self, kit: Kit) -> None:
        """Creating one that is complete returns it as it is."""
        subject = await kit.new_guest()
        first = await _take(kit, subject.uuid, "one")
        assert await _take(kit, subject.uuid, "one") == replace(first, reason="")
        assert len(await _tree(kit, subject.uuid)) == 1

    @check(caps.SNAPSHOT)
    async def test_delete(self, kit: Kit) -> None:
        """Deleting is idempotent, and leaves the guest as it was."""
        subject = await kit.new_guest()
        before = await kit.digest()
        await _take(kit, subject.uuid, "one")
        for _ in range(2):
            await kit.facet("snapshots").delete_snapshot(subject.uuid, "one", kit.context())
            assert await _tree(kit, subject.uuid) == {}
        await kit.unchanged(before, "a deleted snapshot")

    @check(caps.SNAPSHOT)
    async def test_chain(self, kit: Kit) -> None:
        """Parents are right; deleting the middle one gives its child to its parent."""
        subject = await kit.new_guest()
        for name in ("one", "two", "three"):
            await _take(kit, subject.uuid, name)
        assert await _tree(kit, subject.uuid) == {"one": "", "two": "one", "three": "two"}
        assert await _current(kit, subject.uuid) == "three"
        await kit.facet("snapshots").delete_snapshot(subject.uuid, "two", kit.context())
        assert await _tree(kit, subject.uuid) == {"one": "", "three": "one"}
        await kit.facet("snapshots").delete_snapshot(subject.uuid, "one", kit.context())
        assert await _tree(kit, subject.uuid) == {"three": ""}

    @check(caps.SNAPSHOT_REVERT)
    async def test_branch(self, kit: Kit) -> None:
        """A snapshot that is taken after a revert is a child of the one that was reverted to."""
        subject = await kit.new_guest()
        for name in ("one", "two"):
            await _take(kit, subject.uuid, name)
        for _ in range(2):
            await revert(kit, subject.uuid, "one")
            assert await kit.state(subject.uuid) == GuestState.STOPPED
        assert await _current(kit, subject.uuid) == "one"
        await _take(kit, subject.uuid, "branch")
        assert await _tree(kit, subject.uuid) == {"one": "", "two": "one", "branch": "one"}

    @check(caps.SNAPSHOT_REVERT)
    async def test_revert_to_nothing(self, kit: Kit) -> None:
        """Reverting to a snapshot that is not there changes nothing."""
        subject = await kit.new_guest()
        await _take(kit, subject.uuid, "one")
        before = await kit.digest()
        facet = kit.facet("snapshots")
        await kit.error(facet.revert_snapshot(subject.uuid, "no-such", kit.context()), SNAPSHOT_NOT_FOUND)
        await kit.unchanged(before, "the refusal")

    @check(caps.SNAPSHOT)
    async def test_undefine(self, kit: Kit) -> None:
        """A guest with snapshots can be forgotten, and leaves none to a later one of its name."""
        subject = await kit.new_guest()
        await _take(kit, subject.uuid, "one")
        await kit.session.undefine_guest(subject.uuid, kit.context())
        await kit.session.define_guest(subject.resolved, kit.context())
        assert await _tree(kit, subject.uuid) == {}

    @check(caps.SNAPSHOT)
    async def test_describe(self, kit: Kit) -> None:
        """A description can be changed, and nothing else changes with it."""
        subject, facet = await kit.new_guest(), kit.facet("snapshots")
        made = [await _take(kit, subject.uuid, name) for name in ("one", "two")]
        for _ in range(2):
            await facet.describe_snapshot(subject.uuid, "one", "other words")
        first, second = await facet.list_snapshots(subject.uuid)
        assert first == replace(made[0], description="other words", current=False, reason="")
        assert second == replace(made[1], reason="")
        await kit.error(facet.describe_snapshot(subject.uuid, "no-such", ""), SNAPSHOT_NOT_FOUND)

    @check(caps.SNAPSHOT)
    async def test_plans_change_nothing(self, kit: Kit) -> None:
        """A plan says where a snapshot would be kept, and why; planning has no side effect."""
        subject, facet = await kit.new_guest(), kit.facet("snapshots")
        before = await kit.digest()
        plan = await facet.plan_create(subject.uuid, SnapshotRequest("one"))
        assert plan.location and plan.reason
        await kit.unchanged(before, "a plan")
        assert (await _take(kit, subject.uuid, "one")).location == plan.location
        before = await kit.digest()
        for _ in range(2):
            await facet.plan_delete(subject.uuid, "one")
            assert await facet.plan_delete(subject.uuid, "no-such") == SnapshotPlan()
        await kit.unchanged(before, "a plan")
        await kit.error(facet.plan_revert(subject.uuid, "no-such"), SNAPSHOT_NOT_FOUND, CAPABILITY_UNSUPPORTED)


class TestExternalSnapshots:
    """Snapshots beside the images: of guests that cannot have others, and of running disks."""

    @check(caps.SNAPSHOT_EXTERNAL)
    async def test_chain(self, kit: Kit) -> None:
        """As internal ones: parents are right, deleting is idempotent and gives children to the parent."""
        subject, facet = await kit.new_guest(), kit.facet("snapshots")
        for name in ("one", "two", "three"):
            made = await _take(kit, subject.uuid, name, location=SnapshotLocation.EXTERNAL)
            assert made.location == EXTERNAL
        for name in ("two", "two", "one"):
            await facet.delete_snapshot(subject.uuid, name, kit.context())
        assert await _tree(kit, subject.uuid) == {"three": ""}
        await facet.delete_snapshot(subject.uuid, "three", kit.context())
        assert await _tree(kit, subject.uuid) == {}

    @check(caps.SNAPSHOT_EXTERNAL, caps.SNAPSHOT_REVERT)
    async def test_branch(self, kit: Kit) -> None:
        """Reverting makes another branch; twice is once; the same plan may come again."""
        subject, facet = await kit.new_guest(), kit.facet("snapshots")
        for name in ("one", "two"):
            await _take(kit, subject.uuid, name, location=SnapshotLocation.EXTERNAL)
        plan = await facet.plan_revert(subject.uuid, "one")
        for _ in range(2):
            await facet.revert_snapshot(subject.uuid, "one", kit.context(), plan)
        assert await _current(kit, subject.uuid) == "one"
        await _take(kit, subject.uuid, "branch")
        assert await _tree(kit, subject.uuid) == {"one": "", "two": "one", "branch": "one"}
        for name in ("one", "branch", "two"):
            plan = await facet.plan_delete(subject.uuid, name)
            for _ in range(2):  # as after a crash
                await facet.delete_snapshot(subject.uuid, name, kit.context(), plan)
        assert await _tree(kit, subject.uuid) == {}

    @check(caps.SNAPSHOT_EXTERNAL, caps.SNAPSHOT_REVERT)
    async def test_running_disks(self, kit: Kit) -> None:
        """A running guest's disks are snapshotted without its memory; reverting leaves it stopped."""
        subject = await kit.new_guest(running=True)
        made = await _take(kit, subject.uuid, "disks")
        assert (made.location, made.guest_state) == (EXTERNAL, GuestState.RUNNING)
        await kit.reaches(subject.uuid, GuestState.RUNNING)
        await revert(kit, subject.uuid, "disks")
        await kit.reaches(subject.uuid, GuestState.STOPPED)

    @check(caps.SNAPSHOT_EXTERNAL)
    async def test_kinds_are_not_mixed(self, kit: Kit) -> None:
        """Internal and external snapshots of one guest: refused, and nothing changes."""
        subject, facet = await kit.new_guest(), kit.facet("snapshots")
        await _take(kit, subject.uuid, "one", location=SnapshotLocation.INTERNAL)
        before = await kit.digest()
        request = SnapshotRequest("two", location=SnapshotLocation.EXTERNAL)
        await kit.error(facet.plan_create(subject.uuid, request), SNAPSHOT_MIXED)
        await kit.error(facet.create_snapshot(subject.uuid, request, kit.context()), SNAPSHOT_MIXED)
        await kit.unchanged(before, "the refusal")


class TestQuiescedSnapshots:
    """Snapshots for which the guest's agent freezes the file systems."""

    @check(caps.SNAPSHOT_EXTERNAL, caps.SNAPSHOT_QUIESCE, caps.AGENT_EXEC)
    async def test_quiesce(self, kit: Kit) -> None:
        """The guest runs on, thawed."""
        subject = await with_agent(kit)
        await _take(kit, subject.uuid, "quiet", quiesce=True)
        await kit.reaches(subject.uuid, GuestState.RUNNING)
        await agent_answers(kit, subject.uuid)
        bootable = kit.bootable()
        await run(kit, subject.uuid, bootable.write_memory("after"))
        assert (await run(kit, subject.uuid, bootable.read_memory)).stdout == b"after"
        await kit.facet("snapshots").delete_snapshot(subject.uuid, "quiet", kit.context())


class TestMemorySnapshots:
    """Snapshots of running guests, with memory."""

    @check(caps.SNAPSHOT_MEMORY)
    async def test_keeps_running(self, kit: Kit) -> None:
        """The guest runs on, and progress never goes back."""
        subject = await kit.in_state(GuestState.RUNNING)
        made = await _take(kit, subject.uuid, "live", memory=True)
        assert made.guest_state == GuestState.RUNNING
        await kit.reaches(subject.uuid, GuestState.RUNNING)
        await kit.facet("snapshots").delete_snapshot(subject.uuid, "live", kit.context())

    @check(caps.SNAPSHOT_MEMORY, caps.SNAPSHOT_REVERT)
    async def test_revert_states(self, kit: Kit) -> None:
        """Reverting to a running guest makes it run, whatever it was."""
        subject = await kit.new_guest(running=True)
        await _take(kit, subject.uuid, "live", memory=True)
        await revert(kit, subject.uuid, "live")
        await kit.reaches(subject.uuid, GuestState.RUNNING)
        await kit.session.stop_guest(subject.uuid, kit.context())
        await revert(kit, subject.uuid, "live")
        await kit.reaches(subject.uuid, GuestState.RUNNING)

    @check(caps.SNAPSHOT_MEMORY, caps.SNAPSHOT_REVERT)
    async def test_contents(self, kit: Kit) -> None:
        """Three snapshots, the middle one deleted: the others still bring their own contents back."""
        subject = await inside(kit)
        bootable, facet = kit.bootable(), kit.facet("snapshots")
        for text in ("one", "two", "three"):
            await ask(kit, subject.uuid, bootable.write_memory(text))
            await _take(kit, subject.uuid, text, memory=True)
        await ask(kit, subject.uuid, bootable.write_memory("after"))
        await facet.delete_snapshot(subject.uuid, "two", kit.context())
        for text in ("one", "three", "one"):
            await revert(kit, subject.uuid, text)
            await kit.reaches(subject.uuid, GuestState.RUNNING)
            await answers_again(kit, subject.uuid)
            assert (await ask(kit, subject.uuid, bootable.read_memory)).stdout == text.encode()
        for text in ("one", "three"):
            await facet.delete_snapshot(subject.uuid, text, kit.context())
        assert await _tree(kit, subject.uuid) == {}


class TestDiskContents:
    """What is on a guest's disks."""

    @check(caps.SNAPSHOT, caps.SNAPSHOT_REVERT)
    async def test_revert_brings_the_disk_back(self, kit: Kit) -> None:
        """Written, snapshot, overwritten, reverted: the first is there again."""
        subject, bootable = await inside(kit), kit.bootable()
        if bootable.write_disk is None or bootable.read_disk is None:
            raise NotRun("the provision's bootable guest names no command that writes to its disk")
        await ask(kit, subject.uuid, bootable.write_disk("first"))
        await kit.session.stop_guest(subject.uuid, kit.context())
        await _take(kit, subject.uuid, "first")
        await kit.session.start_guest(subject.uuid, kit.context())
        await answers_again(kit, subject.uuid)
        await ask(kit, subject.uuid, bootable.write_disk("second"))
        await kit.session.stop_guest(subject.uuid, kit.context())
        await revert(kit, subject.uuid, "first")
        await kit.session.start_guest(subject.uuid, kit.context())
        await answers_again(kit, subject.uuid)
        assert (await ask(kit, subject.uuid, bootable.read_disk)).stdout.strip(b"\n") == b"first"
        await kit.facet("snapshots").delete_snapshot(subject.uuid, "first", kit.context())
