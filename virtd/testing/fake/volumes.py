"""Pools that change, and the content of volumes, of a fake host.

The fake has no formats: the bytes of a volume are those that were uploaded, then zeros, whatever it is
called.
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Final, TypeVar

from virtd.backend import capabilities as caps
from virtd.backend.api import CallContext, Extent, Hole, PoolRequest, VolumeContent
from virtd.errors import (
    POOL_EXISTS,
    POOL_INACTIVE,
    POOL_NOT_EMPTY,
    SHRINK_REFUSED,
    VOLUME_EXISTS,
    VOLUME_NOT_FOUND,
    AlreadyExistsError,
    FailedPreconditionError,
    NotFoundError,
)
from virtd.model.guest import DiskFormat
from virtd.model.storage import Pool, PoolKind, Volume
from virtd.testing.fake.disks import content_of
from virtd.testing.fake.faults import NativeFailure
from virtd.testing.fake.link import spi
from virtd.testing.fake.state import FakePool, FakeVolume
from virtd.testing.fake.storage import Storage

if TYPE_CHECKING:
    from virtd.testing.fake.native import NativeHypervisor

T = TypeVar("T")
_CAPABILITY: Final = {
    PoolKind.DIR: caps.POOL_MANAGE,
    PoolKind.LOGICAL: caps.POOL_LOGICAL,
    PoolKind.NFS: caps.POOL_NFS,
}


async def _native(native: NativeHypervisor, call: str, change: Callable[[], T]) -> T:
    """One native call: it takes its time, can be made to fail, and is written to the world's file."""
    async with native._call(call):  # noqa: SLF001 - one API in two modules
        return change()


class Pools(Storage):
    """See :class:`virtd.backend.api.PoolFacet`."""

    def lower_pool(self, request: PoolRequest) -> str:
        """See the SPI."""
        return f"fake pool {request}\n"

    @spi
    async def define_pool(self, request: PoolRequest, context: CallContext) -> Pool:
        """See the SPI."""
        self._link.refuse_without(_CAPABILITY[request.kind])
        context.checkpoint()
        wanted = FakePool(
            request.name,
            request.path or f"/dev/{request.volume_group}",
            kind=request.kind.lower(),
            source=f"{request.server}:{request.export}" if request.server else request.volume_group,
            active=False,
            autostart=request.autostart,
        )
        pools = await self._native.pool_list()
        for pool in pools:
            if pool.name == wanted.name and (pool.kind, pool.path, pool.source) == (
                wanted.kind,
                wanted.path,
                wanted.source,
            ):
                return self._pool(pool)
            if pool.name == wanted.name or pool.path == wanted.path:
                raise AlreadyExistsError(POOL_EXISTS, f"pool {pool.name} has this name or place already")
        await _native(self._native, "pool_define", lambda: self._native.pools.update({wanted.name: wanted}))
        return self._pool(wanted)

    @spi
    async def start_pool(self, pool: str, context: CallContext) -> Pool:
        """See the SPI."""
        return await self._set(pool, context, "pool_start", active=True)

    @spi
    async def stop_pool(self, pool: str, context: CallContext) -> Pool:
        """See the SPI."""
        return await self._set(pool, context, "pool_stop", active=False)

    async def _set(self, pool: str, context: CallContext, call: str, *, active: bool) -> Pool:
        context.checkpoint()
        found = await self._find_any(pool)
        if found.active != active:
            await _native(self._native, call, lambda: setattr(found, "active", active))
        return self._pool(found)

    @spi
    async def refresh_pool(self, pool: str, context: CallContext) -> Pool:
        """See the SPI."""
        context.checkpoint()
        found = await self._find_any(pool)
        if not found.active:
            raise FailedPreconditionError(POOL_INACTIVE, f"pool {pool} is not started")
        return self._pool(found)

    @spi
    async def set_pool_autostart(self, pool: str, *, autostart: bool) -> Pool:
        """See the SPI."""
        found = await self._find_any(pool)
        await _native(self._native, "pool_autostart", lambda: setattr(found, "autostart", autostart))
        return self._pool(found)

    @spi
    async def delete_pool(self, pool: str, context: CallContext, *, remove_directory: bool = False) -> None:
        """See the SPI."""
        context.checkpoint()
        found = next((entry for entry in await self._native.pool_list() if entry.name == pool), None)
        if found is None:
            return
        if remove_directory and found.volumes:
            raise FailedPreconditionError(POOL_NOT_EMPTY, f"pool {pool} has {len(found.volumes)} volumes")
        await _native(self._native, "pool_delete", lambda: self._native.pools.pop(pool, None))


