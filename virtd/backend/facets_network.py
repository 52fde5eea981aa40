"""The facet that changes a host's networks.

Part of :mod:`virtd.backend.api`, whose rules hold here too; import from there.  It is offered beside
:class:`virtd.backend.api.NetworkFacet`, which lists them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol
from uuid import UUID

from virtd.model.network import DhcpLease, DhcpReservation, Network, NetworkSpec

if TYPE_CHECKING:
    from virtd.backend.api import CallContext


@dataclass(frozen=True, slots=True)
class NetworkRequest:
    """A network to define: checked, and with nothing left to choose.

    :param uuid: chosen by the core; a network of this name with another one is somebody else's.
    :param bridge: the name of the bridge device to make (for BRIDGE, of the one that exists).
    :param spec: ``dhcp`` is not None; with it ``dhcp_range`` is not None either.
    """

    uuid: UUID
    name: str
    bridge: str
    spec: NetworkSpec


class NetworkChangeFacet(Protocol):
    """Define, start, stop and forget networks; what their DHCP servers have given out."""

    def lower_network(self, request: NetworkRequest) -> str:
        """The native configuration.  Pure: no I/O, same input, same output."""

    async def define_network(self, request: NetworkRequest, context: CallContext) -> Network:
        """Make it known, stopped.  Idempotent: one with the same UUID is defined anew.

        :raises AlreadyExistsError: NETWORK_EXISTS, another network has this name.
        """

    async def start_network(self, network: str, context: CallContext) -> Network:
        """Make it usable.  Idempotent.

        :raises NotFoundError: NETWORK_NOT_FOUND.
        :raises FailedPreconditionError: NETWORK_REFUSED, with what the host says.
        """

    async def stop_network(self, network: str, context: CallContext) -> Network:
        """Take it down, whoever is connected to it: the core has looked.  Idempotent.

        :raises NotFoundError: NETWORK_NOT_FOUND.
        """

    async def set_network_autostart(self, network: str, context: CallContext, *, autostart: bool) -> Network:
        """Whether it starts with the host.  Idempotent.

        :raises NotFoundError: NETWORK_NOT_FOUND.
        """

    async def set_reservations(
        self, network: str, reservations: Sequence[DhcpReservation], remove: Sequence[str], context: CallContext
    ) -> Network:
        """Add or change reservations, each by its MAC address, and remove some; at once and for good.  Idempotent.

        :raises NotFoundError: NETWORK_NOT_FOUND.
        :raises FailedPreconditionError: NETWORK_REFUSED, with what the host says.
        """

    async def undefine_network(self, network: str, context: CallContext) -> None:
        """Stop and forget it.  Idempotent, also when there is no such network."""

    async def list_leases(self, network: str) -> Sequence[DhcpLease]:
        """What the DHCP server has given out and has not taken back; ``guest`` is empty here.

        :raises NotFoundError: NETWORK_NOT_FOUND.
        """

    async def host_networks(self) -> Sequence[str]:
        """The ranges that the host itself is connected to (``192.0.2.0/24``), as far as it can be asked."""
