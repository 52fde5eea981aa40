"""``<network>``, and the parts of it that can be changed while it is up."""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass
from typing import Self
from uuid import UUID

from virtd.libvirt.xml.build import Element, attribute, child, element, parse, render, text


@dataclass(frozen=True, slots=True)
class DhcpHost:
    """``<host>``: an address that is kept for a MAC address."""

    mac: str
    ip: str
    name: str = ""

    def build(self) -> Element:
        """The element."""
        return element("host", mac=self.mac, name=self.name or None, ip=self.ip)

    def to_xml(self) -> str:
        """What ``virNetworkUpdate`` takes."""
        return render(self.build())


@dataclass(frozen=True, slots=True)
class NetworkXml:
    """A network.  ``mode`` is libvirt's forward mode, ``isolated`` where there is none.

    :param ranges: what the DHCP server gives out, first and last; None: everything but the host's address.
    """

    name: str
    mode: str = "isolated"
    bridge: str = ""
    cidrs: tuple[str, ...] = ()
    uuid: UUID | None = None
    ranges: tuple[tuple[str, str], ...] | None = None
    hosts: tuple[DhcpHost, ...] = ()
    domain: str = ""

    def to_xml(self) -> str:
        """What ``virNetworkDefineXML`` takes; the host is the first address of each CIDR."""
        root = element("network")
        child(root, "name", self.name)
        if self.uuid is not None:
            child(root, "uuid", str(self.uuid))
        if self.mode != "isolated":
            child(root, "forward", mode=self.mode)
        if self.bridge:
            child(root, "bridge", name=self.bridge)
        if self.domain:
            child(root, "domain", name=self.domain, localOnly="yes")
        for cidr in self.cidrs:
            network = ipaddress.ip_network(cidr)
            ip = child(
                root,
                "ip",
                family=f"ipv{network.version}" if network.version != 4 else None,  # noqa: PLR2004 - IPv4 is the default
                address=str(network[1]),
                prefix=network.prefixlen,
            )
            ranges = ((str(network[2]), str(network[-2])),) if self.ranges is None else self.ranges
            if ranges:
                dhcp = child(ip, "dhcp")
                for start, end in ranges:
                    child(dhcp, "range", start=start, end=end)
                for host in self.hosts:
                    dhcp.append(host.build())
        return render(root)

    @classmethod
    def parse(cls, xml: str) -> Self:
        """From libvirt's text."""
        root = parse(xml)
        forward = root.find("forward")
        mode = "isolated" if forward is None else (forward.get("mode") or "nat")
        return cls(
            text(root, "name"),
            mode,
            attribute(root, "bridge", "name"),
            _cidrs(root),
            uuid=UUID(text(root, "uuid")) if text(root, "uuid") else None,
            ranges=tuple((entry.get("start") or "", entry.get("end") or "") for entry in root.findall("ip/dhcp/range")),
            hosts=tuple(
                DhcpHost((entry.get("mac") or "").lower(), entry.get("ip") or "", entry.get("name") or "")
                for entry in root.findall("ip/dhcp/host")
            ),
            domain=attribute(root, "domain", "name"),
        )


def _cidrs(root: Element) -> tuple[str, ...]:
    found = []
    for ip in root.findall("ip"):
        suffix = ip.get("prefix") or ip.get("netmask") or ""
        try:
            found.append(str(ipaddress.ip_network(f"{ip.get('address')}/{suffix}".rstrip("/"), strict=False)))
        except ValueError:
            continue
    return tuple(found)