class Volumes(Storage):
    """See :class:`virtd.backend.api.VolumeChangeFacet` and :class:`virtd.backend.api.VolumeTransferFacet`."""

    @spi
    async def resize_volume(
        self, pool: str, name: str, capacity_bytes: int, context: CallContext, *, allow_shrink: bool = False
    ) -> Volume:
        """See the SPI."""
        self._link.refuse_without(caps.VOLUME_RESIZE)
        context.checkpoint()
        volume = await self._existing(pool, name)
        if capacity_bytes < volume.capacity_bytes and not allow_shrink:
            raise FailedPreconditionError(
                SHRINK_REFUSED, f"{name} has {volume.capacity_bytes} bytes, more than {capacity_bytes}"
            )
        if capacity_bytes != volume.capacity_bytes:
            cut = base64.b64encode(base64.b64decode(volume.content)[:capacity_bytes]).decode()

            def change() -> None:
                volume.capacity_bytes, volume.content = capacity_bytes, cut

            await _native(self._native, "volume_resize", change)
        return self._volume(volume)

    @spi
    async def clone_volume(
        self,
        source_pool: str,
        source: str,
        pool: str,
        name: str,
        format: DiskFormat,  # noqa: A002 - the API's name
        context: CallContext,
        *,
        source_format: DiskFormat | None = None,
    ) -> Volume:
        """See the SPI."""
        self._link.refuse_without(caps.VOLUME_CLONE)
        original = await self._existing(source_pool, source)
        content = content_of(self._native, original)
        return await self._make(pool, name, format, original.capacity_bytes, content, context)

    @spi
    async def upload_volume(
        self,
        pool: str,
        name: str,
        path: str,
        format: DiskFormat,  # noqa: A002 - the API's name
        context: CallContext,
    ) -> Volume:
        """See the SPI."""
        self._link.refuse_without(caps.VOLUME_TRANSFER)
        data = Path(path).read_bytes()
        return await self._make(pool, name, format, len(data), base64.b64encode(data).decode(), context)

    @spi
    async def upload_part(
        self,
        pool: str,
        name: str,
        path: str,
        format: DiskFormat,  # noqa: A002 - the API's name
        offset: int,
        length: int,
        context: CallContext,
    ) -> None:
        """See :class:`virtd.backend.api.VolumePartsFacet`."""
        self._link.refuse_without(caps.VOLUME_TRANSFER)
        data = Path(path).read_bytes()
        part = data[offset : offset + length]
        if not offset:
            content = base64.b64encode(part).decode()
            await self._make(pool, name, format, len(data), content, context)
            return
        volume = await self._existing(pool, name)

        def write() -> None:
            before = base64.b64decode(volume.content)[:offset].ljust(offset, b"\0")
            volume.content = base64.b64encode(before + part).decode()

        await _native(self._native, "volume_write", write)
        context.progress(min(1.0, (offset + length) / len(data)))

    @spi
    async def volume_content(self, pool: str, name: str) -> VolumeContent:
        """See the SPI."""
        self._link.refuse_without(caps.VOLUME_TRANSFER)
        volume = await self._existing(pool, name)
        state = f"{volume.path} {volume.capacity_bytes} {content_of(self._native, volume)}"
        return VolumeContent(
            volume.capacity_bytes, volume.format.lower(), hashlib.sha256(state.encode()).hexdigest()[:32]
        )

    @spi
    async def read_volume(self, pool: str, name: str, offset: int, length: int) -> Sequence[Extent]:
        """See the SPI."""
        self._link.refuse_without(caps.VOLUME_TRANSFER)
        volume = await self._existing(pool, name)
        data = await _native(self._native, "volume_read", lambda: base64.b64decode(content_of(self._native, volume)))
        wanted = min(length, volume.capacity_bytes - offset)
        if wanted <= 0:
            return []
        piece = data[offset : offset + wanted]
        hole = wanted - len(piece)
        return [*([piece] if piece else []), *([Hole(hole)] if hole else [])]

    async def _make(
        self,
        pool: str,
        name: str,
        format: DiskFormat,  # noqa: A002 - the API's name
        capacity: int,
        content: str,
        context: CallContext,
    ) -> Volume:
        found = await self._find(pool)
        if name in found.volumes:
            raise AlreadyExistsError(VOLUME_EXISTS, f"pool {pool} has a volume {name} already")
        volume = FakeVolume(name, str(Path(found.path, name)), format, capacity, content=content)
        context.checkpoint()
        try:
            await self._native.volume_allocate(pool, volume)
            await self._fill(pool, volume, context)
            context.checkpoint()
            made = await self._native.volume_commit(pool, name)
        except BaseException as error:
            # Somebody else's volume of this name, made meanwhile, is not ours to delete.
            if not (isinstance(error, NativeFailure) and error.code == "volume-exists"):
                with contextlib.suppress(NativeFailure):
                    await self._native.volume_delete(pool, name)
            raise
        return self._volume(made)

    async def _existing(self, pool: str, name: str) -> FakeVolume:
        volume = (await self._find(pool)).volumes.get(name)
        if volume is None or not volume.complete:
            raise NotFoundError(VOLUME_NOT_FOUND, f"pool {pool} has no volume {name}")
        return volume
