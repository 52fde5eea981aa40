"""Clone a stopped guest.

While it works, it has the queues of both guests: nobody starts the one that is cloned.

A *linked* clone leaves the disks as they are now to both guests, which from here on write to overlays
of their own.  Both own what is below: it is deleted with the last of them.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final
from uuid import UUID

from virtd.backend.api import DEFAULT_POOL, DefinitionFacet, DiskFile, StorageFacet, VolumeRequest
from virtd.backend.capabilities import CLONE, CLONE_LINKED
from virtd.errors import INVALID_STATE, FailedPreconditionError, InternalError, NotFoundError, unsupported
from virtd.inventory import HostLink
from virtd.model.guest import Accelerator, DiskFormat, Firmware, GuestSpec, GuestState
from virtd.model.names import GuestName
from virtd.operations import Run, Step
from virtd.service.cloud_respin import read_seed, respin
from virtd.service.filling import fill_volume, private_file
from virtd.service.resolve import PlannedVolume, Resolution, planned_seed, resolved_guest
from virtd.service.verbs.base import GuestArguments, GuestVerb, patience
from virtd.service.verbs.create import reserved_guest
from virtd.service.verbs.disposal import storage_of
from virtd.service.verbs.lifecycle import DOWN, undo_start

COPY_ENDS_S: Final = 4 * 3600.0
COPY_POLL_S: Final = 5.0
NOBODY: Final = UUID(int=0)


@dataclass(frozen=True, slots=True)
class ClonedDisk:
    """One disk of the clone that is not shared as it is.

    :param source_pool: where the source's file lies, as a volume; empty: it is a file outside of all pools.
    :param kept_overlay: LINKED: the name of the source's own overlay, in its pool.
    """

    disk: str
    pool: str
    name: str
    format: DiskFormat
    source_path: str
    source_format: DiskFormat
    source_pool: str = ""
    source_volume: str = ""
    kept_overlay: str = ""
    capacity_bytes: int | None = None


@dataclass(frozen=True, slots=True)
class CloneArguments(GuestArguments):
    """Every choice, made before the first side effect.  ``guest`` and ``uid`` are the clone's."""

    source: str = ""
    source_uid: UUID = NOBODY
    source_spec: GuestSpec = field(default_factory=GuestSpec)
    spec: GuestSpec = field(default_factory=GuestSpec)
    display_name: str = ""
    labels: Mapping[str, str] = field(default_factory=dict)
    annotations: Mapping[str, str] = field(default_factory=dict)
    disks: tuple[ClonedDisk, ...] = ()
    accelerator: Accelerator = Accelerator.TCG
    accelerator_reason: str = ""
    linked: bool = False
    start: bool = False

    @property
    def source_name(self) -> GuestName:
        """The name of the guest that is cloned."""
        return GuestName(self.host, self.source)

    @property
    def volumes(self) -> tuple[PlannedVolume, ...]:
        """The clone's volumes, as the resolver speaks of them."""
        return tuple(
            PlannedVolume(disk.disk, disk.pool, disk.name, disk.format, disk.capacity_bytes) for disk in self.disks
        )

    @property
    def resolution(self) -> Resolution:
        """The same, as the resolver makes it."""
        return Resolution(self.spec, self.volumes, self.accelerator, self.accelerator_reason)


