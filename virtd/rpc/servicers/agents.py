"""virtd.v1.AgentService."""
# ruff: noqa: N802 - the methods have the RPCs' names

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Sequence
from typing import Final

from virtd.errors import FailedPreconditionError, invalid_field
from virtd.model.console import AgentChannel, AgentCommand, AgentExit, AgentFileRequest
from virtd.model.names import parse_guest, shown
from virtd.rpc.context import Context, current
from virtd.rpc.convert import to_message
from virtd.rpc.servicers.base import Servicer, call_of, required
from virtd.service.agents import Execution
from virtd.v1 import agent_pb2 as pb

_MAX_INPUT: Final = 1024 * 1024
_DEFAULT_TIMEOUT_S: Final = 60.0


class AgentServicer(Servicer):
    """The guest agent."""

    async def ExecCommand(self, request: pb.ExecCommandRequest, _context: Context) -> pb.ExecCommandResponse:
        """Run a command in a guest."""
        guest = parse_guest(request.name)
        result = await self.services.agents.execute(call_of(request), guest, _command(request))
        return to_message(result, pb.ExecCommandResponse)

    async def ExecStream(
        self, requests: AsyncIterator[pb.ExecStreamRequest], _context: Context
    ) -> AsyncIterator[pb.ExecStreamResponse]:
        """Run a command in a guest, with its output and input as they come."""
        start = await _exec_start(requests)
        current().resource = start.name
        guest = parse_guest(start.name, "start.name")
        execution = await self.services.agents.start(guest, _command(start, "start."), stdin=start.stdin)
        typing = asyncio.create_task(_pass_input(requests, execution, stdin=start.stdin))
        try:
            started = pb.ExecStarted(live=execution.live)
            if execution.pid is not None:
                started.guest_pid = execution.pid
            yield pb.ExecStreamResponse(started=started)
            async for response in _said(execution, typing):
                yield response
        finally:
            typing.cancel()
            with contextlib.suppress(asyncio.CancelledError, Exception):
                await typing
            await asyncio.shield(execution.close())

    async def ReadFile(self, request: pb.ReadFileRequest, _context: Context) -> AsyncIterator[pb.ReadFileResponse]:
        """A file of a guest."""
        guest, path = parse_guest(request.name), required(request.path, "path")
        parts = self.services.agents.read_file(guest, path, request.offset, request.max_bytes)
        async with contextlib.aclosing(parts):
            async for part in parts:
                yield pb.ReadFileResponse(size_bytes=part.size_bytes, offset=part.offset, data=part.data)

    async def WriteFile(
        self, requests: AsyncIterator[pb.WriteFileRequest], _context: Context
    ) -> AsyncIterator[pb.WriteFileResponse]:
        """Write a file of a guest."""
        start = await _write_start(requests)
        current().resource = start.name
        file = AgentFileRequest(
            path=required(start.path, "start.path"),
            write=True,
            offset=start.offset,
            in_place=start.in_place,
            mode=start.mode if start.HasField("mode") else None,
        )
        writer = await self.services.agents.write_file(parse_guest(start.name, "start.name"), file)
        try:
            async for request in requests:
                if request.WhichOneof("request") != "data":
                    raise invalid_field("start", "only the first request may be start")
                await writer.write(request.data)
            await writer.commit()
        finally:
            await asyncio.shield(writer.close())
        yield pb.WriteFileResponse(size_bytes=writer.size_bytes, atomic=writer.atomic)

    async def FreezeFilesystems(
        self, request: pb.FreezeFilesystemsRequest, _context: Context
    ) -> pb.FreezeFilesystemsResponse:
        """Freeze a guest's file systems for a time."""
        guest = parse_guest(request.name)
        frozen = await self.services.agents.freeze(
            call_of(request), guest, tuple(request.mountpoints), request.timeout_s
        )
        return to_message(frozen, pb.FreezeFilesystemsResponse)

    async def ThawFilesystems(
        self, request: pb.ThawFilesystemsRequest, _context: Context
    ) -> pb.ThawFilesystemsResponse:
        """Thaw a guest's file systems."""
        return pb.ThawFilesystemsResponse(thawed_count=await self.services.agents.thaw(parse_guest(request.name)))

    async def GetOsInfo(self, request: pb.GetOsInfoRequest, _context: Context) -> pb.GetOsInfoResponse:
        """What a guest's system says of itself."""
        info = await self.services.agents.os_info(parse_guest(request.name))
        return pb.GetOsInfoResponse(os_info=to_message(info, pb.AgentOsInfo))


def _command(request: pb.ExecCommandRequest | pb.ExecStart, prefix: str = "") -> AgentCommand:
    if len(request.input_data) > _MAX_INPUT:
        raise invalid_field(f"{prefix}input_data", f"has {len(request.input_data)} bytes; {_MAX_INPUT} are the most")
    for index, variable in enumerate(request.environment):
        if "=" not in variable[1:]:
            raise invalid_field(f"{prefix}environment[{index}]", f"{shown(variable)} is not of the form NAME=value")
    return AgentCommand(
        path=required(request.path, f"{prefix}path"),
        arguments=tuple(request.arguments),
        environment=tuple(request.environment),
        input_data=request.input_data,
        timeout_s=request.timeout_s or _DEFAULT_TIMEOUT_S,
    )


async def _exec_start(requests: AsyncIterator[pb.ExecStreamRequest]) -> pb.ExecStart:
    async for request in requests:
        if request.WhichOneof("request") == "start":
            return request.start
        break
    raise invalid_field("start", "is required: the first request says which command")


async def _write_start(requests: AsyncIterator[pb.WriteFileRequest]) -> pb.WriteFileStart:
    async for request in requests:
        if request.WhichOneof("request") == "start":
            return request.start
        break
    raise invalid_field("start", "is required: the first request says which file")


async def _pass_input(requests: AsyncIterator[pb.ExecStreamRequest], execution: Execution, *, stdin: bool) -> None:
    async for request in requests:
        if request.WhichOneof("request") != "input":
            raise invalid_field("start", "only the first request may be start")
        if not stdin:
            raise invalid_field("input", "start.stdin was not set: the command takes no input")
        try:
            await execution.write(request.input)
        except FailedPreconditionError:
            # It has ended, or reads no more: that is for its exit code to tell, as in a shell's pipe.
            continue
    if stdin:
        await execution.close_input()


async def _said(execution: Execution, typing: asyncio.Task[None]) -> AsyncIterator[pb.ExecStreamResponse]:
    """What the command says, to its exit; an error of the input ends the stream."""
    while True:
        reading = asyncio.ensure_future(execution.read())
        waits: Sequence[asyncio.Future[object]] = [reading] if typing.done() else [reading, typing]  # type: ignore[list-item]  # invariance
        try:
            while not reading.done():
                await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
                if typing.done():
                    typing.result()
                    waits = [reading]  # type: ignore[list-item]  # invariance
        finally:
            if not reading.done():
                reading.cancel()
                await asyncio.gather(reading, return_exceptions=True)
        said = reading.result()
        if isinstance(said, AgentExit):
            yield pb.ExecStreamResponse(exited=to_message(said, pb.ExecExited))
            return
        if said.channel is AgentChannel.STDOUT:
            yield pb.ExecStreamResponse(stdout=said.data)
        else:
            yield pb.ExecStreamResponse(stderr=said.data)
