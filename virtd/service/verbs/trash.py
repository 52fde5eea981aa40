"""Bring guests back from the trash, or purge them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from virtd.backend.capabilities import TRASH
from virtd.errors import GUEST_EXISTS, AlreadyExistsError, NotFoundError, unsupported
from virtd.model.guest import Guest, GuestState, GuestStatus, Origin, Presence, RunStrategy
from virtd.operations import Outcome, Run, Step, Verb
from virtd.service.core import Core
from virtd.service.trashcan import PREFIX, Trashed
from virtd.service.verbs.base import GuestArguments, GuestVerb
from virtd.service.verbs.disposal import dispose


@dataclass(frozen=True, slots=True)
class RecoverArguments(GuestArguments):
    """``renamed``: the guest gets another id, and another native name, than it had."""

    entry: str = ""
    renamed: bool = False


class RecoverGuest(GuestVerb[RecoverArguments]):
    """Show the guest, define it as it was, give its firmware variables back, take it out of the trash."""

    name = "recover"

    @property
    def arguments(self) -> type[RecoverArguments]:
        """Journalled."""
        return RecoverArguments

    def steps(self, arguments: RecoverArguments) -> Sequence[Step[RecoverArguments]]:
        """Until the last step the entry is as it was."""
        return [
            Step("reserve", self._reserve, undo=self._release, weight=0.1),
            Step("define", self._define, undo=self._undefine),
            Step("take-out", self._take_out, cancellable=False, weight=0.1),
        ]

    async def _reserve(self, run: Run[RecoverArguments]) -> None:
        arguments = run.arguments
        trashed = self.core.trash.get(arguments.entry)
        known = self.core.inventory.by_uid(arguments.uid)
        name = str(arguments.guest_name)
        if known is not None and (known.guest.name != name or known.guest.status.origin is not Origin.MANAGED):
            raise AlreadyExistsError(GUEST_EXISTS, f"{known.guest.name} has the UUID {arguments.uid}", resource=name)
        self.core.inventory.reserve(as_stopped(trashed.entry.guest, name))
        self.core.inventory.own_volumes(arguments.uid, trashed.owned)

    async def _release(self, run: Run[RecoverArguments]) -> None:
        view = self.core.inventory.by_uid(run.arguments.uid)
        if view is not None and view.guest.name == str(run.arguments.guest_name):
            self.core.inventory.forget(run.arguments.uid)

    async def _define(self, run: Run[RecoverArguments]) -> None:
        arguments, link = run.arguments, self.link(run)
        facet = link.facets.definitions
        if facet is None:
            raise unsupported(TRASH, "the host cannot give back what it was told to forget")
        trashed = self.core.trash.get(arguments.entry)
        native_name = arguments.guest if arguments.renamed else ""
        await link.call(facet.write_definition(arguments.uid, native_name, trashed.definition, run))
        variables = await self.core.trash.variables(arguments.entry)
        if variables is not None:
            await link.call(facet.write_variables(arguments.uid, variables, run))
        starts = link.facets.autostart
        if starts is not None and trashed.entry.guest.spec.autostart:
            await link.call(starts.set_autostart(arguments.uid, run, enabled=True))
        await self.refresh(run)

    async def _undefine(self, run: Run[RecoverArguments]) -> None:
        error = run.operation.error
        if error is not None and error.kind == AlreadyExistsError.kind:
            return  # somebody else's guest has the name; ours was never defined
        link = self.link(run)
        await link.call(link.session.undefine_guest(run.arguments.uid, run))

    async def _take_out(self, run: Run[RecoverArguments]) -> None:
        for sentence in self._lost(run):
            run.note(f"lost: {sentence}")
        await self.core.trash.remove(run.arguments.entry)

    def _lost(self, run: Run[RecoverArguments]) -> tuple[str, ...]:
        trashed = self.core.trash.find(run.arguments.entry)
        return () if trashed is None else trashed.entry.lost


def as_stopped(guest: Guest, name: str) -> Guest:
    """A guest of the trash as it comes back: stopped, and not started before somebody asks for it."""
    strategy = guest.spec.run_strategy
    if strategy is RunStrategy.ALWAYS:
        strategy = RunStrategy.HALTED  # as StopGuest would have left it
    status = GuestStatus(
        state=GuestState.STOPPED,
        state_reason="CREATING",
        presence=Presence.ABSENT,
        origin=Origin.MANAGED,
        disks=guest.status.disks,
        accelerator=guest.status.accelerator,
        accelerator_reason=guest.status.accelerator_reason,
    )
    return replace(guest, name=name, spec=replace(guest.spec, run_strategy=strategy), status=status)


@dataclass(frozen=True, slots=True)
class PurgeArguments:
    """The ids of the entries."""

    entries: tuple[str, ...]


class PurgeTrash(Verb[PurgeArguments]):
    """Delete the disks, then the entry."""

    name = "purge"

    def __init__(self, core: Core) -> None:
        self._core = core

    @property
    def arguments(self) -> type[PurgeArguments]:
        """Journalled."""
        return PurgeArguments

    def steps(self, arguments: PurgeArguments) -> Sequence[Step[PurgeArguments]]:
        """Between two entries it can be called off: those that are gone are gone."""
        return [Step("purge", self._purge)]

    async def _purge(self, run: Run[PurgeArguments]) -> None:
        for number, entry in enumerate(run.arguments.entries):
            run.checkpoint()
            trashed = self._core.trash.find(entry)
            if trashed is not None:
                await self._dispose(run, trashed)
                await self._core.trash.remove(entry)
            run.progress((number + 1) / len(run.arguments.entries))

    async def _dispose(self, run: Run[PurgeArguments], trashed: Trashed) -> None:
        if not trashed.owned:
            return
        try:
            self._core.link(trashed.host)
        except NotFoundError:
            run.warn(f"host {trashed.host} is not known any more: the volumes {', '.join(trashed.owned)} stay there")
            return
        await dispose(self._core, run, trashed.host, trashed.owned, frozenset({trashed.entry.name}))

    async def finish(self, run: Run[PurgeArguments]) -> Outcome:
        """How many there were."""
        return Outcome(data={"purged": ",".join(PREFIX + entry for entry in run.arguments.entries)})
