# Generated from _async/operation.py by `python -m tests.tools.gen_sync_client`; never edited by hand.
"""Operations: waiting, progress, cancel."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import timedelta
from functools import cached_property
from typing import TYPE_CHECKING, Generic, TypeVar, cast

from virtd_client import _messages, _status
from virtd_client._io import blocking as io
from virtd_client._retry import Backoff, Deadline, is_outage
from virtd_client.errors import CLIENT_TIMEOUT, Internal, VirtdError, WaitTimeout

if TYPE_CHECKING:
    from google.longrunning import operations_pb2_grpc
    from google.protobuf.message import Message

    from virtd.v1.guest_service_pb2 import HostPlan, UpdatePlan
    from virtd.v1.operation_pb2 import OperationMetadata
    from virtd_client._sync.transport import Transport

ResultT_co = TypeVar("ResultT_co", bound="Message", covariant=True)

_WAIT_S = 30.0
"""One WaitOperation asks for so long; the next one follows at once."""
_GRACE_S = 5.0
"""How much longer than the daemon's own limit a call may take."""


class Operation(Generic[ResultT_co]):
    """Something that the daemon does, or did, for a mutation.

    ``operation`` waits for its end.  The daemon carries it on whatever becomes of this object,
    of this process, or (with a journal) of the daemon itself.
    """

    def __init__(
        self,
        transport: Transport,
        raw: _messages.RawOperation | None,
        *,
        result_type: str = "",
        plan: HostPlan | UpdatePlan | None = None,
    ) -> None:
        self._transport = transport
        self._raw = raw
        self._result_type = result_type
        self.plan = plan
        """For a guest's creation with ``validate_only``: what would be done."""

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.name or '(validated only)'} done={self.done}>"

    @property
    def name(self) -> str:
        """``operations/{operation}``; empty after ``validate_only``."""
        return self._raw.name if self._raw is not None else ""

    @property
    def validated_only(self) -> bool:
        """Whether nothing was started, because the request was ``validate_only``."""
        return self._raw is None

    @property
    def done(self) -> bool:
        """Whether it had ended when the daemon last told."""
        return self._raw is None or self._raw.done

    @property
    def metadata(self) -> OperationMetadata:
        """What the daemon last told of it.

        :raises ValueError: after ``validate_only``.
        """
        from virtd.v1.operation_pb2 import OperationMetadata

        return _messages.unpack_as(self._known().metadata, OperationMetadata)

    @property
    def error(self) -> VirtdError | None:
        """Why it failed or that it was cancelled; None if it succeeded or has not ended."""
        if self._raw is None or not self._raw.done or not self._raw.HasField("error"):
            return None
        return _status.from_status(self._raw.error)

    def refresh(self) -> OperationMetadata:
        """Ask how it is now; the same operation's new metadata."""
        from google.longrunning import operations_pb2

        raw = self._known()
        if not raw.done:
            request = operations_pb2.GetOperationRequest(name=raw.name)
            self._raw = cast("_messages.RawOperation", self._transport.unary(self._stub.GetOperation, request))
        return self.metadata

    def result(self, timeout_s: float | None = None) -> ResultT_co:
        """Wait for the end and return the response: the resource, or an OperationResult.

        Goes on over lost connections and restarts of the daemon, as long as the client's ``retry_s``
        allows.

        :param timeout_s: None: as long as it takes.
        :raises VirtdError: the operation's error (Cancelled if it was cancelled).
        :raises WaitTimeout: it has not ended in time; it goes on.
        :raises ValueError: after ``validate_only``.
        """
        raw = self._known()
        deadline = Deadline(timeout_s)
        while not raw.done:
            if deadline.passed:
                raise WaitTimeout(
                    f"{raw.name} has not ended after {timeout_s} s; it goes on",
                    reason=CLIENT_TIMEOUT,
                    resource=raw.name,
                )
            raw = self._wait(deadline.at_most(_WAIT_S), deadline)
        error = self.error
        if error is not None:
            raise error
        message = _messages.unpack(raw.response)
        if self._result_type not in ("", message.DESCRIPTOR.full_name):
            raise Internal(f"{raw.name} returned a {message.DESCRIPTOR.full_name} instead of a {self._result_type}")
        return cast("ResultT_co", message)

    def progress(self, interval_s: float = 0.5) -> Iterator[OperationMetadata]:
        """Yield the metadata now, after every change that is seen, and at the end; never raises its error.

        It polls by WaitOperation, which returns at the end at once and otherwise after
        ``interval_s``: unlike a watch, this needs no token from before the operation, no filter and
        no retention of events, and a restart of the daemon cannot make it miss the end.  Stages
        shorter than the interval may not be seen; the notes in the metadata name them all.
        """
        raw = self._known()
        metadata = self.metadata
        yield metadata
        while not raw.done:
            pace = Deadline(interval_s)
            raw = self._wait(interval_s, Deadline(None))
            if raw.done:
                yield self.metadata
                return
            if self.metadata.revision != metadata.revision:
                metadata = self.metadata
                yield metadata
            # A daemon that answers before the time is over must not be asked in a busy loop.
            io.sleep(pace.remaining_s() or 0.0)

    def cancel(self) -> None:
        """Ask the daemon to cancel it; :meth:`result` then raises Cancelled, or the end that was faster.

        :raises FailedPrecondition: OPERATION_NOT_CANCELLABLE.
        """
        from google.longrunning import operations_pb2

        request = operations_pb2.CancelOperationRequest(name=self._known().name)
        self._transport.unary(self._stub.CancelOperation, request)

    @cached_property
    def _stub(self) -> operations_pb2_grpc.OperationsStub:
        from google.longrunning import operations_pb2_grpc

        return operations_pb2_grpc.OperationsStub(self._transport.channel)

    def _known(self) -> _messages.RawOperation:
        if self._raw is None:
            raise ValueError("there is no operation: the request was only validated")
        return self._raw

    def _wait(self, wait_s: float, deadline: Deadline) -> _messages.RawOperation:
        """One WaitOperation of ``wait_s``, repeated while the daemon is away and the deadline allows."""
        from google.longrunning import operations_pb2

        raw = self._known()
        backoff = Backoff(max_s=2.0)
        patience: Deadline | None = None
        while True:
            request = operations_pb2.WaitOperationRequest(name=raw.name, timeout=timedelta(seconds=wait_s))
            try:
                self._raw = cast(
                    "_messages.RawOperation",
                    self._transport.unary(
                        self._stub.WaitOperation, request, timeout_s=deadline.at_most(wait_s + _GRACE_S), retry=False
                    ),
                )
            except VirtdError as error:
                # A call of this client's own that timed out is no news of the operation.
                if not is_outage(error) and error.reason != CLIENT_TIMEOUT:
                    raise
                if deadline.passed:
                    return raw
                patience = patience or Deadline(self._transport.retry_s)
                if patience.passed:
                    raise
                io.sleep(deadline.at_most(backoff.next_s(error.retry_after_s)))
                wait_s = deadline.at_most(wait_s)
            else:
                return self._known()
