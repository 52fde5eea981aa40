"""Files that are sent to a host in parts: see :class:`virtd.backend.facets_parts.VolumePartsFacet`."""

from __future__ import annotations

import asyncio
import contextlib
from typing import Any, Final

import libvirt

from virtd.backend.api import CallContext
from virtd.errors import VirtdError
from virtd.libvirt.connections import HostConnections, LaneName
from virtd.libvirt.storage_objects import active_pool, delete_native, refuse_existing
from virtd.libvirt.transfer import Transfer
from virtd.libvirt.xml.storage import VolumeXml
from virtd.model.guest import DiskFormat

_POLL_S: Final = 0.25


class Parts:
    """Parts of files, to one host."""

    def __init__(self, connections: HostConnections) -> None:
        self._connections: Final = connections

    async def upload_part(
        self,
        pool: str,
        name: str,
        path: str,
        format: DiskFormat,  # noqa: A002 - the API's name; the bytes themselves say it
        offset: int,
        length: int,
        context: CallContext,
    ) -> None:
        """Write a part; see the SPI."""
        context.checkpoint()
        transfer = Transfer(path, offset, length)

        def run(connection: Any) -> None:
            found = active_pool(connection, pool)
            if offset:
                transfer.run(connection, found.storageVolLookupByName(name))
                return
            refuse_existing(found, name)
            # Made as raw and empty: the bytes bring the format with them.
            volume = found.createXML(VolumeXml(name, "raw", transfer.size).to_xml(), 0)
            try:
                transfer.run(connection, volume)
            except BaseException:
                with contextlib.suppress(libvirt.libvirtError):
                    delete_native(volume)
                raise

        work = asyncio.ensure_future(
            self._connections.call("virStorageVolUpload", run, lane=LaneName.BULK, unlimited=True)
        )
        try:
            while not work.done():
                await asyncio.wait({work}, timeout=_POLL_S)
                done = transfer.done_bytes
                context.progress(done / transfer.size, bytes_done=done, bytes_total=transfer.size)
                if not work.done():
                    context.checkpoint()
        except (VirtdError, asyncio.CancelledError):
            transfer.cancel()
            with contextlib.suppress(VirtdError):
                await asyncio.shield(work)
            raise
        work.result()
