"""What the designer knows of a Xen host, and how the session learns it: a handful of native calls."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from virtd.backend import capabilities as ids
from virtd.libvirt.facts import missing_drivers, optional
from virtd.libvirt.xml.build import Element, attribute, integer, parse, text
from virtd.model.host import ControlDomain
from virtd_xen import capabilities
from virtd_xen.dialect import HVM, MACHINES, PVH

CONTROL_DOMAIN_ID: Final = 0
_KIB: Final = 1024


@dataclass(frozen=True, slots=True)
class Platform:
    """A host, as far as it decides what a guest becomes.  An empty collection is "not known".

    :param arch: libvirt's name of the guests' architecture.
    :param missing: capability -> why this host has it not.
    :param machines: the types of guests that the host can have.
    :param cpus: numbers of the host's CPUs.
    :param version: libvirt's, as ``(9, 0, 0)``.
    """

    arch: str = "x86_64"
    missing: Mapping[str, str] = field(default_factory=lambda: dict(capabilities.UNSUPPORTED))
    machines: tuple[str, ...] = MACHINES
    cpus: frozenset[int] = frozenset()
    version: tuple[int, int, int] = (9, 0, 0)


def learn(connection: Any) -> Platform:
    """Ask the host (on a worker)."""
    root = parse(connection.getCapabilities())
    arch = text(root, "host/cpu/arch") or str(connection.getInfo()[0])
    found = {
        (machine.text or "").strip()
        for entry in root.findall(f"guest/arch[@name='{arch}']")
        for machine in entry.findall("machine")
    }
    machines = tuple(machine for machine in MACHINES if machine in found)
    missing = {**capabilities.UNSUPPORTED, **missing_drivers(connection)}
    if HVM not in machines:
        missing[ids.ACCELERATION] = capabilities.NO_HVM
        missing[ids.DISK_BOOT] = f"{capabilities.NO_HVM}; and others boot a kernel that lies on the host"
    if HVM not in machines and PVH not in machines and not machines:
        missing[ids.LIFECYCLE] = "libvirt says that the host can run no type of Xen guest"
    if attribute(root, "host/iommu", "support") == "no":
        missing[ids.PASSTHROUGH_PCI] = (
            "the host has no IOMMU that is on, without which a device could reach all memory: switch on VT-d or AMD-Vi "
            "in its firmware, and do not boot Xen with iommu=off"
        )
    number = connection.getLibVersion()
    return Platform(
        arch=arch,
        missing=missing,
        machines=machines,
        cpus=frozenset(_numbers(root.findall("host/topology/cells/cell/cpus/cpu"))),
        version=(number // 1_000_000, number // 1000 % 1000, number % 1000),
    )


def control_domain(connection: Any) -> ControlDomain | None:
    """Domain-0, which is no guest but the host's own system; None where libvirt does not show it."""
    domain = optional(lambda: connection.lookupByID(CONTROL_DOMAIN_ID))
    if domain is None:
        return None
    _state, most_kib, memory_kib, vcpus, _time = domain.info()
    # "As much as there is" is not a number that says something.
    limited = most_kib < connection.getInfo()[1] * _KIB
    return ControlDomain(
        name=domain.name(),
        vcpus=vcpus or None,
        memory_bytes=memory_kib * _KIB or None,
        max_memory_bytes=most_kib * _KIB if limited else None,
    )


def _numbers(found: Iterable[Element]) -> Iterable[int]:
    return (number for entry in found if (number := integer(entry.get("id") or "")) is not None)
