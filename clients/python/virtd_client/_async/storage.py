"""Pools and volumes."""

from __future__ import annotations

import os
from functools import cached_property
from typing import TYPE_CHECKING

from virtd_client import _messages
from virtd_client._async.operation import AsyncOperation
from virtd_client._async.service import AsyncService, pages
from virtd_client._async.transfers import AsyncUploads, download
from virtd_client._io import aio as io
from virtd_client.types import DiskFormatName, PreallocationName, TransferProgress

if TYPE_CHECKING:
    from virtd.v1.operation_pb2 import OperationResult
    from virtd.v1.storage_pb2 import CreatePoolRequest, Pool, Volume
    from virtd.v1.storage_pb2_grpc import PoolServiceAsyncStub, VolumeServiceAsyncStub

_RESULT = "virtd.v1.OperationResult"


class AsyncPools(AsyncService):
    """Storage pools of hosts.  Names are ``hosts/{host}/pools/{pool}``."""

    @cached_property
    def _stub(self) -> PoolServiceAsyncStub:
        from virtd.v1.storage_pb2_grpc import PoolServiceStub

        return PoolServiceStub(self._transport.channel)

    async def get(self, name: str) -> Pool:
        """One pool."""
        from virtd.v1 import storage_pb2 as pb

        return (await self._transport.unary(self._stub.GetPool, pb.GetPoolRequest(name=name))).pool

    async def list(self, parent: str, *, page_size: int = 0) -> tuple[Pool, ...]:
        """The pools of a host, by name."""
        from virtd.v1 import storage_pb2 as pb

        pools: tuple[Pool, ...] = ()
        async for page in pages(
            lambda token: self._transport.unary(
                self._stub.ListPools, pb.ListPoolsRequest(parent=parent, page_size=page_size, page_token=token)
            )
        ):
            pools += tuple(page.pools)
        return pools

    async def create_directory(
        self,
        parent: str,
        pool_id: str,
        path: str,
        *,
        autostart: bool = False,
        request_id: str | None = None,
        validate_only: bool = False,
    ) -> AsyncOperation[Pool]:
        """Make a pool of a directory of the host, and start it; files that are in it become volumes.

        :param parent: the host's name.
        """
        from virtd.v1 import storage_pb2 as pb

        request = pb.CreatePoolRequest(
            parent=parent, pool_id=pool_id, directory=pb.DirectoryPool(path=path), autostart=autostart
        )
        return await self._create(request, request_id, validate_only=validate_only)

    async def create_logical(
        self,
        parent: str,
        pool_id: str,
        volume_group: str,
        *,
        autostart: bool = False,
        request_id: str | None = None,
        validate_only: bool = False,
    ) -> AsyncOperation[Pool]:
        """Make a pool of an LVM volume group that exists, and start it.

        :param parent: the host's name.
        """
        from virtd.v1 import storage_pb2 as pb

        request = pb.CreatePoolRequest(
            parent=parent, pool_id=pool_id, logical=pb.LogicalPool(volume_group=volume_group), autostart=autostart
        )
        return await self._create(request, request_id, validate_only=validate_only)

    async def create_nfs(
        self,
        parent: str,
        pool_id: str,
        server: str,
        export: str,
        path: str,
        *,
        autostart: bool = False,
        request_id: str | None = None,
        validate_only: bool = False,
    ) -> AsyncOperation[Pool]:
        """Make a pool of a directory that an NFS server exports, and start it.

        :param parent: the host's name.
        :param path: where the host mounts it.
        """
        from virtd.v1 import storage_pb2 as pb

        request = pb.CreatePoolRequest(
            parent=parent,
            pool_id=pool_id,
            nfs=pb.NfsPool(server=server, export=export, path=path),
            autostart=autostart,
        )
        return await self._create(request, request_id, validate_only=validate_only)

    async def _create(
        self, request: CreatePoolRequest, request_id: str | None, *, validate_only: bool
    ) -> AsyncOperation[Pool]:
        request.request_id = _messages.new_request_id(request_id)
        request.validate_only = validate_only
        return await self._start(self._stub.CreatePool, request, "virtd.v1.Pool")

    async def update(
        self,
        name: str,
        *,
        autostart: bool | None = None,
        request_id: str | None = None,
        validate_only: bool = False,
    ) -> AsyncOperation[Pool]:
        """Change whether a pool starts with its host; None: as it is."""
        from virtd.v1 import storage_pb2 as pb

        request = pb.UpdatePoolRequest(
            name=name,
            autostart=autostart,
            request_id=_messages.new_request_id(request_id),
            validate_only=validate_only,
        )
        return await self._start(self._stub.UpdatePool, request, "virtd.v1.Pool")

    async def start(
        self, name: str, *, request_id: str | None = None, validate_only: bool = False
    ) -> AsyncOperation[Pool]:
        """Make a pool's volumes usable."""
        from virtd.v1 import storage_pb2 as pb

        request = pb.StartPoolRequest(
            name=name, request_id=_messages.new_request_id(request_id), validate_only=validate_only
        )
        return await self._start(self._stub.StartPool, request, "virtd.v1.Pool")

    async def stop(
        self, name: str, *, request_id: str | None = None, validate_only: bool = False
    ) -> AsyncOperation[Pool]:
        """Let a pool go; nothing in it changes."""
        from virtd.v1 import storage_pb2 as pb

        request = pb.StopPoolRequest(
            name=name, request_id=_messages.new_request_id(request_id), validate_only=validate_only
        )
        return await self._start(self._stub.StopPool, request, "virtd.v1.Pool")

    async def refresh(
        self, name: str, *, request_id: str | None = None, validate_only: bool = False
    ) -> AsyncOperation[Pool]:
        """Look again at what is in a pool."""
        from virtd.v1 import storage_pb2 as pb

        request = pb.RefreshPoolRequest(
            name=name, request_id=_messages.new_request_id(request_id), validate_only=validate_only
        )
        return await self._start(self._stub.RefreshPool, request, "virtd.v1.Pool")

    async def delete(
        self,
        name: str,
        *,
        remove_directory: bool = False,
        request_id: str | None = None,
        validate_only: bool = False,
    ) -> AsyncOperation[OperationResult]:
        """Stop and forget a pool; its volumes stay where they are.

        :param remove_directory: remove its directory as well, which must be empty.
        """
        from virtd.v1 import storage_pb2 as pb

        request = pb.DeletePoolRequest(
            name=name,
            remove_directory=remove_directory,
            request_id=_messages.new_request_id(request_id),
            validate_only=validate_only,
        )
        return await self._start(self._stub.DeletePool, request, _RESULT)


