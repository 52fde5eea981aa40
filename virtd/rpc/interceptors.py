"""What happens around every RPC, in this order.

1. An id for the logs, and the caller's trace.
2. Who calls: the identity that the unix socket's front proved, or a bare TCP address.
3. May he: the table of :mod:`virtd.auth.authz`, default deny, before the request is looked at.
4. The request is checked (:mod:`virtd.rpc.requests`).
5. The method, bounded in time where the caller set no deadline.
6. Errors become a status with details.  What is not a contract error is a defect: the caller gets
   its id, the log the traceback, and no text of the exception leaves the daemon.
7. Log line, metrics, audit record.

One interceptor does all this for unary and streaming methods of every service, health and
reflection included.  It also knows the calls that wait for something, and ends them when the
daemon stops.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import ExitStack, aclosing
from dataclasses import dataclass, field
from typing import Any, Final, Protocol

import grpc

from virtd.auth import Peer, Policy, Rule, authorize
from virtd.errors import (
    DAEMON_STOPPING,
    DEADLINE_EXCEEDED,
    INTERNAL_ERROR,
    LIMIT_EXCEEDED,
    DeadlineExceededError,
    ErrorRecord,
    ResourceExhaustedError,
    VirtdError,
    invalid_field,
)
from virtd.obs.logging import bound, get_logger
from virtd.obs.tracing import remote_parent, span
from virtd.rpc.context import CURRENT, Context, Rpc, remaining
from virtd.rpc.requests import check, resource_of
from virtd.rpc.status import DETAILS_KEY, trailers

log = get_logger(__name__)

RPC_ID_KEY: Final = "virtd-rpc-id"
"""Trailing metadata: the id by which the daemon's log knows the call."""

OWN_PREFIXES: Final = ("/virtd.v1.", "/google.longrunning.")
"""Methods whose requests are checked; health and reflection have their own servicers."""

WAITING: Final = frozenset(
    {
        "/virtd.v1.GuestService/WaitGuest",
        "/virtd.v1.EventService/PullEvents",
        "/virtd.v1.AgentService/ExecCommand",
        "/google.longrunning.Operations/WaitOperation",
    }
)
"""Unary methods that may take long on purpose: not bounded in time, ended when the daemon stops."""

_UNCOUNTED: Final = "/grpc.health.v1."
_CODES: Final = {code.value[0]: code for code in grpc.StatusCode}
_MAX_AUDITED: Final = 300


class CallMetrics(Protocol):
    """Where the numbers of calls go."""

    def rpc_started(self, method: str) -> None:
        """A call has begun."""

    def rpc_finished(self, method: str, code: str, seconds: float) -> None:
        """A call has ended with a status code (``OK``)."""


class AuditSink(Protocol):
    """Where audit records go.  Returns at once."""

    def record(self, *, caller: str, method: str, resource: str, request_id: str, outcome: str, operation: str) -> None:
        """Note a call that changes something, or was denied."""


class MalformedRequest:
    """Stands for a request whose bytes are not its message."""


