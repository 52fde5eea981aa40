"""Carry a change over into a domain that somebody else may have touched: a three-way merge of XML.

``base`` is what virtd's designer makes of the guest as it was, ``wanted`` what it makes of the guest as
it shall be, ``native`` what libvirt has.  Only what differs between the first two is changed in the
third: addresses that libvirt has assigned, and whatever a person wrote by hand, stay.  Pure.

Devices are matched by what they are, never by their place: disks and interfaces by their name in the
spec, so that the disk ``vdb`` does not become ``vda`` because another one went.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Iterator
from typing import Final

from lxml import etree

from virtd.libvirt.xml.build import Element, attribute, element
from virtd.libvirt.xml.metadata import NAMESPACE, Metadata

_QEMU: Final = "{http://libvirt.org/schemas/domain/qemu/1.0}"
_APART: Final = ("name", "uuid", "metadata")
# Where the same tag can stand more than once, one of these tells which is which.
_IDENTIFIERS: Final = ("name", "id", "vcpu", "cell", "order", "alias", "value", "address")
# A device of another kind has another place in the machine, and its elements other attributes.
_KINDS: Final = (".@type", ".@device", ".@model", "model@type", "target@bus")

# Xen emulates its own disks in the places of the IDE bus, for an HVM guest's firmware.
_SHARED: Final = ("xvd", "hd")

Key = tuple[str, ...]


def names_of_disks(domain: Element) -> dict[str, Element]:
    """The disks by their name in the spec; where virtd gave none, by their target."""
    known = Metadata.parse(domain.find("metadata")).disks
    return {known.get(target_of(disk)) or target_of(disk): disk for disk in domain.findall("devices/disk")}


def names_of_interfaces(domain: Element) -> dict[str, Element]:
    """The interfaces by their name in the spec; where virtd gave none: ``net0``, ``net1`` ..."""
    known = Metadata.parse(domain.find("metadata")).interfaces
    return {
        known.get(attribute(interface, "mac", "address").lower()) or f"net{index}": interface
        for index, interface in enumerate(domain.findall("devices/interface"))
    }


def target_of(disk: Element) -> str:
    """A disk's target, for example ``vda``."""
    return attribute(disk, "target", "dev")


def merge(native: Element, base: Element, wanted: Element, live: Element | None = None) -> Element:
    """``native`` with what changes from ``base`` to ``wanted``; none of the arguments is changed.

    :param live: the running domain, whose targets are taken as well.
    """
    result, base, wanted = copy.deepcopy(native), copy.deepcopy(base), copy.deepcopy(wanted)
    targets = _Targets(result, live)
    for tree in (base, wanted):
        targets.settle(tree)
    _attributes(result, base, wanted)
    for tag in dict.fromkeys(str(child.tag) for child in (*base, *wanted)):
        old, new = base.find(tag), wanted.find(tag)
        if tag in _APART or _same(old, new):
            continue
        if tag == "devices":
            _devices(result, base, wanted)
        elif tag == f"{_QEMU}commandline":
            _command_line(result, old, new)
        else:
            held = result.find(tag)
            if held is not None and old is None and new is not None:
                old = etree.Element(tag, {"mode": new.get("mode", "")} if new.get("mode") else {})  # theirs stays
            _child(result, held, old, new)
    if not _same(base.find("metadata"), wanted.find("metadata")):
        _metadata(result, wanted.find("metadata"))  # last: until here it tells which device is which
    _defaults(result, base, wanted)
    _one_way_to_boot(result, base, wanted)
    return result


def _defaults(result: Element, base: Element, wanted: Element) -> None:
    """What libvirt has filled in from a number that is another one now."""
    kept = all(_same(base.find(tag), wanted.find(tag)) for tag in ("memory", "currentMemory"))
    if not kept and wanted.find("currentMemory") is None:
        _drop(result, "currentMemory")
    vcpu = wanted.find("vcpu")
    if vcpu is not None and not _same(base.find("vcpu"), vcpu):
        _drop(result, "vcpus")  # of each of the old number, whether it is there
        held = result.find("vcpu")
        if held is not None and vcpu.get("current") is None:
            held.attrib.pop("current", "")


