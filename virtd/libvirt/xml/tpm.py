"""``<tpm>``."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

from virtd.libvirt.xml.build import Element, attribute, child, element


@dataclass(frozen=True, slots=True)
class Tpm:
    """A TPM; ``backend`` is ``emulator`` for swtpm."""

    model: str = "tpm-crb"
    backend: str = "emulator"
    version: str = "2.0"

    def build(self) -> Element:
        """The element."""
        tpm = element("tpm", model=self.model)
        child(tpm, "backend", type=self.backend, version=self.version or None)
        return tpm

    @classmethod
    def parse(cls, tpm: Element) -> Self:
        """From an element."""
        return cls(tpm.get("model") or "", attribute(tpm, "backend", "type"), attribute(tpm, "backend", "version"))
