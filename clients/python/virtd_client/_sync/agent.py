# Generated from _async/agent.py by `python -m tests.tools.gen_sync_client`; never edited by hand.
"""The guest's agent: commands, files, frozen file systems."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from functools import cached_property
from types import TracebackType
from typing import TYPE_CHECKING, Self

from virtd_client._io import blocking as io
from virtd_client._sync.service import Service
from virtd_client.errors import DAEMON_UNREACHABLE, Unavailable
from virtd_client.types import ExecOutput

if TYPE_CHECKING:
    from virtd.v1.agent_pb2 import (
        AgentOsInfo,
        ExecCommandResponse,
        ExecStart,
        ExecStreamRequest,
        ExecStreamResponse,
        FreezeFilesystemsResponse,
        WriteFileResponse,
    )
    from virtd.v1.agent_pb2_grpc import AgentServiceStub

_EXEC_DEFAULT_S = 60.0
_GRACE_S = 70.0
_INPUT_BYTES = 256 * 1024
_FILE_BYTES = 512 * 1024


class Agent(Service):
    """The guest's agent."""

    @cached_property
    def _stub(self) -> AgentServiceStub:
        from virtd.v1.agent_pb2_grpc import AgentServiceStub

        return AgentServiceStub(self._transport.channel)

    def exec(
        self,
        name: str,
        path: str,
        args: Sequence[str] = (),
        *,
        environment: Mapping[str, str] | None = None,
        input_data: bytes = b"",
        timeout_s: float = _EXEC_DEFAULT_S,
    ) -> ExecCommandResponse:
        """Run a program in a guest and wait for its end.

        It is never repeated, as it could run twice.

        :param path: the program; no shell is involved.
        :param input_data: its standard input, at most 1 MiB.
        :param timeout_s: how long it may run; then it is ended in the guest, and this raises
            DeadlineExceeded, whose metadatum ``killed`` says whether that worked.
        """
        from virtd.v1 import agent_pb2 as pb

        request = pb.ExecCommandRequest(
            name=name,
            path=path,
            arguments=args,
            environment=[f"{key}={value}" for key, value in (environment or {}).items()],
            input_data=input_data,
            timeout_s=timeout_s,
        )
        return self._transport.unary(
            self._stub.ExecCommand, request, timeout_s=(timeout_s or _EXEC_DEFAULT_S) + _GRACE_S, retry=False
        )

    def start(
        self,
        name: str,
        path: str,
        args: Sequence[str] = (),
        *,
        environment: Mapping[str, str] | None = None,
        input_data: bytes = b"",
        stdin: bool = False,
        timeout_s: float = _EXEC_DEFAULT_S,
    ) -> ExecSession:
        """A program whose output comes while it runs; it starts when the session is entered or first used.

        Closing the session ends the program.

        :param stdin: its standard input stays open for :meth:`ExecSession.write`.
        """
        from virtd.v1 import agent_pb2 as pb

        start = pb.ExecStart(
            name=name,
            path=path,
            arguments=args,
            environment=[f"{key}={value}" for key, value in (environment or {}).items()],
            input_data=input_data,
            timeout_s=timeout_s,
            stdin=stdin,
        )
        return ExecSession(self, start)

    def iter_file(self, name: str, path: str, *, offset: int = 0, max_bytes: int = 0) -> Iterator[bytes]:
        """The bytes of a file of the guest, in parts.

        :param max_bytes: at most so many; 0: to the end.
        """
        from virtd.v1 import agent_pb2 as pb

        request = pb.ReadFileRequest(name=name, path=path, offset=offset, max_bytes=max_bytes)
        stream = self._transport.stream(self._stub.ReadFile, request)
        try:
            while True:
                try:
                    response = stream.read()
                except io.RpcError as error:
                    raise self._transport.error(error) from None
                if response is None:
                    return
                yield response.data
        finally:
            stream.cancel()

    def read_file(self, name: str, path: str, *, offset: int = 0, max_bytes: int = 0) -> bytes:
        """A file of the guest, or a part of it, in memory."""
        parts = bytearray()
        for part in self.iter_file(name, path, offset=offset, max_bytes=max_bytes):
            parts += part
        return bytes(parts)

    def write_file(
        self,
        name: str,
        path: str,
        data: bytes,
        *,
        mode: int | None = None,
        offset: int = 0,
        in_place: bool = False,
    ) -> WriteFileResponse:
        """Write a file of the guest; the answer's ``atomic`` says whether nobody could see it half-written.

        It is never repeated.

        :param mode: its permissions, such as ``0o644``; None: as before, else 0o600.
        :param offset: write from this byte on, into the file as it is.
        """
        from virtd.v1 import agent_pb2 as pb

        start = pb.WriteFileStart(name=name, path=path, offset=offset, in_place=in_place, mode=mode)
        call = self._transport.bidi(self._stub.WriteFile)
        try:
            taken = call.write(pb.WriteFileRequest(start=start))
            for begin in range(0, len(data), _FILE_BYTES):
                if not taken:
                    break
                taken = call.write(pb.WriteFileRequest(data=data[begin : begin + _FILE_BYTES]))
            call.done_writing()
            response = call.read()
        except io.RpcError as error:
            raise self._transport.error(error) from None
        finally:
            call.cancel()
        if response is None:
            raise Unavailable(f"the daemon has ended the call for {path}", reason=DAEMON_UNREACHABLE)
        return response

    def freeze(self, name: str, *, mountpoints: Sequence[str] = (), timeout_s: float = 0) -> FreezeFilesystemsResponse:
        """Freeze the guest's file systems; ``thaw_time`` says when the daemon thaws them by itself.

        :param timeout_s: so long at the most; 0: 60.
        """
        from virtd.v1 import agent_pb2 as pb

        request = pb.FreezeFilesystemsRequest(name=name, mountpoints=mountpoints, timeout_s=timeout_s)
        return self._transport.unary(self._stub.FreezeFilesystems, request)

    def thaw(self, name: str) -> int:
        """Thaw the guest's file systems; how many were frozen."""
        from virtd.v1 import agent_pb2 as pb

        request = pb.ThawFilesystemsRequest(name=name)
        return (self._transport.unary(self._stub.ThawFilesystems, request)).thawed_count

    def os_info(self, name: str) -> AgentOsInfo:
        """What the guest's system says of itself."""
        from virtd.v1 import agent_pb2 as pb

        return (self._transport.unary(self._stub.GetOsInfo, pb.GetOsInfoRequest(name=name))).os_info

    def _open(self) -> io.Bidi[ExecStreamRequest, ExecStreamResponse]:
        return self._transport.bidi(self._stub.ExecStream)


