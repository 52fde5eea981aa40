"""``<domain>``: a whole guest."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Final, Protocol, Self
from uuid import UUID

from virtd.libvirt.xml import override
from virtd.libvirt.xml.boot import Boot
from virtd.libvirt.xml.build import Element, attribute, child, element, integer, parse, render, scaled, text
from virtd.libvirt.xml.character import Channel, Console, Serial
from virtd.libvirt.xml.controller import Balloon, Controller, RandomSource
from virtd.libvirt.xml.cpu import Cpu
from virtd.libvirt.xml.disk import Disk
from virtd.libvirt.xml.display import Graphics, Video
from virtd.libvirt.xml.filesystem import Filesystem
from virtd.libvirt.xml.hostdev import HostDevice
from virtd.libvirt.xml.inputs import Input
from virtd.libvirt.xml.interface import Interface
from virtd.libvirt.xml.metadata import Metadata
from virtd.libvirt.xml.override import UserNet
from virtd.libvirt.xml.sound import Sound
from virtd.libvirt.xml.tpm import Tpm
from virtd.libvirt.xml.tuning import CpuTune, MemoryBacking, NumaTune
from virtd.libvirt.xml.watchdog import Watchdog

_KIB: Final = 1024
_SWITCHED: Final = ("smm",)  # features that are switched on, not merely named


class _Device(Protocol):
    def build(self) -> Element: ...


@dataclass(frozen=True, slots=True)
class Domain:
    """A guest as libvirt describes it.  ``kind`` is libvirt's domain type (``kvm``, ``qemu``, ``xen``).

    ``memory_bytes`` and ``vcpus`` are the most that the guest can have; ``current_...`` is what it has
    (None: the same).
    """

    kind: str
    name: str
    uuid: UUID
    memory_bytes: int
    vcpus: int
    current_memory_bytes: int | None = None
    current_vcpus: int | None = None
    boot: Boot = field(default_factory=Boot)
    metadata: Metadata = field(default_factory=Metadata)
    features: tuple[str, ...] = ()
    cpu: Cpu = field(default_factory=Cpu)
    cpu_tune: CpuTune = field(default_factory=CpuTune)
    numa_tune: NumaTune = field(default_factory=NumaTune)
    memory_backing: MemoryBacking = field(default_factory=MemoryBacking)
    clock: str = ""
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
    filesystems: tuple[Filesystem, ...] = ()
    inputs: tuple[Input, ...] = ()
    tpm: Tpm | None = None
    sound: Sound | None = None
    watchdog: Watchdog | None = None
    host_devices: tuple[HostDevice, ...] = ()
    user_nets: tuple[UserNet, ...] = ()

    def build(self) -> Element:
        """The element, its devices in libvirt's own order."""
        root = element("domain", type=self.kind)
        child(root, "name", self.name)
        child(root, "uuid", str(self.uuid))
        if self.metadata != Metadata():
            root.append(self.metadata.build())
        self._resources(root)
        root.append(self.boot.build())
        self._behaviour(root)
        devices = child(root, "devices")
        for device in self._devices():
            devices.append(device.build())
        root.extend(override.build(self.user_nets))
        return root

    def _resources(self, root: Element) -> None:
        child(root, "memory", -(-self.memory_bytes // _KIB), unit="KiB")
        if self.current_memory_bytes is not None:
            child(root, "currentMemory", -(-self.current_memory_bytes // _KIB), unit="KiB")
        if self.memory_backing != MemoryBacking():
            root.append(self.memory_backing.build())
        child(root, "vcpu", self.vcpus, current=self.current_vcpus)
        if self.cpu_tune != CpuTune():
            root.append(self.cpu_tune.build())
        if self.numa_tune != NumaTune():
            root.append(self.numa_tune.build())

    def _behaviour(self, root: Element) -> None:
        if self.features:
            features = child(root, "features")
            for feature in self.features:
                child(features, feature, state="on" if feature in _SWITCHED else None)
        if self.cpu != Cpu():
            root.append(self.cpu.build())
        if self.clock:
            child(root, "clock", offset=self.clock)
        for tag in ("on_poweroff", "on_reboot", "on_crash"):
            if value := getattr(self, tag):
                child(root, tag, value)

    def _devices(self) -> Iterator[_Device]:
        yield from self.disks
        yield from self.controllers
        yield from self.filesystems
        yield from self.interfaces
        yield from self.serials
        yield from self.consoles
        yield from self.channels
        yield from self.inputs
        if self.tpm is not None:
            yield self.tpm
        yield from self.graphics
        if self.sound is not None:
            yield self.sound
        yield from self.videos
        yield from self.host_devices
        if self.watchdog is not None:
            yield self.watchdog
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
        tpm, sound, watchdog = (devices.find(tag) for tag in ("tpm", "sound", "watchdog"))
        return cls(
            kind=root.get("type") or "",
            name=text(root, "name"),
            uuid=UUID(text(root, "uuid")),
            memory_bytes=scaled(root, "memory") or 0,
            vcpus=integer(text(root, "vcpu")) or 0,
            current_memory_bytes=scaled(root, "currentMemory"),
            current_vcpus=integer(attribute(root, "vcpu", "current")),
            boot=Boot.parse(root.find("os")),
            metadata=Metadata.parse(root.find("metadata")),
            features=()
            if features is None
            else tuple(str(found.tag) for found in features if found.get("state") != "off"),
            cpu=Cpu.parse(root.find("cpu")),
            cpu_tune=CpuTune.parse(root.find("cputune")),
            numa_tune=NumaTune.parse(root.find("numatune")),
            memory_backing=MemoryBacking.parse(root.find("memoryBacking")),
            clock=attribute(root, "clock", "offset"),
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
            filesystems=tuple(Filesystem.parse(found) for found in devices.findall("filesystem")),
            inputs=tuple(Input.parse(found) for found in devices.findall("input")),
            tpm=None if tpm is None else Tpm.parse(tpm),
            sound=None if sound is None else Sound.parse(sound),
            watchdog=None if watchdog is None else Watchdog.parse(watchdog),
            host_devices=tuple(HostDevice.parse(found) for found in devices.findall("hostdev")),
            user_nets=override.parse(root),
        )
