"""Where a guest's CPUs and memory lie on the host: ``<cputune>``, ``<numatune>``, ``<memoryBacking>``."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Self

from virtd.libvirt.xml.build import Element, attribute, child, element, integer, scaled_attribute

_KIB: Final = 1024


@dataclass(frozen=True, slots=True)
class CpuTune:
    """Pins: (virtual CPU, CPUs of the host) in order, and the CPUs for the emulator's own threads."""

    pins: tuple[tuple[int, str], ...] = ()
    emulator: str = ""

    def build(self) -> Element:
        """The element."""
        tune = element("cputune")
        for vcpu, cpus in self.pins:
            child(tune, "vcpupin", vcpu=vcpu, cpuset=cpus)
        if self.emulator:
            child(tune, "emulatorpin", cpuset=self.emulator)
        return tune

    @classmethod
    def parse(cls, tune: Element | None) -> Self:
        """From an element; virtual CPUs without a pin of their own are not in it."""
        if tune is None:
            return cls()
        pins = [(integer(pin.get("vcpu") or "") or 0, pin.get("cpuset") or "") for pin in tune.findall("vcpupin")]
        return cls(tuple(pins), attribute(tune, "emulatorpin", "cpuset"))


@dataclass(frozen=True, slots=True)
class NumaTune:
    """Which nodes of the host give memory: for all (``nodes``), and by cell (cell, nodes)."""

    mode: str = "strict"
    nodes: str = ""
    cells: tuple[tuple[int, str], ...] = ()

    def build(self) -> Element:
        """The element."""
        tune = element("numatune")
        if self.nodes:
            child(tune, "memory", mode=self.mode, nodeset=self.nodes)
        for cell, nodes in self.cells:
            child(tune, "memnode", cellid=cell, mode=self.mode, nodeset=nodes)
        return tune

    @classmethod
    def parse(cls, tune: Element | None) -> Self:
        """From an element."""
        if tune is None:
            return cls()
        cells = tuple(
            (integer(node.get("cellid") or "") or 0, node.get("nodeset") or "") for node in tune.findall("memnode")
        )
        mode = attribute(tune, "memnode", "mode") or attribute(tune, "memory", "mode") or "strict"
        return cls(mode, attribute(tune, "memory", "nodeset"), cells)


@dataclass(frozen=True, slots=True)
class MemoryBacking:
    """``hugepage_bytes`` 0 is ordinary pages; ``source`` is libvirt's (``memfd``), empty: its default."""

    hugepage_bytes: int = 0
    locked: bool = False
    source: str = ""
    shared: bool = False

    def build(self) -> Element:
        """The element."""
        backing = element("memoryBacking")
        if self.hugepage_bytes:
            child(child(backing, "hugepages"), "page", size=self.hugepage_bytes // _KIB, unit="KiB")
        if self.locked:
            child(backing, "locked")
        if self.source:
            child(backing, "source", type=self.source)
        if self.shared:
            child(backing, "access", mode="shared")
        return backing

    @classmethod
    def parse(cls, backing: Element | None) -> Self:
        """From an element; of several page sizes the first."""
        if backing is None:
            return cls()
        page = backing.find("hugepages/page")
        return cls(
            hugepage_bytes=0 if page is None else (scaled_attribute(page, "size") or 0),
            locked=backing.find("locked") is not None,
            source=attribute(backing, "source", "type"),
            shared=attribute(backing, "access", "mode") == "shared",
        )
