# Generated from _async/service.py by `python -m tests.tools.gen_sync_client`; never edited by hand.
"""What the groups of methods share."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

from virtd_client._io import blocking as io
from virtd_client._sync.operation import Operation

if TYPE_CHECKING:
    from virtd.v1.guest_service_pb2 import HostPlan, UpdatePlan
    from virtd_client._messages import OperationResponse
    from virtd_client._sync.transport import Transport


class Page(Protocol):
    """A response of any List method."""

    @property
    def next_page_token(self) -> str:
        """Empty on the last page."""


RequestT = TypeVar("RequestT")
OperationResponseT = TypeVar("OperationResponseT", bound="OperationResponse")
PageT = TypeVar("PageT", bound=Page)


class Service:
    """One group of methods on a connection."""

    def __init__(self, transport: Transport) -> None:
        self._transport = transport

    def _start(
        self,
        method: io.UnaryMethod[RequestT, OperationResponseT],
        request: RequestT,
        result_type: str,
        *,
        plan: Callable[[OperationResponseT], HostPlan | UpdatePlan] | None = None,
    ) -> Operation[Any]:  # the caller's annotation says of what; `result_type` is checked at run time
        response = self._transport.unary(method, request)
        # Absent with validate_only; an operation always has a name.
        raw = response.operation if response.operation.name else None
        return Operation(
            self._transport, raw, result_type=result_type, plan=plan(response) if plan is not None else None
        )


def pages(fetch: Callable[[str], PageT]) -> Iterator[PageT]:
    """Every page of a list, one call after the other.

    :param fetch: makes the call with a page token.
    """
    token = ""
    while True:
        page = fetch(token)
        yield page
        token = page.next_page_token
        if not token:
            return
