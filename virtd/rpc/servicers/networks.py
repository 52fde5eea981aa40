"""virtd.v1.NetworkService."""
# ruff: noqa: N802 - the methods have the RPCs' names

from __future__ import annotations

from virtd.errors import invalid_field
from virtd.model.names import parse, parse_host
from virtd.model.network import DhcpReservation, NetworkSpec
from virtd.rpc.context import Context
from virtd.rpc.convert import from_message, to_message
from virtd.rpc.servicers.base import NETWORK, Servicer, call_of, required
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

    async def CreateNetwork(self, request: pb.CreateNetworkRequest, _context: Context) -> pb.CreateNetworkResponse:
        """Create and start a network."""
        host = parse_host(request.parent, "parent")
        network_id = required(request.network_id, "network_id")
        if not request.HasField("network"):
            raise invalid_field("network", "is required")
        spec = from_message(request.network, NetworkSpec, "network")
        made = await self.services.networks.create(call_of(request), host, network_id, spec)
        if isinstance(made, str):
            return pb.CreateNetworkResponse(native=made)
        return pb.CreateNetworkResponse(operation=await self.started(made))

    async def StartNetwork(self, request: pb.StartNetworkRequest, _context: Context) -> pb.StartNetworkResponse:
        """Make it usable."""
        operation = await self.services.networks.start(call_of(request), **parse(request.name, NETWORK))
        return pb.StartNetworkResponse(operation=await self.started(operation))

    async def StopNetwork(self, request: pb.StopNetworkRequest, _context: Context) -> pb.StopNetworkResponse:
        """Take it down."""
        operation = await self.services.networks.stop(call_of(request), **parse(request.name, NETWORK))
        return pb.StopNetworkResponse(operation=await self.started(operation))

    async def UpdateNetwork(self, request: pb.UpdateNetworkRequest, _context: Context) -> pb.UpdateNetworkResponse:
        """Change autostart and reservations."""
        ids = parse(request.name, NETWORK)
        reservations = [
            from_message(entry, DhcpReservation, f"set_reservations[{index}]")
            for index, entry in enumerate(request.set_reservations)
        ]
        autostart = request.autostart if request.HasField("autostart") else None
        operation = await self.services.networks.update(
            call_of(request), ids["host"], ids["network"], autostart, reservations, list(request.remove_reservations)
        )
        return pb.UpdateNetworkResponse(operation=await self.started(operation))

    async def DeleteNetwork(self, request: pb.DeleteNetworkRequest, _context: Context) -> pb.DeleteNetworkResponse:
        """Stop and forget it."""
        operation = await self.services.networks.delete(call_of(request), **parse(request.name, NETWORK))
        return pb.DeleteNetworkResponse(operation=await self.started(operation))

    async def ListLeases(self, request: pb.ListLeasesRequest, _context: Context) -> pb.ListLeasesResponse:
        """What its DHCP server has given out."""
        ids = parse(request.parent, NETWORK, "parent")
        page = await self.services.networks.leases(ids["host"], ids["network"], request.page_size, request.page_token)
        leases = [to_message(lease, pb.DhcpLease) for lease in page.items]
        return pb.ListLeasesResponse(leases=leases, next_page_token=page.next_page_token)
