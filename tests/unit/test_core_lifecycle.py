"""Clone, trash, protection, adoption and release on the fake hypervisor, through the whole core."""

from __future__ import annotations

from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from tests.support.daemons import HOST, Lab, blank, call, running_lab, short_directory
from virtd.errors import (
    AlreadyExistsError,
    FailedPreconditionError,
    InvalidArgumentError,
    NotFoundError,
    UnsupportedError,
    VirtdError,
)
from virtd.model.guest import DiskFormat, DiskSpec, Firmware, GuestState, HostFileSource, Origin, RunStrategy
from virtd.model.operation import Operation, OperationState
from virtd.model.trash import CloneMode, DiskPolicy
from virtd.service.clones import CloneDraft
from virtd.service.snapshots import Draft

S = GuestState


@pytest.fixture
async def lab() -> AsyncIterator[Lab]:
    with short_directory() as place:
        async with running_lab(place) as made:
            yield made


def volumes(lab: Lab) -> set[str]:
    return {name for pool in lab.world.native.pools.values() for name in pool.volumes}


def backing(lab: Lab, guest: str) -> str:
    path = lab.guest(guest).status.disks[0].path
    (found,) = [v for pool in lab.world.native.pools.values() for v in pool.volumes.values() if v.path == path]
    return found.backing_path


async def clone(lab: Lab, source: str, guest_id: str, mode: CloneMode = CloneMode.FULL, **changes: Any) -> Operation:
    return await lab.services.clones.clone(call(), lab.name(source), CloneDraft(guest_id, mode, **changes))


async def delete(lab: Lab, guest: str, policy: DiskPolicy | None = None, *, force: bool = False) -> Operation:
    operation = await lab.services.guests.delete(
        call(), lab.name(guest), force=force, keep_disks=False, etag="", disk_policy=policy
    )
    assert operation is not None
    return operation


def snapshot_of(lab: Lab) -> tuple[set[str], set[str], tuple[str, ...], str]:
    """All that a clone that fails must leave as it was."""
    source = lab.view("a")
    return (
        volumes(lab),
        {guest.name for guest in lab.world.native.guests.values()},
        source.owned_volumes,
        source.guest.status.disks[0].path,
    )


# ------------------------------------------------------------------------------------------- clone


@pytest.mark.parametrize("mode", list(CloneMode))
async def test_a_clone_is_a_guest_of_its_own(lab: Lab, mode: CloneMode) -> None:
    source = await lab.created(
        "a", blank(), firmware=Firmware.UEFI, run_strategy=RunStrategy.HALTED, autostart=True, deletion_protection=True
    )
    lab.world.native.guests[source.uid].variables = b"boot order"
    ended = await lab.done(await clone(lab, "a", "b", mode, start=True))
    made = lab.guest("b")
    assert ended.result == made.name
    assert made.uid != source.uid
    assert made.status.state is S.RUNNING
    assert (made.spec.run_strategy, made.spec.autostart, made.spec.deletion_protection) == (
        RunStrategy.MANUAL, False, False,
    )  # fmt: skip
    assert lab.world.native.guests[made.uid].variables == b"boot order"
    assert made.status.disks[0].path != lab.guest("a").status.disks[0].path
    linked = mode is CloneMode.LINKED
    assert (backing(lab, "b") == backing(lab, "a") != "") is linked
    if linked:
        assert set(lab.view("a").owned_volumes) & set(lab.view("b").owned_volumes)


@pytest.mark.parametrize("mode", list(CloneMode))
@pytest.mark.parametrize("after", [False, True])
@pytest.mark.parametrize(
    "fault", ["volume_allocate", "volume_commit", "guest_write_config", "guest_write_variables", "guest_create"]
)
async def test_a_clone_that_fails_leaves_everything_as_it_was(
    lab: Lab, fault: str, after: bool, mode: CloneMode
) -> None:
    source = await lab.created("a", blank(), firmware=Firmware.UEFI)
    lab.world.native.guests[source.uid].variables = b"x"
    before = snapshot_of(lab)
    lab.world.faults.fail(fault, 1, after=after)
    ended = await lab.end(await clone(lab, "a", "b", mode, start=True))
    assert ended.state is OperationState.FAILED
    await lab.link.resync()
    assert snapshot_of(lab) == before
    assert lab.core.inventory.find(lab.name("b")) is None
    await lab.done(await clone(lab, "a", "b", mode, start=True))


