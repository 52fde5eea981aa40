"""Directory pools and their volumes.

Paths are the host's, which may be another machine.  A volume is filled from a file in one of two
ways: where virtd can read the file itself and no conversion is needed, it is uploaded (with progress
and cancel, holes stay holes); else the host converts it (``virStorageVolCreateXMLFrom``).
"""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path, PurePosixPath
from typing import Any, Final

import libvirt

from virtd.backend.api import CallContext, VolumeRequest
from virtd.backend.capabilities import VOLUMES
from virtd.errors import (
    CONFIG_INVALID,
    IMAGE_INVALID,
    InvalidArgumentError,
    VirtdError,
    invalid_field,
    unsupported,
)
from virtd.libvirt.connections import HostConnections, LaneName
from virtd.libvirt.scratch import SCRATCH_PREFIX
from virtd.libvirt.storage_objects import (
    DEFAULT_POOL,
    active_pool,
    delete_native,
    discard_failed,
    full_error,
    is_full,
    look_again,
    pool_or_none,
    read_made,
    read_pool,
    read_volume,
    refuse_existing,
    source_volume,
    volume_or_none,
)
from virtd.libvirt.transfer import Transfer
from virtd.libvirt.xml.storage import PoolXml, VolumeXml
from virtd.model.guest import DiskFormat
from virtd.model.storage import Pool, Preallocation, Volume

_FORMATS: Final = {DiskFormat.QCOW2: "qcow2", DiskFormat.RAW: "raw"}
_POLL_S: Final = 0.25
_BUSY_S: Final = 3600.0
"""How long an upload waits at its end for the others in its pool: a copy takes what it takes."""
_QCOW2_MAGIC: Final = b"QFI\xfb"
_AS_RAW: Final = frozenset({"", "none", "raw", "iso"})
"""What libvirt may call a file that is copied byte by byte."""


