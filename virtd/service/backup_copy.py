"""From a backend's reader to the files of a backup."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from virtd.backend.api import BackupReader, DiskRange, SourceDisk
from virtd.errors import STORAGE_FULL, ResourceExhaustedError
from virtd.inventory import HostLink
from virtd.model.backup import BackupKind
from virtd.operations import Run
from virtd.store.backup_files import BLOCK, DiskWriter, storage_full
from virtd.store.repository import BackupRepository, Entry, StoredDisk, load_digests

REGION_BLOCKS: Final = 16
READ_S: Final = 120.0
"""So long one read may take: a disk on a network may be slow."""


@dataclass(frozen=True, slots=True)
class Region:
    """Neighbouring blocks, and what of them is stored: (offset, length).  Without any they are known to be zero."""

    offset: int
    length: int
    ranges: tuple[tuple[int, int], ...] = ()


def regions(extents: Sequence[DiskRange], capacity_bytes: int) -> Iterator[Region]:
    """Cut what is to be read into whole blocks, up to 16 together.

    Whole blocks, because digests are of whole blocks: what was not changed is read as well, and compared
    when the backup is restored.
    """
    open_: list[tuple[int, list[tuple[int, int]], bool]] = []
    for block, ranges, zero in _blocks(extents, capacity_bytes):
        last = open_[-1] if open_ else None
        joins = last is not None and last[0] + 1 == block and last[2] is zero and (zero or len(open_) < REGION_BLOCKS)
        if open_ and not joins:
            yield _region(open_, capacity_bytes)
            open_ = []
        open_.append((block, ranges, zero))
    if open_:
        yield _region(open_, capacity_bytes)


def _region(blocks: list[tuple[int, list[tuple[int, int]], bool]], capacity_bytes: int) -> Region:
    offset = blocks[0][0] * BLOCK
    end = min((blocks[-1][0] + 1) * BLOCK, capacity_bytes)
    if blocks[0][2]:
        return Region(offset, end - offset)
    joined: list[tuple[int, int]] = []
    for _, ranges, _ in blocks:
        for begin, length in ranges:
            if joined and sum(joined[-1]) == begin:
                joined[-1] = (joined[-1][0], joined[-1][1] + length)
            else:
                joined.append((begin, length))
    return Region(offset, end - offset, tuple(joined))


def _blocks(extents: Sequence[DiskRange], capacity_bytes: int) -> Iterator[tuple[int, list[tuple[int, int]], bool]]:
    """Every block that is touched: its number, the ranges in it, and whether all of it is known to be zero."""
    number, ranges, zeros = -1, list[tuple[int, int]](), 0
    for extent in extents:
        offset, end = extent.offset, min(extent.offset + extent.length, capacity_bytes)
        while offset < end:
            block = offset // BLOCK
            if block != number and ranges:
                yield number, ranges, zeros == _size(number, capacity_bytes)
                ranges, zeros = [], 0
            number = block
            length = min(end, (block + 1) * BLOCK) - offset
            ranges.append((offset, length))
            zeros += length if extent.zero else 0
            offset += length
    if ranges:
        yield number, ranges, zeros == _size(number, capacity_bytes)


def _size(block: int, capacity_bytes: int) -> int:
    return min(BLOCK, capacity_bytes - block * BLOCK)


@dataclass(slots=True)
class Copy:
    """All disks of one backup, on their way into a repository."""

    run: Run[Any]
    link: HostLink
    reader: BackupReader
    repository: BackupRepository
    directory: Path
    chain: Sequence[Entry]
    done: int = 0
    total: int = 0

    async def all_disks(self) -> tuple[StoredDisk, ...]:
        """Copy them.

        :raises ResourceExhaustedError: STORAGE_FULL.
        """
        plans: list[tuple[SourceDisk, list[Region]]] = []
        for disk in self.reader.disks:
            extents = await self.link.call(self.reader.extents(disk.name), timeout_s=READ_S)
            plans.append((disk, list(regions(extents, disk.capacity_bytes))))
        self.total = sum(region.length for _, plan in plans for region in plan if region.ranges)
        free = self.repository.available_bytes
        if free is not None and free < self.total:
            raise ResourceExhaustedError(
                STORAGE_FULL,
                f"the backup needs up to {self.total} bytes, and the repository {self.repository.name} has {free}",
            )
        try:
            return tuple([await self._disk(index, disk, plan) for index, (disk, plan) in enumerate(plans)])
        except OSError as error:
            full = storage_full(error, self.repository.path)
            if full is None:
                raise
            raise full from error

    async def _disk(self, index: int, disk: SourceDisk, plan: Sequence[Region]) -> StoredDisk:
        base = await asyncio.to_thread(load_digests, self.chain, disk.name) if disk.incremental else None
        writer = await asyncio.to_thread(DiskWriter, self.directory, f"disk{index}", disk.capacity_bytes, base)
        try:
            await self._regions(disk, plan, writer)
            files = await asyncio.to_thread(writer.finish)
        finally:
            writer.close()
        return StoredDisk(
            name=disk.name,
            kind=BackupKind.INCREMENTAL if disk.incremental else BackupKind.FULL,
            format=disk.format,
            capacity_bytes=disk.capacity_bytes,
            identity=disk.identity,
            files=files,
            tracked=disk.tracked,
            reason=disk.reason,
        )

    async def _regions(self, disk: SourceDisk, plan: Sequence[Region], writer: DiskWriter) -> None:
        """One region is written while the next is read."""
        ahead: asyncio.Task[bytes] | None = None
        try:
            for index, region in enumerate(plan):
                self.run.checkpoint()
                data = b""
                if region.ranges:
                    data = await (ahead or self._read(disk, region))
                following = plan[index + 1] if index + 1 < len(plan) else None
                ahead = self._read(disk, following) if following is not None and following.ranges else None
                if region.ranges:
                    await asyncio.to_thread(writer.put, region.offset, data, region.ranges)
                    self.done += region.length
                    self.run.progress(bytes_done=self.done, bytes_total=self.total)
                else:
                    await asyncio.to_thread(writer.put_zeros, region.offset, region.length)
        finally:
            if ahead is not None and not ahead.done():
                ahead.cancel()
            if ahead is not None:
                await asyncio.gather(ahead, return_exceptions=True)

    def _read(self, disk: SourceDisk, region: Region) -> asyncio.Task[bytes]:
        call = self.link.call(self.reader.read(disk.name, region.offset, region.length), timeout_s=READ_S)
        return asyncio.ensure_future(call)
