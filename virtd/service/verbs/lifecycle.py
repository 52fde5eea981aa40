"""Start, shutdown and stop.

They are what a person says about whether a guest runs, so they also turn its run strategy, as KubeVirt's
do: who starts a guest that is HALTED wants it ALWAYS, who stops one that is ALWAYS wants it HALTED.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Final

from virtd.backend import capabilities as cap
from virtd.errors import (
    SHUTDOWN_IGNORED,
    DeadlineExceededError,
    FailedPreconditionError,
    unsupported,
)
from virtd.model.guest import GuestState, RunStrategy
from virtd.operations import Run, Step
from virtd.service.core import Core
from virtd.service.verbs.adopt import AdoptGuest, ReleaseGuest
from virtd.service.verbs.base import G, GuestArguments, GuestVerb, patience
from virtd.service.verbs.simple import simple_verbs

DOWN: Final = frozenset({GuestState.STOPPED, GuestState.CRASHED, GuestState.SUSPENDED})
PRESS_AGAIN_S: Final = (3.0, 5.0, 10.0)
"""When to press the power button again: a press can be lost while a guest boots."""
STRATEGY_CALLER: Final = "strategy"
"""Who the caller of operations is that a run strategy begins."""


class StartGuest(GuestVerb[GuestArguments]):
    """Start, or restore from the saved state."""

    name = "start"

    @property
    def arguments(self) -> type[GuestArguments]:
        """Journalled."""
        return GuestArguments

    def timeout_s(self, arguments: GuestArguments) -> float:
        """As configured."""
        return self.core.options.start_timeout_s

    def steps(self, arguments: GuestArguments) -> Sequence[Step[GuestArguments]]:
        """A start that is called off in its middle is taken back, to what the first step has noted."""
        return [Step("check", self._check, weight=0.1), Step("start", self._do, undo=self._undo)]

    async def _check(self, run: Run[GuestArguments]) -> None:
        await self.refresh(run)
        run.scratch["was"] = self.state(run).value

    async def _do(self, run: Run[GuestArguments]) -> None:
        link = self.link(run)
        await link.call(link.session.start_guest(run.arguments.uid, run), timeout_s=patience(run))
        await self.refresh(run)
        await turn_strategy(self, run, RunStrategy.HALTED, RunStrategy.ALWAYS)

    async def _undo(self, run: Run[GuestArguments]) -> None:
        await undo_start(self, run)


async def undo_start(verb: GuestVerb[GuestArguments], run: Run[GuestArguments]) -> None:
    """Stop the guest again, if it was virtd that started it and the start was called off.

    A start that *failed* left the guest down; what runs now was started by somebody else.  A guest
    that was suspended stays up: stopping it would lose what was saved.
    """
    error = run.operation.error
    called_off = error is not None and error.kind in ("Cancelled", "DeadlineExceeded")
    if called_off and run.scratch.get("was") in (GuestState.STOPPED.value, GuestState.CRASHED.value):
        link = verb.link(run)
        await link.call(link.session.stop_guest(run.arguments.uid, run))
    await verb.refresh(run)


async def turn_strategy(verb: GuestVerb[G], run: Run[G], old: RunStrategy, new: RunStrategy) -> None:
    """Change a guest's run strategy to what its caller has just made of it.

    Only at the verb's good end: while it works, no run strategy acts on the guest.
    """
    view = verb.core.inventory.by_uid(run.arguments.uid)
    if view is None or view.guest.spec.run_strategy is not old or run.operation.caller == STRATEGY_CALLER:
        return
    await verb.core.inventory.change(
        view.guest.uid, lambda guest: replace(guest, spec=replace(guest.spec, run_strategy=new))
    )
    run.note(f"the run strategy was {old.value} and is {new.value} now")


class StopGuest(GuestVerb[GuestArguments]):
    """Cut the power."""

    name = "stop"
    preempts = frozenset({"shutdown", "reboot", "start", "backup-create"})

    @property
    def arguments(self) -> type[GuestArguments]:
        """Journalled."""
        return GuestArguments

    def steps(self, arguments: GuestArguments) -> Sequence[Step[GuestArguments]]:
        """One step."""
        return [Step("stop", self._do, cancellable=False)]

    async def _do(self, run: Run[GuestArguments]) -> None:
        link = self.link(run)
        await link.call(link.session.stop_guest(run.arguments.uid, run), timeout_s=patience(run))
        await self.refresh(run)
        await turn_strategy(self, run, RunStrategy.ALWAYS, RunStrategy.HALTED)


@dataclass(frozen=True, slots=True)
class ShutdownArguments(GuestArguments):
    """Arguments of ``shutdown`` and of the emulated ``reboot``."""

    wait_s: float = 120.0
    force: bool = False


class ShutdownGuest(GuestVerb[ShutdownArguments]):
    """Ask until obeyed."""

    name = "shutdown"

    @property
    def arguments(self) -> type[ShutdownArguments]:
        """Journalled."""
        return ShutdownArguments

    def timeout_s(self, arguments: ShutdownArguments) -> float:
        """The waiting time and what the forced stop may need."""
        return arguments.wait_s + 60.0

    def steps(self, arguments: ShutdownArguments) -> Sequence[Step[ShutdownArguments]]:
        """One step: cancelling it leaves the guest to decide, as a press cannot be taken back."""
        return [Step("shutdown", self._do)]

    async def _do(self, run: Run[ShutdownArguments]) -> None:
        await press_until_down(self, run)
        await turn_strategy(self, run, RunStrategy.ALWAYS, RunStrategy.HALTED)


async def press_until_down(verb: GuestVerb[ShutdownArguments], run: Run[ShutdownArguments]) -> None:
    """Press the power button, wait, press again; at the end of the time force, or give up.

    :raises DeadlineExceededError: SHUTDOWN_IGNORED.
    """
    arguments = run.arguments
    link = verb.link(run)
    await verb.refresh(run)
    started = time.monotonic()
    presses = 0
    while verb.state(run) not in DOWN:
        left = arguments.wait_s - (time.monotonic() - started)
        if left <= 0:
            break
        facet = link.facets.shutdown
        if facet is None:
            raise unsupported(cap.SHUTDOWN, "the host cannot ask a guest to shut down")
        try:
            await link.call(facet.request_shutdown(arguments.uid, run))
        except FailedPreconditionError:
            await verb.refresh(run)  # it may just have gone down
            if verb.state(run) not in DOWN:
                raise
            break
        presses += 1
        pause = PRESS_AGAIN_S[min(presses, len(PRESS_AGAIN_S)) - 1]
        run.progress(min(0.99, (time.monotonic() - started) / arguments.wait_s))
        await verb.wait_state(run, DOWN, min(pause, left))
    if verb.state(run) not in DOWN:
        if not arguments.force:
            raise DeadlineExceededError(
                SHUTDOWN_IGNORED,
                f"{arguments.guest} did not shut down within {arguments.wait_s:g} s ({presses} requests); it runs on",
                resource=str(arguments.guest_name),
                metadata={"presses": str(presses)},
            )
        run.warn(f"the guest did not shut down within {arguments.wait_s:g} s and was stopped by force")
        await link.call(link.session.stop_guest(arguments.uid, run))
    elif presses > 1:
        run.note(f"the power button was pressed {presses} times")
    await verb.refresh(run)


def lifecycle_verbs(core: Core) -> list[GuestVerb[GuestArguments] | GuestVerb[ShutdownArguments]]:
    """One of each, for registration."""
    return [
        StartGuest(core),
        StopGuest(core),
        ShutdownGuest(core),
        AdoptGuest(core),
        ReleaseGuest(core),
        *simple_verbs(core),
    ]
