"""Checks of pools that change, and of volumes' content."""

from __future__ import annotations

from typing import cast
from uuid import uuid4

from virtd.backend import capabilities as caps
from virtd.backend.api import (
    Hole,
    PoolFacet,
    PoolRequest,
    StorageFacet,
    VolumeChangeFacet,
    VolumeRequest,
    VolumeTransferFacet,
)
from virtd.backend.conformance.checks_storage import pool_and_name, source_file, source_on_host
from virtd.backend.conformance.kit import Kit, check
from virtd.backend.conformance.provision import MIB
from virtd.errors import (
    POOL_EXISTS,
    POOL_INACTIVE,
    POOL_NOT_EMPTY,
    POOL_NOT_FOUND,
    SHRINK_REFUSED,
    VOLUME_EXISTS,
    VOLUME_NOT_FOUND,
)
from virtd.model.guest import DiskFormat
from virtd.model.storage import Pool, PoolKind, PoolState, Volume

MISSING = "no-such-pool"


def _storage(kit: Kit) -> StorageFacet:
    return cast("StorageFacet", kit.facet("storage"))


def _pools(kit: Kit) -> PoolFacet:
    return cast("PoolFacet", kit.facet("pools"))


def _changes(kit: Kit) -> VolumeChangeFacet:
    return cast("VolumeChangeFacet", kit.facet("volume_changes"))


def _transfer(kit: Kit) -> VolumeTransferFacet:
    return cast("VolumeTransferFacet", kit.facet("volume_transfer"))


def new_pool(kit: Kit, kind: PoolKind = PoolKind.DIR) -> PoolRequest:
    """A pool that is not there yet."""
    name = f"{kit.tag}-pool-{uuid4().hex[:6]}"
    path = kit.host_path(name)
    if kind is PoolKind.LOGICAL:
        return PoolRequest(name, kind, volume_group=f"vg-{uuid4().hex[:6]}")
    if kind is PoolKind.NFS:
        return PoolRequest(name, kind, path, server="192.0.2.1", export="/export/disks")
    return PoolRequest(name, kind, path)


async def _find_pool(kit: Kit, name: str) -> Pool | None:
    return next((pool for pool in await _storage(kit).list_pools() if pool.name == name), None)


async def _find(kit: Kit, pool: str, name: str) -> Volume | None:
    return next((item for item in await _storage(kit).list_volumes(pool) if item.name == name), None)


async def _read(kit: Kit, pool: str, name: str, offset: int = 0, window: int = 300_000) -> bytes:
    """All of a volume's bytes, window by window."""
    found = b""
    while True:
        extents = await _transfer(kit).read_volume(pool, name, offset + len(found), window)
        piece = b"".join(bytes(part.length) if isinstance(part, Hole) else part for part in extents)
        assert len(piece) <= window, "more was given than was asked for"
        if not piece:
            return found
        found += piece


