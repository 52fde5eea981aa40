"""Images on hosts of other machines: sent once to each pool that needs one, and then used by all its disks.

The volume's name is the image's digest, so nothing but that image can be behind it.  A row says that it
is whole, another one how far a transfer has come: what was cut, by whatever, is gone on with from there.
What no disk was based on for a day is deleted from the host; the image itself stays.
"""

from __future__ import annotations

import asyncio
import sqlite3
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from virtd.backend import capabilities as cap
from virtd.errors import HOST_UNREACHABLE, NotFoundError, VirtdError, unsupported
from virtd.service.detached import DetachedContext
from virtd.service.filling import fill_volume
from virtd.service.verbs.base import patience

if TYPE_CHECKING:
    from virtd.backend.api import StorageFacet
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


PART_BYTES: Final = 16 * 2**20
"""So much is sent again at most when a transfer is cut."""
_DELETE_S: Final = 30.0
_LOOK_S: Final = 0.2
UNUSED_KEEP_S: Final = 86_400.0
"""How long an image stays on a host after the last disk that was based on it, or a cut transfer after its last byte."""


class Bases:
    """Which images are on which hosts.

    :param clock: Unix time.
    """

    def __init__(self, database: Database, clock: Callable[[], float] = time.time) -> None:
        self._database = database
        self._clock = clock
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
        lock = self._locks.setdefault((link.id, pool, volume), asyncio.Lock())
        if lock.locked():
            run.note(f"the image is on its way to pool {pool} of {link.id} for somebody else: this waits for it")
        while lock.locked():
            run.checkpoint()
            await asyncio.sleep(_LOOK_S)
        async with lock:
            volumes = await link.call(storage.list_volumes(pool))
            there = any(entry.name == volume for entry in volumes)
            known = await self._find(link.id, pool, volume)
            if there and known is not None:
                await self._database.write(_used(known))
                return known.path
            base = Base(link.id, pool, volume, await link.call(storage.volume_path(pool, volume)))
            # Nobody bases a disk on half an image: if there is one, another virtd has sent it.
            if not any(entry.backing_path == base.path for entry in volumes):
                await self._send(link, storage, base, path, format_, run, there=there)
            await self._database.write(_whole(base, path))
            return base.path

    async def _send(
        self,
        link: HostLink,
        storage: StorageFacet,
        base: Base,
        path: str,
        format_: DiskFormat,
        run: Run[Any],
        *,
        there: bool,
    ) -> None:
        """Send an image, or what is missing of it."""
        size = (await asyncio.to_thread(Path(path).stat)).st_size
        sent = await self._sent(base, path, size) if there else 0
        if there and not sent:
            await self._delete(link, storage, base)
        parts = link.facets.volume_parts
        if sent:
            run.note(f"the image is on its way to pool {base.pool} of {link.id}: it goes on from byte {sent} of {size}")
        else:
            run.note(f"the image is sent to pool {base.pool} of {link.id}, once for all its disks there")
        if parts is None:
            await fill_volume(link, base.pool, base.volume, path, format_, run)
            return
        await self._database.write(_sent_so_far(base, path, size, sent, self._clock()))
        try:
            while sent < size or not size:
                work = parts.upload_part(base.pool, base.volume, path, format_, sent, PART_BYTES, run)
                await link.call(work, timeout_s=patience(run))
                sent = min(size, sent + PART_BYTES)
                await self._database.write(_sent_so_far(base, path, size, sent, self._clock()))
                run.checkpoint()
                if not size:
                    return
        except VirtdError as error:
            if error.reason is not HOST_UNREACHABLE:  # else it goes on when the host is back
                await self._delete(link, storage, base)
                await self._database.write(_forget(base))
            raise

    async def _delete(self, link: HostLink, storage: StorageFacet, base: Base) -> None:
        """Also for an operation that is being cancelled, which would not do anything more itself."""
        await link.call(storage.delete_volume(base.pool, base.volume, DetachedContext(_DELETE_S)))

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
        under_way = await self._transfers("image = ?", path)
        for host, bases in {**_by_host(under_way), **(await self.of(path))}.items():
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

    async def sweep(self, links: Mapping[str, HostLink]) -> int:
        """Delete what nobody has used for long enough from the hosts that answer; how many."""
        rows = await self._database.read(
            lambda connection: connection.execute("SELECT host, pool, volume, path FROM image_bases").fetchall()
        )
        old = self._clock() - UNUSED_KEEP_S
        gone = 0
        for base in (*(Base(*row) for row in rows), *await self._transfers("time < ?", old)):
            link = links.get(base.host)
            try:
                if link is None or link.facets.storage is None:
                    continue
                gone += await self._sweep_one(link, link.facets.storage, base, old)
            except VirtdError:
                continue  # the host does not answer, or somebody has just begun to use it: the next time
        return gone

    async def _sweep_one(self, link: HostLink, storage: StorageFacet, base: Base, old: float) -> bool:
        async with self._locks.setdefault((base.host, base.pool, base.volume), asyncio.Lock()):
            volumes = await link.call(storage.list_volumes(base.pool))
            if base.path and any(volume.backing_path == base.path for volume in volumes):
                await self._database.write(_used(base))
                return False
            since = await self._unused_since(base)
            if since is None:
                now = self._clock()
                await self._database.write(lambda connection: connection.execute(_UNUSED, (now, *_key(base))))
                return False
            if since > old:
                return False
            await self._delete(link, storage, base)
            await self._database.write(_forget(base))
            return True

    async def _unused_since(self, base: Base) -> float | None:
        """Since when it is of no use to anybody: a whole one without disks, a cut one without a transfer."""
        table, column = ("image_bases", "unused_since") if base.path else ("image_transfers", "time")
        row = await self._database.read(
            lambda connection: connection.execute(
                f"SELECT {column} FROM {table} WHERE host = ? AND pool = ? AND volume = ?",  # noqa: S608 - our own names
                _key(base),
            ).fetchone()
        )
        return self._clock() if row is None else row[0]

    async def _transfers(self, where: str, value: str | float) -> Sequence[Base]:
        rows = await self._database.read(
            lambda connection: connection.execute(
                f"SELECT host, pool, volume FROM image_transfers WHERE {where}",  # noqa: S608 - the callers' constants
                (value,),
            ).fetchall()
        )
        return [Base(host, pool, volume, "") for host, pool, volume in rows]

    async def _sent(self, base: Base, path: str, size: int) -> int:
        """How many bytes of a cut transfer are on the host."""
        row = await self._database.read(
            lambda connection: connection.execute(
                "SELECT sent FROM image_transfers "
                "WHERE host = ? AND pool = ? AND volume = ? AND image = ? AND size = ?",
                (*_key(base), path, size),
            ).fetchone()
        )
        return int(row[0]) if row else 0

    async def _find(self, host: str, pool: str, volume: str) -> Base | None:
        row = await self._database.read(
            lambda connection: connection.execute(
                "SELECT host, pool, volume, path FROM image_bases WHERE host = ? AND pool = ? AND volume = ?",
                (host, pool, volume),
            ).fetchone()
        )
        return Base(*row) if row else None


