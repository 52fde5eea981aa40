"""virtd's own element in a guest's ``<metadata>``: which device carries which name of the spec.

It is a convenience for reading back.  Ownership is not decided by it: that is in virtd's store.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final, Self

from lxml import etree

from virtd.libvirt.xml.build import Element

NAMESPACE: Final = "https://virtd.dev/xmlns/guest/1"


@dataclass(frozen=True, slots=True)
class Metadata:
    """Names of disks by target, and of interfaces by MAC address."""

    disks: Mapping[str, str] = field(default_factory=dict)
    interfaces: Mapping[str, str] = field(default_factory=dict)
    options: Mapping[str, str] = field(default_factory=dict)

    def build(self) -> Element:
        """The ``<metadata>`` element."""
        root = etree.Element("metadata")
        guest = etree.SubElement(root, f"{{{NAMESPACE}}}guest", nsmap={"virtd": NAMESPACE})
        for target, name in self.disks.items():
            etree.SubElement(guest, f"{{{NAMESPACE}}}disk", name=name, target=target)
        for mac, name in self.interfaces.items():
            etree.SubElement(guest, f"{{{NAMESPACE}}}interface", name=name, mac=mac)
        for key, value in self.options.items():
            etree.SubElement(guest, f"{{{NAMESPACE}}}option", name=key, value=value)
        return root

    @classmethod
    def parse(cls, root: Element | None) -> Self:
        """From ``<metadata>``; empty for a guest that virtd did not define."""
        guest = None if root is None else root.find(f"{{{NAMESPACE}}}guest")
        if guest is None:
            return cls()

        def pairs(tag: str, key: str, value: str) -> dict[str, str]:
            return {
                found.get(key, ""): found.get(value, "")
                for found in guest.findall(f"{{{NAMESPACE}}}{tag}")
                if found.get(key) and found.get(value) is not None
            }

        return cls(pairs("disk", "target", "name"), pairs("interface", "mac", "name"), pairs("option", "name", "value"))
