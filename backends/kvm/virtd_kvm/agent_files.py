"""Files of a guest, through its agent.

Reading is the agent's own; a shell in the guest looks first, because opening a pipe or a device would
hang the agent.  Writing goes into a file beside the target, which is renamed over it at the end:
whoever opens the target sees the old content or the new one.  A guest without a shell gets its file
written in its place, and the answer says so.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
from typing import Final
from uuid import UUID

from virtd.backend.capabilities import AGENT_FILES
from virtd.errors import (
    AGENT_DISABLED,
    AGENT_FILE_NOT_FOUND,
    AGENT_FILE_REFUSED,
    FailedPreconditionError,
    NotFoundError,
    VirtdError,
    unsupported,
)
from virtd.model.console import AgentFileRequest
from virtd_kvm import agent_shell as programs
from virtd_kvm.agent_calls import AgentCalls, Refused, field_of
from virtd_kvm.agent_shell import Answer, NoShell, Shell, finished

CHUNK: Final = 256 * 1024
# What goes in is slower: qemu-ga takes a request apart byte by byte, in pieces of 4 KiB.
WRITE_CHUNK: Final = 32 * 1024
_START: Final = 0


def refused(path: str, words: str) -> FailedPreconditionError:
    """AGENT_FILE_REFUSED."""
    return FailedPreconditionError(AGENT_FILE_REFUSED, f"{path}: {words}", metadata={"path": path})


def _check(path: str, answer: Answer) -> None:
    match answer.code:
        case 0:
            return
        case programs.NOT_FOUND:
            raise NotFoundError(AGENT_FILE_NOT_FOUND, f"the guest has no {path}", metadata={"path": path})
        case programs.IS_DIRECTORY:
            raise refused(path, "it is a directory")
        case programs.NOT_REGULAR:
            raise refused(path, "it is no regular file; opening it could hang the agent")
        case _:
            raise refused(path, answer.errors or "the guest's system refused it")


class GuestFile:
    """See :class:`virtd.backend.facets_agent.AgentFile`."""

    def __init__(self, calls: AgentCalls, shell: Shell, uuid: UUID, request: AgentFileRequest) -> None:
        self._calls: Final = calls
        self._shell: Final = shell
        self._uuid: Final = uuid
        self._request: Final = request
        self._handle: int | None = None
        self._beside = ""
        self._target = request.path
        self._has_shell = True
        self._size: int | None = None

    @property
    def size_bytes(self) -> int | None:
        """See the SPI."""
        return self._size

    @property
    def atomic(self) -> bool:
        """See the SPI."""
        return bool(self._beside)

    async def _program(self, program: str, *arguments: str) -> Answer | None:
        """Run a program of the shell's; None where there is no shell to do it."""
        try:
            return await self._shell.run(self._uuid, program, *arguments, capability=AGENT_FILES)
        except NoShell:
            return None
        except FailedPreconditionError as error:
            if error.reason is AGENT_DISABLED:  # guest-exec, while files may be allowed
                return None
            raise

    async def open(self) -> None:
        """Open it.  What was made in the guest is removed if that fails."""
        try:
            await (self._open_for_writing() if self._request.write else self._open_for_reading())
        except BaseException:
            with contextlib.suppress(VirtdError):
                await asyncio.shield(self.close())
            raise

    async def _open_for_reading(self) -> None:
        path = self._request.path
        answer = await self._program(programs.LOOK, path)
        if answer is not None:
            _check(path, answer)
            if answer.lines and answer.lines[0].isdigit():
                self._size = int(answer.lines[0])
        await self._open_handle(path, "r")
        if self._request.offset:
            await self._seek(self._request.offset)

    async def _open_for_writing(self) -> None:
        request = self._request
        if request.offset or request.in_place:
            answer = await self._program(programs.LOOK, request.path)
            exists = answer is None or answer.code != programs.NOT_FOUND
            if answer is not None and exists:
                _check(request.path, answer)
            await self._open_handle(request.path, "r+" if exists else "w")
            if request.offset:
                await self._seek(request.offset)
            return
        answer = await finished(self._make_beside())
        if answer is None:
            if request.mode is not None:
                raise unsupported(AGENT_FILES, "the guest has no POSIX shell, so that no mode can be set")
            await self._open_handle(request.path, "w")
            return
        _check(request.path, answer)
        await self._open_handle(self._beside, "w")

    async def _make_beside(self) -> Answer | None:
        answer = await self._program(programs.BESIDE, self._request.path)
        if answer is not None and answer.code == 0:
            self._beside, self._target = answer.lines
        return answer

    async def _open_handle(self, path: str, mode: str) -> None:
        arguments = {"path": path, "mode": mode}

        async def work() -> None:
            answer = await self._calls.attempt(self._uuid, "guest-file-open", arguments, capability=AGENT_FILES)
            self._handle = int(answer)

        try:
            await finished(work())
        except Refused as error:
            raise refused(self._request.path, error.words) from error

    async def _seek(self, offset: int) -> None:
        await self._call("guest-file-seek", offset=offset, whence=_START)

    async def read(self) -> bytes:
        """See the SPI."""
        answer = await self._call("guest-file-read", count=CHUNK)
        return base64.b64decode(field_of(answer, "buf-b64"))

    async def write(self, data: bytes) -> None:
        """See the SPI."""
        rest = memoryview(data)
        while rest:
            text = base64.b64encode(rest[:WRITE_CHUNK]).decode("ascii")
            answer = await self._call("guest-file-write", **{"buf-b64": text})
            count = int(field_of(answer, "count"))
            if count <= 0:
                raise refused(self._request.path, "the guest's system takes no more bytes")
            rest = rest[count:]
        # The agent's own buffer would tell a full file system only later.
        await self._call("guest-file-flush")

    async def _call(self, name: str, **arguments: object) -> object:
        try:
            return await self._calls.attempt(
                self._uuid, name, {"handle": self._handle, **arguments}, capability=AGENT_FILES
            )
        except Refused as error:
            raise refused(self._request.path, error.words) from error

    async def commit(self) -> None:
        """See the SPI."""
        await self._close_handle()
        mode = "" if self._request.mode is None else f"{self._request.mode:o}"
        if self._beside:
            answer = await self._program(programs.REPLACE, self._beside, self._target, mode)
            _check(self._request.path, answer or Answer(None, (), "the guest's shell is gone"))
            self._beside = ""
        elif mode:
            answer = await self._program(programs.MODE, self._target, mode)
            if answer is None:
                raise unsupported(AGENT_FILES, "the guest has no POSIX shell, so that no mode can be set")
            _check(self._request.path, answer)

    async def _close_handle(self) -> None:
        handle, self._handle = self._handle, None
        if handle is not None:
            try:
                await self._calls.attempt(self._uuid, "guest-file-close", {"handle": handle}, capability=AGENT_FILES)
            except Refused as error:
                raise refused(self._request.path, error.words) from error

    async def close(self) -> None:
        """See the SPI."""
        with contextlib.suppress(VirtdError):
            await self._close_handle()
        beside, self._beside = self._beside, ""
        if beside:
            await self._program(programs.REMOVE, beside)
