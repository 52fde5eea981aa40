"""Whether what a spec says of CPUs, memory and NUMA nodes is right in itself."""

from __future__ import annotations

import re
from math import prod
from typing import Final

from virtd.model.devices import CpuSpec, NumaSpec
from virtd.model.guest import GuestSpec
from virtd.model.names import shown
from virtd.model.ranges import format_ranges, parse_ranges
from virtd.service.violations import Violations

MEMORY_MIN: Final = 16 * 2**20
MEMORY_MAX: Final = 2**44
VCPUS_MAX: Final = 512
NODES_MAX: Final = 64
NODE_MIN: Final = 2**20
PAGE_MIN: Final = 16 * 2**10

_MODEL: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.+-]{0,63}")
_FEATURE: Final = re.compile(r"[a-z0-9][a-z0-9_.-]{0,63}")
_NESTED: Final = ("svm", "vmx")


def check_processor(wrong: Violations, spec: GuestSpec, prefix: str) -> None:
    """``vcpus``, ``max_vcpus`` and ``cpu``."""
    if spec.vcpus is not None and not 1 <= spec.vcpus <= VCPUS_MAX:
        wrong.add(f"{prefix}.vcpus", f"must be 1 to {VCPUS_MAX}, not {spec.vcpus}")
    most = most_vcpus(spec)
    if spec.max_vcpus is not None:
        if not 1 <= spec.max_vcpus <= VCPUS_MAX:
            wrong.add(f"{prefix}.max_vcpus", f"must be 1 to {VCPUS_MAX}, not {spec.max_vcpus}")
        elif spec.max_vcpus < (spec.vcpus or 1):
            wrong.add(
                f"{prefix}.max_vcpus", f"{spec.max_vcpus} is less than vcpus, {spec.vcpus or 1}", str(spec.vcpus or 1)
            )
    if spec.cpu is not None:
        _check_topology(wrong, spec.cpu, most, f"{prefix}.cpu.topology")
        _check_model(wrong, spec.cpu, f"{prefix}.cpu")
        _check_pins(wrong, spec.cpu, most, f"{prefix}.cpu")


def check_memory(wrong: Violations, spec: GuestSpec, prefix: str) -> None:
    """``memory_bytes``, ``max_memory_bytes``, ``memory`` and ``numa``."""
    for name, value in (("memory_bytes", spec.memory_bytes), ("max_memory_bytes", spec.max_memory_bytes)):
        if value is None:
            if name == "memory_bytes":
                wrong.add(f"{prefix}.memory_bytes", "is required")
        elif not MEMORY_MIN <= value <= MEMORY_MAX:
            wrong.add(f"{prefix}.{name}", f"must be {MEMORY_MIN} (16 MiB) to {MEMORY_MAX} (16 TiB), not {value}")
    least, most = spec.memory_bytes or 0, spec.max_memory_bytes
    if most is not None and MEMORY_MIN <= most < least:
        wrong.add(f"{prefix}.max_memory_bytes", f"{most} is less than memory_bytes, {least}", str(least))
    if spec.memory is not None:
        page = spec.memory.hugepage_bytes
        if page and (page < PAGE_MIN or page & (page - 1)):
            wrong.add(f"{prefix}.memory.hugepage_bytes", f"{page} is not the size of a page: a power of two", "2097152")
        if spec.memory.balloon is False and most is not None and most > least:
            wrong.add(
                f"{prefix}.memory.balloon", "only by a balloon can the guest have less than max_memory_bytes", "true"
            )
    if spec.numa is not None:
        _check_numa(wrong, spec.numa, most_vcpus(spec), most or least, f"{prefix}.numa")


def most_vcpus(spec: GuestSpec) -> int:
    """The largest number of virtual CPUs that the guest can have."""
    return max(spec.max_vcpus or 0, spec.vcpus or 1)


