"""``<domainbackup>`` and ``<domaincheckpoint>``."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

from virtd.libvirt.xml.build import Element, attribute, child, element, parse, render, text

BITMAP: str = "changes"
"""The name under which each export shows its record of changes."""


@dataclass(frozen=True, slots=True)
class BackupDiskXml:
    """One disk of a backup in pull mode: the export's name is the target."""

    target: str
    scratch: str = ""
    since: str = ""

    def build(self) -> Element:
        """The element; a disk without scratch file is left out of the backup."""
        if not self.scratch:
            return element("disk", name=self.target, backup="no")
        disk = element(
            "disk",
            name=self.target,
            backup="yes",
            type="file",
            backupmode="incremental" if self.since else "full",
            incremental=self.since or None,
            exportname=self.target,
            exportbitmap=BITMAP if self.since else None,
        )
        child(disk, "scratch", file=self.scratch)
        return disk


@dataclass(frozen=True, slots=True)
class DomainBackup:
    """A backup in pull mode: the hypervisor serves the disks at a unix socket."""

    socket: str
    disks: tuple[BackupDiskXml, ...] = ()

    def to_xml(self) -> str:
        """What ``virDomainBackupBegin`` takes."""
        root = element("domainbackup", mode="pull")
        child(root, "server", transport="unix", socket=self.socket)
        disks = child(root, "disks")
        for disk in self.disks:
            disks.append(disk.build())
        return render(root)

    @classmethod
    def parse(cls, xml: str) -> Self:
        """From libvirt's text: the socket only, empty for one that is served otherwise."""
        return cls(attribute(parse(xml), "server", "socket"))


@dataclass(frozen=True, slots=True)
class DomainCheckpoint:
    """A mark in the history of disks.  ``disks``: whether each target has it."""

    name: str
    disks: tuple[tuple[str, bool], ...] = ()
    parent: str = ""

    def to_xml(self, domain_xml: str = "", creation_time: int = 0) -> str:
        """What ``virDomainCheckpointCreateXML`` takes.

        :param domain_xml: the guest's definition, needed to make known a mark that was set otherwise.
        """
        root = element("domaincheckpoint")
        child(root, "name", self.name)
        if domain_xml:
            child(root, "creationTime", creation_time)
            if self.parent:
                child(child(root, "parent"), "name", self.parent)
        disks = child(root, "disks")
        for target, has in self.disks:
            child(
                disks,
                "disk",
                name=target,
                checkpoint="bitmap" if has else "no",
                bitmap=self.name if has else None,
            )
        if domain_xml:
            root.append(parse(domain_xml))
        return render(root)

    @classmethod
    def parse(cls, xml: str) -> Self:
        """From libvirt's text."""
        root = parse(xml)
        disks = tuple(
            (disk.get("name") or "", disk.get("checkpoint") == "bitmap") for disk in root.findall("disks/disk")
        )
        return cls(text(root, "name"), disks, text(root, "parent/name"))
