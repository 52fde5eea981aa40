"""Use cases of snapshots, volumes, images, metrics and events on the fake hypervisor."""

from __future__ import annotations

import asyncio
import shutil
import subprocess
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.support.daemons import HOST, MIB, Lab, blank, call, running_lab, short_directory
from virtd.errors import (
    AlreadyExistsError,
    FailedPreconditionError,
    InvalidArgumentError,
    NotFoundError,
    OutOfRangeError,
    UnavailableError,
    UnsupportedError,
)
from virtd.model.console import AgentCommand
from virtd.model.event import EventType
from virtd.model.guest import DiskFormat, DiskSpec, GuestState, ImageSource
from virtd.model.operation import OperationState
from virtd.service.events import WatchBatch, WatchBookmark, WatchInitialDone, WatchReset
from virtd.service.snapshots import Draft as SnapshotDraft


@pytest.fixture
async def lab() -> AsyncIterator[Lab]:
    with short_directory() as place:
        async with running_lab(place) as made:
            yield made


async def write(lab: Lab, path: str, text: bytes) -> None:
    command = AgentCommand("/bin/tee", (path,), (), text, 5.0)
    result = await lab.services.agents.execute(call(), lab.name("a"), command)
    assert result.exit_code == 0


async def read(lab: Lab, path: str) -> bytes | None:
    command = AgentCommand("/bin/cat", (path,), (), b"", 5.0)
    result = await lab.services.agents.execute(call(), lab.name("a"), command)
    return result.stdout if result.exit_code == 0 else None


# -------------------------------------------------------------------------------------- snapshots


async def test_a_tree_of_snapshots_and_what_reverting_brings_back(lab: Lab) -> None:
    snapshots, name = lab.services.snapshots, lab.name("a")
    await lab.created("a", blank(), start=True)
    await write(lab, "/etc/motd", b"one")
    await write(lab, "/tmp/x", b"memory")
    await lab.done(await snapshots.create(call(), name, SnapshotDraft("one", "the first", memory=True)))
    await write(lab, "/etc/motd", b"two")
    await lab.done(await snapshots.create(call(), name, SnapshotDraft("two", "", memory=True)))
    await lab.done(await snapshots.revert(call(), name, "one"))
    assert await read(lab, "/etc/motd") == b"one"
    assert await read(lab, "/tmp/x") == b"memory"
    await lab.done(await snapshots.create(call(), name, SnapshotDraft("other", "", memory=True)))
    listed = (await snapshots.list(name.host, name.guest, 0, "")).items
    assert {(s.name.rpartition("/")[2], s.parent) for s in listed} == {("one", ""), ("two", "one"), ("other", "one")}
    assert listed[0].name == f"{name}/snapshots/one"
    first = await snapshots.list(name.host, name.guest, 1, "")
    await lab.done(await snapshots.delete(call(), name, "one"))
    after = await snapshots.list(name.host, name.guest, 10, first.next_page_token)
    assert {s.name.rpartition("/")[2] for s in after.items} == {"two", "other"}, "paging goes on behind what is gone"
    assert (await snapshots.get(name, "two")).parent == ""
    await lab.core.events.flush()
    events = await lab.core.events.read(0, 1000)
    kinds = [e.type for e in events if e.type in (EventType.SNAPSHOT_ADDED, EventType.SNAPSHOT_REMOVED)]
    assert kinds == [EventType.SNAPSHOT_ADDED] * 3 + [EventType.SNAPSHOT_REMOVED]


async def test_a_snapshots_name_is_given_once_and_undo_never_takes_anothers(lab: Lab) -> None:
    snapshots, name = lab.services.snapshots, lab.name("a")
    await lab.created("a", blank(), start=True)
    hang = lab.world.faults.hang("snapshot_copy_disk")
    one = await snapshots.create(call(), name, SnapshotDraft("s", "", memory=False))
    # Asked for while the first is being made.
    two = await snapshots.create(call(), name, SnapshotDraft("s", "", memory=False))
    await lab.until(lambda: hang.entered > 0)
    hang.release()
    await lab.done(one)
    await lab.failed(two, "SNAPSHOT_EXISTS")
    assert [s.name for s in (await snapshots.list(name.host, name.guest, 0, "")).items] == [f"{name}/snapshots/s"]
    with pytest.raises(AlreadyExistsError):
        await snapshots.create(call(), name, SnapshotDraft("s", "", memory=False))


async def test_a_snapshot_that_is_called_off_leaves_nothing(lab: Lab) -> None:
    await lab.created("a", blank(), start=True)
    hang = lab.world.faults.hang("snapshot_copy_memory")
    operation = await lab.services.snapshots.create(call(), lab.name("a"), SnapshotDraft("s", "", memory=True))
    assert operation is not None
    await lab.until(lambda: hang.entered > 0)
    await lab.core.engine.cancel(operation.name)
    assert (await lab.end(operation)).state is OperationState.CANCELLED
    assert lab.world.native.guests[lab.guest("a").uid].snapshots == {}


