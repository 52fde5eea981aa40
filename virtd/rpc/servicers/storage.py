"""virtd.v1.PoolService and virtd.v1.VolumeService."""
# ruff: noqa: N802 - the methods have the RPCs' names

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import aclosing
from dataclasses import replace

from virtd.backend.api import Hole
from virtd.errors import invalid_field
from virtd.model.guest import DiskFormat
from virtd.model.names import check_new_id, parse, parse_host
from virtd.model.storage import PoolKind, Preallocation
from virtd.rpc.context import Context
from virtd.rpc.convert import enum_member, to_message
from virtd.rpc.servicers.base import POOL, VOLUME, Servicer, call_of
from virtd.service.downloads import DownloadEnd, DownloadItem, DownloadStart
from virtd.service.verbs.pools import CreatePoolArguments
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

    async def CreatePool(self, request: pb.CreatePoolRequest, _context: Context) -> pb.CreatePoolResponse:
        """Make a pool."""
        host = parse_host(request.parent, "parent")
        arguments = CreatePoolArguments(host, check_new_id(request.pool_id, "pool_id"), autostart=request.autostart)
        match request.WhichOneof("kind"):
            case "directory":
                arguments = replace(arguments, kind=PoolKind.DIR, path=request.directory.path)
            case "logical":
                arguments = replace(arguments, kind=PoolKind.LOGICAL, volume_group=request.logical.volume_group)
            case "nfs":
                nfs = request.nfs
                arguments = replace(arguments, kind=PoolKind.NFS, server=nfs.server, export=nfs.export, path=nfs.path)
            case _:
                raise invalid_field("kind", "exactly one of directory, logical, nfs is required")
        operation = await self.services.pools.create(call_of(request), arguments)
        return pb.CreatePoolResponse(operation=await self.started(operation))

    async def UpdatePool(self, request: pb.UpdatePoolRequest, _context: Context) -> pb.UpdatePoolResponse:
        """Change what may be changed of a pool."""
        autostart = request.autostart if request.HasField("autostart") else None
        ids = parse(request.name, POOL)
        operation = await self.services.pools.update(call_of(request), ids["host"], ids["pool"], autostart)
        return pb.UpdatePoolResponse(operation=await self.started(operation))

    async def StartPool(self, request: pb.StartPoolRequest, _context: Context) -> pb.StartPoolResponse:
        """Make a pool's volumes usable."""
        operation = await self.services.pools.start(call_of(request), **parse(request.name, POOL))
        return pb.StartPoolResponse(operation=await self.started(operation))

    async def StopPool(self, request: pb.StopPoolRequest, _context: Context) -> pb.StopPoolResponse:
        """Let a pool go."""
        operation = await self.services.pools.stop(call_of(request), **parse(request.name, POOL))
        return pb.StopPoolResponse(operation=await self.started(operation))

    async def RefreshPool(self, request: pb.RefreshPoolRequest, _context: Context) -> pb.RefreshPoolResponse:
        """Look again at what is in a pool."""
        operation = await self.services.pools.refresh(call_of(request), **parse(request.name, POOL))
        return pb.RefreshPoolResponse(operation=await self.started(operation))

    async def DeletePool(self, request: pb.DeletePoolRequest, _context: Context) -> pb.DeletePoolResponse:
        """Forget a pool."""
        ids = parse(request.name, POOL)
        operation = await self.services.pools.delete(
            call_of(request), ids["host"], ids["pool"], remove_directory=request.remove_directory
        )
        return pb.DeletePoolResponse(operation=await self.started(operation))


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
            enum_member(request, "preallocation", Preallocation) or Preallocation.NONE,
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

    async def ResizeVolume(self, request: pb.ResizeVolumeRequest, _context: Context) -> pb.ResizeVolumeResponse:
        """Change the size of a volume."""
        ids = parse(request.name, VOLUME)
        operation = await self.services.storage.resize_volume(
            call_of(request),
            ids["host"],
            ids["pool"],
            ids["volume"],
            request.capacity_bytes,
            allow_shrink=request.allow_shrink,
        )
        return pb.ResizeVolumeResponse(operation=await self.started(operation))

    async def CloneVolume(self, request: pb.CloneVolumeRequest, _context: Context) -> pb.CloneVolumeResponse:
        """Copy a volume."""
        ids, to_pool = parse(request.name, VOLUME), ""
        if request.destination_parent:
            destination = parse(request.destination_parent, POOL, "destination_parent")
            if destination["host"] != ids["host"]:
                raise invalid_field(
                    "destination_parent",
                    f"is on host {destination['host']}, the volume on {ids['host']}: download it and upload it there",
                )
            to_pool = destination["pool"]
        operation = await self.services.storage.clone_volume(
            call_of(request),
            ids["host"],
            ids["pool"],
            ids["volume"],
            check_new_id(request.volume_id, "volume_id"),
            to_pool,
            enum_member(request, "format", DiskFormat),
        )
        return pb.CloneVolumeResponse(operation=await self.started(operation))

    async def DownloadVolume(
        self, request: pb.DownloadVolumeRequest, _context: Context
    ) -> AsyncIterator[pb.DownloadVolumeResponse]:
        """The bytes of a volume."""
        items = self.services.downloads.download(
            **parse(request.name, VOLUME), offset=request.offset, etag=request.etag
        )
        async with aclosing(items):
            async for item in items:
                yield _download_response(item)


def _download_response(item: DownloadItem) -> pb.DownloadVolumeResponse:
    match item:
        case DownloadStart():
            return pb.DownloadVolumeResponse(start=to_message(item, pb.DownloadStart))
        case DownloadEnd():
            return pb.DownloadVolumeResponse(end=to_message(item, pb.DownloadEnd))
        case Hole():
            return pb.DownloadVolumeResponse(zero_bytes=item.length)
        case _:
            return pb.DownloadVolumeResponse(data=item)
