"""Copying disks of a guest into volumes: where they lie, whether there is room, progress over all of them."""

from __future__ import annotations

import asyncio
import re
import secrets
import time
from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Final
from uuid import UUID

from virtd.backend.api import (
    DEFAULT_POOL,
    CallContext,
    NativeGuest,
    StorageFacet,
    VolumeChangeFacet,
    VolumeRequest,
    VolumeTransferFacet,
)
from virtd.errors import (
    POOL_NOT_FOUND,
    SNAPSHOT_BLOCKED,
    SNAPSHOT_CHAIN_BROKEN,
    STORAGE_FULL,
    VOLUME_IN_USE,
    FailedPreconditionError,
    InternalError,
    NotFoundError,
    ResourceExhaustedError,
)
from virtd.model.guest import DiskDevice, DiskFormat, DiskStatus
from virtd.model.storage import PoolState, Volume

ENDS_S: Final = 4 * 3600.0
POLL_S: Final = 5.0
FAULT_S: Final = 60.0
"""How long a deletion is tried again that fails for no reason that is known to pass."""
_NAME_MAX: Final = 200

GetGuest = Callable[[UUID], Awaitable[NativeGuest]]


class Quiet:
    """A context of clean-up work: nobody sees its progress, and it cannot be called off."""

    operation_id: str = ""
    deadline_s: float | None = None

    def __init__(self, inner: CallContext) -> None:
        self._inner: Final = inner

    def progress(
        self, fraction: float | None = None, *, bytes_done: int | None = None, bytes_total: int | None = None
    ) -> None:
        """Not shown."""

    def note(self, message: str) -> None:
        """Shown."""
        self._inner.note(message)

    def warn(self, message: str) -> None:
        """Shown."""
        self._inner.warn(message)

    def checkpoint(self) -> None:
        """Never gives up."""

    async def wait_cancelled(self) -> None:
        """Never."""
        await asyncio.Event().wait()


class Part:
    """The context of one of several copies: its progress is that of all of them, in bytes.

    :param before: how many bytes the copies before it have.
    :param size: how many bytes this one has, as far as is known.
    :param total: of all.
    """

    def __init__(self, whole: CallContext, before: int, size: int, total: int) -> None:
        self._whole: Final = whole
        self._before: Final = before
        self._size: Final = size
        self._total: Final = total

    @property
    def operation_id(self) -> str:
        """See the SPI."""
        return self._whole.operation_id

    @property
    def deadline_s(self) -> float | None:
        """See the SPI."""
        return self._whole.deadline_s

    def progress(
        self, fraction: float | None = None, *, bytes_done: int | None = None, bytes_total: int | None = None
    ) -> None:
        """What is done of this one is done of all."""
        if bytes_done is not None and bytes_total:
            fraction = bytes_done / bytes_total
        if fraction is not None and self._total:
            done = self._before + int(min(1.0, fraction) * self._size)
            self._whole.progress(min(1.0, done / self._total), bytes_done=done, bytes_total=self._total)

    def note(self, message: str) -> None:
        """See the SPI."""
        self._whole.note(message)

    def warn(self, message: str) -> None:
        """See the SPI."""
        self._whole.warn(message)

    def checkpoint(self) -> None:
        """See the SPI."""
        self._whole.checkpoint()

    async def wait_cancelled(self) -> None:
        """See the SPI."""
        await self._whole.wait_cancelled()


@dataclass(frozen=True, slots=True)
class Source:
    """A file to copy; without a pool it is a file of the host that no active pool holds."""

    path: str
    format: DiskFormat
    pool: str = ""
    volume: str = ""
    size_bytes: int = 0


@dataclass(frozen=True, slots=True)
class Target:
    """The volume that the copy becomes."""

    pool: str
    volume: str

    @property
    def id(self) -> str:
        """``pool/volume``."""
        return f"{self.pool}/{self.volume}"


def writable(guest: NativeGuest) -> list[DiskStatus]:
    """The disks that a guest can write to."""
    return [d for d in guest.disks if d.device in (None, DiskDevice.DISK) and not d.read_only and d.path]


