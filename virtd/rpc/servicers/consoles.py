"""virtd.v1.ConsoleService."""
# ruff: noqa: N802 - the methods have the RPCs' names

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import Any, Final

from virtd.backend.api import ConsoleStream
from virtd.errors import FailedPreconditionError, UnavailableError, invalid_field
from virtd.model.names import parse_guest
from virtd.rpc.context import Context, current
from virtd.rpc.convert import to_message
from virtd.rpc.servicers.base import Servicer, call_of
from virtd.service.console_hub import ConsoleChunk, ConsoleClient, ConsoleNotice
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
            call_of(start),
            parse_guest(start.name, "start.name"),
            read_only=start.read_only,
            offset=start.offset if start.HasField("offset") else None,
            take=start.take,
        )
        typing = asyncio.create_task(_pass_input(requests, console, read_only=start.read_only))
        try:
            yield pb.AttachConsoleResponse(attached=_attached(console))
            async for said in _output(console, typing):
                yield _news(said, pb.AttachConsoleResponse)
        finally:
            typing.cancel()
            with contextlib.suppress(asyncio.CancelledError, Exception):
                await typing
            await console.close()

    async def ReadConsoleLog(self, request: pb.ReadConsoleLogRequest, _context: Context) -> pb.ReadConsoleLogResponse:
        """The tail of what the console printed."""
        part = await self.services.consoles.read_log(
            parse_guest(request.name),
            request.offset if request.HasField("offset") else None,
            request.max_bytes or _LOG_DEFAULT,
        )
        return to_message(part, pb.ReadConsoleLogResponse)

    async def FollowConsoleLog(
        self, request: pb.FollowConsoleLogRequest, _context: Context
    ) -> AsyncIterator[pb.FollowConsoleLogResponse]:
        """What the console printed and prints."""
        offset = request.offset if request.HasField("offset") else None
        console = await self.services.consoles.attach(
            call_of(request), parse_guest(request.name), read_only=True, offset=offset
        )
        try:
            yield pb.FollowConsoleLogResponse(attached=_attached(console))
            while (said := await console.read()) is not None:
                yield _news(said, pb.FollowConsoleLogResponse)
        finally:
            await console.close()

    async def CreateConsoleTicket(
        self, request: pb.CreateConsoleTicketRequest, _context: Context
    ) -> pb.CreateConsoleTicketResponse:
        """A ticket for one connection to a display."""
        guest = parse_guest(request.name)
        if request.kind != pb.CONSOLE_KIND_GRAPHICAL:
            raise invalid_field("kind", "must be CONSOLE_KIND_GRAPHICAL", "CONSOLE_KIND_GRAPHICAL")
        ticket = await self.services.consoles.graphics.create(call_of(request), guest, request.ttl_s)
        return to_message(ticket, pb.CreateConsoleTicketResponse)

    async def AttachGraphics(
        self, requests: AsyncIterator[pb.AttachGraphicsRequest], _context: Context
    ) -> AsyncIterator[pb.AttachGraphicsResponse]:
        """The bytes of a display's protocol, both ways.

        Ends when the display closes, or the viewer half-closes: it has left then.
        """
        ticket = await _ticket(requests)
        current().resource, display = await self.services.consoles.graphics.open(ticket)
        passing = asyncio.create_task(_pass_data(requests, display))
        reading: asyncio.Task[bytes] | None = None
        try:
            yield pb.AttachGraphicsResponse()
            while True:
                reading = asyncio.create_task(display.read())
                await asyncio.wait({reading, passing}, return_when=asyncio.FIRST_COMPLETED)
                if passing.done():
                    passing.result()
                    return
                data = await reading
                if not data:
                    return
                yield pb.AttachGraphicsResponse(data=data)
        finally:
            for task in (passing, reading):
                if task is not None:
                    task.cancel()
                    with contextlib.suppress(asyncio.CancelledError, Exception):
                        await task
            await display.close()

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
        match request.WhichOneof("request"):
            case "take":
                console.take()
                continue
            case "release":
                console.release()
                continue
            case "start" | None:
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


async def _output(console: ConsoleClient, typing: asyncio.Task[None]) -> AsyncIterator[ConsoleChunk | ConsoleNotice]:
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
            yield said
    finally:
        if reading is not None:
            reading.cancel()


def _attached(console: ConsoleClient) -> pb.ConsoleAttached:
    return pb.ConsoleAttached(offset=console.offset, truncated=console.truncated, writer=console.writer)


def _news(said: ConsoleChunk | ConsoleNotice, response: Any) -> Any:
    """What a console said, as a response of one of the streams."""
    if isinstance(said, ConsoleChunk):
        return response(output=pb.ConsoleOutput(offset=said.offset, data=said.data))
    return response(notice=pb.ConsoleNotice(kind=said.kind, caller=said.caller))


async def _ticket(requests: AsyncIterator[pb.AttachGraphicsRequest]) -> str:
    async for request in requests:
        if request.WhichOneof("request") == "ticket":
            return request.ticket
        break
    raise invalid_field("ticket", "is required: the first request presents the ticket")


async def _pass_data(requests: AsyncIterator[pb.AttachGraphicsRequest], display: ConsoleStream) -> None:
    async for request in requests:
        if request.WhichOneof("request") != "data":
            raise invalid_field("ticket", "only the first request may be a ticket")
        if len(request.data) > _MAX_INPUT:
            raise invalid_field("data", f"has {len(request.data)} bytes; {_MAX_INPUT} at a time are the most")
        await display.write(request.data)
