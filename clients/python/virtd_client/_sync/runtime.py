# Generated from _async/runtime.py by `python -m tests.tools.gen_sync_client`; never edited by hand.
"""Operations of the daemon."""

from __future__ import annotations

from functools import cached_property
from typing import TYPE_CHECKING, cast

from virtd_client._sync.operation import Operation
from virtd_client._sync.service import Service, pages

if TYPE_CHECKING:
    from google.longrunning import operations_pb2_grpc
    from google.protobuf.message import Message

    from virtd_client._messages import OperationPage, RawOperation


class Operations(Service):
    """Operations by name: ``operations/{operation}``."""

    @cached_property
    def _stub(self) -> operations_pb2_grpc.OperationsStub:
        from google.longrunning import operations_pb2_grpc

        return operations_pb2_grpc.OperationsStub(self._transport.channel)

    def get(self, name: str) -> Operation[Message]:
        """One operation, for example one whose name was kept from before."""
        from google.longrunning import operations_pb2 as pb

        raw = self._transport.unary(self._stub.GetOperation, pb.GetOperationRequest(name=name))
        return Operation(self._transport, cast("RawOperation", raw))

    def list(
        self,
        *,
        filter: str = "",  # noqa: A002 - the API's name
        limit: int | None = None,
        page_size: int = 0,
    ) -> tuple[Operation[Message], ...]:
        """Operations that the daemon still keeps, in its order.

        :param limit: at most so many; None: all.
        """
        from google.longrunning import operations_pb2 as pb

        def fetch(token: str) -> OperationPage:
            request = pb.ListOperationsRequest(name="operations", filter=filter, page_size=page_size, page_token=token)
            return cast("OperationPage", self._transport.unary(self._stub.ListOperations, request))

        operations: tuple[Operation[Message], ...] = ()
        for page in pages(fetch):
            operations += tuple(Operation(self._transport, raw) for raw in page.operations)
            if limit is not None and len(operations) >= limit:
                return operations[:limit]
        return operations

    def cancel(self, name: str) -> None:
        """Ask for a cancel; the operation's end says what became of it."""
        from google.longrunning import operations_pb2 as pb

        self._transport.unary(self._stub.CancelOperation, pb.CancelOperationRequest(name=name))

    def wait(self, name: str, timeout_s: float | None = None) -> Message:
        """Wait for the end of an operation; as for :meth:`Operation.result`."""
        return (self.get(name)).result(timeout_s)

    def delete(self, name: str) -> None:
        """Forget an operation that has ended.

        It is not repeated when the daemon goes away: a second one could only say NOT_FOUND.
        """
        from google.longrunning import operations_pb2 as pb

        self._transport.unary(self._stub.DeleteOperation, pb.DeleteOperationRequest(name=name), retry=False)
