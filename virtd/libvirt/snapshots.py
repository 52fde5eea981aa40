"""Internal snapshots: the disks' state, and memory where the guest runs, inside the qcow2 images."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from typing import Any, Final
from uuid import UUID

import libvirt

from virtd.backend.api import CallContext, SnapshotRequest
from virtd.backend.capabilities import SNAPSHOT, SNAPSHOT_MEMORY
from virtd.errors import SNAPSHOT_NOT_FOUND, NotFoundError, unsupported
from virtd.libvirt.connections import LaneName
from virtd.libvirt.guests import Guests, is_active
from virtd.libvirt.xml.domain import Domain
from virtd.libvirt.xml.snapshot import DomainSnapshot
from virtd.model.guest import GuestState
from virtd.model.snapshot import Snapshot, SnapshotKind

# virDomainState words of a snapshot's XML.
_STATES: Final = {
    "running": GuestState.RUNNING,
    "blocked": GuestState.RUNNING,
    "paused": GuestState.PAUSED,
    "shutoff": GuestState.STOPPED,
    "shutdown": GuestState.STOPPED,
    "crashed": GuestState.CRASHED,
}


Refusal = Callable[[Domain, bool, bool], tuple[str, str] | None]
"""Given the guest, whether it is active and whether memory is wanted: why not (capability, reason), or None."""


def refuse_by_state(_domain: Domain, active: bool, memory: bool) -> tuple[str, str] | None:
    """What no host does: memory of a guest that has none, and disks that change while they are copied."""
    if memory and not active:
        return SNAPSHOT_MEMORY, "the guest does not run, so it has no memory to keep; take one without memory"
    if not memory and active:
        return SNAPSHOT, "a running guest's disks change while they are copied: include its memory, or stop it first"
    return None


def refuse_by_disks(domain: Domain, active: bool, memory: bool) -> tuple[str, str] | None:
    """What hosts with real images do not do either.

    The host would refuse most of it too, but late, or by leaving a disk out without a word.
    """
    refused = refuse_by_state(domain, active, memory)
    if refused is not None:
        return refused
    kind = SNAPSHOT_MEMORY if memory else SNAPSHOT
    if domain.boot.efi:
        return kind, "the host cannot take internal snapshots of guests with UEFI firmware"
    writable = [disk for disk in domain.disks if not disk.read_only and disk.device == "disk"]
    for disk in writable:
        if disk.format != "qcow2":
            name = domain.metadata.disks.get(disk.target) or disk.target
            return kind, f"disk {name} is {disk.format}; snapshots live inside qcow2 images"
    if not writable:
        return kind, "the guest has no writable qcow2 disk in which a snapshot could live"
    return None


class Snapshots:
    """The snapshots of one host's guests."""

    def __init__(self, guests: Guests, refuse: Refusal = refuse_by_disks) -> None:
        self._guests: Final = guests
        self._refuse: Final = refuse

    async def list_snapshots(self, uuid: UUID) -> Sequence[Snapshot]:
        """All of them, parents before children."""
        return await self._guests.on_domain(uuid, "virDomainListAllSnapshots", _list)

    async def create_snapshot(self, uuid: UUID, request: SnapshotRequest, context: CallContext) -> Snapshot:
        """Take one; one of this name that is complete is returned as it is.

        Not cancellable once it has begun: libvirt offers no way to abort an internal snapshot.

        :raises UnsupportedError: this guest cannot have this kind now.
        """
        context.checkpoint()

        def run(domain: Any) -> Snapshot:
            existing = _find(domain, request.name)
            if existing is not None:
                return _read(existing, _current_name(domain))
            refused = self._refuse(Domain.parse(domain.XMLDesc(0)), is_active(domain), request.memory)
            if refused is not None:
                raise unsupported(*refused)
            made = domain.snapshotCreateXML(DomainSnapshot(request.name, request.description).to_xml(), 0)
            try:
                return _read(made, _current_name(domain))
            except libvirt.libvirtError:
                # A call that raises leaves nothing behind.
                with contextlib.suppress(libvirt.libvirtError):
                    made.delete(0)
                raise

        return await self._guests.on_domain(uuid, "virDomainSnapshotCreateXML", run, lane=LaneName.BULK, unlimited=True)

    async def revert_snapshot(self, uuid: UUID, name: str, context: CallContext) -> None:
        """Make the guest what it was, running or stopped as it was then.

        :raises NotFoundError: SNAPSHOT_NOT_FOUND.
        """
        context.checkpoint()

        def run(domain: Any) -> None:
            snapshot = _find(domain, name)
            if snapshot is None:
                raise NotFoundError(SNAPSHOT_NOT_FOUND, f"the guest has no snapshot named {name}")
            try:
                domain.revertToSnapshot(snapshot, 0)
            except libvirt.libvirtError as error:
                if error.get_error_code() != libvirt.VIR_ERR_SNAPSHOT_REVERT_RISKY:
                    raise
                # Risky means that the process has to be replaced, which a revert may do.
                domain.revertToSnapshot(snapshot, libvirt.VIR_DOMAIN_SNAPSHOT_REVERT_FORCE)

        await self._guests.on_domain(uuid, "virDomainRevertToSnapshot", run, lane=LaneName.BULK, unlimited=True)

    async def delete_snapshot(self, uuid: UUID, name: str, context: CallContext) -> None:
        """Delete one; children keep their data and get its parent.  Idempotent.

        :raises UnsupportedError: it is an external snapshot, made outside virtd.
        """
        context.checkpoint()

        def run(domain: Any) -> None:
            snapshot = _find(domain, name)
            if snapshot is None:
                return
            if DomainSnapshot.parse(snapshot.getXMLDesc(0)).external:
                raise unsupported(
                    SNAPSHOT,
                    "this snapshot is a chain of image files that was made outside virtd; deleting it here "
                    "could lose data",
                )
            try:
                snapshot.delete(0)
            except libvirt.libvirtError as error:
                if error.get_error_code() != libvirt.VIR_ERR_NO_DOMAIN_SNAPSHOT:
                    raise

        await self._guests.on_domain(uuid, "virDomainSnapshotDelete", run, lane=LaneName.BULK, unlimited=True)


