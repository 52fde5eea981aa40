"""Use cases of the guest agent.

None is an operation: a command, or a file, changes nothing that virtd answers for, and a freeze ends by
itself (:mod:`virtd.service.freezes`).
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass, replace
from typing import Final

from virtd.backend import capabilities as cap
from virtd.backend.api import AgentFacet, AgentFile, AgentProcess
from virtd.backend.capabilities import require
from virtd.errors import (
    AGENT_FILE_TOO_LARGE,
    OPERATION_IN_PROGRESS,
    ConflictError,
    ResourceExhaustedError,
    VirtdError,
    unsupported,
)
from virtd.inventory import GuestView, HostLink
from virtd.model.console import (
    AgentCommand,
    AgentExit,
    AgentFileRequest,
    AgentOsInfo,
    AgentOutput,
    AgentResult,
)
from virtd.model.names import GuestName
from virtd.service.call import Call
from virtd.service.core import Core
from virtd.service.detached import DetachedContext
from virtd.service.freezes import TIMEOUT_MAX_S as FREEZE_MAX_S
from virtd.service.freezes import Freezes, Frozen
from virtd.service.validate import Violations

INPUT_MAX: Final = 2**20
INPUT_CHUNK_MAX: Final = 256 * 1024
FILE_CHUNK_MAX: Final = 2**20
TIMEOUT_MAX_S: Final = 3600.0
FREEZE_DEFAULT_S: Final = 60.0
TEXT_MAX: Final = 4096
ARGUMENTS_MAX: Final = 256
MOUNTPOINTS_MAX: Final = 64
MODE_MAX: Final = 0o7777
SLACK_S: Final = 60.0
"""So much later than a command's own limit a call is given up: the limit is to come first, and end the command."""
FILE_CALL_S: Final = 60.0


@dataclass(frozen=True, slots=True)
class FilePart:
    """Some bytes of a file.  ``size_bytes`` is the file's, where it is known."""

    offset: int
    data: bytes
    size_bytes: int | None = None


class Execution:
    """A command that runs in a guest."""

    def __init__(self, link: HostLink, process: AgentProcess, timeout_s: float) -> None:
        self._link = link
        self._process = process
        self._limit_s = timeout_s + SLACK_S

    @property
    def pid(self) -> int | None:
        """Its process id in the guest, where it is known."""
        return self._process.pid

    @property
    def live(self) -> bool:
        """Whether output comes while it runs."""
        return self._process.live

    async def read(self) -> AgentOutput | AgentExit:
        """What comes next; the exit is the last."""
        return await self._link.call(self._process.read(), timeout_s=self._limit_s)

    async def write(self, data: bytes) -> None:
        """Send to its standard input.

        :raises InvalidArgumentError: FIELD_INVALID, too much at a time.
        :raises FailedPreconditionError: INVALID_STATE, it has ended or takes no input.
        """
        wrong = Violations()
        if len(data) > INPUT_CHUNK_MAX:
            wrong.add("input", f"must be at most {INPUT_CHUNK_MAX} bytes at a time, not {len(data)}")
        wrong.check()
        await self._link.call(self._process.write(data), timeout_s=self._limit_s)

    async def close_input(self) -> None:
        """End its standard input."""
        await self._link.call(self._process.close_input())

    async def close(self) -> None:
        """End it if it still runs."""
        with contextlib.suppress(VirtdError):
            await self._link.call(self._process.close(), timeout_s=SLACK_S)


class FileWriter:
    """A file of a guest that is being written."""

    def __init__(self, link: HostLink, file: AgentFile, limit: int, path: str) -> None:
        self._link = link
        self._file = file
        self._limit = limit
        self._path = path
        self.atomic = file.atomic
        self.size_bytes = 0

    async def write(self, data: bytes) -> None:
        """Append.

        :raises InvalidArgumentError: FIELD_INVALID, too much at a time.
        :raises ResourceExhaustedError: AGENT_FILE_TOO_LARGE.
        """
        wrong = Violations()
        if len(data) > FILE_CHUNK_MAX:
            wrong.add("data", f"must be at most {FILE_CHUNK_MAX} bytes at a time, not {len(data)}")
        wrong.check()
        if self.size_bytes + len(data) > self._limit:
            raise too_large(self._path, self._limit, None)
        await self._link.call(self._file.write(data), timeout_s=FILE_CALL_S)
        self.size_bytes += len(data)

    async def commit(self) -> None:
        """All has come."""
        await self._link.call(self._file.commit(), timeout_s=FILE_CALL_S)

    async def close(self) -> None:
        """Release it; what was not committed is taken back where that is possible."""
        with contextlib.suppress(VirtdError):
            await self._link.call(self._file.close(), timeout_s=FILE_CALL_S)


