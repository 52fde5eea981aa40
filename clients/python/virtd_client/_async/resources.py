"""The daemon, hosts, and what hosts hold besides guests."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from typing import TYPE_CHECKING

from virtd_client import _messages
from virtd_client._async.operation import AsyncOperation
from virtd_client._async.service import AsyncService, pages
from virtd_client._io import aio as io
from virtd_client.types import DiskFormatName, OnConflict

if TYPE_CHECKING:
    from virtd.v1.audit_pb2 import AuditRecord
    from virtd.v1.audit_pb2_grpc import AuditServiceAsyncStub
    from virtd.v1.capability_pb2 import Capability
    from virtd.v1.guest_pb2 import Guest
    from virtd.v1.host_pb2 import Host
    from virtd.v1.host_pb2_grpc import HostServiceAsyncStub
    from virtd.v1.image_pb2 import Image
    from virtd.v1.image_pb2_grpc import ImageServiceAsyncStub
    from virtd.v1.metrics_pb2 import GuestMetrics
    from virtd.v1.metrics_pb2_grpc import MetricsServiceAsyncStub
    from virtd.v1.network_pb2 import Network
    from virtd.v1.network_pb2_grpc import NetworkServiceAsyncStub
    from virtd.v1.operation_pb2 import OperationResult
    from virtd.v1.server_pb2 import ServerInfo
    from virtd.v1.server_pb2_grpc import ServerServiceAsyncStub
    from virtd.v1.snapshot_pb2 import Snapshot
    from virtd.v1.snapshot_pb2_grpc import SnapshotServiceAsyncStub
    from virtd.v1.storage_pb2 import Pool, Volume
    from virtd.v1.storage_pb2_grpc import PoolServiceAsyncStub, VolumeServiceAsyncStub

_RESULT = "virtd.v1.OperationResult"


class AsyncServer(AsyncService):
    """The daemon itself."""

    @cached_property
    def _stub(self) -> ServerServiceAsyncStub:
        from virtd.v1.server_pb2_grpc import ServerServiceStub

        return ServerServiceStub(self._transport.channel)

    async def info(self) -> ServerInfo:
        """Version, features and backends."""
        from virtd.v1 import server_pb2 as pb

        return (await self._transport.unary(self._stub.GetServerInfo, pb.GetServerInfoRequest())).server

    async def services(self) -> dict[str, tuple[str, ...]]:
        """Every service that the daemon offers and its methods, as gRPC reflection tells them.

        In the daemon's order; names are full (``virtd.v1.GuestService``), methods are bare.

        :raises VirtdError: as the daemon says; Unavailable where nothing answers.
        """
        from google.protobuf.descriptor_pb2 import FileDescriptorProto
        from grpc_reflection.v1alpha import reflection_pb2 as pb
        from grpc_reflection.v1alpha.reflection_pb2_grpc import ServerReflectionStub

        await self.info()  # waits for a daemon that is away, which a stream does not
        call = self._transport.bidi(ServerReflectionStub(self._transport.channel).ServerReflectionInfo)
        found: dict[str, tuple[str, ...]] = {}
        try:
            await call.write(pb.ServerReflectionRequest(list_services=""))
            listed = await call.read()
            for name in [entry.name for entry in listed.list_services_response.service] if listed else []:
                await call.write(pb.ServerReflectionRequest(file_containing_symbol=name))
                answer = await call.read()
                for raw in answer.file_descriptor_response.file_descriptor_proto if answer else []:
                    file = FileDescriptorProto.FromString(raw)
                    for service in file.service:
                        if f"{file.package}.{service.name}" == name:
                            found[name] = tuple(method.name for method in service.method)
        except io.RpcError as error:
            raise self._transport.error(error) from None
        finally:
            call.cancel()
        return found


class AsyncHosts(AsyncService):
    """Hosts: hypervisor endpoints.  Names are ``hosts/{host}``."""

    @cached_property
    def _stub(self) -> HostServiceAsyncStub:
        from virtd.v1.host_pb2_grpc import HostServiceStub

        return HostServiceStub(self._transport.channel)

    async def list(self, *, page_size: int = 0) -> tuple[Host, ...]:
        """All hosts, by name."""
        from virtd.v1 import host_pb2 as pb

        hosts: tuple[Host, ...] = ()
        async for page in pages(
            lambda token: self._transport.unary(
                self._stub.ListHosts, pb.ListHostsRequest(page_size=page_size, page_token=token)
            )
        ):
            hosts += tuple(page.hosts)
        return hosts

    async def get(self, name: str) -> Host:
        """One host."""
        from virtd.v1 import host_pb2 as pb

        return (await self._transport.unary(self._stub.GetHost, pb.GetHostRequest(name=name))).host

    async def add(
        self,
        host_id: str,
        uri: str,
        *,
        labels: Mapping[str, str] | None = None,
        request_id: str | None = None,
        validate_only: bool = False,
    ) -> Host:
        """Add a host and remember it; it is returned at once, CONNECTING."""
        from virtd.v1 import host_pb2 as pb

        request = pb.AddHostRequest(
            host_id=host_id,
            uri=uri,
            labels=labels,
            request_id=_messages.new_request_id(request_id),
            validate_only=validate_only,
        )
        return (await self._transport.unary(self._stub.AddHost, request)).host

    async def remove(
        self, name: str, *, force: bool = False, request_id: str | None = None, validate_only: bool = False
    ) -> None:
        """Forget a host that was added; its guests stay as they are."""
        from virtd.v1 import host_pb2 as pb

        request = pb.RemoveHostRequest(
            name=name, force=force, request_id=_messages.new_request_id(request_id), validate_only=validate_only
        )
        await self._transport.unary(self._stub.RemoveHost, request)

    async def probe(self, name: str) -> Host:
        """Look at the host now."""
        from virtd.v1 import host_pb2 as pb

        return (await self._transport.unary(self._stub.ProbeHost, pb.ProbeHostRequest(name=name))).host

    async def capabilities(self, name: str) -> tuple[Capability, ...]:
        """What the host can do, with level, provenance and reason."""
        from virtd.v1 import host_pb2 as pb

        request = pb.GetCapabilitiesRequest(name=name)
        return tuple((await self._transport.unary(self._stub.GetCapabilities, request)).capabilities)


class AsyncSnapshots(AsyncService):
    """Snapshots of guests.  Names are ``hosts/{host}/guests/{guest}/snapshots/{snapshot}``."""

    @cached_property
    def _stub(self) -> SnapshotServiceAsyncStub:
        from virtd.v1.snapshot_pb2_grpc import SnapshotServiceStub

        return SnapshotServiceStub(self._transport.channel)

    async def create(
        self,
        parent: str,
        snapshot_id: str,
        *,
        description: str = "",
        memory: bool = False,
        on_conflict: OnConflict = "queue",
        request_id: str | None = None,
        validate_only: bool = False,
    ) -> AsyncOperation[Snapshot]:
        """Take a snapshot.

        :param parent: the guest's name.
        :param memory: include the memory of the running guest.
        """
        from virtd.v1 import snapshot_pb2 as pb

        request = pb.CreateSnapshotRequest(
            parent=parent,
            snapshot_id=snapshot_id,
            description=description,
            memory=memory,
            on_conflict=_messages.conflict_policy(on_conflict),
            request_id=_messages.new_request_id(request_id),
            validate_only=validate_only,
        )
        return await self._start(self._stub.CreateSnapshot, request, "virtd.v1.Snapshot")

    async def get(self, name: str) -> Snapshot:
        """One snapshot."""
        from virtd.v1 import snapshot_pb2 as pb

        return (await self._transport.unary(self._stub.GetSnapshot, pb.GetSnapshotRequest(name=name))).snapshot

    async def list(self, parent: str, *, page_size: int = 0) -> tuple[Snapshot, ...]:
        """All snapshots of a guest, parents before children."""
        from virtd.v1 import snapshot_pb2 as pb

        snapshots: tuple[Snapshot, ...] = ()
        async for page in pages(
            lambda token: self._transport.unary(
                self._stub.ListSnapshots,
                pb.ListSnapshotsRequest(parent=parent, page_size=page_size, page_token=token),
            )
        ):
            snapshots += tuple(page.snapshots)
        return snapshots

    async def revert(
        self,
        name: str,
        *,
        on_conflict: OnConflict = "queue",
        request_id: str | None = None,
        validate_only: bool = False,
    ) -> AsyncOperation[Guest]:
        """Make the guest what it was then.  What it is now is lost unless it was snapshotted."""
        from virtd.v1 import snapshot_pb2 as pb

        request = pb.RevertSnapshotRequest(
            name=name,
            on_conflict=_messages.conflict_policy(on_conflict),
            request_id=_messages.new_request_id(request_id),
            validate_only=validate_only,
        )
        return await self._start(self._stub.RevertSnapshot, request, "virtd.v1.Guest")

    async def delete(
        self,
        name: str,
        *,
        on_conflict: OnConflict = "queue",
        request_id: str | None = None,
        validate_only: bool = False,
    ) -> AsyncOperation[OperationResult]:
        """Delete a snapshot; its children keep their data."""
        from virtd.v1 import snapshot_pb2 as pb

        request = pb.DeleteSnapshotRequest(
            name=name,
            on_conflict=_messages.conflict_policy(on_conflict),
            request_id=_messages.new_request_id(request_id),
            validate_only=validate_only,
        )
        return await self._start(self._stub.DeleteSnapshot, request, _RESULT)


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
        request_id: str | None = None,
        validate_only: bool = False,
    ) -> AsyncOperation[Volume]:
        """Create an empty volume.

        :param parent: the pool's name.
        :param format: None: qcow2.
        """
        from virtd.v1 import storage_pb2 as pb

        request = pb.CreateVolumeRequest(
            parent=parent,
            volume_id=volume_id,
            capacity_bytes=capacity_bytes,
            format=_messages.disk_format(format),
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


class AsyncNetworks(AsyncService):
    """Networks of hosts.  Names are ``hosts/{host}/networks/{network}``."""

    @cached_property
    def _stub(self) -> NetworkServiceAsyncStub:
        from virtd.v1.network_pb2_grpc import NetworkServiceStub

        return NetworkServiceStub(self._transport.channel)

    async def get(self, name: str) -> Network:
        """One network."""
        from virtd.v1 import network_pb2 as pb

        return (await self._transport.unary(self._stub.GetNetwork, pb.GetNetworkRequest(name=name))).network

    async def list(self, parent: str, *, page_size: int = 0) -> tuple[Network, ...]:
        """The networks of a host, by name."""
        from virtd.v1 import network_pb2 as pb

        networks: tuple[Network, ...] = ()
        async for page in pages(
            lambda token: self._transport.unary(
                self._stub.ListNetworks, pb.ListNetworksRequest(parent=parent, page_size=page_size, page_token=token)
            )
        ):
            networks += tuple(page.networks)
        return networks


class AsyncImages(AsyncService):
    """The catalogue of disk images.  Names are ``images/{image}``."""

    @cached_property
    def _stub(self) -> ImageServiceAsyncStub:
        from virtd.v1.image_pb2_grpc import ImageServiceStub

        return ImageServiceStub(self._transport.channel)

    async def import_(
        self,
        image_id: str,
        path: str,
        format: DiskFormatName,  # noqa: A002 - the API's name
        *,
        request_id: str | None = None,
        validate_only: bool = False,
    ) -> AsyncOperation[Image]:
        """Copy a file of the daemon's machine into the catalogue.

        :param format: its true format; never guessed.
        """
        from virtd.v1 import image_pb2 as pb

        request = pb.ImportImageRequest(
            image_id=image_id,
            path=path,
            format=_messages.disk_format(format),
            request_id=_messages.new_request_id(request_id),
            validate_only=validate_only,
        )
        return await self._start(self._stub.ImportImage, request, "virtd.v1.Image")

    async def get(self, name: str) -> Image:
        """One image."""
        from virtd.v1 import image_pb2 as pb

        return (await self._transport.unary(self._stub.GetImage, pb.GetImageRequest(name=name))).image

    async def list(self, *, page_size: int = 0) -> tuple[Image, ...]:
        """All images, by name."""
        from virtd.v1 import image_pb2 as pb

        images: tuple[Image, ...] = ()
        async for page in pages(
            lambda token: self._transport.unary(
                self._stub.ListImages, pb.ListImagesRequest(page_size=page_size, page_token=token)
            )
        ):
            images += tuple(page.images)
        return images

    async def delete(
        self, name: str, *, request_id: str | None = None, validate_only: bool = False
    ) -> AsyncOperation[OperationResult]:
        """Delete an image."""
        from virtd.v1 import image_pb2 as pb

        request = pb.DeleteImageRequest(
            name=name, request_id=_messages.new_request_id(request_id), validate_only=validate_only
        )
        return await self._start(self._stub.DeleteImage, request, _RESULT)


class AsyncMetrics(AsyncService):
    """Usage of guests."""

    @cached_property
    def _stub(self) -> MetricsServiceAsyncStub:
        from virtd.v1.metrics_pb2_grpc import MetricsServiceStub

        return MetricsServiceStub(self._transport.channel)

    async def get(self, parent: str = "hosts/-") -> tuple[GuestMetrics, ...]:
        """The last sample of each guest of a host, of all hosts, or of one guest."""
        from virtd.v1 import metrics_pb2 as pb

        return tuple((await self._transport.unary(self._stub.GetMetrics, pb.GetMetricsRequest(parent=parent))).metrics)


class AsyncAudit(AsyncService):
    """Who asked for what."""

    @cached_property
    def _stub(self) -> AuditServiceAsyncStub:
        from virtd.v1.audit_pb2_grpc import AuditServiceStub

        return AuditServiceStub(self._transport.channel)

    async def list(self, *, limit: int | None = 100, page_size: int = 0) -> tuple[AuditRecord, ...]:
        """Records of calls that changed something or were denied, newest first.

        :param limit: at most so many; None: all that are kept.
        """
        from virtd.v1 import audit_pb2 as pb

        records: tuple[AuditRecord, ...] = ()
        async for page in pages(
            lambda token: self._transport.unary(
                self._stub.ListAuditRecords, pb.ListAuditRecordsRequest(page_size=page_size, page_token=token)
            )
        ):
            records += tuple(page.records)
            if limit is not None and len(records) >= limit:
                return records[:limit]
        return records
