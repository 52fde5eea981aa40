"""What only the two libvirt hosts know of a migration: processors, memory, devices, bridges, files.  Reads."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any, Final
from uuid import UUID

import libvirt

from virtd.backend.api import HostConfig
from virtd.backend.facets_migration import MigrationOrder
from virtd.backend.shared import option_of, shared_by_option
from virtd.libvirt.connections import HostConnections
from virtd.libvirt.guests import Guests
from virtd.libvirt.migration_policy import Objections
from virtd.libvirt.migration_route import is_here
from virtd.libvirt.storage_objects import source_volume
from virtd.libvirt.xml.build import Element, attribute, integer, parse, text
from virtd.libvirt.xml.storage import PoolXml
from virtd.model.migration import FindingSeverity, MigrationFinding
from virtd.model.migration import MigrationReason as R

_C, _W, _I = FindingSeverity.CRITICAL, FindingSeverity.WARNING, FindingSeverity.INFORMATION
_OWN: Final = ("/var/lib/libvirt", "/etc/libvirt", "/run/libvirt", "/var/cache/libvirt", "/var/log/libvirt")
"""Each private daemon of a machine has its own of these."""
_UNITS: Final = {"KiB": 1 << 10, "MiB": 1 << 20, "GiB": 1 << 30, "b": 1, "bytes": 1}
_HOST_CPUS: Final = ("host-passthrough", "maximum")
_Add = Callable[..., None]


@dataclass(frozen=True, slots=True)
class _Source:
    """The guest and its host, as far as they matter to the target."""

    xml: Element
    host_cpu: str
    hypervisor: int
    memory_bytes: int


class Checker:
    """Looks at a guest's host and at the one that it is to go to.

    :param objections: what only the driver itself knows.
    """

    def __init__(self, connections: HostConnections, guests: Guests, objections: Objections) -> None:
        self._connections: Final = connections
        self._guests: Final = guests
        self._objections: Final = objections

    async def shared_paths(
        self, paths: Sequence[str], here: HostConfig, there: HostConfig, other: HostConnections
    ) -> Mapping[str, str]:
        """Which files are the same file on both hosts, and how that is known."""
        found = shared_by_option(paths, option_of(here.options), option_of(there.options))
        if is_here(here) and is_here(there):
            for path in paths:
                if not path.startswith(tuple(f"{own}/" for own in _OWN)):
                    found.setdefault(path, "both hosts are this machine")
        rest = [path for path in paths if path not in found]
        if rest:
            mine = await self._connections.call("virConnectListAllStoragePools", _mounts)
            theirs = await other.call("virConnectListAllStoragePools", _mounts)
            for path in rest:
                for directory, source in mine.items():
                    if theirs.get(directory) == source and PurePosixPath(path).is_relative_to(directory):
                        found[path] = f"both hosts have mounted {source} at {directory}"
        return found

    async def check(
        self, uuid: UUID, order: MigrationOrder, other: HostConnections, *, live: bool
    ) -> Sequence[MigrationFinding]:
        """Every finding."""
        findings: list[MigrationFinding] = []

        def look(connection: Any) -> _Source:
            domain = connection.lookupByUUID(uuid.bytes)
            flags = libvirt.VIR_DOMAIN_XML_MIGRATABLE if live else libvirt.VIR_DOMAIN_XML_INACTIVE
            xml = parse(domain.XMLDesc(flags))
            host = parse(connection.getCapabilities()).find("host")
            cpu = None if host is None else host.find("cpu")
            if live:
                findings.extend(self._objections(domain, xml, order))
            return _Source(xml, "" if cpu is None else _plain(cpu), connection.getVersion(), _memory(xml))

        source = await self._connections.call("virDomainGetXMLDesc", look)

        def add(severity: FindingSeverity, reason: str, message: str, remedy: str = "", subject: str = "") -> None:
            findings.append(MigrationFinding(severity, reason, message, remedy, subject))

        def compare(connection: Any) -> None:
            _hypervisor(connection, source, add, live=live)
            _cpu(connection, source, add, live=live)
            _memory_left(connection, source, add)
            _bridges(connection, source, add)
            _files(connection, source, add, live=live)

        _devices(source, add, live=live)
        await other.call("virConnectCompareHypervisorCPU", compare)
        return findings


def _mounts(connection: Any) -> dict[str, str]:
    """Directories that active pools have mounted from elsewhere, and from where."""
    found: dict[str, str] = {}
    for pool in connection.listAllStoragePools(libvirt.VIR_CONNECT_LIST_STORAGE_POOLS_ACTIVE):
        with contextlib.suppress(libvirt.libvirtError):  # it has just gone
            xml = PoolXml.parse(pool.XMLDesc(0))
            if xml.source and xml.path and ":" in xml.source:
                found[xml.path.rstrip("/")] = xml.source
    return found


def _plain(element: Element) -> str:
    from lxml import etree

    return etree.tostring(element, encoding="unicode")


def _memory(xml: Element) -> int:
    return (integer(text(xml, "memory")) or 0) * _UNITS.get(attribute(xml, "memory", "unit") or "KiB", 1)


def _hypervisor(connection: Any, source: _Source, add: _Add, *, live: bool) -> None:
    """The machine's type and the age of the hypervisor."""
    xml = source.xml
    kind, arch = xml.get("type"), attribute(xml, "os/type", "arch")
    machine = attribute(xml, "os/type", "machine")
    try:
        connection.getDomainCapabilities(None, arch or None, machine or None, kind, 0)
    except libvirt.libvirtError as error:
        add(
            _C, R.MACHINE_MISSING, f"the target has no machine {machine} of kind {kind}: {error.get_error_message()}",
            "Install a newer hypervisor there, or stop the guest and choose a machine that both have (spec.machine).",
            "machine",
        )  # fmt: skip
    version = connection.getVersion()
    if live and version < source.hypervisor:
        add(
            _W, R.HYPERVISOR_OLDER,
            f"the target's hypervisor is {_words(version)}, older than the source's {_words(source.hypervisor)}: "
            "hypervisors promise to take guests from older ones only",
            "Upgrade the target first.",
        )  # fmt: skip