def too_large(path: str, limit: int, size: int | None) -> ResourceExhaustedError:
    """AGENT_FILE_TOO_LARGE."""
    what = "more" if size is None else f"{size} bytes to pass"
    return ResourceExhaustedError(
        AGENT_FILE_TOO_LARGE,
        f"{path} has {what}, and one call passes {limit} bytes (agent.file_max_bytes) at the most: "
        "pass it in parts by offset, or use a disk or the network",
        metadata={"limit_bytes": str(limit), **({} if size is None else {"size_bytes": str(size)})},
    )


class Agents:
    """Use cases of the guest agent."""

    def __init__(self, core: Core) -> None:
        self._core = core

    @property
    def _freezes(self) -> Freezes:
        return self._core.freezes

    async def execute(self, call: Call, name: GuestName, command: AgentCommand) -> AgentResult:
        """Run a command in a guest.

        :raises InvalidArgumentError: FIELD_INVALID.
        :raises UnavailableError: AGENT_NOT_READY, AGENT_STUCK.
        :raises DeadlineExceededError: it ran too long.
        """
        _check_command(command)
        view, link, agent = await self._agent(name, cap.AGENT_EXEC)
        context = DetachedContext(command.timeout_s + SLACK_S)
        return await link.call(
            agent.run_command(view.guest.uid, command, context), timeout_s=command.timeout_s + SLACK_S
        )

    async def start(self, name: GuestName, command: AgentCommand, *, stdin: bool) -> Execution:
        """Start a command in a guest; the caller closes what this gives.

        :raises InvalidArgumentError: FIELD_INVALID.
        :raises UnsupportedError: CAPABILITY_UNSUPPORTED.
        :raises UnavailableError: AGENT_NOT_READY, AGENT_STUCK.
        """
        _check_command(command)
        view, link, agent = await self._agent(name, cap.AGENT_STREAM)
        context = DetachedContext(command.timeout_s + SLACK_S)
        process = await link.call(agent.start_command(view.guest.uid, command, context, stdin=stdin), timeout_s=SLACK_S)
        return Execution(link, process, command.timeout_s)

    async def read_file(
        self, name: GuestName, path: str, offset: int, max_bytes: int
    ) -> AsyncGenerator[FilePart, None]:
        """The bytes of a file, at least one part.

        :raises NotFoundError: AGENT_FILE_NOT_FOUND.
        :raises FailedPreconditionError: AGENT_FILE_REFUSED.
        :raises ResourceExhaustedError: AGENT_FILE_TOO_LARGE.
        """
        limit = self._core.options.agent_file_bytes
        wrong = Violations()
        _check_path(wrong, path)
        _check_offset(wrong, offset)
        if max_bytes > limit:
            wrong.add("max_bytes", f"must be at most {limit} (agent.file_max_bytes)")
        wrong.check()
        view, link, agent = await self._agent(name, cap.AGENT_FILES)
        request = AgentFileRequest(path, offset=offset)
        file = await link.call(
            agent.open_file(view.guest.uid, request, DetachedContext(FILE_CALL_S)), timeout_s=FILE_CALL_S
        )
        try:
            size = file.size_bytes
            if not max_bytes and size is not None and size - offset > limit:
                raise too_large(path, limit, size - offset)
            count = 0
            wanted = max_bytes or limit
            while True:
                data = await link.call(file.read(), timeout_s=FILE_CALL_S) if count < wanted else b""
                if not max_bytes and count + len(data) > limit:
                    raise too_large(path, limit, None)  # it grew, or its size was not known
                data = data[: wanted - count]
                if data or not count:
                    yield FilePart(offset + count, data, size if not count else None)
                count += len(data)
                if not data or (max_bytes and count >= max_bytes):
                    return
        finally:
            with contextlib.suppress(VirtdError):
                await asyncio.shield(link.call(file.close(), timeout_s=FILE_CALL_S))

    async def write_file(self, name: GuestName, request: AgentFileRequest) -> FileWriter:
        """Begin to write a file; the caller commits and closes what this gives.

        :raises FailedPreconditionError: AGENT_FILE_REFUSED.
        :raises NotFoundError: AGENT_FILE_NOT_FOUND: no such directory.
        """
        wrong = Violations()
        _check_path(wrong, request.path)
        _check_offset(wrong, request.offset)
        if request.mode is not None and not 0 <= request.mode <= MODE_MAX:
            wrong.add("mode", "must be the permission bits of a file, 0 to 0o7777 (4095)")
        wrong.check()
        view, link, agent = await self._agent(name, cap.AGENT_FILES)
        opened = replace(request, write=True)
        file = await link.call(
            agent.open_file(view.guest.uid, opened, DetachedContext(FILE_CALL_S)), timeout_s=FILE_CALL_S
        )
        return FileWriter(link, file, self._core.options.agent_file_bytes, request.path)

    async def freeze(self, call: Call, name: GuestName, mountpoints: Sequence[str], timeout_s: float) -> Frozen:
        """Freeze a guest's file systems for a time.

        :raises FailedPreconditionError: AGENT_FREEZE_FAILED.
        :raises ConflictError: OPERATION_IN_PROGRESS.
        """
        wrong = Violations()
        limit = timeout_s or FREEZE_DEFAULT_S
        if not 0 < limit <= FREEZE_MAX_S:  # NaN as well
            wrong.add("timeout_s", f"must be above 0 and at most {FREEZE_MAX_S:g}")
        if len(mountpoints) > MOUNTPOINTS_MAX:
            wrong.add("mountpoints", f"must be at most {MOUNTPOINTS_MAX}")
        for index, mountpoint in enumerate(mountpoints):
            _check_path(wrong, mountpoint, f"mountpoints[{index}]")
        wrong.check()
        await self._core.settled(name.host)
        view = self._core.check_verb(name, "freeze")
        if running := self._core.engine.current(str(name)):
            raise ConflictError(
                OPERATION_IN_PROGRESS,
                f"{running[0].name} ({running[0].verb}) works on {name.guest}: a guest is not frozen meanwhile",
                resource=running[0].name,
                retry_after_s=2.0,
            )
        return await self._freezes.freeze(
            name.host,
            view.guest.uid,
            DetachedContext(SLACK_S),
            caller=call.caller,
            timeout_s=limit,
            mountpoints=mountpoints,
        )

    async def thaw(self, name: GuestName) -> int:
        """Thaw a guest's file systems; how many were frozen."""
        await self._core.settled(name.host)
        view = self._core.check_verb(name, "thaw")
        return await self._freezes.thaw(name.host, view.guest.uid)

    async def os_info(self, name: GuestName) -> AgentOsInfo:
        """What the guest's system says of itself."""
        view, link, agent = await self._agent(name, cap.AGENT_INFO)
        return await link.call(agent.os_info(view.guest.uid))

    async def _agent(self, name: GuestName, capability: str) -> tuple[GuestView, HostLink, AgentFacet]:
        """The guest, if its agent may be asked for this now."""
        await self._core.settled(name.host)
        link = self._core.link(name.host)
        view = self._core.check_verb(name, "exec")
        require(link.capabilities, capability, resource=str(name))
        agent = link.facets.agent
        if agent is None:
            raise unsupported(capability, "the host has no way to reach an agent", resource=str(name))
        return view, link, agent