_UNUSED: Final = "UPDATE image_bases SET unused_since = ? WHERE host = ? AND pool = ? AND volume = ?"


def _key(base: Base) -> tuple[str, str, str]:
    return base.host, base.pool, base.volume


def _by_host(bases: Sequence[Base]) -> Mapping[str, Sequence[Base]]:
    return {base.host: [other for other in bases if other.host == base.host] for base in bases}


def _used(base: Base) -> Any:
    return lambda connection: connection.execute(_UNUSED, (None, *_key(base)))


def _whole(base: Base, image: str) -> Any:
    def write(connection: sqlite3.Connection) -> None:
        _forget(base)(connection)
        connection.execute(
            "INSERT INTO image_bases (host, pool, volume, image, path) VALUES (?, ?, ?, ?, ?)",
            (*_key(base), image, base.path),
        )

    return write


def _sent_so_far(base: Base, image: str, size: int, sent: int, now: float) -> Any:
    row = (*_key(base), image, size, sent, now)
    return lambda connection: connection.execute(
        "INSERT OR REPLACE INTO image_transfers VALUES (?, ?, ?, ?, ?, ?, ?)", row
    )


def _forget(base: Base) -> Any:
    def delete(connection: sqlite3.Connection) -> None:
        for table in ("image_bases", "image_transfers"):
            connection.execute(
                f"DELETE FROM {table} WHERE host = ? AND pool = ? AND volume = ?",  # noqa: S608 - our own names
                _key(base),
            )

    return delete
