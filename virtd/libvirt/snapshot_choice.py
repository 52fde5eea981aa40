"""Which kind of snapshot a guest gets, and why.  Pure: no I/O."""

from __future__ import annotations

from dataclasses import dataclass

from virtd.backend.capabilities import SNAPSHOT, SNAPSHOT_EXTERNAL, SNAPSHOT_MEMORY
from virtd.backend.facets_snapshots import SnapshotRequest
from virtd.errors import SNAPSHOT_BLOCKED, SNAPSHOT_MIXED, FailedPreconditionError, VirtdError, unsupported
from virtd.libvirt.xml.disk import Disk
from virtd.libvirt.xml.domain import Domain
from virtd.model.snapshot import EXTERNAL, INTERNAL, SnapshotLocation


@dataclass(frozen=True, slots=True)
class Situation:
    """What the choice depends on.

    :param images: whether the host has real images (libvirt's test driver has none).
    :param suspended: whether the guest is saved to disk.
    """

    domain: Domain
    active: bool
    suspended: bool = False
    internal: tuple[str, ...] = ()
    external: tuple[str, ...] = ()
    images: bool = True


@dataclass(frozen=True, slots=True)
class Choice:
    """``internal`` or ``external``, and why."""

    location: str
    reason: str


def writable(domain: Domain) -> tuple[Disk, ...]:
    """The disks that a snapshot is about."""
    return tuple(disk for disk in domain.disks if not disk.read_only and disk.device == "disk")


def choose(now: Situation, request: SnapshotRequest) -> Choice:
    """The kind of snapshot to take.

    :raises UnsupportedError: the guest cannot have this one now.
    :raises FailedPreconditionError: SNAPSHOT_MIXED or SNAPSHOT_BLOCKED.
    """
    if request.memory and not now.active:
        raise unsupported(
            SNAPSHOT_MEMORY, "the guest does not run, so it has no memory to keep; take one without memory"
        )
    no_internal, no_external = _not_internal(now, request.memory), _not_external(now)
    if request.location is SnapshotLocation.INTERNAL:
        if no_internal:
            raise unsupported(SNAPSHOT_MEMORY if request.memory else SNAPSHOT, no_internal)
        _refuse_mixing(now.external, "external")
        return Choice(INTERNAL, "asked for")
    why = "asked for"
    if request.location is SnapshotLocation.AUTO:
        if not now.external and not no_internal:
            return Choice(INTERNAL, "every writable disk is qcow2, and the firmware is BIOS")
        why = "the guest's other snapshots are external" if now.external else no_internal
        if not now.images:
            raise unsupported(SNAPSHOT_MEMORY if request.memory else SNAPSHOT, no_internal)
    if no_external:
        raise unsupported(SNAPSHOT_EXTERNAL, no_external) if isinstance(no_external, str) else no_external
    _refuse_mixing(now.internal, "internal", "" if why == "asked for" else f": {why}, so that this one is external")
    return Choice(EXTERNAL, why)


def _refuse_mixing(others: tuple[str, ...], kind: str, why: str = "") -> None:
    if others:
        raise FailedPreconditionError(
            SNAPSHOT_MIXED,
            f"the guest has {kind} snapshots ({', '.join(others[:5])}){why}; a chain of both kinds cannot be "
            "reverted or taken apart safely",
            metadata={"others": ",".join(others)},
        )


def _not_internal(now: Situation, memory: bool) -> str:
    """Why a snapshot cannot be kept inside the images; ``""``: it can."""
    if now.active and not memory:
        return (
            "a running guest's disks change while they are copied inside their images: include its memory, or stop "
            "it first"
        )
    if not now.images:
        return ""
    if now.domain.boot.efi:
        return "the host cannot take internal snapshots of guests with UEFI firmware"
    for disk in writable(now.domain):
        if disk.format != "qcow2":
            return f"disk {_name(now, disk)} is {disk.format}; internal snapshots live inside qcow2 images"
    if not writable(now.domain):
        return "the guest has no writable qcow2 disk in which a snapshot could live"
    return ""


def _not_external(now: Situation) -> str | VirtdError:
    """Why a snapshot cannot be external; ``""``: it can."""
    if not now.images:
        return "the host has no image files"
    disks = writable(now.domain)
    if not disks:
        return "the guest has no writable disk"
    for disk in disks:
        if disk.kind != "file":
            return f"disk {_name(now, disk)} is no image file, so that nothing could be put over it"
    if now.suspended:
        return FailedPreconditionError(
            SNAPSHOT_BLOCKED,
            "the guest is suspended to disk, and its saved state writes to the images that an external snapshot "
            "would keep; start it first",
            allowed_actions=("start",),
        )
    return ""


def _name(now: Situation, disk: Disk) -> str:
    return now.domain.metadata.disks.get(disk.target) or disk.target
