"""virtd.v1.MetricsService."""
# ruff: noqa: N802 - the methods have the RPCs' names

from __future__ import annotations

from datetime import UTC, datetime

from google.protobuf.timestamp_pb2 import Timestamp

from virtd.model.names import parse_guest
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

    async def ListUsage(self, request: pb.ListUsageRequest, _context: Context) -> pb.ListUsageResponse:
        """The history of one guest's usage."""
        step, page = await self.services.metrics.usage(
            parse_guest(request.name),
            _moment(request.start_time) if request.HasField("start_time") else None,
            _moment(request.end_time) if request.HasField("end_time") else None,
            request.resolution_s,
            request.page_size,
            request.page_token,
        )
        points = [to_message(point, pb.UsagePoint) for point in page.items]
        return pb.ListUsageResponse(points=points, resolution_s=step, next_page_token=page.next_page_token)


def _moment(value: Timestamp) -> datetime:
    return value.ToDatetime(tzinfo=UTC)
