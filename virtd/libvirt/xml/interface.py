"""``<interface>``."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Self

from virtd.libvirt.xml.build import Element, attribute, child, element, integer

_SOURCE_KEYS: Final = {"network": "network", "bridge": "bridge", "direct": "dev", "ethernet": "dev"}

ALIAS: Final = "ua-net-"
"""The beginning of the alias that carries the interface's name where something has to refer to it."""


@dataclass(frozen=True, slots=True)
class Interface:
    """A network interface: ``kind`` is libvirt's type, ``source`` its network, bridge or device.

    ``alias`` is the name after :data:`ALIAS`.  ``link`` is ``up``, ``down`` or empty (not said, so up).
    """

    kind: str
    mac: str
    source: str = ""
    model: str = ""
    target: str = ""
    link: str = ""
    mtu: int | None = None
    boot_order: int | None = None
    alias: str = ""

    def build(self) -> Element:
        """The element."""
        interface = element("interface", type=self.kind)
        child(interface, "mac", address=self.mac)
        if self.source:
            child(interface, "source", **{_SOURCE_KEYS[self.kind]: self.source})
        if self.target:
            child(interface, "target", dev=self.target)
        if self.model:
            child(interface, "model", type=self.model)
        if self.link:
            child(interface, "link", state=self.link)
        if self.mtu is not None:
            child(interface, "mtu", size=self.mtu)
        if self.boot_order is not None:
            child(interface, "boot", order=self.boot_order)
        if self.alias:
            child(interface, "alias", name=f"{ALIAS}{self.alias}")
        return interface

    @classmethod
    def parse(cls, interface: Element) -> Self:
        """From an element."""
        kind = interface.get("type") or ""
        alias = attribute(interface, "alias", "name")
        return cls(
            kind=kind,
            mac=attribute(interface, "mac", "address").lower(),
            source=attribute(interface, "source", _SOURCE_KEYS.get(kind, kind)),
            model=attribute(interface, "model", "type"),
            target=attribute(interface, "target", "dev"),
            link=attribute(interface, "link", "state"),
            mtu=integer(attribute(interface, "mtu", "size")),
            boot_order=integer(attribute(interface, "boot", "order")),
            alias=alias.removeprefix(ALIAS) if alias.startswith(ALIAS) else "",
        )