@pytest.mark.parametrize("mode", list(CloneMode))
async def test_a_clone_is_cancelled_at_every_point_and_leaves_nothing(lab: Lab, mode: CloneMode) -> None:
    await lab.created("a", blank())
    before = snapshot_of(lab)
    for hanging in ("volume_allocate", "guest_write_config", "guest_create"):
        hang = lab.world.faults.hang(hanging)
        operation = await clone(lab, "a", "b", mode, start=True)
        await lab.until(lambda hang=hang: hang.entered > 0)  # type: ignore[misc]
        await lab.core.engine.cancel(operation.name)
        lab.world.faults.clear()
        assert (await lab.end(operation)).state is OperationState.CANCELLED
        assert snapshot_of(lab) == before


async def test_the_source_is_not_started_while_it_is_cloned(lab: Lab) -> None:
    await lab.created("a", blank())
    hang = lab.world.faults.hang("volume_allocate")
    operation = await clone(lab, "a", "b")
    await lab.until(lambda: hang.entered > 0)
    start = await lab.services.guests.start(call(), lab.name("a"))
    assert start is not None
    assert (await lab.core.engine.get(start.name)).state is OperationState.PENDING
    lab.world.faults.clear()
    await lab.done(operation)
    await lab.done(start)


async def test_what_linked_clones_share_goes_with_the_last_of_them(lab: Lab) -> None:
    await lab.created("a", blank())
    base = lab.guest("a").status.disks[0].path.rpartition("/")[2]
    await lab.done(await clone(lab, "a", "b", CloneMode.LINKED))
    await lab.done(await clone(lab, "b", "c", CloneMode.LINKED))
    await lab.done(await delete(lab, "a", DiskPolicy.TRASH))
    ended = await lab.done(await delete(lab, "b"))
    assert any("c needs it too" in note.message for note in ended.notes)
    assert base in volumes(lab)
    await lab.done(await lab.services.trash.purge(call(), "-"))
    assert base in volumes(lab)
    await lab.done(await delete(lab, "c"))
    assert volumes(lab) == set()


async def test_a_base_stays_for_an_overlay_that_belongs_to_nobody(lab: Lab) -> None:
    await lab.created("a", blank())
    base = lab.guest("a").status.disks[0].path.rpartition("/")[2]
    await lab.done(await clone(lab, "a", "b", CloneMode.LINKED))
    await lab.done(await lab.services.guests.release(call(), lab.name("b")))
    ended = await lab.done(await delete(lab, "a"))
    assert base in volumes(lab)
    assert any("is based on it" in warning for warning in ended.warnings)


