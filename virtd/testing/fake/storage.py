"""Pools and volumes of a fake host."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Final

from virtd.backend import capabilities as caps
from virtd.backend.api import DEFAULT_POOL, CallContext, VolumeRequest
from virtd.errors import (
    IMAGE_INVALID,
    POOL_INACTIVE,
    POOL_NOT_FOUND,
    VOLUME_EXISTS,
    AlreadyExistsError,
    FailedPreconditionError,
    InvalidArgumentError,
    NotFoundError,
    invalid_field,
)
from virtd.model.storage import Pool, PoolState, Volume
from virtd.testing.fake import lowering
from virtd.testing.fake.disks import content_at, image_head, is_disk
from virtd.testing.fake.faults import NativeFailure
from virtd.testing.fake.link import Facet, spi
from virtd.testing.fake.state import FakePool, FakeVolume

_PIECES: Final = 8
_DISK_BYTES: Final = 1 << 20
"""A guest's disk outside of all pools has no file here; it is as large as this."""


class Storage(Facet):
    """See :class:`virtd.backend.api.StorageFacet`."""

    @spi
    async def list_pools(self) -> Sequence[Pool]:
        """See the SPI."""
        return [self._pool(pool) for pool in await self._native.pool_list()]

    @spi
    async def ensure_default_pool(self, context: CallContext) -> Pool:
        """See the SPI."""
        context.checkpoint()
        path = str(Path(self._link.config.directory, "pool"))
        return self._pool(await self._native.pool_create(DEFAULT_POOL, path))

    @spi
    async def list_volumes(self, pool: str) -> Sequence[Volume]:
        """See the SPI."""
        found = await self._find(pool)
        return [self._volume(volume) for volume in found.volumes.values() if volume.complete]

    @spi
    async def volume_path(self, pool: str, name: str) -> str:
        """See the SPI."""
        return str(Path((await self._find_any(pool)).path, name))

    @spi
    async def create_volume(self, request: VolumeRequest, context: CallContext) -> Volume:
        """See the SPI."""
        self._link.refuse_without(caps.VOLUMES)
        pool = await self._find(request.pool)
        if request.name in pool.volumes:
            raise AlreadyExistsError(VOLUME_EXISTS, f"pool {pool.name} has a volume {request.name} already")
        capacity = self._capacity(request)
        volume = FakeVolume(request.name, str(Path(pool.path, request.name)), request.format, capacity)
        volume.backing_path = request.source_path
        volume.content = content_at(self._native, request.source_path) or image_head(request.source_path)
        context.checkpoint()
        try:
            await self._native.volume_allocate(pool.name, volume)
            if request.source_path and not request.overlay:
                await self._fill(pool.name, volume, context)
                volume.backing_path = ""
            context.checkpoint()
            made = await self._native.volume_commit(pool.name, volume.name)
        except BaseException as error:
            # Somebody else's volume of this name, made meanwhile, is not ours to delete.
            if not (isinstance(error, NativeFailure) and error.code == "volume-exists"):
                with contextlib.suppress(NativeFailure):
                    await self._native.volume_delete(pool.name, volume.name)
            raise
        return self._volume(made)

    async def _fill(self, pool: str, volume: FakeVolume, context: CallContext) -> None:
        total = volume.capacity_bytes
        rate = self._world.options.volume_mib_s * (1 << 20)
        for index in range(_PIECES):
            context.checkpoint()
            piece = total * (index + 1) // _PIECES - total * index // _PIECES
            if rate:
                await self._world.clock.sleep(piece / rate)
            await self._native.volume_fill(pool, volume.name, piece, context)
            done = volume.allocation_bytes
            context.progress(done / total if total else 1.0, bytes_done=done, bytes_total=total)

    @spi
    async def delete_volume(self, pool: str, name: str, context: CallContext) -> None:
        """See the SPI."""
        self._link.refuse_without(caps.VOLUMES)
        context.checkpoint()
        await self._native.volume_delete(pool, name)

    async def _find(self, name: str) -> FakePool:
        pool = await self._find_any(name)
        if not pool.active:
            if name != DEFAULT_POOL:
                raise FailedPreconditionError(POOL_INACTIVE, f"pool {name} is not started")
            pool.active = True
        return pool

    async def _find_any(self, name: str) -> FakePool:
        for pool in await self._native.pool_list():
            if pool.name == name:
                return pool
        raise NotFoundError(POOL_NOT_FOUND, f"the host has no pool {name}")

    def _capacity(self, request: VolumeRequest) -> int:
        if not request.source_path:
            if request.capacity_bytes is None:
                raise invalid_field("capacity_bytes", "is required for a blank volume")
            return request.capacity_bytes
        size = self._source_bytes(request.source_path)
        if request.capacity_bytes is None:
            return size
        if request.capacity_bytes < size:
            raise invalid_field("capacity_bytes", f"is smaller than the source, which has {size} bytes")
        return request.capacity_bytes

    def _source_bytes(self, path: str) -> int:
        for pool in self._native.pools.values():
            for volume in pool.volumes.values():
                if volume.path == path:
                    return volume.capacity_bytes
        if is_disk(self._native, path):
            return _DISK_BYTES
        try:
            return Path(path).stat().st_size
        except OSError as error:
            raise InvalidArgumentError(IMAGE_INVALID, f"the source cannot be read: {error}") from error

    def _pool(self, pool: FakePool) -> Pool:
        total = self._native.pool_capacity_bytes
        used = sum(volume.allocation_bytes for volume in pool.volumes.values())
        known = Pool(pool.name, pool.kind, pool.path, source=pool.source, autostart=pool.autostart)
        if not pool.active:
            return replace(known, state=PoolState.INACTIVE)
        return replace(
            known,
            state=PoolState.ACTIVE,
            capacity_bytes=total,
            allocation_bytes=used,
            available_bytes=total - used,
        )

    def _volume(self, volume: FakeVolume) -> Volume:
        users = [
            guest.name
            for guest in self._native.guests.values()
            if any(disk.path == volume.path for disk in lowering.parse(guest.native).disks)
        ]
        return Volume(
            name=volume.name,
            path=volume.path,
            format=volume.format,
            capacity_bytes=volume.capacity_bytes,
            allocation_bytes=volume.allocation_bytes,
            backing_path=volume.backing_path,
            used_by=tuple(sorted(users)),
        )