async def test_memory_is_looked_for_when_the_turn_comes(lab: Lab) -> None:
    await lab.created("a", blank())
    hang = lab.world.faults.hang("guest_create")
    starting = await lab.services.guests.start(call(), lab.name("a"))
    await lab.until(lambda: hang.entered > 0)
    snapshot = await lab.services.snapshots.create(call(), lab.name("a"), SnapshotDraft("s", "", memory=True))
    hang.release()
    await lab.done(starting)
    await lab.done(snapshot)
    assert (await lab.services.snapshots.get(lab.name("a"), "s")).kind == "DISK_AND_MEMORY"


async def test_snapshots_that_are_not_there_or_not_possible(lab: Lab) -> None:
    await lab.created("a")
    for verb in (lab.services.snapshots.revert, lab.services.snapshots.delete):
        with pytest.raises(NotFoundError) as caught:
            await verb(call(), lab.name("a"), "none")
        assert caught.value.reason.name == "SNAPSHOT_NOT_FOUND"
    for bad in ("", "A", "a/b", "a" * 64, "a\n", "<b>"):
        with pytest.raises(InvalidArgumentError) as invalid:
            await lab.services.snapshots.create(call(), lab.name("a"), SnapshotDraft(bad, "", memory=False))
        assert invalid.value.record.violations[0].field == "snapshot_id"
    with short_directory() as place:
        async with running_lab(place, "without=guest.snapshot") as poor:
            await poor.created("a")
            with pytest.raises(UnsupportedError):
                await poor.services.snapshots.create(call(), poor.name("a"), SnapshotDraft("s", "", memory=False))


# ---------------------------------------------------------------------------------------- volumes


async def volume(lab: Lab, name: str, size: int = MIB) -> None:
    await lab.done(await lab.services.storage.create_volume(call(), HOST, "virtd", name, size, DiskFormat.QCOW2))


async def test_volumes_are_made_listed_and_deleted_once_nobody_uses_them(lab: Lab) -> None:
    await lab.created("a", blank())
    storage = lab.services.storage
    await volume(lab, "spare")
    listed = {v.name.rpartition("/")[2]: v.used_by for v in (await storage.list_volumes(HOST, "virtd", 0, "")).items}
    assert listed.pop("spare") == ()
    (used, users), *_ = listed.items()
    assert users == (str(lab.name("a")),)
    with pytest.raises(FailedPreconditionError) as caught:
        await storage.delete_volume(call(), HOST, "virtd", used)
    assert caught.value.reason.name == "VOLUME_IN_USE"
    await lab.done(await storage.delete_volume(call(), HOST, "virtd", "spare"))
    with pytest.raises(NotFoundError):
        await storage.get_volume(HOST, "virtd", "spare")


async def test_a_volume_of_a_guest_that_is_being_made_is_in_use(lab: Lab) -> None:
    hang = lab.world.faults.hang("guest_write_config")
    creating = await lab.create("a", blank())
    await lab.until(lambda: hang.entered > 0)
    name = next(iter(lab.world.native.pools["virtd"].volumes))
    with pytest.raises(FailedPreconditionError):
        await lab.services.storage.delete_volume(call(), HOST, "virtd", name)
    hang.release()
    await lab.done(creating)


async def test_two_volumes_of_one_name_never_undo_each_other(lab: Lab) -> None:
    await lab.created("a", blank())
    storage = lab.services.storage
    hang = lab.world.faults.hang("volume_commit", deaf=True)
    one = await storage.create_volume(call(), HOST, "virtd", "v", MIB, DiskFormat.RAW)
    two = await storage.create_volume(call(), HOST, "virtd", "v", MIB, DiskFormat.RAW)
    await lab.until(lambda: hang.entered > 0)
    hang.release()
    await lab.done(one)
    await lab.failed(two, "VOLUME_EXISTS")
    assert (await storage.get_volume(HOST, "virtd", "v")).capacity_bytes == MIB


@pytest.mark.parametrize(
    ("size", "what"), [(0, "greater than zero"), (-512, "greater"), (1000, "multiple of 512"), (2**62, "at most")]
)
async def test_sizes_that_cannot_be(lab: Lab, size: int, what: str) -> None:
    with pytest.raises(InvalidArgumentError) as caught:
        await lab.services.storage.create_volume(call(), HOST, "virtd", "v", size, DiskFormat.RAW)
    violation = caught.value.record.violations[0]
    assert violation.field == "capacity_bytes"
    assert what in violation.description


