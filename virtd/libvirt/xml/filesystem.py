"""``<filesystem>``: a directory of the host in the guest."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

from virtd.libvirt.xml.build import Element, attribute, child, element


@dataclass(frozen=True, slots=True)
class Filesystem:
    """``driver`` is ``virtiofs`` or, for 9p, ``path``; ``tag`` is what the guest mounts it by."""

    tag: str
    path: str
    driver: str = "virtiofs"
    read_only: bool = False
    access: str = ""
    kind: str = "mount"

    def build(self) -> Element:
        """The element."""
        filesystem = element("filesystem", type=self.kind, accessmode=self.access or None)
        child(filesystem, "driver", type=self.driver)
        child(filesystem, "source", dir=self.path)
        child(filesystem, "target", dir=self.tag)
        if self.read_only:
            child(filesystem, "readonly")
        return filesystem

    @classmethod
    def parse(cls, filesystem: Element) -> Self:
        """From an element."""
        return cls(
            tag=attribute(filesystem, "target", "dir"),
            path=attribute(filesystem, "source", "dir"),
            driver=attribute(filesystem, "driver", "type") or "path",
            read_only=filesystem.find("readonly") is not None,
            access=filesystem.get("accessmode") or "",
            kind=filesystem.get("type") or "mount",
        )