class TestPoolChanges:
    """Pools that are made and removed."""

    @check(caps.POOL_MANAGE)
    async def test_life(self, kit: Kit) -> None:
        """Define, start, stop, delete: each once or twice, which is the same."""
        request, pools = new_pool(kit), _pools(kit)
        try:
            for _ in range(2):
                defined = await pools.define_pool(request, kit.context())
                assert (defined.name, defined.path, defined.state) == (request.name, request.path, PoolState.INACTIVE)
                assert defined.autostart is False
            await kit.error(_storage(kit).list_volumes(request.name), POOL_INACTIVE)
            await kit.error(pools.refresh_pool(request.name, kit.context()), POOL_INACTIVE)
            for _ in range(2):
                assert (await pools.start_pool(request.name, kit.context())).state is PoolState.ACTIVE
            assert list(await _storage(kit).list_volumes(request.name)) == []
            assert (await pools.refresh_pool(request.name, kit.context())).state is PoolState.ACTIVE
            for wanted in (True, True, False):
                assert (await pools.set_pool_autostart(request.name, autostart=wanted)).autostart is wanted
            for _ in range(2):
                assert (await pools.stop_pool(request.name, kit.context())).state is PoolState.INACTIVE
        finally:
            for _ in range(2):
                await pools.delete_pool(request.name, kit.context(), remove_directory=True)
        assert await _find_pool(kit, request.name) is None
        assert not await kit.on_host(request.name)

    @check(caps.POOL_MANAGE)
    async def test_name_and_place_are_taken(self, kit: Kit) -> None:
        """POOL_EXISTS, and the existing pool is not touched."""
        request, pools = new_pool(kit), _pools(kit)
        try:
            await pools.define_pool(request, kit.context())
            await pools.start_pool(request.name, kit.context())
            before = await _find_pool(kit, request.name)
            for other in (
                PoolRequest(request.name, PoolKind.DIR, f"{request.path}-other"),
                PoolRequest(f"{request.name}-other", PoolKind.DIR, request.path),
            ):
                await kit.error(pools.define_pool(other, kit.context()), POOL_EXISTS)
            assert await _find_pool(kit, request.name) == before
            assert await _find_pool(kit, f"{request.name}-other") is None
        finally:
            await pools.delete_pool(request.name, kit.context(), remove_directory=True)

    @check(caps.POOL_MANAGE)
    async def test_unknown_pool(self, kit: Kit) -> None:
        """POOL_NOT_FOUND from every method that needs one."""
        pools = _pools(kit)
        await kit.error(pools.start_pool(MISSING, kit.context()), POOL_NOT_FOUND)
        await kit.error(pools.stop_pool(MISSING, kit.context()), POOL_NOT_FOUND)
        await kit.error(pools.refresh_pool(MISSING, kit.context()), POOL_NOT_FOUND)
        await kit.error(pools.set_pool_autostart(MISSING, autostart=True), POOL_NOT_FOUND)

    @check(caps.POOL_MANAGE, caps.VOLUMES)
    async def test_what_is_in_it_is_kept(self, kit: Kit) -> None:
        """Neither stopping nor deleting a pool deletes a volume."""
        request, pools, storage = new_pool(kit), _pools(kit), _storage(kit)
        await pools.define_pool(request, kit.context())
        await pools.start_pool(request.name, kit.context())
        try:
            await storage.create_volume(VolumeRequest(request.name, "v", DiskFormat.RAW, MIB), kit.context())
            await pools.stop_pool(request.name, kit.context())
            await pools.start_pool(request.name, kit.context())
            assert await _find(kit, request.name, "v") is not None
            refused = pools.delete_pool(request.name, kit.context(), remove_directory=True)
            await kit.error(refused, POOL_NOT_EMPTY)
            found = await _find_pool(kit, request.name)
            assert found is not None
            assert found.state is PoolState.ACTIVE, "a refused deletion stopped the pool"
            assert await _find(kit, request.name, "v") is not None
        finally:
            await storage.delete_volume(request.name, "v", kit.context())
            await pools.delete_pool(request.name, kit.context(), remove_directory=True)

    @check(caps.POOL_LOGICAL)
    async def test_logical(self, kit: Kit) -> None:
        """A volume group becomes a pool's source; nothing is made on the host."""
        await _defined(kit, new_pool(kit, PoolKind.LOGICAL))

    @check(caps.POOL_NFS)
    async def test_nfs(self, kit: Kit) -> None:
        """An export becomes a pool's source."""
        await _defined(kit, new_pool(kit, PoolKind.NFS))


async def _defined(kit: Kit, request: PoolRequest) -> None:
    """Define and delete a pool that cannot be started here."""
    pools = _pools(kit)
    native = pools.lower_pool(request)
    assert native == pools.lower_pool(request), "the same request gives another configuration"
    assert (request.volume_group or request.export) in native
    try:
        pool = await pools.define_pool(request, kit.context())
        assert pool.state is PoolState.INACTIVE
        assert pool.source == (request.volume_group or f"{request.server}:{request.export}")
        assert await _find_pool(kit, request.name) == pool
    finally:
        await pools.delete_pool(request.name, kit.context(), remove_directory=True)
    assert await _find_pool(kit, request.name) is None


class TestVolumeChanges:
    """Resize and clone."""

    @check(caps.VOLUME_RESIZE)
    async def test_resize(self, kit: Kit) -> None:
        """It grows, twice is once, and it shrinks only when that is allowed."""
        for format_ in (DiskFormat.RAW, DiskFormat.QCOW2):
            pool, name = await pool_and_name(kit)
            await _storage(kit).create_volume(VolumeRequest(pool, name, format_, 4 * MIB), kit.context())
            for _ in range(2):
                resized = await _changes(kit).resize_volume(pool, name, 8 * MIB, kit.context())
                assert resized.capacity_bytes == 8 * MIB
            await kit.error(_changes(kit).resize_volume(pool, name, 2 * MIB, kit.context()), SHRINK_REFUSED)
            found = await _find(kit, pool, name)
            assert found is not None
            assert found.capacity_bytes == 8 * MIB
            await _changes(kit).resize_volume(pool, name, 2 * MIB, kit.context(), allow_shrink=True)
            found = await _find(kit, pool, name)
            assert found is not None
            assert found.capacity_bytes == 2 * MIB

    @check(caps.VOLUME_RESIZE)
    async def test_resize_of_nothing(self, kit: Kit) -> None:
        """Nothing appears."""
        pool, name = await pool_and_name(kit)
        await kit.error(_changes(kit).resize_volume(pool, name, MIB, kit.context()), VOLUME_NOT_FOUND)
        await kit.error(_changes(kit).resize_volume(MISSING, name, MIB, kit.context()), POOL_NOT_FOUND)
        assert await _find(kit, pool, name) is None

    @check(caps.VOLUME_CLONE)
    async def test_clone(self, kit: Kit) -> None:
        """A clone has the size of its source, the format that was asked for, and hangs on nothing."""
        pool, source = await pool_and_name(kit)
        made = VolumeRequest(pool, source, DiskFormat.RAW, None, await source_on_host(kit), DiskFormat.RAW)
        await _storage(kit).create_volume(made, kit.context())
        for format_ in (DiskFormat.RAW, DiskFormat.QCOW2):
            _, name = await pool_and_name(kit)
            clone = await _changes(kit).clone_volume(pool, source, pool, name, format_, kit.context())
            assert (clone.name, clone.format.upper(), clone.capacity_bytes) == (name, format_, MIB)
            assert not clone.backing_path
            if format_ is DiskFormat.RAW and kit.declared(caps.VOLUME_TRANSFER):
                assert await _read(kit, pool, name) == await _read(kit, pool, source)
        await kit.error(
            _changes(kit).clone_volume(pool, source, pool, name, DiskFormat.RAW, kit.context()), VOLUME_EXISTS
        )
        found = await _find(kit, pool, name)
        assert found is not None
        assert found.format.upper() == DiskFormat.QCOW2, "the volume that exists was touched"

    @check(caps.VOLUME_CLONE)
    async def test_clone_of_nothing(self, kit: Kit) -> None:
        """Nothing appears."""
        pool, name = await pool_and_name(kit)
        clone = _changes(kit).clone_volume
        await kit.error(clone(pool, "no-such-volume", pool, name, DiskFormat.RAW, kit.context()), VOLUME_NOT_FOUND)
        await kit.error(clone(MISSING, "v", pool, name, DiskFormat.RAW, kit.context()), POOL_NOT_FOUND)
        assert await _find(kit, pool, name) is None