class Storage:
    """Pools and volumes of one host.

    :param default_path: where the pool for disks that name none is made, on the host; None if that
        cannot be known (then an existing pool named ``virtd`` is used, or the configuration has to say).
    :param no_volumes: why this host makes no volumes, where it does not.
    """

    def __init__(self, connections: HostConnections, default_path: str | None, *, no_volumes: str = "") -> None:
        self._connections: Final = connections
        self._default_path: Final = default_path
        self._no_volumes: Final = no_volumes

    # ----------------------------------------------------------------------------- pools

    async def list_pools(self) -> Sequence[Pool]:
        """All pools, active or not, but for those that virtd itself makes for a moment."""

        def run(connection: Any) -> list[Pool]:
            found = []
            for pool in connection.listAllStoragePools(0):
                if pool.name().startswith(SCRATCH_PREFIX):
                    continue
                try:
                    found.append(read_pool(pool))
                except libvirt.libvirtError as error:
                    if error.get_error_code() != libvirt.VIR_ERR_NO_STORAGE_POOL:
                        raise
            return found

        return await self._connections.call("virConnectListAllStoragePools", run)

    async def ensure_default_pool(self, context: CallContext) -> Pool:
        """The pool ``virtd``: used as it is, else made.  Idempotent.

        :raises InvalidArgumentError: CONFIG_INVALID, there is none and no place for it is known.
        """
        context.checkpoint()
        path = self._default_path

        def run(connection: Any) -> Pool:
            pool = pool_or_none(connection, DEFAULT_POOL)
            if pool is None:
                if path is None:
                    raise InvalidArgumentError(
                        CONFIG_INVALID,
                        f"the host has no pool named {DEFAULT_POOL}, and where to make one is not configured: set "
                        "the host's option pool_directory to a directory of the host",
                    )
                pool = connection.storagePoolDefineXML(PoolXml(DEFAULT_POOL, path).to_xml(), 0)
            if self._connections.local and pool.isActive() and not Path(read_pool(pool).path).is_dir():
                # Somebody has removed it; libvirt notices at the next refresh only, in the middle of something.
                with contextlib.suppress(libvirt.libvirtError):
                    pool.destroy()
            if not pool.isActive():
                # A directory that exists already is no error: somebody was quicker.
                with contextlib.suppress(libvirt.libvirtError):
                    pool.build(0)
                try:
                    pool.create(0)
                except libvirt.libvirtError:
                    if not pool.isActive():
                        raise
            with contextlib.suppress(libvirt.libvirtError):
                pool.setAutostart(1)
            return read_pool(pool)

        return await self._connections.call("virStoragePoolDefineXML", run, lane=LaneName.CHANGE)

    # --------------------------------------------------------------------------- volumes

    async def list_volumes(self, pool: str) -> Sequence[Volume]:
        """The volumes of a pool, after a refresh.

        :raises NotFoundError: POOL_NOT_FOUND.
        """

        def run(connection: Any) -> list[Volume]:
            found = active_pool(connection, pool)
            # A refresh fails while a volume is being made; what is known then is fresh enough.
            with contextlib.suppress(libvirt.libvirtError):
                found.refresh(0)
            volumes = []
            for volume in found.listAllVolumes(0):
                try:
                    volumes.append(read_volume(volume))
                except libvirt.libvirtError as error:
                    if error.get_error_code() != libvirt.VIR_ERR_NO_STORAGE_VOL:
                        raise
            return sorted(volumes, key=lambda volume: volume.name)

        return await self._connections.call("virStoragePoolListAllVolumes", run)

    async def volume_path(self, pool: str, name: str) -> str:
        """Where a volume of this name lies, or would lie.

        :raises NotFoundError: POOL_NOT_FOUND.
        """
        _check_name(name)

        def run(connection: Any) -> str:
            found = connection.storagePoolLookupByName(pool)
            return str(PurePosixPath(PoolXml.parse(found.XMLDesc(0)).path) / name)

        return await self._connections.call("virStoragePoolGetXMLDesc", run)

    async def create_volume(self, request: VolumeRequest, context: CallContext) -> Volume:
        """Create a volume: blank, as an overlay, or as a copy.

        :raises AlreadyExistsError: VOLUME_EXISTS; what exists is not touched.
        :raises ResourceExhaustedError: STORAGE_FULL; nothing is left behind.
        """
        if self._no_volumes:
            raise unsupported(VOLUMES, self._no_volumes)
        _check_name(request.name)
        _check_request(request)
        context.checkpoint()
        if request.source_path and not request.overlay:
            return await self._copy(request, context)
        wanted = VolumeXml(
            name=request.name,
            format=_FORMATS[request.format],
            capacity_bytes=request.capacity_bytes,
            backing_path=request.source_path,
            backing_format=_FORMATS[request.source_format or request.format] if request.source_path else "",
            allocation_bytes=request.capacity_bytes if request.preallocation is Preallocation.FULL else None,
        )
        # For qcow2 the flag makes libvirt look at the allocation at all.
        tables = request.format is DiskFormat.QCOW2 and request.preallocation is not Preallocation.NONE
        flags = libvirt.VIR_STORAGE_VOL_CREATE_PREALLOC_METADATA if tables else 0

        def run(connection: Any) -> Volume:
            pool = active_pool(connection, request.pool)
            refuse_existing(pool, request.name)
            if request.overlay:
                _check_backing(connection, request)
            try:
                volume = pool.createXML(wanted.to_xml(), flags)
            except libvirt.libvirtError as error:
                discard_failed(pool, request.name)
                if request.preallocation is Preallocation.FULL and is_full(pool, request.capacity_bytes):
                    raise full_error(error, "virStorageVolCreateXML") from error
                raise
            return read_made(volume)

        return await self._connections.call("virStorageVolCreateXML", run, lane=LaneName.BULK, unlimited=True)

    async def delete_volume(self, pool: str, name: str, context: CallContext) -> None:
        """Delete it.  Idempotent, also when the whole pool is gone."""
        context.checkpoint()
        await self._remove(pool, name)

    async def _remove(self, pool: str, name: str) -> None:
        def run(connection: Any) -> None:
            found = pool_or_none(connection, pool)
            if found is None:
                return
            if not found.isActive():
                found.create(0)
            volume = volume_or_none(found, name)
            if volume is None:
                # It may have been made behind the pool's back (by a crash in the middle): look again.
                look_again(found)
                volume = volume_or_none(found, name)
            if volume is not None:
                delete_native(volume)

        await self._connections.call("virStorageVolDelete", run, lane=LaneName.CHANGE)

    # ---------------------------------------------------------------------------- copies

    async def _copy(self, request: VolumeRequest, context: CallContext) -> Volume:
        source_format = request.source_format or request.format
        readable = self._connections.local and os.access(request.source_path, os.R_OK)
        # The bytes of an overlay are half of what its guest sees, and may name what lies below by a relative path.
        if readable and source_format is request.format and not _has_backing(request.source_path):
            return await self.upload(request, context)
        return await self.convert(request, context, exact=True)

    async def upload(self, request: VolumeRequest, context: CallContext) -> Volume:
        """Send the bytes of a file of *this* machine, wherever the host is; the format stays.

        :raises AlreadyExistsError: VOLUME_EXISTS; what exists is not touched.
        :raises ResourceExhaustedError: STORAGE_FULL; nothing is left behind.
        """
        _check_name(request.name)
        transfer = Transfer(request.source_path)
        if (transfer.head == _QCOW2_MAGIC) != (request.format is DiskFormat.QCOW2):
            raise InvalidArgumentError(
                IMAGE_INVALID, f"{request.source_path} is not an image of format {request.format.value}"
            )

        def run(connection: Any) -> Volume:
            pool = active_pool(connection, request.pool)
            refuse_existing(pool, request.name)
            # Made as raw and empty: the upload brings the format with it.
            volume = pool.createXML(VolumeXml(request.name, "raw", transfer.size).to_xml(), 0)
            try:
                transfer.run(connection, volume)
                look_again(pool, _BUSY_S)
                volume = pool.storageVolLookupByName(request.name)
                _grow(volume, request)
            except BaseException:
                with contextlib.suppress(libvirt.libvirtError):
                    delete_native(volume)
                raise
            return read_made(volume)

        async def report() -> None:
            _report(context, transfer.done_bytes, transfer.size)

        work = asyncio.ensure_future(
            self._connections.call("virStorageVolUpload", run, lane=LaneName.BULK, unlimited=True)
        )
        return await _watch(
            work,
            context,
            report=report,
            stop=transfer.cancel,
            undo=lambda: self._remove(request.pool, request.name),
        )

    async def convert(self, request: VolumeRequest, context: CallContext, *, exact: bool = False) -> Volume:
        """Let the host copy or convert a file of its own; an overlay becomes one piece.

        The native call cannot be aborted: a cancel waits for it.

        :param exact: refuse a file that is said to be raw and looks like something else to libvirt, which would
            convert it as that.  What looks so may have been written there by a guest, to read files of the host.

        :raises AlreadyExistsError: VOLUME_EXISTS; what exists is not touched.
        :raises ResourceExhaustedError: STORAGE_FULL; nothing is left behind.
        """
        _check_name(request.name)
        source_format = _FORMATS[request.source_format or request.format]
        total = 0

        def run(connection: Any) -> Volume:
            nonlocal total
            pool = active_pool(connection, request.pool)
            refuse_existing(pool, request.name)
            with source_volume(connection, request.source_path) as source:
                seen = VolumeXml.parse(source.XMLDesc(0))
                if source_format == "qcow2" and seen.format != "qcow2":
                    raise InvalidArgumentError(IMAGE_INVALID, f"{request.source_path} is {seen.format}, not qcow2")
                if exact and source_format == "raw" and seen.format not in _AS_RAW:
                    raise InvalidArgumentError(
                        IMAGE_INVALID,
                        f"{request.source_path} is said to be raw, but looks like {seen.format}, as which it would be "
                        "converted",
                    )
                total = seen.allocation_bytes or 0
                capacity = max(request.capacity_bytes or 0, seen.capacity_bytes or 0)
                wanted = VolumeXml(request.name, _FORMATS[request.format], capacity)
                try:
                    volume = pool.createXMLFrom(wanted.to_xml(), source, 0)
                    if capacity > (seen.capacity_bytes or 0):
                        # libvirt believes the capacity that it was told, but the file has its source's.
                        volume.resize(capacity, 0)
                except libvirt.libvirtError as error:
                    discard_failed(pool, request.name)
                    if is_full(pool, seen.allocation_bytes):
                        raise full_error(error, "virStorageVolCreateXMLFrom") from error
                    raise
            return read_made(volume)

        def written(connection: Any) -> int:
            return int(connection.storagePoolLookupByName(request.pool).storageVolLookupByName(request.name).info()[2])

        async def report() -> None:
            with contextlib.suppress(VirtdError):  # it has not begun
                done = await self._connections.call("virStorageVolGetInfo", written)
                if total:
                    _report(context, min(done, total), total)

        work = asyncio.ensure_future(
            self._connections.call("virStorageVolCreateXMLFrom", run, lane=LaneName.BULK, unlimited=True)
        )
        return await _watch(
            work,
            context,
            report=report,
            stop=lambda: None,
            undo=lambda: self._remove(request.pool, request.name),
        )


