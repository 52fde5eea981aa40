"""Guests that move to a second host of the same hypervisor."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from uuid import UUID

from virtd.backend import capabilities as caps
from virtd.backend.api import (
    HostSession,
    MigrationFacet,
    MigrationOrder,
    MigrationSide,
    MovedDisk,
    ResolvedDisk,
    ResolvedGuest,
    VolumeRequest,
)
from virtd.backend.conformance.kit import Kit, Subject, check
from virtd.errors import GUEST_NOT_FOUND, INVALID_STATE, OPERATION_CANCELLED
from virtd.model.guest import DiskBus, DiskFormat, GuestState
from virtd.model.migration import FindingSeverity, MigrationReason

S = MigrationSide
WRONG_STATE = MigrationReason.WRONG_STATE
CAPACITY = 4 << 20


def _facet(session: HostSession) -> MigrationFacet:
    facet = session.facets.migration
    assert facet is not None, "the second host has no facet 'migration'"
    return facet


@asynccontextmanager
async def _two(kit: Kit, subject: Subject) -> AsyncIterator[tuple[MigrationFacet, HostSession]]:
    """The first host's facet and the second host; what of the guest is on the second is removed."""
    peer = await kit.peer()
    try:
        yield kit.facet("migration"), peer
    finally:
        await peer.stop_guest(subject.uuid, kit.context())
        await peer.undefine_guest(subject.uuid, kit.context())


async def _running(kit: Kit) -> Subject:
    subject = await kit.new_guest(running=True)
    await kit.reaches(subject.uuid, GuestState.RUNNING)
    return subject


async def _sides(kit: Kit, peer: HostSession, uuid: UUID) -> tuple[MigrationSide, MigrationSide]:
    return await kit.facet("migration").migration_side(uuid), await _facet(peer).migration_side(uuid)


def _nothing() -> None:
    """It may be called, or not."""


class TestMovedDefinitions:
    """What the core moves a stopped guest with."""

    @check(caps.MIGRATE)
    async def test_definition(self, kit: Kit) -> None:
        """A definition that one host gave is taken by the other; the guest is the same."""
        guest = await kit.new_guest()
        peer = await kit.peer()
        facet = peer.facets.definitions
        assert facet is not None
        try:
            before = await kit.session.get_guest(guest.uuid)
            definition = await kit.facet("definitions").read_definition(guest.uuid)
            for _ in range(2):
                await facet.write_definition(guest.uuid, "", definition, kit.context())
            after = await peer.get_guest(guest.uuid)
            assert (after.uuid, after.name, after.spec) == (before.uuid, before.name, before.spec)
            await peer.start_guest(guest.uuid, kit.context())
            assert (await peer.get_guest(guest.uuid)).state is GuestState.RUNNING
        finally:
            await peer.stop_guest(guest.uuid, kit.context())
            await peer.undefine_guest(guest.uuid, kit.context())


