"""Hosts: one hypervisor endpoint each, and what it can do."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum

from virtd.errors import ErrorRecord


class HostState(StrEnum):
    """CONNECTING: never reached yet.  UNREACHABLE: was or should be there and does not answer."""

    CONNECTING = "CONNECTING"
    CONNECTED = "CONNECTED"
    UNREACHABLE = "UNREACHABLE"


class CapabilityLevel(StrEnum):
    """How well a capability is there.  EMULATED: virtd's core does it by other means, honestly."""

    NATIVE = "NATIVE"
    EMULATED = "EMULATED"
    PARTIAL = "PARTIAL"
    UNSUPPORTED = "UNSUPPORTED"
    UNKNOWN = "UNKNOWN"


class CapabilityProvenance(StrEnum):
    """How virtd knows: the backend says so, this host was probed, or the conformance kit proved it."""

    DECLARED = "DECLARED"
    PROBED = "PROBED"
    VERIFIED = "VERIFIED"


@dataclass(frozen=True, slots=True)
class Capability:
    """One ability of one host: ``id`` is a constant of :mod:`virtd.backend.capabilities`.

    ``reason`` is mandatory for every level but NATIVE: it is what a caller is told.
    ``verified_with`` (versions, those of the host at hand) and ``verified_time`` belong to VERIFIED; see
    :mod:`virtd.backend.verified`.
    """

    id: str
    level: CapabilityLevel
    provenance: CapabilityProvenance
    reason: str = ""
    verified_with: str = ""
    verified_time: datetime | None = None


@dataclass(frozen=True, slots=True)
class AcceleratorStatus:
    """Whether an accelerator really works here, how that was found out, and why (not)."""

    accelerator: str
    usable: bool
    reason: str
    provenance: CapabilityProvenance = CapabilityProvenance.PROBED


@dataclass(frozen=True, slots=True)
class ControlDomain:
    """The host's own system where that is a domain beside the guests (Xen's Domain-0).  Never a guest.

    ``max_memory_bytes`` is what it may grow to; None: all that is free.
    """

    name: str = ""
    vcpus: int | None = None
    memory_bytes: int | None = None
    max_memory_bytes: int | None = None


@dataclass(frozen=True, slots=True)
class GuestDefaults:
    """What a guest gets here where its spec says nothing, as far as that depends on the hypervisor.

    ``cdrom_bus`` is a name of :class:`virtd.model.guest.DiskBus`.  ``kernel_machine`` is the machine of guests that
    boot a kernel directly, ``disk_machine`` that of others; empty: the backend chooses when it defines the guest.
    """

    cdrom_bus: str = "SCSI"  # not SATA: Debian's cloud kernel has no driver for such a drive
    kernel_machine: str = ""
    disk_machine: str = ""
    graphics: bool = True
    guest_agent: bool = True
    rng: bool = True


@dataclass(frozen=True, slots=True)
class GuestKind:
    """A kind of guest, where what can be done with a guest depends on that.

    :param machine: what ``spec.machine`` says of such guests.
    :param capabilities: those that differ from the host's.
    """

    machine: str
    capabilities: tuple[Capability, ...] = ()


@dataclass(frozen=True, slots=True)
class HostFacts:
    """What a probe found.  None is unknown."""

    hypervisor: str = ""
    hypervisor_version: str = ""
    api: str = ""
    api_version: str = ""
    hostname: str = ""
    architecture: str = ""
    cpu_model: str = ""
    cpus: int | None = None
    memory_bytes: int | None = None
    default_accelerator: str = ""
    accelerators: tuple[AcceleratorStatus, ...] = ()
    capabilities: tuple[Capability, ...] = ()
    machines: tuple[str, ...] = ()
    control_domain: ControlDomain | None = None
    guest_defaults: GuestDefaults = field(default_factory=GuestDefaults)
    guest_kinds: tuple[GuestKind, ...] = ()


class CheckStatus(StrEnum):
    """How a check of a host ended.  UNKNOWN: it could not be made; the summary says why."""

    OK = "OK"
    WARNING = "WARNING"
    PROBLEM = "PROBLEM"
    UNKNOWN = "UNKNOWN"


@dataclass(frozen=True, slots=True)
class HostCheck:
    """One check of a host: what was found, and, unless it is OK, what to do."""

    id: str
    status: CheckStatus
    summary: str
    remedy: str = ""


@dataclass(frozen=True, slots=True)
class Host:
    """One hypervisor endpoint.  ``name`` is ``hosts/{host}``; ``uri`` never shows a password."""

    name: str
    backend: str
    uri: str
    state: HostState = HostState.CONNECTING
    facts: HostFacts = field(default_factory=HostFacts)
    last_error: ErrorRecord | None = None
    last_contact_time: datetime | None = None
    guest_count: int | None = None
    origin: str = ""
    labels: Mapping[str, str] = field(default_factory=dict)