@pytest.mark.parametrize(
    ("what", "reason"),
    [
        ("running", "INVALID_STATE"),
        ("taken", "GUEST_EXISTS"),
        ("bad-id", "FIELD_INVALID"),
        ("nowhere", "POOL_NOT_FOUND"),
        ("label", "FIELD_INVALID"),
        ("raw", "CLONE_IMPOSSIBLE"),
        ("foreign", "GUEST_NOT_ADOPTED"),
        ("absent", "GUEST_NOT_FOUND"),
        ("host-file", "CLONE_IMPOSSIBLE"),
        ("snapshot", "CLONE_IMPOSSIBLE"),
    ],
)
async def test_clones_that_are_refused_touch_nothing(lab: Lab, what: str, reason: str) -> None:
    disk = blank()
    if what == "host-file":
        path = Path(lab.link.config.directory) / "own.qcow2"
        path.write_bytes(b"QFI\xfb")
        disk = DiskSpec("root", host_file=HostFileSource(str(path), DiskFormat.QCOW2))
    if what == "raw":
        assert disk.blank is not None
        disk = DiskSpec("root", blank=type(disk.blank)(disk.blank.capacity_bytes, DiskFormat.RAW))
    await lab.created("a", disk, start=what == "running")
    if what == "snapshot":
        taken = await lab.services.snapshots.create(call(), lab.name("a"), Draft("s"))
        assert isinstance(taken, Operation)
        await lab.done(taken)
    if what == "foreign":
        await lab.done(await lab.services.guests.release(call(), lab.name("a")))
    before = lab.world.digest()
    draft = CloneDraft(
        "a" if what == "taken" else "B!" if what == "bad-id" else "b",
        CloneMode.LINKED if what in ("raw", "host-file", "snapshot") else CloneMode.FULL,
        pool="nowhere" if what == "nowhere" else "",
        labels={"not a key": "x"} if what == "label" else {},
    )
    with pytest.raises(VirtdError) as caught:
        await lab.services.clones.clone(call(), lab.name("gone" if what == "absent" else "a"), draft)
    assert caught.value.reason.name == reason
    assert len(caught.value.message) > 20
    assert lab.world.digest() == before


@pytest.mark.parametrize("capability", ["guest.clone", "guest.clone.linked", "guest.trash", "guest.autostart"])
async def test_what_the_host_cannot_do_is_refused_first(capability: str) -> None:
    with short_directory() as place:
        async with running_lab(place, f"without={capability}") as lab:
            if capability == "guest.autostart":
                with pytest.raises(InvalidArgumentError) as field:
                    await lab.create("a", autostart=True)
                assert field.value.reason.name == "FIELD_UNSUPPORTED"
                assert field.value.record.violations[0].field == "guest.spec.autostart"
                return
            await lab.created("a", blank())
            before = lab.world.digest()
            mode = CloneMode.FULL if capability == "guest.clone" else CloneMode.LINKED
            attempt = delete(lab, "a", DiskPolicy.TRASH) if capability == "guest.trash" else clone(lab, "a", "b", mode)
            with pytest.raises(UnsupportedError) as caught:
                await attempt
            assert caught.value.record.metadata["capability"] == capability
            assert lab.world.digest() == before


# ------------------------------------------------------------------------------------------- trash


async def trashed(lab: Lab, guest: str) -> str:
    ended = await lab.done(await delete(lab, guest, DiskPolicy.TRASH))
    return ended.result_data["trash"].removeprefix("trash/")


async def test_a_guest_comes_back_from_the_trash_as_it_was(lab: Lab) -> None:
    guest = await lab.created("a", blank(), firmware=Firmware.UEFI, autostart=True, run_strategy=RunStrategy.ALWAYS)
    await lab.until(lambda: lab.state("a") is S.RUNNING)
    lab.world.native.guests[guest.uid].variables = b"boot order"
    before = volumes(lab)
    ended = await lab.done(await delete(lab, "a", DiskPolicy.TRASH, force=True))
    entry_id = ended.result_data["trash"].removeprefix("trash/")
    assert lab.core.inventory.guests() == []
    assert guest.uid not in lab.world.native.guests
    assert volumes(lab) == before
    (entry,) = lab.services.trash.list("-", 0, "").items
    assert entry.caller == "tester"
    assert entry.purge_time is not None
    assert entry.purge_time - datetime.now(UTC) > timedelta(days=6.9)
    await lab.created("a", blank())
    with pytest.raises(AlreadyExistsError):
        await lab.services.trash.recover(call(), entry_id, "")
    await lab.done(await lab.services.trash.recover(call(), entry_id, "again"))
    back = lab.guest("again")
    assert back.uid == guest.uid
    assert back.spec.run_strategy is RunStrategy.HALTED
    assert back.status.state is S.STOPPED
    native = lab.world.native.guests[guest.uid]
    assert (native.name, native.variables, native.autostart) == ("again", b"boot order", True)
    assert set(lab.view("again").owned_volumes) == {f"virtd/{name}" for name in before}
    with pytest.raises(NotFoundError) as gone:
        lab.services.trash.get(entry_id)
    assert gone.value.reason.name == "TRASH_ENTRY_NOT_FOUND"


