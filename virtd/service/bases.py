"""Images on hosts of other machines: sent once to each pool that needs one, and then used by all its disks.

The volume's name is the image's digest, so nothing but that image can be behind it.  A row says that it
is whole: a volume without one is what a cut transfer has left, and is sent anew.
"""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from virtd.backend import capabilities as cap
from virtd.errors import NotFoundError, unsupported
from virtd.service.filling import fill_volume

if TYPE_CHECKING:
    from virtd.inventory import HostLink
    from virtd.model.guest import DiskFormat
    from virtd.operations import Run
    from virtd.service.resolve import PlannedVolume
    from virtd.store import Database


@dataclass(frozen=True, slots=True)
class Base:
    """An image on a host.  ``path`` is the host's."""

    host: str
    pool: str
    volume: str
    path: str


class Bases:
    """Which images are on which hosts."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._locks: dict[tuple[str, str, str], asyncio.Lock] = {}

    async def source(self, link: HostLink, pool: str, volume: PlannedVolume, run: Run[Any]) -> str:
        """The path on the host of what a planned volume is made of; an image is sent there first, if need be."""
        if not volume.send:
            return volume.source_path
        return await self.ensure(link, pool, volume.source_path, volume.source_format or volume.format, run)

    async def ensure(self, link: HostLink, pool: str, path: str, format_: DiskFormat, run: Run[Any]) -> str:
        """The image's path on the host; it is sent first if it is not there.

        :param path: the image's file on this machine.
        """
        storage = link.facets.storage
        if storage is None:
            raise unsupported(cap.VOLUMES, "the host offers no volumes", resource=f"hosts/{link.id}")
        volume = Path(path).name
        async with self._locks.setdefault((link.id, pool, volume), asyncio.Lock()):
            there = any(entry.name == volume for entry in await link.call(storage.list_volumes(pool)))
            known = await self._find(link.id, pool, volume)
            if there and known is not None:
                return known.path
            if there:
                await link.call(storage.delete_volume(pool, volume, run))
            run.note(f"the image is sent to pool {pool} of {link.id}, once for all its disks there")
            await fill_volume(link, pool, volume, path, format_, run)
            base = Base(link.id, pool, volume, await link.call(storage.volume_path(pool, volume)))
            await self._database.write(
                lambda connection: connection.execute(
                    "INSERT OR REPLACE INTO image_bases VALUES (?, ?, ?, ?, ?)",
                    (base.host, base.pool, base.volume, path, base.path),
                )
            )
            return base.path

    async def of(self, path: str) -> Mapping[str, Sequence[Base]]:
        """Where an image is, by host.

        :param path: the image's file on this machine.
        """
        rows = await self._database.read(
            lambda connection: connection.execute(
                "SELECT host, pool, volume, path FROM image_bases WHERE image = ?", (path,)
            ).fetchall()
        )
        found: dict[str, tuple[Base, ...]] = {}
        for row in rows:
            base = Base(*row)
            found[base.host] = (*found.get(base.host, ()), base)
        return found

    async def remove(self, path: str, links: Mapping[str, HostLink], run: Run[Any]) -> None:
        """Delete an image from all hosts; nobody's disk is based on it.  Idempotent.

        :raises UnavailableError: HOST_UNREACHABLE; what was not deleted is still known.
        """
        for host, bases in (await self.of(path)).items():
            link = links.get(host)
            for base in bases:
                async with self._locks.setdefault((host, base.pool, base.volume), asyncio.Lock()):
                    storage = link.facets.storage if link is not None else None
                    if link is not None and storage is not None:
                        try:
                            await link.call(storage.delete_volume(base.pool, base.volume, run))
                        except NotFoundError:
                            run.note(f"pool {base.pool} of {host} is gone, and the image with it")
                    await self._database.write(_forget(base))

    async def _find(self, host: str, pool: str, volume: str) -> Base | None:
        row = await self._database.read(
            lambda connection: connection.execute(
                "SELECT host, pool, volume, path FROM image_bases WHERE host = ? AND pool = ? AND volume = ?",
                (host, pool, volume),
            ).fetchone()
        )
        return Base(*row) if row else None


def _forget(base: Base) -> Any:
    def delete(connection: sqlite3.Connection) -> None:
        connection.execute(
            "DELETE FROM image_bases WHERE host = ? AND pool = ? AND volume = ?", (base.host, base.pool, base.volume)
        )

    return delete