class TestMigration:
    """Live migration."""

    @check(caps.MIGRATE_LIVE, proof=False)
    async def test_side(self, kit: Kit) -> None:
        """ABSENT, DOWN and ACTIVE are what they say."""
        facet, guest = kit.facet("migration"), kit.subject()
        assert await facet.migration_side(guest.uuid) is S.ABSENT
        await kit.session.define_guest(guest.resolved, kit.context())
        assert await facet.migration_side(guest.uuid) is S.DOWN
        await kit.session.start_guest(guest.uuid, kit.context())
        await kit.reaches(guest.uuid, GuestState.RUNNING)
        assert await facet.migration_side(guest.uuid) is S.ACTIVE
        await kit.error(facet.discard_arrival(guest.uuid, kit.context()), INVALID_STATE)
        assert await facet.migration_side(guest.uuid) is S.ACTIVE

    @check(caps.MIGRATE_LIVE)
    async def test_there_and_back(self, kit: Kit) -> None:
        """The guest runs on the other host, with its definition, and here is nothing of it; and back."""
        guest = await _running(kit)
        before = await kit.session.get_guest(guest.uuid)
        async with _two(kit, guest) as (facet, peer):
            await facet.migrate_guest(guest.uuid, MigrationOrder(), _facet(peer), kit.context(), committed=_nothing)
            assert await _sides(kit, peer, guest.uuid) == (S.ABSENT, S.ACTIVE)
            after = await peer.get_guest(guest.uuid)
            assert (after.state, after.name, after.persistent) == (GuestState.RUNNING, guest.name, True)
            assert after.spec == before.spec
            await kit.error(kit.session.get_guest(guest.uuid), GUEST_NOT_FOUND)
            times = await _facet(peer).migration_times(guest.uuid)
            assert times.downtime_ms is None or times.downtime_ms >= 0
            raw = await kit.provision.backend.open(kit.config())
            try:
                await _facet(peer).migrate_guest(
                    guest.uuid, MigrationOrder(), _facet(raw), kit.context(), committed=_nothing
                )
            finally:
                await raw.close()
            assert await _sides(kit, peer, guest.uuid) == (S.ACTIVE, S.ABSENT)

    @check(caps.MIGRATE_LIVE, caps.PAUSE)
    async def test_paused(self, kit: Kit) -> None:
        """A paused guest is paused there, unless the check says beforehand that it cannot go."""
        guest = await _running(kit)
        await kit.facet("pause").pause_guest(guest.uuid, kit.context())
        async with _two(kit, guest) as (facet, peer):
            found = await facet.check_migration(guest.uuid, MigrationOrder(), _facet(peer), live=True)
            if any((one.reason, one.severity) == (WRONG_STATE, FindingSeverity.CRITICAL) for one in found):
                return
            await facet.migrate_guest(guest.uuid, MigrationOrder(), _facet(peer), kit.context(), committed=_nothing)
            assert (await peer.get_guest(guest.uuid)).state is GuestState.PAUSED

    @check(caps.MIGRATE_LIVE, proof=False)
    async def test_cancel(self, kit: Kit) -> None:
        """Cancelled before it has begun, or at the first look at the context: the guest runs on here."""
        guest = await _running(kit)
        async with _two(kit, guest) as (facet, peer):
            context = kit.context(cancel_at=1)
            call = facet.migrate_guest(guest.uuid, MigrationOrder(), _facet(peer), context, committed=_nothing)
            await kit.error(call, OPERATION_CANCELLED)
            assert await _sides(kit, peer, guest.uuid) == (S.ACTIVE, S.ABSENT)
            assert await kit.state(guest.uuid) == GuestState.RUNNING

    @check(caps.MIGRATE_LIVE, proof=False)
    async def test_check_has_no_effect(self, kit: Kit) -> None:
        """It reads, whatever it finds; and a guest that is not there is GUEST_NOT_FOUND."""
        guest = await _running(kit)
        before = await kit.digest()
        async with _two(kit, guest) as (facet, peer):
            for live in (True, False):
                for finding in await facet.check_migration(guest.uuid, MigrationOrder(), _facet(peer), live=live):
                    assert finding.message, f"{finding.reason} says nothing"
            assert await _sides(kit, peer, guest.uuid) == (S.ACTIVE, S.ABSENT)
            nobody = kit.subject().uuid
            call = facet.check_migration(nobody, MigrationOrder(), _facet(peer), live=True)
            await kit.error(call, GUEST_NOT_FOUND)
        await kit.unchanged(before, "the check")

    @check(caps.MIGRATE_LIVE, caps.MIGRATE_STORAGE, caps.VOLUMES)
    async def test_mirrored_disk(self, kit: Kit) -> None:
        """The guest uses the other host's volume when it has arrived."""
        peer = await kit.peer()
        here, there = kit.facet("storage"), peer.facets.storage
        assert there is not None
        name = f"{kit.new_name()}.qcow2"
        pool = await here.ensure_default_pool(kit.context())
        other = await there.ensure_default_pool(kit.context())
        kit.forget_later(volume=(pool.name, name))
        volume = await here.create_volume(VolumeRequest(pool.name, name, DiskFormat.QCOW2, CAPACITY), kit.context())
        copy = await there.create_volume(VolumeRequest(other.name, name, DiskFormat.QCOW2, CAPACITY), kit.context())

        def make(native_name: str, uuid: UUID) -> ResolvedGuest:
            disk = ResolvedDisk("data", volume.path, DiskFormat.QCOW2, DiskBus.VIRTIO)
            return replace(kit.provision.guest(native_name, uuid), disks=(disk,))

        guest = await kit.new_guest(make=make, running=True)
        await kit.reaches(guest.uuid, GuestState.RUNNING)
        try:
            async with _two(kit, guest) as (facet, target):
                order = MigrationOrder(
                    (MovedDisk(volume.path, copy.path, DiskFormat.QCOW2, mirrored=True),), mirrors=True
                )
                await facet.migrate_guest(guest.uuid, order, _facet(target), kit.context(), committed=_nothing)
                assert [disk.path for disk in (await target.get_guest(guest.uuid)).disks] == [copy.path]
        finally:
            await there.delete_volume(other.name, name, kit.context())

    @check(caps.MIGRATE_LIVE, caps.MIGRATE_POSTCOPY)
    async def test_post_copy(self, kit: Kit) -> None:
        """Allowed to switch over early, it arrives as well."""
        guest = await _running(kit)
        async with _two(kit, guest) as (facet, peer):
            order = MigrationOrder(post_copy=True)
            await facet.migrate_guest(guest.uuid, order, _facet(peer), kit.context(), committed=_nothing)
            assert await _sides(kit, peer, guest.uuid) == (S.ABSENT, S.ACTIVE)
