"""Use cases of networks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from virtd.backend import capabilities as cap
from virtd.errors import NETWORK_NOT_FOUND, NotFoundError, unsupported
from virtd.model.network import Network
from virtd.service.call import Page, page_of
from virtd.service.core import Core


class Networks:
    """Use cases of networks."""

    def __init__(self, core: Core) -> None:
        self._core = core

    async def get(self, host: str, network: str) -> Network:
        """A network.

        :raises NotFoundError: NETWORK_NOT_FOUND.
        """
        name = f"hosts/{host}/networks/{network}"
        for entry in await self._all(host):
            if entry.name == name:
                return entry
        raise NotFoundError(NETWORK_NOT_FOUND, f"host {host} has no network {network}", resource=name)

    async def list(self, host: str, page_size: int, page_token: str) -> Page[Network]:
        """The networks of a host, by name."""
        return page_of(await self._all(host), page_size, page_token, lambda network: network.name)

    async def _all(self, host: str) -> Sequence[Network]:
        link = self._core.link(host)
        cap.require(link.capabilities, cap.NETWORKS, resource=f"hosts/{host}")
        facet = link.facets.networks
        if facet is None:
            raise unsupported(cap.NETWORKS, "the host offers no networks", resource=f"hosts/{host}")
        networks = await link.call(facet.list_networks())
        return sorted(
            (replace(network, name=f"hosts/{host}/networks/{network.name}") for network in networks),
            key=lambda network: network.name,
        )
