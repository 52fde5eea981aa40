"""``<input>``: keyboards and pointers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

from virtd.libvirt.xml.build import Element, element


@dataclass(frozen=True, slots=True)
class Input:
    """``kind`` is ``tablet``, ``keyboard`` or ``mouse``; libvirt adds those on bus ``ps2`` by itself."""

    kind: str
    bus: str = "usb"

    def build(self) -> Element:
        """The element."""
        return element("input", type=self.kind, bus=self.bus)

    @classmethod
    def parse(cls, found: Element) -> Self:
        """From an element."""
        return cls(found.get("type") or "", found.get("bus") or "")
