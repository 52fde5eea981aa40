"""Checks of what clone, trash, autostart and reboot are made of."""

from __future__ import annotations

from typing import cast
from uuid import UUID

from virtd.backend import capabilities as caps
from virtd.backend.api import (
    AutostartFacet,
    DefinitionFacet,
    DiskFile,
    NativeEventType,
    ResolvedDisk,
    ResolvedGuest,
    SnapshotRequest,
    VolumeRequest,
)
from virtd.backend.conformance.checks_storage import pool_and_name
from virtd.backend.conformance.deeds import by_core, revert, take
from virtd.backend.conformance.kit import Kit, NotRun, Subject, check
from virtd.backend.conformance.provision import MIB
from virtd.errors import GUEST_EXISTS, GUEST_NOT_FOUND, INVALID_STATE
from virtd.model.guest import DiskBus, DiskFormat, Firmware, GuestState


def _definitions(kit: Kit) -> DefinitionFacet:
    return cast("DefinitionFacet", kit.facet("definitions"))


def _autostart(kit: Kit) -> AutostartFacet:
    return cast("AutostartFacet", kit.facet("autostart"))


async def _volume(kit: Kit, source: str = "") -> DiskFile:
    pool, name = await pool_and_name(kit)
    request = VolumeRequest(
        pool,
        name,
        DiskFormat.QCOW2,
        None if source else 16 * MIB,
        source_path=source,
        source_format=DiskFormat.QCOW2 if source else None,
        overlay=bool(source),
    )
    return DiskFile((await kit.facet("storage").create_volume(request, kit.context())).path, DiskFormat.QCOW2)


async def _with_disk(kit: Kit, file: DiskFile) -> Subject:
    from dataclasses import replace

    def make(name: str, uuid: UUID) -> ResolvedGuest:
        disk = ResolvedDisk("data", file.path, file.format, DiskBus.VIRTIO)
        return replace(kit.provision.guest(name, uuid), disks=(disk,))

    return await kit.new_guest(make=make)


class TestAutostart:
    """The hypervisor's own list of guests that start with the host."""

    @check(caps.AUTOSTART)
    async def test_set_and_get(self, kit: Kit) -> None:
        """Off by default; on, and off again, each twice; by the definition as well."""
        from dataclasses import replace

        guest, facet = await kit.new_guest(), _autostart(kit)
        assert not await facet.get_autostart(guest.uuid)
        for enabled in (True, True, False, False):
            await facet.set_autostart(guest.uuid, kit.context(), enabled=enabled)
            assert await facet.get_autostart(guest.uuid) is enabled
        await kit.session.define_guest(replace(guest.resolved, autostart=True), kit.context())
        assert await facet.get_autostart(guest.uuid)
        assert await kit.state(guest.uuid) == GuestState.STOPPED

    @check(caps.AUTOSTART, proof=False)
    async def test_unknown_guest(self, kit: Kit) -> None:
        """GUEST_NOT_FOUND."""
        nobody = kit.subject().uuid
        await kit.error(_autostart(kit).get_autostart(nobody), GUEST_NOT_FOUND)
        await kit.error(_autostart(kit).set_autostart(nobody, kit.context(), enabled=True), GUEST_NOT_FOUND)


