"""``<domain>``: a whole guest."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Final, Protocol, Self
from uuid import UUID

from virtd.libvirt.xml.boot import Boot
from virtd.libvirt.xml.build import Element, attribute, child, element, integer, parse, render, scaled, text
from virtd.libvirt.xml.character import Channel, Console, Serial
from virtd.libvirt.xml.controller import Balloon, Controller, RandomSource
from virtd.libvirt.xml.disk import Disk
from virtd.libvirt.xml.display import Graphics, Video
from virtd.libvirt.xml.interface import Interface
from virtd.libvirt.xml.metadata import Metadata

_KIB: Final = 1024


class _Device(Protocol):
    def build(self) -> Element: ...


@dataclass(frozen=True, slots=True)
class Domain:
    """A guest as libvirt describes it.  ``kind`` is libvirt's domain type (``kvm``, ``qemu``, ``xen``)."""

    kind: str
    name: str
    uuid: UUID
    memory_bytes: int
    vcpus: int
    boot: Boot = field(default_factory=Boot)
    metadata: Metadata = field(default_factory=Metadata)
    features: tuple[str, ...] = ()
    cpu_mode: str = ""
    on_poweroff: str = ""
    on_reboot: str = ""
    on_crash: str = ""
    controllers: tuple[Controller, ...] = ()
    disks: tuple[Disk, ...] = ()
    interfaces: tuple[Interface, ...] = ()
    serials: tuple[Serial, ...] = ()
    consoles: tuple[Console, ...] = ()
    channels: tuple[Channel, ...] = ()
    graphics: tuple[Graphics, ...] = ()
    videos: tuple[Video, ...] = ()
    balloon: Balloon | None = None
    random: RandomSource | None = None

    def build(self) -> Element:
        """The element, its devices in libvirt's own order."""
        root = element("domain", type=self.kind)
        child(root, "name", self.name)
        child(root, "uuid", str(self.uuid))
        if self.metadata != Metadata():
            root.append(self.metadata.build())
        child(root, "memory", -(-self.memory_bytes // _KIB), unit="KiB")
        child(root, "vcpu", self.vcpus)
        root.append(self.boot.build())
        if self.features:
            features = child(root, "features")
            for feature in self.features:
                child(features, feature)
        if self.cpu_mode:
            child(root, "cpu", mode=self.cpu_mode)
        for tag in ("on_poweroff", "on_reboot", "on_crash"):
            if value := getattr(self, tag):
                child(root, tag, value)
        devices = child(root, "devices")
        for device in self._devices():
            devices.append(device.build())
        return root

    def _devices(self) -> Iterator[_Device]:
        yield from self.disks
        yield from self.controllers
        yield from self.interfaces
        yield from self.serials
        yield from self.consoles
        yield from self.channels
        yield from self.graphics
        yield from self.videos
        if self.balloon is not None:
            yield self.balloon
        if self.random is not None:
            yield self.random

    def to_xml(self) -> str:
        """As text."""
        return render(self.build())

    @classmethod
    def parse(cls, xml: str) -> Self:
        """From libvirt's text."""
        root = parse(xml)
        devices = root.find("devices")
        if devices is None:
            devices = element("devices")
        features = root.find("features")
        balloon, random = devices.find("memballoon"), devices.find("rng")
        return cls(
            kind=root.get("type") or "",
            name=text(root, "name"),
            uuid=UUID(text(root, "uuid")),
            memory_bytes=scaled(root, "memory") or 0,
            vcpus=integer(text(root, "vcpu")) or 0,
            boot=Boot.parse(root.find("os")),
            metadata=Metadata.parse(root.find("metadata")),
            features=() if features is None else tuple(str(found.tag) for found in features),
            cpu_mode=attribute(root, "cpu", "mode"),
            on_poweroff=text(root, "on_poweroff"),
            on_reboot=text(root, "on_reboot"),
            on_crash=text(root, "on_crash"),
            controllers=tuple(Controller.parse(found) for found in devices.findall("controller")),
            disks=tuple(Disk.parse(found) for found in devices.findall("disk")),
            interfaces=tuple(Interface.parse(found) for found in devices.findall("interface")),
            serials=tuple(Serial.parse(found) for found in devices.findall("serial")),
            consoles=tuple(Console.parse(found) for found in devices.findall("console")),
            channels=tuple(Channel.parse(found) for found in devices.findall("channel")),
            graphics=tuple(Graphics.parse(found) for found in devices.findall("graphics")),
            videos=tuple(Video.parse(found) for found in devices.findall("video")),
            balloon=None if balloon is None else Balloon.parse(balloon),
            random=None if random is None else RandomSource.parse(random),
        )
