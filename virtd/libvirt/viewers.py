"""Connections to a guest's VNC display over the network, for drivers that pass no display on by themselves."""

from __future__ import annotations

import asyncio
import ipaddress
from typing import Any, Final
from urllib.parse import urlsplit
from uuid import UUID

from virtd.backend.capabilities import CONSOLE_GRAPHICAL
from virtd.errors import unsupported
from virtd.libvirt.connections import HostConnections
from virtd.libvirt.displays import Display
from virtd.libvirt.errors import unreachable
from virtd.libvirt.guests import Guests, require_active
from virtd.libvirt.xml.display import Graphics
from virtd.libvirt.xml.domain import Domain

_CHUNK: Final = 64 * 1024
_CONNECT_S: Final = 5.0
_LOOPBACK: Final = {4: "127.0.0.1", 6: "::1"}


class Viewers:
    """Opens displays at the address at which they listen."""

    def __init__(self, guests: Guests, connections: HostConnections) -> None:
        self._guests: Final = guests
        self._connections: Final = connections

    async def open_display(self, uuid: UUID) -> Display:
        """See :class:`virtd.backend.facets_agent.DisplayFacet`."""

        def run(domain: Any) -> Graphics | None:
            require_active(domain, "open the display")
            return next((found for found in Domain.parse(domain.XMLDesc(0)).graphics if found.kind == "vnc"), None)

        found = await self._guests.on_domain(uuid, "virDomainGetXMLDesc", run)
        if found is None or found.port is None:
            raise unsupported(CONSOLE_GRAPHICAL, "the guest has no VNC display")
        host = reachable(found.listen, self._connections.uri, local=self._connections.local)
        if not host:
            why = (
                f"the display listens at {found.listen}:{found.port} of the host, which is another machine: let it "
                "listen at an address of the network (spec.graphics.listen), or run virtd on the host"
            )
            raise unsupported(CONSOLE_GRAPHICAL, why)
        try:
            reader, writer = await asyncio.wait_for(asyncio.open_connection(host, found.port, limit=_CHUNK), _CONNECT_S)
        except (OSError, TimeoutError) as error:
            raise unreachable(f"nobody answers at the display's address {host}:{found.port}") from error
        return Display(reader, writer)


def reachable(listen: str, uri: str, *, local: bool) -> str:
    """Where a display that listens at an address of the host can be connected to from here; empty: nowhere."""
    try:
        address = ipaddress.ip_address(listen or "127.0.0.1")
    except ValueError:
        return listen
    if address.is_unspecified:
        return _LOOPBACK[address.version] if local else (urlsplit(uri).hostname or "")
    return "" if address.is_loopback and not local else str(address)
