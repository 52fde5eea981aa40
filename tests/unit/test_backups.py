"""Use cases of backups on the fake hypervisor: chains, damage, cancel, crash, space, and every refusal.

Longer than 500 lines because every way in which a chain can break is held to the same repository.
"""

from __future__ import annotations

import errno
import json
import os
import re
import shutil
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.daemons import HOST, MIB, Lab, blank, call, configuration, fresh_uri, running_lab, short_directory
from virtd.errors import (
    AlreadyExistsError,
    FailedPreconditionError,
    InvalidArgumentError,
    NotFoundError,
    UnsupportedError,
    VirtdError,
)
from virtd.model.backup import Backup, BackupKind, BackupVerification
from virtd.model.console import AgentCommand
from virtd.model.guest import BlankSource, DiskFormat, DiskSpec, GuestState, InterfaceSpec
from virtd.model.operation import Operation, OperationState
from virtd.service.snapshots import Draft
from virtd.store.backup_files import BLOCK, DiskWriter
from virtd.testing.fake.disks import files_of


@pytest.fixture
async def lab() -> AsyncIterator[Lab]:
    with short_directory() as place:
        async with running_lab(place) as made:
            yield made


async def write(lab: Lab, text: bytes, guest: str = "a") -> None:
    command = AgentCommand("/bin/tee", ("/data/file",), (), text, 5.0)
    assert (await lab.services.agents.execute(call(), lab.name(guest), command)).exit_code == 0


def content(lab: Lab, guest: str) -> bytes | None:
    return lab.world.native.guests[lab.guest(guest).uid].files.disk.get("/data/file")


async def start(
    lab: Lab, backup: str, kind: BackupKind = BackupKind.AUTO, guest: str = "a", **changes: Any
) -> Operation:
    options: dict[str, Any] = {"quiesce": False, "description": "", "repository": ""}
    options.update(changes)
    repository = options.pop("repository")
    operation = await lab.services.backups.create(call(), lab.name(guest), backup, kind, repository, **options)
    assert operation is not None
    return operation


async def make(lab: Lab, backup: str, kind: BackupKind = BackupKind.AUTO, **changes: Any) -> Operation:
    return await lab.done(await start(lab, backup, kind, **changes))


async def restore(lab: Lab, backup: str, guest: str, **changes: Any) -> Operation | None:
    options: dict[str, Any] = {"display_name": "", "pool": "", "start": False, "keep_identity": False, **changes}
    return await lab.services.backups.restore(call(), backup, "", guest, **options)


async def verified(lab: Lab, backup: str) -> BackupVerification:
    operation = await lab.done(await lab.services.backups.verify(call(), backup))
    found = await lab.core.engine.response(operation.name)
    assert isinstance(found, BackupVerification)
    return found


async def get(lab: Lab, backup: str) -> Backup:
    return await lab.services.backups.get(backup)


def repository(lab: Lab) -> Path:
    return lab.core.options.state_directory / "backups"


def leftovers(lab: Lab) -> list[str]:
    return sorted(entry.name for entry in repository(lab).iterdir()) if repository(lab).exists() else []


async def three(lab: Lab) -> None:
    """A full backup and two increments of a running guest, each with another content."""
    await lab.created("a", blank(), start=True)
    for number, text in enumerate((b"one", b"two", b"three")):
        await write(lab, text)
        await make(lab, f"b{number}")


# ------------------------------------------------------------------------------------- main path


async def test_each_backup_of_a_chain_gives_back_the_content_of_its_moment(lab: Lab) -> None:
    await three(lab)
    records = [await get(lab, f"b{number}") for number in range(3)]
    assert [record.kind for record in records] == [BackupKind.FULL, BackupKind.INCREMENTAL, BackupKind.INCREMENTAL]
    assert [record.parent for record in records] == ["", "backups/b0", "backups/b1"]
    assert len({record.disks[0].content_digest for record in records}) == 3
    for number, text in enumerate((b"one", b"two", b"three")):
        await lab.done(await restore(lab, f"b{number}", f"r{number}"))
        assert content(lab, f"r{number}") == text
        found = lab.guest(f"r{number}")
        assert found.uid != lab.guest("a").uid
        assert found.spec.disks[0].blank is not None
    assert content(lab, "a") == b"three", "the source is what it was"
    assert leftovers(lab) == ["b0", "b1", "b2"], "restoring leaves nothing"


