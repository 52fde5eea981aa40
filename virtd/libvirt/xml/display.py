"""``<graphics>`` and ``<video>``."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

from virtd.libvirt.xml.build import Element, attribute, child, element, integer


@dataclass(frozen=True, slots=True)
class Graphics:
    """A graphical console.  ``port`` None lets the host choose; parsed, None means "not running"."""

    kind: str = "vnc"
    listen: str = "127.0.0.1"
    port: int | None = None

    def build(self) -> Element:
        """The element."""
        graphics = element(
            "graphics",
            type=self.kind,
            port=-1 if self.port is None else self.port,
            autoport="yes" if self.port is None else "no",
            listen=self.listen,
        )
        child(graphics, "listen", type="address", address=self.listen)
        return graphics

    @classmethod
    def parse(cls, graphics: Element) -> Self:
        """From an element."""
        return cls(
            graphics.get("type") or "",
            graphics.get("listen") or attribute(graphics, "listen", "address"),
            integer(graphics.get("port") or ""),
        )

    @property
    def address(self) -> str:
        """``host:port`` while it can be connected to, else ``""``."""
        if self.port is None:
            return ""
        host = f"[{self.listen}]" if ":" in self.listen else self.listen
        return f"{host}:{self.port}"


@dataclass(frozen=True, slots=True)
class Video:
    """A display adapter."""

    model: str = "vga"

    def build(self) -> Element:
        """The element."""
        video = element("video")
        child(video, "model", type=self.model)
        return video

    @classmethod
    def parse(cls, video: Element) -> Self:
        """From an element."""
        return cls(attribute(video, "model", "type"))
