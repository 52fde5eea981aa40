"""Checks of updates: what is said of a change is what it does, in the running guest and for its next start."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from virtd.backend import capabilities as caps
from virtd.backend.api import FieldEffect, ResolvedDisk, ResolvedGuest, ResolvedInterface, UpdateEffect, VolumeRequest
from virtd.backend.conformance.kit import Kit, NotRun, Subject, check
from virtd.errors import GUEST_NOT_FOUND, INVALID_STATE
from virtd.model.devices import IoTune, LinkState
from virtd.model.guest import DiskBus, DiskDevice, DiskFormat, GuestState, InterfaceKind

E = UpdateEffect
MIB = 1 << 20
_MAC = "52:54:00:c0:ff:ee"


async def _volume(kit: Kit, name: str, mib: int = 4) -> ResolvedDisk:
    """A disk with a file of its own."""
    if not kit.declared(caps.VOLUMES):
        raise NotRun("the host makes no volumes, so there is no disk to plug in")
    storage = kit.facet("storage")
    pool = await storage.ensure_default_pool(kit.context())
    request = VolumeRequest(pool.name, f"{kit.tag}-{name}.qcow2", DiskFormat.QCOW2, capacity_bytes=mib * MIB)
    volume = await storage.create_volume(request, kit.context())
    kit.forget_later(volume=(pool.name, volume.name))
    return ResolvedDisk(name, volume.path, DiskFormat.QCOW2, DiskBus.VIRTIO)


async def _plan(kit: Kit, current: ResolvedGuest, wanted: ResolvedGuest, *fields: str) -> Sequence[FieldEffect]:
    found: Sequence[FieldEffect] = await kit.facet("update").plan_update(current, wanted, fields)
    assert [entry.field for entry in found] == list(fields), "one effect for each field, in their order"
    for entry in found:
        assert entry.reason or entry.effect is E.LIVE, f"{entry.field} is {entry.effect} without a reason"
    return found


async def _live(kit: Kit, current: ResolvedGuest, wanted: ResolvedGuest, field: str) -> None:
    """A change that the plan calls LIVE is made so, twice, and is not for the next start."""
    (entry,) = await _plan(kit, current, wanted, field)
    assert entry.effect is E.LIVE, f"{field} is {entry.effect}: {entry.reason}"
    for _ in range(2):
        await kit.facet("update").apply_live(current, wanted, [field], kit.context())


async def _spec(kit: Kit, subject: Subject) -> Any:
    return (await kit.session.get_guest(subject.uuid)).spec


async def _roomy(kit: Kit) -> Subject:
    """A running guest that can grow."""
    return await kit.new_guest(
        make=lambda name, uuid: replace(kit.provision.guest(name, uuid), vcpus=1, max_vcpus=2), running=True
    )


class TestUpdate:
    """Changes of what a guest is started with."""

    @check(caps.UPDATE)
    async def test_config(self, kit: Kit) -> None:
        """A change is written down, once; back again leaves what was there before."""
        subject = await kit.new_guest()
        facet, old = kit.facet("update"), subject.resolved
        wanted = replace(old, vcpus=old.vcpus + 1, memory_bytes=old.memory_bytes + 16 * MIB)
        effects = await _plan(kit, old, wanted, "spec.vcpus", "spec.memory_bytes")
        assert {entry.effect for entry in effects} == {E.NEXT_BOOT}, "a stopped guest has nothing live"
        before = await kit.digest()
        planned = await facet.native_config(old, wanted)
        await kit.unchanged(before, "a plan")
        for _ in range(2):
            await facet.apply_config(old, wanted, kit.context())
        assert await facet.native_config(old, wanted) == planned, "what was planned is not what was written"
        spec = await _spec(kit, subject)
        assert (spec.vcpus, spec.memory_bytes) == (wanted.vcpus, wanted.memory_bytes)
        await facet.apply_config(wanted, old, kit.context())
        await kit.unchanged(before, "a change and its inverse")

    @check(caps.UPDATE)
    async def test_next_boot(self, kit: Kit) -> None:
        """What waits for a running guest's next start is named, and named no more when it has started."""
        subject = await kit.in_state(GuestState.RUNNING)
        facet, old = kit.facet("update"), subject.resolved
        wanted = replace(old, memory_bytes=old.memory_bytes + 16 * MIB)
        (entry,) = await _plan(kit, old, wanted, "spec.memory_bytes")
        assert entry.effect is E.NEXT_BOOT, "a running guest cannot have more memory than it was started with"
        await facet.apply_config(old, wanted, kit.context())
        native = await kit.session.get_guest(subject.uuid)
        assert "spec.memory_bytes" in native.pending_restart_fields
        await kit.session.stop_guest(subject.uuid, kit.context())
        assert (await kit.session.get_guest(subject.uuid)).pending_restart_fields == ()
        await kit.session.start_guest(subject.uuid, kit.context())
        native = await kit.session.get_guest(subject.uuid)
        assert native.pending_restart_fields == ()
        assert native.spec.memory_bytes == wanted.memory_bytes
        await facet.apply_config(wanted, old, kit.context())

    @check(caps.UPDATE)
    async def test_unknown_guest(self, kit: Kit) -> None:
        """A guest that is not there cannot be changed."""
        resolved = kit.subject().resolved
        await kit.error(kit.facet("update").plan_update(resolved, resolved, []), GUEST_NOT_FOUND)
        await kit.error(kit.facet("update").apply_config(resolved, resolved, kit.context()), GUEST_NOT_FOUND)

    @check(caps.UPDATE)
    async def test_live_of_a_stopped_guest(self, kit: Kit) -> None:
        """Nothing is changed live in a guest that does not run."""
        subject = await kit.in_state(GuestState.STOPPED)
        wanted = replace(subject.resolved, vcpus=subject.resolved.vcpus + 1)
        before = await kit.digest()
        work = kit.facet("update").apply_live(subject.resolved, wanted, ["spec.vcpus"], kit.context())
        await kit.error(work, INVALID_STATE)
        await kit.unchanged(before, "the refusal")

    @check(caps.UPDATE, caps.UPDATE_RESIZE)
    async def test_resize(self, kit: Kit) -> None:
        """A disk grows, once, and never shrinks."""
        disk = await _volume(kit, "grow")
        subject = await kit.new_guest(make=lambda name, uuid: replace(kit.provision.guest(name, uuid), disks=(disk,)))
        facet = kit.facet("update")
        for size in (8 * MIB, 8 * MIB, MIB):
            await facet.resize_disk(subject.uuid, disk.path, size, kit.context())
            (found,) = await facet.configured_disks(subject.uuid)
            assert (found.name, found.path, found.capacity_bytes) == (disk.name, disk.path, 8 * MIB)