class TestVolumeTransfer:
    """Upload and download."""

    @check(caps.VOLUME_TRANSFER)
    async def test_what_is_uploaded_can_be_read(self, kit: Kit) -> None:
        """Byte for byte, from any offset, in windows of any size; behind the end there is nothing."""
        source, (pool, name) = source_file(kit), await pool_and_name(kit)
        made = await _transfer(kit).upload_volume(pool, name, str(source), DiskFormat.RAW, kit.context())
        assert (made.name, made.format.upper(), made.capacity_bytes) == (name, "RAW", MIB)
        whole = source.read_bytes()
        content = await _transfer(kit).volume_content(pool, name)
        assert (content.size_bytes, content.format) == (MIB, "raw")
        assert await _read(kit, pool, name) == whole
        assert await _read(kit, pool, name, offset=12_345, window=MIB) == whole[12_345:]
        assert list(await _transfer(kit).read_volume(pool, name, MIB, 4096)) == []
        assert list(await _transfer(kit).read_volume(pool, name, 3 * MIB, 4096)) == []

    @check(caps.VOLUME_TRANSFER)
    async def test_name_is_taken(self, kit: Kit) -> None:
        """VOLUME_EXISTS, and the existing volume is not touched."""
        source, (pool, name) = source_file(kit), await pool_and_name(kit)
        await _storage(kit).create_volume(VolumeRequest(pool, name, DiskFormat.RAW, 2 * MIB), kit.context())
        before = await _transfer(kit).volume_content(pool, name)
        again = _transfer(kit).upload_volume(pool, name, str(source), DiskFormat.RAW, kit.context())
        await kit.error(again, VOLUME_EXISTS)
        assert await _transfer(kit).volume_content(pool, name) == before

    @check(caps.VOLUME_TRANSFER)
    async def test_state_tells_changes(self, kit: Kit) -> None:
        """Reading does not change the etag; changing the volume does."""
        source, (pool, name) = source_file(kit), await pool_and_name(kit)
        await _transfer(kit).upload_volume(pool, name, str(source), DiskFormat.RAW, kit.context())
        before = await _transfer(kit).volume_content(pool, name)
        await _read(kit, pool, name, window=MIB)
        assert await _transfer(kit).volume_content(pool, name) == before
        await _storage(kit).delete_volume(pool, name, kit.context())
        await _storage(kit).create_volume(VolumeRequest(pool, name, DiskFormat.RAW, MIB), kit.context())
        assert (await _transfer(kit).volume_content(pool, name)).etag != before.etag

    @check(caps.VOLUME_TRANSFER)
    async def test_nothing_to_read(self, kit: Kit) -> None:
        """VOLUME_NOT_FOUND and POOL_NOT_FOUND."""
        pool, name = await pool_and_name(kit)
        await kit.error(_transfer(kit).volume_content(pool, name), VOLUME_NOT_FOUND)
        await kit.error(_transfer(kit).read_volume(pool, name, 0, 4096), VOLUME_NOT_FOUND)
        await kit.error(_transfer(kit).read_volume(MISSING, name, 0, 4096), POOL_NOT_FOUND)
        source = str(source_file(kit))
        await kit.error(
            _transfer(kit).upload_volume(MISSING, name, source, DiskFormat.RAW, kit.context()), POOL_NOT_FOUND
        )