class Places:
    """All volumes of a host at one moment, by their paths."""

    def __init__(self, places: dict[str, tuple[str, Volume]], free: dict[str, int | None]) -> None:
        self._places: Final = places
        self._free: Final = free

    @classmethod
    async def look(cls, storage: StorageFacet) -> Places:
        """Ask for them."""
        places: dict[str, tuple[str, Volume]] = {}
        names = [pool.name for pool in await storage.list_pools() if pool.state is PoolState.ACTIVE]
        for name in names:
            try:
                for volume in await storage.list_volumes(name):
                    places[volume.path] = (name, volume)
            except NotFoundError as error:
                if error.reason is not POOL_NOT_FOUND:  # somebody has removed it meanwhile
                    raise
        # Afterwards: listing has made the pools look again at how much room there is.
        free = {pool.name: pool.available_bytes for pool in await storage.list_pools()}
        return cls(places, free)

    def source(self, disk: DiskStatus) -> Source:
        """A guest's disk.

        :raises FailedPreconditionError: SNAPSHOT_BLOCKED, it is of a format that virtd cannot copy, or looks like one
            that it is not.
        """
        if disk.format.upper() not in list(DiskFormat):
            raise FailedPreconditionError(
                SNAPSHOT_BLOCKED, f"disk {disk.name} is of format {disk.format or 'unknown'}, which virtd cannot copy"
            )
        format_ = DiskFormat(disk.format.upper())
        pool, volume = self._places.get(disk.path, ("", None))
        if volume is None:
            return Source(disk.path, format_, size_bytes=disk.allocation_bytes or disk.capacity_bytes or 0)
        _check_format(disk.name, volume, format_)
        return Source(disk.path, format_, pool, volume.name, _size(volume))

    def copy(self, disk: str, pool: str, name: str, format_: DiskFormat) -> Source:
        """A copy that a snapshot has.

        :raises FailedPreconditionError: SNAPSHOT_CHAIN_BROKEN, it is gone.
        """
        for path, (holder, volume) in self._places.items():
            if (holder, volume.name) == (pool, name):
                _check_format(disk, volume, format_)
                return Source(path, format_, pool, name, _size(volume))
        raise FailedPreconditionError(
            SNAPSHOT_CHAIN_BROKEN,
            f"the copy of disk {disk}, volume {name}, is not in pool {pool} any more, or the pool is not started",
            metadata={"disk": disk, "volume": f"{pool}/{name}"},
        )

    def volume_of(self, path: str) -> str:
        """``pool/volume``; empty where no active pool holds the file."""
        pool, volume = self._places.get(path, ("", None))
        return f"{pool}/{volume.name}" if volume is not None else ""

    def name_for(self, pool: str, guest: str, disk: str, what: str, format_: DiskFormat) -> Target:
        """A name that no volume of the pool has, or has had: it says what the volume is."""
        taken = {volume.name for holder, volume in self._places.values() if holder == pool}
        stem = re.sub(r"[^A-Za-z0-9._-]+", "-", "-".join(filter(None, (guest, disk, what)))).lstrip(".-")[:_NAME_MAX]
        while True:
            name = f"{stem}-{secrets.token_hex(4)}.{format_.value.lower()}"
            if name not in taken:
                return Target(pool, name)

    def check_free(self, copies: Iterable[tuple[Source, Target]]) -> None:
        """Refuse what there is no room for.

        :raises ResourceExhaustedError: STORAGE_FULL, with the figures.
        """
        needed: dict[str, int] = {}
        for source, target in copies:
            needed[target.pool] = needed.get(target.pool, 0) + source.size_bytes
        for pool, size in needed.items():
            free = self._free.get(pool)
            if free is not None and size > free:
                raise ResourceExhaustedError(
                    STORAGE_FULL,
                    f"copying takes {size} bytes in pool {pool}, which has {free} bytes left: make room there first",
                    metadata={"pool": pool, "needed_bytes": str(size), "available_bytes": str(free)},
                )

    def check_unused(self, disk: str, pool: str, name: str) -> None:
        """Refuse to delete a copy that something else needs.

        :raises FailedPreconditionError: VOLUME_IN_USE.
        """
        mine = next((v for holder, v in self._places.values() if (holder, v.name) == (pool, name)), None)
        if mine is None:
            return
        based = [v.name for _, v in self._places.values() if v.backing_path == mine.path]
        users = [*(f"volume {other}" for other in based), *(f"guest {guest}" for guest in mine.used_by)]
        if users:
            raise FailedPreconditionError(
                VOLUME_IN_USE,
                f"the copy of disk {disk}, volume {name} in pool {pool}, is used by {', '.join(sorted(users))}",
                metadata={"volume": f"{pool}/{name}"},
            )