async def _watch(
    work: asyncio.Future[Volume],
    context: CallContext,
    *,
    report: Callable[[], Awaitable[None]],
    stop: Callable[[], None],
    undo: Callable[[], Awaitable[None]],
) -> Volume:
    """Wait for ``work`` while reporting; when asked to give up, stop it, wait for it, then say so.

    :param undo: takes back what ``work`` has made, where it came to its end before it was stopped.
    """
    try:
        while not work.done():
            await asyncio.wait({work}, timeout=_POLL_S)
            await report()
            if not work.done():
                context.checkpoint()
    except (VirtdError, asyncio.CancelledError):
        stop()
        # What the call did has to be undone before the caller hears of the end.
        with contextlib.suppress(VirtdError):
            await asyncio.shield(work)
            await undo()
        raise
    return work.result()


def _report(context: CallContext, done: int, total: int) -> None:
    context.progress(done / total if total else 1.0, bytes_done=done, bytes_total=total)


def _check_name(name: str) -> None:
    if not name or "/" in name or name in (".", "..") or "\0" in name:
        raise invalid_field("volume", f"{name!r} cannot name a file in a pool")


def _has_backing(path: str) -> bool:
    with Path(path).open("rb") as file:
        head = file.read(16)
    return head.startswith(_QCOW2_MAGIC) and any(head[8:])


def _check_request(request: VolumeRequest) -> None:
    if request.overlay and request.format is not DiskFormat.QCOW2:
        raise invalid_field("format", "an overlay is always QCOW2", DiskFormat.QCOW2.value)
    if request.overlay and not request.source_path:
        raise invalid_field("source_path", "an overlay needs a file below it")
    if not request.source_path and not request.capacity_bytes:
        raise invalid_field("capacity_bytes", "is required for a blank volume and must be more than zero")


def _check_backing(connection: Any, request: VolumeRequest) -> None:
    """A file that does not exist would only be noticed when the guest starts."""
    with source_volume(connection, request.source_path) as source:
        seen = VolumeXml.parse(source.XMLDesc(0)).format
    stated = _FORMATS[request.source_format or request.format]
    if stated == "qcow2" and seen != "qcow2":
        raise InvalidArgumentError(IMAGE_INVALID, f"{request.source_path} is {seen}, not qcow2")


def _grow(volume: Any, request: VolumeRequest) -> None:
    """Give a copy the capacity that was asked for; it never shrinks."""
    if request.capacity_bytes is not None and request.capacity_bytes > volume.info()[1]:
        volume.resize(request.capacity_bytes, 0)
