"""What the groups of methods share."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

from virtd_client._async.operation import AsyncOperation
from virtd_client._io import aio as io

if TYPE_CHECKING:
    from virtd.v1.guest_service_pb2 import HostPlan, UpdatePlan
    from virtd_client._async.transport import AsyncTransport
    from virtd_client._messages import OperationResponse


class Page(Protocol):
    """A response of any List method."""

    @property
    def next_page_token(self) -> str:
        """Empty on the last page."""


RequestT = TypeVar("RequestT")
OperationResponseT = TypeVar("OperationResponseT", bound="OperationResponse")
PageT = TypeVar("PageT", bound=Page)


class AsyncService:
    """One group of methods on a connection."""

    def __init__(self, transport: AsyncTransport) -> None:
        self._transport = transport

    async def _start(
        self,
        method: io.UnaryMethod[RequestT, OperationResponseT],
        request: RequestT,
        result_type: str,
        *,
        plan: Callable[[OperationResponseT], HostPlan | UpdatePlan] | None = None,
    ) -> AsyncOperation[Any]:  # the caller's annotation says of what; `result_type` is checked at run time
        response = await self._transport.unary(method, request)
        # Absent with validate_only; an operation always has a name.
        raw = response.operation if response.operation.name else None
        return AsyncOperation(
            self._transport, raw, result_type=result_type, plan=plan(response) if plan is not None else None
        )


async def pages(fetch: Callable[[str], Awaitable[PageT]]) -> AsyncIterator[PageT]:
    """Every page of a list, one call after the other.

    :param fetch: makes the call with a page token.
    """
    token = ""
    while True:
        page = await fetch(token)
        yield page
        token = page.next_page_token
        if not token:
            return