class AsyncVolumes(AsyncService):
    """Volumes of pools.  Names are ``hosts/{host}/pools/{pool}/volumes/{volume}``."""

    @cached_property
    def _stub(self) -> VolumeServiceAsyncStub:
        from virtd.v1.storage_pb2_grpc import VolumeServiceStub

        return VolumeServiceStub(self._transport.channel)

    async def create(
        self,
        parent: str,
        volume_id: str,
        capacity_bytes: int,
        *,
        format: DiskFormatName | None = None,  # noqa: A002 - the API's name
        preallocation: PreallocationName | None = None,
        request_id: str | None = None,
        validate_only: bool = False,
    ) -> AsyncOperation[Volume]:
        """Create an empty volume.

        :param parent: the pool's name.
        :param format: None: qcow2.
        :param preallocation: how much of its room is taken at once; None: nothing.
        """
        from virtd.v1 import storage_pb2 as pb

        request = pb.CreateVolumeRequest(
            parent=parent,
            volume_id=volume_id,
            capacity_bytes=capacity_bytes,
            format=_messages.disk_format(format),
            preallocation=_messages.preallocation(preallocation),
            request_id=_messages.new_request_id(request_id),
            validate_only=validate_only,
        )
        return await self._start(self._stub.CreateVolume, request, "virtd.v1.Volume")

    async def get(self, name: str) -> Volume:
        """One volume."""
        from virtd.v1 import storage_pb2 as pb

        return (await self._transport.unary(self._stub.GetVolume, pb.GetVolumeRequest(name=name))).volume

    async def list(self, parent: str, *, page_size: int = 0) -> tuple[Volume, ...]:
        """The volumes of a pool, by name."""
        from virtd.v1 import storage_pb2 as pb

        volumes: tuple[Volume, ...] = ()
        async for page in pages(
            lambda token: self._transport.unary(
                self._stub.ListVolumes, pb.ListVolumesRequest(parent=parent, page_size=page_size, page_token=token)
            )
        ):
            volumes += tuple(page.volumes)
        return volumes

    async def delete(
        self, name: str, *, request_id: str | None = None, validate_only: bool = False
    ) -> AsyncOperation[OperationResult]:
        """Delete a volume."""
        from virtd.v1 import storage_pb2 as pb

        request = pb.DeleteVolumeRequest(
            name=name, request_id=_messages.new_request_id(request_id), validate_only=validate_only
        )
        return await self._start(self._stub.DeleteVolume, request, _RESULT)

    async def resize(
        self,
        name: str,
        capacity_bytes: int,
        *,
        allow_shrink: bool = False,
        request_id: str | None = None,
        validate_only: bool = False,
    ) -> AsyncOperation[Volume]:
        """Change the size that a guest sees; guests that use it must be stopped.

        :param allow_shrink: let it become smaller: what lies at its end is lost.
        """
        from virtd.v1 import storage_pb2 as pb

        request = pb.ResizeVolumeRequest(
            name=name,
            capacity_bytes=capacity_bytes,
            allow_shrink=allow_shrink,
            request_id=_messages.new_request_id(request_id),
            validate_only=validate_only,
        )
        return await self._start(self._stub.ResizeVolume, request, "virtd.v1.Volume")

    async def clone(
        self,
        name: str,
        volume_id: str,
        *,
        destination_parent: str = "",
        format: DiskFormatName | None = None,  # noqa: A002 - the API's name
        request_id: str | None = None,
        validate_only: bool = False,
    ) -> AsyncOperation[Volume]:
        """Make a volume that stands alone, with the content of another.

        :param destination_parent: the pool for it, on the same host; empty: that of the source.
        :param format: None: that of the source.
        """
        from virtd.v1 import storage_pb2 as pb

        request = pb.CloneVolumeRequest(
            name=name,
            volume_id=volume_id,
            destination_parent=destination_parent,
            format=_messages.disk_format(format),
            request_id=_messages.new_request_id(request_id),
            validate_only=validate_only,
        )
        return await self._start(self._stub.CloneVolume, request, "virtd.v1.Volume")

    async def upload(
        self,
        parent: str,
        volume_id: str,
        path: str | os.PathLike[str],
        format: DiskFormatName,  # noqa: A002 - the API's name
        *,
        progress: TransferProgress | None = None,
        request_id: str | None = None,
    ) -> AsyncOperation[Volume]:
        """Send a local file, and make a volume of it: the operation that is returned checks it and stores it.

        While the daemon is away, waits and goes on.  When it fails, the upload is still there
        (``client.uploads``): to be sent again, or deleted.

        :param parent: the pool's name.
        :param format: of the file; never guessed.
        :param progress: called with the bytes that are safe, and the size.
        """
        uploads = AsyncUploads(self._transport)
        size = await io.in_thread(os.path.getsize, path)
        upload = await uploads.start_volume(parent, volume_id, size, format, request_id=request_id)
        return await uploads.complete(upload, path, progress=progress)

    async def download(
        self, name: str, path: str | os.PathLike[str], *, progress: TransferProgress | None = None
    ) -> str:
        """Receive a volume into a local file, which appears when it is complete; returns its format.

        While the daemon or the host is away, waits and goes on.  Guests that use it must be stopped.

        :param progress: called with the bytes that are there, and the size.
        :raises VirtdError: as the daemon says; Conflict (ETAG_MISMATCH): the volume changes all the time.
        """
        return await download(self._transport, self._stub.DownloadVolume, name, path, progress)
