"""The agent and the display of a fake guest."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Coroutine, Sequence
from typing import Any, Final, TypeVar
from uuid import UUID

from virtd.backend import capabilities as caps
from virtd.backend.api import CallContext, ConsoleStream
from virtd.errors import (
    AGENT_FILE_NOT_FOUND,
    AGENT_FILE_REFUSED,
    AGENT_NOT_CONFIGURED,
    DEADLINE_EXCEEDED,
    INVALID_STATE,
    DeadlineExceededError,
    FailedPreconditionError,
    NotFoundError,
    unsupported,
)
from virtd.model.console import (
    AgentChannel,
    AgentCommand,
    AgentExit,
    AgentFileRequest,
    AgentOsInfo,
    AgentOutput,
    AgentResult,
    AgentUser,
)
from virtd.model.guest import GuestState
from virtd.testing.fake import inside, lowering
from virtd.testing.fake.faults import NativeFailure
from virtd.testing.fake.link import Facet, spi
from virtd.testing.fake.rfb import Display
from virtd.testing.fake.state import FakeGuest

_CHUNK: Final = 64 * 1024
_PID: Final = 4242
T = TypeVar("T")


class AgentReach(Facet):
    """See :mod:`virtd.backend.facets_agent`."""

    async def _reach(
        self, uuid: UUID, capability: str, context: CallContext | None = None, *, frozen: bool = False
    ) -> FakeGuest:
        """The guest, if its agent does this now.

        :param frozen: it does so also while the file systems are frozen.
        """
        self._link.refuse_without(capability)
        guest = await self._in_states(uuid, "reach the agent of", GuestState.RUNNING)
        if not lowering.parse(guest.active).guest_agent:
            raise FailedPreconditionError(AGENT_NOT_CONFIGURED, f"guest {guest.name} has no agent channel")
        guest = await self._native.agent_call(uuid, context)
        if guest.frozen and not frozen:
            raise NativeFailure("agent_call", "frozen", f"the file systems of {guest.name} are frozen")
        if guest.agent == "disabled" and capability != caps.LIFECYCLE:
            raise NativeFailure("agent_call", "agent-disabled", f"the agent of {guest.name} forbids this command")
        return guest

    @spi
    async def ping_agent(self, uuid: UUID) -> None:
        """See the SPI."""
        await self._reach(uuid, caps.LIFECYCLE, frozen=True)

    @spi
    async def run_command(self, uuid: UUID, command: AgentCommand, context: CallContext) -> AgentResult:
        """See the SPI."""
        guest = await self._reach(uuid, caps.AGENT_EXEC, context)
        wanted_s = inside.sleep_seconds(command)
        await self._until(self._world.clock.sleep(min(wanted_s, command.timeout_s)), context)
        if wanted_s > command.timeout_s:
            raise _too_long(command)
        result = inside.run(command, guest.files)
        self._world.save()
        return result

    @spi
    async def start_command(
        self, uuid: UUID, command: AgentCommand, context: CallContext, *, stdin: bool = False
    ) -> FakeProcess:
        """See the SPI."""
        guest = await self._reach(uuid, caps.AGENT_STREAM, context)
        inside.program(command)
        return FakeProcess(self, guest, command, context, stdin=stdin)

    @spi
    async def open_file(self, uuid: UUID, request: AgentFileRequest, context: CallContext) -> FakeFile:
        """See the SPI."""
        guest = await self._reach(uuid, caps.AGENT_FILES, context)
        content = guest.files.read(request.path)
        if request.path.endswith("/") or any(path.startswith(request.path + "/") for path in guest.files.paths()):
            raise FailedPreconditionError(AGENT_FILE_REFUSED, f"{request.path}: it is a directory")
        if content is None and not request.write:
            raise NotFoundError(AGENT_FILE_NOT_FOUND, f"the guest has no {request.path}")
        return FakeFile(self, guest, request, content)

    @spi
    async def freeze(self, uuid: UUID, context: CallContext, mountpoints: Sequence[str] = ()) -> int:
        """See the SPI."""
        guest = await self._reach(uuid, caps.AGENT_FREEZE, context, frozen=True)
        count = 0 if guest.frozen else 1
        guest.frozen = True
        self._world.save()
        return count

    @spi
    async def thaw(self, uuid: UUID) -> int:
        """See the SPI."""
        guest = await self._reach(uuid, caps.AGENT_FREEZE, frozen=True)
        count = 1 if guest.frozen else 0
        guest.frozen = False
        self._world.save()
        return count

    @spi
    async def frozen(self, uuid: UUID) -> bool:
        """See the SPI."""
        return (await self._reach(uuid, caps.AGENT_FREEZE, frozen=True)).frozen

    @spi
    async def os_info(self, uuid: UUID) -> AgentOsInfo:
        """See the SPI."""
        guest = await self._reach(uuid, caps.AGENT_INFO)
        return AgentOsInfo(
            id="fake",
            name="Fake OS",
            pretty_name="Fake OS 1",
            version="1",
            version_id="1",
            machine="x86_64",
            kernel_release="1.0-fake",
            hostname=guest.name,
            timezone="UTC",
            timezone_offset_s=0,
            users=(AgentUser("root"),),
            users_known=True,
            agent_version="1",
        )

    @spi
    async def open_display(self, uuid: UUID) -> ConsoleStream:
        """See the SPI."""
        self._link.refuse_without(caps.CONSOLE_GRAPHICAL)
        guest = await self._in_states(uuid, "open the display of", GuestState.RUNNING, GuestState.PAUSED)
        graphics = lowering.parse(guest.active).graphics
        if graphics is None or not graphics.vnc:
            raise unsupported(caps.CONSOLE_GRAPHICAL, "the guest has no VNC display")
        return Display(guest.name, guest.uuid.bytes[:3])

    async def _until(self, work: Coroutine[Any, Any, T], context: CallContext) -> T | None:
        """Await, until the operation is cancelled."""
        task, cancelled = asyncio.ensure_future(work), asyncio.ensure_future(context.wait_cancelled())
        try:
            context.checkpoint()
            await asyncio.wait((task, cancelled), return_when=asyncio.FIRST_COMPLETED)
        finally:
            cancelled.cancel()
            if not task.done():
                task.cancel()
            await asyncio.gather(task, cancelled, return_exceptions=True)
        context.checkpoint()
        return None if task.cancelled() else task.result()

    async def sleep(self, seconds: float, context: CallContext) -> None:
        """Let time pass in a guest."""
        await self._until(self._world.clock.sleep(seconds), context)

    def save(self) -> None:
        """Keep what changed."""
        self._world.save()


def _too_long(command: AgentCommand) -> DeadlineExceededError:
    return DeadlineExceededError(
        DEADLINE_EXCEEDED,
        f"{command.path} (process {_PID}) ran longer than {command.timeout_s:g} s and was ended",
        metadata={"guest_pid": str(_PID), "killed": "true"},
    )


class FakeProcess:
    """See :class:`virtd.backend.facets_agent.AgentProcess`.  ``cat`` echoes its input as it comes."""

    live: Final = True
    pid: Final = _PID

    def __init__(
        self, reach: AgentReach, guest: FakeGuest, command: AgentCommand, context: CallContext, *, stdin: bool
    ) -> None:
        self._command, self._context, self._reach, self._guest = command, context, reach, guest
        self._said: asyncio.Queue[AgentOutput | AgentExit | BaseException] = asyncio.Queue()
        self._echoes = stdin and inside.program(command) == "cat" and not command.arguments
        self._input_open = stdin
        self._ended: AgentExit | None = None
        self._task = asyncio.create_task(self._run())

    async def _run(self) -> None:
        try:
            self._said.put_nowait(await self._work())
        except Exception as error:  # the reader gets it
            self._said.put_nowait(error)

    async def _work(self) -> AgentExit:
        command = self._command
        if self._echoes:
            self._say(AgentChannel.STDOUT, command.input_data)
            await self._reach.sleep(command.timeout_s, self._context)
            raise _too_long(command)
        wanted_s = inside.sleep_seconds(command)
        await self._reach.sleep(min(wanted_s, command.timeout_s), self._context)
        if wanted_s > command.timeout_s:
            raise _too_long(command)
        result = inside.run(command, self._guest.files)
        self._reach.save()
        self._say(AgentChannel.STDOUT, result.stdout)
        self._say(AgentChannel.STDERR, result.stderr)
        return AgentExit(result.exit_code, result.signal)

    def _say(self, channel: AgentChannel, data: bytes) -> None:
        if data:
            self._said.put_nowait(AgentOutput(channel, data))

    async def read(self) -> AgentOutput | AgentExit:
        """See the SPI."""
        if self._ended is not None:
            return self._ended
        said = await self._said.get()
        if isinstance(said, BaseException):
            raise said
        if isinstance(said, AgentExit):
            self._ended = said
        return said

    async def write(self, data: bytes) -> None:
        """See the SPI."""
        if not self._input_open or self._task.done():
            raise FailedPreconditionError(INVALID_STATE, "the command's input is closed, or it has ended")
        if self._echoes:
            self._say(AgentChannel.STDOUT, data)

    async def close_input(self) -> None:
        """See the SPI."""
        if self._input_open and self._echoes and not self._task.done():
            self._task.cancel()
            self._said.put_nowait(AgentExit(0, None))
        self._input_open = False

    async def close(self) -> None:
        """See the SPI."""
        self._task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await self._task


class FakeFile:
    """See :class:`virtd.backend.facets_agent.AgentFile`."""

    def __init__(self, reach: AgentReach, guest: FakeGuest, request: AgentFileRequest, content: bytes | None) -> None:
        self._reach, self._guest, self._request = reach, guest, request
        in_place = request.in_place or request.offset > 0
        self.atomic = request.write and not in_place
        self.size_bytes = None if content is None or request.write else len(content)
        self._data = bytearray(content or b"") if in_place or not request.write else bytearray()
        self._offset = request.offset

    async def read(self) -> bytes:
        """See the SPI."""
        data = bytes(self._data[self._offset : self._offset + _CHUNK])
        self._offset += len(data)
        return data

    async def write(self, data: bytes) -> None:
        """See the SPI."""
        if len(self._data) < self._offset:
            self._data.extend(bytes(self._offset - len(self._data)))
        self._data[self._offset : self._offset + len(data)] = data
        self._offset += len(data)
        if not self.atomic:
            self._store()

    async def commit(self) -> None:
        """See the SPI."""
        self._store()

    async def close(self) -> None:
        """See the SPI."""

    def _store(self) -> None:
        self._guest.files.write(self._request.path, bytes(self._data))
        self._reach.save()