class TestDefinitions:
    """A definition that is kept comes back as it was."""

    @check(caps.TRASH)
    async def test_round_trip(self, kit: Kit) -> None:
        """Undefined and written again, twice, a guest is what it was, and can be started."""
        guest = await kit.new_guest()
        before = await kit.session.get_guest(guest.uuid)
        kept = await _definitions(kit).read_definition(guest.uuid)
        await kit.session.undefine_guest(guest.uuid, kit.context())
        for _ in range(2):
            await _definitions(kit).write_definition(guest.uuid, "", kept, kit.context())
            after = await kit.session.get_guest(guest.uuid)
            assert (after.name, after.spec) == (before.name, before.spec)
            assert after.state is GuestState.STOPPED
        await kit.session.start_guest(guest.uuid, kit.context())
        await kit.reaches(guest.uuid, GuestState.RUNNING)

    @check(caps.TRASH)
    async def test_other_name(self, kit: Kit) -> None:
        """It can come back under another name, but not under one that another guest has."""
        guest, other = await kit.new_guest(), await kit.new_guest()
        kept = await _definitions(kit).read_definition(guest.uuid)
        await kit.session.undefine_guest(guest.uuid, kit.context())
        before = await kit.digest()
        write = _definitions(kit).write_definition
        await kit.error(write(guest.uuid, other.name, kept, kit.context()), GUEST_EXISTS)
        await kit.unchanged(before, "the refusal")
        name = kit.new_name()
        await write(guest.uuid, name, kept, kit.context())
        assert (await kit.session.get_guest(guest.uuid)).name == name

    @check(caps.TRASH, caps.SNAPSHOT, caps.VOLUMES)
    async def test_snapshots_come_back(self, kit: Kit) -> None:
        """The records of snapshots are part of the definition."""
        guest = await _with_disk(kit, await _volume(kit))
        snapshots = kit.facet("snapshots")
        for name in ("first", "second"):
            await take(kit, guest.uuid, SnapshotRequest(name))
        before = await snapshots.list_snapshots(guest.uuid)
        kept = await _definitions(kit).read_definition(guest.uuid)
        await kit.session.undefine_guest(guest.uuid, kit.context())
        await _definitions(kit).write_definition(guest.uuid, kit.new_name(), kept, kit.context())
        after = await snapshots.list_snapshots(guest.uuid)
        facts = [(item.name, item.parent, item.current) for item in after]
        assert facts == [(item.name, item.parent, item.current) for item in before]
        await revert(kit, guest.uuid, "first")
        for name in ("second", "first"):
            await snapshots.delete_snapshot(guest.uuid, name, kit.context())

    @check(caps.TRASH, caps.VOLUMES)
    async def test_replace_disk_files(self, kit: Kit) -> None:
        """A stopped guest's disk gets another file; one that runs is refused; nothing else changes."""
        base = await _volume(kit)
        overlay = await _volume(kit, base.path)
        guest, facet = await _with_disk(kit, base), _definitions(kit)
        before = await kit.session.get_guest(guest.uuid)
        for _ in range(2):
            await facet.replace_disk_files(guest.uuid, {base.path: overlay, "/not/there": base}, kit.context())
        after = await kit.session.get_guest(guest.uuid)
        assert [disk.path for disk in after.disks] == [overlay.path]
        assert (after.name, after.spec.vcpus, after.spec.interfaces) == (
            before.name, before.spec.vcpus, before.spec.interfaces,
        )  # fmt: skip
        await kit.session.start_guest(guest.uuid, kit.context())
        await kit.error(facet.replace_disk_files(guest.uuid, {overlay.path: base}, kit.context()), INVALID_STATE)
        assert [disk.path for disk in (await kit.session.get_guest(guest.uuid)).disks] == [overlay.path]

    @check(caps.TRASH, caps.UEFI)
    async def test_variables(self, kit: Kit) -> None:
        """Firmware variables are read and written as they are; a guest that runs is refused."""
        from dataclasses import replace

        def make(name: str, uuid: UUID) -> ResolvedGuest:
            return replace(kit.provision.guest(name, uuid), firmware=Firmware.UEFI, memory_bytes=64 * MIB)

        facet, guest, twin = _definitions(kit), await kit.new_guest(make=make), await kit.new_guest(make=make)
        await kit.session.start_guest(guest.uuid, kit.context())  # some hosts make them now
        await kit.reaches(guest.uuid, GuestState.RUNNING)
        await kit.error(facet.write_variables(guest.uuid, b"x", kit.context()), INVALID_STATE)
        await kit.session.stop_guest(guest.uuid, kit.context())
        found = await facet.read_variables(guest.uuid)
        assert found is not None
        marked = found[:-4] + b"mark"
        for _ in range(2):
            await facet.write_variables(twin.uuid, marked, kit.context())
        assert await facet.read_variables(twin.uuid) == marked
        await kit.session.start_guest(twin.uuid, kit.context())
        await kit.reaches(twin.uuid, GuestState.RUNNING)

    @check(caps.TRASH, proof=False)
    async def test_unknown_guest(self, kit: Kit) -> None:
        """GUEST_NOT_FOUND, and nothing is made."""
        nobody = kit.subject().uuid
        before = await kit.digest()
        for call in (
            _definitions(kit).read_definition(nobody),
            _definitions(kit).read_variables(nobody),
            _definitions(kit).write_variables(nobody, b"x", kit.context()),
            _definitions(kit).replace_disk_files(nobody, {}, kit.context()),
        ):
            await kit.error(call, GUEST_NOT_FOUND)
        await kit.unchanged(before, "what was asked of an unknown guest")


class TestClones:
    """What the core makes clones of."""

    @check(caps.CLONE, caps.VOLUMES)
    async def test_copied_disks(self, kit: Kit) -> None:
        """The disk of an overlay is copied into one that stands alone."""
        base = await _volume(kit)
        overlay = await _volume(kit, base.path)
        pool, name = await pool_and_name(kit)
        source = overlay.path.rpartition("/")[2]
        copy = await kit.facet("volume_changes").clone_volume(pool, source, pool, name, DiskFormat.QCOW2, kit.context())
        assert not copy.backing_path
        await _with_disk(kit, DiskFile(copy.path, DiskFormat.QCOW2))

    @check(caps.CLONE_LINKED, caps.VOLUMES)
    async def test_shared_base(self, kit: Kit) -> None:
        """Two guests run on overlays over one base."""
        base = await _volume(kit)
        for _ in range(2):
            guest = await _with_disk(kit, await _volume(kit, base.path))
            await kit.session.start_guest(guest.uuid, kit.context())
            await kit.reaches(guest.uuid, GuestState.RUNNING)


class TestReboots:
    """Reboots are reported."""

    @check(caps.RESET, caps.REBOOT_EVENTS)
    async def test_reset_is_reported(self, kit: Kit) -> None:
        """A reset is a GUEST_REBOOTED event, and the guest runs on."""
        if by_core(kit, caps.RESET):
            raise NotRun("the core stops the guest and starts it: there is no reboot to report", elsewhere=True)
        guest = await kit.new_guest(running=True)
        await kit.reaches(guest.uuid, GuestState.RUNNING)
        seen = len(kit.events)
        await kit.facet("reset").reset_guest(guest.uuid, kit.context())
        await kit.eventually(
            lambda: any(
                event.type is NativeEventType.GUEST_REBOOTED and event.uuid == guest.uuid for event in kit.events[seen:]
            ),
            "no GUEST_REBOOTED event",
        )
        await kit.reaches(guest.uuid, GuestState.RUNNING)