def _check_topology(wrong: Violations, cpu: CpuSpec, most: int, field: str) -> None:
    top = cpu.topology
    if top is None:
        return
    for name in ("sockets", "cores", "threads"):
        if getattr(top, name) < 1:
            wrong.add(f"{field}.{name}", "must be at least 1")
            return
    product = prod((top.sockets, top.dies or 1, top.cores, top.threads))
    if product != most:
        wrong.add(
            field,
            f"{top.sockets} sockets x {top.dies or 1} dies x {top.cores} cores x {top.threads} threads are {product} "
            f"virtual CPUs, and the guest has up to {most} (max_vcpus)",
        )


def _check_model(wrong: Violations, cpu: CpuSpec, field: str) -> None:
    if cpu.model and not _MODEL.fullmatch(cpu.model):
        wrong.add(f"{field}.model", f"{shown(cpu.model)} is not the name of a CPU", "maximum")
    seen: set[str] = set()
    for index, feature in enumerate(cpu.features):
        name = f"{field}.features[{index}].name"
        if not _FEATURE.fullmatch(feature.name):
            wrong.add(name, f"{shown(feature.name)} is not the name of a feature")
        elif feature.name in _NESTED:
            wrong.add(name, f"whether the guest has {feature.name} is what cpu.nested says")
        elif feature.name in seen:
            wrong.add(name, f"{feature.name} is there twice")
        seen.add(feature.name)


def _check_pins(wrong: Violations, cpu: CpuSpec, most: int, field: str) -> None:
    seen: set[int] = set()
    for index, pin in enumerate(cpu.pins):
        if pin.vcpu >= most:
            wrong.add(
                f"{field}.pins[{index}].vcpu", f"there is no virtual CPU {pin.vcpu}: the guest has 0 to {most - 1}"
            )
        elif pin.vcpu in seen:
            wrong.add(f"{field}.pins[{index}].vcpu", f"virtual CPU {pin.vcpu} is pinned twice")
        seen.add(pin.vcpu)
        _ranges(wrong, pin.host_cpus, f"{field}.pins[{index}].host_cpus", required=True)
    _ranges(wrong, cpu.emulator_host_cpus, f"{field}.emulator_host_cpus")


def _check_numa(wrong: Violations, numa: NumaSpec, most: int, memory: int, field: str) -> None:
    if not 1 <= len(numa.nodes) <= NODES_MAX:
        wrong.add(f"{field}.nodes", f"must be 1 to {NODES_MAX}, not {len(numa.nodes)}")
        return
    before = len(wrong.found)
    placed: list[int] = []
    for index, node in enumerate(numa.nodes):
        name = f"{field}.nodes[{index}]"
        vcpus = _ranges(wrong, node.vcpus, f"{name}.vcpus", required=True)
        for vcpu in vcpus:
            if vcpu >= most:
                wrong.add(f"{name}.vcpus", f"there is no virtual CPU {vcpu}: the guest has 0 to {most - 1}")
                break
            if vcpu in placed:
                wrong.add(f"{name}.vcpus", f"virtual CPU {vcpu} is in two nodes")
                break
        placed.extend(vcpus)
        if node.memory_bytes < NODE_MIN:
            wrong.add(f"{name}.memory_bytes", f"must be at least {NODE_MIN} (1 MiB), not {node.memory_bytes}")
        _ranges(wrong, node.host_nodes, f"{name}.host_nodes")
    if len(wrong.found) > before:
        return
    left = sorted(set(range(most)) - set(placed))
    if left:
        wrong.add(f"{field}.nodes", f"virtual CPUs {format_ranges(left)} are in no node")
    total = sum(node.memory_bytes for node in numa.nodes)
    if total != memory:
        wrong.add(f"{field}.nodes", f"the nodes have {total} bytes together, and the guest has {memory}")


def _ranges(wrong: Violations, text: str, field: str, *, required: bool = False) -> tuple[int, ...]:
    if required and not text:
        wrong.add(field, "is required")
        return ()
    try:
        return parse_ranges(text)
    except ValueError as error:
        wrong.add(field, str(error), "0-3,8")
        return ()
