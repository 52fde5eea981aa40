"""``<disk>``."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Self

from virtd.libvirt.xml.build import Element, attribute, child, element, integer, text


@dataclass(frozen=True, slots=True)
class Limits:
    """``<iotune>``; 0 is "none"."""

    total_bytes_sec: int = 0
    read_bytes_sec: int = 0
    write_bytes_sec: int = 0
    total_iops_sec: int = 0
    read_iops_sec: int = 0
    write_iops_sec: int = 0

    def build(self) -> Element:
        """The element."""
        tune = element("iotune")
        for field in fields(self):
            if value := getattr(self, field.name):
                child(tune, field.name, value)
        return tune

    @classmethod
    def parse(cls, tune: Element | None) -> Self | None:
        """From an element; None where nothing is limited."""
        found = cls(**{field.name: integer(text(tune, field.name)) or 0 for field in fields(cls)})
        return None if found == cls() else found


@dataclass(frozen=True, slots=True)
class Disk:
    """A disk backed by a file (or, parsed only, by something else: then ``path`` is what names it).

    A CD-ROM drive without a medium has an empty ``path``.
    """

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
    io: str = ""
    serial: str = ""
    limits: Limits | None = None

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
            io=self.io or None,
        )
        if self.path:
            child(disk, "source", file=self.path)
        child(disk, "target", dev=self.target, bus=self.bus)
        if self.read_only:
            child(disk, "readonly")
        if self.boot_order is not None:
            child(disk, "boot", order=self.boot_order)
        if self.limits is not None:
            disk.append(self.limits.build())
        if self.serial:
            child(disk, "serial", self.serial)
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
            io=attribute(disk, "driver", "io"),
            serial=text(disk, "serial"),
            limits=Limits.parse(disk.find("iotune")),
        )