def _check_format(disk: str, volume: Volume, format_: DiskFormat) -> None:
    """Refuse to copy what a host would take for something else.

    A guest can write whatever it likes on a raw disk, also the head of another format, which names files of the host:
    a copy made by one who believes it would hold these, and not what the guest's disk holds.
    """
    seen = volume.format.upper()
    alike = {"", "RAW", "ISO"} if format_ is DiskFormat.RAW else {format_.value}
    if seen not in alike:
        raise FailedPreconditionError(
            SNAPSHOT_BLOCKED,
            f"disk {disk} is {format_.value}, but what is on it looks like {seen} to the host, which would copy it as "
            "that",
            metadata={"disk": disk, "volume": volume.name},
        )


def _size(volume: Volume) -> int:
    return volume.allocation_bytes or (volume.capacity_bytes or 0 if volume.allocation_bytes is None else 0)


class Copier:
    """Makes copies.

    :param contents: tells whether volumes have changed; None where the host cannot.
    """

    def __init__(
        self, storage: StorageFacet, volumes: VolumeChangeFacet, contents: VolumeTransferFacet | None = None
    ) -> None:
        self._storage: Final = storage
        self._volumes: Final = volumes
        self._contents: Final = contents

    async def stamps(self, sources: Iterable[Source]) -> dict[str, str]:
        """Texts that change whenever the files are written to, by their paths; only of those that the host can tell."""
        found: dict[str, str] = {}
        for source in sources:
            if self._contents is not None and source.pool:
                found[source.path] = (await self._contents.volume_content(source.pool, source.volume)).etag
        return found

    async def copy(self, copies: Sequence[tuple[Source, Target]], context: CallContext) -> None:
        """Copy.  What the targets' names hold from an attempt before is of it, and goes first.

        When it fails, what it has made may be left: that is the caller's to remove.
        """
        total = sum(source.size_bytes for source, _ in copies)
        before = 0
        for source, target in copies:
            context.checkpoint()
            if target.pool == DEFAULT_POOL:
                await self._storage.ensure_default_pool(context)
            await self.delete(target.pool, target.volume, context)
            part = Part(context, before, source.size_bytes, total)
            if source.pool:
                await self._volumes.clone_volume(
                    source.pool,
                    source.volume,
                    target.pool,
                    target.volume,
                    source.format,
                    part,
                    source_format=source.format,
                )
            else:
                request = VolumeRequest(
                    target.pool,
                    target.volume,
                    source.format,
                    source_path=source.path,
                    source_format=source.format,
                )
                await self._storage.create_volume(request, part)
            before += source.size_bytes
            part.progress(1.0)

    async def delete(self, pool: str, volume: str, context: CallContext) -> None:
        """Delete a volume that may still be in the making: copies that a host makes go on when virtd has died."""
        begin, noted = time.monotonic(), ""
        while True:
            context.checkpoint()
            try:
                await self._storage.delete_volume(pool, volume, context)
            except (InternalError, FailedPreconditionError) as error:
                if time.monotonic() - begin > (FAULT_S if isinstance(error, InternalError) else ENDS_S):
                    raise
                if error.message != noted:
                    context.note(f"{volume} cannot be deleted yet: {error.message}")
                    noted = error.message
                await asyncio.sleep(POLL_S)
            else:
                return
