"""Helpers to build and read lxml elements."""

from __future__ import annotations

from typing import Final

from lxml import etree

Element = etree._Element  # noqa: SLF001 - lxml has no public name for its element type

# What comes from a host is data: no entities, no network, no unbounded trees.
_PARSER: Final = etree.XMLParser(
    resolve_entities=False, no_network=True, huge_tree=False, remove_blank_text=True, remove_comments=True
)


def element(tag: str, /, **attributes: str | int | None) -> Element:
    """A new element; attributes that are None are left out, ``_`` at a name's end is dropped."""
    made = etree.Element(tag)
    for name, value in attributes.items():
        if value is not None:
            made.set(name.rstrip("_"), str(value))
    return made


def child(parent: Element, tag: str, text: str | int | None = None, /, **attributes: str | int | None) -> Element:
    """Append a new element to ``parent`` and return it."""
    made = element(tag, **attributes)
    if text is not None:
        made.text = str(text)
    parent.append(made)
    return made


def parse(xml: str) -> Element:
    """Parse what libvirt gave."""
    return etree.fromstring(xml.encode(), _PARSER)


def render(root: Element) -> str:
    """Indented text with a final newline: readable in a plan and stable in golden files."""
    etree.indent(root, "  ")
    return etree.tostring(root, encoding="unicode", pretty_print=True)


def attribute(root: Element | None, path: str, name: str) -> str:
    """An attribute of the first element at ``path`` (``.`` for the root itself); ``""`` if there is none."""
    found = None if root is None else root.find(path)
    return "" if found is None else (found.get(name) or "")


def text(root: Element | None, path: str) -> str:
    """The text of the first element at ``path``, stripped; ``""`` if there is none."""
    found = None if root is None else root.find(path)
    return "" if found is None or found.text is None else found.text.strip()


def integer(value: str) -> int | None:
    """A whole number, or None for anything else."""
    return int(value) if value.isascii() and value.isdigit() else None


_UNITS: Final = {
    "": 1024,
    "b": 1,
    "bytes": 1,
    "k": 1024,
    "kib": 1024,
    "kb": 1000,
    "m": 1024**2,
    "mib": 1024**2,
    "mb": 1000**2,
    "g": 1024**3,
    "gib": 1024**3,
    "gb": 1000**3,
    "t": 1024**4,
    "tib": 1024**4,
    "tb": 1000**4,
}


def scaled(root: Element | None, path: str, *, default_unit: str = "KiB") -> int | None:
    """Bytes of an element such as ``<memory unit='KiB'>``; None if it is absent or not a number."""
    return _scaled(text(root, path), attribute(root, path, "unit") or default_unit)


def scaled_attribute(root: Element, name: str, *, default_unit: str = "KiB") -> int | None:
    """Bytes of an attribute such as ``memory`` in ``<cell memory='1' unit='GiB'/>``; None as :func:`scaled`."""
    return _scaled(root.get(name) or "", root.get("unit") or default_unit)


def _scaled(value: str, unit: str) -> int | None:
    number, factor = integer(value), _UNITS.get(unit.lower())
    return None if number is None or factor is None else number * factor
