"""Connections to a guest's VNC display, for viewers.

libvirt makes one end of a socket pair a client of the display, past its password, whatever address the
display listens at (which may be none).  Passing a file descriptor needs a daemon on this machine.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
from typing import Any, Final
from uuid import UUID

import libvirt

from virtd.backend.capabilities import CONSOLE_GRAPHICAL
from virtd.errors import unsupported
from virtd.libvirt.connections import HostConnections
from virtd.libvirt.errors import unreachable
from virtd.libvirt.guests import require_active
from virtd.libvirt.xml.domain import Domain

_CHUNK: Final = 64 * 1024


class Displays:
    """Opens displays."""

    def __init__(self, connections: HostConnections) -> None:
        self._connections: Final = connections

    async def open_display(self, uuid: UUID) -> Display:
        """See :class:`virtd.backend.facets_agent.DisplayFacet`."""
        if not self._connections.local:
            raise unsupported(
                CONSOLE_GRAPHICAL, "the host's libvirt is not reached over a local socket, so it can pass no display"
            )

        def run(connection: Any) -> int:
            domain = connection.lookupByUUID(uuid.bytes)
            require_active(domain, "open the display")
            kinds = [graphics.kind for graphics in Domain.parse(domain.XMLDesc(0)).graphics]
            if "vnc" not in kinds:
                raise unsupported(CONSOLE_GRAPHICAL, "the guest has no VNC display")
            flags = libvirt.VIR_DOMAIN_OPEN_GRAPHICS_SKIPAUTH
            return int(domain.openGraphicsFD(kinds.index("vnc"), flags))

        fd = await self._connections.call("virDomainOpenGraphicsFD", run)
        try:
            viewer = socket.socket(fileno=fd)
        except OSError:
            os.close(fd)
            raise
        viewer.setblocking(False)  # noqa: FBT003 - the standard library's signature
        reader, writer = await asyncio.open_unix_connection(sock=viewer, limit=_CHUNK)
        return Display(reader, writer)


class Display:
    """See :class:`virtd.backend.api.ConsoleStream`."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader: Final = reader
        self._writer: Final = writer

    async def read(self) -> bytes:
        """See the SPI."""
        try:
            return await self._reader.read(_CHUNK)
        except OSError:
            return b""

    async def write(self, data: bytes) -> None:
        """See the SPI."""
        try:
            self._writer.write(data)
            await self._writer.drain()
        except OSError as error:
            raise unreachable("the display has closed: the guest has stopped") from error

    async def close(self) -> None:
        """See the SPI."""
        self._writer.close()
        with contextlib.suppress(OSError):
            await self._writer.wait_closed()
