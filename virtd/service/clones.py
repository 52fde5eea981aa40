"""The use case of clones: what a clone is, decided before anything is touched."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING
from uuid import UUID, uuid4

from virtd.backend import capabilities as cap
from virtd.backend.api import DEFAULT_POOL
from virtd.backend.hookspecs import AdmitRequest
from virtd.errors import (
    CLONE_IMPOSSIBLE,
    FIELD_INVALID,
    POOL_NOT_FOUND,
    FailedPreconditionError,
    InvalidArgumentError,
    NotFoundError,
    VirtdError,
)
from virtd.inventory import GuestView, HostLink
from virtd.model.guest import Accelerator, DiskFormat, DiskSpec, DiskStatus, GuestSpec, GuestState, RunStrategy
from virtd.model.names import GuestName
from virtd.model.operation import Operation
from virtd.model.storage import PoolState, Volume
from virtd.model.trash import CloneMode
from virtd.operations import joined
from virtd.service.call import Call
from virtd.service.cloud_respin import read_seed
from virtd.service.core import Core, once, submission
from virtd.service.resolve import lower, planned_seed, random_mac
from virtd.service.validate import check_texts
from virtd.service.verbs.clone import CloneArguments, ClonedDisk, CloneGuest, source_busy
from virtd.service.verbs.disposal import storage_of

if TYPE_CHECKING:
    from virtd.service.guests import Guests, HostPlan


@dataclass(frozen=True, slots=True)
class CloneDraft:
    """What a caller says of a clone.  Empty labels: the source's."""

    guest_id: str
    mode: CloneMode = CloneMode.FULL
    pool: str = ""
    start: bool = False
    display_name: str = ""
    labels: Mapping[str, str] | None = None
    annotations: Mapping[str, str] | None = None


@dataclass(frozen=True, slots=True)
class _Place:
    """A volume and the pool that it lies in."""

    pool: str
    volume: Volume


class Clones:
    """Clones guests."""

    def __init__(self, core: Core, guests: Guests) -> None:
        self._core = core
        self._guests = guests
        self._clone = CloneGuest(core)
        core.engine.register(self._clone)

    @once
    async def clone(self, call: Call, name: GuestName, draft: CloneDraft) -> Operation:
        """Clone a guest; see the RPC's documentation for the errors."""
        with self._guests.claimed(name.host, draft.guest_id):
            arguments, warnings = await self._resolve(call, name, draft)
            self._guests.check_taken(name.host, draft.guest_id)
            queue = joined(str(arguments.guest_name), str(name))
            return await self._core.engine.submit(
                self._clone, arguments, submission(call, str(arguments.guest_name), queue, warnings)
            )

    async def plan(self, call: Call, name: GuestName, draft: CloneDraft) -> HostPlan:
        """What the clone would be, or the error that it would raise.  No side effect."""
        from virtd.service.guests import HostPlan

        with self._guests.claimed(name.host, draft.guest_id):
            arguments, warnings = await self._resolve(call, name, draft)
        link = self._core.link(name.host)
        _, native = await lower(link, draft.guest_id, arguments.uid, arguments.resolution)
        return HostPlan(
            f"hosts/{name.host}",
            native.native,
            link.backend.descriptor.native_format,
            native.verdicts,
            None,
            tuple(warnings),
        )

    async def _resolve(self, call: Call, name: GuestName, draft: CloneDraft) -> tuple[CloneArguments, list[str]]:
        core = self._core
        check_texts(draft.display_name, draft.labels or {}, draft.annotations or {})
        await core.settled(name.host)
        busy = bool(core.engine.current(str(name)))
        view = core.check_verb(name, "clone", now=False)
        if not busy and view.guest.status.state not in (GuestState.STOPPED, GuestState.CRASHED):
            raise source_busy(name, f"is {view.guest.status.state.value}")
        link, linked = core.link(name.host), draft.mode is CloneMode.LINKED
        if linked:
            cap.require(link.capabilities, cap.CLONE_LINKED, resource=str(name))
            await self._check_no_snapshots(link, view)
        uid, warnings = uuid4(), _warnings(view)
        places = await self._places(link)
        if draft.pool:
            await self._check_pool(link, draft.pool)
        spec = await self._spec(link, view, warnings)
        disks, spec = _disks(view, spec, places, draft, uid)
        accelerator = view.guest.status.accelerator or spec.accelerator or Accelerator.TCG
        arguments = CloneArguments(
            host=name.host,
            guest=draft.guest_id,
            uid=uid,
            source=name.guest,
            source_uid=view.guest.uid,
            source_spec=replace(view.guest.spec, cloud_init=None),
            spec=spec,
            display_name=draft.display_name,
            labels=dict(draft.labels or view.guest.labels),
            annotations=dict(draft.annotations or {}),
            disks=disks,
            accelerator=Accelerator.TCG if accelerator is Accelerator.AUTO else accelerator,
            accelerator_reason=view.guest.status.accelerator_reason,
            linked=linked,
            start=draft.start,
        )
        answer = core.plugins.admit(AdmitRequest(call.caller, name.host, draft.guest_id, spec))
        if answer.violations:
            raise InvalidArgumentError(
                FIELD_INVALID,
                "; ".join(f"{v.field}: {v.description}" for v in answer.violations),
                violations=answer.violations,
            )
        await lower(link, draft.guest_id, uid, arguments.resolution)
        return arguments, [*warnings, *answer.warnings]

    async def _check_no_snapshots(self, link: HostLink, view: GuestView) -> None:
        snapshots = link.facets.snapshots
        found = await link.call(snapshots.list_snapshots(view.guest.uid)) if snapshots is not None else ()
        if found:
            raise impossible(
                view.guest.name,
                f"has {len(found)} snapshots, whose disks cannot become the base of another guest: delete them, or "
                "make a full clone",
            )

    async def _places(self, link: HostLink) -> dict[str, _Place]:
        """The volumes of the host, by their paths."""
        storage = storage_of(link)
        found: dict[str, _Place] = {}
        for pool in await link.call(storage.list_pools()):
            if pool.state is PoolState.ACTIVE:
                for volume in await link.call(storage.list_volumes(pool.name)):
                    found[volume.path] = _Place(pool.name, volume)
        return found

    async def _check_pool(self, link: HostLink, pool: str) -> None:
        pools = [entry.name for entry in await link.call(storage_of(link).list_pools())]
        if pool not in pools and pool != DEFAULT_POOL:
            raise NotFoundError(
                POOL_NOT_FOUND,
                f"host {link.id} has no pool {pool}; pools: {', '.join(pools) or 'none'}",
                resource=f"hosts/{link.id}/pools/{pool}",
            )

    async def _spec(self, link: HostLink, view: GuestView, warnings: list[str]) -> GuestSpec:
        """The source's, but for what must not be there twice."""
        spec = view.guest.spec
        if any(interface.port_forwards for interface in spec.interfaces):
            warnings.append("forwarded ports are not cloned: two guests cannot listen on one port")
        if spec.cloud_init is not None:
            seed = planned_seed(spec, view.guest.uid)
            try:
                await read_seed(link, seed.pool or DEFAULT_POOL, seed.name)
            except VirtdError as error:
                spec = replace(spec, cloud_init=None)
                warnings.append(f"the clone has no cloud-init seed: that of the source cannot be read: {error.message}")
        return replace(
            spec,
            run_strategy=RunStrategy.MANUAL,
            autostart=False,
            deletion_protection=False,
            interfaces=tuple(replace(interface, mac=random_mac(), port_forwards=()) for interface in spec.interfaces),
        )