@dataclass(slots=True)
class Pipeline(grpc.aio.ServerInterceptor):
    """The interceptor.

    :param identify: gRPC's word for the peer (``context.peer()``) to an identity; never raises.
    :param max_call_s: bound of unary calls whose caller set no deadline.
    :param max_concurrent_calls: further ones, open streams included, are refused; health is not
        counted.
    """

    identify: Callable[[str], Peer]
    policy: Policy
    audit: AuditSink
    metrics: CallMetrics | None = None
    max_call_s: float = 300.0
    max_concurrent_calls: int = 10_000
    _active: int = 0
    _stopping: bool = False
    _wrapped: dict[str, tuple[Any, Any]] = field(default_factory=dict)
    _long: set[Rpc] = field(default_factory=set)

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[Any]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> Any:
        """Wrap the method's handler (once for each method)."""
        handler = await continuation(handler_call_details)
        if handler is None:
            return None  # gRPC answers UNIMPLEMENTED
        method = handler_call_details.method
        known = self._wrapped.get(method)
        if known is None or known[0] is not handler:
            known = self._wrapped[method] = (handler, self._wrap(method, handler))
        return known[1]

    def drain(self) -> None:
        """End the calls that wait or stream, with UNAVAILABLE DAEMON_STOPPING; refuse new ones of them.

        Short calls go on to their end.
        """
        self._stopping = True
        for rpc in list(self._long):
            self._end(rpc)

    # ------------------------------------------------------------------------------------- wrapping

    def _wrap(self, method: str, handler: Any) -> Any:
        own = method.startswith(OWN_PREFIXES)
        if not handler.response_streaming:
            if handler.request_streaming:
                message = f"{method}: client-streaming methods are not served"
                raise TypeError(message)
            return grpc.unary_unary_rpc_method_handler(
                self._unary(method, handler.unary_unary, own=own),
                request_deserializer=handler.request_deserializer,
                response_serializer=handler.response_serializer,
            )
        make = (
            grpc.stream_stream_rpc_method_handler
            if handler.request_streaming
            else (grpc.unary_stream_rpc_method_handler)
        )
        behaviour = handler.stream_stream if handler.request_streaming else handler.unary_stream
        return make(
            self._streaming(method, behaviour, own=own, requests=handler.request_streaming),
            request_deserializer=handler.request_deserializer,
            response_serializer=handler.response_serializer,
        )

    def _unary(self, method: str, behaviour: Any, *, own: bool) -> Any:
        waiting = method in WAITING

        async def unary(request: Any, context: Context) -> Any:
            async def body(rpc: Rpc) -> Any:
                if own:
                    _accept(rpc, request)
                if waiting:
                    with self._drained(rpc):
                        return await behaviour(request, context)
                return await self._bounded(behaviour(request, context), context)

            return await self._serve(method, context, body, request)

        return unary

    def _streaming(self, method: str, behaviour: Any, *, own: bool, requests: bool) -> Any:
        async def stream(incoming: Any, context: Context) -> None:
            async def body(rpc: Rpc) -> None:
                if own and not requests:
                    _accept(rpc, incoming)
                source = _accepted(rpc, incoming) if own and requests else incoming
                with self._drained(rpc):
                    async with aclosing(behaviour(source, context)) as responses:
                        async for response in responses:
                            await context.write(response)

            await self._serve(method, context, body, None if requests else incoming)

        return stream

    # -------------------------------------------------------------------------------------- serving

    async def _serve(self, method: str, context: Context, body: Callable[[Rpc], Awaitable[Any]], request: Any) -> Any:
        rpc = Rpc(method, uuid.uuid4().hex[:16], context, self.identify(context.peer()), task=asyncio.current_task())
        started = time.monotonic()
        rule: Rule | None = None
        error: ErrorRecord | None = None
        outcome = "OK"
        CURRENT.set(rpc)
        if self.metrics is not None:
            self.metrics.rpc_started(method)
        with ExitStack() as stack:
            stack.enter_context(bound(rpc_id=rpc.rpc_id, method=method, caller=rpc.caller))
            self._trace(stack, rpc)
            try:
                rule = authorize(self.policy, rpc.peer, method)
                with self._counted(method):
                    answer = await body(rpc)
                context.set_trailing_metadata(((RPC_ID_KEY, rpc.rpc_id),))
            except VirtdError as raised:
                error = raised.record
            except asyncio.CancelledError:
                task = asyncio.current_task()
                if rpc.draining and task is not None and task.uncancel() == 0:
                    error = _STOPPING
                elif task is not None and task.cancelling():
                    outcome = "CANCELLED"  # the caller went away, or its deadline passed
                    raise
                else:
                    log.exception("a task inside the service was cancelled")
                    error = _defect(rpc)
            except grpc.aio.AbortError:
                outcome = _name_of(context.code())
                raise
            except Exception:
                log.exception("defect")
                error = _defect(rpc)
            else:
                return answer
            finally:
                if error is not None:
                    outcome = error.reason
                code = _name_of(trailers(error).code) if error is not None else outcome
                self._finish(rpc, code, outcome, time.monotonic() - started)
                self._audit(rpc, rule, request, outcome)
            await _abort(context, error, rpc.rpc_id)
            return None

    @contextlib.contextmanager
    def _counted(self, method: str) -> Iterator[None]:
        if method.startswith(_UNCOUNTED):
            yield
            return
        if self._active >= self.max_concurrent_calls:
            raise ResourceExhaustedError(
                LIMIT_EXCEEDED,
                f"{self._active} calls are being served, which is the limit (server.max_concurrent_calls)",
                retry_after_s=1.0,
            )
        self._active += 1
        try:
            yield
        finally:
            self._active -= 1

    async def _bounded(self, work: Awaitable[Any], context: Context) -> Any:
        if remaining(context) is not None:
            return await work  # gRPC cancels the call at its deadline
        limit = asyncio.timeout(self.max_call_s)
        try:
            async with limit:
                return await work
        except TimeoutError:
            if not limit.expired():
                raise
            raise DeadlineExceededError(
                DEADLINE_EXCEEDED, f"no answer within {self.max_call_s:g} s, which is the limit of this daemon"
            ) from None

    @contextlib.contextmanager
    def _drained(self, rpc: Rpc) -> Iterator[None]:
        """Within, the call is ended when the daemon stops."""
        self._long.add(rpc)
        if self._stopping:
            self._end(rpc)
        try:
            yield
        finally:
            self._long.discard(rpc)

    @staticmethod
    def _end(rpc: Rpc) -> None:
        if rpc.task is not None and not rpc.draining:
            rpc.draining = True
            rpc.task.cancel()

    @staticmethod
    def _trace(stack: ExitStack, rpc: Rpc) -> None:
        carrier = {
            key: value
            for key, value in rpc.context.invocation_metadata() or ()
            if key in ("traceparent", "tracestate") and isinstance(value, str)
        }
        if carrier:
            stack.enter_context(remote_parent(carrier))
        stack.enter_context(span("rpc", method=rpc.method, rpc_id=rpc.rpc_id, caller=rpc.caller))

    def _finish(self, rpc: Rpc, code: str, outcome: str, seconds: float) -> None:
        if self.metrics is not None:
            self.metrics.rpc_finished(rpc.method, code, seconds)
        level = log.debug if code in ("OK", "CANCELLED") and not rpc.operation else log.info
        level(
            "rpc",
            code=code,
            reason=outcome,
            seconds=round(seconds, 6),
            resource=rpc.resource[:_MAX_AUDITED],
            request_id=rpc.request_id,
            operation=rpc.operation,
        )

    def _audit(self, rpc: Rpc, rule: Rule | None, request: Any, outcome: str) -> None:
        if rule is not None and (not rule.audited or rpc.validate_only):
            return
        if rule is None and request is not None and not rpc.resource and rpc.method.startswith(OWN_PREFIXES):
            # Denied: nothing of the request was checked, so it is made fit to be read.
            rpc.resource = "" if isinstance(request, MalformedRequest) else resource_of(request)
            rpc.resource = ascii(rpc.resource[:_MAX_AUDITED])[1:-1]
        self.audit.record(
            caller=rpc.caller,
            method=rpc.method,
            resource=rpc.resource[:_MAX_AUDITED],
            request_id=rpc.request_id,
            outcome=outcome,
            operation=rpc.operation,
        )


