"""Operations of the daemon."""

from __future__ import annotations

from functools import cached_property
from typing import TYPE_CHECKING, cast

from virtd_client._async.operation import AsyncOperation
from virtd_client._async.service import AsyncService, pages

if TYPE_CHECKING:
    from google.longrunning import operations_pb2_grpc
    from google.protobuf.message import Message

    from virtd_client._messages import OperationPage, RawOperation


class AsyncOperations(AsyncService):
    """Operations by name: ``operations/{operation}``."""

    @cached_property
    def _stub(self) -> operations_pb2_grpc.OperationsStub:
        from google.longrunning import operations_pb2_grpc

        return operations_pb2_grpc.OperationsStub(self._transport.channel)

    async def get(self, name: str) -> AsyncOperation[Message]:
        """One operation, for example one whose name was kept from before."""
        from google.longrunning import operations_pb2 as pb

        raw = await self._transport.unary(self._stub.GetOperation, pb.GetOperationRequest(name=name))
        return AsyncOperation(self._transport, cast("RawOperation", raw))

    async def list(
        self,
        *,
        filter: str = "",  # noqa: A002 - the API's name
        limit: int | None = None,
        page_size: int = 0,
    ) -> tuple[AsyncOperation[Message], ...]:
        """Operations that the daemon still keeps, in its order.

        :param limit: at most so many; None: all.
        """
        from google.longrunning import operations_pb2 as pb

        async def fetch(token: str) -> OperationPage:
            request = pb.ListOperationsRequest(name="operations", filter=filter, page_size=page_size, page_token=token)
            return cast("OperationPage", await self._transport.unary(self._stub.ListOperations, request))

        operations: tuple[AsyncOperation[Message], ...] = ()
        async for page in pages(fetch):
            operations += tuple(AsyncOperation(self._transport, raw) for raw in page.operations)
            if limit is not None and len(operations) >= limit:
                return operations[:limit]
        return operations

    async def cancel(self, name: str) -> None:
        """Ask for a cancel; the operation's end says what became of it."""
        from google.longrunning import operations_pb2 as pb

        await self._transport.unary(self._stub.CancelOperation, pb.CancelOperationRequest(name=name))

    async def wait(self, name: str, timeout_s: float | None = None) -> Message:
        """Wait for the end of an operation; as for :meth:`AsyncOperation.result`."""
        return await (await self.get(name)).result(timeout_s)

    async def delete(self, name: str) -> None:
        """Forget an operation that has ended.

        It is not repeated when the daemon goes away: a second one could only say NOT_FOUND.
        """
        from google.longrunning import operations_pb2 as pb

        await self._transport.unary(self._stub.DeleteOperation, pb.DeleteOperationRequest(name=name), retry=False)
