"""Facts about a host that every hypervisor behind libvirt tells in the same way."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import libvirt

from virtd.backend import capabilities as ids
from virtd.libvirt.pools import missing_kinds
from virtd.libvirt.xml.build import Element, parse, text
from virtd.model.host import AcceleratorStatus, Capability, HostFacts

_KIB: Final = 1024
_MIB: Final = 1024 * 1024
VOLUME_ABILITIES: Final = (ids.VOLUME_RESIZE, ids.VOLUME_CLONE, ids.VOLUME_TRANSFER)


@dataclass(frozen=True, slots=True)
class NativeFacts:
    """What libvirt says."""

    hypervisor: str
    hypervisor_version: str
    api_version: str
    hostname: str
    architecture: str
    cpu_model: str
    cpus: int | None
    memory_bytes: int | None
    domain_kinds: frozenset[str]
    machines: tuple[str, ...]


def read(connection: Any, names: Mapping[str, str]) -> NativeFacts:
    """Ask (several native calls, on a worker).  The first contact can take seconds: emulators are examined.

    :param names: what libvirt calls the hypervisor -> what people call it.
    """
    root = parse(connection.getCapabilities())
    info = connection.getInfo()
    architecture = text(root, "host/cpu/arch") or str(info[0])
    # One entry for each type of guest that the architecture has: Xen's are xenpv, xenpvh and xenfv.
    guests = root.findall(f"guest/arch[@name='{architecture}']")
    kinds = frozenset(found.get("type", "") for guest in guests for found in guest.findall("domain"))
    machines = [(found.text or "").strip() for guest in guests for found in guest.findall("machine")]
    hypervisor = connection.getType()
    return NativeFacts(
        hypervisor=names.get(hypervisor, hypervisor),
        hypervisor_version=version(optional(connection.getVersion)),
        api_version=version(optional(connection.getLibVersion)),
        hostname=optional(connection.getHostname) or "",
        architecture=architecture,
        cpu_model=text(root, "host/cpu/model"),
        cpus=info[2] or None,
        memory_bytes=_memory(connection, info),
        domain_kinds=kinds,
        machines=tuple(sorted(dict.fromkeys(machines))),
    )


def host_facts(
    native: NativeFacts, statuses: Sequence[AcceleratorStatus], capabilities: tuple[Capability, ...]
) -> HostFacts:
    """As the SPI wants it.  The default accelerator is the first that is usable."""
    usable = [status.accelerator for status in statuses if status.usable]
    return HostFacts(
        hypervisor=native.hypervisor,
        hypervisor_version=native.hypervisor_version,
        api="libvirt",
        api_version=native.api_version,
        hostname=native.hostname,
        architecture=native.architecture,
        cpu_model=native.cpu_model,
        cpus=native.cpus,
        memory_bytes=native.memory_bytes,
        default_accelerator=usable[0] if usable else "",
        accelerators=tuple(statuses),
        capabilities=capabilities,
        machines=native.machines,
    )


def version(number: int | None) -> str:
    """Libvirt's 9000000 as ``9.0.0``; ``""`` for unknown."""
    if not number:
        return ""
    return f"{number // 1_000_000}.{number // 1000 % 1000}.{number % 1000}"


def _memory(connection: Any, info: Sequence[Any]) -> int | None:
    """getInfo() is wrong on hosts whose NUMA cells are odd: it is the last resort."""
    stats = optional(lambda: connection.getMemoryStats(libvirt.VIR_NODE_MEMORY_STATS_ALL_CELLS, 0))
    if stats and stats.get("total"):
        return int(stats["total"]) * _KIB
    return int(info[1]) * _MIB or None


def domain_capabilities(connection: Any, architecture: str, kind: str, machine: str | None = None) -> Element | None:
    """What libvirt says of guests of this type (``kvm``, ``qemu``); None where it says nothing."""
    answer = optional(lambda: connection.getDomainCapabilities(None, architecture, machine, kind, 0))
    return None if answer is None else parse(answer)


def missing_drivers(connection: Any) -> dict[str, str]:
    """What this host lacks because its libvirt has no driver for it, or not the programs that the driver needs."""
    found: dict[str, str] = {}
    for id_, call, what in (
        (ids.NETWORKS, connection.numOfNetworks, "networks"),
        (ids.POOLS, connection.numOfStoragePools, "storage pools"),
    ):
        if optional(call) is None:
            found[id_] = f"the host's libvirt was built or installed without its driver for {what}"
    if ids.NETWORKS in found:
        found[ids.NETWORK_CHANGES] = found[ids.NETWORKS]
    elif connection.getURI().partition("?")[0].endswith("/session"):
        found[ids.NETWORK_CHANGES] = "a user's own libvirt may not change the host's network: use qemu:///system"
    if ids.POOLS in found:
        for id_ in (ids.VOLUMES, ids.CLOUD_INIT, ids.POOL_MANAGE, ids.POOL_LOGICAL, ids.POOL_NFS, *VOLUME_ABILITIES):
            found[id_] = found[ids.POOLS]
    else:
        found.update(missing_kinds(connection))
    return found


def optional(call: Any) -> Any:
    """A fact that a driver may not offer: None then.  A lost connection is not such a case."""
    try:
        return call()
    except libvirt.libvirtError as error:
        if error.get_error_code() in (
            libvirt.VIR_ERR_NO_SUPPORT,
            libvirt.VIR_ERR_INVALID_ARG,
            libvirt.VIR_ERR_ARGUMENT_UNSUPPORTED,
            libvirt.VIR_ERR_CONFIG_UNSUPPORTED,
            libvirt.VIR_ERR_OPERATION_UNSUPPORTED,
        ):
            return None
        raise
