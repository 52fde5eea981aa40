"""Snapshots of stopped guests by copies of their disks: for hypervisors that have no snapshots.

A snapshot is a set of volumes that stand alone, one for each disk that the guest can write to.  So every snapshot can
be deleted without touching another, and a revert copies once more: into new volumes, to which the guest is switched in
one step when they are whole.  At no moment, whatever is killed, does a guest use a disk that is half of something.

Only disks are reverted.  The rest of the guest is what its owner has made of it since.

What exists is written down first (:mod:`virtd.backend.emulate.records`), as *making*, and seen by nobody before it is
*complete*; a deletion begins by writing *going*.  A copy that nobody knows of cannot be left.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from datetime import UTC, datetime
from typing import Final
from uuid import UUID

from virtd.backend.api import (
    DEFAULT_POOL,
    CallContext,
    DefinitionFacet,
    DiskFile,
    NativeGuest,
    SnapshotPlan,
    SnapshotRequest,
    StorageFacet,
    VolumeChangeFacet,
    VolumeTransferFacet,
)
from virtd.backend.capabilities import (
    SNAPSHOT,
    SNAPSHOT_EXTERNAL,
    SNAPSHOT_MEMORY,
    SNAPSHOT_QUIESCE,
    SNAPSHOT_REVERT,
    absent,
    emulated,
)
from virtd.backend.emulate.copying import Copier, GetGuest, Places, Quiet, Source, Target, writable
from virtd.backend.emulate.records import (
    CopyRecord,
    CopyTree,
    DiskCopy,
    RecordKeeper,
    Stage,
    disks_of_json,
    disks_to_json,
)
from virtd.errors import (
    HOST_UNREACHABLE,
    INVALID_STATE,
    SNAPSHOT_BLOCKED,
    SNAPSHOT_NOT_FOUND,
    FailedPreconditionError,
    NotFoundError,
    VirtdError,
    unsupported,
)
from virtd.model.guest import Firmware, GuestState
from virtd.model.host import Capability
from virtd.model.snapshot import COPY, Snapshot, SnapshotKind, SnapshotLocation

HOW: Final = "virtd copies the disks of a stopped guest"
NO_MEMORY: Final = f"{HOW}, which has no memory: suspend the guest to keep its memory"
NO_EXTERNAL: Final = f"{HOW}: there are no images over images"
NO_QUIESCE: Final = f"{HOW}: nothing is mounted then"
NO_INTERNAL: Final = f"{HOW}: the images themselves hold no snapshots"
_DOWN: Final = (GuestState.STOPPED, GuestState.CRASHED)

CAPABILITIES: Final[tuple[Capability, ...]] = (
    emulated(SNAPSHOT, HOW),
    emulated(SNAPSHOT_REVERT, f"{HOW} back, into new volumes"),
    absent(SNAPSHOT_MEMORY, NO_MEMORY),
    absent(SNAPSHOT_EXTERNAL, NO_EXTERNAL),
    absent(SNAPSHOT_QUIESCE, NO_QUIESCE),
)
"""What a backend that offers :class:`CopiedSnapshots` says of itself."""


class CopiedSnapshots:
    """See :class:`virtd.backend.api.SnapshotFacet`.

    What a guest has now and what a snapshot holds is never written to: copies are made under new names, and only
    whole ones are used.  Whatever is interrupted, one of both is there.

    :param get_guest: the session's.
    :param contents: tells whether a disk has changed while it was copied; None where the host cannot.
    """

    def __init__(
        self,
        get_guest: GetGuest,
        storage: StorageFacet,
        volumes: VolumeChangeFacet,
        definitions: DefinitionFacet,
        keeper: RecordKeeper,
        contents: VolumeTransferFacet | None = None,
    ) -> None:
        self._get_guest: Final = get_guest
        self._storage: Final = storage
        self._definitions: Final = definitions
        self._keeper: Final = keeper
        self._copier: Final = Copier(storage, volumes, contents)

    async def list_snapshots(self, uuid: UUID) -> Sequence[Snapshot]:
        """See the SPI."""
        tree = await self._tree(uuid)
        return [_shown(record, tree) for record in tree.records if record.stage is Stage.COMPLETE]

    # ------------------------------------------------------------------------------------- create

    async def plan_create(self, uuid: UUID, request: SnapshotRequest) -> SnapshotPlan:
        """See the SPI."""
        guest = await self._get_guest(uuid)
        _check_request(guest, request)
        _check_down(guest, "take a snapshot")
        places = await Places.look(self._storage)
        copies: list[tuple[Source, Target]] = []
        disks: list[DiskCopy] = []
        for disk in writable(guest):
            source = places.source(disk)
            pool = source.pool or DEFAULT_POOL
            target = places.name_for(pool, guest.name, disk.name, f"snapshot-{request.name}", source.format)
            copies.append((source, target))
            disks.append(DiskCopy(disk.name, disk.path, source.format, target.pool, target.volume))
        places.check_free(copies)
        reason = HOW if disks else f"{HOW}; this guest has none that it can write to"
        return SnapshotPlan(
            COPY,
            reason,
            volumes=tuple(target.id for _, target in copies),
            detail=json.dumps(disks_to_json(tuple(disks))),
        )

    async def create_snapshot(
        self, uuid: UUID, request: SnapshotRequest, context: CallContext, plan: SnapshotPlan | None = None
    ) -> Snapshot:
        """See the SPI."""
        tree = await self._tree(uuid)
        known = tree.find(request.name)
        if known is not None and known.stage is Stage.COMPLETE:
            return _shown(known, tree)
        plan = plan or await self.plan_create(uuid, request)
        disks = disks_of_json(json.loads(plan.detail))
        guest = await self._get_guest(uuid)
        _check_request(guest, request)
        _check_down(guest, "take a snapshot")
        if known is not None:  # of an attempt that was killed; its names may be others than the plan's
            await self._check_unused(known)
            await self._remove(uuid, known, context)
            tree = await self._tree(uuid)
        record = CopyRecord(
            request.name,
            request.description,
            tree.current,
            datetime.now(UTC),
            Stage.MAKING,
            disks,
        )
        context.checkpoint()
        try:
            await self._keeper.write_records(uuid, tree.with_record(record).to_text())
            await self._copy_from(guest, disks, context)
            _check_down(await self._get_guest(uuid), "take a snapshot, whose copies are of no use now")
            context.checkpoint()
            whole = replace(record, stage=Stage.COMPLETE)
            made = replace(tree.with_record(whole), current=record.name)
            await self._keeper.write_records(uuid, made.to_text())
        except BaseException:
            # Where the host does not answer now, the record stays and says what there is to remove.
            with suppress(VirtdError):
                await self._remove(uuid, record, Quiet(context))
            raise
        context.progress(1.0)
        return replace(_shown(whole, made), reason=plan.reason)

    async def _copy_from(self, guest: NativeGuest, disks: Sequence[DiskCopy], context: CallContext) -> None:
        places = await Places.look(self._storage)
        now = {disk.name: disk for disk in writable(guest)}
        if {(disk.disk, disk.path) for disk in disks} != {(disk.name, disk.path) for disk in now.values()}:
            raise FailedPreconditionError(INVALID_STATE, f"the disks of {guest.name} have changed meanwhile: try again")
        copies = [(places.source(now[disk.disk]), Target(disk.pool, disk.volume)) for disk in disks]
        places.check_free(copies)
        sources = [source for source, _ in copies]
        before = await self._copier.stamps(sources)
        await self._copier.copy(copies, context)
        if await self._copier.stamps(sources) != before:
            raise FailedPreconditionError(
                INVALID_STATE,
                f"somebody has written to the disks of {guest.name} while they were copied, as a start past virtd "
                "does: the copies are of no use; try again",
                allowed_actions=("snapshot",),
            )

    async def describe_snapshot(self, uuid: UUID, name: str, description: str) -> None:
        """See the SPI."""
        tree = await self._tree(uuid)
        record = _complete(tree, name)
        await self._keeper.write_records(uuid, tree.with_record(replace(record, description=description)).to_text())

    # ------------------------------------------------------------------------------------- revert

    async def plan_revert(self, uuid: UUID, name: str) -> SnapshotPlan:
        """See the SPI."""
        record = _complete(await self._tree(uuid), name)
        guest = await self._get_guest(uuid)
        _check_down(guest, "revert")
        now = _attached(guest, record)
        places = await Places.look(self._storage)
        copies: list[tuple[Source, Target]] = []
        disks: list[DiskCopy] = []
        for disk in record.disks:
            source = places.copy(disk.disk, disk.pool, disk.volume, disk.format)
            target = places.name_for(disk.pool, guest.name, disk.disk, "", disk.format)
            copies.append((source, target))
            disks.append(DiskCopy(disk.disk, now[disk.disk], disk.format, target.pool, target.volume))
        places.check_free(copies)
        replaced = (places.volume_of(disk.path) for disk in disks)
        return SnapshotPlan(
            COPY,
            f"{HOW} back",
            volumes=tuple(target.id for _, target in copies),
            replaced=tuple(filter(None, replaced)),
            detail=json.dumps(disks_to_json(tuple(disks))),
        )

    async def revert_snapshot(
        self, uuid: UUID, name: str, context: CallContext, plan: SnapshotPlan | None = None
    ) -> None:
        """See the SPI."""
        tree = await self._tree(uuid)
        record = _complete(tree, name)
        plan = plan or await self.plan_revert(uuid, name)
        made = disks_of_json(json.loads(plan.detail))
        guest = await self._get_guest(uuid)
        paths = [await self._storage.volume_path(disk.pool, disk.volume) for disk in made]
        switched = replace(tree, current=name)
        if not set(paths) <= {disk.path for disk in guest.disks}:  # else the last attempt was killed after the switch
            _check_down(guest, "revert")
            await self._switch(uuid, guest, record, list(zip(made, paths, strict=True)), context)
        if switched != tree:
            try:
                await self._keeper.write_records(uuid, switched.to_text())
            except VirtdError as error:
                if error.reason is HOST_UNREACHABLE:
                    raise
                # The guest has its disks: to say that nothing was done would be less true.
                context.warn(f"that the guest descends from {name} now could not be written down: {error.message}")
        context.progress(1.0)

    async def _switch(
        self,
        uuid: UUID,
        guest: NativeGuest,
        record: CopyRecord,
        made: Sequence[tuple[DiskCopy, str]],
        context: CallContext,
    ) -> None:
        """Copy the copies, and give them to the guest: all of it or nothing."""
        held = {disk.disk: disk for disk in record.disks}
        # Outside of the "try": where the guest has had the new volumes before, what is on them is not ours to delete.
        _check_disks(guest, made)
        try:
            places = await Places.look(self._storage)
            sources = [
                places.copy(disk.disk, held[disk.disk].pool, held[disk.disk].volume, disk.format) for disk, _ in made
            ]
            later = sorted(disk.name for disk in writable(guest) if disk.name not in held)
            if later:
                context.warn(f"the guest did not have its disks {', '.join(later)} then: they stay as they are")
            targets = [Target(disk.pool, disk.volume) for disk, _ in made]
            await self._copier.copy(list(zip(sources, targets, strict=True)), context)
            now = await self._get_guest(uuid)
            _check_down(now, "revert")
            _check_disks(now, made)
            files = {disk.path: DiskFile(path, disk.format) for disk, path in made}
            await self._definitions.replace_disk_files(uuid, files, context)
        except BaseException:
            with suppress(VirtdError):
                await self._drop(uuid, [disk for disk, _ in made], Quiet(context))
            raise

    async def _drop(self, uuid: UUID, made: Sequence[DiskCopy], context: CallContext) -> None:
        """Remove the new volumes of a revert that has failed, unless the guest was switched to them."""
        used = {disk.path for disk in (await self._get_guest(uuid)).disks}
        for disk in made:
            if await self._storage.volume_path(disk.pool, disk.volume) not in used:
                await self._copier.delete(disk.pool, disk.volume, context)

    # ------------------------------------------------------------------------------------- delete

    async def plan_delete(self, uuid: UUID, name: str) -> SnapshotPlan:
        """See the SPI."""
        record = (await self._tree(uuid)).find(name)
        if record is None:
            return SnapshotPlan()
        await self._check_unused(record)
        return SnapshotPlan(COPY, removed=record.volumes)

    async def delete_snapshot(
        self, uuid: UUID, name: str, context: CallContext, plan: SnapshotPlan | None = None
    ) -> None:
        """See the SPI."""
        context.checkpoint()
        record = (await self._tree(uuid)).find(name)
        if record is None:
            return
        await self._check_unused(record)
        await self._remove(uuid, record, context)

    async def _check_unused(self, record: CopyRecord) -> None:
        places = await Places.look(self._storage)
        for disk in record.disks:
            places.check_unused(disk.disk, disk.pool, disk.volume)

    async def _remove(self, uuid: UUID, record: CopyRecord, context: CallContext) -> None:
        """Remove a snapshot, whatever its stage: first it is not shown any more, then its copies go."""
        going = replace(record, stage=Stage.GOING)
        tree = await self._tree(uuid)
        if tree.find(record.name) is None:
            return
        # Last in the list, and nobody's parent: it only says what there is to remove.
        left = tree.without(record.name)
        await self._keeper.write_records(uuid, left.with_record(going).to_text())
        for disk in record.disks:
            await self._copier.delete(disk.pool, disk.volume, context)
        await self._keeper.write_records(uuid, left.to_text())

    async def _tree(self, uuid: UUID) -> CopyTree:
        return CopyTree.of_text(await self._keeper.read_records(uuid))


def _attached(guest: NativeGuest, record: CopyRecord) -> dict[str, str]:
    """The files that the guest uses now for the disks of a snapshot, by the disks' names.

    :raises FailedPreconditionError: SNAPSHOT_BLOCKED, it has one of the disks no more.
    """
    now = {disk.name: disk.path for disk in writable(guest)}
    for disk in record.disks:
        if disk.disk not in now:
            raise FailedPreconditionError(
                SNAPSHOT_BLOCKED,
                f"{guest.name} has no disk {disk.disk} any more, which the snapshot {record.name} has a copy of: "
                f"attach a disk of this name first, or clone the copy, volume {disk.volume} in pool {disk.pool}",
                metadata={"disk": disk.disk, "volume": disk.id},
            )
    return now


def _check_disks(guest: NativeGuest, made: Sequence[tuple[DiskCopy, str]]) -> None:
    """Refuse where the disks are not those of the plan: what is there now was never looked at."""
    now = {disk.name: disk.path for disk in writable(guest)}
    for disk, _ in made:
        if now.get(disk.disk) != disk.path:
            raise FailedPreconditionError(
                INVALID_STATE,
                f"disk {disk.disk} of {guest.name} is {now.get(disk.disk, 'gone')} now, not {disk.path}: it was "
                "changed past virtd while the guest was reverted; look at its disks, then try again",
                metadata={"disk": disk.disk},
                allowed_actions=("revert",),
            )


def _complete(tree: CopyTree, name: str) -> CopyRecord:
    record = tree.find(name)
    if record is None or record.stage is not Stage.COMPLETE:
        raise NotFoundError(SNAPSHOT_NOT_FOUND, f"the guest has no snapshot {name}")
    return record


def _shown(record: CopyRecord, tree: CopyTree) -> Snapshot:
    return Snapshot(
        record.name,
        record.description,
        SnapshotKind.DISK,
        record.parent,
        current=record.name == tree.current,
        guest_state=GuestState.STOPPED.value,
        location=COPY,
        create_time=record.time,
    )


def _check_request(guest: NativeGuest, request: SnapshotRequest) -> None:
    """What is not possible with this guest, whatever its state."""
    if request.memory:
        raise unsupported(SNAPSHOT_MEMORY, NO_MEMORY)
    if request.quiesce:
        raise unsupported(SNAPSHOT_QUIESCE, NO_QUIESCE)
    if request.location is SnapshotLocation.EXTERNAL:
        raise unsupported(SNAPSHOT_EXTERNAL, NO_EXTERNAL)
    if request.location is SnapshotLocation.INTERNAL:
        raise unsupported(SNAPSHOT, NO_INTERNAL)
    if guest.spec.firmware is Firmware.UEFI:
        raise unsupported(SNAPSHOT, f"{HOW}, but not the variables of its UEFI firmware, which belong to them")
    if guest.spec.tpm is not None:
        raise unsupported(SNAPSHOT, f"{HOW}, but not the state of its TPM, which belongs to them")


def _check_down(guest: NativeGuest, what: str) -> None:
    if guest.state in _DOWN:
        return
    if guest.state is GuestState.SUSPENDED:
        why, allowed = "is SUSPENDED, and its saved memory belongs to its disks as they are now", ("start", "discard")
    else:
        why, allowed = f"is {guest.state.value}, and {HOW}", ("shutdown", "stop")
    raise FailedPreconditionError(
        INVALID_STATE,
        f"cannot {what}: {guest.name} {why}: {' or '.join(allowed)} it first",
        metadata={"state": guest.state.value},
        allowed_actions=allowed,
    )
