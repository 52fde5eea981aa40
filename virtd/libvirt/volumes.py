"""Volumes of guests that do not run: resize, clone, and their content to and from virtd's machine.

Content travels by libvirt's streams, so that the host may be another machine.  Reads are cut into
windows of some MiB, each a stream of its own, for two reasons.  libvirt's client takes what the daemon
sends from the socket whether anybody wants it or not: behind a slow reader, a whole disk would pile up in
memory.  And nothing is held between two windows, so that a client that stops reading holds no thread
and no connection of the host.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import stat
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import libvirt

from virtd.backend.api import CallContext, Extent, Hole, VolumeContent, VolumeRequest
from virtd.errors import (
    SHRINK_REFUSED,
    FailedPreconditionError,
)
from virtd.libvirt.connections import HostConnections, LaneName
from virtd.libvirt.storage import Storage
from virtd.libvirt.storage_objects import active_pool, read_volume, volume_or_none
from virtd.libvirt.xml.storage import VolumeXml
from virtd.model.guest import DiskFormat
from virtd.model.storage import Volume

_PIECE: Final = 256 * 1024
_AT_HOLE: Final = -3
_QCOW2_MAGIC: Final = b"QFI\xfb"
_QCOW2_HEAD: Final = 96


class Volumes:
    """See :class:`virtd.backend.api.VolumeChangeFacet` and :class:`virtd.backend.api.VolumeTransferFacet`.

    :param storage: makes volumes.
    """

    def __init__(self, connections: HostConnections, storage: Storage) -> None:
        self._connections: Final = connections
        self._storage: Final = storage

    # ---------------------------------------------------------------------------- changes

    async def resize_volume(
        self, pool: str, name: str, capacity_bytes: int, context: CallContext, *, allow_shrink: bool = False
    ) -> Volume:
        """Grow or, if allowed, shrink it."""
        context.checkpoint()

        def run(connection: Any) -> Volume:
            volume = _find(connection, pool, name)
            before = volume.info()[1]
            if capacity_bytes < before and not allow_shrink:
                raise FailedPreconditionError(
                    SHRINK_REFUSED,
                    f"{name} has {before} bytes, more than {capacity_bytes}",
                    metadata={"capacity_bytes": str(before)},
                )
            if capacity_bytes != before:
                flags = libvirt.VIR_STORAGE_VOL_RESIZE_SHRINK if capacity_bytes < before else 0
                volume.resize(capacity_bytes, flags)
            return read_volume(volume)

        return await self._connections.call("virStorageVolResize", run, lane=LaneName.BULK, unlimited=True)

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
        """Copy it, converting where the formats differ; overlays are made one piece."""

        def look(connection: Any) -> VolumeXml:
            return VolumeXml.parse(_find(connection, source_pool, source).XMLDesc(0))

        seen = await self._connections.call("virStorageVolGetXMLDesc", look)
        taken_for = source_format or (DiskFormat.QCOW2 if seen.format == "qcow2" else DiskFormat.RAW)
        request = VolumeRequest(pool, name, format, None, seen.path, taken_for)
        if format is taken_for and not seen.backing_path and self._readable(seen.path) and _is_plain(seen.path):
            return await self._storage.upload(request, context)
        return await self._storage.convert(request, context, exact=source_format is not None)

    def _readable(self, path: str) -> bool:
        """Whether the file itself can be read here: the copy then shows progress and can be aborted."""
        with contextlib.suppress(OSError):
            return self._connections.local and os.access(path, os.R_OK) and stat.S_ISREG(Path(path).stat().st_mode)
        return False

    # --------------------------------------------------------------------------- content

    async def upload_volume(
        self,
        pool: str,
        name: str,
        path: str,
        format: DiskFormat,  # noqa: A002 - the API's name
        context: CallContext,
    ) -> Volume:
        """Send a file of this machine to the host."""
        context.checkpoint()
        return await self._storage.upload(VolumeRequest(pool, name, format, None, path, format), context)

    async def volume_content(self, pool: str, name: str) -> VolumeContent:
        """How much there is to read."""

        def run(connection: Any) -> VolumeContent:
            volume = _find(connection, pool, name)
            # The length of the file; the capacity of a qcow2 file is another matter.
            size = volume.infoFlags(libvirt.VIR_STORAGE_VOL_GET_PHYSICAL)[2]
            seen = VolumeXml.parse(volume.XMLDesc(0))
            etag = hashlib.sha256(f"{volume.key()} {size} {seen.stamp}".encode()).hexdigest()[:32]
            return VolumeContent(size, seen.format, etag)

        return await self._connections.call("virStorageVolGetInfoFlags", run)

    async def read_volume(self, pool: str, name: str, offset: int, length: int) -> Sequence[Extent]:
        """One window of its content."""

        def run(connection: Any) -> list[Extent]:
            volume = _find(connection, pool, name)
            # Beyond the end, a sparse stream has a hole of the length that was asked for.
            size = volume.infoFlags(libvirt.VIR_STORAGE_VOL_GET_PHYSICAL)[2]
            wanted = min(length, size - offset)
            return _download(connection, volume, offset, wanted) if wanted > 0 else []

        return await self._connections.call("virStorageVolDownload", run, lane=LaneName.BULK)


def _download(connection: Any, volume: Any, offset: int, length: int) -> list[Extent]:
    stream = connection.newStream(0)
    volume.download(stream, offset, length, libvirt.VIR_STORAGE_VOL_DOWNLOAD_SPARSE_STREAM)
    extents: list[Extent] = []
    try:
        while True:
            piece = stream.recvFlags(_PIECE, libvirt.VIR_STREAM_RECV_STOP_AT_HOLE)
            if piece == _AT_HOLE:
                extents.append(Hole(stream.recvHole()))
            elif not piece:
                break
            else:
                extents.append(piece)
        stream.finish()
    except BaseException:
        with contextlib.suppress(libvirt.libvirtError):
            stream.abort()
        raise
    return extents


def _find(connection: Any, pool: str, name: str) -> Any:
    found = active_pool(connection, pool)
    volume = volume_or_none(found, name)
    if volume is None:
        # It may have been made behind the pool's back: look again.
        with contextlib.suppress(libvirt.libvirtError):
            found.refresh(0)
        volume = found.storageVolLookupByName(name)
    return volume


def _is_plain(path: str) -> bool:
    """Whether an image holds nothing but what its guest sees: no internal snapshots, no dirty bitmaps.

    What a copy of the bytes would bring along, the guest of the copy has no records of.
    """
    with Path(path).open("rb") as file:
        head = file.read(_QCOW2_HEAD)
    if not head.startswith(_QCOW2_MAGIC) or len(head) < _QCOW2_HEAD:
        return True
    version, snapshots = int.from_bytes(head[4:8]), int.from_bytes(head[60:64])
    bitmaps = version > 2 and bool(int.from_bytes(head[88:96]) & 1)  # noqa: PLR2004 - qcow2's own numbers
    return not snapshots and not bitmaps
