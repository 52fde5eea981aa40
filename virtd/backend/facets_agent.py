"""The facets that reach into a guest: its agent, and its display.

The agent's abilities are one facet with several capabilities (:mod:`virtd.backend.capabilities`): a
host whose agent lacks one refuses it with that capability's reason.  All methods tell five situations
apart by their reason: AGENT_NOT_CONFIGURED (no channel), INVALID_STATE (the guest does not run),
AGENT_NOT_READY (nobody is connected), AGENT_STUCK (connected, and silent) and AGENT_DISABLED (the
agent's own configuration forbids the command).  None of them ever delays a call for another guest.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Protocol
from uuid import UUID

from virtd.model.console import AgentCommand, AgentFileRequest, AgentOsInfo, AgentResult

if TYPE_CHECKING:
    from virtd.backend.api import CallContext, ConsoleStream
    from virtd.model.console import AgentExit, AgentOutput


class AgentProcess(Protocol):
    """A command that runs in a guest.  Used by one task for reading and one for writing."""

    @property
    def pid(self) -> int | None:
        """Its process id in the guest, where the agent tells it."""

    @property
    def live(self) -> bool:
        """Whether output comes while the command runs.  False: all of it comes at its end."""

    async def read(self) -> AgentOutput | AgentExit:
        """What it says next, as it comes; its exit is the last, and comes once.

        :raises DeadlineExceededError: DEADLINE_EXCEEDED, it ran longer than ``command.timeout_s``; the
            metadatum ``killed`` says whether it was ended in the guest.
        :raises ResourceExhaustedError: LIMIT_EXCEEDED, it said more than is kept for it; as above.
        """

    async def write(self, data: bytes) -> None:
        """Append to its standard input.  Waits until the command, or the pipe to it, has taken all.

        :raises FailedPreconditionError: INVALID_STATE, the command has ended or its input is closed.
        """

    async def close_input(self) -> None:
        """End its standard input.  Idempotent."""

    async def close(self) -> None:
        """End it if it still runs, and remove what was left in the guest for it.  Idempotent."""


class AgentFile(Protocol):
    """An open file of a guest."""

    @property
    def size_bytes(self) -> int | None:
        """Its size when it was opened for reading; None where it is not known (a device, a pipe)."""

    @property
    def atomic(self) -> bool:
        """Whether a write becomes visible as a whole at :meth:`commit`, and not at all before."""

    async def read(self) -> bytes:
        """The next bytes; ``b""`` at the end."""

    async def write(self, data: bytes) -> None:
        """Write all of ``data`` behind what was written before."""

    async def commit(self) -> None:
        """The file is complete: give it its mode, and its name if it was written beside it.  Once."""

    async def close(self) -> None:
        """Release it.  Idempotent.  A write that was not committed leaves an ``atomic`` target as it was."""


class AgentFacet(Protocol):
    """The guest agent."""

    async def ping_agent(self, uuid: UUID) -> None:
        """Return if the agent answers now, within about two seconds.

        :raises FailedPreconditionError: AGENT_NOT_CONFIGURED or INVALID_STATE.
        :raises UnavailableError: AGENT_NOT_READY or AGENT_STUCK.
        """

    async def run_command(self, uuid: UUID, command: AgentCommand, context: CallContext) -> AgentResult:
        """Run a command and collect its output.  Not idempotent.

        :raises DeadlineExceededError: it ran longer than ``command.timeout_s``; the metadatum ``killed``
            says whether it was ended in the guest.
        :raises InvalidArgumentError: FIELD_INVALID, no such program in the guest.
        """

    async def start_command(
        self, uuid: UUID, command: AgentCommand, context: CallContext, *, stdin: bool = False
    ) -> AgentProcess:
        """Start a command whose output is read while it runs.  Not idempotent.  GUEST_AGENT_STREAM.

        :param stdin: its standard input stays open for :meth:`AgentProcess.write`; otherwise it is
            ``command.input_data`` and then ends.
        :raises InvalidArgumentError: FIELD_INVALID, no such program in the guest.
        :raises UnsupportedError: ``stdin`` is not possible in this guest; the reason says why.
        """

    async def open_file(self, uuid: UUID, request: AgentFileRequest, context: CallContext) -> AgentFile:
        """Open a file of the guest for reading, or begin to write one.

        :raises NotFoundError: AGENT_FILE_NOT_FOUND.
        :raises FailedPreconditionError: AGENT_FILE_REFUSED, the guest's system does not let the agent.
        """

    async def freeze(self, uuid: UUID, context: CallContext, mountpoints: Sequence[str] = ()) -> int:
        """Write all file systems out and stop writes to them until :meth:`thaw`; how many are frozen.

        Idempotent: file systems that are frozen stay so.  All or nothing: what it raises leaves nothing
        frozen.  **The caller must make sure that a thaw follows, whatever happens**: journal the intent
        first (an operation's step with an undo, or :mod:`virtd.service.freezes`).

        :param mountpoints: only these (paths in the guest); empty: all.
        """

    async def thaw(self, uuid: UUID) -> int:
        """Undo :meth:`freeze`; how many were frozen.  Idempotent: a guest that is not frozen gives 0."""

    async def frozen(self, uuid: UUID) -> bool:
        """Whether the agent holds file systems frozen, whoever asked for it."""

    async def os_info(self, uuid: UUID) -> AgentOsInfo:
        """What the guest's system says of itself.  What the agent does not tell is empty or None."""


class DisplayFacet(Protocol):
    """The graphical console itself, for a viewer."""

    async def open_display(self, uuid: UUID) -> ConsoleStream:
        """A new connection to the first display, as bytes of its protocol (VNC: RFB), authenticated.

        :raises FailedPreconditionError: INVALID_STATE, the guest does not run.
        :raises UnsupportedError: the guest has no such display, or it cannot be reached from here.
        """
