"""The capability ids, and which facet stands behind each.

A capability is *present* when the session offers its facet **and** the probe did not mark it
UNSUPPORTED.  The core asks :func:`require` before any side effect, so that "unsupported" is always
found first, with the same reason everywhere.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Final

from virtd.errors import unsupported
from virtd.model.host import Capability, CapabilityLevel, CapabilityProvenance

# fmt: off
LIFECYCLE: Final = "guest.lifecycle"
SHUTDOWN: Final = "guest.shutdown"
REBOOT: Final = "guest.reboot"
RESET: Final = "guest.reset"
PAUSE: Final = "guest.pause"
SUSPEND: Final = "guest.suspend"
SNAPSHOT: Final = "guest.snapshot"
SNAPSHOT_MEMORY: Final = "guest.snapshot.memory"
SNAPSHOT_REVERT: Final = "guest.snapshot.revert"
CONSOLE_SERIAL: Final = "guest.console.serial"
CONSOLE_GRAPHICAL: Final = "guest.console.graphical"
SCREENSHOT: Final = "guest.screenshot"
AGENT_EXEC: Final = "guest.agent.exec"
ADDRESSES: Final = "guest.addresses"
METRICS: Final = "guest.metrics"
POOLS: Final = "host.pools"
VOLUMES: Final = "host.volumes"
NETWORKS: Final = "host.networks"
EVENTS: Final = "host.events"
ACCELERATION: Final = "host.acceleration"
DIRECT_KERNEL_BOOT: Final = "guest.boot.kernel"
DISK_BOOT: Final = "guest.boot.disk"
UEFI: Final = "guest.firmware.uefi"
ADOPT: Final = "guest.adopt"

SUMMARIES: Final[Mapping[str, str]] = {
    LIFECYCLE: "define, start, stop and delete guests",
    SHUTDOWN: "ask a guest to shut down",
    REBOOT: "ask a guest to reboot",
    RESET: "reset a guest at once, as by its reset button",
    PAUSE: "pause and resume a guest",
    SUSPEND: "suspend a guest to disk and restore it",
    SNAPSHOT: "snapshots of a guest's disks",
    SNAPSHOT_MEMORY: "snapshots with the running guest's memory",
    SNAPSHOT_REVERT: "revert a guest to a snapshot",
    CONSOLE_SERIAL: "read and write a guest's serial console",
    CONSOLE_GRAPHICAL: "a graphical console",
    SCREENSHOT: "a picture of a guest's display",
    AGENT_EXEC: "run a command in a guest by its agent",
    ADDRESSES: "the network addresses of a guest",
    METRICS: "usage counters of guests",
    POOLS: "list storage pools",
    VOLUMES: "create, list and delete volumes",
    NETWORKS: "list networks",
    EVENTS: "changes are reported by the hypervisor itself",
    ACCELERATION: "guests run on the CPU's virtualization extensions",
    DIRECT_KERNEL_BOOT: "boot a kernel and initial RAM disk directly",
    DISK_BOOT: "boot from a disk",
    UEFI: "boot with UEFI firmware",
    ADOPT: "manage a guest that was defined outside virtd",
}
"""Every capability that virtd knows, in the order of the matrix."""
# fmt: on

FACET_OF: Final[Mapping[str, str]] = {
    SHUTDOWN: "shutdown",
    REBOOT: "reboot",
    RESET: "reset",
    PAUSE: "pause",
    SUSPEND: "suspend",
    SNAPSHOT: "snapshots",
    SNAPSHOT_MEMORY: "snapshots",
    SNAPSHOT_REVERT: "snapshots",
    CONSOLE_SERIAL: "serial_console",
    SCREENSHOT: "screenshot",
    AGENT_EXEC: "agent",
    ADDRESSES: "addresses",
    METRICS: "metrics",
    POOLS: "storage",
    VOLUMES: "storage",
    NETWORKS: "networks",
    EVENTS: "event_source",
}
"""The field of :class:`virtd.backend.api.Facets` without which a capability cannot be there."""


def native(capability: str, provenance: CapabilityProvenance = CapabilityProvenance.DECLARED) -> Capability:
    """A capability that the hypervisor itself has."""
    return Capability(capability, CapabilityLevel.NATIVE, provenance)


def absent(
    capability: str, reason: str, provenance: CapabilityProvenance = CapabilityProvenance.DECLARED
) -> Capability:
    """A capability that is not there, and why: the text is what a caller is told."""
    return Capability(capability, CapabilityLevel.UNSUPPORTED, provenance, reason)


def emulated(capability: str, how: str, provenance: CapabilityProvenance = CapabilityProvenance.DECLARED) -> Capability:
    """A capability that virtd provides by other means; ``how`` says by which."""
    return Capability(capability, CapabilityLevel.EMULATED, provenance, how)


def complete(stated: Iterable[Capability]) -> tuple[Capability, ...]:
    """One entry for every known capability, in the matrix's order; what is not stated is UNSUPPORTED."""
    by_id = {entry.id: entry for entry in stated}
    return tuple(by_id.get(id_, absent(id_, "the backend does not offer it")) for id_ in SUMMARIES)


def require(capabilities: Iterable[Capability], capability: str, *, resource: str = "") -> Capability:
    """Return the capability if the host has it.

    :raises UnsupportedError: CAPABILITY_UNSUPPORTED with the capability's own reason.
    """
    for entry in capabilities:
        if entry.id == capability:
            if entry.level in (CapabilityLevel.UNSUPPORTED, CapabilityLevel.UNKNOWN):
                raise unsupported(capability, entry.reason, resource=resource)
            return entry
    raise unsupported(capability, "the backend does not offer it", resource=resource)
