"""virtd.v1.MetricsService."""
# ruff: noqa: N802 - the methods have the RPCs' names

from __future__ import annotations

from virtd.rpc.context import Context
from virtd.rpc.convert import to_message
from virtd.rpc.servicers.base import Servicer, guest_or_host
from virtd.v1 import metrics_pb2 as pb


class MetricsServicer(Servicer):
    """Usage of guests."""

    async def GetMetrics(self, request: pb.GetMetricsRequest, _context: Context) -> pb.GetMetricsResponse:
        """The last sample of each guest."""
        answer = pb.GetMetricsResponse()
        for name, sample in await self.services.metrics.get(guest_or_host(request.parent, "parent")):
            message = to_message(sample, pb.GuestMetrics)
            message.name = name
            answer.metrics.append(message)
        return answer
