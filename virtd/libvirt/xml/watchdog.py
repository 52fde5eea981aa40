"""``<watchdog>``."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

from virtd.libvirt.xml.build import Element, element


@dataclass(frozen=True, slots=True)
class Watchdog:
    """A watchdog; ``action`` is libvirt's word for what happens when it is not fed."""

    model: str = "i6300esb"
    action: str = "reset"

    def build(self) -> Element:
        """The element."""
        return element("watchdog", model=self.model, action=self.action)

    @classmethod
    def parse(cls, watchdog: Element) -> Self:
        """From an element."""
        return cls(watchdog.get("model") or "", watchdog.get("action") or "reset")
