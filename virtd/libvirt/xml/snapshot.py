"""``<domainsnapshot>``, and the domains inside it."""

from __future__ import annotations

from collections.abc import Mapping
from copy import deepcopy
from dataclasses import dataclass, field
from typing import Self

from virtd.libvirt.xml.build import Element, attribute, child, element, integer, parse, render, text


@dataclass(frozen=True, slots=True)
class ImageFile:
    """An image file and its format, as libvirt's driver names it."""

    path: str
    format: str


@dataclass(frozen=True, slots=True)
class DomainSnapshot:
    """A snapshot.

    :param memory: libvirt's word for where memory is: ``internal``, ``external``, ``no``.
    :param overlays: target -> the new image that an external snapshot puts over the disk.
    :param frozen: target -> the image as it was then, which an external snapshot keeps.
    """

    name: str
    description: str = ""
    state: str = ""
    parent: str = ""
    memory: str = ""
    creation_time: int | None = None
    external: bool = False
    memory_file: str = ""
    overlays: Mapping[str, str] = field(default_factory=dict)
    frozen: Mapping[str, ImageFile] = field(default_factory=dict)
    untouched: tuple[str, ...] = ()
    """Targets that a new external snapshot leaves out (read-only disks, drives)."""

    def to_xml(self) -> str:
        """What ``virDomainSnapshotCreateXML`` takes."""
        root = element("domainsnapshot")
        child(root, "name", self.name)
        if self.description:
            child(root, "description", self.description)
        if self.external:
            if self.memory_file:
                child(root, "memory", snapshot="external", file=self.memory_file)
            else:
                child(root, "memory", snapshot="no")
            disks = child(root, "disks")
            for target, path in self.overlays.items():
                disk = child(disks, "disk", name=target, snapshot="external", type="file")
                child(disk, "driver", type="qcow2")
                child(disk, "source", file=path)
            for target in self.untouched:
                child(disks, "disk", name=target, snapshot="no")
        return render(root)

    @classmethod
    def parse(cls, xml: str) -> Self:
        """From libvirt's text."""
        root = parse(xml)
        memory = attribute(root, "memory", "snapshot")
        overlays = {
            disk.get("name") or "": attribute(disk, "source", "file")
            for disk in root.findall("disks/disk")
            if disk.get("snapshot") == "external"
        }
        external = memory == "external" or bool(overlays)
        frozen = {
            target: image for target, image in files_of(root.find("domain")).items() if external and target in overlays
        }
        return cls(
            name=text(root, "name"),
            description=text(root, "description"),
            state=text(root, "state"),
            parent=text(root, "parent/name"),
            memory=memory,
            creation_time=integer(text(root, "creationTime")),
            external=external,
            memory_file=attribute(root, "memory", "file"),
            overlays=overlays,
            frozen=frozen,
        )


def files_of(domain: Element | None) -> dict[str, ImageFile]:
    """Target -> image, of a domain's disks that are files."""
    if domain is None:
        return {}
    return {
        attribute(disk, "target", "dev"): ImageFile(
            attribute(disk, "source", "file"), attribute(disk, "driver", "type")
        )
        for disk in domain.findall("devices/disk")
        if attribute(disk, "source", "file")
    }


def chains_of(domain_xml: str) -> dict[str, tuple[str, ...]]:
    """Target -> paths from the top down, as an active domain's XML tells them."""
    found = {}
    for disk in parse(domain_xml).findall("devices/disk"):
        paths: list[str] = []
        layer: Element | None = disk
        while layer is not None and (path := attribute(layer, "source", "file")):
            paths.append(path)
            layer = layer.find("backingStore")
        if paths:
            found[attribute(disk, "target", "dev")] = tuple(paths)
    return found


def with_files(root: Element, files: Mapping[str, ImageFile]) -> str:
    """A domain with the images of some disks replaced; libvirt finds the chains below them itself."""
    changed = deepcopy(root)
    for disk in changed.findall("devices/disk"):
        image = files.get(attribute(disk, "target", "dev"))
        if image is not None:
            _put(disk, image)
    return render(changed)


def definition_in(snapshot_xml: str) -> Element:
    """The persistent definition of the guest at the snapshot's moment, as a domain of its own."""
    root = parse(snapshot_xml)
    found = root.find("inactiveDomain")
    if found is None:
        found = root.find("domain")
    if found is None:
        message = "a snapshot without a domain"
        raise ValueError(message)
    made = deepcopy(found)
    made.tag = "domain"
    return made


def with_frozen(snapshot_xml: str, frozen: Mapping[str, ImageFile]) -> str:
    """The snapshot with other images as those that it keeps.

    :param frozen: target -> the image.
    """
    root = parse(snapshot_xml)
    for disk in [*root.findall("domain/devices/disk"), *root.findall("inactiveDomain/devices/disk")]:
        image = frozen.get(attribute(disk, "target", "dev"))
        if image is not None:
            _put(disk, image)
    return render(root)


def with_overlays(snapshot_xml: str, overlays: Mapping[str, str]) -> str:
    """The snapshot with other images put over its disks (after a revert)."""
    root = parse(snapshot_xml)
    for disk in root.findall("disks/disk"):
        source, path = disk.find("source"), overlays.get(disk.get("name") or "")
        if source is not None and path is not None:
            source.set("file", path)
    return render(root)


def with_description(snapshot_xml: str, description: str) -> str:
    """The snapshot with another description."""
    root = parse(snapshot_xml)
    found = root.find("description")
    if found is not None:
        root.remove(found)
    if description:
        made = element("description")
        made.text = description
        root.insert(1, made)
    return render(root)


def _put(disk: Element, image: ImageFile) -> None:
    source, driver = disk.find("source"), disk.find("driver")
    if source is not None:
        source.set("file", image.path)
        if "index" in source.attrib:
            del source.attrib["index"]
    if driver is not None:
        driver.set("type", image.format)
    _forget_chain(disk)


def _forget_chain(disk: Element) -> None:
    for layer in disk.findall("backingStore"):
        disk.remove(layer)
