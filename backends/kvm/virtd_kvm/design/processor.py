"""The guest's CPU: model, topology, features, NUMA cells, and where it runs."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from virtd.backend.api import ResolvedGuest
from virtd.backend.notes import Notes
from virtd.libvirt.words import CPU_MODES, NUMA_MODES, VIRTUALIZATION
from virtd.libvirt.xml.cpu import Cpu, NumaCell, Topology
from virtd.libvirt.xml.tuning import CpuTune, NumaTune
from virtd.model.devices import CpuFeaturePolicy, CpuSpec, NumaPolicy
from virtd.model.guest import Accelerator
from virtd.model.ranges import parse_ranges
from virtd_kvm.design.machine import kind_of
from virtd_kvm.design.platform import Platform

_POLICIES: Final = {CpuFeaturePolicy.REQUIRE: "require", CpuFeaturePolicy.DISABLE: "disable"}


def cpu_of(guest: ResolvedGuest, platform: Platform, notes: Notes) -> Cpu:
    """``<cpu>``."""
    spec = guest.cpu or CpuSpec()
    mode, model = _model(guest, spec, platform, notes)
    topology = None
    if spec.topology is not None:
        asked = spec.topology
        topology = Topology(asked.sockets, asked.dies or 1, asked.cores, asked.threads)
        if asked.threads > 1 and mode == "maximum" and guest.accelerator is Accelerator.TCG:
            reason = "the guest sees the threads of an emulated `maximum` CPU as cores"
            notes.degrade("spec.cpu.topology.threads", reason)
    numa = guest.numa.nodes if guest.numa is not None else ()
    return Cpu(
        mode=mode,
        model=model,
        topology=topology,
        features=(
            *((feature.name, _POLICIES[feature.policy]) for feature in spec.features),
            *_nested(guest, mode, platform, notes),
        ),
        cells=tuple(NumaCell(node.vcpus, node.memory_bytes) for node in numa),
    )


def _model(guest: ResolvedGuest, spec: CpuSpec, platform: Platform, notes: Notes) -> tuple[str, str]:
    """The mode and, for a named model, the model."""
    if platform.test:
        return "", ""
    accelerated = guest.accelerator is Accelerator.KVM
    if not spec.model:
        # TCG needs ``maximum`` to offer what it can emulate.
        return ("host-passthrough" if accelerated else "maximum"), ""
    if spec.model in CPU_MODES:
        if spec.model != "maximum" and not accelerated:
            notes.reject("spec.cpu.model", f"{spec.model} is the host's own CPU, which needs KVM", "maximum")
        return spec.model, ""
    known = platform.cpu_models.get(kind_of(guest, platform), frozenset())
    if known and spec.model not in known:
        notes.reject(
            "spec.cpu.model", f"guests of this host cannot have a CPU {spec.model!r}", *CPU_MODES, *sorted(known)
        )
    return "custom", spec.model


def _nested(guest: ResolvedGuest, mode: str, platform: Platform, notes: Notes) -> Iterator[tuple[str, str]]:
    wanted, emulated = (guest.cpu or CpuSpec()).nested, guest.accelerator is Accelerator.TCG
    if wanted is None or platform.test:
        return
    if not platform.pc:
        notes.reject("spec.cpu.nested", f"is not a choice on {platform.arch}")
    elif not wanted:
        if emulated and mode == "maximum":
            # Seen with 7.2: the kernel boots, and the first programs in the guest fail at random.
            reason = "QEMU's emulation does not run guests well whose CPU is `maximum` without svm: name a model"
            notes.reject("spec.cpu.nested", reason, "true", *sorted(platform.cpu_models.get("qemu", ())))
        yield from ((name, "disable") for name in VIRTUALIZATION)
    elif emulated:
        yield ("svm", "require")  # the only one that it emulates, whatever the host's CPU is
    else:
        yield ("vmx" if platform.cpu_vendor == "Intel" else "svm", "require")


def cpu_tune_of(guest: ResolvedGuest, platform: Platform, notes: Notes) -> CpuTune:
    """``<cputune>``."""
    spec = guest.cpu or CpuSpec()
    for index, pin in enumerate(spec.pins):
        _known(pin.host_cpus, platform.cpus, f"spec.cpu.pins[{index}].host_cpus", "CPU", notes)
    _known(spec.emulator_host_cpus, platform.cpus, "spec.cpu.emulator_host_cpus", "CPU", notes)
    return CpuTune(tuple((pin.vcpu, pin.host_cpus) for pin in spec.pins), spec.emulator_host_cpus)


def numa_tune_of(guest: ResolvedGuest, platform: Platform, notes: Notes) -> NumaTune:
    """``<numatune>``: by cell, and for the emulator too where every cell says where its memory lies."""
    if guest.numa is None:
        return NumaTune()
    nodes = guest.numa.nodes
    for index, node in enumerate(nodes):
        field = f"spec.numa.nodes[{index}].host_nodes"
        _known(node.host_nodes, platform.nodes, field, "NUMA node", notes)
        if guest.numa.policy is NumaPolicy.PREFERRED and len(parse_ranges(node.host_nodes)) > 1:
            notes.reject(field, "with the policy PREFERRED it can be one node only")
    cells = tuple((index, node.host_nodes) for index, node in enumerate(nodes) if node.host_nodes)
    if not cells:
        return NumaTune()
    every = sorted({number for node in nodes for number in parse_ranges(node.host_nodes)})
    # ``preferred`` takes one node, also for the emulator.
    told = len(cells) == len(nodes) and not (guest.numa.policy is NumaPolicy.PREFERRED and len(every) > 1)
    return NumaTune(NUMA_MODES[guest.numa.policy], ",".join(map(str, every)) if told else "", cells)


def _known(ranges: str, known: frozenset[int], field: str, what: str, notes: Notes) -> None:
    if not known:
        return
    absent = sorted(set(parse_ranges(ranges)) - known)
    if absent:
        listed = ",".join(map(str, sorted(known)))
        notes.reject(field, f"the host has no {what} {absent[0]}; it has {listed}", listed)
