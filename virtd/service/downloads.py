"""Content of volumes, to clients."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncGenerator, Callable, Coroutine, Iterator, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any, Final

from virtd.backend import capabilities as cap
from virtd.backend.api import Extent, Hole, VolumeTransferFacet
from virtd.errors import (
    ETAG_MISMATCH,
    LIMIT_EXCEEDED,
    ConflictError,
    ResourceExhaustedError,
    invalid_field,
    unsupported,
)
from virtd.service.core import Core
from virtd.service.storage import Storage

WINDOW_BYTES: Final = 8 * 2**20
WINDOW_MAX_BYTES: Final = 64 * 2**20
"""Where there are holes only, more is asked for at a time."""
PIECE_BYTES: Final = 2**20
DOWNLOADS_MAX: Final = 32
"""At once; each may hold two windows in memory."""
WINDOW_S: Final = 120.0
"""The host has so long to give a window."""
_ZEROS: Final = bytes(2**20)


@dataclass(frozen=True, slots=True)
class DownloadStart:
    """Size of the whole file, its format, and the state that it is in."""

    size_bytes: int
    format: str
    etag: str


@dataclass(frozen=True, slots=True)
class DownloadEnd:
    """The digest of what was sent."""

    digest: str


DownloadItem = DownloadStart | Extent | DownloadEnd


class Downloads:
    """Reading volumes."""

    def __init__(self, core: Core, storage: Storage) -> None:
        self._core = core
        self._storage = storage
        self._open = 0

    async def download(
        self, host: str, pool: str, volume: str, offset: int, etag: str
    ) -> AsyncGenerator[DownloadItem, None]:
        """A volume's bytes from ``offset`` on: the start, extents, the end.

        :param etag: of the download that goes on; needed where ``offset`` is not 0.
        :raises NotFoundError: POOL_NOT_FOUND or VOLUME_NOT_FOUND.
        :raises FailedPreconditionError: VOLUME_IN_USE.
        :raises InvalidArgumentError: FIELD_INVALID.
        :raises ConflictError: ETAG_MISMATCH, before the first byte or after the last.
        """
        if offset and not etag:
            raise invalid_field("etag", "is required with an offset: the volume may have changed since")
        await self._core.settled(host)
        name = f"hosts/{host}/pools/{pool}/volumes/{volume}"
        facet, link = self._facet(host), self._core.link(host)
        await self._storage.quiet(host, pool, volume, "be downloaded")
        content = await link.call(facet.volume_content(pool, volume))
        if etag and etag != content.etag:
            raise _changed(name, "has changed since that download began")
        if offset > content.size_bytes:
            raise invalid_field("offset", f"{offset} lies behind the end, which is at {content.size_bytes}")
        if self._open >= DOWNLOADS_MAX:
            raise ResourceExhaustedError(
                LIMIT_EXCEEDED, f"{self._open} downloads are under way, which is the limit", retry_after_s=5.0
            )
        hasher = hashlib.sha256()

        def read(position: int, length: int) -> Coroutine[Any, Any, Sequence[Extent]]:
            return link.call(facet.read_volume(pool, volume, position, length), timeout_s=WINDOW_S)

        self._open += 1
        try:
            yield DownloadStart(content.size_bytes, content.format, content.etag)
            async with aclosing(_windows(read, offset, content.size_bytes)) as windows:
                async for window in windows:
                    await asyncio.to_thread(_hash, hasher, window)
                    for piece in _pieces(window):
                        yield piece
            if (await link.call(facet.volume_content(pool, volume))).etag != content.etag:
                raise _changed(name, "was changed while it was read")
            yield DownloadEnd(f"sha256:{hasher.hexdigest()}")
        finally:
            self._open -= 1

    def _facet(self, host: str) -> VolumeTransferFacet:
        link = self._core.link(host)
        cap.require(link.capabilities, cap.VOLUME_TRANSFER, resource=f"hosts/{host}")
        facet = link.facets.volume_transfer
        if facet is None:
            raise unsupported(cap.VOLUME_TRANSFER, "the host does not offer it", resource=f"hosts/{host}")
        return facet


async def _windows(
    read: Callable[[int, int], Coroutine[Any, Any, Sequence[Extent]]], offset: int, size: int
) -> AsyncGenerator[Sequence[Extent], None]:
    """The content from ``offset``, window by window; the next one is read while one is being sent.

    Ends early where the volume has become shorter.
    """
    length = WINDOW_BYTES
    coming: asyncio.Task[Sequence[Extent]] | None = None
    try:
        while offset < size:
            coming = coming or asyncio.create_task(read(offset, min(length, size - offset)))
            window = await coming
            coming = None
            got = sum(_length(extent) for extent in window)
            if not got:
                return
            offset += got
            length = _next_length(length, window)
            if offset < size:
                coming = asyncio.create_task(read(offset, min(length, size - offset)))
            yield window
    finally:
        if coming is not None:
            coming.cancel()
            await asyncio.wait({coming})
            if not coming.cancelled():
                coming.exception()  # seen: nobody wants it any more


def _changed(name: str, how: str) -> ConflictError:
    return ConflictError(ETAG_MISMATCH, f"{name} {how}: download it from the beginning", resource=name)


def _length(extent: Extent) -> int:
    return extent.length if isinstance(extent, Hole) else len(extent)


def _next_length(length: int, window: Sequence[Extent]) -> int:
    if all(isinstance(extent, Hole) for extent in window):
        return min(length * 2, WINDOW_MAX_BYTES)
    return WINDOW_BYTES


def _hash(hasher: hashlib._Hash, window: Sequence[Extent]) -> None:
    for extent in window:
        if isinstance(extent, Hole):
            for start in range(0, extent.length, len(_ZEROS)):
                hasher.update(_ZEROS[: extent.length - start])
        else:
            hasher.update(extent)


def _pieces(window: Sequence[Extent]) -> Iterator[Extent]:
    """The same bytes in messages of a good size."""
    data: list[bytes] = []
    size = 0
    for extent in window:
        if isinstance(extent, Hole):
            if data:
                yield b"".join(data)
                data, size = [], 0
            yield extent
            continue
        for start in range(0, len(extent), PIECE_BYTES):
            data.append(extent[start : start + PIECE_BYTES])
            size += len(data[-1])
            if size >= PIECE_BYTES:
                yield b"".join(data)
                data, size = [], 0
    if data:
        yield b"".join(data)