def _accept(rpc: Rpc, request: Any) -> None:
    """Check a request, and note what the logs say of it."""
    if isinstance(request, MalformedRequest):
        raise invalid_field("request", f"is not a message that {rpc.method} takes")
    check(request)
    rpc.resource = resource_of(request)
    rpc.request_id = getattr(request, "request_id", "")
    rpc.validate_only = getattr(request, "validate_only", False)


async def _accepted(rpc: Rpc, requests: AsyncIterator[Any]) -> AsyncIterator[Any]:
    async for request in requests:
        if isinstance(request, MalformedRequest):
            raise invalid_field("request", f"is not a message that {rpc.method} takes")
        check(request)
        yield request


_STOPPING: Final = ErrorRecord(
    DAEMON_STOPPING.kind, DAEMON_STOPPING.name, "the daemon is shutting down", retry_after_s=1.0
)


def _defect(rpc: Rpc) -> ErrorRecord:
    return ErrorRecord(
        INTERNAL_ERROR.kind,
        INTERNAL_ERROR.name,
        f"internal error; the daemon's log knows it as {rpc.rpc_id}",
        {"rpc_id": rpc.rpc_id},
    )


async def _abort(context: Context, error: ErrorRecord, rpc_id: str) -> None:
    status = trailers(error)
    await context.abort(
        _CODES.get(status.code, grpc.StatusCode.INTERNAL),
        status.message,
        ((DETAILS_KEY, status.SerializeToString()), (RPC_ID_KEY, rpc_id)),
    )


def _name_of(code: Any) -> str:
    if isinstance(code, grpc.StatusCode):
        return code.name
    found = _CODES.get(code)
    return found.name if found is not None else "UNKNOWN"
