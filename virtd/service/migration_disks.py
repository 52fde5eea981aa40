"""What a migration has to know of a guest's disks."""

from __future__ import annotations

from dataclasses import dataclass

from virtd.inventory import HostLink
from virtd.model.guest import DiskFormat
from virtd.model.migration import DiskPassage, MigrationDisk
from virtd.model.storage import PoolState, Volume


@dataclass(frozen=True, slots=True)
class MovingDisk:
    """One disk's way, with all that the journal needs of it.

    :param source_pool: where the file lies as a volume on the source; empty: in no pool.
    :param flatten: it is an overlay: what it is based on has to become part of the copy.
    :param owned: whether virtd made the volume for the guest.
    """

    disk: str
    passage: DiskPassage
    path: str
    format: DiskFormat = DiskFormat.RAW
    capacity_bytes: int | None = None
    pool: str = ""
    volume: str = ""
    source_pool: str = ""
    source_volume: str = ""
    flatten: bool = False
    owned: bool = False

    @property
    def record(self) -> MigrationDisk:
        """What a caller is shown."""
        return MigrationDisk(self.disk, self.passage, self.path, self.capacity_bytes, self.pool, self.volume)


@dataclass(frozen=True, slots=True)
class Place:
    """A volume and the pool that it lies in."""

    pool: str
    volume: Volume


async def places_of(link: HostLink) -> dict[str, Place]:
    """The volumes of a host's active pools, by their paths."""
    storage = link.facets.storage
    found: dict[str, Place] = {}
    if storage is None:
        return found
    for pool in await link.call(storage.list_pools()):
        if pool.state is PoolState.ACTIVE:
            for volume in await link.call(storage.list_volumes(pool.name)):
                found[volume.path] = Place(pool.name, volume)
    return found
