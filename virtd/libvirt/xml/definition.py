"""Small changes to whole definitions that are otherwise kept word for word."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Final

from virtd.libvirt.xml.build import Element, parse, render, text

_OUTSIDE: Final = ("file", "dev")
"""What libvirt calls the place of a disk: a file, or a device."""


def renamed(xml: str, name: str) -> str:
    """The definition of a guest, or of a snapshot of it, for a guest of another name.

    The file of the firmware's variables is named after the guest: libvirt chooses it anew.
    """
    root = parse(xml)
    for domain in (root, *root.findall("domain"), *root.findall("inactiveDomain")):
        own = domain.find("name")
        if own is None or (domain is root and root.tag == "domainsnapshot"):
            continue
        own.text = name
        for variables in domain.findall("os/nvram"):
            variables.text = None
            for source in variables.findall("source"):
                variables.remove(source)
            if not variables.attrib.get("template"):
                _drop(variables)
    return render(root)


def variables_path(xml: str) -> str:
    """Where a definition says that the firmware's variables lie; ``""`` if it leaves that to libvirt."""
    root = parse(xml)
    source = root.find("os/nvram/source")
    return (source.get("file") or "") if source is not None else text(root, "os/nvram")


def name_of(xml: str) -> str:
    """The name in a definition."""
    return text(parse(xml), "name")


def with_disk_files(xml: str, files: Mapping[str, tuple[str, str]]) -> str:
    """The definition with other files, and their formats, for disks: by the path of the old one."""
    root = parse(xml)
    for disk in root.findall("devices/disk"):
        source = disk.find("source")
        if source is None:
            continue
        path = next((source.get(key) for key in _OUTSIDE if source.get(key)), None)
        if path is None or path not in files:
            continue
        new_path, format_ = files[path]
        for key in _OUTSIDE:
            if key in source.attrib:
                del source.attrib[key]
        source.set("file", new_path)
        disk.set("type", "file")
        driver = disk.find("driver")
        if driver is not None:
            driver.set("type", format_)
        # What lies below is the new file's own affair.
        for below in [*disk.findall("backingStore"), *disk.findall("mirror")]:
            disk.remove(below)
    return render(root)


def disk_paths(xml: str) -> list[str]:
    """The files and devices of all disks that have one."""
    return [path for disk in parse(xml).findall("devices/disk") if (path := _path_of(disk))]


def migrated_disk_targets(xml: str, paths: Collection[str]) -> list[str]:
    """The names (``vda``) under which the guest has the disks with these files."""
    targets = []
    for disk in parse(xml).findall("devices/disk"):
        target = disk.find("target")
        if target is not None and _path_of(disk) in paths:
            targets.append(target.get("dev") or "")
    return targets


def _path_of(disk: Element) -> str:
    source = disk.find("source")
    return "" if source is None else next((source.get(key) or "" for key in _OUTSIDE if source.get(key)), "")


def _drop(found: Element) -> None:
    parent = found.getparent()
    if parent is not None:
        parent.remove(found)