# ----------------------------------------------------------------------------------------- images


@pytest.fixture
def image(lab: Lab) -> Path:
    """A file to import.  qemu-img is part of what virtd needs."""
    assert shutil.which("qemu-img"), "qemu-utils is missing"
    directory = Path(lab.daemon.config.state.import_directory)
    path = directory / "base.qcow2"
    subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", str(path), "4M"], check=True)
    return path


async def imported(lab: Lab, image: Path, name: str = "base") -> None:
    await lab.done(await lab.services.images.import_(call(), name, str(image), DiskFormat.QCOW2))


async def test_an_image_is_imported_used_and_not_deleted_while_it_is(lab: Lab, image: Path) -> None:
    images = lab.services.images
    await imported(lab, image)
    record = await images.get("base")
    assert record.digest.startswith("sha256:")
    assert record.capacity_bytes == 4 * MIB
    disk = DiskSpec("root", image=ImageSource("images/base"))
    await lab.created("a", disk)
    with pytest.raises(FailedPreconditionError) as caught:
        await images.delete(call(), "base")
    assert caught.value.reason.name == "IMAGE_IN_USE"
    # Also when the host cannot be asked: not seen is not gone.
    lab.world.disconnect()
    await lab.until(lambda: lab.guest("a").status.stale_since is not None)
    with pytest.raises(FailedPreconditionError):
        await images.delete(call(), "base")
    lab.world.reconnect()
    await lab.until(lambda: lab.guest("a").status.stale_since is None)
    await lab.done(await lab.services.guests.delete(call(), lab.name("a"), force=False, keep_disks=True, etag=""))
    with pytest.raises(FailedPreconditionError):
        await images.delete(call(), "base")  # the disk that was kept is based on it
    lab.world.disconnect()
    await lab.until(lambda: lab.link.host.state == "UNREACHABLE")
    with pytest.raises(UnavailableError):
        await images.delete(call(), "base")
    lab.world.reconnect()
    await lab.until(lambda: lab.link.host.state == "CONNECTED")
    name = next(iter(lab.world.native.pools["virtd"].volumes))
    await lab.done(await lab.services.storage.delete_volume(call(), HOST, "virtd", name))
    await lab.done(await images.delete(call(), "base"))
    assert (await images.list(0, "")).items == ()


async def test_two_imports_of_one_name_never_replace_each_other(lab: Lab, image: Path) -> None:
    other = image.with_name("other.qcow2")
    subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", str(other), "8M"], check=True)
    one, two = await asyncio.gather(
        lab.services.images.import_(call(), "base", str(image), DiskFormat.QCOW2),
        lab.services.images.import_(call(), "base", str(other), DiskFormat.QCOW2),
    )
    ends = sorted([await lab.end(one), await lab.end(two)], key=lambda end: end.state)
    assert [end.state for end in ends] == [OperationState.FAILED, OperationState.SUCCEEDED]
    assert ends[0].error is not None
    assert ends[0].error.reason == "IMAGE_EXISTS"
    capacity = 4 * MIB if one is not None and ends[1].name == one.name else 8 * MIB
    assert (await lab.services.images.get("base")).capacity_bytes == capacity
    assert len(list(lab.daemon.config.state.images_directory.iterdir())) == 1


async def test_images_that_are_not_what_they_are_said_to_be(lab: Lab, image: Path) -> None:
    images = lab.services.images
    with pytest.raises(InvalidArgumentError) as caught:
        await images.import_(call(), "b", "/etc/passwd", DiskFormat.RAW)
    assert caught.value.reason.name == "PATH_NOT_ALLOWED"
    link = image.with_name("link.raw")
    link.symlink_to("/etc/passwd")
    with pytest.raises(InvalidArgumentError, match="outside the allowed"):
        await images.import_(call(), "b", str(link), DiskFormat.RAW)
    text = image.with_name("text.qcow2")
    text.write_text("no image")
    for path, format_ in ((text, DiskFormat.QCOW2), (image.with_name("none"), DiskFormat.RAW)):
        with pytest.raises(InvalidArgumentError) as caught:
            await images.import_(call(), "b", str(path), format_)
        assert caught.value.reason.name == "IMAGE_INVALID"
    overlay = image.with_name("overlay.qcow2")
    subprocess.run(
        ["qemu-img", "create", "-q", "-f", "qcow2", "-b", str(image), "-F", "qcow2", str(overlay)], check=True
    )
    with pytest.raises(InvalidArgumentError, match="backing file"):
        await images.import_(call(), "b", str(overlay), DiskFormat.QCOW2)
    assert not list(lab.daemon.config.state.images_directory.iterdir())


# ---------------------------------------------------------------------------- metrics, agent, events