@pytest.mark.parametrize("fault", ["guest_lookup", "guest_delete_config"])
async def test_a_deletion_into_the_trash_that_fails_leaves_the_guest_and_no_entry(lab: Lab, fault: str) -> None:
    await lab.created("a", blank())
    lab.world.faults.fail(fault, 1)
    await lab.end(await delete(lab, "a", DiskPolicy.TRASH))
    assert lab.services.trash.list("-", 0, "").items == ()
    assert lab.state("a") is S.STOPPED
    assert len(lab.world.native.guests) == 1


@pytest.mark.parametrize("fault", ["guest_restore", "guest_write_variables"])
async def test_a_recovery_that_fails_leaves_the_entry(lab: Lab, fault: str) -> None:
    guest = await lab.created("a", blank(), firmware=Firmware.UEFI)
    lab.world.native.guests[guest.uid].variables = b"x"
    entry = await trashed(lab, "a")
    lab.world.faults.fail(fault, 1)
    assert (await lab.end(await lab.services.trash.recover(call(), entry, ""))).state is OperationState.FAILED
    assert lab.core.inventory.guests() == []
    assert lab.world.native.guests == {}
    await lab.done(await lab.services.trash.recover(call(), entry, ""))
    assert lab.world.native.guests[guest.uid].variables == b"x"


async def test_the_trash_survives_the_daemon_and_is_purged_when_its_time_is_over() -> None:
    with short_directory() as place:
        uri = f"fake:///{place.name}?persist=1"
        async with running_lab(place, uri=uri, trash={"on_delete": "trash", "retention_days": 1e-9}) as lab:
            await lab.created("a", blank())
            await lab.done(await delete(lab, "a"))  # as configured
        async with running_lab(place, uri=uri) as lab:
            assert len(lab.services.trash.list(HOST, 0, "").items) == 1
            assert await lab.services.trash.purge_expired() == 1
            await lab.until(lambda: not lab.core.trash.list())
            assert volumes(lab) == set()
            assert await lab.services.trash.purge_expired() == 0


async def test_the_saved_memory_of_a_suspended_guest_is_lost_and_said_so(lab: Lab) -> None:
    await lab.created("a", blank(), start=True)
    await lab.done(await lab.services.guests.suspend(call(), lab.name("a")))
    ended = await lab.done(await delete(lab, "a", DiskPolicy.TRASH))
    assert any("saved memory" in warning for warning in ended.warnings)
    entry = lab.services.trash.list("-", 0, "").items[0]
    assert "memory" in entry.lost[0]


async def test_policies_that_contradict_each_other_are_refused(lab: Lab) -> None:
    await lab.created("a", blank())
    with pytest.raises(InvalidArgumentError) as caught:
        await lab.services.guests.delete(
            call(), lab.name("a"), force=False, keep_disks=True, etag="", disk_policy=DiskPolicy.TRASH
        )
    assert caught.value.record.violations[0].field == "disk_policy"


async def test_a_trashed_disk_is_not_given_to_another_guest(lab: Lab) -> None:
    guest = await lab.created("a", blank())
    name = guest.status.disks[0].path.rpartition("/")[2]
    await trashed(lab, "a")
    volume = f"hosts/{HOST}/pools/virtd/volumes/{name}"
    with pytest.raises(FailedPreconditionError) as caught:
        await lab.create("b", DiskSpec("root", volume=volume))
    assert caught.value.reason.name == "VOLUME_IN_USE"
    with pytest.raises(FailedPreconditionError) as deleted:
        await lab.services.storage.delete_volume(call(), HOST, "virtd", name)
    assert deleted.value.reason.name == "VOLUME_IN_USE"


