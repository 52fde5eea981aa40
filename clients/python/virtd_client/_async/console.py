"""Serial consoles, graphical consoles and screenshots."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import suppress
from functools import cached_property
from types import TracebackType
from typing import TYPE_CHECKING, Self

from virtd_client._async.service import AsyncService
from virtd_client._io import aio as io
from virtd_client.errors import DAEMON_UNREACHABLE, Unavailable
from virtd_client.types import CONSOLE_INPUT_BYTES, ConsoleData, ConsoleItem, ConsoleNotice

if TYPE_CHECKING:
    from virtd.v1.console_pb2 import (
        AttachConsoleRequest,
        AttachConsoleResponse,
        AttachGraphicsRequest,
        AttachGraphicsResponse,
        CreateConsoleTicketResponse,
        FollowConsoleLogResponse,
        ReadConsoleLogResponse,
        TakeScreenshotResponse,
    )
    from virtd.v1.console_pb2_grpc import ConsoleServiceAsyncStub


class AsyncConsole(AsyncService):
    """Consoles of guests."""

    @cached_property
    def _stub(self) -> ConsoleServiceAsyncStub:
        from virtd.v1.console_pb2_grpc import ConsoleServiceStub

        return ConsoleServiceStub(self._transport.channel)

    def attach(
        self, name: str, *, read_only: bool = False, offset: int | None = None, take: bool = False
    ) -> AsyncConsoleSession:
        """A session at the serial console; it attaches when it is entered or first used.

        :param offset: begin here in what the guest printed, as far as the daemon still has it;
            None: now.
        :param take: take the right to write for this session alone.
        """
        return AsyncConsoleSession(self, name, read_only=read_only, offset=offset, take=take)

    async def read_log(self, name: str, *, offset: int | None = None, max_bytes: int = 0) -> ReadConsoleLogResponse:
        """The tail of what the guest printed.

        :param offset: begin here; None: as far back as ``max_bytes`` allows.
        :param max_bytes: the last ones; 0: 64 KiB.
        """
        from virtd.v1 import console_pb2 as pb

        request = pb.ReadConsoleLogRequest(name=name, offset=offset, max_bytes=max_bytes)
        return await self._transport.unary(self._stub.ReadConsoleLog, request)

    async def screenshot(self, name: str) -> TakeScreenshotResponse:
        """A picture of the display: ``data`` and ``mime_type``."""
        from virtd.v1 import console_pb2 as pb

        return await self._transport.unary(self._stub.TakeScreenshot, pb.TakeScreenshotRequest(name=name))

    async def follow_log(self, name: str, *, offset: int | None = None) -> AsyncIterator[ConsoleItem]:
        """What the guest printed since an offset, and prints from now on, without the right to write."""
        from virtd.v1 import console_pb2 as pb

        stream: io.Stream[pb.FollowConsoleLogRequest, FollowConsoleLogResponse]
        stream = self._transport.stream(
            self._stub.FollowConsoleLog, pb.FollowConsoleLogRequest(name=name, offset=offset)
        )
        try:
            while True:
                try:
                    response = await stream.read()
                except io.RpcError as error:
                    raise self._transport.error(error) from None
                if response is None:
                    return
                kind = response.WhichOneof("response")
                if kind == "output":
                    yield ConsoleData(response.output.offset, response.output.data)
                elif kind == "notice":
                    yield ConsoleNotice(response.notice.kind, response.notice.caller)
        finally:
            stream.cancel()

    async def ticket(self, name: str, *, ttl_s: float = 0) -> CreateConsoleTicketResponse:
        """A ticket for one connection to the guest's display.

        :param ttl_s: how long it can be used; 0: 60.
        """
        from virtd.v1 import console_pb2 as pb

        request = pb.CreateConsoleTicketRequest(name=name, kind=pb.CONSOLE_KIND_GRAPHICAL, ttl_s=ttl_s)
        return await self._transport.unary(self._stub.CreateConsoleTicket, request, retry=False)

    async def graphics(self, ticket: str) -> AsyncGraphicsSession:
        """A connection to a display, which a ticket opens.

        :raises PermissionDenied: CONSOLE_TICKET_INVALID.
        """
        session = AsyncGraphicsSession(self, self._transport.bidi(self._stub.AttachGraphics))
        await session.present(ticket)
        return session

    def _open(self) -> io.Bidi[AttachConsoleRequest, AttachConsoleResponse]:
        return self._transport.bidi(self._stub.AttachConsole)


class AsyncConsoleSession:
    """A dialogue with a serial console; iterate for what the guest prints.

    One reader and one writer may use it at once, after it was entered.  It ends when it is closed,
    and raises Unavailable when the connection is lost: attach again from ``offset``, and nothing is
    missed that the daemon still has.
    """

    def __init__(
        self, console: AsyncConsole, name: str, *, read_only: bool, offset: int | None, take: bool = False
    ) -> None:
        self.name = name
        self.writer = ""
        """Who had taken the right to write when this session attached; empty: it was shared."""
        self.offset = offset or 0
        """Offset after the last byte that was handed out; to attach again from."""
        self.truncated = False
        """Whether bytes between the offset that was asked for and the first one are no longer held."""
        self._console = console
        self._read_only = read_only
        self._take = take
        self._start_offset = offset
        self._call: io.Bidi[AttachConsoleRequest, AttachConsoleResponse] | None = None
        self._closed = False

    async def open(self) -> None:
        """Attach, unless it has.

        :raises VirtdError: as the daemon says.
        :raises ValueError: it is closed.
        """
        await self._opened()

    async def write(self, data: bytes) -> None:
        """Send input to the guest, whatever its length.

        :raises VirtdError: the session was refused or lost.
        :raises ValueError: it is closed.
        """
        from virtd.v1 import console_pb2 as pb

        call = await self._opened()
        for start in range(0, len(data), CONSOLE_INPUT_BYTES):
            try:
                taken = await call.write(pb.AttachConsoleRequest(input=data[start : start + CONSOLE_INPUT_BYTES]))
            except io.RpcError as error:
                raise self._console._transport.error(error) from None  # noqa: SLF001 - its own service
            if not taken:
                raise Unavailable(f"the daemon has ended the console session of {self.name}", reason=DAEMON_UNREACHABLE)

    async def take(self) -> None:
        """Take the right to write for this session alone, whoever had it; the notice ``TAKEN`` confirms it."""
        from virtd.v1 import console_pb2 as pb

        await self._say(pb.AttachConsoleRequest(take=pb.ConsoleTake()))

    async def release(self) -> None:
        """Give the right to write back to all."""
        from virtd.v1 import console_pb2 as pb

        await self._say(pb.AttachConsoleRequest(release=pb.ConsoleRelease()))

    async def _say(self, request: AttachConsoleRequest) -> None:
        call = await self._opened()
        try:
            await call.write(request)
        except io.RpcError as error:
            raise self._console._transport.error(error) from None  # noqa: SLF001 - its own service

    async def close(self) -> None:
        """Detach; harmless when it has.  A reader comes to its end."""
        self._closed = True
        if self._call is not None:
            self._call.cancel()

    async def __aenter__(self) -> Self:
        await self._opened()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> ConsoleItem:
        call = await self._opened()
        while True:
            response = await self._read(call)
            if response is None:
                raise StopAsyncIteration
            kind = response.WhichOneof("response")
            if kind == "output":
                output = response.output
                self.offset = output.offset + len(output.data)
                return ConsoleData(output.offset, output.data)
            if kind == "notice":
                return ConsoleNotice(response.notice.kind, response.notice.caller)

    async def _opened(self) -> io.Bidi[AttachConsoleRequest, AttachConsoleResponse]:
        from virtd.v1 import console_pb2 as pb

        if self._closed:
            raise ValueError(f"the console session of {self.name} is closed")
        if self._call is not None:
            return self._call
        self._call = self._console._open()  # noqa: SLF001 - its own service
        start = pb.ConsoleStart(name=self.name, read_only=self._read_only, offset=self._start_offset, take=self._take)
        with suppress(io.RpcError):  # the read below says why
            await self._call.write(pb.AttachConsoleRequest(start=start))
        attached = await self._read(self._call)
        if attached is not None:
            self.offset = attached.attached.offset
            self.truncated = attached.attached.truncated
            self.writer = attached.attached.writer
        return self._call

    async def _read(self, call: io.Bidi[AttachConsoleRequest, AttachConsoleResponse]) -> AttachConsoleResponse | None:
        try:
            return await call.read()
        except io.RpcError as error:
            transport = self._console._transport  # noqa: SLF001 - its own service
            if self._closed or transport.closed:
                return None
            raise transport.error(error) from None
        except BaseException:
            # Ctrl-C, or the task was cancelled: the call must not go on without a reader.
            call.cancel()
            raise


class AsyncGraphicsSession:
    """A connection to a display: the bytes of its protocol.  Made by :meth:`AsyncConsole.graphics`."""

    def __init__(self, console: AsyncConsole, call: io.Bidi[AttachGraphicsRequest, AttachGraphicsResponse]) -> None:
        self._console = console
        self._call = call

    async def present(self, ticket: str) -> None:
        """Present the ticket."""
        from virtd.v1 import console_pb2 as pb

        with suppress(io.RpcError):  # the read below says why
            await self._call.write(pb.AttachGraphicsRequest(ticket=ticket))
        await self.read()

    async def read(self) -> bytes:
        """The next bytes; ``b""`` when the display has closed."""
        try:
            response = await self._call.read()
        except io.RpcError as error:
            raise self._console._transport.error(error) from None  # noqa: SLF001 - its own service
        return b"" if response is None else response.data

    async def write(self, data: bytes) -> None:
        """Send to the display, whatever the length."""
        from virtd.v1 import console_pb2 as pb

        for begin in range(0, len(data), CONSOLE_INPUT_BYTES):
            try:
                await self._call.write(pb.AttachGraphicsRequest(data=data[begin : begin + CONSOLE_INPUT_BYTES]))
            except io.RpcError as error:
                raise self._console._transport.error(error) from None  # noqa: SLF001 - its own service

    async def close(self) -> None:
        """Disconnect; harmless when it has."""
        self._call.cancel()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()
