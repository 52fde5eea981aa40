"""Records of snapshots that virtd makes by copying disks: an element of their own in a guest's ``<metadata>``."""

from __future__ import annotations

from typing import Final

from lxml import etree

from virtd.libvirt.xml.build import Element, element, parse, render

NAMESPACE: Final = "https://virtd.dev/xmlns/snapshots/1"
PREFIX: Final = "virtd-snapshots"
_TAG: Final = f"{{{NAMESPACE}}}tree"


def build(text: str) -> str:
    """The element, as libvirt's call for metadata takes it: without its namespace, which goes beside it."""
    tree = element("tree")
    tree.text = text
    return render(tree)


def text_of(xml: str) -> str:
    """What is in the element, as libvirt's call for metadata gives it."""
    return parse(xml).text or ""


def records_of(xml: str) -> str:
    """The records in a definition; empty if there are none."""
    found = parse(xml).find(f"metadata/{_TAG}")
    return "" if found is None else found.text or ""


def with_records(xml: str, text: str) -> str:
    """The definition with these records instead of its own; without any, where the text is empty."""
    root = parse(xml)
    place = root.find("metadata")
    for old in root.findall(f"metadata/{_TAG}"):
        _drop(old)
    if text:
        if place is None:
            place = element("metadata")
            root.insert(0, place)
        etree.SubElement(place, _TAG, nsmap={PREFIX: NAMESPACE}).text = text
    return render(root)


def _drop(found: Element) -> None:
    parent = found.getparent()
    if parent is not None:
        parent.remove(found)
