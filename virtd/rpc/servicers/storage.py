"""virtd.v1.PoolService and virtd.v1.VolumeService."""
# ruff: noqa: N802 - the methods have the RPCs' names

from __future__ import annotations

from virtd.model.guest import DiskFormat
from virtd.model.names import check_new_id, parse, parse_host
from virtd.rpc.context import Context
from virtd.rpc.convert import enum_member, to_message
from virtd.rpc.servicers.base import POOL, VOLUME, Servicer, call_of
from virtd.v1 import storage_pb2 as pb


class PoolServicer(Servicer):
    """Storage pools of hosts."""

    async def GetPool(self, request: pb.GetPoolRequest, _context: Context) -> pb.GetPoolResponse:
        """One pool."""
        pool = await self.services.storage.get_pool(**parse(request.name, POOL))
        return pb.GetPoolResponse(pool=to_message(pool, pb.Pool))

    async def ListPools(self, request: pb.ListPoolsRequest, _context: Context) -> pb.ListPoolsResponse:
        """The pools of a host."""
        host = parse_host(request.parent, "parent")
        page = await self.services.storage.list_pools(host, request.page_size, request.page_token)
        pools = [to_message(pool, pb.Pool) for pool in page.items]
        return pb.ListPoolsResponse(pools=pools, next_page_token=page.next_page_token)


class VolumeServicer(Servicer):
    """Volumes of pools."""

    async def CreateVolume(self, request: pb.CreateVolumeRequest, _context: Context) -> pb.CreateVolumeResponse:
        """Create an empty volume."""
        ids = parse(request.parent, POOL, "parent")
        operation = await self.services.storage.create_volume(
            call_of(request),
            ids["host"],
            ids["pool"],
            check_new_id(request.volume_id, "volume_id"),
            request.capacity_bytes,
            enum_member(request, "format", DiskFormat) or DiskFormat.QCOW2,
        )
        return pb.CreateVolumeResponse(operation=await self.started(operation))

    async def GetVolume(self, request: pb.GetVolumeRequest, _context: Context) -> pb.GetVolumeResponse:
        """One volume."""
        volume = await self.services.storage.get_volume(**parse(request.name, VOLUME))
        return pb.GetVolumeResponse(volume=to_message(volume, pb.Volume))

    async def ListVolumes(self, request: pb.ListVolumesRequest, _context: Context) -> pb.ListVolumesResponse:
        """The volumes of a pool."""
        ids = parse(request.parent, POOL, "parent")
        page = await self.services.storage.list_volumes(ids["host"], ids["pool"], request.page_size, request.page_token)
        volumes = [to_message(volume, pb.Volume) for volume in page.items]
        return pb.ListVolumesResponse(volumes=volumes, next_page_token=page.next_page_token)

    async def DeleteVolume(self, request: pb.DeleteVolumeRequest, _context: Context) -> pb.DeleteVolumeResponse:
        """Delete a volume."""
        operation = await self.services.storage.delete_volume(call_of(request), **parse(request.name, VOLUME))
        return pb.DeleteVolumeResponse(operation=await self.started(operation))