class TestHotplug:
    """Changes of a running guest."""

    @check(caps.UPDATE, caps.UPDATE_DISKS)
    async def test_disk(self, kit: Kit) -> None:
        """A disk that is plugged in is there under its name; the configuration is not changed by that."""
        subject, disk = await _roomy(kit), await _volume(kit, "plug")
        old = subject.resolved
        wanted = replace(old, disks=(*old.disks, replace(disk, name="plugged")))
        await _live(kit, old, wanted, "spec.disks[plugged]")
        native = await kit.session.get_guest(subject.uuid)
        assert [entry.path for entry in native.disks if entry.name == "plugged"] == [disk.path]
        assert native.pending_restart_fields == ("spec.disks[plugged]",), "it is in the running guest only"
        await kit.facet("update").apply_config(old, wanted, kit.context())
        assert (await kit.session.get_guest(subject.uuid)).pending_restart_fields == ()

    @check(caps.UPDATE, caps.UPDATE_DISKS, caps.UPDATE_IO_TUNE)
    async def test_io_tune(self, kit: Kit) -> None:
        """Limits of a disk change while it is in use."""
        disk = await _volume(kit, "tune")
        make = kit.provision.guest
        subject = await kit.new_guest(make=lambda name, uuid: replace(make(name, uuid), disks=(disk,)), running=True)
        old, tune = subject.resolved, IoTune(total_requests_per_s=500)
        wanted = replace(old, disks=(replace(disk, io_tune=tune),))
        await _live(kit, old, wanted, f"spec.disks[{disk.name}].io_tune")
        (found,) = (await _spec(kit, subject)).disks
        waiting = (await kit.session.get_guest(subject.uuid)).pending_restart_fields
        assert found.io_tune == tune or waiting == (f"spec.disks[{disk.name}].io_tune",)

    @check(caps.UPDATE, caps.UPDATE_INTERFACES)
    async def test_interface(self, kit: Kit) -> None:
        """An interface that is plugged in is there under its name; its cable goes out and in."""
        subject = await _roomy(kit)
        old = subject.resolved
        made = ResolvedInterface("plugged", InterfaceKind.USER, _MAC)
        wanted = replace(old, interfaces=(*old.interfaces, made))
        await _live(kit, old, wanted, "spec.interfaces[plugged]")
        native = await kit.session.get_guest(subject.uuid)
        assert [entry.mac for entry in native.interfaces if entry.name == "plugged"] == [_MAC]
        down = replace(wanted, interfaces=(*old.interfaces, replace(made, link_state=LinkState.DOWN)))
        await kit.facet("update").apply_config(old, wanted, kit.context())
        await _live(kit, wanted, down, "spec.interfaces[plugged].link_state")
        native = await kit.session.get_guest(subject.uuid)
        assert [i.link_state for i in native.interfaces if i.name == "plugged"] == [LinkState.DOWN]

    @check(caps.UPDATE, caps.UPDATE_VCPUS)
    async def test_vcpus(self, kit: Kit) -> None:
        """Virtual processors are plugged in up to what the guest was started with, and no further."""
        subject = await _roomy(kit)
        old = subject.resolved
        await _live(kit, old, replace(old, vcpus=2), "spec.vcpus")
        assert (await kit.session.get_guest(subject.uuid)).vcpus in (2, None)
        (entry,) = await _plan(kit, old, replace(old, vcpus=3), "spec.vcpus")
        assert entry.effect is E.NEXT_BOOT

    @check(caps.UPDATE, caps.UPDATE_VCPUS, caps.UPDATE_VCPUS_UNPLUG)
    async def test_vcpus_unplug(self, kit: Kit) -> None:
        """Virtual processors are taken out, or the plan says why not in this guest."""
        subject = await _roomy(kit)
        old = subject.resolved
        more = replace(old, vcpus=2)
        await _live(kit, old, more, "spec.vcpus")
        (entry,) = await _plan(kit, more, old, "spec.vcpus")
        if entry.effect is E.LIVE:
            await kit.facet("update").apply_live(more, old, ["spec.vcpus"], kit.context())
        else:
            assert entry.reason in kit.capability(caps.UPDATE_VCPUS_UNPLUG).reason

    @check(caps.UPDATE, caps.UPDATE_MEMORY)
    async def test_memory(self, kit: Kit) -> None:
        """The balloon's target follows, down and up."""
        subject = await kit.new_guest(running=True)
        old = subject.resolved
        less = replace(old, memory_bytes=old.memory_bytes - 8 * MIB, max_memory_bytes=old.memory_bytes)
        await _live(kit, old, less, "spec.memory_bytes")
        await _live(kit, less, old, "spec.memory_bytes")

    @check(caps.UPDATE, caps.UPDATE_MEDIUM)
    async def test_medium(self, kit: Kit) -> None:
        """A drive takes and gives its medium."""
        medium = await _volume(kit, "medium")
        drive = replace(medium, name="cd", path="", bus=DiskBus.SCSI, device=DiskDevice.CDROM, read_only=True)
        make = kit.provision.guest
        subject = await kit.new_guest(make=lambda name, uuid: replace(make(name, uuid), disks=(drive,)), running=True)
        empty = subject.resolved
        full = replace(empty, disks=(replace(drive, path=medium.path),))
        for old, new, path in ((empty, full, medium.path), (full, empty, "")):
            await _live(kit, old, new, "spec.disks[cd].source")
            (found,) = (await kit.session.get_guest(subject.uuid)).disks
            assert found.path == path
