"""Networks of a fake host."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from datetime import timedelta
from ipaddress import ip_address
from typing import TYPE_CHECKING, Any, Final
from uuid import UUID

from virtd.backend import capabilities as caps
from virtd.backend.api import CallContext, NetworkRequest
from virtd.errors import (
    NETWORK_EXISTS,
    NETWORK_NOT_FOUND,
    NETWORK_REFUSED,
    AlreadyExistsError,
    FailedPreconditionError,
    NotFoundError,
)
from virtd.model.network import DhcpLease, DhcpRange, DhcpReservation, Network
from virtd.testing.fake import lowering
from virtd.testing.fake.link import Facet, spi

if TYPE_CHECKING:
    from virtd.testing.fake.native import NativeHypervisor

_LEASE: Final = timedelta(hours=1)
NO_BRIDGE: Final = "missing"
"""A bridge of this name is not there, whatever the host."""


@dataclass
class FakeNetwork:
    """One network of the hypervisor.  ``uuid`` is None for those that it comes with."""

    record: Network
    uuid: UUID | None = None


def _standard() -> dict[str, FakeNetwork]:
    made = {}
    for index, (name, mode, cidr) in enumerate(
        (("default", "nat", "192.0.2.0/24"), ("isolated", "isolated", "198.51.100.0/24"))
    ):
        record = Network(name, active=True, mode=mode, bridge=f"fakebr{index}", cidrs=(cidr,), autostart=True)
        made[name] = FakeNetwork(record)
    return made


class NativeNetworks:
    """What the fake hypervisor's own API says of networks (the rest is in ``native``)."""

    def __init__(self, hypervisor: NativeHypervisor) -> None:
        self._hypervisor = hypervisor
        self.all = _standard()

    async def write(self, network: FakeNetwork) -> None:
        """Make it, or make it anew."""
        async with self._hypervisor._call("network_write"):  # noqa: SLF001 - as above
            self.all[network.record.name] = network

    async def delete(self, name: str) -> None:
        """Forget it."""
        async with self._hypervisor._call("network_delete"):  # noqa: SLF001 - as above
            self.all.pop(name, None)

    def to_json(self) -> list[dict[str, Any]]:
        """For the world's file."""
        return [
            {"uuid": str(network.uuid or ""), "record": asdict(network.record)}
            for _, network in sorted(self.all.items())
        ]

    def load(self, items: Sequence[dict[str, Any]]) -> None:
        """From the world's file."""
        self.all = {}
        for item in items:
            fields = item["record"]
            record = Network(**{
                **fields,
                "cidrs": tuple(fields["cidrs"]),
                "dhcp_ranges": tuple(DhcpRange(**entry) for entry in fields["dhcp_ranges"]),
                "reservations": tuple(DhcpReservation(**entry) for entry in fields["reservations"]),
                "used_by": (),
            })  # fmt: skip
            self.all[record.name] = FakeNetwork(record, UUID(item["uuid"]) if item["uuid"] else None)

    async def list(self) -> Sequence[FakeNetwork]:
        """All of them."""
        async with self._hypervisor._call("network_list"):  # noqa: SLF001 - one API in two modules
            return [self.all[name] for name in sorted(self.all)]


class Networks(Facet):
    """See the SPI's facets for networks."""

    @spi
    async def list_networks(self) -> Sequence[Network]:
        """See the SPI."""
        return [network.record for network in await self._world.networks.list()]

    def lower_network(self, request: NetworkRequest) -> str:
        """See the SPI."""
        return f"fake network {request.name}: {request.spec}\n"

    @spi
    async def define_network(self, request: NetworkRequest, context: CallContext) -> Network:
        """See the SPI."""
        self._link.refuse_without(caps.NETWORK_CHANGES)
        context.checkpoint()
        known = await self._lookup(request.name)
        if known is not None and known.uuid != request.uuid:
            raise AlreadyExistsError(NETWORK_EXISTS, f"the host has a network {request.name} already")
        spec = request.spec
        record = Network(
            request.name,
            active=False,
            mode=spec.mode.lower(),
            bridge=request.bridge,
            cidrs=(spec.cidr,) if spec.cidr else (),
            autostart=False,
            dhcp_ranges=(spec.dhcp_range,) if spec.dhcp and spec.dhcp_range is not None else (),
            reservations=spec.reservations,
            domain=spec.domain,
        )
        await self._world.networks.write(FakeNetwork(record, request.uuid))
        return record

    @spi
    async def start_network(self, network: str, context: CallContext) -> Network:
        """See the SPI."""
        context.checkpoint()
        found = await self._existing(network)
        if found.record.bridge == NO_BRIDGE:
            raise FailedPreconditionError(NETWORK_REFUSED, f"the host has no bridge {NO_BRIDGE}")
        return await self._change(found, active=True)

    @spi
    async def stop_network(self, network: str, context: CallContext) -> Network:
        """See the SPI."""
        context.checkpoint()
        return await self._change(await self._existing(network), active=False)

    @spi
    async def set_network_autostart(self, network: str, context: CallContext, *, autostart: bool) -> Network:
        """See the SPI."""
        context.checkpoint()
        return await self._change(await self._existing(network), autostart=autostart)

    @spi
    async def set_reservations(
        self, network: str, reservations: Sequence[DhcpReservation], remove: Sequence[str], context: CallContext
    ) -> Network:
        """See the SPI."""
        context.checkpoint()
        found = await self._existing(network)
        kept = {entry.mac: entry for entry in found.record.reservations if entry.mac not in remove}
        kept.update({entry.mac: entry for entry in reservations})
        return await self._change(found, reservations=tuple(kept.values()))

    @spi
    async def undefine_network(self, network: str, context: CallContext) -> None:
        """See the SPI."""
        context.checkpoint()
        if await self._lookup(network) is not None:
            await self._world.networks.delete(network)

    @spi
    async def list_leases(self, network: str) -> Sequence[DhcpLease]:
        """See the SPI.  Every guest that has booted has one, in order of the guests' names."""
        found = (await self._existing(network)).record
        if not found.active or not found.dhcp_ranges:
            return []
        kept = {entry.mac: entry.address for entry in found.reservations}
        free = int(ip_address(found.dhcp_ranges[0].start))
        leases: list[DhcpLease] = []
        for guest in sorted(self._native.guests.values(), key=lambda guest: guest.name):
            if not guest.booted:
                continue
            for interface in lowering.parse(guest.active).interfaces:
                if interface.network == network:
                    address = kept.get(interface.mac) or str(ip_address(free + len(leases)))
                    expiry = self._world.clock.now() + _LEASE
                    leases.append(DhcpLease(interface.mac, address, 24, guest.name, expiry))
        return leases

    @spi
    async def host_networks(self) -> Sequence[str]:
        """See the SPI."""
        return ("203.0.113.0/24",)

    async def _lookup(self, name: str) -> FakeNetwork | None:
        return next((found for found in await self._world.networks.list() if found.record.name == name), None)

    async def _existing(self, name: str) -> FakeNetwork:
        found = await self._lookup(name)
        if found is None:
            raise NotFoundError(NETWORK_NOT_FOUND, f"the host has no network {name}")
        return found

    async def _change(self, network: FakeNetwork, **changes: Any) -> Network:
        record = replace(network.record, **changes)
        if record != network.record:
            await self._world.networks.write(FakeNetwork(record, network.uuid))
        return record