async def test_what_has_become_zero_is_zero_again(lab: Lab) -> None:
    await lab.created("a", blank(), start=True)
    await write(lab, os.urandom(600_000))
    await make(lab, "b0")
    await write(lab, b"short")
    await make(lab, "b1", BackupKind.INCREMENTAL)
    assert (await get(lab, "b1")).disks[0].stored_bytes <= BLOCK
    await lab.done(await restore(lab, "b1", "r"))
    assert content(lab, "r") == b"short"


async def test_the_newest_checkpoint_is_kept_and_older_ones_are_forgotten(lab: Lab) -> None:
    await three(lab)
    checkpoints = list(lab.world.native.guests[lab.guest("a").uid].checkpoints)
    assert len(checkpoints) == 1
    await lab.done(await lab.services.backups.delete(call(), "b0", with_increments=True))
    assert not lab.world.native.guests[lab.guest("a").uid].checkpoints


async def test_backups_outlive_guest_and_host_and_can_keep_the_identity(lab: Lab) -> None:
    guest = await lab.created("a", blank(), start=True, interfaces=(InterfaceSpec("net0"),))
    await write(lab, b"precious")
    await make(lab, "b0", description="before the end")
    with pytest.raises(AlreadyExistsError, match="keep_identity"):
        await restore(lab, "b0", "again", keep_identity=True)
    other = await lab.done(await restore(lab, "b0", "copy"))
    assert other.state is OperationState.SUCCEEDED
    assert lab.guest("copy").spec.interfaces[0].mac != guest.spec.interfaces[0].mac
    for name in ("a", "copy"):
        await lab.done(await lab.services.guests.delete(call(), lab.name(name), True, False, ""))
    listed = await lab.services.backups.list(lab.name("a"), "", "", 0, "")
    assert [record.name for record in listed.items] == ["backups/b0"]
    assert listed.items[0].description == "before the end"
    await lab.done(await restore(lab, "b0", "again", keep_identity=True))
    assert lab.guest("again").uid == guest.uid
    assert lab.guest("again").spec.interfaces[0].mac == guest.spec.interfaces[0].mac
    assert content(lab, "again") == b"precious"


async def test_a_stopped_guest_is_backed_up_too(lab: Lab) -> None:
    await lab.created("a", blank(), start=True)
    await write(lab, b"still")
    await lab.done(await lab.services.guests.stop(call(), lab.name("a")))
    await make(lab, "b0")
    record = await get(lab, "b0")
    assert (record.kind, record.guest_state) == (BackupKind.FULL, "STOPPED")
    await lab.done(await restore(lab, "b0", "r", start=True))
    assert lab.state("r") is GuestState.RUNNING
    assert content(lab, "r") == b"still"


async def test_disks_whose_changes_are_not_tracked_are_copied_in_full(lab: Lab) -> None:
    raw = DiskSpec("raw", blank=BlankSource(MIB, format=DiskFormat.RAW))
    await lab.created("a", blank(), raw, start=True)
    await make(lab, "b0")
    await write(lab, b"x")
    await make(lab, "b1", BackupKind.INCREMENTAL)
    disks = {disk.name: disk for disk in (await get(lab, "b1")).disks}
    assert disks["root"].kind is BackupKind.INCREMENTAL
    assert disks["raw"].kind is BackupKind.FULL
    assert disks["raw"].reason
    await lab.done(await restore(lab, "b1", "r"))
    assert content(lab, "r") == b"x"


async def test_two_repositories_have_chains_of_their_own() -> None:
    with short_directory() as place:
        other = place / "other"
        sections: dict[str, Any] = {"storage.backup_repositories": {"second": str(other)}}
        async with running_lab(place, **sections) as lab:
            await lab.created("a", blank(), start=True)
            await write(lab, b"one")
            await make(lab, "b0")
            await make(lab, "s0", repository="second")
            await write(lab, b"two")
            await make(lab, "b1", BackupKind.INCREMENTAL)
            await make(lab, "s1", BackupKind.INCREMENTAL, repository="second")
            assert (await get(lab, "b1")).parent == "backups/b0"
            assert (await get(lab, "s1")).parent == "backups/s0"
            assert (await get(lab, "s1")).repository == "second"
            found = {entry.name: entry.backup_count for entry in await lab.services.backups.repositories()}
            assert found == {"default": 2, "second": 2}
            with pytest.raises(AlreadyExistsError):
                await start(lab, "s1")  # ids are unique in all of them
            with pytest.raises(NotFoundError, match="default, second"):
                await start(lab, "b9", repository="third")
            await lab.done(await restore(lab, "s1", "r"))
            assert content(lab, "r") == b"two"


