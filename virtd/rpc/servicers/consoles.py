"""virtd.v1.ConsoleService."""
# ruff: noqa: N802 - the methods have the RPCs' names

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import Final

from virtd.errors import FailedPreconditionError, UnavailableError, invalid_field
from virtd.model.names import parse_guest
from virtd.rpc.context import Context, current
from virtd.rpc.convert import to_message
from virtd.rpc.servicers.base import Servicer
from virtd.service.consoles import ConsoleChunk, ConsoleClient, ConsoleNotice
from virtd.v1 import console_pb2 as pb

_MAX_INPUT: Final = 64 * 1024
_LOG_DEFAULT: Final = 64 * 1024


class ConsoleServicer(Servicer):
    """Serial consoles and screenshots."""

    async def AttachConsole(
        self, requests: AsyncIterator[pb.AttachConsoleRequest], _context: Context
    ) -> AsyncIterator[pb.AttachConsoleResponse]:
        """What the guest prints, and what the caller types.

        Ends when the caller cancels.  Half-closing ends the input only.
        """
        start = await _first(requests)
        current().resource = start.name
        console = await self.services.consoles.attach(
            parse_guest(start.name, "start.name"),
            start.read_only,
            start.offset if start.HasField("offset") else None,
        )
        typing = asyncio.create_task(_pass_input(requests, console, read_only=start.read_only))
        try:
            yield pb.AttachConsoleResponse(
                attached=pb.ConsoleAttached(offset=console.offset, truncated=console.truncated)
            )
            async for response in _output(console, typing):
                yield response
        finally:
            typing.cancel()
            with contextlib.suppress(asyncio.CancelledError, Exception):
                await typing
            await console.close()

    async def ReadConsoleLog(self, request: pb.ReadConsoleLogRequest, _context: Context) -> pb.ReadConsoleLogResponse:
        """The tail of what the console printed."""
        offset, data, next_offset = await self.services.consoles.read_log(
            parse_guest(request.name),
            request.offset if request.HasField("offset") else None,
            request.max_bytes or _LOG_DEFAULT,
        )
        return pb.ReadConsoleLogResponse(offset=offset, data=data, next_offset=next_offset)

    async def TakeScreenshot(self, request: pb.TakeScreenshotRequest, _context: Context) -> pb.TakeScreenshotResponse:
        """A picture of the display."""
        picture = await self.services.consoles.screenshot(parse_guest(request.name))
        return to_message(picture, pb.TakeScreenshotResponse)


async def _first(requests: AsyncIterator[pb.AttachConsoleRequest]) -> pb.ConsoleStart:
    async for request in requests:
        if request.WhichOneof("request") == "start":
            return request.start
        break
    raise invalid_field("start", "is required: the first request says which console")


async def _pass_input(
    requests: AsyncIterator[pb.AttachConsoleRequest], console: ConsoleClient, *, read_only: bool
) -> None:
    async for request in requests:
        if request.WhichOneof("request") != "input":
            raise invalid_field("start", "only the first request may be start")
        if read_only:
            raise invalid_field("input", "the console was attached read-only")
        if len(request.input) > _MAX_INPUT:
            raise invalid_field("input", f"has {len(request.input)} bytes; {_MAX_INPUT} at a time are the most")
        try:
            await console.write(request.input)
        except (FailedPreconditionError, UnavailableError):
            # The guest is down, and the caller was told so by a notice: what is typed then is lost,
            # as on the serial line of a machine without power, and the session goes on.
            continue


async def _output(console: ConsoleClient, typing: asyncio.Task[None]) -> AsyncIterator[pb.AttachConsoleResponse]:
    """What the console says, until the input fails: its error ends the stream."""
    reading: asyncio.Task[ConsoleChunk | ConsoleNotice | None] | None = None
    try:
        while True:
            reading = asyncio.create_task(console.read())
            if not typing.done():
                await asyncio.wait({reading, typing}, return_when=asyncio.FIRST_COMPLETED)
                if typing.done():
                    typing.result()
            said = await reading
            if said is None:
                return
            if isinstance(said, ConsoleChunk):
                yield pb.AttachConsoleResponse(output=pb.ConsoleOutput(offset=said.offset, data=said.data))
            else:
                yield pb.AttachConsoleResponse(notice=pb.ConsoleNotice(kind=said.kind))
    finally:
        if reading is not None:
            reading.cancel()
