"""Snapshots of libvirt guests: internal ones by libvirt, external ones by :mod:`.snapshots_external`."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any, Final, TypeVar
from uuid import UUID

import libvirt

from virtd.backend.api import CallContext
from virtd.backend.facets_snapshots import SnapshotPlan, SnapshotRequest
from virtd.errors import (
    SNAPSHOT_CHAIN_BROKEN,
    SNAPSHOT_MIXED,
    SNAPSHOT_NOT_FOUND,
    FailedPreconditionError,
    NotFoundError,
    VirtdError,
)
from virtd.libvirt import checkpoints
from virtd.libvirt import snapshots_external as outside
from virtd.libvirt.connections import LaneName
from virtd.libvirt.guests import Guests, is_active
from virtd.libvirt.snapshot_choice import Situation, choose
from virtd.libvirt.snapshot_files import in_use, read, refuse_blocked, with_users
from virtd.libvirt.snapshot_layers import InUseError
from virtd.libvirt.xml.domain import Domain
from virtd.libvirt.xml.snapshot import DomainSnapshot, with_description
from virtd.model.guest import GuestState
from virtd.model.snapshot import EXTERNAL, INTERNAL, Snapshot, SnapshotKind

T = TypeVar("T")

# virDomainState words of a snapshot's XML.
_STATES: Final = {
    "running": GuestState.RUNNING,
    "blocked": GuestState.RUNNING,
    "disk-snapshot": GuestState.RUNNING,  # libvirt's word for the disks of an active guest
    "paused": GuestState.PAUSED,
    "shutoff": GuestState.STOPPED,
    "shutdown": GuestState.STOPPED,
    "crashed": GuestState.CRASHED,
}
_POLL_S: Final = 0.25


class Snapshots:
    """The snapshots of one host's guests.

    :param here: whether the host is this machine, so that its files can be read.
    :param images: False: the host has no real images (libvirt's test driver); nothing is read or checked.
    """

    def __init__(self, guests: Guests, *, here: bool = True, images: bool = True) -> None:
        self._guests: Final = guests
        self._here: Final = here
        self._images: Final = images

    async def list_snapshots(self, uuid: UUID) -> Sequence[Snapshot]:
        """All of them, parents before children."""
        return await self._guests.on_domain(uuid, "virDomainListAllSnapshots", _list)

    # ------------------------------------------------------------------------------- create

    async def plan_create(self, uuid: UUID, request: SnapshotRequest) -> SnapshotPlan:
        """Where it would be kept, and why; see the SPI."""
        return await self._bulk(uuid, "virDomainSnapshotCreateXML", lambda domain: self._plan_create(domain, request))

    async def create_snapshot(
        self, uuid: UUID, request: SnapshotRequest, context: CallContext, plan: SnapshotPlan | None = None
    ) -> Snapshot:
        """Take one; one of this name that is complete is returned as it is.

        Cancellable while the memory of an external one is written; libvirt offers no way to abort an
        internal one.

        :raises UnsupportedError: this guest cannot have this kind now.
        """
        context.checkpoint()
        external = plan is not None and plan.location == EXTERNAL

        def run(domain: Any) -> Snapshot:
            existing = _find(domain, request.name)
            if existing is not None:
                return _read(existing, _current_name(domain))
            fresh = self._plan_create(domain, request)  # refuses what has become impossible
            chosen = plan if plan is not None and plan.location == fresh.location else fresh
            if chosen.location == EXTERNAL:
                made = outside.create(domain, request, chosen)
            else:
                if self._images and not is_active(domain):
                    checkpoints.drop_all(domain)  # libvirt takes none beside them
                made = domain.snapshotCreateXML(DomainSnapshot(request.name, request.description).to_xml(), 0)
            try:
                if self._images:
                    read(domain.connect(), domain, here=self._here).check()
                return replace(_read(made, _current_name(domain)), reason=chosen.reason)
            except libvirt.libvirtError:
                if chosen.location == INTERNAL:
                    # A call that raises leaves nothing behind; an external one is taken back by the core.
                    with contextlib.suppress(libvirt.libvirtError):
                        made.delete(0)
                raise

        work = asyncio.ensure_future(self._bulk(uuid, "virDomainSnapshotCreateXML", run))
        if not (external and request.memory):
            return await work
        return await self._watched(uuid, work, context)

    async def _watched(self, uuid: UUID, work: asyncio.Future[Snapshot], context: CallContext) -> Snapshot:
        """Wait; a cancel aborts the job that writes the memory, and the guest runs on."""
        try:
            while not work.done():
                await asyncio.wait({work}, timeout=_POLL_S)
                if not work.done():
                    context.checkpoint()
        except (VirtdError, asyncio.CancelledError):
            await self._guests.on_domain(uuid, "virDomainAbortJob", _abort)
            with contextlib.suppress(VirtdError):
                made = await asyncio.shield(work)
                # It was quicker: a call that raises leaves nothing behind.
                await self._delete(uuid, made.name, None, lambda _share: None)
            raise
        return work.result()

    def _plan_create(self, domain: Any, request: SnapshotRequest) -> SnapshotPlan:
        situation = self._situation(domain)
        choice = choose(situation, request)
        targets = [disk.target for disk in situation.domain.disks]
        refuse_blocked(domain, targets, checkpoints=False)
        if self._images:
            read(domain.connect(), domain, here=self._here).check()
        if choice.location == EXTERNAL:
            return outside.plan_create(domain, request, choice.reason)
        kind = SnapshotKind.DISK_AND_MEMORY if request.memory else SnapshotKind.DISK
        return SnapshotPlan(INTERNAL, choice.reason, kind)

    def _situation(self, domain: Any) -> Situation:
        seen = [DomainSnapshot.parse(found.getXMLDesc(0)) for found in domain.listAllSnapshots(0)]
        active = is_active(domain)
        return Situation(
            Domain.parse(domain.XMLDesc(0)),
            active,
            suspended=not active and bool(domain.hasManagedSaveImage(0)),
            internal=tuple(snapshot.name for snapshot in seen if not snapshot.external),
            external=tuple(snapshot.name for snapshot in seen if snapshot.external),
            images=self._images,
        )

    async def describe_snapshot(self, uuid: UUID, name: str, description: str) -> None:
        """Change the description.  Idempotent.

        :raises NotFoundError: SNAPSHOT_NOT_FOUND.
        """

        def run(domain: Any) -> None:
            snapshot = _required(domain, name)
            changed = with_description(snapshot.getXMLDesc(outside.SECURE), description)
            outside.redefine(domain, changed, current=bool(snapshot.isCurrent(0)))

        await self._bulk(uuid, "virDomainSnapshotCreateXML", run)

    # ------------------------------------------------------------------------------- revert

    async def plan_revert(self, uuid: UUID, name: str) -> SnapshotPlan:
        """How the guest would be made what it was; see the SPI."""
        return await self._bulk(uuid, "virDomainRevertToSnapshot", lambda domain: self._plan_revert(domain, name))

    async def revert_snapshot(
        self, uuid: UUID, name: str, context: CallContext, plan: SnapshotPlan | None = None
    ) -> None:
        """Make the guest what it was.  A saved state of it is discarded: it belongs to what is given up.

        :raises NotFoundError: SNAPSHOT_NOT_FOUND.
        """
        context.checkpoint()

        def run(domain: Any) -> None:
            snapshot = _required(domain, name)
            chosen = plan if plan is not None else self._plan_revert(domain, name)
            if self._images:
                checkpoints.prepare_revert(domain)  # QEMU dies of a revert beside them
            if chosen.location == EXTERNAL:
                outside.revert(domain, snapshot, chosen)
                read(domain.connect(), domain, here=self._here).check()
            else:
                _revert_internal(domain, snapshot)

        await self._bulk(uuid, "virDomainRevertToSnapshot", run)

    def _plan_revert(self, domain: Any, name: str) -> SnapshotPlan:
        seen = DomainSnapshot.parse(_required(domain, name).getXMLDesc(0))
        if not self._images:
            return SnapshotPlan(INTERNAL, "by libvirt")
        if seen.external:
            return outside.plan_revert(domain, name, here=self._here)
        mixed = self._situation(domain).external
        if mixed:
            raise _mixed("external", mixed, "reverting to an internal one")
        self._check_inside(domain, name)
        images = with_users(read(domain.connect(), domain, here=self._here), domain.connect(), domain)
        refuse_blocked(domain, images.forest.active, checkpoints=True)
        for path in images.forest.active.values():
            if images.forest.users.get(path):
                # The image itself is rewritten: whoever is based on it would see other content.
                raise in_use(InUseError(path, images.forest.users[path]))
        return SnapshotPlan(INTERNAL, "by libvirt, inside the images")

    # ------------------------------------------------------------------------------- delete

    async def plan_delete(self, uuid: UUID, name: str) -> SnapshotPlan:
        """What deleting it would merge and remove; see the SPI."""
        return await self._bulk(uuid, "virDomainSnapshotDelete", lambda domain: self._plan_delete(domain, name))

    async def delete_snapshot(
        self, uuid: UUID, name: str, context: CallContext, plan: SnapshotPlan | None = None
    ) -> None:
        """Delete one; children keep their data and get its parent.  Idempotent.  See the SPI."""
        context.checkpoint()
        share = [0.0]
        work = asyncio.ensure_future(self._delete(uuid, name, plan, lambda now: share.__setitem__(0, now)))
        while not work.done():
            await asyncio.wait({work}, timeout=_POLL_S)
            context.progress(share[0])
        work.result()

    async def _delete(self, uuid: UUID, name: str, plan: SnapshotPlan | None, report: Callable[[float], None]) -> None:
        def run(domain: Any) -> None:
            chosen = plan if plan is not None and plan.location else self._plan_delete(domain, name)
            if chosen.location == EXTERNAL:
                checkpoints.drop_all(domain)  # the images that they are in are merged
                # Also where it is forgotten already: the rest may be to be done.
                outside.delete(domain, name, chosen, report, here=self._here)
                return
            snapshot = _find(domain, name)
            if snapshot is None:
                return
            try:
                snapshot.delete(0)
            except libvirt.libvirtError as error:
                if error.get_error_code() != libvirt.VIR_ERR_NO_DOMAIN_SNAPSHOT:
                    raise

        await self._bulk(uuid, "virDomainSnapshotDelete", run)

    def _plan_delete(self, domain: Any, name: str) -> SnapshotPlan:
        snapshot = _find(domain, name)
        if snapshot is None:
            return SnapshotPlan()
        if not self._images:
            return SnapshotPlan(INTERNAL, "by libvirt")
        if DomainSnapshot.parse(snapshot.getXMLDesc(0)).external:
            return outside.plan_delete(domain, name, here=self._here)
        self._check_inside(domain, name)
        refuse_blocked(domain, [disk.target for disk in Domain.parse(domain.XMLDesc(0)).disks], checkpoints=False)
        return SnapshotPlan(INTERNAL, "by libvirt, inside the images")

    def _check_inside(self, domain: Any, name: str) -> None:
        """An internal snapshot is in every image that it should be in.

        :raises FailedPreconditionError: SNAPSHOT_CHAIN_BROKEN.
        """
        images = read(domain.connect(), domain, here=self._here)
        images.check()
        if not images.local:
            return
        inside = {path: images.layers[path].snapshots for path in images.forest.active.values()}
        # A disk that was attached later has none; one that lost it stands beside one that has it.
        lacking = [path for path, names in inside.items() if name not in names]
        if inside and len(lacking) == len(inside):
            raise FailedPreconditionError(
                SNAPSHOT_CHAIN_BROKEN,
                f"the guest's record has a snapshot {name}, but no image of the guest holds it",
                metadata={
                    "chain_on_disk": "; ".join(f"{path}: {', '.join(names)}" for path, names in inside.items()),
                    "chain_in_records": name,
                },
            )

    async def _bulk(self, uuid: UUID, call: str, function: Callable[[Any], T]) -> T:
        return await self._guests.on_domain(uuid, call, function, lane=LaneName.BULK, unlimited=True)


def _revert_internal(domain: Any, snapshot: Any) -> None:
    if not is_active(domain) and domain.hasManagedSaveImage(0):
        domain.managedSaveRemove(0)  # it would be restored over disks that are not its own
    try:
        domain.revertToSnapshot(snapshot, 0)
    except libvirt.libvirtError as error:
        if error.get_error_code() != libvirt.VIR_ERR_SNAPSHOT_REVERT_RISKY:
            raise
        # Risky means that the process has to be replaced, which a revert may do.
        domain.revertToSnapshot(snapshot, libvirt.VIR_DOMAIN_SNAPSHOT_REVERT_FORCE)


def _mixed(kind: str, names: Sequence[str], what: str) -> VirtdError:
    return FailedPreconditionError(
        SNAPSHOT_MIXED,
        f"the guest has {kind} snapshots too ({', '.join(names[:5])}); {what} is not safe with both kinds",
        metadata={"others": ",".join(names)},
    )


def _abort(domain: Any) -> None:
    with contextlib.suppress(libvirt.libvirtError):
        domain.abortJob()


def _required(domain: Any, name: str) -> Any:
    snapshot = _find(domain, name)
    if snapshot is None:
        raise NotFoundError(SNAPSHOT_NOT_FOUND, f"the guest has no snapshot named {name}")
    return snapshot


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
