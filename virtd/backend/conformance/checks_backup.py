"""Checks of backups: what is read is what was there, and what has changed is told."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING
from uuid import UUID, uuid4

from virtd.backend import capabilities as caps
from virtd.backend.api import BackupReader, BackupRequest, DiskIdentity, ResolvedDisk, ResolvedGuest, VolumeRequest
from virtd.backend.conformance.checks_inside import run, with_agent
from virtd.backend.conformance.kit import Kit, NotRun, Subject, check
from virtd.backend.facets_backup import CHECKPOINT_PREFIX
from virtd.errors import BACKUP_CHAIN_BROKEN, GUEST_NOT_FOUND, INVALID_STATE, OPERATION_CANCELLED
from virtd.model.guest import DiskBus, DiskFormat, GuestState

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

_CAPACITY = 8 << 20


async def _with_disk(kit: Kit, *, running: bool = False, format_: DiskFormat = DiskFormat.QCOW2) -> Subject:
    """A guest with one disk."""
    storage = kit.facet("storage")
    pool = await storage.ensure_default_pool(kit.context())
    name = f"{kit.tag}-{uuid4().hex[:6]}.img"
    kit.forget_later(volume=(pool.name, name))
    volume = await storage.create_volume(
        VolumeRequest(pool.name, name, format_, capacity_bytes=_CAPACITY), kit.context()
    )

    def make(guest: str, uuid: UUID) -> ResolvedGuest:
        disk = ResolvedDisk("data", volume.path, format_, DiskBus.VIRTIO)
        return dataclasses.replace(kit.provision.guest(guest, uuid), disks=(disk,))

    return await kit.new_guest(make=make, running=running)


def _mark() -> str:
    return f"{CHECKPOINT_PREFIX}{uuid4().hex[:12]}"


@asynccontextmanager
async def _opened(kit: Kit, uuid: UUID, request: BackupRequest | None = None) -> AsyncIterator[BackupReader]:
    reader: BackupReader = await kit.facet("backup").open_backup(uuid, request or BackupRequest(_mark()), kit.context())
    try:
        yield reader
    finally:
        await reader.close()
        await reader.close()  # idempotent


async def _content(reader: BackupReader) -> dict[str, bytes]:
    """Everything that is to be read, checked to be in order and in bounds; unread bytes are zero."""
    found = {}
    for disk in reader.disks:
        content, end = bytearray(disk.capacity_bytes), 0
        for extent in await reader.extents(disk.name):
            assert extent.length > 0
            assert end <= extent.offset, f"extents of {disk.name} overlap or are out of order at {extent.offset}"
            end = extent.offset + extent.length
            assert end <= disk.capacity_bytes, f"an extent of {disk.name} is beyond its end"
            data = await reader.read(disk.name, extent.offset, extent.length)
            assert len(data) == extent.length
            assert not extent.zero or not any(data), "what is said to be zero is not"
            content[extent.offset : end] = data
        found[disk.name] = bytes(content)
    return found


def _since(reader: BackupReader) -> BackupRequest:
    """The next request: what has changed since this one."""
    disks = tuple(DiskIdentity(d.name, d.identity, d.capacity_bytes) for d in reader.disks if d.tracked)
    return BackupRequest(_mark(), reader.checkpoint, disks)


async def _marks(kit: Kit, uuid: UUID) -> Sequence[str]:
    found: Sequence[str] = await kit.facet("backup").list_checkpoints(uuid)
    return found


class TestBackup:
    """Whole disks."""

    @check(caps.BACKUP, caps.VOLUMES)
    async def test_stopped(self, kit: Kit) -> None:
        """A stopped guest's disk can be read, and stays stopped."""
        subject = await _with_disk(kit)
        async with _opened(kit, subject.uuid) as reader:
            assert [(disk.name, disk.capacity_bytes) for disk in reader.disks] == [("data", _CAPACITY)]
            assert not any((await _content(reader))["data"]), "a new disk is empty"
        assert await kit.state(subject.uuid) == GuestState.STOPPED

    @check(caps.BACKUP, caps.VOLUMES)
    async def test_running(self, kit: Kit) -> None:
        """A running guest runs on; one that is being backed up is not backed up once more."""
        subject = await _with_disk(kit, running=True)
        async with _opened(kit, subject.uuid) as reader:
            assert not any((await _content(reader))["data"])
            again = kit.facet("backup").open_backup(subject.uuid, BackupRequest(_mark()), kit.context())
            await kit.error(again, INVALID_STATE)
        await kit.reaches(subject.uuid, GuestState.RUNNING)

    @check(caps.BACKUP, caps.VOLUMES)
    async def test_abort(self, kit: Kit) -> None:
        """What a process that died left open can be ended, and then a new one begins."""
        subject = await _with_disk(kit, running=True)
        facet = kit.facet("backup")
        await facet.abort_backup(subject.uuid, kit.context())  # without any
        left = await facet.open_backup(subject.uuid, BackupRequest(_mark()), kit.context())
        for _ in range(2):
            await facet.abort_backup(subject.uuid, kit.context())
        async with _opened(kit, subject.uuid) as reader:
            await _content(reader)
        await left.close()
        await kit.reaches(subject.uuid, GuestState.RUNNING)

    @check(caps.BACKUP, caps.VOLUMES)
    async def test_raw(self, kit: Kit) -> None:
        """A raw disk can be read; where its changes are not tracked it says so."""
        subject = await _with_disk(kit, format_=DiskFormat.RAW)
        async with _opened(kit, subject.uuid) as reader:
            (disk,) = reader.disks
            assert disk.tracked or disk.reason
            assert reader.checkpoint or reader.no_checkpoint
            await _content(reader)

    @check(caps.BACKUP)
    async def test_absent(self, kit: Kit) -> None:
        """A guest that is not there is not found; its marks can be forgotten all the same."""
        facet, nobody = kit.facet("backup"), uuid4()
        await kit.error(facet.open_backup(nobody, BackupRequest(_mark()), kit.context()), GUEST_NOT_FOUND)
        await facet.delete_checkpoint(nobody, _mark(), kit.context())
        await facet.abort_backup(nobody, kit.context())

    @check(caps.BACKUP, caps.VOLUMES)
    async def test_cancel(self, kit: Kit) -> None:
        """A cancelled one is not open."""
        subject = await _with_disk(kit)
        facet, context = kit.facet("backup"), kit.context(cancel_at=1)
        await kit.error(facet.open_backup(subject.uuid, BackupRequest(_mark()), context), OPERATION_CANCELLED)
        assert await _marks(kit, subject.uuid) == []
        async with _opened(kit, subject.uuid):
            pass


