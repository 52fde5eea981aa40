"""What an operation is made of: a verb with arguments, cut into steps that can be done, probed, undone.

The rules that make recovery truthful:

* a step's ``do`` and ``undo`` are **idempotent**: they may be called again after a crash in their middle;
* a step that is *not* (a reboot, a command) has a ``probe`` that says LOST, and the operation then ends
  with OPERATION_INTERRUPTED instead of guessing;
* everything that is chosen (UUIDs, names, paths) is in the arguments, journalled before the first step.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from enum import Enum, auto
from typing import ClassVar, Generic, Protocol, TypeVar

from virtd.model.backup import Backup, BackupVerification
from virtd.model.guest import Guest
from virtd.model.network import Network
from virtd.model.operation import Operation
from virtd.model.snapshot import Snapshot
from virtd.model.storage import Image, Pool, Volume

A = TypeVar("A")
A_co = TypeVar("A_co", covariant=True)

Response = Guest | Snapshot | Pool | Volume | Image | Network | Backup | BackupVerification


class Probe(Enum):
    """What a probe finds out about a step that a crash may have interrupted."""

    DONE = auto()
    """It was done: go on with the next."""
    TODO = auto()
    """It was not done, or only in part: do it (again)."""
    LOST = auto()
    """It cannot be told, and doing it again is not safe."""


class Run(Protocol[A_co]):
    """One operation at work, as its steps see it.  Is a :class:`virtd.backend.api.CallContext`."""

    @property
    def arguments(self) -> A_co:
        """The journalled arguments."""

    @property
    def operation(self) -> Operation:
        """The record as it is now."""

    @property
    def scratch(self) -> dict[str, str]:
        """Small facts that a step leaves for later ones; journalled before the next step begins."""

    @property
    def recovered(self) -> bool:
        """Whether a crash lies between the operation's beginning and now."""

    @property
    def repeated(self) -> bool:
        """Whether this step may have been begun before, by a daemon that died or in a call that got no answer.

        What is there under a name that was chosen for this operation is then its own, and may be half of it.
        """

    @property
    def operation_id(self) -> str:
        """The operation's id."""

    @property
    def deadline_s(self) -> float | None:
        """Seconds left for the whole operation; None while it is undone."""

    def progress(
        self, fraction: float | None = None, *, bytes_done: int | None = None, bytes_total: int | None = None
    ) -> None:
        """Report how far this step is."""

    def note(self, message: str) -> None:
        """Add to the reason trail."""

    def warn(self, message: str) -> None:
        """Add a warning."""

    def checkpoint(self) -> None:
        """Raise CancelledError or DeadlineExceededError if it is time to give up."""

    async def wait_cancelled(self) -> None:
        """Return when a cancel is requested."""

    def commit(self) -> None:
        """The point of no return: from here to the end no cancel, and no end of the time, is obeyed."""


@dataclass(frozen=True, slots=True)
class Step(Generic[A]):
    """One step.

    :param name: the stage that clients see.
    :param do: idempotent.  Raises contract errors.
    :param probe: asked after a crash in this step, instead of doing it again blindly; None means TODO.
    :param undo: takes back what ``do`` did, also when it did it only in part; idempotent.
    :param weight: this step's share of the progress, relative to the others.
    :param cancellable: False: a cancel, and the end of the time, take effect after it, and where the
        next step is not cancellable either, after that one: there is no way back in between.
    :param decides: it is never cut off: it alone finds out whether a cancel still can be obeyed, also when
        it is taken up after a crash, and there is no way back from the next step.  For work that others do,
        who may be beyond the point of no return without anybody here knowing.
    """

    name: str
    do: Callable[[Run[A]], Awaitable[None]]
    probe: Callable[[Run[A]], Awaitable[Probe]] | None = None
    undo: Callable[[Run[A]], Awaitable[None]] | None = None
    weight: float = 1.0
    cancellable: bool = True
    decides: bool = False


@dataclass(frozen=True, slots=True)
class Outcome:
    """The result of an operation: the resource as it was at its end, and small data."""

    result: str = ""
    response: Response | None = None
    data: dict[str, str] = field(default_factory=dict)


class Verb(ABC, Generic[A]):
    """One kind of operation.  Stateless; its name is in the journal and never changes."""

    name: ClassVar[str]
    preempts: ClassVar[frozenset[str]] = frozenset()
    """Verbs that are cancelled for this one when they run or wait in the same queue."""

    @property
    @abstractmethod
    def arguments(self) -> type[A]:
        """The frozen dataclass of the arguments; it must stay readable for old journals."""

    @abstractmethod
    def steps(self, arguments: A) -> Sequence[Step[A]]:
        """The steps.  The same arguments always give the same steps: the journal keeps an index."""

    @abstractmethod
    async def finish(self, run: Run[A]) -> Outcome:
        """What to answer; called after the last step.  Reads only.

        What it raises becomes a warning: the work is done, and an answer that cannot be read does not
        change that.
        """

    def timeout_s(self, arguments: A) -> float | None:
        """How long the operation may take in all, in seconds; None: what is configured for all verbs.

        A time that is configured for this very verb goes before it.
        """
        return None