def _warnings(view: GuestView) -> list[str]:
    guest = view.guest
    found = []
    if guest.status.state is GuestState.CRASHED:
        found.append("the guest has crashed: its disks are cloned as they were at that moment")
    if guest.status.unmodelled:
        found.append(f"the clone lacks what the spec cannot express: {', '.join(guest.status.unmodelled)}")
    if guest.spec.tpm is not None:
        found.append("the clone's TPM is new and empty: what the source has sealed with its own cannot be opened")
    if guest.spec.run_strategy not in (None, RunStrategy.MANUAL) or guest.spec.autostart:
        found.append("the clone's run strategy is MANUAL and its autostart off: nobody has decided that it runs")
    return found


def _disks(
    view: GuestView, spec: GuestSpec, places: Mapping[str, _Place], draft: CloneDraft, uid: UUID
) -> tuple[tuple[ClonedDisk, ...], GuestSpec]:
    name, host = view.guest.name, view.key.host
    status = {disk.name: disk for disk in view.guest.status.disks}
    cloned: list[ClonedDisk] = []
    specs: list[DiskSpec] = []
    for disk in spec.disks:
        now = status.get(disk.name)
        place = places.get(now.path) if now is not None else None
        owned = place is not None and f"{place.pool}/{place.volume.name}" in view.owned_volumes
        if not owned and (disk.read_only or not (now and now.path)):
            specs.append(disk)  # nobody writes to it (or it is an empty drive): both may use it
            continue
        if now is None:
            raise impossible(name, f"has no disk {disk.name} on its host now, as its spec says: compare the two first")
        entry = _one(name, disk, now, place, owned, draft, uid)
        cloned.append(entry)
        volume = f"hosts/{host}/pools/{entry.pool}/volumes/{entry.name}"
        specs.append(replace(disk, blank=None, image=None, host_file=None, volume=volume))
    return tuple(cloned), replace(spec, disks=tuple(specs))


def _one(
    name: str,
    disk: DiskSpec,
    now: DiskStatus,
    place: _Place | None,
    owned: bool,
    draft: CloneDraft,
    uid: UUID,
) -> ClonedDisk:
    known: Sequence[str] = tuple(DiskFormat)
    if now.format.upper() not in known:
        raise impossible(name, f"has a disk {disk.name} of format {now.format or 'unknown'}, which virtd cannot copy")
    format_ = DiskFormat(now.format.upper())
    linked = draft.mode is CloneMode.LINKED
    if linked and (not owned or place is None):
        raise impossible(
            name, f"has a disk {disk.name} that virtd did not create, and which it leaves as it is: make a full clone"
        )
    if linked and format_ is not DiskFormat.QCOW2:
        raise impossible(name, f"has a disk {disk.name} of format {format_}; overlays need QCOW2: make a full clone")
    return ClonedDisk(
        disk=disk.name,
        pool=draft.pool or (place.pool if place is not None else DEFAULT_POOL),
        name=f"{draft.guest_id}-{disk.name}-{uid.hex[:8]}.{format_.value.lower()}",
        format=format_,
        source_path=now.path,
        source_format=format_,
        source_pool=place.pool if place is not None else "",
        source_volume=place.volume.name if place is not None else "",
        # Of the clone's UUID: each clone freezes what the source has written since the last one.
        kept_overlay=f"{name.rpartition('/')[2]}-{disk.name}-{uid.hex[:8]}-own.qcow2" if linked else "",
        capacity_bytes=place.volume.capacity_bytes if place is not None else now.capacity_bytes,
    )


def impossible(name: str, why: str) -> FailedPreconditionError:
    """CLONE_IMPOSSIBLE with the reason and what to do."""
    return FailedPreconditionError(CLONE_IMPOSSIBLE, f"{name} cannot be cloned so: it {why}", resource=name)
