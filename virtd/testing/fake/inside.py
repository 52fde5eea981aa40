"""What is inside a fake guest: a serial console, files in memory and on disk, and a few programs."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from typing import Final

from virtd.errors import HOST_UNREACHABLE, INVALID_STATE, FailedPreconditionError, UnavailableError, invalid_field
from virtd.model.console import AgentCommand, AgentResult

READY: Final = "fake: ready"
PROGRAMS: Final = ("cat", "echo", "false", "sleep", "tee", "true")
_BACKLOG_BYTES: Final = 64 * 1024
_IN_MEMORY: Final = ("/tmp/", "/run/", "/dev/shm/")  # noqa: S108 - paths inside a simulated guest


class ConsoleStream:
    """See :class:`virtd.backend.api.ConsoleStream`."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._data: asyncio.Queue[bytes] = asyncio.Queue()
        self._loop = asyncio.get_running_loop()
        self.closed = False

    def push(self, data: bytes) -> None:
        """Hand over output; ``b""`` ends the stream.  From any thread."""
        if not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._data.put_nowait, data)

    async def read(self) -> bytes:
        """See the SPI."""
        if self.closed and self._data.empty():
            return b""
        return await self._data.get()

    async def write(self, data: bytes) -> None:
        """See the SPI."""
        if self.closed:
            raise UnavailableError(HOST_UNREACHABLE, "the console has closed")
        self._console.typed(data)

    async def close(self) -> None:
        """See the SPI."""
        self._console.release(self)


@dataclass
class Console:
    """A serial port: keeps what nobody has read, and has at most one reader."""

    _unread: bytearray = field(default_factory=bytearray)
    _stream: ConsoleStream | None = None

    def print(self, *lines: str) -> None:
        """Output of the guest."""
        self._output("".join(f"{line}\r\n" for line in lines).encode())

    def typed(self, data: bytes) -> None:
        """Input: the guest's terminal echoes it."""
        self._output(data.replace(b"\r\n", b"\n").replace(b"\r", b"\n").replace(b"\n", b"\r\n"))

    def open(self) -> ConsoleStream:
        """A new reader; it takes over from one that is still there."""
        if self._stream is not None:
            self.release(self._stream)
        self._stream = ConsoleStream(self)
        if self._unread:
            self._stream.push(bytes(self._unread))
            self._unread.clear()
        return self._stream

    def release(self, stream: ConsoleStream) -> None:
        """Let a reader go."""
        if not stream.closed:
            stream.closed = True
            stream.push(b"")
        if self._stream is stream:
            self._stream = None

    def power_off(self) -> None:
        """The guest is gone: readers see the end."""
        if self._stream is not None:
            self.release(self._stream)
        self._unread.clear()

    def _output(self, data: bytes) -> None:
        if self._stream is not None:
            self._stream.push(data)
        else:
            self._unread += data
            del self._unread[:-_BACKLOG_BYTES]


@dataclass
class Files:
    """A guest's files by absolute path.  Those under /tmp and /run die with its memory."""

    memory: dict[str, bytes] = field(default_factory=dict)
    disk: dict[str, bytes] = field(default_factory=dict)

    def read(self, path: str) -> bytes | None:
        """The content, or None."""
        return self.memory.get(path, self.disk.get(path))

    def write(self, path: str, content: bytes) -> None:
        """Make or replace a file."""
        (self.memory if path.startswith(_IN_MEMORY) else self.disk)[path] = content

    def paths(self) -> tuple[str, ...]:
        """All of them."""
        return (*self.memory, *self.disk)

    def copy(self) -> Files:
        """An independent copy."""
        return Files(dict(self.memory), dict(self.disk))


def program(command: AgentCommand) -> str:
    """The program that a command names.

    :raises InvalidArgumentError: FIELD_INVALID, the guest has no such program.
    """
    name = PurePosixPath(command.path).name
    if name not in PROGRAMS:
        known = (f"/bin/{program}" for program in PROGRAMS)
        raise invalid_field("command.path", f"the guest has no program {command.path[:80]!r}", *known)
    return name


def sleep_seconds(command: AgentCommand) -> float:
    """How long the command takes: ``sleep``'s argument, and no time for all others."""
    if program(command) != "sleep" or not command.arguments:
        return 0.0
    try:
        return max(float(command.arguments[0]), 0.0)
    except ValueError:
        return 0.0


def run(command: AgentCommand, files: Files) -> AgentResult:
    """Run a command at once."""
    name, arguments = program(command), command.arguments
    if name == "echo":
        return AgentResult(0, None, " ".join(arguments).encode() + b"\n")
    if name == "tee":
        for path in arguments:
            files.write(path, command.input_data)
        return AgentResult(0, None, command.input_data)
    if name == "cat":
        return _cat(command, files)
    return AgentResult(1 if name == "false" else 0, None)


def _cat(command: AgentCommand, files: Files) -> AgentResult:
    if not command.arguments:
        return AgentResult(0, None, command.input_data)
    output, errors = b"", b""
    for path in command.arguments:
        content = files.read(path)
        if content is None:
            errors += f"cat: {path}: No such file or directory\n".encode()
        else:
            output += content
    return AgentResult(1 if errors else 0, None, output, errors)


def not_running(what: str) -> FailedPreconditionError:
    """INVALID_STATE for something that needs a running guest."""
    return FailedPreconditionError(INVALID_STATE, f"{what}: the guest does not run", allowed_actions=("start",))
