"""Checks of updates: what is said of a change is what it does, in the running guest and for its next start."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any
from uuid import UUID

from virtd.backend import capabilities as caps
from virtd.backend.api import (
    Fidelity,
    FieldEffect,
    ResolvedDisk,
    ResolvedGuest,
    ResolvedInterface,
    UpdateEffect,
    VolumeRequest,
)
from virtd.backend.conformance.checks_inside import wait_ready
from virtd.backend.conformance.kit import Kit, NotRun, Subject, check
from virtd.backend.conformance.shell import wait_for_line
from virtd.errors import GUEST_NOT_FOUND, INVALID_STATE
from virtd.model.devices import IoTune, LinkState
from virtd.model.guest import DiskBus, DiskDevice, GuestState, InterfaceKind
from virtd.model.host import CapabilityLevel

E = UpdateEffect
MIB = 1 << 20
_MAC = "52:54:00:c0:ff:ee"
_INTERFACE = ResolvedInterface("", InterfaceKind.USER, _MAC)
_ROOMY = "roomy"
_NOBODY = UUID(int=1)
_DRIVE_BUSES = (DiskBus.SCSI, DiskBus.SATA, DiskBus.IDE)


async def _volume(kit: Kit, name: str, mib: int = 4) -> ResolvedDisk:
    """A disk with a file of its own."""
    if not kit.declared(caps.VOLUMES):
        raise NotRun("the host makes no volumes, so there is no disk to plug in")
    storage = kit.facet("storage")
    pool = await storage.ensure_default_pool(kit.context())
    format_ = kit.provision.disk_format
    request = VolumeRequest(pool.name, f"{kit.tag}-{name}", format_, capacity_bytes=mib * MIB)
    volume = await storage.create_volume(request, kit.context())
    kit.forget_later(volume=(pool.name, volume.name))
    return ResolvedDisk(name, volume.path, format_, DiskBus.VIRTIO)


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


async def _said_why_not(kit: Kit, current: ResolvedGuest, wanted: ResolvedGuest, field: str, capability: str) -> bool:
    """Whether it is a part that a capability that is PARTIAL leaves out: the plan gives the capability's reason."""
    (entry,) = await _plan(kit, current, wanted, field)
    if kit.capability(capability).level is not CapabilityLevel.PARTIAL or entry.effect is E.LIVE:
        return False
    assert entry.reason in kit.capability(capability).reason, f"the plan says {entry.reason!r}, the capability does not"
    return True


def _rejects_disks(kit: Kit, guest: ResolvedGuest) -> bool:
    verdicts = kit.session.lower(guest).verdicts
    return any(item.fidelity is Fidelity.REJECTED and item.field.startswith("spec.disks") for item in verdicts)


async def _spec(kit: Kit, subject: Subject) -> Any:
    return (await kit.session.get_guest(subject.uuid)).spec


async def _roomy(kit: Kit) -> Subject:
    """A running guest that can grow.  Checks share it, and tell :func:`_is_now` what they have made of it."""

    def roomy(name: str, uuid: UUID) -> ResolvedGuest:
        return replace(kit.provision.guest(name, uuid), vcpus=1, max_vcpus=2)

    async def make() -> Subject:
        subject = await kit.new_guest(make=roomy, running=True)
        if kit.provision.up_line:
            await wait_for_line(kit, subject.uuid, kit.provision.up_line)
        return subject

    return await kit.shared(_ROOMY, make)


