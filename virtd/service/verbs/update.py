"""Change a guest that exists: new disks, the running guest, its next start, then the record of it all."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import Final

from virtd.backend.api import ResolvedGuest, UpdateEffect, UpdateFacet, VolumeRequest
from virtd.backend.capabilities import UPDATE, VOLUMES
from virtd.errors import (
    ETAG_MISMATCH,
    RESTART_REQUIRED,
    VOLUME_EXISTS,
    ConflictError,
    FailedPreconditionError,
    NotFoundError,
    unsupported,
)
from virtd.model.guest import Guest, GuestSpec, GuestState
from virtd.model.names import GuestName
from virtd.operations import Run, Step
from virtd.service.changes import Presence
from virtd.service.core import Core
from virtd.service.resolve import PlannedVolume
from virtd.service.verbs.base import GuestArguments, GuestVerb, patience
from virtd.store import Codec

ACTIVE: Final = (GuestState.RUNNING, GuestState.PAUSED)
DEVICES_S: Final = 300.0
"""For devices that a guest takes its time to let go of."""


class UpdateMode(StrEnum):
    """When changes of a spec take effect."""

    LIVE_OR_NEXT_BOOT = "LIVE_OR_NEXT_BOOT"
    LIVE_ONLY = "LIVE_ONLY"
    NEXT_BOOT = "NEXT_BOOT"


@dataclass(frozen=True, slots=True)
class UpdateRequest:
    """What a caller wants changed.

    :param spec: the values, as far as they are given.
    :param present: which fields of ``spec`` are given.
    :param paths: ``spec`` or paths below it.
    :param display_name: None: as it is; so are ``labels`` and ``annotations``.
    """

    spec: GuestSpec = field(default_factory=GuestSpec)
    present: Presence = field(default_factory=Presence)
    paths: tuple[str, ...] = ()
    display_name: str | None = None
    labels: Mapping[str, str] | None = None
    annotations: Mapping[str, str] | None = None
    etag: str = ""
    mode: UpdateMode = UpdateMode.LIVE_OR_NEXT_BOOT
    allow_replace: bool = False
    delete_removed_disks: bool = False
    force_eject: bool = False


@dataclass(frozen=True, slots=True)
class UpdateArguments(GuestArguments):
    """Every choice, made before the first side effect.

    :param request: what was asked for, where the caller named no etag: the choices are then made anew if the
        guest has changed until the turn comes.
    :param etag: of the guest when the choices were made.
    :param fields: paths of the changes that the hypervisor is concerned with.
    :param sizes: new sizes in bytes, by the disk's file.
    :param released: volumes that the guest no longer owns, as ``pool/volume``.
    :param deleted: those of them that are deleted.
    """

    request: UpdateRequest | None = None
    etag: str = ""
    spec: GuestSpec = field(default_factory=GuestSpec)
    display_name: str | None = None
    labels: Mapping[str, str] | None = None
    annotations: Mapping[str, str] | None = None
    current: ResolvedGuest | None = None
    wanted: ResolvedGuest | None = None
    accelerator_reason: str = ""
    fields: tuple[str, ...] = ()
    volumes: tuple[PlannedVolume, ...] = ()
    sizes: Mapping[str, int] = field(default_factory=dict)
    mode: UpdateMode = UpdateMode.LIVE_OR_NEXT_BOOT
    replace: bool = False
    force_eject: bool = False
    autostart: bool | None = None
    released: tuple[str, ...] = ()
    deleted: tuple[str, ...] = ()


Replan = Callable[[str, GuestName, UpdateRequest], Awaitable[UpdateArguments]]
"""Makes the choices of a request, of a caller and for a guest, once more."""


class UpdateGuest(GuestVerb[UpdateArguments]):
    """Each step is undone if a later one fails; the generation is new only when all of it is done."""

    name = "update"

    def __init__(self, core: Core, replan: Replan) -> None:
        super().__init__(core)
        self._replan: Final = replan
        self._codec: Final = Codec(UpdateArguments)

    def plan(self, run: Run[UpdateArguments]) -> UpdateArguments:
        """The choices that hold: those of the request, or those that were made when the turn came."""
        text = run.scratch.get("plan")
        return run.arguments if text is None else self._codec.decode(text)

    @property
    def arguments(self) -> type[UpdateArguments]:
        """Journalled."""
        return UpdateArguments

    def timeout_s(self, arguments: UpdateArguments) -> float:
        """Filling volumes from images takes what it takes."""
        copying = any(volume.source_path and not volume.overlay for volume in arguments.volumes)
        return DEVICES_S + (4 * 3600.0 if copying else 0.0)

    def steps(self, arguments: UpdateArguments) -> Sequence[Step[UpdateArguments]]:
        """Only those that there is something to do for.

        A size cannot be taken back, so it changes when nothing else can fail any more but the record;
        what was released is deleted when the record no longer has it.
        """
        steps: list[Step[UpdateArguments]] = [Step("check", self._check, weight=0.1)]
        if arguments.volumes:
            steps.append(Step("disks", self._make_disks, undo=self._remove_disks, weight=3))
        if arguments.fields and arguments.replace:
            steps.append(Step("replace", self._replace, undo=self._replace_back))
        elif arguments.fields:
            if arguments.mode is not UpdateMode.NEXT_BOOT:
                steps.append(Step("live", self._live, undo=self._live_back, weight=2))
            steps.append(Step("config", self._config, undo=self._config_back))
        if arguments.autostart is not None:
            steps.append(Step("autostart", self._autostart, undo=self._autostart_back, weight=0.1))
        if arguments.sizes:
            steps.append(Step("resize", self._resize))
        steps.append(Step("record", self._record, cancellable=False, weight=0.1))
        if arguments.deleted:
            steps.append(Step("delete", self._delete, cancellable=False, weight=0.5))
        return steps

    # --------------------------------------------------------------------------------------- check

    async def _check(self, run: Run[UpdateArguments]) -> None:
        """The guest is still the one that the choices were made for; what is live is decided now."""
        await self.refresh(run)
        guest, plan = self._guest(run), run.arguments
        if guest.etag != plan.etag:
            plan = await self._anew(run, guest)
        if not plan.fields or plan.replace:
            return
        current, wanted = _both(plan)
        effects = await self.link(run).call(self._facet(run).plan_update(current, wanted, plan.fields))
        live = [entry.field for entry in effects if entry.effect is UpdateEffect.LIVE]
        waiting = [entry for entry in effects if entry.effect is UpdateEffect.NEXT_BOOT]
        active = guest.status.state in ACTIVE
        if waiting and active and plan.mode is UpdateMode.LIVE_ONLY:
            raise restart_required(guest.name, [(entry.field, entry.reason) for entry in waiting])
        run.scratch["live"] = json.dumps(live if active else [])
        for entry in waiting if active else ():
            run.note(f"{entry.field} waits for the next start: {entry.reason}")

    async def _anew(self, run: Run[UpdateArguments], guest: Guest) -> UpdateArguments:
        """The guest was changed while this waited: choose again, unless the caller spoke of the one that it was."""
        asked = run.arguments
        plan = (
            None if asked.request is None else await self._replan(run.operation.caller, asked.guest_name, asked.request)
        )
        stages = {step.name for step in self.steps(asked)}
        if plan is None or any(step.name not in stages for step in self.steps(plan)):
            raise ConflictError(
                ETAG_MISMATCH,
                f"{guest.name} was changed while this waited: its etag is {guest.etag}, not {asked.etag}",
                resource=guest.name,
                metadata={"etag": guest.etag},
            )
        run.scratch["plan"] = self._codec.encode(plan)
        return plan

    def _guest(self, run: Run[UpdateArguments]) -> Guest:
        view = self.core.inventory.by_uid(run.arguments.uid)
        if view is None:
            return self.core.inventory.get(run.arguments.guest_name).guest  # raises
        return view.guest

    def _facet(self, run: Run[UpdateArguments]) -> UpdateFacet:
        facet = self.link(run).facets.update
        if facet is None:
            raise unsupported(UPDATE, "the host cannot change guests")
        return facet

    # --------------------------------------------------------------------------------------- disks

    async def _make_disks(self, run: Run[UpdateArguments]) -> None:
        link, volumes = self.link(run), self.plan(run).volumes
        storage = link.facets.storage
        if storage is None:
            raise unsupported(VOLUMES, "the host offers no volumes")
        for number, volume in enumerate(volumes):
            run.checkpoint()
            pool = volume.pool or (await link.call(storage.ensure_default_pool(run))).name
            if run.repeated:
                # Its name was drawn for this operation: what is there is ours, and may be half of it.
                await link.call(storage.delete_volume(pool, volume.name, run))
            self._own(run, add=(f"{pool}/{volume.name}",))
            request = VolumeRequest(
                pool=pool,
                name=volume.name,
                format=volume.format,
                capacity_bytes=volume.capacity_bytes,
                source_path=await self.core.bases.source(link, pool, volume, run),
                source_format=volume.source_format,
                overlay=volume.overlay,
            )
            await link.call(storage.create_volume(request, run), timeout_s=patience(run))
            self._lies_at(run, volume.disk, await link.call(storage.volume_path(pool, volume.name)))
            run.progress((number + 1) / len(volumes))

    def _lies_at(self, run: Run[UpdateArguments], disk: str, path: str) -> None:
        """Where a new disk's volume really is: the default pool may not have been there when it was planned."""
        plan = self.plan(run)
        if plan.wanted is None:
            return
        disks = tuple(replace(entry, path=path) if entry.name == disk else entry for entry in plan.wanted.disks)
        if disks != plan.wanted.disks:
            run.scratch["plan"] = self._codec.encode(replace(plan, wanted=replace(plan.wanted, disks=disks)))

    async def _remove_disks(self, run: Run[UpdateArguments]) -> None:
        link = self.link(run)
        storage = link.facets.storage
        if storage is None:
            return
        error = run.operation.error
        taken = error is not None and error.reason == VOLUME_EXISTS.name
        for volume in self.plan(run).volumes:
            pool = volume.pool or (await link.call(storage.ensure_default_pool(run))).name
            if not taken:
                await link.call(storage.delete_volume(pool, volume.name, run))
            self._own(run, drop=(f"{pool}/{volume.name}",))

    def _own(self, run: Run[UpdateArguments], add: Sequence[str] = (), drop: Sequence[str] = ()) -> None:
        view = self.core.inventory.by_uid(run.arguments.uid)
        if view is not None:
            kept = [volume for volume in view.owned_volumes if volume not in drop]
            self.core.inventory.own_volumes(run.arguments.uid, list(dict.fromkeys((*kept, *add))))

    # ------------------------------------------------------------------------------ the hypervisor

    async def _live(self, run: Run[UpdateArguments]) -> None:
        fields = json.loads(run.scratch.get("live", "[]"))
        if not fields:
            return
        current, wanted = _both(self.plan(run))
        work = self._facet(run).apply_live(current, wanted, fields, run, force=self.plan(run).force_eject)
        await self.link(run).call(work, timeout_s=patience(run))
        await self.refresh(run)

    async def _live_back(self, run: Run[UpdateArguments]) -> None:
        fields = json.loads(run.scratch.get("live", "[]"))
        await self.refresh(run)
        if not fields or self.state(run) not in ACTIVE:
            return
        current, wanted = _both(self.plan(run))
        back = list(reversed(fields))
        work = self._facet(run).apply_live(wanted, current, back, run, force=True)
        await self.link(run).call(work, timeout_s=patience(run))
        await self.refresh(run)

    async def _config(self, run: Run[UpdateArguments]) -> None:
        if not self.plan(run).fields:
            return
        current, wanted = _both(self.plan(run))
        await self.link(run).call(self._facet(run).apply_config(current, wanted, run), timeout_s=patience(run))
        await self.refresh(run)

    async def _config_back(self, run: Run[UpdateArguments]) -> None:
        if not self.plan(run).fields:
            return
        current, wanted = _both(self.plan(run))
        await self.link(run).call(self._facet(run).apply_config(wanted, current, run), timeout_s=patience(run))
        await self.refresh(run)

    async def _replace(self, run: Run[UpdateArguments]) -> None:
        link, (_, wanted) = self.link(run), _both(self.plan(run))
        await link.call(link.session.define_guest(wanted, run), timeout_s=patience(run))
        await self.refresh(run)

    async def _replace_back(self, run: Run[UpdateArguments]) -> None:
        link, (current, _) = self.link(run), _both(self.plan(run))
        await link.call(link.session.define_guest(current, run), timeout_s=patience(run))
        await self.refresh(run)

    async def _autostart(self, run: Run[UpdateArguments]) -> None:
        await self._set_autostart(run, enabled=bool(self.plan(run).autostart))

    async def _autostart_back(self, run: Run[UpdateArguments]) -> None:
        await self._set_autostart(run, enabled=not self.plan(run).autostart)

    async def _set_autostart(self, run: Run[UpdateArguments], *, enabled: bool) -> None:
        link = self.link(run)
        facet = link.facets.autostart
        if facet is not None and self.plan(run).autostart is not None:
            await link.call(facet.set_autostart(run.arguments.uid, run, enabled=enabled))

    async def _resize(self, run: Run[UpdateArguments]) -> None:
        facet, link = self._facet(run), self.link(run)
        for path, size in self.plan(run).sizes.items():
            await link.call(facet.resize_disk(run.arguments.uid, path, size, run), timeout_s=patience(run))
        await self.refresh(run)

    # -------------------------------------------------------------------------------------- record

    async def _record(self, run: Run[UpdateArguments]) -> None:
        arguments = self.plan(run)

        def edit(guest: Guest) -> Guest:
            status = guest.status
            if arguments.wanted is not None:
                status = replace(
                    status,
                    accelerator=arguments.wanted.accelerator,
                    accelerator_reason=arguments.accelerator_reason or status.accelerator_reason,
                )
            return replace(
                guest,
                spec=arguments.spec,
                display_name=guest.display_name if arguments.display_name is None else arguments.display_name,
                labels=guest.labels if arguments.labels is None else arguments.labels,
                annotations=guest.annotations if arguments.annotations is None else arguments.annotations,
                status=status,
            )

        guest = self._guest(run)
        # Nothing new is no new generation; neither is what a daemon that died has written down already.
        if edit(guest) != guest:
            await self.core.inventory.change(arguments.uid, edit)
        if arguments.released:
            self._own(run, drop=arguments.released)
            kept = [volume for volume in arguments.released if volume not in arguments.deleted]
            if kept:
                run.note(f"kept, and no longer the guest's: {', '.join(kept)}")
        await self.refresh(run)

    async def _delete(self, run: Run[UpdateArguments]) -> None:
        link = self.link(run)
        storage = link.facets.storage
        if storage is None:
            raise unsupported(VOLUMES, "the host offers no volumes")
        for volume in self.plan(run).deleted:
            pool, _, name = volume.partition("/")
            try:
                await link.call(storage.delete_volume(pool, name, run))
            except NotFoundError:
                run.note(f"pool {pool} is gone, and volume {name} with it")


def restart_required(name: str, waiting: Sequence[tuple[str, str]]) -> FailedPreconditionError:
    """RESTART_REQUIRED with every field that is in the way."""
    return FailedPreconditionError(
        RESTART_REQUIRED,
        "; ".join(f"{path} cannot be changed while the guest runs: {reason}" for path, reason in waiting),
        resource=name,
        metadata={"fields": ",".join(path for path, _ in waiting)},
        allowed_actions=("stop", "shutdown"),
    )


def _both(arguments: UpdateArguments) -> tuple[ResolvedGuest, ResolvedGuest]:
    assert arguments.current is not None  # there are fields that change
    assert arguments.wanted is not None
    return arguments.current, arguments.wanted
