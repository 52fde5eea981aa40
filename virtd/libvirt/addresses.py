"""A guest's network addresses from all sources that the host has."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from typing import Any, Final, Protocol
from uuid import UUID

import libvirt

from virtd.errors import VirtdError
from virtd.libvirt.guests import Guests, is_active
from virtd.libvirt.words import AGENT_CHANNEL
from virtd.libvirt.xml.domain import Domain
from virtd.model.guest import GuestAddress

_SOURCES: Final = (
    (libvirt.VIR_DOMAIN_INTERFACE_ADDRESSES_SRC_LEASE, "LEASE"),
    (libvirt.VIR_DOMAIN_INTERFACE_ADDRESSES_SRC_ARP, "ARP"),
)
_LIMIT_S: Final = 1.8


class AgentAddresses(Protocol):
    """A guest agent, as far as it is asked for addresses."""

    async def addresses(self, uuid: UUID, names: Mapping[str, str]) -> Sequence[GuestAddress]:
        """What the agent says; empty if it does not answer in time.  ``names``: by MAC address."""


class Addresses:
    """Asks the agent, where there are agents, and the host's own sources at the same time."""

    def __init__(self, guests: Guests, agent: AgentAddresses | None) -> None:
        self._guests: Final = guests
        self._agent: Final = agent

    async def guest_addresses(self, uuid: UUID) -> Sequence[GuestAddress]:
        """What is known, agent first; an address that two sources know is listed once.

        :raises NotFoundError: GUEST_NOT_FOUND.
        """
        domain, active = await self._guests.on_domain(
            uuid,
            "virDomainGetXMLDesc",
            lambda found: (Domain.parse(found.XMLDesc(0)), is_active(found)),
        )
        if not active:
            return ()
        names = {
            interface.mac: domain.metadata.interfaces.get(interface.mac) or f"net{index}"
            for index, interface in enumerate(domain.interfaces)
        }
        from_host = asyncio.ensure_future(self._from_host(uuid, names))
        # A channel that is not connected has nobody who could answer: do not wait for it.
        channel = next((found for found in domain.channels if found.name == AGENT_CHANNEL), None)
        from_agent: Sequence[GuestAddress] = ()
        if self._agent is not None and channel is not None and channel.state == "connected":
            from_agent = await self._agent.addresses(uuid, names)
        try:
            found = [*from_agent, *await asyncio.wait_for(from_host, _LIMIT_S)]
        except (TimeoutError, VirtdError):
            found = list(from_agent)
        seen: set[tuple[str, str]] = set()
        unique = []
        for address in found:
            key = (address.mac, address.address)
            if key not in seen:
                seen.add(key)
                unique.append(address)
        return tuple(unique)

    async def _from_host(self, uuid: UUID, names: dict[str, str]) -> Sequence[GuestAddress]:
        def run(domain: Any) -> list[GuestAddress]:
            found: list[GuestAddress] = []
            for source, word in _SOURCES:
                try:
                    interfaces = domain.interfaceAddresses(source, 0)
                except libvirt.libvirtError:
                    continue  # this host has not this source
                for name, interface in (interfaces or {}).items():
                    mac = str(interface.get("hwaddr") or "").lower()
                    found += [
                        GuestAddress(names.get(mac) or name, mac, str(entry["addr"]), int(entry["prefix"]), word)
                        for entry in interface.get("addrs") or ()
                    ]
            return found

        return await self._guests.on_domain(uuid, "virDomainInterfaceAddresses", run)
