"""``<pool>`` and ``<volume>``."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

from virtd.libvirt.xml.build import attribute, child, element, parse, render, scaled, text


@dataclass(frozen=True, slots=True)
class PoolXml:
    """A storage pool; sizes are None where the host does not say.

    ``server`` and ``export`` are of netfs pools, ``volume_group`` of logical ones.
    """

    name: str
    path: str
    kind: str = "dir"
    capacity_bytes: int | None = None
    allocation_bytes: int | None = None
    available_bytes: int | None = None
    server: str = ""
    export: str = ""
    volume_group: str = ""

    def to_xml(self) -> str:
        """What ``virStoragePoolDefineXML`` takes."""
        root = element("pool", type=self.kind)
        child(root, "name", self.name)
        if self.server:
            source = child(root, "source")
            child(source, "host", name=self.server)
            child(source, "dir", path=self.export)
            child(source, "format", type="nfs")
        elif self.volume_group:
            source = child(root, "source")
            child(source, "name", self.volume_group)
            child(source, "format", type="lvm2")
        child(child(root, "target"), "path", self.path)
        return render(root)

    @property
    def source(self) -> str:
        """What it is made of, where that is not the path; ``""`` for none."""
        return f"{self.server}:{self.export}" if self.server else self.volume_group

    @classmethod
    def parse(cls, xml: str) -> Self:
        """From libvirt's text."""
        root = parse(xml)
        return cls(
            text(root, "name"),
            text(root, "target/path"),
            root.get("type") or "",
            scaled(root, "capacity", default_unit="bytes"),
            scaled(root, "allocation", default_unit="bytes"),
            scaled(root, "available", default_unit="bytes"),
            server=attribute(root, "source/host", "name"),
            export=attribute(root, "source/dir", "path"),
            volume_group=text(root, "source/name"),
        )


@dataclass(frozen=True, slots=True)
class VolumeXml:
    """A volume.  ``capacity_bytes`` None, with a backing file, means "as large as that".

    ``physical_bytes`` is the length of its file, ``stamp`` the times of its last changes as libvirt
    writes them.
    """

    name: str
    format: str = "raw"
    capacity_bytes: int | None = None
    allocation_bytes: int | None = None
    path: str = ""
    backing_path: str = ""
    backing_format: str = ""
    physical_bytes: int | None = None
    stamp: str = ""

    def to_xml(self) -> str:
        """What ``virStorageVolCreateXML`` takes."""
        root = element("volume")
        child(root, "name", self.name)
        if self.capacity_bytes is not None:
            child(root, "capacity", self.capacity_bytes, unit="bytes")
        child(root, "allocation", self.allocation_bytes or 0, unit="bytes")
        target = child(root, "target")
        child(target, "format", type=self.format)
        if self.format == "qcow2":
            # libvirt's own default, 0.10, can hold no record of changes for backups.
            child(target, "compat", "1.1")
        if self.backing_path:
            backing = child(root, "backingStore")
            child(backing, "path", self.backing_path)
            child(backing, "format", type=self.backing_format)
        return render(root)

    @classmethod
    def parse(cls, xml: str) -> Self:
        """From libvirt's text."""
        root = parse(xml)
        return cls(
            name=text(root, "name"),
            format=attribute(root, "target/format", "type"),
            capacity_bytes=scaled(root, "capacity", default_unit="bytes"),
            allocation_bytes=scaled(root, "allocation", default_unit="bytes"),
            path=text(root, "target/path"),
            backing_path=text(root, "backingStore/path"),
            backing_format=attribute(root, "backingStore/format", "type"),
            physical_bytes=scaled(root, "physical", default_unit="bytes"),
            stamp=f"{text(root, 'target/timestamps/mtime')} {text(root, 'target/timestamps/ctime')}",
        )
