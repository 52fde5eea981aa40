"""A gRPC server that plays what a test tells it, and a proxy that can cut its connections.

It knows every service of virtd.v1 and google.longrunning.Operations, records every call, and
answers from a script: per method a list of steps, of which the last one is repeated.  A step is a
response message, a :class:`Fail`, or an async function of request and context (an async generator
for methods that stream).  A method without a script is UNIMPLEMENTED.

The server runs on a thread of its own, so that sync and async clients are tested in the same way.
"""

from __future__ import annotations

import asyncio
import tempfile
import threading
from collections import defaultdict
from collections.abc import AsyncIterator, Callable, Coroutine, Iterable, Sequence
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import grpc
import grpc.aio
from google.longrunning import operations_pb2
from google.protobuf import any_pb2, message_factory
from google.protobuf.descriptor import MethodDescriptor
from google.protobuf.message import Message
from google.rpc import error_details_pb2, status_pb2

from virtd.v1 import capability_pb2, operation_pb2

_MODULES = [
    *(
        f"virtd.v1.{name}_pb2"
        for name in (
            "agent",
            "audit",
            "backup",
            "console",
            "device",
            "event",
            "guest_service",
            "host",
            "image",
            "metrics",
            "network",
            "schedule",
            "server",
            "snapshot",
            "storage",
            "transfer",
            "trash",
            "upload",
        )
    ),
    "google.longrunning.operations_pb2",
]


def _methods() -> dict[str, MethodDescriptor]:
    methods = {}
    for name in _MODULES:
        descriptor = import_module(name).DESCRIPTOR
        for service in descriptor.services_by_name.values():
            for method in service.methods:
                methods[f"/{service.full_name}/{method.name}"] = method
    return methods


_METHODS = _methods()
METHOD_NAMES = tuple(method.name for method in _METHODS.values())


@dataclass(frozen=True)
class Fail:
    """End the call with an error: ``details`` are attached as the daemon attaches them."""

    code: int
    message: str = "no"
    details: tuple[Message, ...] = ()

    def status(self) -> status_pb2.Status:
        return status(self.code, self.message, *self.details)


def status(code: int, message: str, *details: Message) -> status_pb2.Status:
    packed = []
    for detail in details:
        packed.append(any_pb2.Any())
        packed[-1].Pack(detail)
    return status_pb2.Status(code=code, message=message, details=packed)


def virtd_fail(code: int, reason: str, kind: str, **record: Any) -> Fail:
    """A failure as the daemon sends it: ErrorInfo and the record."""
    return Fail(
        code,
        record.get("message", "no"),
        (
            error_details_pb2.ErrorInfo(reason=reason, domain="virtd"),
            capability_pb2.ErrorRecord(kind=kind, reason=reason, **{"message": "no", **record}),
        ),
    )


AWAY = Fail(14, "away")
"""UNAVAILABLE without anything of virtd's, as when a connection is lost."""


@dataclass(frozen=True)
class Call:
    """One call that arrived."""

    method: str
    request: Any
    metadata: dict[str, str | bytes]
    requests: list[Any] = field(default_factory=list)
    ended: threading.Event = field(default_factory=threading.Event)
    """Set when the handler is over, by itself or because the client went away."""


class ScriptedServer:
    """Plays a script at ``target``; keeps script and record over :meth:`stop` and :meth:`start`."""

    def __init__(self) -> None:
        # pytest's own temporary directories are too long for the path of a socket.
        self._directory = tempfile.TemporaryDirectory(prefix="virtd-")
        self.directory = Path(self._directory.name)
        self.path = self.directory / "server.sock"
        self.target = f"unix:{self.path}"
        self.calls: list[Call] = []
        self._script: dict[str, list[Any]] = {}
        self._played: dict[str, int] = defaultdict(int)
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="scripted-server", daemon=True)
        self._server: grpc.aio.Server | None = None

    def on(self, method: str, *steps: Any) -> None:
        """Set the steps of a method, by its short name (``GetGuest``)."""
        assert method in METHOD_NAMES, method
        self._script[method] = list(steps)
        self._played[method] = 0

    def calls_of(self, method: str) -> list[Call]:
        assert method in METHOD_NAMES, method
        return [call for call in self.calls if call.method == method]

    def start(self) -> None:
        self.run(self._start())

    def stop(self) -> None:
        """End at once: what is under way is broken off."""
        self.run(self._stop())

    def restart(self) -> None:
        self.stop()
        self.start()

    def run(self, coroutine: Coroutine[Any, Any, Any]) -> Any:
        """Run something on the server's loop and wait for it."""
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop).result(20)

    def __enter__(self) -> Self:
        self._thread.start()
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()
        self.run(self._drain())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(20)
        assert not self._thread.is_alive()
        self._loop.close()
        self._directory.cleanup()

    async def _drain(self) -> None:
        rest = [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]
        for task in rest:
            task.cancel()
        await asyncio.gather(*rest, return_exceptions=True)

    async def _start(self) -> None:
        self.path.unlink(missing_ok=True)
        self._server = grpc.aio.server(options=[("grpc.http2.min_ping_interval_without_data_ms", 5_000)])
        self._server.add_generic_rpc_handlers([_Handlers(self)])
        self._server.add_insecure_port(self.target)
        await self._server.start()

    async def _stop(self) -> None:
        server, self._server = self._server, None
        if server is not None:
            await server.stop(None)

    def next_step(self, method: str) -> Any:
        steps = self._script.get(method)
        if not steps:
            return Fail(12, f"{method} has no script")
        step = steps[min(self._played[method], len(steps) - 1)]
        self._played[method] += 1
        return step


