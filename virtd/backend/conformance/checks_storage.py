"""Checks of pools, volumes and networks."""

from __future__ import annotations

from pathlib import Path
from typing import Final, cast

from virtd.backend import capabilities as caps
from virtd.backend.api import StorageFacet, VolumeRequest
from virtd.backend.conformance.kit import Kit, check
from virtd.backend.conformance.provision import MIB
from virtd.errors import POOL_NOT_FOUND, VOLUME_EXISTS
from virtd.model.guest import DiskFormat
from virtd.model.storage import PoolState, Volume


def _storage(kit: Kit) -> StorageFacet:
    return cast("StorageFacet", kit.facet("storage"))


async def pool_and_name(kit: Kit) -> tuple[str, str]:
    """The default pool, and the name of a volume that is removed after the check."""
    pool = await _storage(kit).ensure_default_pool(kit.context())
    name = kit.new_name()
    kit.forget_later(volume=(pool.name, name))
    return pool.name, name


async def _find(kit: Kit, pool: str, name: str) -> Volume | None:
    return next((item for item in await _storage(kit).list_volumes(pool) if item.name == name), None)


class TestPools:
    """Pools."""

    @check(caps.POOLS)
    async def test_list(self, kit: Kit) -> None:
        """Names are unique, and sizes that are known make sense."""
        pools = await _storage(kit).list_pools()
        assert len({pool.name for pool in pools}) == len(pools)
        for pool in pools:
            if pool.capacity_bytes is not None and pool.available_bytes is not None:
                assert 0 <= pool.available_bytes <= pool.capacity_bytes

    @check(caps.POOLS)
    async def test_default_pool(self, kit: Kit) -> None:
        """It is made once and found again."""
        first = await _storage(kit).ensure_default_pool(kit.context())
        again = await _storage(kit).ensure_default_pool(kit.context())
        assert (first.name, first.path) == (again.name, again.path)
        assert again.state is PoolState.ACTIVE
        names = [pool.name for pool in await _storage(kit).list_pools()]
        assert names.count(first.name) == 1

    @check(caps.POOLS)
    async def test_unknown_pool(self, kit: Kit) -> None:
        """POOL_NOT_FOUND from every method that names one."""
        await kit.error(_storage(kit).list_volumes("no-such-pool"), POOL_NOT_FOUND)
        await kit.error(_storage(kit).volume_path("no-such-pool", "x"), POOL_NOT_FOUND)
        if kit.declared(caps.VOLUMES):
            request = VolumeRequest("no-such-pool", "x", DiskFormat.RAW, MIB)
            await kit.error(_storage(kit).create_volume(request, kit.context()), POOL_NOT_FOUND)


class TestVolumes:
    """Volumes."""

    @check(caps.VOLUMES)
    async def test_blank(self, kit: Kit) -> None:
        """A new volume lies where it was said it would, with the size that was asked for."""
        for format_ in (DiskFormat.RAW, DiskFormat.QCOW2):
            pool, name = await pool_and_name(kit)
            path = await _storage(kit).volume_path(pool, name)
            assert await _find(kit, pool, name) is None, "volume_path made a volume"
            made = await _storage(kit).create_volume(VolumeRequest(pool, name, format_, 8 * MIB), kit.context())
            assert (made.name, made.path, made.capacity_bytes) == (name, path, 8 * MIB)
            assert made.format.upper() == format_
            assert not made.backing_path
            found = await _find(kit, pool, name)
            assert found is not None
            assert (found.name, found.path, found.capacity_bytes) == (name, path, 8 * MIB)

    @check(caps.VOLUMES)
    async def test_name_is_taken(self, kit: Kit) -> None:
        """VOLUME_EXISTS, and the existing volume is not touched."""
        pool, name = await pool_and_name(kit)
        await _storage(kit).create_volume(VolumeRequest(pool, name, DiskFormat.RAW, 4 * MIB), kit.context())
        before = await _find(kit, pool, name)
        again = VolumeRequest(pool, name, DiskFormat.RAW, 8 * MIB)
        await kit.error(_storage(kit).create_volume(again, kit.context()), VOLUME_EXISTS)
        assert await _find(kit, pool, name) == before

    @check(caps.VOLUMES)
    async def test_delete_twice(self, kit: Kit) -> None:
        """Deleting is idempotent."""
        pool, name = await pool_and_name(kit)
        await _storage(kit).create_volume(VolumeRequest(pool, name, DiskFormat.RAW, MIB), kit.context())
        for _ in range(2):
            await _storage(kit).delete_volume(pool, name, kit.context())
            assert await _find(kit, pool, name) is None

    @check(caps.VOLUMES)
    async def test_copy(self, kit: Kit) -> None:
        """A volume filled from a file has at least its size, can be larger, and reports progress truthfully."""
        source = await source_on_host(kit)
        for capacity, wanted in ((None, MIB), (3 * MIB, 3 * MIB)):
            pool, name = await pool_and_name(kit)
            request = VolumeRequest(pool, name, DiskFormat.RAW, capacity, source, DiskFormat.RAW)
            context = kit.context()
            made = await _storage(kit).create_volume(request, context)
            assert made.capacity_bytes == wanted
            assert not made.backing_path, "a copy hangs on its source"
        if kit.provision.files is None:
            assert Path(source).read_bytes() == CONTENT, "the source was changed"

    @check(caps.VOLUMES)
    async def test_overlay(self, kit: Kit) -> None:
        """An overlay names its base, and leaves it when it is deleted."""
        source = await source_on_host(kit)
        pool, name = await pool_and_name(kit)
        request = VolumeRequest(pool, name, DiskFormat.QCOW2, None, source, DiskFormat.RAW, overlay=True)
        made = await _storage(kit).create_volume(request, kit.context())
        assert made.backing_path == source
        assert made.capacity_bytes == MIB
        await _storage(kit).delete_volume(pool, name, kit.context())
        assert await kit.on_host(SOURCE), "deleting the overlay deleted its base"


SOURCE: Final = "virtd-conformance-source.raw"
CONTENT: Final = bytes(range(256)) * (MIB // 256)


def source_file(kit: Kit) -> Path:
    """One MiB in a file of this machine, for uploads."""
    path = kit.directory / SOURCE
    path.write_bytes(CONTENT)
    return path


async def source_on_host(kit: Kit) -> str:
    """The path of a file with the same content on the host, in an allowed directory."""
    return await kit.host_file(SOURCE, CONTENT)


class TestNetworks:
    """Networks."""

    @check(caps.NETWORKS)
    async def test_list(self, kit: Kit) -> None:
        """Names are there and unique; modes are said."""
        networks = await kit.facet("networks").list_networks()
        assert all(network.name for network in networks)
        assert len({network.name for network in networks}) == len(networks)
        for network in networks:
            assert network.mode, f"network {network.name} has no mode"