async def _is_now(kit: Kit, old: ResolvedGuest, wanted: ResolvedGuest) -> None:
    """The shared guest has been changed live; that is written down too."""
    await kit.facet("update").apply_config(old, wanted, kit.context())
    assert (await kit.session.get_guest(wanted.uuid)).pending_restart_fields == ()
    kit.share_as(_ROOMY, wanted)


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

    @check(caps.UPDATE, caps.UPDATE_MEMORY)
    async def test_memory(self, kit: Kit) -> None:
        """The balloon's target follows, down and up."""
        old = (await _roomy(kit)).resolved
        less = replace(old, memory_bytes=old.memory_bytes - 8 * MIB, max_memory_bytes=old.memory_bytes)
        await _live(kit, old, less, "spec.memory_bytes")
        await _live(kit, less, old, "spec.memory_bytes")

    @check(caps.UPDATE, caps.UPDATE_VCPUS)
    async def test_vcpus(self, kit: Kit) -> None:
        """Virtual processors are plugged in up to what the guest was started with, and no further."""
        old = (await _roomy(kit)).resolved
        wanted = replace(old, vcpus=2)
        await _live(kit, replace(old, vcpus=1), wanted, "spec.vcpus")
        assert (await kit.session.get_guest(old.uuid)).vcpus in (2, None)
        (entry,) = await _plan(kit, old, replace(old, vcpus=3), "spec.vcpus")
        assert entry.effect is E.NEXT_BOOT
        await _is_now(kit, old, wanted)

    @check(caps.UPDATE, caps.UPDATE_VCPUS, caps.UPDATE_VCPUS_UNPLUG)
    async def test_vcpus_unplug(self, kit: Kit) -> None:
        """Virtual processors are taken out, or the plan says why not in this guest.  Its system has to take part."""
        subject = await _roomy(kit)
        one, two = replace(subject.resolved, vcpus=1), replace(subject.resolved, vcpus=2)
        await _live(kit, one, two, "spec.vcpus")
        (entry,) = await _plan(kit, two, one, "spec.vcpus")
        if entry.effect is not E.LIVE:
            assert entry.reason in kit.capability(caps.UPDATE_VCPUS_UNPLUG).reason
            await _is_now(kit, subject.resolved, two)
            return
        if not kit.provision.up_line:
            kit.need(caps.CONSOLE_SERIAL)
            make = kit.bootable().guest
            subject = await kit.new_guest(make=lambda n, u: replace(make(n, u), vcpus=1, max_vcpus=2), running=True)
            await wait_ready(kit, subject.uuid)
            one, two = subject.resolved, replace(subject.resolved, vcpus=2)
            await _live(kit, one, two, "spec.vcpus")
        await kit.facet("update").apply_live(two, one, ["spec.vcpus"], kit.context())
        assert (await kit.session.get_guest(subject.uuid)).vcpus in (1, None)
        if kit.provision.up_line:
            await _is_now(kit, subject.resolved, one)

    @check(caps.UPDATE, caps.UPDATE_INTERFACES)
    async def test_interface(self, kit: Kit) -> None:
        """An interface that is plugged in is there under its name; its cable goes out, unless the plan says why not."""
        old = (await _roomy(kit)).resolved
        made = replace(kit.provision.interface or _INTERFACE, name="plugged", mac=_MAC)
        wanted = replace(old, interfaces=(*old.interfaces, made))
        await _live(kit, old, wanted, "spec.interfaces[plugged]")
        native = await kit.session.get_guest(old.uuid)
        assert [entry.mac for entry in native.interfaces if entry.name == "plugged"] == [_MAC]
        await _is_now(kit, old, wanted)
        down = replace(wanted, interfaces=(*old.interfaces, replace(made, link_state=LinkState.DOWN)))
        if await _said_why_not(kit, wanted, down, "spec.interfaces[plugged].link_state", caps.UPDATE_INTERFACES):
            return
        await _live(kit, wanted, down, "spec.interfaces[plugged].link_state")
        native = await kit.session.get_guest(old.uuid)
        assert [i.link_state for i in native.interfaces if i.name == "plugged"] == [LinkState.DOWN]
        await _is_now(kit, wanted, down)

    @check(caps.UPDATE, caps.UPDATE_DISKS)
    async def test_disk(self, kit: Kit) -> None:
        """A disk that is plugged in is there under its name; the configuration is not changed by that."""
        subject, disk = await _roomy(kit), await _volume(kit, "plug")
        kit.share_no_longer(_ROOMY)  # its disk goes with the check
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

    @check(caps.UPDATE, caps.UPDATE_MEDIUM)
    async def test_medium(self, kit: Kit) -> None:
        """A drive changes and gives its medium, and takes another, unless the plan says why not."""
        first, second = await _volume(kit, "medium"), await _volume(kit, "other")
        make = kit.provision.guest

        def with_drive(name: str, uuid: UUID, bus: DiskBus) -> ResolvedGuest:
            drive = replace(first, name="cd", bus=bus, device=DiskDevice.CDROM, read_only=True)
            return replace(make(name, uuid), disks=(drive,))

        bus = next(bus for bus in _DRIVE_BUSES if not _rejects_disks(kit, with_drive("x", _NOBODY, bus)))
        subject = await kit.new_guest(make=lambda name, uuid: with_drive(name, uuid, bus), running=True)
        now = subject.resolved
        for path in (second.path, "", first.path):
            then = replace(now, disks=(replace(now.disks[0], path=path),))
            if not now.disks[0].path and await _said_why_not(
                kit, now, then, "spec.disks[cd].source", caps.UPDATE_MEDIUM
            ):
                return
            await _live(kit, now, then, "spec.disks[cd].source")
            (found,) = (await kit.session.get_guest(subject.uuid)).disks
            assert found.path == path
            now = then
