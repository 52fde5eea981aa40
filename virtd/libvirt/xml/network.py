"""``<network>``."""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass
from typing import Self

from virtd.libvirt.xml.build import Element, attribute, child, element, parse, render, text


@dataclass(frozen=True, slots=True)
class NetworkXml:
    """A network.  ``mode`` is libvirt's forward mode, ``isolated`` where there is none."""

    name: str
    mode: str = "isolated"
    bridge: str = ""
    cidrs: tuple[str, ...] = ()

    def to_xml(self) -> str:
        """What ``virNetworkDefineXML`` takes; the host is the first address of each CIDR and serves DHCP."""
        root = element("network")
        child(root, "name", self.name)
        if self.mode != "isolated":
            child(root, "forward", mode=self.mode)
        if self.bridge:
            child(root, "bridge", name=self.bridge)
        for cidr in self.cidrs:
            network = ipaddress.ip_network(cidr)
            ip = child(
                root,
                "ip",
                family=f"ipv{network.version}" if network.version != 4 else None,  # noqa: PLR2004 - IPv4 is the default
                address=str(network[1]),
                prefix=network.prefixlen,
            )
            child(child(ip, "dhcp"), "range", start=str(network[2]), end=str(network[-2]))
        return render(root)

    @classmethod
    def parse(cls, xml: str) -> Self:
        """From libvirt's text."""
        root = parse(xml)
        forward = root.find("forward")
        mode = "isolated" if forward is None else (forward.get("mode") or "nat")
        return cls(text(root, "name"), mode, attribute(root, "bridge", "name"), _cidrs(root))


def _cidrs(root: Element) -> tuple[str, ...]:
    found = []
    for ip in root.findall("ip"):
        suffix = ip.get("prefix") or ip.get("netmask") or ""
        try:
            found.append(str(ipaddress.ip_network(f"{ip.get('address')}/{suffix}".rstrip("/"), strict=False)))
        except ValueError:
            continue
    return tuple(found)
