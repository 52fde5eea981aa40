"""Migrate a guest to another host of the same hypervisor.

A guest that runs is sent by the hypervisors themselves: virtd may die meanwhile, and finds out by the
guest's UUID on *both* hosts what became of it.  A stopped guest's definition is written on the target, and
erased on the source when that is done: between the two nobody starts it, because this operation has both
names' queues.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

from virtd.backend.api import (
    DEFAULT_POOL,
    DefinitionFacet,
    DiskFile,
    MigrationFacet,
    MigrationOrder,
    MigrationSide,
    MovedDisk,
    VolumeRequest,
)
from virtd.backend.capabilities import MIGRATE, MIGRATE_LIVE
from virtd.errors import (
    GUEST_NOT_FOUND,
    MIGRATION_BLOCKED,
    MIGRATION_BROKEN,
    MIGRATION_FAILED,
    OPERATION_INTERRUPTED,
    AbortedError,
    FailedPreconditionError,
    InternalError,
    NotFoundError,
    UnavailableError,
    VirtdError,
    unsupported,
)
from virtd.inventory import HostLink
from virtd.model.guest import Firmware
from virtd.model.migration import DiskPassage, FindingSeverity
from virtd.operations import Outcome, Run, Step
from virtd.service.migration_check import preflight
from virtd.service.migration_disks import places_of
from virtd.service.verbs.base import GuestVerb, patience
from virtd.service.verbs.disposal import dispose, storage_of
from virtd.service.verbs.migrate_parts import MigrateArguments, blocked, left_behind, with_disks
from virtd.service.volume_copy import copy_volume

S = MigrationSide
LOOK_S: Final = 0.5
UNDO_PATIENCE_S: Final = 30.0
"""So long the undoing waits for a target that does not answer; then what is left there is named."""
NEVER: Final = 7 * 86_400.0
NOT_HERE: Final = frozenset({S.ABSENT, S.DOWN})
ARRIVED: Final = frozenset({S.ACTIVE, S.OUTGOING})
"""Of the target: it runs there, or goes on to another host already, or is changed where jobs have no names."""


MigrateRun = Run[MigrateArguments]


class MigrateGuest(GuestVerb[MigrateArguments]):
    """Check, make the disks, send or write, switch virtd's own records over, clean up."""

    name = "migrate"

    @property
    def arguments(self) -> type[MigrateArguments]:
        """Journalled."""
        return MigrateArguments

    def timeout_s(self, arguments: MigrateArguments) -> float:
        """It takes what it takes: progress tells, and a cancel is obeyed."""
        return NEVER

    def steps(self, arguments: MigrateArguments) -> Sequence[Step[MigrateArguments]]:
        """Depends on the arguments only."""
        steps: list[Step[MigrateArguments]] = [Step("check", self._check, weight=0.1)]
        if arguments.copied:
            steps.append(Step("disks", self._make_disks, undo=self._remove_disks, weight=0.5 if arguments.live else 10))
        if arguments.live:
            steps.append(Step("move", self._send, undo=self._call_back, weight=10, decides=True))
        else:
            steps.append(Step("define", self._define, undo=self._undefine))
            steps.append(Step("switch", self._switch, cancellable=False, weight=0.2))
        steps.append(Step("clean-up", self._clean_up, cancellable=False, weight=0.2))
        return steps

    def target(self, run: MigrateRun) -> HostLink:
        """The link of the host that the guest goes to."""
        return self.core.link(run.arguments.request.target_host)

    # ---------------------------------------------------------------------------------- before

    async def _check(self, run: MigrateRun) -> None:
        """Once more, now that nobody else works on the guest."""
        arguments = run.arguments
        await self.refresh(run)
        found, disks, _ = await preflight(self.core, arguments.guest_name, arguments.request)
        blocking = [finding for finding in found.findings if finding.severity is FindingSeverity.CRITICAL]
        if blocking:
            raise blocked(arguments.guest_name, tuple(blocking))
        if (found.mode.value == "LIVE") is not arguments.live or tuple(disks) != arguments.disks:
            raise FailedPreconditionError(
                MIGRATION_BLOCKED,
                f"{arguments.guest} is not what it was when the migration was asked for: ask again",
                resource=str(arguments.guest_name),
                metadata={"reasons": "WRONG_STATE"},
            )
        for finding in found.findings:
            if finding.severity is FindingSeverity.WARNING:
                run.warn(finding.message)
        view = self.core.inventory.by_uid(arguments.uid)
        # Written down now: when the guest has its new name, nobody could tell any more.
        run.scratch["left"] = "\n".join(left_behind(arguments, view.owned_volumes if view is not None else ()))

    async def _make_disks(self, run: MigrateRun) -> None:
        arguments, link, target = run.arguments, self.link(run), self.target(run)
        storage = storage_of(target)
        if any(disk.pool == DEFAULT_POOL for disk in arguments.copied):
            await target.call(storage.ensure_default_pool(run))
        for disk in arguments.copied:
            run.checkpoint()
            if f"made {disk.disk}" in run.scratch or run.recovered:
                # Half of it may be there.  The check has found the name free, so it is ours.
                await target.call(storage.delete_volume(disk.pool, disk.volume, run))
            run.scratch[f"made {disk.disk}"] = disk.volume
            if disk.passage is DiskPassage.MIRRORED:
                blank = VolumeRequest(disk.pool, disk.volume, disk.format, disk.capacity_bytes)
                await target.call(storage.create_volume(blank, run), timeout_s=patience(run))
                continue
            place = Path(target.config.directory) / "migrations"
            await copy_volume(link, target, disk, place, arguments.uid, run)

    async def _remove_disks(self, run: MigrateRun) -> None:
        if run.scratch.get("arrived"):
            return
        arguments, target = run.arguments, self.target(run)
        error = run.operation.error

        async def remove() -> None:
            storage = storage_of(target)
            for disk in arguments.copied:
                made = f"made {disk.disk}" in run.scratch or run.recovered
                if made and not (error is not None and error.reason == "VOLUME_EXISTS"):
                    await target.call(storage.delete_volume(disk.pool, disk.volume, run))

        names = ", ".join(f"{disk.pool}/{disk.volume}" for disk in arguments.copied)
        await self._or_warn(run, remove, f"the volumes {names} may be left on host {target.id}: delete them there")

    async def _or_warn(self, run: MigrateRun, work: Any, leftover: str) -> None:
        """Undo on the target, but do not wait for ever: the guest is safe where it is."""
        deadline = asyncio.get_running_loop().time() + UNDO_PATIENCE_S
        while True:
            try:
                await work()
            except UnavailableError as error:
                if asyncio.get_running_loop().time() > deadline:
                    run.warn(f"{leftover} ({error.message})")
                    return
                await asyncio.sleep(LOOK_S)
            else:
                return

    # ------------------------------------------------------------------------------------ live

    def _facets(self, run: MigrateRun) -> tuple[MigrationFacet, MigrationFacet]:
        here, there = self.link(run).facets.migration, self.target(run).facets.migration
        if here is None or there is None:
            raise unsupported(MIGRATE_LIVE, "one of the hosts cannot migrate guests that run")
        return here, there

    async def _sides(self, run: MigrateRun) -> tuple[MigrationSide, MigrationSide]:
        """What each host has of the guest.

        The target is asked between two equal answers of the source: a guest is not seen on neither, or on
        both, because it moved between two questions.
        """
        here, there = self._facets(run)
        link, target, uid = self.link(run), self.target(run), run.arguments.uid
        before = await link.call(here.migration_side(uid))
        while True:
            seen = await target.call(there.migration_side(uid))
            after = await link.call(here.migration_side(uid))
            if after is before:
                return after, seen
            before = after

    async def _send(self, run: MigrateRun) -> None:
        arguments = run.arguments
        self.core.inventory.set_moving(arguments.uid, moving=True)
        while True:
            source, target = await self._sides(run)
            if source in NOT_HERE and target in ARRIVED:
                break
            if source is S.ABSENT and target is S.DOWN:
                break  # it has arrived, and was stopped there
            self._refuse(run, source, target)
            if source in NOT_HERE:  # the source has let go, the target takes over
                await asyncio.sleep(LOOK_S)
                continue
            if source is S.ACTIVE:
                run.checkpoint()
                if target is not S.ABSENT:
                    await self._discard(run)
            await self._transfer(run)
        run.commit()
        await self._arrived(run, source)

    def _refuse(self, run: MigrateRun, source: MigrationSide, target: MigrationSide) -> None:
        """Raise where there is no way forward."""
        arguments, name = run.arguments, str(run.arguments.guest_name)
        if S.BROKEN in (source, target):
            raise self._broken(run)
        if source is target is S.ACTIVE:
            raise AbortedError(
                OPERATION_INTERRUPTED,
                f"{arguments.guest} is active on {arguments.host} and on {arguments.request.target_host}: virtd "
                "touches neither; find out which one is right and stop the other on its host",
                resource=name,
            )
        if source in NOT_HERE and target is not S.INCOMING:
            if source is S.ABSENT:
                message = f"{arguments.guest} is on neither host: somebody has undefined it"
                raise NotFoundError(GUEST_NOT_FOUND, message, resource=name)
            raise FailedPreconditionError(
                MIGRATION_FAILED,
                f"{arguments.guest} stopped while it was to move; it is on {arguments.host}, stopped",
                resource=name,
            )

    async def _transfer(self, run: MigrateRun) -> None:
        here, there = self._facets(run)
        link, arguments = self.link(run), run.arguments
        order = await self._order(run)

        def committed() -> None:
            if order.post_copy:
                run.scratch["post_copy"] = "true"
            run.commit()

        try:
            await link.call(here.migrate_guest(arguments.uid, order, there, run, committed=committed), timeout_s=NEVER)
        except FailedPreconditionError as error:
            # The source alone is asked: where it still has the guest, the target cannot run it, dead or alive.
            if await link.call(here.migration_side(arguments.uid)) is not S.ACTIVE:
                return  # the loop sees what became of it
            name = arguments.guest_name
            message = f"{error.record.message}; {name.guest} goes on on {name.host}"
            raise FailedPreconditionError(
                error.reason, message, resource=str(name), native=error.record.native
            ) from error

    async def _order(self, run: MigrateRun) -> MigrationOrder:
        arguments, target = run.arguments, self.target(run)
        request, moved = arguments.request, []
        for disk in arguments.copied:
            path = await target.call(storage_of(target).volume_path(disk.pool, disk.volume))
            moved.append(MovedDisk(disk.path, path, disk.format, disk.passage is DiskPassage.MIRRORED))
        return MigrationOrder(
            tuple(moved),
            mirrors=any(disk.mirrored for disk in moved),
            post_copy=request.post_copy,
            auto_converge=request.auto_converge,
            bandwidth_bytes_per_s=request.bandwidth_bytes_per_s,
            max_downtime_ms=request.max_downtime_ms,
        )

    async def _discard(self, run: MigrateRun) -> None:
        """Remove what an earlier attempt has left on the target; never a guest that runs there."""
        _, there = self._facets(run)
        await self.target(run).call(there.discard_arrival(run.arguments.uid, run))

    def _broken(self, run: MigrateRun) -> VirtdError:
        arguments = run.arguments
        return InternalError(
            MIGRATION_BROKEN,
            f"the way between {arguments.host} and {arguments.request.target_host} broke after the switch to "
            f"post-copy: a part of the memory of {arguments.guest} is on each; virtd touches neither",
            resource=str(arguments.guest_name),
        )

    async def _call_back(self, run: MigrateRun) -> None:
        """It failed or was cancelled: see where the guest is, and leave nothing on the other host."""
        error, uid = run.operation.error, run.arguments.uid
        if error is not None and error.reason in (MIGRATION_BROKEN.name, OPERATION_INTERRUPTED.name):
            self.core.inventory.set_moving(uid, moving=False)
            run.scratch["arrived"] = "unknown"  # its disks there may be in use
            return
        link = self.link(run)
        here = link.facets.migration
        if here is None:
            return
        while True:
            source = await link.call(here.migration_side(uid))
            if source is not S.OUTGOING:
                break
            await asyncio.sleep(LOOK_S)
        if source is not S.ACTIVE:
            source, target = await self._sides(run)
            if target in ARRIVED and source in NOT_HERE:
                run.warn(f"it was too late to call it back: {run.arguments.guest} is on {self.target(run).id}")
                await self._arrived(run, source)
                await self._clean_up(run)
                return
        self.core.inventory.set_moving(uid, moving=False)
        leftover = f"something of {run.arguments.guest} may be left on host {self.target(run).id}"
        await self._or_warn(run, lambda: self._discard(run), leftover)
        await self.refresh(run)

    async def _arrived(self, run: MigrateRun, source: MigrationSide) -> None:
        arguments, link = run.arguments, self.link(run)
        run.scratch["arrived"] = "yes"
        if source is S.DOWN:
            await link.call(link.session.undefine_guest(arguments.uid, run))
        await self._measure(run)
        await self._settle(run)

    async def _measure(self, run: MigrateRun) -> None:
        _, there = self._facets(run)
        try:
            times = await self.target(run).call(there.migration_times(run.arguments.uid))
        except VirtdError as error:
            run.note(f"how long it took cannot be told: {error.message}")
            return
        for key, value in (
            ("downtime_ms", times.downtime_ms), ("total_ms", times.total_ms), ("sent_bytes", times.sent_bytes),
        ):  # fmt: skip
            if value is not None:
                run.scratch[key] = str(value)

    # --------------------------------------------------------------------------------- offline

    def _definitions(self, link: HostLink) -> DefinitionFacet:
        if link.facets.definitions is None:
            raise unsupported(MIGRATE, "the host cannot give or take a guest's whole definition")
        return link.facets.definitions

    async def _define(self, run: MigrateRun) -> None:
        arguments, link, target = run.arguments, self.link(run), self.target(run)
        here, there = self._definitions(link), self._definitions(target)
        uid = arguments.uid
        if arguments.request.discard_saved_state and link.facets.suspend is not None:
            await link.call(link.facets.suspend.discard_saved_state(uid, run))
        definition = await link.call(here.read_definition(uid))
        await target.call(there.write_definition(uid, "", definition, run), timeout_s=patience(run))
        files: dict[str, DiskFile] = {}
        for disk in arguments.copied:
            path = await target.call(storage_of(target).volume_path(disk.pool, disk.volume))
            files[disk.path] = DiskFile(path, disk.format)
        if files:
            await target.call(there.replace_disk_files(uid, files, run))
        view = self.core.inventory.by_uid(uid)
        if view is not None and view.guest.spec.firmware is Firmware.UEFI:
            variables = await link.call(here.read_variables(uid))
            if variables is not None:
                await target.call(there.write_variables(uid, variables, run))
        starts, other = link.facets.autostart, target.facets.autostart
        if starts is not None and other is not None and await link.call(starts.get_autostart(uid)):
            await target.call(other.set_autostart(uid, run, enabled=True))

    async def _undefine(self, run: MigrateRun) -> None:
        error = run.operation.error
        if error is not None and error.kind == "AlreadyExists":
            return  # somebody else's guest has the name; ours was never defined
        target, uid = self.target(run), run.arguments.uid
        if await self._gone(run):
            # The source has forgotten it, whatever it said: what the target has is all that there is.
            run.warn(f"it was too late to take it back: {run.arguments.guest} is on {target.id}")
            await self._settle(run)
            await self._clean_up(run)
            return

        async def undefine() -> None:
            await target.call(target.session.undefine_guest(uid, run))

        await self._or_warn(run, undefine, f"{run.arguments.guest} may still be defined on host {target.id}")
        await self.refresh(run)

    async def _switch(self, run: MigrateRun) -> None:
        """The target has all of it: from here on the source has none."""
        arguments, link = run.arguments, self.link(run)
        self.core.inventory.set_moving(arguments.uid, moving=True)
        try:
            await link.call(link.session.undefine_guest(arguments.uid, run))
        except UnavailableError:
            raise
        except VirtdError:
            if not await self._gone(run):
                self.core.inventory.set_moving(arguments.uid, moving=False)
                raise
        await self._settle(run)

    async def _gone(self, run: MigrateRun) -> bool:
        """Whether the source says that it has no such guest."""
        link = self.link(run)
        try:
            await link.call(link.session.get_guest(run.arguments.uid))
        except NotFoundError:
            return True
        return False

    async def _settle(self, run: MigrateRun) -> None:
        run.scratch["arrived"] = "yes"
        await self._switch_over(run)
        await self.target(run).refresh(run.arguments.uid)

    # ---------------------------------------------------------------------------------- behind

    async def _switch_over(self, run: MigrateRun) -> None:
        """What virtd itself keeps: the guest's name, its volumes, where its disks are."""
        arguments, target = run.arguments, self.target(run)
        view = self.core.inventory.by_uid(arguments.uid)
        if view is None:
            return
        if view.key != arguments.target_name:
            owned = await self._owned_there(run)
            await self.core.inventory.move(
                arguments.uid, arguments.target_name, owned, lambda guest: with_disks(guest, arguments)
            )
        self.core.inventory.set_moving(arguments.uid, moving=False)
        run.note(f"{arguments.guest} is on {target.id} now")

    async def _owned_there(self, run: MigrateRun) -> list[str]:
        arguments, target = run.arguments, self.target(run)
        owned = [f"{disk.pool}/{disk.volume}" for disk in arguments.copied if disk.owned]
        if any(disk.owned and disk.passage is DiskPassage.SHARED for disk in arguments.disks):
            places = await places_of(target)
            owned += [
                f"{places[disk.path].pool}/{places[disk.path].volume.name}"
                for disk in arguments.disks
                if disk.owned and disk.passage is DiskPassage.SHARED and disk.path in places
            ]
        return owned

    async def _clean_up(self, run: MigrateRun) -> None:
        left = [volume for volume in run.scratch.get("left", "").split("\n") if volume]
        kept = [disk.path for disk in run.arguments.copied if not disk.owned]
        if kept:
            run.note(f"virtd did not make these files, and leaves them on {run.arguments.host}: {', '.join(kept)}")
        if not left:
            return
        try:
            await dispose(self.core, run, run.arguments.host, left, frozenset({str(run.arguments.guest_name)}))
        except UnavailableError:
            raise
        except VirtdError as error:
            run.warn(f"left on {run.arguments.host}: {', '.join(left)}: {error.message}")

    async def finish(self, run: MigrateRun) -> Outcome:
        """The guest under its new name, and what was measured."""
        view = self.core.inventory.by_uid(run.arguments.uid)
        keys = ("downtime_ms", "total_ms", "sent_bytes")
        data = {key: run.scratch[key] for key in keys if key in run.scratch}
        if run.arguments.request.post_copy:
            data["post_copy"] = run.scratch.get("post_copy", "false")
        return Outcome(view.guest.name if view else "", view.guest if view else None, data)
