"""``<sound>``."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

from virtd.libvirt.xml.build import Element, element


@dataclass(frozen=True, slots=True)
class Sound:
    """A sound device."""

    model: str = "ich9"

    def build(self) -> Element:
        """The element."""
        return element("sound", model=self.model)

    @classmethod
    def parse(cls, sound: Element) -> Self:
        """From an element."""
        return cls(sound.get("model") or "")