class _Handlers(grpc.GenericRpcHandler):
    def __init__(self, server: ScriptedServer) -> None:
        self._server = server

    def service(self, details: grpc.HandlerCallDetails) -> grpc.RpcMethodHandler[Any, Any] | None:
        method = _METHODS.get(details.method)
        if method is None:
            return None
        request_class = message_factory.GetMessageClass(method.input_type)
        serializers = {
            "request_deserializer": request_class.FromString,
            "response_serializer": lambda message: message.SerializeToString(),
        }
        metadata = dict(details.invocation_metadata or ())
        if method.client_streaming:
            return grpc.stream_stream_rpc_method_handler(self._stream(method, metadata), **serializers)
        if method.server_streaming:
            return grpc.unary_stream_rpc_method_handler(self._stream(method, metadata), **serializers)
        return grpc.unary_unary_rpc_method_handler(self._unary(method, metadata), **serializers)

    def _unary(self, method: MethodDescriptor, metadata: dict[str, Any]) -> Callable[..., Any]:
        async def handle(request: Any, context: Any) -> Any:
            call = Call(method.name, request, metadata)
            self._server.calls.append(call)
            try:
                step = self._server.next_step(method.name)
                if callable(step):
                    step = await step(request, context)
                if isinstance(step, Fail):
                    await fail(context, step)
                return step
            finally:
                call.ended.set()

        return handle

    def _stream(self, method: MethodDescriptor, metadata: dict[str, Any]) -> Callable[..., Any]:
        async def handle(request: Any, context: Any) -> AsyncIterator[Any]:
            call = Call(method.name, request, metadata)
            self._server.calls.append(call)
            try:
                step = self._server.next_step(method.name)
                if isinstance(step, Fail):
                    await fail(context, step)
                async for response in step(request, context):
                    if isinstance(response, Fail):
                        await fail(context, response)
                    yield response
            finally:
                call.ended.set()

        return handle


async def fail(context: Any, failure: Fail) -> None:
    code = next(code for code in grpc.StatusCode if code.value[0] == failure.code)
    trailer: Sequence[tuple[str, bytes]] = ()
    if failure.details:
        trailer = (("grpc-status-details-bin", failure.status().SerializeToString()),)
    await context.abort(code, failure.message, trailer)


def operation(
    name: str,
    *,
    response: Message | None = None,
    error: status_pb2.Status | None = None,
    **metadata: Any,
) -> operations_pb2.Operation:
    """An operation as the daemon sends it; done if it has a response or an error."""
    packed = any_pb2.Any()
    packed.Pack(operation_pb2.OperationMetadata(name=name, **metadata))
    result = operations_pb2.Operation(name=name, metadata=packed)
    if response is not None:
        result.response.Pack(response)
    if error is not None:
        result.error.CopyFrom(error)
    result.done = response is not None or error is not None
    return result


def stream(*responses: Any, then: Callable[[], Coroutine[Any, Any, Any]] | None = None) -> Callable[..., Any]:
    """A step for a method that streams: the responses, then ``then``, then the end."""

    async def play(_request: Any, _context: Any) -> AsyncIterator[Any]:
        for response in responses:
            yield response
        if then is not None:
            await then()

    return play


async def forever() -> None:
    """For ``then``: the stream stays open and says nothing."""
    await asyncio.Event().wait()


class Proxy:
    """Stands before a server; :meth:`cut` is what SIGKILL of the daemon looks like."""

    def __init__(self, behind: ScriptedServer) -> None:
        self.path = behind.directory / "proxy.sock"
        self.target = f"unix:{self.path}"
        self._behind = behind
        self._server: asyncio.Server | None = None
        self._writers: set[asyncio.StreamWriter] = set()

    def mend(self) -> None:
        """Listen (again)."""
        self._behind.run(self._listen())

    def cut(self) -> None:
        """Break every connection, without a word of HTTP/2, and take the socket away."""
        self._behind.run(self._cut())

    async def _listen(self) -> None:
        self._server = await asyncio.start_unix_server(self._serve, self.path)

    async def _cut(self) -> None:
        if self._server is not None:
            self._server.close()
            self._server = None
            self.path.unlink(missing_ok=True)
        for writer in self._writers:
            writer.transport.abort()
        self._writers.clear()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            inner_reader, inner_writer = await asyncio.open_unix_connection(self._behind.path)
        except OSError:
            writer.transport.abort()
            return
        self._writers |= {writer, inner_writer}
        await asyncio.gather(_pump(reader, inner_writer), _pump(inner_reader, writer))


async def _pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    try:
        while data := await reader.read(65536):
            writer.write(data)
            await writer.drain()
    except OSError:
        pass
    finally:
        writer.transport.abort()


def ids(items: Iterable[Any]) -> list[int]:
    """Revisions of events."""
    return [item.revision for item in items]