class CloneGuest(GuestVerb[CloneArguments]):
    """Reserve the name, make the disks, define, copy the firmware's variables, start: undone if a later step fails."""

    name = "clone"

    @property
    def arguments(self) -> type[CloneArguments]:
        """Journalled."""
        return CloneArguments

    def timeout_s(self, arguments: CloneArguments) -> float:
        """Copying takes what it takes."""
        return self.core.options.start_timeout_s + (300.0 if arguments.linked else 12 * 3600.0)

    def steps(self, arguments: CloneArguments) -> Sequence[Step[CloneArguments]]:
        """Depends on the arguments only."""
        steps: list[Step[CloneArguments]] = [
            Step("reserve", self._reserve, undo=self._release, weight=0.1),
        ]
        if arguments.linked and arguments.disks:
            steps.append(Step("freeze", self._freeze, undo=self._thaw, weight=0.5))
        if arguments.disks or arguments.spec.cloud_init is not None:
            steps.append(Step("disks", self._make_disks, undo=self._remove_disks, weight=10))
        steps.append(Step("define", self._define, undo=self._undefine))
        if arguments.spec.firmware is Firmware.UEFI:
            steps.append(Step("firmware", self._copy_variables, weight=0.2))
        if arguments.start:
            steps.append(Step("start", self._start, undo=self._stop, weight=2))
        return steps

    # ------------------------------------------------------------------------------------ reserve

    async def _reserve(self, run: Run[CloneArguments]) -> None:
        arguments = run.arguments
        await self._check_source(run)
        guest = reserved_guest(
            arguments.guest_name,
            arguments.uid,
            arguments.spec,
            run.operation.name,
            accelerator=arguments.accelerator,
            accelerator_reason=arguments.accelerator_reason,
            display_name=arguments.display_name,
            labels=arguments.labels,
            annotations=arguments.annotations,
        )
        self.core.inventory.reserve(guest)

    async def _check_source(self, run: Run[CloneArguments]) -> None:
        """It may have been started or changed from outside, or by what was ahead in its queue.

        :raises FailedPreconditionError: INVALID_STATE.
        """
        arguments = run.arguments
        await self.link(run).refresh(arguments.source_uid)
        view = self.core.inventory.by_uid(arguments.source_uid)
        if view is None:
            raise source_busy(arguments.source_name, "is gone")
        if view.guest.status.state not in (GuestState.STOPPED, GuestState.CRASHED):
            raise source_busy(arguments.source_name, f"is {view.guest.status.state.value}")
        paths = {disk.path for disk in view.guest.status.disks}
        for disk in arguments.disks:
            if disk.source_path not in paths:
                raise source_busy(arguments.source_name, f"has other disks now: {disk.disk} has changed")

    async def _release(self, run: Run[CloneArguments]) -> None:
        self.core.inventory.forget(run.arguments.uid)

    # ------------------------------------------------------------------------------ linked: freeze

    async def _freeze(self, run: Run[CloneArguments]) -> None:
        """Give the source overlays of its own; what is below them is both guests' from now on."""
        arguments, link = run.arguments, self.link(run)
        storage, facet = storage_of(link), self._definitions(link)
        await self.link(run).refresh(arguments.source_uid)
        view = self.core.inventory.by_uid(arguments.source_uid)
        if view is None:
            raise source_busy(arguments.source_name, "is gone")
        used = {disk.path for disk in view.guest.status.disks}
        bases = [f"{disk.source_pool}/{disk.source_volume}" for disk in arguments.disks]
        below = [volume for volume in view.owned_volumes if volume not in bases]
        self.core.inventory.own_volumes(arguments.uid, (*bases, *self._chain(below, arguments)))
        overlays = [f"{disk.source_pool}/{disk.kept_overlay}" for disk in arguments.disks]
        owned = tuple(dict.fromkeys((*view.owned_volumes, *bases, *overlays)))
        self.core.inventory.own_volumes(arguments.source_uid, owned)
        files: dict[str, DiskFile] = {}
        for disk in arguments.disks:
            path = await link.call(storage.volume_path(disk.source_pool, disk.kept_overlay))
            files[disk.source_path] = DiskFile(path, DiskFormat.QCOW2)
            if path in used:
                continue  # a crash came after this
            if run.repeated:
                await link.call(storage.delete_volume(disk.source_pool, disk.kept_overlay, run))
            await link.call(storage.create_volume(_overlay(disk, disk.source_pool, disk.kept_overlay), run))
        await link.call(facet.replace_disk_files(arguments.source_uid, files, run))
        await link.refresh(arguments.source_uid)
        run.note(f"{arguments.source} writes to overlays from now on: {', '.join(overlays)}")

    def _chain(self, owned: Sequence[str], arguments: CloneArguments) -> list[str]:
        """What the source owns below its disks, from clones before: the new clone needs it as well."""
        own_overlays = {f"{disk.source_pool}/{disk.source_volume}" for disk in arguments.disks}
        seed = planned_seed(arguments.source_spec, arguments.source_uid).name
        return [volume for volume in owned if volume not in own_overlays and volume.partition("/")[2] != seed]

    async def _thaw(self, run: Run[CloneArguments]) -> None:
        arguments, link = run.arguments, self.link(run)
        storage, facet = storage_of(link), self._definitions(link)
        files: dict[str, DiskFile] = {}
        for disk in arguments.disks:
            path = await link.call(storage.volume_path(disk.source_pool, disk.kept_overlay))
            files[path] = DiskFile(disk.source_path, disk.source_format)
        # Where somebody has started it meanwhile this is refused: then it keeps its overlays, and loses nothing.
        await link.call(facet.replace_disk_files(arguments.source_uid, files, run))
        for disk in arguments.disks:
            await link.call(storage.delete_volume(disk.source_pool, disk.kept_overlay, run))
        view = self.core.inventory.by_uid(arguments.source_uid)
        if view is not None:
            overlays = {f"{disk.source_pool}/{disk.kept_overlay}" for disk in arguments.disks}
            owned = tuple(volume for volume in view.owned_volumes if volume not in overlays)
            self.core.inventory.own_volumes(arguments.source_uid, owned)
        await link.refresh(arguments.source_uid)

    def _definitions(self, link: HostLink) -> DefinitionFacet:
        if link.facets.definitions is None:
            raise unsupported(CLONE_LINKED, "the host cannot give a guest's disks other files")
        return link.facets.definitions

    # -------------------------------------------------------------------------------------- disks

    async def _make_disks(self, run: Run[CloneArguments]) -> None:
        arguments, link = run.arguments, self.link(run)
        storage = storage_of(link)
        view = self.core.inventory.by_uid(arguments.uid)
        owned = list(view.owned_volumes) if view is not None else []
        await self._make_seed(run, owned)
        for number, disk in enumerate(arguments.disks):
            run.checkpoint()
            if disk.pool == DEFAULT_POOL:
                await link.call(storage.ensure_default_pool(run))
            if run.repeated:
                # Its name carries the guest's UUID: what is there is ours, and may be half of it.
                await link.call(storage.delete_volume(disk.pool, disk.name, run))
            owned.append(f"{disk.pool}/{disk.name}")
            self.core.inventory.own_volumes(arguments.uid, tuple(dict.fromkeys(owned)))
            await self._make_disk(run, storage, disk)
            run.progress((number + 1) / len(arguments.disks))

    async def _make_disk(self, run: Run[CloneArguments], storage: StorageFacet, disk: ClonedDisk) -> None:
        link, changes = self.link(run), self.link(run).facets.volume_changes
        if run.arguments.linked:
            await link.call(storage.create_volume(_overlay(disk, disk.pool, disk.name), run))
        elif disk.source_pool:
            if changes is None:
                raise unsupported(CLONE, "the host cannot copy volumes")
            copy = changes.clone_volume(
                disk.source_pool,
                disk.source_volume,
                disk.pool,
                disk.name,
                disk.format,
                run,
                source_format=disk.source_format,
            )
            await link.call(copy, timeout_s=patience(run))
        else:
            request = VolumeRequest(
                disk.pool, disk.name, disk.format, source_path=disk.source_path, source_format=disk.source_format
            )
            await link.call(storage.create_volume(request, run), timeout_s=patience(run))

    async def _make_seed(self, run: Run[CloneArguments], owned: list[str]) -> None:
        """The first boot of the clone is its own: another instance id, its own host name and MAC addresses."""
        arguments, link = run.arguments, self.link(run)
        if arguments.spec.cloud_init is None:
            return
        storage = storage_of(link)
        old = planned_seed(arguments.source_spec, arguments.source_uid)
        new = planned_seed(arguments.spec, arguments.uid)
        seed = await read_seed(link, old.pool or DEFAULT_POOL, old.name)
        macs = {interface.name: interface.mac for interface in arguments.spec.interfaces}
        data = await asyncio.to_thread(
            respin, seed, arguments.spec.cloud_init, arguments.source, arguments.guest, arguments.uid, macs
        )
        pool = new.pool or (await link.call(storage.ensure_default_pool(run))).name
        if run.repeated:
            await link.call(storage.delete_volume(pool, new.name, run))
        owned.append(f"{pool}/{new.name}")
        self.core.inventory.own_volumes(arguments.uid, tuple(dict.fromkeys(owned)))
        with private_file(Path(link.config.directory) / "seeds", new.name, data) as path:
            await fill_volume(link, pool, new.name, str(path), DiskFormat.RAW, run)

    async def _remove_disks(self, run: Run[CloneArguments]) -> None:
        arguments, link = run.arguments, self.link(run)
        storage = storage_of(link)
        for disk in arguments.disks:
            await self._delete(run, storage, disk.pool, disk.name)
        if arguments.spec.cloud_init is not None:
            new = planned_seed(arguments.spec, arguments.uid)
            await self._delete(run, storage, new.pool or DEFAULT_POOL, new.name)

    async def _delete(self, run: Run[CloneArguments], storage: StorageFacet, pool: str, name: str) -> None:
        """Delete a volume that may still be in the making: some hosts' copies end only by themselves."""
        deadline = time.monotonic() + COPY_ENDS_S
        while True:
            try:
                await self.link(run).call(storage.delete_volume(pool, name, run))
            except (InternalError, FailedPreconditionError) as error:
                if time.monotonic() > deadline:
                    raise
                run.note(f"{name} cannot be deleted yet: {error.message}")
                await asyncio.sleep(COPY_POLL_S)
            else:
                return

    # --------------------------------------------------------------------------- define and start

    async def _define(self, run: Run[CloneArguments]) -> None:
        arguments, link = run.arguments, self.link(run)
        guest = await resolved_guest(link, arguments.guest, arguments.uid, arguments.resolution)
        await link.call(link.session.define_guest(guest, run))
        await self.refresh(run)

    async def _undefine(self, run: Run[CloneArguments]) -> None:
        error = run.operation.error
        if error is not None and error.kind == "AlreadyExists":
            return  # somebody else's guest has the name; ours was never defined
        link = self.link(run)
        await link.call(link.session.stop_guest(run.arguments.uid, run))
        await link.call(link.session.undefine_guest(run.arguments.uid, run))

    async def _copy_variables(self, run: Run[CloneArguments]) -> None:
        arguments, link = run.arguments, self.link(run)
        facet = link.facets.definitions
        if facet is None:
            run.warn("the host does not give firmware variables: the clone begins with new ones")
            return
        variables = await link.call(facet.read_variables(arguments.source_uid))
        if variables is not None:
            await link.call(facet.write_variables(arguments.uid, variables, run))

    async def _start(self, run: Run[CloneArguments]) -> None:
        run.scratch.setdefault("was", GuestState.STOPPED.value)
        link = self.link(run)
        if self.state(run) in DOWN:
            await link.call(link.session.start_guest(run.arguments.uid, run), timeout_s=patience(run))
        await self.refresh(run)

    async def _stop(self, run: Run[CloneArguments]) -> None:
        with suppress(NotFoundError):
            await undo_start(self, run)  # type: ignore[arg-type]  # CloneArguments is a GuestArguments


def _overlay(disk: ClonedDisk, pool: str, name: str) -> VolumeRequest:
    return VolumeRequest(
        pool, name, DiskFormat.QCOW2, source_path=disk.source_path, source_format=disk.source_format, overlay=True
    )


def source_busy(name: GuestName, why: str) -> FailedPreconditionError:
    """INVALID_STATE of the guest that shall be cloned, with what to do."""
    return FailedPreconditionError(
        INVALID_STATE,
        f"cannot clone {name.guest}: it {why}; only a stopped guest's disks are sure to be whole: shut it down "
        "first, or back it up while it runs and restore the backup as a new guest",
        resource=str(name),
        metadata={"verb": "clone"},
        allowed_actions=("shutdown", "stop"),
    )