def _words(version: int) -> str:
    return f"{version // 1_000_000}.{version // 1000 % 1000}.{version % 1000}"


def _cpu(connection: Any, source: _Source, add: _Add, *, live: bool) -> None:
    """Whether the processor that the guest sees now can be had there."""
    xml = source.xml
    cpu = xml.find("cpu")
    if cpu is None:
        return
    mode = cpu.get("mode") or "custom"
    if not live and mode != "custom":
        return  # it gets the target's at its next start
    grave = _C if live else _W
    remedy = "Choose a host with the same or a newer processor, or stop the guest and set spec.cpu to an older model."
    try:
        if mode in _HOST_CPUS and xml.get("type") == "kvm":
            found = connection.compareCPU(source.host_cpu, 0)
        elif mode == "custom" and cpu.find("model") is not None:
            arch, machine = attribute(xml, "os/type", "arch"), attribute(xml, "os/type", "machine")
            found = connection.compareHypervisorCPU(None, arch, machine, xml.get("type"), _plain(cpu), 0)
        else:
            return
    except libvirt.libvirtError as error:
        add(
            _W, R.CPU_UNKNOWN, f"whether the target has the guest's processor cannot be told: "
            f"{error.get_error_message()}", "Try it: where it has not, the guest stays where it is.", "cpu",
        )  # fmt: skip
        return
    what = "the host's own processor" if mode in _HOST_CPUS else f"the processor {text(cpu, 'model')}"
    if found == libvirt.VIR_CPU_COMPARE_INCOMPATIBLE:
        add(grave, R.CPU_INCOMPATIBLE, f"the guest sees {what}, which the target cannot give it", remedy, "cpu")
    elif found == libvirt.VIR_CPU_COMPARE_SUPERSET and mode in _HOST_CPUS:
        add(_W, R.CPU_INCOMPATIBLE, f"the guest sees {what}, and the target has another, richer one",
            "A model that both hosts have (spec.cpu) is safe in both directions.", "cpu")  # fmt: skip


