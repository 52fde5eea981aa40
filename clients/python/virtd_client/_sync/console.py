# Generated from _async/console.py by `python -m tests.tools.gen_sync_client`; never edited by hand.
"""Serial consoles and screenshots."""

from __future__ import annotations

from contextlib import suppress
from functools import cached_property
from types import TracebackType
from typing import TYPE_CHECKING, Self

from virtd_client._io import blocking as io
from virtd_client._sync.service import Service
from virtd_client.errors import DAEMON_UNREACHABLE, Unavailable
from virtd_client.types import CONSOLE_INPUT_BYTES, ConsoleData, ConsoleItem, ConsoleNotice

if TYPE_CHECKING:
    from virtd.v1.console_pb2 import (
        AttachConsoleRequest,
        AttachConsoleResponse,
        ReadConsoleLogResponse,
        TakeScreenshotResponse,
    )
    from virtd.v1.console_pb2_grpc import ConsoleServiceStub


class Console(Service):
    """Consoles of guests."""

    @cached_property
    def _stub(self) -> ConsoleServiceStub:
        from virtd.v1.console_pb2_grpc import ConsoleServiceStub

        return ConsoleServiceStub(self._transport.channel)

    def attach(self, name: str, *, read_only: bool = False, offset: int | None = None) -> ConsoleSession:
        """A session at the serial console; it attaches when it is entered or first used.

        :param offset: begin here in what the guest printed, as far as the daemon still has it;
            None: now.
        """
        return ConsoleSession(self, name, read_only=read_only, offset=offset)

    def read_log(self, name: str, *, offset: int | None = None, max_bytes: int = 0) -> ReadConsoleLogResponse:
        """The tail of what the guest printed.

        :param offset: begin here; None: as far back as ``max_bytes`` allows.
        :param max_bytes: the last ones; 0: 64 KiB.
        """
        from virtd.v1 import console_pb2 as pb

        request = pb.ReadConsoleLogRequest(name=name, offset=offset, max_bytes=max_bytes)
        return self._transport.unary(self._stub.ReadConsoleLog, request)

    def screenshot(self, name: str) -> TakeScreenshotResponse:
        """A picture of the display: ``data`` and ``mime_type``."""
        from virtd.v1 import console_pb2 as pb

        return self._transport.unary(self._stub.TakeScreenshot, pb.TakeScreenshotRequest(name=name))

    def _open(self) -> io.Bidi[AttachConsoleRequest, AttachConsoleResponse]:
        return self._transport.bidi(self._stub.AttachConsole)


class ConsoleSession:
    """A dialogue with a serial console; iterate for what the guest prints.

    One reader and one writer may use it at once, after it was entered.  It ends when it is closed,
    and raises Unavailable when the connection is lost: attach again from ``offset``, and nothing is
    missed that the daemon still has.
    """

    def __init__(self, console: Console, name: str, *, read_only: bool, offset: int | None) -> None:
        self.name = name
        self.offset = offset or 0
        """Offset after the last byte that was handed out; to attach again from."""
        self.truncated = False
        """Whether bytes between the offset that was asked for and the first one are no longer held."""
        self._console = console
        self._read_only = read_only
        self._start_offset = offset
        self._call: io.Bidi[AttachConsoleRequest, AttachConsoleResponse] | None = None
        self._closed = False

    def open(self) -> None:
        """Attach, unless it has.

        :raises VirtdError: as the daemon says.
        :raises ValueError: it is closed.
        """
        self._opened()

    def write(self, data: bytes) -> None:
        """Send input to the guest, whatever its length.

        :raises VirtdError: the session was refused or lost.
        :raises ValueError: it is closed.
        """
        from virtd.v1 import console_pb2 as pb

        call = self._opened()
        for start in range(0, len(data), CONSOLE_INPUT_BYTES):
            try:
                taken = call.write(pb.AttachConsoleRequest(input=data[start : start + CONSOLE_INPUT_BYTES]))
            except io.RpcError as error:
                raise self._console._transport.error(error) from None  # noqa: SLF001 - its own service
            if not taken:
                raise Unavailable(f"the daemon has ended the console session of {self.name}", reason=DAEMON_UNREACHABLE)

    def close(self) -> None:
        """Detach; harmless when it has.  A reader comes to its end."""
        self._closed = True
        if self._call is not None:
            self._call.cancel()

    def __enter__(self) -> Self:
        self._opened()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> ConsoleItem:
        call = self._opened()
        while True:
            response = self._read(call)
            if response is None:
                raise StopIteration
            kind = response.WhichOneof("response")
            if kind == "output":
                output = response.output
                self.offset = output.offset + len(output.data)
                return ConsoleData(output.offset, output.data)
            if kind == "notice":
                return ConsoleNotice(response.notice.kind)

    def _opened(self) -> io.Bidi[AttachConsoleRequest, AttachConsoleResponse]:
        from virtd.v1 import console_pb2 as pb

        if self._closed:
            raise ValueError(f"the console session of {self.name} is closed")
        if self._call is not None:
            return self._call
        self._call = self._console._open()  # noqa: SLF001 - its own service
        start = pb.ConsoleStart(name=self.name, read_only=self._read_only, offset=self._start_offset)
        with suppress(io.RpcError):  # the read below says why
            self._call.write(pb.AttachConsoleRequest(start=start))
        attached = self._read(self._call)
        if attached is not None:
            self.offset = attached.attached.offset
            self.truncated = attached.attached.truncated
        return self._call

    def _read(self, call: io.Bidi[AttachConsoleRequest, AttachConsoleResponse]) -> AttachConsoleResponse | None:
        try:
            return call.read()
        except io.RpcError as error:
            transport = self._console._transport  # noqa: SLF001 - its own service
            if self._closed or transport.closed:
                return None
            raise transport.error(error) from None
        except BaseException:
            # Ctrl-C, or the task was cancelled: the call must not go on without a reader.
            call.cancel()
            raise