async def test_metrics_come_from_memory(lab: Lab) -> None:
    await lab.created("a", start=True)
    await lab.created("b")
    await lab.link._sample()
    with lab.world.recording() as calls:
        samples = await lab.services.metrics.get("-")
    assert [name for name, _ in samples] == [str(lab.name("a"))]
    assert calls == []
    await lab.done(await lab.services.guests.stop(call(), lab.name("a")))
    await lab.link._sample()
    assert await lab.services.metrics.get(HOST) == []


async def test_events_are_watched_resumed_and_reset(lab: Lab) -> None:
    watch = lab.services.events.watch
    await lab.created("a")
    states = watch("type=GUEST_ADDED", "", True, 0)
    first = await anext(states)
    assert isinstance(first, WatchBatch)
    assert [event.resource for event in first.events] == [str(lab.name("a"))]
    done = await anext(states)
    assert isinstance(done, WatchInitialDone)
    await states.aclose()  # type: ignore[attr-defined]
    assert lab.services.events.watchers == 0
    await lab.created("b")
    await lab.core.events.flush()
    resumed = watch("type=GUEST_ADDED", done.token, False, 0)
    batch = await anext(resumed)
    assert isinstance(batch, WatchBatch)
    assert [event.resource for event in batch.events] == [str(lab.name("b"))]
    await resumed.aclose()  # type: ignore[attr-defined]
    stranger = watch("", "0123456789ab:run:7", False, 0)
    assert isinstance(await anext(stranger), WatchReset)
    await stranger.aclose()  # type: ignore[attr-defined]
    plain = watch("", "", False, 0)
    assert isinstance(await anext(plain), WatchBookmark)
    await plain.aclose()  # type: ignore[attr-defined]
    with pytest.raises(OutOfRangeError):
        await lab.services.events.pull("", "0123456789ab:run:7", 10, 0)
    with pytest.raises(InvalidArgumentError):
        await anext(watch("", done.token, True, 0))
    with pytest.raises(InvalidArgumentError):
        await anext(watch("nonsense", "", False, 0))


async def test_pulling_gives_every_event_once(lab: Lab) -> None:
    token = (await lab.services.events.pull("", "", 0, 0))[1]
    for name in "abc":
        await lab.created(name)
    await lab.core.events.flush()
    found = []
    while True:
        events, token = await lab.services.events.pull("type=GUEST_ADDED", token, 1, 0)
        if not events:
            break
        found += [event.resource[-1] for event in events]
    assert found == ["a", "b", "c"]


async def test_commands_that_cannot_be(lab: Lab) -> None:
    await lab.created("a", start=True)
    bad = AgentCommand("", ("a\0b",), ("NOEQUALS",), b"", 0.0)
    with pytest.raises(InvalidArgumentError) as caught:
        await lab.services.agents.execute(call(), lab.name("a"), bad)
    assert {v.field for v in caught.value.record.violations} == {"path", "arguments", "environment", "timeout_s"}
    await lab.done(await lab.services.guests.stop(call(), lab.name("a")))
    with pytest.raises(FailedPreconditionError):
        await lab.services.agents.execute(call(), lab.name("a"), AgentCommand("/bin/true", (), (), b"", 5.0))
    assert lab.state("a") is GuestState.STOPPED


async def test_operations_are_paged_newest_first_also_when_some_go(lab: Lab) -> None:
    for name in "abcdef":
        await lab.created(name)
    operations = lab.services.operations
    first = await operations.list("verb=create", 2, "")
    assert [entry.target[-1] for entry in first.items] == ["f", "e"]
    for gone in ("e", "c"):
        entry = next(o for o in await lab.core.engine.list() if o.target.endswith(gone))
        await operations.delete(call(), entry.name.removeprefix("operations/"))
    second = await operations.list("verb=create", 2, first.next_page_token)
    assert [entry.target[-1] for entry in second.items] == ["d", "b"]
    third = await operations.list("verb=create", 2, second.next_page_token)
    assert [entry.target[-1] for entry in third.items] == ["a"]
    assert third.next_page_token == ""


async def test_audit_records_are_kept_in_order(lab: Lab) -> None:
    for number in range(5):
        lab.services.audit.record(
            caller="me", method=f"m{number}", resource="r", request_id="", outcome="OK", operation=""
        )
    lab.services.audit.trim()
    await lab.core.database.write(lambda _connection: None)
    first = await lab.services.audit.list(2, "")
    assert [record.method for record in first.items] == ["m4", "m3"]
    rest = await lab.services.audit.list(10, first.next_page_token)
    assert [record.method for record in rest.items] == ["m2", "m1", "m0"]
    with pytest.raises(InvalidArgumentError):
        await lab.services.audit.list(2, "x")
