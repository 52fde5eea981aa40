"""``<disk>``."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

from virtd.libvirt.xml.build import Element, attribute, child, element, integer


@dataclass(frozen=True, slots=True)
class Disk:
    """A disk backed by a file (or, parsed only, by something else: then ``path`` is what names it)."""

    target: str
    bus: str
    path: str = ""
    format: str = "raw"
    device: str = "disk"
    read_only: bool = False
    boot_order: int | None = None
    cache: str = ""
    discard: str = ""
    kind: str = "file"
    driver: str = "qemu"

    def build(self) -> Element:
        """The element."""
        disk = element("disk", type=self.kind, device=self.device)
        child(
            disk,
            "driver",
            name=self.driver or None,
            type=self.format,
            cache=self.cache or None,
            discard=self.discard or None,
        )
        if self.path:
            child(disk, "source", file=self.path)
        child(disk, "target", dev=self.target, bus=self.bus)
        if self.read_only:
            child(disk, "readonly")
        if self.boot_order is not None:
            child(disk, "boot", order=self.boot_order)
        return disk

    @classmethod
    def parse(cls, disk: Element) -> Self:
        """From an element of any kind of source."""
        source = disk.find("source")
        path = ""
        if source is not None:
            path = next(
                (source.get(key, "") for key in ("file", "dev", "name", "dir", "volume") if source.get(key)), ""
            )
        return cls(
            target=attribute(disk, "target", "dev"),
            bus=attribute(disk, "target", "bus"),
            path=path,
            format=attribute(disk, "driver", "type"),
            device=disk.get("device") or "disk",
            read_only=disk.find("readonly") is not None,
            boot_order=integer(attribute(disk, "boot", "order")),
            cache=attribute(disk, "driver", "cache"),
            discard=attribute(disk, "driver", "discard"),
            kind=disk.get("type") or "file",
            driver=attribute(disk, "driver", "name"),
        )
