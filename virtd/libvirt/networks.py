"""Networks of a host."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import libvirt

from virtd.libvirt.connections import HostConnections
from virtd.libvirt.xml.network import NetworkXml
from virtd.model.network import Network


class Networks:
    """Reads the host's networks."""

    def __init__(self, connections: HostConnections) -> None:
        self._connections: Final = connections

    async def list_networks(self) -> Sequence[Network]:
        """All networks, active or not."""
        return await self._connections.call("virConnectListAllNetworks", _list)


def _list(connection: Any) -> list[Network]:
    found = []
    for network in connection.listAllNetworks(0):
        try:
            xml = NetworkXml.parse(network.XMLDesc(0))
            found.append(
                Network(
                    name=network.name(),
                    active=bool(network.isActive()),
                    mode=xml.mode,
                    bridge=xml.bridge,
                    cidrs=xml.cidrs,
                    autostart=bool(network.autostart()),
                )
            )
        except libvirt.libvirtError as error:
            if error.get_error_code() != libvirt.VIR_ERR_NO_NETWORK:  # removed while it was being looked at
                raise
    return found
