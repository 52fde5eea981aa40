"""virtd.v1.NetworkService."""
# ruff: noqa: N802 - the methods have the RPCs' names

from __future__ import annotations

from virtd.model.names import parse, parse_host
from virtd.rpc.context import Context
from virtd.rpc.convert import to_message
from virtd.rpc.servicers.base import NETWORK, Servicer
from virtd.v1 import network_pb2 as pb


class NetworkServicer(Servicer):
    """Networks of hosts."""

    async def GetNetwork(self, request: pb.GetNetworkRequest, _context: Context) -> pb.GetNetworkResponse:
        """One network."""
        network = await self.services.networks.get(**parse(request.name, NETWORK))
        return pb.GetNetworkResponse(network=to_message(network, pb.Network))

    async def ListNetworks(self, request: pb.ListNetworksRequest, _context: Context) -> pb.ListNetworksResponse:
        """The networks of a host."""
        host = parse_host(request.parent, "parent")
        page = await self.services.networks.list(host, request.page_size, request.page_token)
        networks = [to_message(network, pb.Network) for network in page.items]
        return pb.ListNetworksResponse(networks=networks, next_page_token=page.next_page_token)
