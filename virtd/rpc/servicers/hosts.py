"""virtd.v1.HostService."""
# ruff: noqa: N802 - the methods have the RPCs' names

from __future__ import annotations

from virtd.model.names import check_new_id, parse_guest, parse_host
from virtd.rpc.context import Context
from virtd.rpc.convert import to_message
from virtd.rpc.servicers.base import Servicer, call_of, required
from virtd.v1 import capability_pb2
from virtd.v1 import host_pb2 as pb


class HostServicer(Servicer):
    """Hypervisor endpoints."""

    async def AddHost(self, request: pb.AddHostRequest, _context: Context) -> pb.AddHostResponse:
        """Add a host."""
        host_id, uri = check_new_id(request.host_id, "host_id"), required(request.uri, "uri")
        host = await self.services.hosts.add(
            call_of(request), host_id, uri, dict(request.labels), dict(request.options)
        )
        return pb.AddHostResponse(host=to_message(host, pb.Host))

    async def GetHost(self, request: pb.GetHostRequest, _context: Context) -> pb.GetHostResponse:
        """One host."""
        host = self.services.hosts.get(parse_host(request.name))
        return pb.GetHostResponse(host=to_message(host, pb.Host))

    async def ListHosts(self, request: pb.ListHostsRequest, _context: Context) -> pb.ListHostsResponse:
        """All hosts."""
        page = await self.services.hosts.list(request.page_size, request.page_token)
        hosts = [to_message(host, pb.Host) for host in page.items]
        return pb.ListHostsResponse(hosts=hosts, next_page_token=page.next_page_token)

    async def RemoveHost(self, request: pb.RemoveHostRequest, _context: Context) -> pb.RemoveHostResponse:
        """Forget a host."""
        await self.services.hosts.remove(call_of(request), parse_host(request.name), request.force)
        return pb.RemoveHostResponse()

    async def ProbeHost(self, request: pb.ProbeHostRequest, _context: Context) -> pb.ProbeHostResponse:
        """Look at a host now."""
        host = await self.services.hosts.probe(parse_host(request.name))
        return pb.ProbeHostResponse(host=to_message(host, pb.Host))

    async def DiagnoseHost(self, request: pb.DiagnoseHostRequest, _context: Context) -> pb.DiagnoseHostResponse:
        """Look a host over for what commonly goes wrong."""
        found = await self.services.hosts.diagnose(parse_host(request.name))
        return pb.DiagnoseHostResponse(checks=[to_message(one, pb.HostCheck) for one in found])

    async def GetCapabilities(
        self, request: pb.GetCapabilitiesRequest, _context: Context
    ) -> pb.GetCapabilitiesResponse:
        """What a host can do, or one guest, or one kind of guests."""
        guest = parse_guest(request.guest, "guest") if request.guest else None
        found = self.services.hosts.capabilities(parse_host(request.name), machine=request.machine, guest=guest)
        return pb.GetCapabilitiesResponse(capabilities=[to_message(one, capability_pb2.Capability) for one in found])
