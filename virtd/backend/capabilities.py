"""The capability ids, and which facet stands behind each.

A capability is *present* when the session offers its facet **and** the probe did not mark it
UNSUPPORTED.  The core asks :func:`require` before any side effect, so that "unsupported" is always
found first, with the same reason everywhere.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Final

from virtd.errors import unsupported
from virtd.model.host import Capability, CapabilityLevel, CapabilityProvenance, HostFacts

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
SNAPSHOT_EXTERNAL: Final = "guest.snapshot.external"
SNAPSHOT_QUIESCE: Final = "guest.snapshot.quiesce"
BACKUP: Final = "guest.backup"
BACKUP_INCREMENTAL: Final = "guest.backup.incremental"
CONSOLE_SERIAL: Final = "guest.console.serial"
CONSOLE_GRAPHICAL: Final = "guest.console.graphical"
SCREENSHOT: Final = "guest.screenshot"
AGENT_EXEC: Final = "guest.agent.exec"
AGENT_STREAM: Final = "guest.agent.stream"
AGENT_FILES: Final = "guest.agent.files"
AGENT_FREEZE: Final = "guest.agent.freeze"
AGENT_INFO: Final = "guest.agent.info"
ADDRESSES: Final = "guest.addresses"
METRICS: Final = "guest.metrics"
POOLS: Final = "host.pools"
VOLUMES: Final = "host.volumes"
POOL_MANAGE: Final = "host.pools.manage"
POOL_LOGICAL: Final = "host.pools.logical"
POOL_NFS: Final = "host.pools.nfs"
VOLUME_RESIZE: Final = "host.volumes.resize"
VOLUME_CLONE: Final = "host.volumes.clone"
VOLUME_TRANSFER: Final = "host.volumes.transfer"
NETWORKS: Final = "host.networks"
NETWORK_CHANGES: Final = "host.networks.change"
EVENTS: Final = "host.events"
REBOOT_EVENTS: Final = "host.events.reboot"
DIAGNOSIS: Final = "host.diagnosis"
ACCELERATION: Final = "host.acceleration"
DIRECT_KERNEL_BOOT: Final = "guest.boot.kernel"
DISK_BOOT: Final = "guest.boot.disk"
UEFI: Final = "guest.firmware.uefi"
ADOPT: Final = "guest.adopt"
UPDATE: Final = "guest.update"
UPDATE_DISKS: Final = "guest.update.disks"
UPDATE_INTERFACES: Final = "guest.update.interfaces"
UPDATE_MEDIUM: Final = "guest.update.medium"
UPDATE_RESIZE: Final = "guest.update.disks.resize"
UPDATE_IO_TUNE: Final = "guest.update.disks.io-tune"
UPDATE_MEMORY: Final = "guest.update.memory"
UPDATE_VCPUS: Final = "guest.update.vcpus"
UPDATE_VCPUS_UNPLUG: Final = "guest.update.vcpus.unplug"
CPU_MODEL: Final = "guest.cpu.model"
CPU_HOTPLUG_RANGE: Final = "guest.cpu.range"
CPU_PINNING: Final = "guest.cpu.pinning"
NUMA: Final = "guest.numa"
BALLOON: Final = "guest.memory.balloon"
HUGEPAGES: Final = "guest.memory.hugepages"
MEMORY_BACKING: Final = "guest.memory.backing"
SECURE_BOOT: Final = "guest.firmware.secure_boot"
TPM: Final = "guest.tpm"
WATCHDOG: Final = "guest.watchdog"
SOUND: Final = "guest.sound"
USB: Final = "guest.usb"
VIRTIOFS: Final = "guest.filesystem.virtiofs"
P9: Final = "guest.filesystem.9p"
PASSTHROUGH_PCI: Final = "guest.passthrough.pci"
PASSTHROUGH_USB: Final = "guest.passthrough.usb"
DISK_TUNING: Final = "guest.disk.tuning"
PORT_FORWARD: Final = "guest.interface.port_forward"
CLOUD_INIT: Final = "guest.cloud_init"
CLONE: Final = "guest.clone"
CLONE_LINKED: Final = "guest.clone.linked"
TRASH: Final = "guest.trash"
AUTOSTART: Final = "guest.autostart"
MIGRATE: Final = "guest.migrate"
MIGRATE_LIVE: Final = "guest.migrate.live"
MIGRATE_STORAGE: Final = "guest.migrate.storage"
MIGRATE_POSTCOPY: Final = "guest.migrate.postcopy"

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
    SNAPSHOT_EXTERNAL: "snapshots outside the images: of any format and firmware, and of running guests' disks",
    SNAPSHOT_QUIESCE: "file systems are frozen by the guest's agent for a snapshot of running disks",
    BACKUP: "back a guest up while it runs or not",
    BACKUP_INCREMENTAL: "back up only what has changed since the last backup",
    CONSOLE_SERIAL: "read and write a guest's serial console",
    CONSOLE_GRAPHICAL: "a graphical console",
    SCREENSHOT: "a picture of a guest's display",
    AGENT_EXEC: "run a command in a guest by its agent",
    AGENT_STREAM: "the output of a command in a guest while it runs, and input to it",
    AGENT_FILES: "read and write files of a guest by its agent",
    AGENT_FREEZE: "freeze and thaw a guest's file systems by its agent",
    AGENT_INFO: "what a guest's system says of itself",
    ADDRESSES: "the network addresses of a guest",
    METRICS: "usage counters of guests",
    POOLS: "list storage pools",
    VOLUMES: "create, list and delete volumes",
    POOL_MANAGE: "create, start, stop and delete pools of kind DIR",
    POOL_LOGICAL: "pools of LVM volume groups",
    POOL_NFS: "pools of directories that an NFS server exports",
    VOLUME_RESIZE: "change the size of volumes",
    VOLUME_CLONE: "clone volumes, with conversion of the format",
    VOLUME_TRANSFER: "upload and download volumes",
    NETWORKS: "list networks",
    NETWORK_CHANGES: "create, start, stop, change and delete networks, and list their DHCP leases",
    EVENTS: "changes are reported by the hypervisor itself",
    REBOOT_EVENTS: "reboots of guests are reported by the hypervisor itself",
    DIAGNOSIS: "look the host over for what commonly goes wrong",
    ACCELERATION: "guests run on the CPU's virtualization extensions",
    DIRECT_KERNEL_BOOT: "boot a kernel and initial RAM disk directly",
    DISK_BOOT: "boot from a disk",
    UEFI: "boot with UEFI firmware",
    ADOPT: "manage a guest that was defined outside virtd",
    UPDATE: "change a guest that exists, keeping what the change is not about",
    UPDATE_DISKS: "plug disks into and out of a running guest",
    UPDATE_INTERFACES: "plug interfaces into and out of a running guest, and their cables",
    UPDATE_MEDIUM: "change the medium of a running guest's CD-ROM drive",
    UPDATE_RESIZE: "make a disk larger",
    UPDATE_IO_TUNE: "change the limits of a running guest's disk",
    UPDATE_MEMORY: "change a running guest's memory by its balloon",
    UPDATE_VCPUS: "plug virtual processors into a running guest",
    UPDATE_VCPUS_UNPLUG: "take virtual processors out of a running guest",
    CPU_MODEL: "choose the CPU's model, topology and features",
    CPU_HOTPLUG_RANGE: "a guest with more virtual CPUs than are on",
    CPU_PINNING: "pin virtual CPUs to CPUs of the host",
    NUMA: "NUMA nodes in the guest, and memory from chosen nodes of the host",
    BALLOON: "a memory balloon: less memory now than the guest may have",
    HUGEPAGES: "guest memory in huge pages",
    MEMORY_BACKING: "guest memory that is locked, or shared with other processes",
    SECURE_BOOT: "UEFI secure boot",
    TPM: "an emulated TPM 2.0",
    WATCHDOG: "a watchdog device",
    SOUND: "a sound device",
    USB: "emulated USB devices",
    VIRTIOFS: "share a directory of the host by virtiofs",
    P9: "share a directory of the host by 9p",
    PASSTHROUGH_PCI: "give a PCI device of the host to a guest",
    PASSTHROUGH_USB: "give a USB device of the host to a guest",
    DISK_TUNING: "a disk's cache mode, limits, discard and serial number",
    PORT_FORWARD: "ports of the host that lead to a guest on a user-mode network",
    CLOUD_INIT: "first boot by cloud-init, from a seed that virtd makes and attaches as a CD-ROM",
    CLONE: "clone a stopped guest, its disks copied",
    CLONE_LINKED: "clone a stopped guest, its disks shared by overlays",
    TRASH: "keep a deleted guest's definition and disks so that it can be brought back",
    AUTOSTART: "start a guest with its host",
    MIGRATE: "move a stopped guest to another host of the same hypervisor",
    MIGRATE_LIVE: "move a guest to another host of the same hypervisor while it runs",
    MIGRATE_STORAGE: "copy the disks of a guest along while it moves and runs",
    MIGRATE_POSTCOPY: "let a guest run on the other host before all of its memory has arrived",
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
    SNAPSHOT_EXTERNAL: "snapshots",
    SNAPSHOT_QUIESCE: "snapshots",
    BACKUP: "backup",
    BACKUP_INCREMENTAL: "backup",
    CONSOLE_SERIAL: "serial_console",
    CONSOLE_GRAPHICAL: "display",
    SCREENSHOT: "screenshot",
    AGENT_EXEC: "agent",
    AGENT_STREAM: "agent",
    AGENT_FILES: "agent",
    AGENT_FREEZE: "agent",
    AGENT_INFO: "agent",
    ADDRESSES: "addresses",
    METRICS: "metrics",
    POOLS: "storage",
    VOLUMES: "storage",
    POOL_MANAGE: "pools",
    POOL_LOGICAL: "pools",
    POOL_NFS: "pools",
    VOLUME_RESIZE: "volume_changes",
    VOLUME_CLONE: "volume_changes",
    VOLUME_TRANSFER: "volume_transfer",
    NETWORKS: "networks",
    NETWORK_CHANGES: "network_changes",
    EVENTS: "event_source",
    REBOOT_EVENTS: "event_source",
    DIAGNOSIS: "diagnosis",
    TRASH: "definitions",
    AUTOSTART: "autostart",
    MIGRATE: "definitions",
    MIGRATE_LIVE: "migration",
    MIGRATE_STORAGE: "migration",
    MIGRATE_POSTCOPY: "migration",
    UPDATE: "update",
    UPDATE_DISKS: "update",
    UPDATE_INTERFACES: "update",
    UPDATE_MEDIUM: "update",
    UPDATE_RESIZE: "update",
    UPDATE_IO_TUNE: "update",
    UPDATE_MEMORY: "update",
    UPDATE_VCPUS: "update",
    UPDATE_VCPUS_UNPLUG: "update",
}
"""The field of :class:`virtd.backend.api.Facets` without which a capability cannot be there."""

COMPANIONS: Final[Mapping[str, str]] = {"volume_parts": "volume_transfer"}
"""Facets that a host may have besides another one, with the same capability."""


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


def of_kind(facts: HostFacts, machine: str) -> tuple[Capability, ...]:
    """What can be done with guests of a kind; the host's own list where the machine names no kind."""
    kinds = [kind for kind in facts.guest_kinds if kind.machine == machine]
    if not kinds:
        return facts.capabilities
    differing = {entry.id: entry for kind in kinds for entry in kind.capabilities}
    return tuple(differing.get(entry.id, entry) for entry in facts.capabilities)


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