def _check_command(command: AgentCommand) -> None:
    wrong = Violations()
    if not command.path or "\0" in command.path or len(command.path) > TEXT_MAX:
        wrong.add("path", "must be a program of the guest")
    if len(command.arguments) > ARGUMENTS_MAX or any("\0" in argument for argument in command.arguments):
        wrong.add("arguments", f"must be at most {ARGUMENTS_MAX}, without NUL")
    if any("=" not in entry or "\0" in entry for entry in command.environment):
        wrong.add("environment", "each entry must have the form NAME=value")
    if len(command.input_data) > INPUT_MAX:
        wrong.add("input_data", f"must be at most {INPUT_MAX} bytes, not {len(command.input_data)}")
    if not 0 < command.timeout_s <= TIMEOUT_MAX_S:
        wrong.add("timeout_s", f"must be at most {TIMEOUT_MAX_S:g}")
    wrong.check()


def _check_path(wrong: Violations, path: str, field: str = "path") -> None:
    if not path.startswith("/") or "\0" in path or len(path) > TEXT_MAX:
        wrong.add(field, f"must be an absolute path of the guest, at most {TEXT_MAX} characters, without NUL")


def _check_offset(wrong: Violations, offset: int) -> None:
    if not 0 <= offset < 2**63:
        wrong.add("offset", "must be at least 0 and below 2^63")