# ----------------------------------------------------------------------------- damage and fallback


def damage(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


async def test_damage_in_the_middle_is_named_refused_and_answered_with_a_full_backup(lab: Lab) -> None:
    await three(lab)
    assert (await verified(lab, "b2")).valid
    damage(repository(lab) / "b1" / "disk0.data")
    found = await verified(lab, "b2")
    assert not found.valid
    assert found.chain == ("backups/b0", "backups/b1", "backups/b2")
    assert [(p.backup, p.file) for p in found.problems] == [("backups/b1", "disk0.data")]
    assert "sha256" in found.problems[0].description
    failed = await lab.failed(await restore(lab, "b2", "r"), "BACKUP_DAMAGED")
    assert failed.error is not None
    assert "backups/b1 disk0.data" in failed.error.message
    with pytest.raises(NotFoundError):
        lab.guest("r")
    assert leftovers(lab) == ["b0", "b1", "b2"]
    await lab.done(await restore(lab, "b0", "r0"))  # what does not need it can still be restored
    assert content(lab, "r0") == b"one"
    await lab.failed(await start(lab, "strict", BackupKind.INCREMENTAL), "BACKUP_CHAIN_BROKEN")
    operation = await make(lab, "b3")
    assert any("backups/b1 is damaged" in warning for warning in operation.warnings), operation.warnings
    record = await get(lab, "b3")
    assert (record.kind, record.parent) == (BackupKind.FULL, "")
    await make(lab, "b4")
    assert (await get(lab, "b4")).parent == "backups/b3"


@pytest.mark.parametrize("what", ["missing", "short", "manifest", "no-manifest", "gone", "swapped"])
async def test_every_kind_of_damage_is_found(lab: Lab, what: str) -> None:
    await three(lab)
    middle = repository(lab) / "b1"
    if what == "missing":
        (middle / "disk0.map").unlink()
    elif what == "short":
        (middle / "disk0.blocks").write_bytes((middle / "disk0.blocks").read_bytes()[:-1])
    elif what == "manifest":
        damage(middle / "manifest.json")
    elif what == "no-manifest":
        (middle / "manifest.json").unlink()
    elif what == "gone":
        shutil.rmtree(middle)
    else:  # a backup of the same name, but another one
        document = json.loads((middle / "manifest.json").read_text())
        document["backup"]["description"] = "another"
        (middle / "manifest.json").write_text(json.dumps(document))
    found = await verified(lab, "b2")
    assert not found.valid
    assert {problem.backup for problem in found.problems} == {"backups/b1"}
    await lab.failed(await restore(lab, "b2", "r"), "BACKUP_DAMAGED")
    listed = await lab.services.backups.list("", "", "", 0, "")
    assert "backups/b2" in {record.name for record in listed.items}, "the list goes on"
    operation = await make(lab, "b3")
    assert (await get(lab, "b3")).kind is BackupKind.FULL
    assert operation.warnings


async def test_a_content_that_the_chain_does_not_give_again_is_found(lab: Lab) -> None:
    """A record of changes that was wrong, which no digest of a file can tell."""
    await lab.created("a", blank(), start=True)
    await write(lab, b"one" * 2000)
    await make(lab, "b0")
    guest = lab.world.native.guests[lab.guest("a").uid]
    (name,) = guest.checkpoints
    await write(lab, b"two" * 3000)
    # The hypervisor believes that the first 4 KiB have not changed, and they have.
    from virtd.testing.fake.disks import disk_of

    guest.checkpoints[name] = disk_of(guest)[:4096] + guest.checkpoints[name][4096:]
    await make(lab, "b1", BackupKind.INCREMENTAL)
    failed = await lab.failed(await restore(lab, "b1", "r"), "BACKUP_DAMAGED")
    assert failed.error is not None
    assert "does not give the content" in failed.error.message


async def test_a_lost_checkpoint_makes_a_full_backup_with_a_warning(lab: Lab) -> None:
    await three(lab)
    lab.world.native.guests[lab.guest("a").uid].checkpoints.clear()
    await lab.failed(await start(lab, "strict", BackupKind.INCREMENTAL), "BACKUP_CHAIN_BROKEN")
    assert leftovers(lab) == ["b0", "b1", "b2"]
    operation = await make(lab, "b3")
    assert any("no longer has the checkpoint" in warning for warning in operation.warnings)
    assert (await get(lab, "b3")).kind is BackupKind.FULL


async def test_after_a_revert_the_next_backup_is_full(lab: Lab) -> None:
    await lab.created("a", blank(), start=True)
    await write(lab, b"one")
    taken = await lab.services.snapshots.create(call(), lab.name("a"), Draft("s", memory=True))
    assert isinstance(taken, Operation)
    await lab.done(taken)
    await make(lab, "b0")
    await write(lab, b"two")
    await lab.done(await lab.services.snapshots.revert(call(), lab.name("a"), "s"))
    operation = await make(lab, "b1")
    assert (await get(lab, "b1")).kind is BackupKind.FULL
    assert operation.warnings
    await lab.done(await restore(lab, "b1", "r"))
    assert content(lab, "r") == b"one"


async def test_a_host_without_incremental_backups_makes_full_ones() -> None:
    with short_directory() as place:
        async with running_lab(place, "without=guest.backup.incremental") as lab:
            await lab.created("a", blank(), start=True)
            await make(lab, "b0")
            await make(lab, "b1")
            assert (await get(lab, "b1")).kind is BackupKind.FULL
            with pytest.raises(UnsupportedError, match=r"guest\.backup\.incremental"):
                await start(lab, "b2", BackupKind.INCREMENTAL)


async def test_a_host_without_backups_says_so() -> None:
    with short_directory() as place:
        async with running_lab(place, "without=guest.backup") as lab:
            await lab.created("a", blank())
            with pytest.raises(UnsupportedError, match=r"guest\.backup"):
                await start(lab, "b0")
            assert "backup" not in lab.guest("a").status.allowed_actions
            assert leftovers(lab) == []


# ------------------------------------------------------------------------- cancel, crash, and space


async def test_a_cancelled_backup_leaves_nothing(lab: Lab) -> None:
    await lab.created("a", blank(), start=True)
    await write(lab, b"x")
    hang = lab.world.faults.hang("backup_read", deaf=True)
    operation = await start(lab, "b0")
    await lab.until(lambda: hang.entered > 0)
    await lab.core.engine.cancel(operation.name)
    hang.release()
    assert (await lab.end(operation)).state is OperationState.CANCELLED
    guest = lab.world.native.guests[lab.guest("a").uid]
    assert (leftovers(lab), guest.checkpoints, guest.backing_up) == ([], {}, False)
    assert guest.state is GuestState.RUNNING
    lab.world.faults.clear()
    await make(lab, "b0")


async def test_a_guest_that_is_powered_off_in_the_middle_is_a_clear_error(lab: Lab) -> None:
    await lab.created("a", blank(), start=True)
    await write(lab, b"x")
    hang = lab.world.faults.hang("backup_read", deaf=True)
    operation = await start(lab, "b0")
    await lab.until(lambda: hang.entered > 0)
    lab.world.native.kill_guest(lab.guest("a").uid)
    hang.release()
    failed = await lab.failed(operation, "INVALID_STATE")
    assert failed.error is not None
    assert "powered off" in failed.error.message
    assert leftovers(lab) == []
    assert lab.world.native.guests[lab.guest("a").uid].checkpoints == {}


async def test_stop_does_not_wait_for_a_backup(lab: Lab) -> None:
    await lab.created("a", blank(), start=True)
    await write(lab, b"x")
    hang = lab.world.faults.hang("backup_read")
    operation = await start(lab, "b0")
    await lab.until(lambda: hang.entered > 0)
    await lab.done(await lab.services.guests.stop(call(), lab.name("a")))
    assert (await lab.end(operation)).state is OperationState.CANCELLED
    assert lab.state("a") is GuestState.STOPPED
    assert leftovers(lab) == []


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT])
async def test_a_full_repository_is_said_and_nothing_is_left(
    lab: Lab, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    await lab.created("a", blank(), start=True)
    await write(lab, b"x")

    def full(*_arguments: object) -> None:
        raise OSError(code, "no room")

    monkeypatch.setattr(DiskWriter, "put", full)
    await lab.failed(await start(lab, "b0"), "STORAGE_FULL")
    assert leftovers(lab) == []
    assert lab.world.native.guests[lab.guest("a").uid].checkpoints == {}
    monkeypatch.undo()
    await make(lab, "b0")


@pytest.mark.parametrize("call_name", ["backup_begin", "backup_read", "backup_end"])
async def test_a_native_failure_leaves_nothing(lab: Lab, call_name: str) -> None:
    await lab.created("a", blank(), start=True)
    await write(lab, b"x")
    lab.world.faults.fail(call_name, 2 if call_name == "backup_end" else 1)
    await lab.failed(await start(lab, "b0"), "BACKEND_ERROR")
    guest = lab.world.native.guests[lab.guest("a").uid]
    assert (leftovers(lab), guest.checkpoints, guest.backing_up) == ([], {}, False)
    await make(lab, "b0")


async def test_a_daemon_that_dies_in_the_middle_takes_the_backup_up_again() -> None:
    with short_directory() as place:
        uri = fresh_uri("persist=1")
        async with running_lab(place, uri=uri) as lab:
            await lab.created("a", blank(), start=True)
            await write(lab, b"x")
            hang = lab.world.faults.hang("backup_read", deaf=True)
            operation = await start(lab, "b0")
            await lab.until(lambda: hang.entered > 0)
            assert leftovers(lab) == [".b0.part"]
            guest = lab.world.native.guests[lab.guest("a").uid]
            assert guest.backing_up
        # The engine was cut off as by a kill: its undo did not run.
        assert (place / "state" / "backups" / ".b0.part").is_dir()
        lab.world.faults.clear()
        async with running_lab(place, uri=uri) as again:
            ended = await again.done(await again.core.engine.get(operation.name))
            assert ended.recovered
            assert leftovers(again) == ["b0"]
            guest = again.world.native.guests[again.guest("a").uid]
            assert not guest.backing_up
            assert len(guest.checkpoints) == 1
            assert guest.state is GuestState.RUNNING
            assert (await verified(again, "b0")).valid


# ------------------------------------------------------------------------------------ refusals


async def test_a_backup_is_never_restored_over_a_guest(lab: Lab) -> None:
    await three(lab)
    with pytest.raises(AlreadyExistsError, match="never restored over a guest"):
        await restore(lab, "b0", "a")
    assert content(lab, "a") == b"three"


async def test_a_backup_that_increments_need_is_not_deleted(lab: Lab) -> None:
    await three(lab)
    with pytest.raises(FailedPreconditionError) as refused:
        await lab.services.backups.delete(call(), "b0", with_increments=False)
    assert refused.value.reason.name == "BACKUP_IN_USE"
    assert refused.value.record.metadata["used_by"] == "backups/b1,backups/b2"
    assert leftovers(lab) == ["b0", "b1", "b2"]
    await lab.done(await lab.services.backups.delete(call(), "b2", with_increments=False))
    await lab.done(await lab.services.backups.delete(call(), "b0", with_increments=True))
    assert leftovers(lab) == []
    with pytest.raises(NotFoundError):
        await get(lab, "b0")


async def test_a_deletion_that_was_cut_off_is_finished_by_the_next(lab: Lab) -> None:
    await three(lab)
    (repository(lab) / "b2").rename(repository(lab) / ".b2.gone")
    assert [b.name for b in (await lab.services.backups.list("", "", "", 0, "")).items] == ["backups/b0", "backups/b1"]
    await lab.done(await lab.services.backups.delete(call(), "b1", with_increments=False))
    assert leftovers(lab) == ["b0"]


async def test_ids_are_given_once(lab: Lab) -> None:
    await lab.created("a", blank(), start=True)
    await lab.created("b", blank(), start=True)
    hang = lab.world.faults.hang("backup_begin", deaf=True)
    first = await start(lab, "same")
    await lab.until(lambda: hang.entered > 0)
    with pytest.raises(AlreadyExistsError):
        await start(lab, "same", guest="b")
    hang.release()
    lab.world.faults.clear()
    await lab.done(first)
    with pytest.raises(AlreadyExistsError):
        await start(lab, "same", guest="b")
    assert (await verified(lab, "same")).valid


@pytest.mark.parametrize(
    ("backup", "changes", "error"),
    [
        ("", {}, InvalidArgumentError),
        ("../x", {}, InvalidArgumentError),
        (".hidden", {}, InvalidArgumentError),
        ("UPPER", {}, InvalidArgumentError),
        ("x" * 64, {}, InvalidArgumentError),
        ("b", {"description": "a\nb"}, InvalidArgumentError),
        ("b", {"description": "x" * 1000}, InvalidArgumentError),
        ("b", {"repository": "none"}, NotFoundError),
        ("b", {"repository": "../x"}, NotFoundError),
        ("b", {"guest": "none"}, NotFoundError),
        ("b", {"quiesce": True}, FailedPreconditionError),
    ],
)
async def test_bad_requests_are_refused_before_anything_happens(
    lab: Lab, backup: str, changes: dict[str, Any], error: type[VirtdError]
) -> None:
    await lab.created("a", blank())
    with pytest.raises(error):
        await start(lab, backup, **changes)
    assert leftovers(lab) == []
    assert lab.world.native.guests[lab.guest("a").uid].checkpoints == {}


async def test_validate_only_changes_nothing(lab: Lab) -> None:
    await three(lab)
    services = lab.services.backups
    dry = call(validate_only=True)
    assert await services.create(dry, lab.name("a"), "x", BackupKind.AUTO, "", quiesce=False, description="") is None
    assert await services.verify(dry, "b0") is None
    assert await services.delete(dry, "b2", with_increments=False) is None
    options: dict[str, Any] = {"display_name": "", "pool": "", "start": False, "keep_identity": False}
    assert await services.restore(dry, "b0", HOST, "r", **options) is None
    assert leftovers(lab) == ["b0", "b1", "b2"]


async def test_lists_are_filtered_and_paged(lab: Lab) -> None:
    await three(lab)
    await lab.created("b", blank(), start=True)
    await make(lab, "other", guest="b")
    listed = lab.services.backups.list
    assert [b.name for b in (await listed("", "", "kind=FULL", 0, "")).items] == ["backups/b0", "backups/other"]
    assert len((await listed(HOST, "", "", 0, "")).items) == 4
    assert (await listed("elsewhere", "", "", 0, "")).items == ()
    first = await listed(lab.name("a"), "", "", 2, "")
    rest = await listed(lab.name("a"), "", "", 2, first.next_page_token)
    assert [b.name for b in (*first.items, *rest.items)] == ["backups/b0", "backups/b1", "backups/b2"]
    with pytest.raises(InvalidArgumentError):
        await listed("", "", "nonsense=1", 0, "")


async def test_quiesce_freezes_for_the_moment_and_thaws_whatever_happens(lab: Lab) -> None:
    await lab.created("a", blank(), start=True)
    await write(lab, b"x")
    await make(lab, "b0", quiesce=True)
    assert (await get(lab, "b0")).quiesced
    guest = lab.world.native.guests[lab.guest("a").uid]
    assert not guest.frozen
    lab.world.faults.fail("backup_begin")
    await lab.failed(await start(lab, "b1", quiesce=True), "BACKEND_ERROR")
    assert not guest.frozen


async def test_a_backup_can_be_read_by_the_lines_that_the_documentation_shows(lab: Lab, tmp_path: Path) -> None:
    await three(lab)
    page = (Path(__file__).resolve().parents[2] / "docs" / "howto" / "backup.md").read_text()
    (example,) = [block for block in re.findall(r"```python\n(.*?)```", page, re.DOTALL) if "def restore(" in block]
    names: dict[str, Any] = {}
    exec(compile(example, "backup.md", "exec"), names)
    names["restore"]([str(repository(lab) / name) for name in ("b0", "b1", "b2")], 0, str(tmp_path / "disk"))
    content = (tmp_path / "disk").read_bytes()
    assert len(content) == 8 * MIB
    assert files_of(content) == {"/data/file": b"three"}
    manifest = json.loads((repository(lab) / "b2" / "manifest.json").read_text())
    assert (manifest["format"], manifest["version"]) == ("virtd-backup", 1)
    assert manifest["backup"]["parent"] == "b1"
    assert f"{BLOCK // 1024} KiB" in page


@pytest.mark.parametrize(
    ("name", "path", "says"),
    [("nightly", "relative", "absolute"), ("Bad Name", "/x", "repository"), ("x", 5, "text|string")],
)
def test_repositories_in_the_configuration_are_checked(tmp_path: Path, name: str, path: object, says: str) -> None:
    with pytest.raises(InvalidArgumentError, match=says):
        configuration(tmp_path, {}, **{"storage.backup_repositories": {json.dumps(name): path}})
