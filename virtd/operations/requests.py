"""Requests that come twice: one request id, one operation."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import TypeVar

from virtd.errors import OPERATION_NOT_FOUND, REQUEST_ID_REUSED, InvalidArgumentError, NotFoundError
from virtd.model.operation import Operation
from virtd.operations import journal
from virtd.store import Database

R = TypeVar("R")


@dataclass(slots=True)
class _Claim:
    """A request with an id that is being carried out."""

    fingerprint: str
    done: asyncio.Event = field(default_factory=asyncio.Event)


class Requests:
    """The request ids of all callers.

    :param get: gives an operation by its name, as it is now.
    """

    def __init__(self, database: Database, get: Callable[[str], Awaitable[Operation]]) -> None:
        self._database = database
        self._get = get
        self._claims: dict[tuple[str, str], _Claim] = {}

    async def once(
        self, caller: str, request_id: str, fingerprint: str, work: Callable[[], Awaitable[R]]
    ) -> R | Operation:
        """See :meth:`virtd.operations.engine.Engine.once`."""
        if not request_id:
            return await work()
        key = (caller, request_id)
        while (first := self._claims.get(key)) is not None:
            _check(request_id, fingerprint, first.fingerprint)
            await first.done.wait()
        claim = self._claims[key] = _Claim(fingerprint)
        try:
            known = await journal.known_request(self._database, caller, request_id)
            if known is None:
                return await work()
            return await self.replay(request_id, fingerprint, known)
        finally:
            del self._claims[key]
            claim.done.set()

    async def replay(self, request_id: str, fingerprint: str, known: journal.Known) -> Operation:
        """The operation that this request started before.

        :raises InvalidArgumentError: REQUEST_ID_REUSED, the id came with another body.
        :raises NotFoundError: OPERATION_NOT_FOUND, it was deleted meanwhile.
        """
        _check(request_id, fingerprint, known.fingerprint)
        try:
            return await self._get(known.operation)
        except NotFoundError as error:
            raise NotFoundError(
                OPERATION_NOT_FOUND,
                f"this request was carried out as {known.operation}, which has been deleted since",
                resource=known.operation,
            ) from error


def _check(request_id: str, fingerprint: str, known: str) -> None:
    if fingerprint != known:
        raise InvalidArgumentError(
            REQUEST_ID_REUSED,
            f"request_id {request_id} was used before with another request",
            metadata={"request_id": request_id},
        )
