"""grpc.health.v1.Health.

The library's own servicer keeps one condition for all watchers of a service and drops it when the
first of them leaves; the others then never hear of a change.  This one does not.
"""
# ruff: noqa: N802 - the methods have the RPCs' names

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterable
from typing import Any

import grpc
from grpc_health.v1 import health_pb2 as pb

from virtd.rpc.context import Context, current


class HealthServicer:
    """One state for the whole daemon, told of every service and of ``""``.

    :param services: the names that may be asked for.
    """

    def __init__(self, services: Iterable[str]) -> None:
        self._names = frozenset({"", *services})
        self._serving = False
        self._changed = asyncio.Event()

    def set_serving(self, serving: bool) -> None:
        """Tell whoever asks or watches."""
        self._serving = serving
        self._changed.set()
        self._changed = asyncio.Event()

    async def Check(self, request: Any, context: Context) -> Any:
        """The state now; NOT_FOUND for a name that is not served, as the protocol has it."""
        if request.service not in self._names:
            await context.abort(grpc.StatusCode.NOT_FOUND, "no such service")
        return pb.HealthCheckResponse(status=self._status(request.service))

    async def List(self, _request: Any, _context: Context) -> Any:
        """The state of every service."""
        states = {name: pb.HealthCheckResponse(status=self._status(name)) for name in self._names}
        return pb.HealthListResponse(statuses=states)

    async def Watch(self, request: Any, _context: Context) -> AsyncIterator[Any]:
        """The state now and after each change; SERVICE_UNKNOWN for a name that is not served."""
        told = None
        try:
            while True:
                changed, status = self._changed, self._status(request.service)
                if status != told:
                    told = status
                    yield pb.HealthCheckResponse(status=status)
                else:
                    await changed.wait()
        except asyncio.CancelledError:
            if current().draining and told != self._status(request.service):
                yield pb.HealthCheckResponse(status=self._status(request.service))
            raise

    def _status(self, service: str) -> int:
        states = pb.HealthCheckResponse
        if service not in self._names:
            return int(states.SERVICE_UNKNOWN)
        return int(states.SERVING if self._serving else states.NOT_SERVING)