class TestIncrementalBackup:
    """What has changed since a mark."""

    @check(caps.BACKUP_INCREMENTAL, caps.VOLUMES)
    async def test_marks(self, kit: Kit) -> None:
        """Marks are listed oldest first, forgotten one by one, and go with their guest."""
        subject = await _with_disk(kit, running=True)
        wanted = []
        for _ in range(3):
            async with _opened(kit, subject.uuid) as reader:
                assert reader.checkpoint
                wanted.append(reader.checkpoint)
        assert await _marks(kit, subject.uuid) == wanted
        for _ in range(2):
            await kit.facet("backup").delete_checkpoint(subject.uuid, wanted[1], kit.context())
        assert await _marks(kit, subject.uuid) == [wanted[0], wanted[2]]
        await kit.session.stop_guest(subject.uuid, kit.context())
        await kit.facet("backup").delete_checkpoint(subject.uuid, wanted[2], kit.context())
        assert await _marks(kit, subject.uuid) == [wanted[0]]
        await kit.session.undefine_guest(subject.uuid, kit.context())
        await kit.session.define_guest(subject.resolved, kit.context())
        assert await _marks(kit, subject.uuid) == []

    @check(caps.BACKUP_INCREMENTAL, caps.VOLUMES)
    async def test_nothing_changed(self, kit: Kit) -> None:
        """Nothing was written: nothing is to be read, running or stopped."""
        subject = await _with_disk(kit, running=True)
        async with _opened(kit, subject.uuid) as first:
            request = _since(first)
        async with _opened(kit, subject.uuid, request) as second:
            (disk,) = second.disks
            assert disk.incremental
            assert await second.extents("data") == []
            request = _since(second)
        await kit.session.stop_guest(subject.uuid, kit.context())
        async with _opened(kit, subject.uuid, request) as third:
            assert third.disks[0].incremental
            assert await third.extents("data") == []

    @check(caps.BACKUP_INCREMENTAL, caps.VOLUMES)
    async def test_broken_chain(self, kit: Kit) -> None:
        """Where changes cannot be told it says so, and nothing has happened."""
        subject = await _with_disk(kit, running=True)
        async with _opened(kit, subject.uuid) as first:
            good = _since(first)
        known = good.expected[0]
        before = await _marks(kit, subject.uuid)
        for bad in (
            dataclasses.replace(good, since=_mark()),
            dataclasses.replace(good, expected=(dataclasses.replace(known, identity="another disk"),)),
            dataclasses.replace(good, expected=(dataclasses.replace(known, capacity_bytes=_CAPACITY * 2),)),
        ):
            call = kit.facet("backup").open_backup(subject.uuid, bad, kit.context())
            error = await kit.error(call, BACKUP_CHAIN_BROKEN)
            assert error.message
            assert await _marks(kit, subject.uuid) == before
        async with _opened(kit, subject.uuid, good) as reader:
            assert reader.disks[0].incremental

    @check(caps.BACKUP_INCREMENTAL, caps.AGENT_EXEC)
    async def test_changes(self, kit: Kit) -> None:
        """The changes, laid over what was read before, are the disk as it is."""
        bootable = kit.bootable()
        if bootable.write_disk is None:
            raise NotRun("the provision's bootable guest names no command that writes to its disk")
        subject = await with_agent(kit)
        await run(kit, subject.uuid, bootable.write_disk("first"))
        async with _opened(kit, subject.uuid) as reader:
            first, request = await _content(reader), _since(reader)
        await run(kit, subject.uuid, bootable.write_disk("second"))
        merged: dict[str, bytes] = {}
        async with _opened(kit, subject.uuid, request) as reader:
            changed = 0
            for disk in reader.disks:
                content = bytearray(first[disk.name])
                for extent in await reader.extents(disk.name):
                    end = extent.offset + extent.length
                    content[extent.offset : end] = await reader.read(disk.name, extent.offset, extent.length)
                    changed += extent.length if disk.incremental else 0
                merged[disk.name] = bytes(content)
            assert changed, "what was written is not among the changes"
            mark = reader.checkpoint
        async with _opened(kit, subject.uuid) as reader:
            now = await _content(reader)
            last = reader.checkpoint
        assert merged == now, "the changes do not give the disk as it is"
        assert now != first
        for name in (request.since, mark, last):
            await kit.facet("backup").delete_checkpoint(subject.uuid, name, kit.context())
