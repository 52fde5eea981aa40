# Generated from _async/networks.py by `python -m tests.tools.gen_sync_client`; never edited by hand.
"""Networks of hosts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import TYPE_CHECKING

from virtd_client import _messages
from virtd_client._sync.operation import Operation
from virtd_client._sync.service import Service, pages
from virtd_client.types import OnConflict

if TYPE_CHECKING:
    from virtd.v1.network_pb2 import DhcpLease, Network, NetworkSpec
    from virtd.v1.network_pb2_grpc import NetworkServiceStub
    from virtd.v1.operation_pb2 import OperationResult

_NETWORK = "virtd.v1.Network"
_RESULT = "virtd.v1.OperationResult"


class Networks(Service):
    """Networks of hosts.  Names are ``hosts/{host}/networks/{network}``."""

    @cached_property
    def _stub(self) -> NetworkServiceStub:
        from virtd.v1.network_pb2_grpc import NetworkServiceStub

        return NetworkServiceStub(self._transport.channel)

    def get(self, name: str) -> Network:
        """One network."""
        from virtd.v1 import network_pb2 as pb

        return (self._transport.unary(self._stub.GetNetwork, pb.GetNetworkRequest(name=name))).network

    def list(self, parent: str, *, page_size: int = 0) -> tuple[Network, ...]:
        """The networks of a host, by name."""
        from virtd.v1 import network_pb2 as pb

        networks: tuple[Network, ...] = ()
        for page in pages(
            lambda token: self._transport.unary(
                self._stub.ListNetworks, pb.ListNetworksRequest(parent=parent, page_size=page_size, page_token=token)
            )
        ):
            networks += tuple(page.networks)
        return networks

    def create(
        self,
        parent: str,
        network_id: str,
        network: NetworkSpec,
        *,
        on_conflict: OnConflict = "queue",
        request_id: str | None = None,
        validate_only: bool = False,
    ) -> Operation[Network]:
        """Create a network and start it.

        :param parent: ``hosts/{host}``.
        """
        from virtd.v1 import network_pb2 as pb

        request = pb.CreateNetworkRequest(
            parent=parent,
            network_id=network_id,
            network=network,
            on_conflict=_messages.conflict_policy(on_conflict),
            request_id=_messages.new_request_id(request_id),
            validate_only=validate_only,
        )
        return self._start(self._stub.CreateNetwork, request, _NETWORK)

    def start(
        self,
        name: str,
        *,
        on_conflict: OnConflict = "queue",
        request_id: str | None = None,
        validate_only: bool = False,
    ) -> Operation[Network]:
        """Make it usable."""
        from virtd.v1 import network_pb2 as pb

        request = pb.StartNetworkRequest(
            name=name,
            on_conflict=_messages.conflict_policy(on_conflict),
            request_id=_messages.new_request_id(request_id),
            validate_only=validate_only,
        )
        return self._start(self._stub.StartNetwork, request, _NETWORK)

    def stop(
        self,
        name: str,
        *,
        on_conflict: OnConflict = "queue",
        request_id: str | None = None,
        validate_only: bool = False,
    ) -> Operation[Network]:
        """Take it down; it stays defined."""
        from virtd.v1 import network_pb2 as pb

        request = pb.StopNetworkRequest(
            name=name,
            on_conflict=_messages.conflict_policy(on_conflict),
            request_id=_messages.new_request_id(request_id),
            validate_only=validate_only,
        )
        return self._start(self._stub.StopNetwork, request, _NETWORK)

    def update(
        self,
        name: str,
        *,
        autostart: bool | None = None,
        reservations: Mapping[str, str] | None = None,
        remove_reservations: Sequence[str] = (),
        on_conflict: OnConflict = "queue",
        request_id: str | None = None,
        validate_only: bool = False,
    ) -> Operation[Network]:
        """Change whether it starts with the host, and its reservations.

        :param autostart: None: as it is.
        :param reservations: addresses to keep, by MAC address; those that are not named stay.
        :param remove_reservations: MAC addresses whose reservations go.
        """
        from virtd.v1 import network_pb2 as pb

        request = pb.UpdateNetworkRequest(
            name=name,
            autostart=autostart,
            set_reservations=[
                pb.DhcpReservation(mac=mac, address=address) for mac, address in (reservations or {}).items()
            ],
            remove_reservations=remove_reservations,
            on_conflict=_messages.conflict_policy(on_conflict),
            request_id=_messages.new_request_id(request_id),
            validate_only=validate_only,
        )
        return self._start(self._stub.UpdateNetwork, request, _NETWORK)

    def delete(
        self,
        name: str,
        *,
        on_conflict: OnConflict = "queue",
        request_id: str | None = None,
        validate_only: bool = False,
    ) -> Operation[OperationResult]:
        """Stop and remove it."""
        from virtd.v1 import network_pb2 as pb

        request = pb.DeleteNetworkRequest(
            name=name,
            on_conflict=_messages.conflict_policy(on_conflict),
            request_id=_messages.new_request_id(request_id),
            validate_only=validate_only,
        )
        return self._start(self._stub.DeleteNetwork, request, _RESULT)

    def leases(self, name: str, *, page_size: int = 0) -> tuple[DhcpLease, ...]:
        """What the network's DHCP server has given out, by MAC address."""
        from virtd.v1 import network_pb2 as pb

        leases: tuple[DhcpLease, ...] = ()
        for page in pages(
            lambda token: self._transport.unary(
                self._stub.ListLeases, pb.ListLeasesRequest(parent=name, page_size=page_size, page_token=token)
            )
        ):
            leases += tuple(page.leases)
        return leases