class ExecSession:
    """A program that runs in a guest; iterate for what it says.  One reader and one writer may use it at once."""

    def __init__(self, agent: Agent, start: ExecStart) -> None:
        self.guest_pid: int | None = None
        """Its process id in the guest, where it is known."""
        self.live = False
        """Whether its output comes while it runs."""
        self.exit_code: int | None = None
        """After the last output: its exit code, unless a signal ended it."""
        self.signal: int | None = None
        """After the last output: the signal that ended it."""
        self._agent = agent
        self._start = start
        self._call: io.Bidi[ExecStreamRequest, ExecStreamResponse] | None = None
        self._ended = False
        self._closed = False

    def write(self, data: bytes) -> None:
        """Send to its standard input, whatever the length.  What it does not read any more is dropped.

        :raises VirtdError: the session was refused or lost.
        """
        from virtd.v1 import agent_pb2 as pb

        call = self._opened()
        for begin in range(0, len(data), _INPUT_BYTES):
            try:
                if not call.write(pb.ExecStreamRequest(input=data[begin : begin + _INPUT_BYTES])):
                    return
            except io.RpcError as error:
                raise self._agent._transport.error(error) from None  # noqa: SLF001 - its own service

    def close_input(self) -> None:
        """End its standard input."""
        call = self._opened()
        with suppress(io.RpcError):  # reading says why
            call.done_writing()

    def close(self) -> None:
        """End the program if it still runs; harmless when it has ended."""
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

    def __next__(self) -> ExecOutput:
        call = self._opened()
        response = None if self._ended else self._read(call)
        kind = None if response is None else response.WhichOneof("response")
        if response is None or kind is None:
            raise StopIteration
        if kind == "exited":
            self._ended = True
            exited = response.exited
            self.exit_code = exited.exit_code if exited.HasField("exit_code") else None
            self.signal = exited.signal if exited.HasField("signal") else None
            raise StopIteration
        return ExecOutput(kind, response.stdout if kind == "stdout" else response.stderr)

    def _opened(self) -> io.Bidi[ExecStreamRequest, ExecStreamResponse]:
        from virtd.v1 import agent_pb2 as pb

        if self._closed:
            raise ValueError(f"the session of {self._start.path} is closed")
        if self._call is not None:
            return self._call
        self._call = self._agent._open()  # noqa: SLF001 - its own service
        with suppress(io.RpcError):  # the read below says why
            self._call.write(pb.ExecStreamRequest(start=self._start))
        response = self._read(self._call)
        if response is not None:
            self.live = response.started.live
            self.guest_pid = response.started.guest_pid if response.started.HasField("guest_pid") else None
        return self._call

    def _read(self, call: io.Bidi[ExecStreamRequest, ExecStreamResponse]) -> ExecStreamResponse | None:
        try:
            return call.read()
        except io.RpcError as error:
            transport = self._agent._transport  # noqa: SLF001 - its own service
            if self._closed or transport.closed:
                return None
            raise transport.error(error) from None
        except BaseException:
            # Ctrl-C, or the task was cancelled: the program must not go on without a reader.
            call.cancel()
            raise