def _one_way_to_boot(result: Element, base: Element, wanted: Element) -> None:
    """Libvirt takes an order of kinds of devices (``<os><boot dev='hd'/>``) or one of single devices, not both.

    The designer writes the latter; a hand-made guest may have the former, and keeps it unless the order of
    a device that it has is what changes.
    """
    place = result.find("os")
    if place is None or place.find("boot") is None:
        return
    old, new = _by_key(base), _by_key(wanted)
    if any(_kind(old[key], "boot@order") != _kind(new[key], "boot@order") for key in old.keys() & new.keys()):
        _drop(place, "boot")
        return
    for device in result.iterfind("devices/*"):
        _drop(device, "boot")


class _Targets:
    """Which target each disk has: the one that it has already, else the first that is free."""

    def __init__(self, native: Element, live: Element | None) -> None:
        self._held: dict[tuple[str, str], str] = {}
        self._taken: set[str] = set()
        self._shared = _SHARED if native.get("type") == "xen" else ()
        for domain in (native, live):
            if domain is None:
                continue
            for name, disk in names_of_disks(domain).items():
                self._held.setdefault((name, attribute(disk, "target", "bus")), target_of(disk))
                self._taken.add(target_of(disk))

    def settle(self, tree: Element) -> None:
        """Give every disk of a designed domain its target."""
        changed: dict[str, str] = {}
        for name, disk in names_of_disks(tree).items():
            target = disk.find("target")
            if target is None:
                continue
            designed, bus = target.get("dev") or "", target.get("bus") or ""
            held = self._held.get((name, bus))
            if held is None:
                held = self._held[name, bus] = self._free(designed)
            changed[designed] = held
            target.set("dev", held)
        metadata = tree.find(f"metadata/{{{NAMESPACE}}}guest")
        for entry in () if metadata is None else metadata.findall(f"{{{NAMESPACE}}}disk"):
            entry.set("target", changed.get(entry.get("target") or "", entry.get("target") or ""))

    def _free(self, designed: str) -> str:
        prefix = designed[: 3 if designed.startswith("xvd") else 2]
        prefixes = self._shared if prefix in self._shared else (prefix,)
        tails = (tail for tail in _letters() if not any(f"{other}{tail}" in self._taken for other in prefixes))
        found = f"{prefix}{next(tails)}"
        self._taken.add(found)
        return found


def _letters() -> Iterator[str]:
    alphabet = "abcdefghijklmnopqrstuvwxyz"
    yield from alphabet
    yield from (first + second for first in alphabet for second in alphabet)


# ------------------------------------------------------------------------------------------- devices


def _devices(result: Element, base: Element, wanted: Element) -> None:
    place = result.find("devices")
    if place is None:
        place = etree.SubElement(result, "devices")
    have, old, new = _by_key(result), _by_key(base), _by_key(wanted)
    for key in dict.fromkeys((*old, *new)):
        before, after, held = old.get(key), new.get(key), have.get(key)
        if _same(before, after):
            continue
        if key[0] == "controller":
            # Other devices, hand-made ones too, may sit on it: controllers are added, never taken away.
            if held is None and after is not None:
                place.append(copy.deepcopy(after))
        elif _child(place, held, before, after) and held is not None and before is not None and after is not None:
            _resettle(held, before, after)


def _by_key(domain: Element) -> dict[Key, Element]:
    found: dict[Key, Element] = {}
    for name, disk in names_of_disks(domain).items():
        found["disk", name] = disk
    for name, interface in names_of_interfaces(domain).items():
        found["interface", name] = interface
    counts: dict[Key, int] = {}
    for device in domain.findall("devices/*"):
        tag = str(device.tag)
        if tag in ("disk", "interface", "emulator"):
            continue
        key: Key = (tag, *(pick(device) for pick in _KEYS.get(tag, (lambda found: found.get("type") or "",))))
        counts[key] = counts.get(key, -1) + 1
        found[*key, str(counts[key])] = device
    return found


_KEYS: Final[dict[str, tuple[Callable[[Element], str], ...]]] = {
    "controller": (lambda found: found.get("type") or "", lambda found: found.get("index") or "0"),
    "filesystem": (lambda found: attribute(found, "target", "dir"),),
    "channel": (lambda found: attribute(found, "target", "name"),),
    "input": (lambda found: found.get("type") or "", lambda found: found.get("bus") or ""),
    "hostdev": (lambda found: _text_of(found.find("source")),),
    "graphics": (lambda found: found.get("type") or "",),
    # There is one of each of these, whatever its kind.
    **dict.fromkeys(("serial", "console", "video", "sound", "watchdog", "memballoon", "rng", "tpm"), ()),
}