def _memory_left(connection: Any, source: _Source, add: _Add) -> None:
    total, free = _memory_of_host(connection)
    needed = source.memory_bytes
    if total and needed > total:
        add(_C, R.MEMORY_SHORT, f"the guest has {needed >> 20} MiB of memory, the target {total >> 20} MiB in all",
            "Choose a larger host.", "memory_bytes")  # fmt: skip
    elif total and needed > free:
        add(_W, R.MEMORY_SHORT, f"the guest has {needed >> 20} MiB of memory, the target {free >> 20} MiB free",
            "Stop or move other guests there.", "memory_bytes")  # fmt: skip


def _memory_of_host(connection: Any) -> tuple[int, int]:
    """Bytes in all, and free; zeros: not known."""
    try:
        stats = connection.getMemoryStats(libvirt.VIR_NODE_MEMORY_STATS_ALL_CELLS, 0)
    except libvirt.libvirtError:
        # A hypervisor that owns the memory itself (Xen).
        with contextlib.suppress(libvirt.libvirtError):
            return connection.getInfo()[1] << 20, connection.getFreeMemory()
        return 0, 0
    return stats.get("total", 0) * 1024, sum(stats.get(part, 0) for part in ("free", "cached", "buffers")) * 1024


def _devices(source: _Source, add: _Add, *, live: bool) -> None:
    devices = source.xml.find("devices")
    if devices is None:
        return
    if devices.find("hostdev") is not None:
        add(
            _C if live else _W, R.DEVICE_BLOCKS, "the guest has a device of its host",
            "Detach it first." if live else "Its next start needs such a device on the target, at the same address.",
            "host_devices",
        )  # fmt: skip
    for filesystem in devices.findall("filesystem"):
        directory = attribute(filesystem, "source", "dir")
        add(
            _C if live else _W, R.DEVICE_BLOCKS, f"the guest shares the directory {directory} with its host",
            "Detach it (spec.filesystems), or migrate the guest stopped." if live
            else "Its next start needs that directory on the target.",
            "filesystems",
        )  # fmt: skip
    if devices.find("tpm/backend[@type='emulator']") is not None and not live:
        add(_C, R.DEVICE_BLOCKS, "the guest has a TPM, whose secrets lie on the source",
            "Start the guest and migrate it live, which takes them along.", "tpm")  # fmt: skip


def _bridges(connection: Any, source: _Source, add: _Add) -> None:
    wanted = {attribute(one, "source", "bridge") for one in source.xml.findall("devices/interface[@type='bridge']")}
    for bridge in sorted(wanted - {""}):
        try:
            connection.interfaceLookupByName(bridge)
        except libvirt.libvirtError as error:
            missing = error.get_error_code() == libvirt.VIR_ERR_NO_INTERFACE
            add(
                _C if missing else _W, R.NETWORK_MISSING,
                f"the target has no bridge {bridge}" if missing
                else f"whether the target has a bridge {bridge} cannot be told",
                f"Make the bridge {bridge} there.", "interfaces",
            )  # fmt: skip


def _files(connection: Any, source: _Source, add: _Add, *, live: bool) -> None:
    """Files that the hypervisor opens when it starts the guest, on either host."""
    for what, path in _needed(source.xml):
        try:
            with source_volume(connection, path):
                continue
        except libvirt.libvirtError as error:
            known = error.get_error_code() in (libvirt.VIR_ERR_NO_STORAGE_VOL, libvirt.VIR_ERR_NO_STORAGE_POOL)
            known = known or error.get_error_domain() == libvirt.VIR_FROM_STORAGE
            add(
                _C if live and known else _W, R.FILE_MISSING,
                f"the target has no {path} ({what})" if known else f"whether the target has {path} cannot be told",
                "Copy it there, to the same place.", what,
            )  # fmt: skip


def _needed(xml: Element) -> Iterator[tuple[str, str]]:
    for what in ("kernel", "initrd", "loader"):
        path = text(xml, f"os/{what}")
        if path:
            yield what, path
