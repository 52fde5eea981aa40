"""Which fields of a running guest wait for its next start: what it runs with against what is written down."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from virtd.model.changes import diff
from virtd.model.devices import CpuSpec
from virtd.model.guest import GuestSpec


def pending_fields(running: GuestSpec, config: GuestSpec) -> tuple[str, ...]:
    """Paths as of :func:`virtd.model.changes.diff`, in its order.

    A difference is left out where the running guest's description does not tell it from the hypervisor's
    own additions: features that libvirt writes out for a CPU model, and a ceiling that nobody asked for.
    """
    running = replace(running, cpu=_comparable(running.cpu, config.cpu))
    return tuple(_relevant(running, config))


def _relevant(running: GuestSpec, config: GuestSpec) -> Iterator[str]:
    for change in diff(running, config):
        if change.field == "spec.max_memory_bytes" and _same_most(
            _most_memory(running), _most_memory(config), config.memory_bytes
        ):
            continue
        if change.field == "spec.max_vcpus" and _same_most(_most_vcpus(running), _most_vcpus(config), config.vcpus):
            continue
        yield change.field


def _same_most(running: int, config: int, asked: int | None) -> bool:
    return config in (running, asked)


def _most_memory(spec: GuestSpec) -> int:
    return max(spec.max_memory_bytes or 0, spec.memory_bytes or 0)


def _most_vcpus(spec: GuestSpec) -> int:
    return max(spec.max_vcpus or 0, spec.vcpus or 0)


def _comparable(running: CpuSpec | None, config: CpuSpec | None) -> CpuSpec | None:
    """The running guest's CPU without what libvirt has worked out from the configured one."""
    if running is None or config is None:
        return None if config is None or config == CpuSpec() else running
    features = running.features
    if {(f.name, f.policy) for f in config.features} <= {(f.name, f.policy) for f in features}:
        features = config.features
    model = config.model if config.model == "host-model" else running.model
    # The virtualization extensions are among the features that a model is written out with.
    written_out = config.model not in ("", "host-passthrough", "maximum")
    nested = config.nested if written_out and config.nested is None else running.nested
    return replace(running, features=features, model=model, nested=nested)
