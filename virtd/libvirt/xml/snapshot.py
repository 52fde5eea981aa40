"""``<domainsnapshot>``."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

from virtd.libvirt.xml.build import attribute, child, element, integer, parse, render, text


@dataclass(frozen=True, slots=True)
class DomainSnapshot:
    """A snapshot.  ``memory`` is libvirt's word for where memory is: ``internal``, ``external``, ``no``."""

    name: str
    description: str = ""
    state: str = ""
    parent: str = ""
    memory: str = ""
    creation_time: int | None = None
    external: bool = False

    def to_xml(self) -> str:
        """What ``virDomainSnapshotCreateXML`` takes."""
        root = element("domainsnapshot")
        child(root, "name", self.name)
        if self.description:
            child(root, "description", self.description)
        return render(root)

    @classmethod
    def parse(cls, xml: str) -> Self:
        """From libvirt's text."""
        root = parse(xml)
        memory = attribute(root, "memory", "snapshot")
        return cls(
            name=text(root, "name"),
            description=text(root, "description"),
            state=text(root, "state"),
            parent=text(root, "parent/name"),
            memory=memory,
            creation_time=integer(text(root, "creationTime")),
            external=memory == "external"
            or any(disk.get("snapshot") == "external" for disk in root.findall("disks/disk")),
        )
