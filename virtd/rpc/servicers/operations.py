"""google.longrunning.Operations."""
# ruff: noqa: N802 - the methods have the RPCs' names

from __future__ import annotations

import asyncio
from typing import Any, Final

from google.longrunning import operations_pb2 as pb
from google.protobuf.empty_pb2 import Empty

from virtd.errors import invalid_field
from virtd.model.names import parse, shown
from virtd.rpc.context import Context, current
from virtd.rpc.servicers.base import OPERATION, Servicer, call_of

_COLLECTION: Final = ("", "operations")
_WAIT_DEFAULT_S: Final = 3600.0


class OperationsServicer(Servicer):
    """Operations by name.  The requests' types are Google's, which come without type hints."""

    async def GetOperation(self, request: Any, _context: Context) -> pb.Operation:
        """One operation."""
        return await self.longrunning(await self.services.operations.get(_id(request)))

    async def ListOperations(self, request: Any, _context: Context) -> pb.ListOperationsResponse:
        """Operations, newest first."""
        if request.name not in _COLLECTION:
            raise invalid_field("name", f"{shown(request.name)} is not 'operations'")
        page = await self.services.operations.list(request.filter, request.page_size, request.page_token)
        operations = await asyncio.gather(*(self.longrunning(operation) for operation in page.items))
        return pb.ListOperationsResponse(operations=operations, next_page_token=page.next_page_token)

    async def CancelOperation(self, request: Any, _context: Context) -> Empty:
        """Ask an operation to end early; it says itself how it ended."""
        await self.services.operations.cancel(call_of(request), _id(request))
        return Empty()

    async def DeleteOperation(self, request: Any, _context: Context) -> Empty:
        """Forget an operation that has ended."""
        await self.services.operations.delete(call_of(request), _id(request))
        return Empty()

    async def WaitOperation(self, request: Any, _context: Context) -> pb.Operation:
        """The operation when it has ended, or as it is when the time is over."""
        seconds = _WAIT_DEFAULT_S
        if request.HasField("timeout"):
            seconds = request.timeout.seconds + request.timeout.nanos / 1e9
            if seconds < 0:
                raise invalid_field("timeout", "is negative")
        seconds = current().within_deadline(min(seconds, _WAIT_DEFAULT_S))
        return await self.longrunning(await self.services.operations.wait(_id(request), seconds))


def _id(request: Any) -> str:
    return parse(request.name, OPERATION)["operation"]
