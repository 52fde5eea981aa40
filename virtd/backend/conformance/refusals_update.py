"""Live changes that a host does not offer: said in the plan, with the capability's reason, and refused."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Final

from virtd.backend import capabilities as caps
from virtd.backend.api import Fidelity, ResolvedDisk, ResolvedGuest, ResolvedInterface, UpdateEffect
from virtd.errors import CAPABILITY_UNSUPPORTED, FIELD_UNSUPPORTED
from virtd.model.devices import IoTune
from virtd.model.guest import DiskBus, DiskDevice, DiskFormat, InterfaceKind

if TYPE_CHECKING:
    from virtd.backend.conformance.kit import Kit

_DISK: Final = ResolvedDisk("refused", "", DiskFormat.RAW, DiskBus.VIRTIO)
_DRIVE: Final = ResolvedDisk("cd", "", DiskFormat.RAW, DiskBus.SCSI, DiskDevice.CDROM, read_only=True)
_INTERFACE: Final = ResolvedInterface("refused", InterfaceKind.USER, "52:54:00:c0:ff:ef")

Change = Callable[[ResolvedGuest, str], ResolvedGuest]


def _live(capability: str, field: str, start: Change, change: Change) -> Callable[[Kit], Awaitable[None]]:
    """A change of a running guest.

    :param start: what it is started with; ``change`` makes it what it shall be.  Both are given a path.
    """

    async def refused(kit: Kit) -> None:
        path = await kit.host_file("refused", bytes(1 << 20))
        make = kit.provision.guest
        subject = kit.subject(make=lambda name, uuid: start(make(name, uuid), path))
        if any(verdict.fidelity is Fidelity.REJECTED for verdict in kit.session.lower(subject.resolved).verdicts):
            # Guests of this kind have no such device in the first place.
            await kit.error(kit.session.define_guest(subject.resolved, kit.context()), FIELD_UNSUPPORTED)
            return
        await kit.session.define_guest(subject.resolved, kit.context())
        await kit.session.start_guest(subject.uuid, kit.context())
        facet, current = kit.facet("update"), subject.resolved
        wanted = change(current, path)
        (entry,) = await facet.plan_update(current, wanted, [field])
        later = (UpdateEffect.NEXT_BOOT, UpdateEffect.REJECTED)
        assert entry.effect in later, f"{field} is {entry.effect}, yet {capability} is not offered"
        assert entry.reason == kit.capability(capability).reason, "the plan gives another reason"
        before = await kit.digest()
        await kit.error(facet.apply_live(current, wanted, [field], kit.context()), CAPABILITY_UNSUPPORTED)
        await kit.unchanged(before, "the refusal")

    return refused


async def _resize(kit: Kit) -> None:
    subject = await kit.new_guest()
    path = kit.host_path("refused")
    before = await kit.digest()
    work = kit.facet("update").resize_disk(subject.uuid, path, 1 << 20, kit.context())
    await kit.error(work, CAPABILITY_UNSUPPORTED)
    await kit.unchanged(before, "the refusal")


async def _nothing_to_call(_kit: Kit) -> None:
    """Without it there is no facet."""


def _same(guest: ResolvedGuest, _path: str) -> ResolvedGuest:
    return guest


UPDATE_CALLS: Final[Mapping[str, Callable[[Kit], Awaitable[None]]]] = {
    caps.UPDATE: _nothing_to_call,
    caps.UPDATE_DISKS: _live(
        caps.UPDATE_DISKS, "spec.disks[refused]", _same, lambda g, path: replace(g, disks=(replace(_DISK, path=path),))
    ),
    caps.UPDATE_INTERFACES: _live(
        caps.UPDATE_INTERFACES, "spec.interfaces[refused]", _same, lambda g, _: replace(g, interfaces=(_INTERFACE,))
    ),
    caps.UPDATE_MEDIUM: _live(
        caps.UPDATE_MEDIUM,
        "spec.disks[cd].source",
        lambda g, _: replace(g, disks=(_DRIVE,)),
        lambda g, path: replace(g, disks=(replace(_DRIVE, path=path),)),
    ),
    caps.UPDATE_RESIZE: _resize,
    caps.UPDATE_IO_TUNE: _live(
        caps.UPDATE_IO_TUNE,
        "spec.disks[refused].io_tune",
        lambda g, path: replace(g, disks=(replace(_DISK, path=path),)),
        lambda g, path: replace(g, disks=(replace(_DISK, path=path, io_tune=IoTune(total_requests_per_s=9)),)),
    ),
    caps.UPDATE_MEMORY: _live(
        caps.UPDATE_MEMORY,
        "spec.memory_bytes",
        _same,
        lambda g, _: replace(g, memory_bytes=g.memory_bytes - (8 << 20), max_memory_bytes=g.memory_bytes),
    ),
    caps.UPDATE_VCPUS: _live(
        caps.UPDATE_VCPUS,
        "spec.vcpus",
        lambda g, _: replace(g, vcpus=1),
        lambda g, _: replace(g, vcpus=2),
    ),
    caps.UPDATE_VCPUS_UNPLUG: _live(
        caps.UPDATE_VCPUS_UNPLUG,
        "spec.vcpus",
        lambda g, _: replace(g, vcpus=2),
        lambda g, _: replace(g, vcpus=1),
    ),
}
"""By capability: the call that has to be refused."""
