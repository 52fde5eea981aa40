"""``<cpu>``: model, topology, features and the guest's NUMA cells."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Self

from virtd.libvirt.xml.build import Element, child, element, integer, scaled_attribute, text

_KIB: Final = 1024


@dataclass(frozen=True, slots=True)
class Topology:
    """What the guest sees."""

    sockets: int
    dies: int
    cores: int
    threads: int


@dataclass(frozen=True, slots=True)
class NumaCell:
    """One NUMA node of the guest; ``cpus`` as libvirt writes it (``0-1,3``)."""

    cpus: str
    memory_bytes: int


@dataclass(frozen=True, slots=True)
class Cpu:
    """``mode`` is libvirt's; ``model`` is set for ``custom`` only.  Features are (name, policy)."""

    mode: str = ""
    model: str = ""
    topology: Topology | None = None
    features: tuple[tuple[str, str], ...] = ()
    cells: tuple[NumaCell, ...] = ()

    def build(self) -> Element:
        """The element."""
        custom = self.mode == "custom"
        cpu = element("cpu", mode=self.mode or None, match="exact" if custom else None)
        if self.model:
            # A model that the host cannot give must not become another one silently.
            child(cpu, "model", self.model, fallback="forbid")
        if self.topology is not None:
            top = self.topology
            child(cpu, "topology", sockets=top.sockets, dies=top.dies, cores=top.cores, threads=top.threads)
        for name, policy in self.features:
            child(cpu, "feature", policy=policy, name=name)
        if self.cells:
            numa = child(cpu, "numa")
            for index, cell in enumerate(self.cells):
                child(
                    numa,
                    "cell",
                    id=index,
                    cpus=cell.cpus,
                    memory=-(-cell.memory_bytes // _KIB),
                    unit="KiB",
                )
        return cpu

    @classmethod
    def parse(cls, cpu: Element | None) -> Self:
        """From an element.  An active guest's ``custom`` may stand for what was asked as ``host-model``."""
        if cpu is None:
            return cls()
        return cls(
            mode=cpu.get("mode") or "",
            model=text(cpu, "model"),
            topology=_topology(cpu.find("topology")),
            features=tuple(
                (feature.get("name") or "", feature.get("policy") or "require") for feature in cpu.findall("feature")
            ),
            cells=tuple(
                NumaCell(cell.get("cpus") or "", scaled_attribute(cell, "memory") or 0)
                for cell in sorted(cpu.findall("numa/cell"), key=lambda cell: integer(cell.get("id") or "") or 0)
            ),
        )


def _topology(found: Element | None) -> Topology | None:
    if found is None:
        return None
    counts = {key: integer(found.get(key) or "") or 1 for key in ("sockets", "dies", "cores", "threads")}
    return Topology(**counts)
