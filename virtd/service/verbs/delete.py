"""Delete a guest: with its disks, without them, or into the trash."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta

from virtd.backend.api import DefinitionFacet
from virtd.backend.capabilities import TRASH
from virtd.errors import GUEST_PROTECTED, FailedPreconditionError, unsupported
from virtd.model.guest import Firmware, Guest, GuestState
from virtd.model.names import GuestName
from virtd.model.trash import TrashEntry
from virtd.operations import Outcome, Run, Step
from virtd.service.trashcan import PREFIX, Trashed
from virtd.service.verbs.base import GuestArguments, GuestVerb
from virtd.service.verbs.disposal import dispose


@dataclass(frozen=True, slots=True)
class DeleteArguments(GuestArguments):
    """What goes with the guest.

    :param trash: the id of the entry that keeps it; empty: it goes for ever.
    :param retention_s: how long the trash keeps it; None: until somebody purges it.
    """

    force: bool = False
    keep_disks: bool = False
    volumes: tuple[str, ...] = ()
    trash: str = ""
    retention_s: float | None = None


def check_unprotected(guest: Guest) -> None:
    """Refuse the deletion of a guest that is protected against it.

    :raises FailedPreconditionError: GUEST_PROTECTED.
    """
    if guest.spec.deletion_protection:
        raise FailedPreconditionError(
            GUEST_PROTECTED,
            f"{guest.name} is protected against deletion; set spec.deletion_protection to false first",
            resource=guest.name,
            metadata={"field": "spec.deletion_protection"},
        )


class DeleteGuest(GuestVerb[DeleteArguments]):
    """Stop, undefine, remove or keep the disks, forget.  Always forward: never half a guest."""

    name = "delete"
    preempts = frozenset({"shutdown", "reboot", "start", "backup-create"})

    @property
    def arguments(self) -> type[DeleteArguments]:
        """Journalled."""
        return DeleteArguments

    def steps(self, arguments: DeleteArguments) -> Sequence[Step[DeleteArguments]]:
        """Nothing can be taken back after ``undefine``, so nothing can be cancelled from there on."""
        steps: list[Step[DeleteArguments]] = []
        if arguments.force:
            steps.append(Step("stop", self._stop))
        if arguments.trash:
            steps.append(Step("keep", self._keep, undo=self._throw_out))
        steps.append(Step("undefine", self._undefine, cancellable=False))
        if arguments.trash:
            steps.append(Step("trash", self._trash, cancellable=False, weight=0.1))
        elif not arguments.keep_disks:
            steps.append(Step("disks", self._disks, cancellable=False))
        steps.append(Step("forget", self._forget, cancellable=False, weight=0.1))
        return steps

    async def _stop(self, run: Run[DeleteArguments]) -> None:
        self._check(run)
        link = self.link(run)
        await link.call(link.session.stop_guest(run.arguments.uid, run))

    def _check(self, run: Run[DeleteArguments]) -> None:
        """It may have been protected while this waited for its turn."""
        view = self.core.inventory.by_uid(run.arguments.uid)
        if view is not None and not run.recovered:
            check_unprotected(view.guest)

    async def _keep(self, run: Run[DeleteArguments]) -> None:
        """Write down everything that the guest's end would lose, before it ends."""
        self._check(run)
        arguments, link = run.arguments, self.link(run)
        await self.refresh(run)
        view = self.core.inventory.by_uid(arguments.uid)
        if view is None:
            return
        facet = self._definitions(run)
        definition = await link.call(facet.read_definition(arguments.uid))
        guest = view.guest
        if guest.spec.firmware is Firmware.UEFI:
            variables = await link.call(facet.read_variables(arguments.uid))
            if variables is not None:
                await self.core.trash.keep_variables(arguments.trash, variables)
        lost: tuple[str, ...] = ()
        if guest.status.state is GuestState.SUSPENDED:
            lost = ("the memory that was saved when the guest was suspended",)
            run.warn("the saved memory of the suspended guest is not kept")
        now = datetime.now(UTC)
        keep_s = arguments.retention_s
        owned = self._volumes(run)
        host = arguments.host
        entry = TrashEntry(
            name=PREFIX + arguments.trash,
            guest=replace(guest, status=replace(guest.status, current_operations=())),
            volumes=tuple("hosts/{}/pools/{}/volumes/{}".format(host, *owned_.split("/", 1)) for owned_ in owned),
            trash_time=now,
            purge_time=None if keep_s is None else now + timedelta(seconds=keep_s),
            caller=run.operation.caller,
            lost=lost,
        )
        await self.core.trash.put(Trashed(entry, definition, owned))

    def _definitions(self, run: Run[DeleteArguments]) -> DefinitionFacet:
        facet = self.link(run).facets.definitions
        if facet is None:
            raise unsupported(TRASH, "the host cannot give back what it is told to forget")
        return facet

    async def _throw_out(self, run: Run[DeleteArguments]) -> None:
        await self.core.trash.remove(run.arguments.trash)

    async def _undefine(self, run: Run[DeleteArguments]) -> None:
        self._check(run)
        link = self.link(run)
        await link.call(link.session.undefine_guest(run.arguments.uid, run))

    async def _trash(self, run: Run[DeleteArguments]) -> None:
        trashed = self.core.trash.find(run.arguments.trash)
        if trashed is not None:
            await self.core.trash.put(replace(trashed, complete=True))

    async def _disks(self, run: Run[DeleteArguments]) -> None:
        volumes = self._volumes(run)
        if volumes:
            name = GuestName(run.arguments.host, run.arguments.guest)
            await dispose(self.core, run, run.arguments.host, volumes, frozenset({str(name)}))

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
        if run.arguments.trash:
            return Outcome(data={"trash": PREFIX + run.arguments.trash})
        kept = run.scratch.get("kept") or (",".join(run.arguments.volumes) if run.arguments.keep_disks else "")
        return Outcome(data={"kept_volumes": kept} if kept else {})