# ------------------------------------------------------------------------- protect, adopt, release


async def test_a_protected_guest_is_not_deleted_also_when_it_became_so_while_waiting(lab: Lab) -> None:
    guest = await lab.created("a", blank(), deletion_protection=True, start=True)
    for policy in (None, *DiskPolicy):
        with pytest.raises(FailedPreconditionError) as caught:
            await delete(lab, "a", policy, force=True)
        assert caught.value.reason.name == "GUEST_PROTECTED"
    await set_protection(lab, protected=False)
    hang = lab.world.faults.hang("guest_pause")
    pause = await lab.services.guests.pause(call(), lab.name("a"))
    await lab.until(lambda: hang.entered > 0)
    waiting = await delete(lab, "a", force=True)
    await set_protection(lab, protected=True)
    lab.world.faults.clear()
    await lab.done(pause)
    await lab.failed(waiting, "GUEST_PROTECTED")
    assert lab.world.native.guests[guest.uid].active_now
    await set_protection(lab, protected=False)
    await lab.done(await delete(lab, "a", force=True))


async def set_protection(lab: Lab, *, protected: bool) -> None:
    from dataclasses import replace

    await lab.core.inventory.change(
        lab.guest("a").uid, lambda guest: replace(guest, spec=replace(guest.spec, deletion_protection=protected))
    )


async def test_a_released_guest_is_foreign_and_keeps_its_disks(lab: Lab) -> None:
    guest = await lab.created("a", blank(), start=True)
    before = volumes(lab)
    ended = await lab.done(await lab.services.guests.release(call(), lab.name("a")))
    assert any("belong to nobody" in note.message for note in ended.notes)
    assert lab.guest("a").status.origin is Origin.FOREIGN
    assert lab.guest("a").status.allowed_actions == ("adopt",)
    assert lab.view("a").owned_volumes == ()
    assert lab.world.native.guests[guest.uid].active_now
    await lab.done(await lab.services.guests.adopt(call(), lab.name("a")))
    await lab.done(await delete(lab, "a", force=True))
    assert volumes(lab) == before  # they are not virtd's any more


async def test_adoption_reads_autostart(lab: Lab) -> None:
    uid = lab.world.native.define_foreign("theirs")
    lab.world.native.guests[uid].autostart = True
    await lab.until(lambda: lab.core.inventory.by_uid(uid) is not None)
    await lab.done(await lab.services.guests.adopt(call(), lab.name("theirs")))
    assert lab.guest("theirs").spec.autostart


async def test_discarding_saved_memory_stops_the_guest(lab: Lab) -> None:
    await lab.created("a", start=True)
    with pytest.raises(FailedPreconditionError) as caught:
        await lab.services.guests.discard(call(), lab.name("a"))
    assert caught.value.reason.name == "INVALID_STATE"
    await lab.done(await lab.services.guests.suspend(call(), lab.name("a")))
    assert "discard" in lab.guest("a").status.allowed_actions
    await lab.done(await lab.services.guests.discard(call(), lab.name("a")))
    assert lab.state("a") is S.STOPPED


# ------------------------------------------------------------------------------------------ reboot


async def test_a_reboot_ends_when_it_is_seen_and_fails_when_it_is_not(
    lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    guest = await lab.created("a", start=True)
    await lab.done(await lab.services.guests.reboot(call(), lab.name("a")))
    assert lab.core.inventory.reboots[guest.uid] == 1
    lab.world.native.guests[guest.uid].presses_needed = 0  # it ignores every request from now on
    monkeypatch.setattr(lab.services.guests, "_core", lab.core)
    object.__setattr__(lab.core.options, "shutdown_timeout_s", 0.3)
    ended = await lab.failed(await lab.services.guests.reboot(call(), lab.name("a")), "REBOOT_IGNORED")
    assert ended.error is not None
    assert "runs on" in ended.error.message
    assert lab.state("a") is S.RUNNING
