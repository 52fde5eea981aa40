"""virtd.v1.AuditService."""
# ruff: noqa: N802 - the methods have the RPCs' names

from __future__ import annotations

from virtd.rpc.context import Context
from virtd.rpc.convert import to_message
from virtd.rpc.servicers.base import Servicer
from virtd.v1 import audit_pb2 as pb


class AuditServicer(Servicer):
    """Who asked for what."""

    async def ListAuditRecords(
        self, request: pb.ListAuditRecordsRequest, _context: Context
    ) -> pb.ListAuditRecordsResponse:
        """Records, newest first."""
        page = await self.services.audit.list(request.page_size, request.page_token)
        records = [to_message(record, pb.AuditRecord) for record in page.items]
        return pb.ListAuditRecordsResponse(records=records, next_page_token=page.next_page_token)
