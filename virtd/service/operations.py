"""Use cases of operations."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from virtd.errors import ErrorRecord
from virtd.model.operation import Operation
from virtd.operations import Response
from virtd.service.call import Call, Page, page_of
from virtd.service.core import Core
from virtd.service.filters import compile_filter

FILTER_FIELDS: Final = ("name", "verb", "target", "state", "caller", "request_id", "reason")
WAIT_MAX_S: Final = 300.0


class Operations:
    """Use cases of operations.  ``operation_id`` is the id without ``operations/``."""

    def __init__(self, core: Core) -> None:
        self._core = core

    async def get(self, operation_id: str) -> Operation:
        """An operation.

        :raises NotFoundError: OPERATION_NOT_FOUND.
        """
        return await self._core.engine.get(f"operations/{operation_id}")

    async def list(self, filter_: str, page_size: int, page_token: str) -> Page[Operation]:
        """All that are kept, newest first."""
        predicate = compile_filter(filter_, FILTER_FIELDS)
        records = await self._core.engine.list()
        chosen = [record for record in records if predicate(_attributes(record).get)]
        chosen.sort(key=_order, reverse=True)
        return page_of(chosen, page_size, page_token, _order, descending=True)

    async def cancel(self, call: Call, operation_id: str) -> Operation:
        """Ask it to stop.

        :raises FailedPreconditionError: OPERATION_NOT_CANCELLABLE.
        """
        return await self._core.engine.cancel(f"operations/{operation_id}")

    async def wait(self, operation_id: str, timeout_s: float) -> Operation:
        """Wait for its end; the operation as it is when the time is over."""
        return await self._core.engine.wait(f"operations/{operation_id}", min(timeout_s or WAIT_MAX_S, WAIT_MAX_S))

    async def delete(self, call: Call, operation_id: str) -> None:
        """Forget one that has ended."""
        await self._core.engine.delete(f"operations/{operation_id}")

    async def response(self, operation: Operation) -> Response | None:
        """What it answered: the resource as it was at its end."""
        return await self._core.engine.response(operation.name)


def _order(record: Operation) -> str:
    when = record.create_time
    return f"{'' if when is None else when.isoformat(timespec='microseconds')} {record.name}"


def _attributes(record: Operation) -> Mapping[str, str]:
    error: ErrorRecord | None = record.error
    return {
        "name": record.name,
        "verb": record.verb,
        "target": record.target,
        "state": record.state.value,
        "caller": record.caller,
        "request_id": record.request_id,
        "reason": error.reason if error is not None else "",
    }
