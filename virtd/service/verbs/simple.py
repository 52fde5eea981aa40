"""Verbs that are one call of a facet: pause, resume, suspend, discard the saved state."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from virtd.backend import capabilities as cap
from virtd.errors import unsupported
from virtd.operations import Run, Step
from virtd.service.core import Core
from virtd.service.verbs.base import GuestArguments, GuestVerb, patience


class FacetVerb(GuestVerb[GuestArguments]):
    """One call of a facet, and a look at the guest afterwards.

    Subclasses say which.  ``stage`` is the step's name in journals, and never changes either.
    """

    stage: ClassVar[str]
    capability: ClassVar[str]
    facet: ClassVar[str]
    """The field of :class:`virtd.backend.api.Facets`."""
    method: ClassVar[str]
    """Takes ``(uuid, context)``."""
    cancellable: ClassVar[bool] = False
    long: ClassVar[bool] = False
    """Whether it takes as long as it takes, rather than as long as a call may."""

    @property
    def arguments(self) -> type[GuestArguments]:
        """Journalled."""
        return GuestArguments

    def steps(self, arguments: GuestArguments) -> Sequence[Step[GuestArguments]]:
        """One step."""
        return [Step(self.stage, self._do, cancellable=self.cancellable)]

    async def _do(self, run: Run[GuestArguments]) -> None:
        link = self.link(run)
        facet = getattr(link.facets, self.facet)
        if facet is None:
            raise unsupported(self.capability, f"the host cannot {self.name} a guest")
        call = getattr(facet, self.method)(run.arguments.uid, run)
        await link.call(call, timeout_s=patience(run) if self.long else None)
        await self.refresh(run)


class PauseGuest(FacetVerb):
    """Stop the virtual CPUs."""

    name, stage = "pause", "pause"
    capability, facet, method = cap.PAUSE, "pause", "pause_guest"


class ResumeGuest(FacetVerb):
    """Continue the virtual CPUs."""

    name, stage = "resume", "resume"
    capability, facet, method = cap.PAUSE, "pause", "resume_guest"


class SuspendGuest(FacetVerb):
    """Save to disk and stop.  The backend undoes a save that is called off: the guest runs on."""

    name, stage = "suspend", "save"
    capability, facet, method = cap.SUSPEND, "suspend", "suspend_guest"
    cancellable = long = True


class DiscardSavedState(FacetVerb):
    """Throw saved memory away."""

    name, stage = "discard", "discard"
    capability, facet, method = cap.SUSPEND, "suspend", "discard_saved_state"


def simple_verbs(core: Core) -> list[FacetVerb]:
    """One of each, for registration."""
    return [PauseGuest(core), ResumeGuest(core), SuspendGuest(core), DiscardSavedState(core)]
