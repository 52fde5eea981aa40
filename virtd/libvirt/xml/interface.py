"""``<interface>``."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Self

from virtd.libvirt.xml.build import Element, attribute, child, element

_SOURCE_KEYS: Final = {"network": "network", "bridge": "bridge", "direct": "dev", "ethernet": "dev"}


@dataclass(frozen=True, slots=True)
class Interface:
    """A network interface: ``kind`` is libvirt's type, ``source`` its network, bridge or device."""

    kind: str
    mac: str
    source: str = ""
    model: str = ""
    target: str = ""

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
        return interface

    @classmethod
    def parse(cls, interface: Element) -> Self:
        """From an element."""
        kind = interface.get("type") or ""
        return cls(
            kind=kind,
            mac=attribute(interface, "mac", "address").lower(),
            source=attribute(interface, "source", _SOURCE_KEYS.get(kind, kind)),
            model=attribute(interface, "model", "type"),
            target=attribute(interface, "target", "dev"),
        )
