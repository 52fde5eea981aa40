"""Create and delete a guest."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime

from virtd.backend.api import VolumeRequest
from virtd.errors import VOLUME_EXISTS, AlreadyExistsError, NotFoundError, unsupported
from virtd.model.guest import (
    Accelerator,
    Guest,
    GuestSpec,
    GuestState,
    GuestStatus,
    Origin,
    Presence,
)
from virtd.operations import Outcome, Run, Step
from virtd.service.resolve import PlannedVolume, Resolution, resolved_guest
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


class CreateGuest(GuestVerb[CreateArguments]):
    """Reserve the name, make the disks, define, start: each step undone if a later one fails."""

    name = "create"

    @property
    def arguments(self) -> type[CreateArguments]:
        """Journalled."""
        return CreateArguments

    def timeout_s(self, arguments: CreateArguments) -> float:
        """Filling volumes from images takes what it takes."""
        copying = any(volume.source_path and not volume.overlay for volume in arguments.volumes)
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
        now = datetime.now(UTC)
        guest = Guest(
            name=str(arguments.guest_name),
            uid=arguments.uid,
            spec=arguments.spec,
            status=GuestStatus(
                state=GuestState.STOPPED,
                state_reason="CREATING",
                presence=Presence.ABSENT,
                origin=Origin.MANAGED,
                accelerator=arguments.accelerator,
                accelerator_reason=arguments.accelerator_reason,
                state_change_time=now,
                current_operations=(run.operation.name,),
            ),
            display_name=arguments.display_name,
            native_ref=str(arguments.uid),
            labels=arguments.labels,
            annotations=arguments.annotations,
            generation=1,
            etag=f"1-{arguments.uid.hex[:8]}",
            create_time=now,
            update_time=now,
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
                source_path=volume.source_path,
                source_format=volume.source_format,
                overlay=volume.overlay,
            )
            if run.recovered:
                # Its name carries the guest's UUID: what is there is ours, and may be half of it.
                await link.call(storage.delete_volume(pool, volume.name, run))
            owned.append(f"{pool}/{volume.name}")
            self.core.inventory.own_volumes(run.arguments.uid, owned)
            await link.call(storage.create_volume(request, run), timeout_s=patience(run))
            run.progress((number + 1) / len(run.arguments.volumes))

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
            pool = volume.pool or (await link.call(storage.ensure_default_pool(run))).name
            await link.call(storage.delete_volume(pool, volume.name, run))

    async def _define(self, run: Run[CreateArguments]) -> None:
        arguments, link = run.arguments, self.link(run)
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


@dataclass(frozen=True, slots=True)
class DeleteArguments(GuestArguments):
    """What goes with the guest."""

    force: bool = False
    keep_disks: bool = False
    volumes: tuple[str, ...] = ()


class DeleteGuest(GuestVerb[DeleteArguments]):
    """Stop, undefine, remove the disks that virtd made, forget.  Always forward: never half a guest."""

    name = "delete"
    preempts = frozenset({"shutdown", "reboot", "start"})

    @property
    def arguments(self) -> type[DeleteArguments]:
        """Journalled."""
        return DeleteArguments

    def steps(self, arguments: DeleteArguments) -> Sequence[Step[DeleteArguments]]:
        """Nothing can be taken back after ``undefine``, so nothing can be cancelled from there on."""
        steps: list[Step[DeleteArguments]] = []
        if arguments.force:
            steps.append(Step("stop", self._stop))
        steps.append(Step("undefine", self._undefine, cancellable=False))
        if not arguments.keep_disks:
            steps.append(Step("disks", self._disks, cancellable=False))
        steps.append(Step("forget", self._forget, cancellable=False, weight=0.1))
        return steps

    async def _stop(self, run: Run[DeleteArguments]) -> None:
        link = self.link(run)
        await link.call(link.session.stop_guest(run.arguments.uid, run))

    async def _undefine(self, run: Run[DeleteArguments]) -> None:
        link = self.link(run)
        await link.call(link.session.undefine_guest(run.arguments.uid, run))

    async def _disks(self, run: Run[DeleteArguments]) -> None:
        volumes = self._volumes(run)
        if not volumes:
            return
        link = self.link(run)
        storage = link.facets.storage
        if storage is None:
            raise unsupported("host.volumes", "the host offers no volumes")
        for volume in volumes:
            pool, _, name = volume.partition("/")
            try:
                await link.call(storage.delete_volume(pool, name, run))
            except NotFoundError:
                run.note(f"pool {pool} is gone, and volume {name} with it")

    def _volumes(self, run: Run[DeleteArguments]) -> tuple[str, ...]:
        """What the guest owns when the turn comes: it may still have been in the making when asked."""
        view = self.core.inventory.by_uid(run.arguments.uid)
        owned = view.owned_volumes if view is not None else ()
        return tuple(dict.fromkeys((*run.arguments.volumes, *owned)))

    async def _forget(self, run: Run[DeleteArguments]) -> None:
        volumes = self._volumes(run)
        if run.arguments.keep_disks and volumes:
            run.note(f"kept: {', '.join(volumes)}")
            run.scratch["kept"] = ",".join(volumes)
        durable = self.core.inventory.forget(run.arguments.uid)
        if durable is not None:
            await asyncio.wrap_future(durable)

    async def finish(self, run: Run[DeleteArguments]) -> Outcome:
        """The guest is gone: there is nothing to show but what was kept."""
        kept = run.scratch.get("kept") or (",".join(run.arguments.volumes) if run.arguments.keep_disks else "")
        return Outcome(data={"kept_volumes": kept} if kept else {})
