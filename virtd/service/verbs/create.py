"""Create a guest."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from uuid import UUID

from virtd.backend.api import VolumeRequest
from virtd.errors import VOLUME_EXISTS, AlreadyExistsError, NotFoundError, unsupported
from virtd.model.guest import (
    Accelerator,
    DiskFormat,
    Guest,
    GuestSpec,
    GuestState,
    GuestStatus,
    Origin,
    Presence,
)
from virtd.model.names import GuestName
from virtd.operations import Run, Step
from virtd.service.filling import fill_volume
from virtd.service.resolve import PlannedVolume, Resolution, resolved_guest
from virtd.service.seeds import staged_seed
from virtd.service.verbs.base import GuestArguments, GuestVerb, patience
from virtd.service.verbs.lifecycle import undo_start


@dataclass(frozen=True, slots=True)
class CreateArguments(GuestArguments):
    """Every choice, made before the first side effect."""

    spec: GuestSpec = field(default_factory=GuestSpec)
    display_name: str = ""
    labels: Mapping[str, str] = field(default_factory=dict)
    annotations: Mapping[str, str] = field(default_factory=dict)
    volumes: tuple[PlannedVolume, ...] = ()
    accelerator: Accelerator = Accelerator.TCG
    accelerator_reason: str = ""
    start: bool = False

    @property
    def resolution(self) -> Resolution:
        """The same, as the resolver made it."""
        return Resolution(self.spec, self.volumes, self.accelerator, self.accelerator_reason)


def reserved_guest(
    name: GuestName,
    uid: UUID,
    spec: GuestSpec,
    operation: str,
    *,
    accelerator: Accelerator,
    accelerator_reason: str,
    display_name: str,
    labels: Mapping[str, str],
    annotations: Mapping[str, str],
) -> Guest:
    """A guest that is about to be made, as it is shown before it exists."""
    now = datetime.now(UTC)
    return Guest(
        name=str(name),
        uid=uid,
        spec=spec,
        status=GuestStatus(
            state=GuestState.STOPPED,
            state_reason="CREATING",
            presence=Presence.ABSENT,
            origin=Origin.MANAGED,
            accelerator=accelerator,
            accelerator_reason=accelerator_reason,
            state_change_time=now,
            current_operations=(operation,),
        ),
        display_name=display_name,
        native_ref=str(uid),
        labels=labels,
        annotations=annotations,
        generation=1,
        etag=f"1-{uid.hex[:8]}",
        create_time=now,
        update_time=now,
    )


class CreateGuest(GuestVerb[CreateArguments]):
    """Reserve the name, make the disks, define, start: each step undone if a later one fails."""

    name = "create"

    @property
    def arguments(self) -> type[CreateArguments]:
        """Journalled."""
        return CreateArguments

    def timeout_s(self, arguments: CreateArguments) -> float:
        """Filling volumes from images takes what it takes."""
        copying = any(v.send or (v.source_path and not v.overlay) for v in arguments.volumes)
        return self.core.options.start_timeout_s + (4 * 3600.0 if copying else 300.0)

    def steps(self, arguments: CreateArguments) -> Sequence[Step[CreateArguments]]:
        """Depends on the arguments only."""
        steps: list[Step[CreateArguments]] = [
            Step("reserve", self._reserve, undo=self._release, weight=0.1),
        ]
        if arguments.volumes:
            steps.append(Step("disks", self._make_disks, undo=self._remove_disks, weight=3))
        steps.append(Step("define", self._define, undo=self._undefine))
        if arguments.start:
            steps.append(Step("start", self._start, undo=self._stop, weight=2))
        return steps

    async def _reserve(self, run: Run[CreateArguments]) -> None:
        arguments = run.arguments
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

    async def _release(self, run: Run[CreateArguments]) -> None:
        self.core.inventory.forget(run.arguments.uid)

    async def _make_disks(self, run: Run[CreateArguments]) -> None:
        link = self.link(run)
        storage = link.facets.storage
        if storage is None:
            raise unsupported("host.volumes", "the host offers no volumes")
        owned: list[str] = []
        for number, volume in enumerate(run.arguments.volumes):
            run.checkpoint()
            pool = volume.pool or (await link.call(storage.ensure_default_pool(run))).name
            request = VolumeRequest(
                pool=pool,
                name=volume.name,
                format=volume.format,
                capacity_bytes=volume.capacity_bytes,
                source_path=await self.core.bases.source(link, pool, volume, run),
                source_format=volume.source_format,
                overlay=volume.overlay,
            )
            if run.repeated:
                # Its name carries the guest's UUID: what is there is ours, and may be half of it.
                await link.call(storage.delete_volume(pool, volume.name, run))
            owned.append(f"{pool}/{volume.name}")
            self.core.inventory.own_volumes(run.arguments.uid, owned)
            if volume.seed:
                await self._make_seed(run, pool, volume.name)
            else:
                await link.call(storage.create_volume(request, run), timeout_s=patience(run))
            run.progress((number + 1) / len(run.arguments.volumes))

    async def _make_seed(self, run: Run[CreateArguments], pool: str, name: str) -> None:
        link = self.link(run)
        await fill_volume(link, pool, name, str(staged_seed(link, run.arguments.uid)), DiskFormat.RAW, run)

    async def _remove_disks(self, run: Run[CreateArguments]) -> None:
        error = run.operation.error
        link = self.link(run)
        storage = link.facets.storage
        if storage is None:
            return
        made = run.arguments.volumes
        if error is not None and error.reason == VOLUME_EXISTS.name:
            # The one whose name was taken is not ours; those before it are.
            view = self.core.inventory.by_uid(run.arguments.uid)
            made = made[: max(0, len(view.owned_volumes) - 1)] if view is not None else ()
        for volume in made:
            if volume.seed:
                staged_seed(link, run.arguments.uid).unlink(missing_ok=True)
            pool = volume.pool or (await link.call(storage.ensure_default_pool(run))).name
            await link.call(storage.delete_volume(pool, volume.name, run))

    async def _define(self, run: Run[CreateArguments]) -> None:
        arguments, link = run.arguments, self.link(run)
        staged_seed(link, arguments.uid).unlink(missing_ok=True)  # its volume is there, and journalled
        guest = await resolved_guest(link, arguments.guest, arguments.uid, arguments.resolution)
        await link.call(link.session.define_guest(guest, run))
        await self.refresh(run)

    async def _undefine(self, run: Run[CreateArguments]) -> None:
        error = run.operation.error
        if error is not None and error.kind == AlreadyExistsError.kind:
            return  # somebody else's guest has the name; ours was never defined
        link = self.link(run)
        await link.call(link.session.stop_guest(run.arguments.uid, run))
        await link.call(link.session.undefine_guest(run.arguments.uid, run))

    async def _start(self, run: Run[CreateArguments]) -> None:
        run.scratch.setdefault("was", GuestState.STOPPED.value)
        link = self.link(run)
        await link.call(link.session.start_guest(run.arguments.uid, run), timeout_s=patience(run))
        await self.refresh(run)

    async def _stop(self, run: Run[CreateArguments]) -> None:
        with suppress(NotFoundError):
            await undo_start(self, run)  # type: ignore[arg-type]  # CreateArguments is a GuestArguments
