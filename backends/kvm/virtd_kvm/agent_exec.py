"""Commands in a guest whose output is read while they run.

The agent itself gives a command's output only at its end, and no more than 16 MiB of it.  So a shell
in the guest sends the output into files of a private directory, which the agent reads as they grow;
input goes through a named pipe.  Then the command takes the shell's place: its exit code and its
signal are what the agent reports.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import re
import time
from collections import deque
from typing import Any, Final
from uuid import UUID

from virtd.backend.api import CallContext
from virtd.backend.capabilities import AGENT_STREAM
from virtd.errors import (
    AGENT_DISABLED,
    DEADLINE_EXCEEDED,
    INVALID_STATE,
    LIMIT_EXCEEDED,
    DeadlineExceededError,
    FailedPreconditionError,
    ResourceExhaustedError,
    UnsupportedError,
    VirtdError,
    invalid_field,
    unsupported,
)
from virtd.model.console import AgentChannel, AgentCommand, AgentExit, AgentOutput, AgentResult
from virtd_kvm import agent_shell as programs
from virtd_kvm.agent_calls import AgentCalls, field_of
from virtd_kvm.agent_shell import NoShell, Shell, finished

OUTPUT_MAX: Final = 64 * 1024 * 1024
"""So much output of one channel is kept in the guest, as its files are there until the command ends."""
_CHUNK: Final = 256 * 1024
_FIRST_S: Final = 0.03
_LAST_S: Final = 0.4
_DIRECTORY: Final = re.compile(r"/[^\n]*/virtd-exec\.\w{6}")
NO_SHELL: Final = "the guest has no POSIX shell: input and output go through whole, at the command's start and end"


async def kill(shell: Shell, uuid: UUID, pid: int, *, group: bool = False) -> bool:
    """End a process in the guest and all that descend from it; whether that could be done."""
    try:
        answer = await shell.run(uuid, programs.KILL, str(pid), "group" if group else "alone")
    except (NoShell, VirtdError):
        return False
    return answer.code == 0


def too_long(command: AgentCommand, pid: int | None, *, killed: bool) -> DeadlineExceededError:
    """DEADLINE_EXCEEDED for a command, saying what became of it."""
    what = "was ended" if killed else "could not be ended and still runs in the guest"
    return DeadlineExceededError(
        DEADLINE_EXCEEDED,
        f"{command.path} (process {pid}) ran longer than {command.timeout_s:g} s and {what}",
        metadata={"guest_pid": str(pid), "killed": str(killed).lower()},
    )


class _Channel:
    """An output file in the guest, read as it grows."""

    def __init__(self, name: AgentChannel, handle: int) -> None:
        self.name: Final = name
        self.handle: Final = handle
        self.count = 0


class LiveProcess:
    """See :class:`virtd.backend.facets_agent.AgentProcess`."""

    def __init__(
        self, calls: AgentCalls, shell: Shell, uuid: UUID, command: AgentCommand, context: CallContext
    ) -> None:
        self._calls: Final = calls
        self._shell: Final = shell
        self._uuid: Final = uuid
        self._command: Final = command
        self._context: Final = context
        self._directory = ""
        self._group = False
        self._pid: int | None = None
        self._keeper: int | None = None
        self._channels: list[_Channel] = []
        self._ready: Final[deque[AgentOutput]] = deque()
        self._ended: AgentExit | None = None
        self._input_open = False
        self._closed = False
        self._pause = _FIRST_S
        self._deadline = 0.0

    @property
    def pid(self) -> int | None:
        """See the SPI."""
        return self._pid

    @property
    def live(self) -> bool:
        """See the SPI."""
        return True

    async def start(self, *, stdin: bool) -> None:
        """Start the command.  What was made in the guest for it is removed if that fails.

        :raises NoShell: the guest has none.
        """
        try:
            await finished(self._prepare(stdin=stdin))
            await finished(self._start(stdin=stdin))
            if stdin and self._command.input_data:
                await self.write(self._command.input_data)
        except BaseException:
            with contextlib.suppress(VirtdError):
                await asyncio.shield(self.close())
            raise

    async def _prepare(self, *, stdin: bool) -> None:
        command = self._command
        answer = await self._shell.run(
            self._uuid,
            programs.PREPARE,
            command.path,
            "stdin" if stdin else "",
            environment=command.environment,
            capability=AGENT_STREAM,
        )
        if answer.code == programs.NOT_FOUND:
            raise invalid_field("command.path", f"{command.path} cannot be run in the guest: there is no such program")
        if answer.code != 0 or not _DIRECTORY.fullmatch(answer.lines[-1] if answer.lines else ""):
            raise unsupported(AGENT_STREAM, f"no directory for the output could be made in the guest: {answer.errors}")
        self._group, self._directory = answer.lines[0] == "group", answer.lines[-1]

    async def _start(self, *, stdin: bool) -> None:
        command = self._command
        for channel, file in ((AgentChannel.STDOUT, "out"), (AgentChannel.STDERR, "err")):
            arguments = {"path": f"{self._directory}/{file}", "mode": "r"}
            handle = await self._calls.command(self._uuid, "guest-file-open", arguments, capability=AGENT_STREAM)
            self._channels.append(_Channel(channel, int(handle)))
        self._deadline = time.monotonic() + command.timeout_s
        self._pid = await self._shell.spawn(
            self._uuid,
            programs.RUN,
            [self._directory, command.path, *command.arguments],
            environment=command.environment,
            input_data=b"" if stdin else command.input_data,
        )
        if stdin:
            self._keeper = await self._shell.spawn(self._uuid, programs.KEEP, [self._directory])
            self._input_open = True

    async def read(self) -> AgentOutput | AgentExit:
        """See the SPI."""
        while not self._ready:
            if self._ended is not None:
                return self._ended
            self._context.checkpoint()
            status = await self._calls.command(self._uuid, "guest-exec-status", {"pid": self._pid})
            exited = bool(field_of(status, "exited"))
            news = [await self._drain(channel, to_end=exited) for channel in self._channels]
            if exited:
                signal = status.get("signal")
                self._ended = AgentExit(None if signal is not None else status.get("exitcode"), signal)
            elif not any(news):
                left = self._deadline - time.monotonic()
                if left <= 0:
                    killed = await self._kill()
                    raise too_long(self._command, self._pid, killed=killed)
                await asyncio.sleep(min(self._pause, left))
                self._pause = min(self._pause * 1.5, _LAST_S)
            else:
                self._pause = _FIRST_S
        return self._ready.popleft()

    async def _drain(self, channel: _Channel, *, to_end: bool) -> bool:
        """Read what is new, all of it or the next part; whether there was something."""
        found = False
        while True:
            answer = await self._calls.command(
                self._uuid, "guest-file-read", {"handle": channel.handle, "count": _CHUNK}, capability=AGENT_STREAM
            )
            data = base64.b64decode(field_of(answer, "buf-b64"))
            if data:
                found = True
                channel.count += len(data)
                self._ready.append(AgentOutput(channel.name, data))
            if channel.count > OUTPUT_MAX:
                killed = await self._kill()
                raise ResourceExhaustedError(
                    LIMIT_EXCEEDED,
                    f"{self._command.path} wrote more than {OUTPUT_MAX} bytes to its {channel.name.lower()}, which lie "
                    "in the guest while it runs; let it write to a file, and read that",
                    metadata={"guest_pid": str(self._pid), "killed": str(killed).lower()},
                )
            if not data or not to_end:
                return found

    async def write(self, data: bytes) -> None:
        """See the SPI."""
        if not self._input_open or self._ended is not None:
            raise FailedPreconditionError(INVALID_STATE, "the command's input is closed, or it has ended")
        feeder = await self._shell.spawn(self._uuid, programs.FEED, [self._directory], input_data=data)
        while True:
            # A command that does not read leaves the rest in the pipe; when it ends, so does the feeder.
            status = await self._calls.command(self._uuid, "guest-exec-status", {"pid": feeder})
            if field_of(status, "exited"):
                break
            if self._closed or self._ended is not None:
                await kill(self._shell, self._uuid, feeder)
                raise FailedPreconditionError(INVALID_STATE, "the command has ended before it read all of its input")
            await asyncio.sleep(_FIRST_S)
        if status.get("exitcode") != 0:
            raise FailedPreconditionError(INVALID_STATE, "the command has ended before it read all of its input")

    async def close_input(self) -> None:
        """See the SPI."""
        if self._input_open:
            self._input_open = False
            await self._shell.run(self._uuid, programs.END, self._directory)

    async def _kill(self) -> bool:
        return self._pid is not None and await kill(self._shell, self._uuid, self._pid, group=self._group)

    async def close(self) -> None:
        """See the SPI."""
        if self._closed:
            return
        self._closed = True
        if self._ended is None and self._pid is not None:
            await self._kill()
        if self._keeper is not None:
            await kill(self._shell, self._uuid, self._keeper)
        for channel in self._channels:
            with contextlib.suppress(VirtdError):
                await self._calls.command(self._uuid, "guest-file-close", {"handle": channel.handle})
        if self._directory:
            with contextlib.suppress(VirtdError, NoShell):
                await self._shell.run(self._uuid, programs.REMOVE, self._directory)


class LateProcess:
    """A command whose output comes at its end: for guests without a POSIX shell."""

    live: Final = False
    pid: Final = None

    def __init__(self, work: Any) -> None:
        self._task: Final[asyncio.Task[AgentResult]] = asyncio.create_task(work)
        self._said: deque[AgentOutput | AgentExit] | None = None

    async def read(self) -> AgentOutput | AgentExit:
        """See the SPI."""
        if self._said is None:
            result = await asyncio.shield(self._task)
            self._said = deque()
            for channel, data in ((AgentChannel.STDOUT, result.stdout), (AgentChannel.STDERR, result.stderr)):
                if data:
                    self._said.append(AgentOutput(channel, data))
            self._said.append(
                AgentExit(result.exit_code, result.signal, result.stdout_truncated, result.stderr_truncated)
            )
        return self._said.popleft() if len(self._said) > 1 else self._said[0]

    async def write(self, data: bytes) -> None:
        """See the SPI."""
        raise FailedPreconditionError(INVALID_STATE, "the command's input is closed")

    async def close_input(self) -> None:
        """See the SPI."""

    async def close(self) -> None:
        """See the SPI."""
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)


async def start(
    calls: AgentCalls,
    shell: Shell,
    uuid: UUID,
    command: AgentCommand,
    context: CallContext,
    *,
    stdin: bool,
    whole: Any,
) -> LiveProcess | LateProcess:
    """Start a command.

    :param whole: makes the coroutine that runs it without a shell.
    """
    process = LiveProcess(calls, shell, uuid, command, context)
    try:
        await process.start(stdin=stdin)
    except NoShell:
        why = NO_SHELL
    except FailedPreconditionError as error:
        if error.reason is not AGENT_DISABLED:
            raise
        why = error.message
    except UnsupportedError as error:
        why = error.record.metadata.get("why", error.message)
    else:
        return process
    if stdin:
        raise unsupported(AGENT_STREAM, why)
    return LateProcess(whole())