def _find(domain: Any, name: str) -> Any:
    try:
        return domain.snapshotLookupByName(name, 0)
    except libvirt.libvirtError as error:
        if error.get_error_code() == libvirt.VIR_ERR_NO_DOMAIN_SNAPSHOT:
            return None
        raise


def _current_name(domain: Any) -> str:
    return str(domain.snapshotCurrent(0).getName()) if domain.hasCurrentSnapshot(0) else ""


def _list(domain: Any) -> list[Snapshot]:
    current = _current_name(domain)
    found = [_read(snapshot, current) for snapshot in domain.listAllSnapshots(0)]
    return _parents_first(found)


def _parents_first(snapshots: Sequence[Snapshot]) -> list[Snapshot]:
    """Topological order; siblings by age, then name."""
    names = {snapshot.name for snapshot in snapshots}
    children: dict[str, list[Snapshot]] = {}
    for snapshot in snapshots:
        children.setdefault(snapshot.parent if snapshot.parent in names else "", []).append(snapshot)
    ordered: list[Snapshot] = []
    waiting = [""]
    while waiting:
        family = sorted(
            children.pop(waiting.pop(0), []),
            key=lambda snapshot: (snapshot.create_time or datetime.min.replace(tzinfo=UTC), snapshot.name),
        )
        ordered += family
        waiting += [snapshot.name for snapshot in family]
    return ordered


def _read(snapshot: Any, current: str) -> Snapshot:
    xml = DomainSnapshot.parse(snapshot.getXMLDesc(0))
    # A snapshot of an active guest has its memory unless it says "no".
    memory = xml.memory in ("internal", "external")
    created = xml.creation_time
    return Snapshot(
        name=xml.name,
        description=xml.description,
        kind=SnapshotKind.DISK_AND_MEMORY if memory else SnapshotKind.DISK,
        parent=xml.parent,
        current=xml.name == current,
        guest_state=_STATES.get(xml.state, GuestState.UNKNOWN).value,
        location="external" if xml.external else "internal",
        create_time=None if created is None else datetime.fromtimestamp(created, UTC),
    )
