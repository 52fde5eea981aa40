"""virtd.v1.ServerService."""
# ruff: noqa: N802 - the methods have the RPCs' names

from __future__ import annotations

from virtd.rpc.context import Context, current
from virtd.rpc.convert import to_message
from virtd.rpc.servicers.base import Servicer
from virtd.v1 import server_pb2 as pb


class ServerServicer(Servicer):
    """The daemon itself."""

    async def GetServerInfo(self, _request: pb.GetServerInfoRequest, _context: Context) -> pb.GetServerInfoResponse:
        """Version, features, backends, and who the caller is."""
        info = self.services.server.info(current().caller)
        return pb.GetServerInfoResponse(server=to_message(info, pb.ServerInfo))