def _resettle(held: Element, before: Element, after: Element) -> None:
    """What libvirt had worked out for the device that it was does not hold for the one that it is now."""
    if any(_kind(before, path) != _kind(after, path) for path in _KINDS):
        _drop(held, "address", "alias")
        alias = after.find("alias")
        if alias is not None:
            held.append(copy.deepcopy(alias))
    if not _same(before.find("source"), after.find("source")):
        _drop(held, "backingStore")


def _kind(device: Element, path: str) -> str:
    place, _, name = path.partition("@")
    return attribute(device, place, name)


def _drop(parent: Element, *tags: str) -> None:
    for tag in tags:
        for found in parent.findall(tag):
            parent.remove(found)


# ----------------------------------------------------------------------------------- other elements


def _child(parent: Element, held: Element | None, old: Element | None, new: Element | None) -> bool:
    """Bring one child of ``parent`` from ``old`` to ``new``; whether it is there afterwards."""
    if new is None:
        if held is not None:
            parent.remove(held)
        return False
    if held is None:
        parent.append(copy.deepcopy(new))
    elif old is None or old.get("mode") != new.get("mode"):
        # It is another thing by the same name (a CPU of another mode): the old one's details do not fit.
        parent.replace(held, copy.deepcopy(new))
    else:
        _blend(held, old, new)
    return True


def _blend(held: Element, old: Element, new: Element) -> None:
    _attributes(held, old, new)
    if (old.text or "").strip() != (new.text or "").strip():
        held.text = new.text
        held.attrib.update(new.attrib)  # a number goes with its unit
    before, after, have = (_children(found, (held, old, new)) for found in (old, new, held))
    for key in dict.fromkeys((*before, *after)):
        if not _same(before.get(key), after.get(key)):
            _child(held, have.get(key), before.get(key), after.get(key))


def _attributes(held: Element, old: Element, new: Element) -> None:
    for name in (*old.attrib, *(name for name in new.attrib if name not in old.attrib)):
        value = new.get(name)
        if old.get(name) == value:
            continue
        if value is None:
            held.attrib.pop(name, "")
        else:
            held.set(name, value)


def _children(parent: Element, trees: Iterable[Element]) -> dict[Key, Element]:
    """The children by tag; where a tag stands more than once in one of the trees, by what tells them apart."""
    many = {str(child.tag) for tree in trees for child in tree if len(tree.findall(str(child.tag))) > 1}
    found: dict[Key, Element] = {}
    for child in parent:
        tag = str(child.tag)
        ident = next((child.get(name, "") for name in _IDENTIFIERS if child.get(name)), "") or _text_of(child)
        found[(tag, ident) if tag in many else (tag,)] = child
    return found


def _metadata(result: Element, new: Element | None) -> None:
    """Virtd's own element; what others keep there is theirs."""
    place = result.find("metadata")
    if place is None:
        place = element("metadata")
        result.insert(0, place)
    _drop(place, f"{{{NAMESPACE}}}guest")
    if new is not None:
        for found in new:
            place.append(copy.deepcopy(found))


def _command_line(result: Element, old: Element | None, new: Element | None) -> None:
    """Arguments come in runs (an option and its value): the old run goes as a whole, the new one is added."""
    place = result.find(f"{_QEMU}commandline")
    if place is None:
        place = etree.SubElement(result, f"{_QEMU}commandline", nsmap={"qemu": _QEMU.strip("{}")})
    for run in (old, new):  # the new one goes as well, so that twice is once
        _take_out(place, [] if run is None else [found.get("value") for found in run])
    for found in () if new is None else new:
        place.append(copy.deepcopy(found))
    if not len(place):
        result.remove(place)


def _take_out(place: Element, run: list[str | None]) -> None:
    values = [found.get("value") for found in place]
    for start in range(len(values) - len(run) + 1 if run else 0):
        if values[start : start + len(run)] == run:
            for found in list(place)[start : start + len(run)]:
                place.remove(found)
            return


def _same(first: Element | None, second: Element | None) -> bool:
    return _text_of(first) == _text_of(second)


def _text_of(found: Element | None) -> str:
    """A normal form: equal for elements that say the same."""
    if found is None:
        return ""
    twin = copy.deepcopy(found)
    twin.tail = None
    for part in twin.iter():
        part.tail = None
        if part.text is not None and not part.text.strip():
            part.text = None
    return etree.tostring(twin, method="c14n").decode()
