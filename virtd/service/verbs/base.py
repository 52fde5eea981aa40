"""What the verbs of guests share."""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass
from typing import Any, Final, TypeVar
from uuid import UUID

from virtd.inventory import HostLink
from virtd.model.guest import GuestState
from virtd.model.names import GuestName
from virtd.operations import Outcome, Run, Verb
from virtd.service.core import Core

A = TypeVar("A")

LATE_S: Final = 60.0
"""A call may take so much longer than its operation: it is the operation's limit that is to come first."""
UNLIMITED_S: Final = 3600.0
"""For long calls while an operation, which then has no limit, is undone."""


@dataclass(frozen=True, slots=True)
class GuestArguments:
    """Arguments of every verb that needs nothing but the guest."""

    host: str
    guest: str
    uid: UUID

    @property
    def guest_name(self) -> GuestName:
        """The guest's name."""
        return GuestName(self.host, self.guest)


G = TypeVar("G", bound=GuestArguments)


class GuestVerb(Verb[G]):
    """A verb that works on one guest and answers with it."""

    def __init__(self, core: Core) -> None:
        self.core = core

    def link(self, run: Run[G]) -> HostLink:
        """The link of the guest's host.

        :raises NotFoundError: HOST_NOT_FOUND, the host was removed meanwhile.
        """
        return self.core.link(run.arguments.host)

    async def refresh(self, run: Run[G]) -> None:
        """Read the guest anew, so that the operation's end and the inventory agree."""
        await self.link(run).refresh(run.arguments.uid)

    def state(self, run: Run[G]) -> GuestState:
        """The guest's state as the inventory has it."""
        view = self.core.inventory.by_uid(run.arguments.uid)
        return view.guest.status.state if view is not None else GuestState.UNKNOWN

    async def finish(self, run: Run[G]) -> Outcome:
        """The guest as it is now; from memory, so that it cannot fail."""
        view = self.core.inventory.by_uid(run.arguments.uid)
        if view is None:
            return Outcome()
        return Outcome(view.guest.name, view.guest)

    async def wait_state(self, run: Run[G], wanted: frozenset[GuestState], timeout_s: float) -> bool:
        """Wait until the guest is in one of the states; whether it is, in time.

        Events bring the news; the guest is also asked every two seconds, in case one was lost.
        """
        deadline = time.monotonic() + timeout_s
        next_read = time.monotonic() + 2.0
        while self.state(run) not in wanted:
            run.checkpoint()
            now = time.monotonic()
            if now >= deadline:
                return False
            if now >= next_read:
                await self.refresh(run)
                next_read = time.monotonic() + 2.0
                continue
            head = self.core.events.head
            await self.core.events.wait_news(head, min(0.5, deadline - now))
            await asyncio.sleep(0)
        return True


def patience(run: Run[Any]) -> float:
    """The time limit of a call that takes as long as it takes (a start, a copy, a snapshot), in seconds."""
    left = run.deadline_s
    return UNLIMITED_S if left is None else left + LATE_S
