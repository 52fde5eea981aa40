"""Reboot and reset, by the host or, where it cannot, by virtd: the guest goes down and is started.

How it is done is decided when it is asked for, and journalled.  A native request leaves no trace by which one could
tell after a crash whether it took effect, so it is never repeated.  The emulations leave one: the guest's state.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

from virtd.backend import capabilities as cap
from virtd.backend.api import RebootFacet
from virtd.errors import (
    INVALID_STATE,
    REBOOT_IGNORED,
    DeadlineExceededError,
    FailedPreconditionError,
    UnsupportedError,
    unsupported,
)
from virtd.model.guest import GuestState
from virtd.model.host import CapabilityLevel
from virtd.operations import Probe, Run, Step
from virtd.service.core import Core, invalid_state
from virtd.service.verbs.base import GuestArguments, GuestVerb, patience
from virtd.service.verbs.lifecycle import DOWN, ShutdownArguments, press_until_down

ASK_AGAIN_S: Final = 15.0
"""When to ask for a reboot again: long enough that one which is under way is not asked for twice."""
RESTART_S: Final = 120.0
"""How long a guest may be down in a reboot, on hosts where that starts it anew: Xen gives each of its disks and
interfaces 40 s to come up."""


async def lost(_run: object) -> Probe:
    """For steps that leave no trace: after a crash nobody can tell whether they took effect."""
    return Probe.LOST


def check_states(verb: GuestVerb[Any], run: Run[Any], what: str, *states: GuestState) -> None:
    """Refuse a guest that is in another state when its turn comes.

    :raises FailedPreconditionError: INVALID_STATE.
    """
    view = verb.core.inventory.by_uid(run.arguments.uid)
    if view is not None and view.guest.status.state not in states:
        raise invalid_state(view.guest, what)


async def start_again(verb: GuestVerb[Any], run: Run[Any]) -> None:
    """Start the guest that has gone down; one that runs does so already."""
    link = verb.link(run)
    await link.call(link.session.start_guest(run.arguments.uid, run), timeout_s=patience(run))
    await verb.refresh(run)


@dataclass(frozen=True, slots=True)
class RebootArguments(ShutdownArguments):
    """Arguments of ``reboot``; ``emulated``: shut down, then start."""

    emulated: bool = False


class RebootGuest(GuestVerb[RebootArguments]):
    """Ask the guest to reboot, or shut it down and start it where the host cannot."""

    name = "reboot"

    @property
    def arguments(self) -> type[RebootArguments]:
        """Journalled."""
        return RebootArguments

    def timeout_s(self, arguments: RebootArguments) -> float:
        """As shutdown and start together."""
        return arguments.wait_s + self.core.options.start_timeout_s

    def steps(self, arguments: RebootArguments) -> Sequence[Step[RebootArguments]]:
        """The emulation can be gone on with after a crash; a native request cannot be repeated safely.

        A guest that has gone down for it comes up again: from there on it cannot be called off.
        """
        if arguments.emulated:
            return [
                Step("check", self._check, weight=0.1),
                Step("shutdown", self._shutdown),
                Step("start", self._start, cancellable=False),
            ]
        return [Step("reboot", self._reboot, probe=lost)]

    async def _reboot(self, run: Run[RebootArguments]) -> None:
        link = self.link(run)
        facet = link.facets.reboot
        if facet is None:
            raise unsupported(cap.REBOOT, "the host cannot ask a guest to reboot")
        reboots, uid = self.core.inventory.reboots, run.arguments.uid
        before = reboots.get(uid, 0)
        await link.call(facet.request_reboot(uid, run))
        try:
            events = cap.require(link.capabilities, cap.REBOOT_EVENTS)
        except UnsupportedError:
            run.warn("the host does not report reboots: the guest was asked, and what it does is not known")
            return
        # Where a reboot is a start anew of its own (Xen), the guest is down in between.  There a request is kept until
        # the guest reads it, so none is lost; a second one could reach the guest that was just started.
        anew = events.level is CapabilityLevel.EMULATED
        pause_s = RESTART_S if anew else 0.0
        down_since: float | None = None
        started = time.monotonic()
        asked = 1
        while reboots.get(uid, 0) == before:
            run.checkpoint()
            passed = time.monotonic() - started
            if passed >= run.arguments.wait_s:
                raise DeadlineExceededError(
                    REBOOT_IGNORED,
                    f"{run.arguments.guest} did not reboot within {run.arguments.wait_s:g} s ({asked} requests); "
                    "it runs on",
                    resource=str(run.arguments.guest_name),
                    metadata={"requests": str(asked)},
                )
            if self.state(run) in DOWN:
                await self.refresh(run)
            if self.state(run) not in DOWN:
                down_since = None
            else:
                down_since = down_since or time.monotonic()
                if time.monotonic() - down_since >= pause_s:
                    raise FailedPreconditionError(
                        INVALID_STATE,
                        f"{run.arguments.guest} went down instead of rebooting",
                        resource=str(run.arguments.guest_name),
                        allowed_actions=("start",),
                    )
            if passed >= asked * ASK_AGAIN_S and down_since is None and not anew:
                asked += 1  # a request can be lost while a guest boots, as a press can
                await self._ask_again(run, facet)
            run.progress(min(0.99, passed / run.arguments.wait_s))
            await self.core.events.wait_news(self.core.events.head, 0.2)
        await self.refresh(run)

    async def _ask_again(self, run: Run[RebootArguments], facet: RebootFacet) -> None:
        try:
            await self.link(run).call(facet.request_reboot(run.arguments.uid, run))
        except FailedPreconditionError:
            await self.refresh(run)  # it may just have gone down, to start anew
            if self.state(run) not in DOWN:
                raise

    async def _check(self, run: Run[RebootArguments]) -> None:
        await self.refresh(run)
        check_states(self, run, "reboot", GuestState.RUNNING)
        run.note("virtd shuts the guest down and starts it")

    async def _shutdown(self, run: Run[RebootArguments]) -> None:
        await press_until_down(self, run)  # type: ignore[arg-type]  # RebootArguments is a ShutdownArguments
        run.commit()  # nobody has asked for a guest that is down

    async def _start(self, run: Run[RebootArguments]) -> None:
        await start_again(self, run)


@dataclass(frozen=True, slots=True)
class ResetArguments(GuestArguments):
    """Arguments of ``reset``; ``emulated``: stop, then start."""

    emulated: bool = False


class ResetGuest(GuestVerb[ResetArguments]):
    """The reset button, or its effect: the power is cut, and the guest started.

    The button is never pressed twice: a second time would hit a guest that has begun to boot.
    """

    name = "reset"

    @property
    def arguments(self) -> type[ResetArguments]:
        """Journalled."""
        return ResetArguments

    def timeout_s(self, arguments: ResetArguments) -> float:
        """A start may be part of it."""
        return self.core.options.start_timeout_s

    def steps(self, arguments: ResetArguments) -> Sequence[Step[ResetArguments]]:
        """As for RebootGuest."""
        if arguments.emulated:
            return [
                Step("check", self._check, weight=0.1),
                Step("stop", self._stop, cancellable=False),
                Step("start", self._start, cancellable=False),
            ]
        return [Step("reset", self._reset, probe=lost, cancellable=False)]

    async def _reset(self, run: Run[ResetArguments]) -> None:
        link = self.link(run)
        facet = link.facets.reset
        if facet is None:
            raise unsupported(cap.RESET, "the host cannot reset a guest")
        await link.call(facet.reset_guest(run.arguments.uid, run))
        await self.refresh(run)

    async def _check(self, run: Run[ResetArguments]) -> None:
        await self.refresh(run)
        check_states(self, run, "reset", GuestState.RUNNING, GuestState.PAUSED)
        run.note("virtd cuts the guest's power and starts it")

    async def _stop(self, run: Run[ResetArguments]) -> None:
        link = self.link(run)
        await link.call(link.session.stop_guest(run.arguments.uid, run), timeout_s=patience(run))
        await self.refresh(run)

    async def _start(self, run: Run[ResetArguments]) -> None:
        await start_again(self, run)


def reboot_verbs(core: Core) -> tuple[RebootGuest, ResetGuest]:
    """One of each, for registration."""
    return RebootGuest(core), ResetGuest(core)
