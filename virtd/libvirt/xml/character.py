"""Character devices: ``<serial>``, ``<console>``, ``<channel>``."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

from virtd.libvirt.xml.build import Element, attribute, child, element, integer


@dataclass(frozen=True, slots=True)
class Serial:
    """A serial port."""

    kind: str = "pty"
    port: int = 0

    def build(self) -> Element:
        """The element."""
        serial = element("serial", type=self.kind)
        child(serial, "target", port=self.port)
        return serial

    @classmethod
    def parse(cls, serial: Element) -> Self:
        """From an element."""
        return cls(serial.get("type") or "", integer(attribute(serial, "target", "port")) or 0)


@dataclass(frozen=True, slots=True)
class Console:
    """A console: by default the view on the serial port of the same number."""

    kind: str = "pty"
    target: str = "serial"
    port: int = 0

    def build(self) -> Element:
        """The element."""
        console = element("console", type=self.kind)
        child(console, "target", type=self.target, port=self.port)
        return console

    @classmethod
    def parse(cls, console: Element) -> Self:
        """From an element."""
        return cls(
            console.get("type") or "",
            attribute(console, "target", "type") or "serial",
            integer(attribute(console, "target", "port")) or 0,
        )


@dataclass(frozen=True, slots=True)
class Channel:
    """A channel between host and guest, found by its name in the guest.

    ``state`` is ``connected`` or ``disconnected`` where the hypervisor knows (parsed only).
    """

    name: str
    kind: str = "unix"
    target: str = "virtio"
    state: str = ""

    def build(self) -> Element:
        """The element."""
        channel = element("channel", type=self.kind)
        child(channel, "target", type=self.target, name=self.name)
        return channel

    @classmethod
    def parse(cls, channel: Element) -> Self:
        """From an element."""
        return cls(
            name=attribute(channel, "target", "name"),
            kind=channel.get("type") or "",
            target=attribute(channel, "target", "type"),
            state=attribute(channel, "target", "state"),
        )
