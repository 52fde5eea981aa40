"""``<controller>`` and the small devices that are hardly more than a name."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

from virtd.libvirt.xml.build import Element, child, element, integer


@dataclass(frozen=True, slots=True)
class Controller:
    """A bus controller."""

    kind: str
    index: int = 0
    model: str = ""

    def build(self) -> Element:
        """The element."""
        return element("controller", type=self.kind, index=self.index, model=self.model or None)

    @classmethod
    def parse(cls, controller: Element) -> Self:
        """From an element."""
        return cls(
            controller.get("type") or "", integer(controller.get("index") or "") or 0, controller.get("model") or ""
        )


@dataclass(frozen=True, slots=True)
class Balloon:
    """The memory balloon.  ``stats_period_s`` makes the guest report its memory use."""

    model: str = "virtio"
    stats_period_s: int | None = None

    def build(self) -> Element:
        """The element."""
        balloon = element("memballoon", model=self.model)
        if self.stats_period_s is not None:
            child(balloon, "stats", period=self.stats_period_s)
        return balloon

    @classmethod
    def parse(cls, balloon: Element) -> Self:
        """From an element."""
        stats = balloon.find("stats")
        return cls(balloon.get("model") or "", None if stats is None else integer(stats.get("period") or ""))


@dataclass(frozen=True, slots=True)
class RandomSource:
    """A random number generator that reads the host's."""

    model: str = "virtio"
    path: str = "/dev/urandom"

    def build(self) -> Element:
        """The element."""
        rng = element("rng", model=self.model)
        child(rng, "backend", self.path, model="random")
        return rng

    @classmethod
    def parse(cls, rng: Element) -> Self:
        """From an element."""
        backend = rng.find("backend")
        return cls(rng.get("model") or "", "" if backend is None else (backend.text or ""))
