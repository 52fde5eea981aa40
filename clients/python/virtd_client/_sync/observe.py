# Generated from _async/observe.py by `python -m tests.tools.gen_sync_client`; never edited by hand.
"""Usage of guests, and who asked for what."""

from __future__ import annotations

from datetime import UTC, datetime
from functools import cached_property
from typing import TYPE_CHECKING

from virtd_client._sync.service import Service, pages

if TYPE_CHECKING:
    from virtd.v1.audit_pb2 import AuditRecord
    from virtd.v1.audit_pb2_grpc import AuditServiceStub
    from virtd.v1.metrics_pb2 import GuestMetrics, UsagePoint
    from virtd.v1.metrics_pb2_grpc import MetricsServiceStub

_RESULT = "virtd.v1.OperationResult"


class Metrics(Service):
    """Usage of guests."""

    @cached_property
    def _stub(self) -> MetricsServiceStub:
        from virtd.v1.metrics_pb2_grpc import MetricsServiceStub

        return MetricsServiceStub(self._transport.channel)

    def get(self, parent: str = "hosts/-") -> tuple[GuestMetrics, ...]:
        """The last sample of each guest of a host, of all hosts, or of one guest."""
        from virtd.v1 import metrics_pb2 as pb

        return tuple((self._transport.unary(self._stub.GetMetrics, pb.GetMetricsRequest(parent=parent))).metrics)

    def usage(
        self,
        name: str,
        *,
        start: datetime | None = None,
        end: datetime | None = None,
        resolution_s: int = 0,
    ) -> tuple[UsagePoint, ...]:
        """The history of a guest's usage, oldest first; a span that was not observed has no point.

        :param start: absent: an hour before the end.
        :param end: not included; absent: now.
        :param resolution_s: at least so many seconds for each point; 0: the finest that reaches back so far.
        """
        from virtd.v1 import metrics_pb2 as pb

        request = pb.ListUsageRequest(name=name, resolution_s=resolution_s, page_size=1000)
        if start is not None:
            request.start_time.FromDatetime(start.astimezone(UTC))
        if end is not None:
            request.end_time.FromDatetime(end.astimezone(UTC))
        points: list[UsagePoint] = []
        while True:
            page = self._transport.unary(self._stub.ListUsage, request)
            points += page.points
            if not page.next_page_token:
                return tuple(points)
            request.page_token = page.next_page_token


class Audit(Service):
    """Who asked for what."""

    @cached_property
    def _stub(self) -> AuditServiceStub:
        from virtd.v1.audit_pb2_grpc import AuditServiceStub

        return AuditServiceStub(self._transport.channel)

    def list(self, *, limit: int | None = 100, page_size: int = 0) -> tuple[AuditRecord, ...]:
        """Records of calls that changed something or were denied, newest first.

        :param limit: at most so many; None: all that are kept.
        """
        from virtd.v1 import audit_pb2 as pb

        records: tuple[AuditRecord, ...] = ()
        for page in pages(
            lambda token: self._transport.unary(
                self._stub.ListAuditRecords, pb.ListAuditRecordsRequest(page_size=page_size, page_token=token)
            )
        ):
            records += tuple(page.records)
            if limit is not None and len(records) >= limit:
                return records[:limit]
        return records
