"""What a KVM host can do, and why not where it cannot."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Final

from virtd.backend import capabilities as ids
from virtd.backend.capabilities import absent, complete, emulated, native
from virtd.model.host import AcceleratorStatus, Capability, CapabilityLevel, CapabilityProvenance
from virtd_kvm.effects import UNPLUG_REASON

_PROBED: Final = CapabilityProvenance.PROBED

SNAPSHOT_LIMITS: Final = (
    "inside the images where every writable disk is qcow2, the firmware is BIOS, and a running guest's memory is "
    "included; external otherwise; every writable disk must be an image file; UEFI variables are not part of it"
)
EXTERNAL_LIMITS: Final = (
    "libvirt makes them, virtd reverts to them (new images over those that are kept) and deletes them (a merge that "
    "is checked before and after); merging a stopped guest's images needs virtd on the host itself"
)
STREAM_LIMITS: Final = (
    "the guest needs a POSIX shell; output is looked for several times a second, and lies in files of the guest, "
    "at most 64 MiB of each channel, until the command ends"
)
POOL_LIMITS: Final = "the host needs the programs for it (%s); whether they are there shows when a pool starts"
CLONE_LIMITS: Final = "a copy that the host itself makes (other format, overlay, other machine) cannot be aborted"
DEVICES: Final = (
    ids.CPU_MODEL,
    ids.CPU_HOTPLUG_RANGE,
    ids.CPU_PINNING,
    ids.NUMA,
    ids.BALLOON,
    ids.HUGEPAGES,
    ids.MEMORY_BACKING,
    ids.SECURE_BOOT,
    ids.TPM,
    ids.WATCHDOG,
    ids.SOUND,
    ids.USB,
    ids.VIRTIOFS,
    ids.P9,
    ids.PASSTHROUGH_PCI,
    ids.PASSTHROUGH_USB,
    ids.DISK_TUNING,
)
UPDATES: Final = (
    ids.UPDATE_DISKS,
    ids.UPDATE_INTERFACES,
    ids.UPDATE_MEDIUM,
    ids.UPDATE_RESIZE,
    ids.UPDATE_IO_TUNE,
    ids.UPDATE_MEMORY,
    ids.UPDATE_VCPUS,
)
UNPLUG_LIMITS: Final = f"guests that run with KVM only: {UNPLUG_REASON}"
BACKUP_LIMITS: Final = (
    "every disk that the guest writes to must be a qcow2 or raw file; UEFI variables, TPM state and the memory of a "
    "suspended guest are not in it"
)
INCREMENTAL_LIMITS: Final = (
    "for qcow2 disks, others are copied in full; a full backup follows a revert, a resize, a new disk image, or the "
    "death of the guest's QEMU"
)
BACKUP_REMOTE: Final = "the disks are read at sockets of the host's own machine: run virtd there"
MIGRATE_HOW: Final = (
    "virtd copies the definition, the firmware's variables and, through its own machine, the disks; a guest with a TPM "
    "or with snapshots is refused"
)
REMOTE: Final[Mapping[str, str]] = {
    ids.CONSOLE_GRAPHICAL: (
        "the display has an address on the host; virtd passes it on only where it runs on the host itself"
    ),
    ids.SNAPSHOT_EXTERNAL: f"deleted while the guest runs, or with virtd on the host itself; {EXTERNAL_LIMITS}",
}
"""What a host that is another machine has in part only."""
PORT_FORWARD: Final = "by QEMU's own user-mode network, past libvirt; IPv4 only, and set when the guest starts"
_DECLARED: Final = (
    ids.LIFECYCLE,
    ids.SHUTDOWN,
    ids.REBOOT,
    ids.RESET,
    ids.PAUSE,
    ids.SUSPEND,
    ids.SNAPSHOT_REVERT,
    ids.SNAPSHOT_QUIESCE,
    ids.CONSOLE_SERIAL,
    ids.CONSOLE_GRAPHICAL,
    ids.SCREENSHOT,
    ids.AGENT_EXEC,
    ids.AGENT_FILES,
    ids.AGENT_FREEZE,
    ids.AGENT_INFO,
    ids.ADDRESSES,
    ids.METRICS,
    ids.DIAGNOSIS,
    ids.POOLS,
    ids.VOLUMES,
    ids.POOL_MANAGE,
    ids.VOLUME_RESIZE,
    ids.VOLUME_TRANSFER,
    ids.NETWORKS,
    ids.NETWORK_CHANGES,
    ids.EVENTS,
    ids.REBOOT_EVENTS,
    ids.DIRECT_KERNEL_BOOT,
    ids.DISK_BOOT,
    ids.UEFI,
    ids.ADOPT,
    ids.TRASH,
    ids.AUTOSTART,
    ids.MIGRATE_LIVE,
    ids.MIGRATE_STORAGE,
    ids.MIGRATE_POSTCOPY,
    ids.CLOUD_INIT,
    ids.UPDATE,
    *UPDATES,
    *DEVICES,
)

DECLARED: Final = complete(
    [
        *(native(id_) for id_ in _DECLARED),
        *(
            Capability(id_, CapabilityLevel.PARTIAL, CapabilityProvenance.DECLARED, SNAPSHOT_LIMITS)
            for id_ in (ids.SNAPSHOT, ids.SNAPSHOT_MEMORY)
        ),
        emulated(ids.SNAPSHOT_EXTERNAL, EXTERNAL_LIMITS),
        Capability(ids.AGENT_STREAM, CapabilityLevel.PARTIAL, CapabilityProvenance.DECLARED, STREAM_LIMITS),
        *(
            Capability(id_, CapabilityLevel.PARTIAL, CapabilityProvenance.DECLARED, limits)
            for id_, limits in (
                (ids.BACKUP, BACKUP_LIMITS),
                (ids.BACKUP_INCREMENTAL, INCREMENTAL_LIMITS),
                (ids.POOL_LOGICAL, POOL_LIMITS % "LVM"),
                (ids.POOL_NFS, POOL_LIMITS % "mount.nfs"),
                (ids.VOLUME_CLONE, CLONE_LIMITS),
                (ids.UPDATE_VCPUS_UNPLUG, UNPLUG_LIMITS),
            )
        ),
        emulated(ids.PORT_FORWARD, PORT_FORWARD),
        emulated(ids.MIGRATE, MIGRATE_HOW),
        emulated(ids.CLONE, "virtd copies the disks and defines a new guest"),
        emulated(ids.CLONE_LINKED, "virtd makes overlays for both guests; every disk must be a qcow2 that it made"),
        Capability(
            ids.ACCELERATION,
            CapabilityLevel.UNKNOWN,
            CapabilityProvenance.DECLARED,
            "only running a guest tells; a probe of the host does",
        ),
    ]
)
"""What a good host can do."""

TEST_DRIVER: Final[Mapping[str, str]] = {
    ids.SNAPSHOT_EXTERNAL: "libvirt's test driver has no image files",
    ids.SNAPSHOT_QUIESCE: "libvirt's test driver has no guest agents",
    ids.BACKUP: "libvirt's test driver has no image files",
    ids.BACKUP_INCREMENTAL: "libvirt's test driver has no image files",
    ids.REBOOT_EVENTS: "libvirt's test driver reports no reboots",
    ids.CONSOLE_SERIAL: "libvirt's test driver has no consoles",
    ids.CONSOLE_GRAPHICAL: "libvirt's test driver has no displays that can be connected to",
    ids.SCREENSHOT: "libvirt's test driver shows the same picture for every guest",
    ids.AGENT_EXEC: "libvirt's test driver has no guest agents",
    ids.AGENT_STREAM: "libvirt's test driver has no guest agents",
    **dict.fromkeys(
        (ids.MIGRATE, ids.MIGRATE_LIVE, ids.MIGRATE_STORAGE, ids.MIGRATE_POSTCOPY),
        "libvirt's test driver forgets its guests with the connection, and has no second host",
    ),
    ids.AGENT_FILES: "libvirt's test driver has no guest agents",
    ids.AGENT_FREEZE: "libvirt's test driver has no guest agents",
    ids.AGENT_INFO: "libvirt's test driver has no guest agents",
    ids.ACCELERATION: "libvirt's test driver runs no guests",
    ids.METRICS: "libvirt's test driver counts nothing",
    ids.DIAGNOSIS: "libvirt's test driver is no hypervisor that anything could be wrong with",
    ids.VOLUMES: "libvirt's test driver makes no files",
    ids.CLONE: "libvirt's test driver makes no files",
    ids.CLONE_LINKED: "libvirt's test driver makes no files",
    ids.POOL_MANAGE: "libvirt's test driver makes no files",
    ids.POOL_LOGICAL: "libvirt's test driver makes no files",
    ids.POOL_NFS: "libvirt's test driver makes no files",
    ids.VOLUME_RESIZE: "libvirt's test driver makes no files",
    ids.VOLUME_CLONE: "libvirt's test driver makes no files",
    ids.VOLUME_TRANSFER: "libvirt's test driver makes no files",
    ids.CLOUD_INIT: "libvirt's test driver makes no files",
    ids.NETWORK_CHANGES: "libvirt's test driver gives out no addresses",
    ids.UEFI: "libvirt's test driver has no firmware",
    **dict.fromkeys(
        (*DEVICES, ids.PORT_FORWARD), "libvirt's test driver runs no guests: it would only write this down"
    ),
    **dict.fromkeys(
        (*UPDATES, ids.UPDATE_VCPUS_UNPLUG), "libvirt's test driver runs no guests: it changes configurations only"
    ),
}
"""What libvirt's in-process test driver lacks."""


def probed(
    accelerators: Iterable[AcceleratorStatus], missing: Mapping[str, str], *, local: bool = True
) -> tuple[Capability, ...]:
    """The capabilities of a host that was looked at.

    :param missing: capability -> why this host has it not.
    :param local: it is this machine.
    """
    stated = {entry.id: entry for entry in DECLARED}
    for status in accelerators:
        if status.accelerator == "KVM":
            stated[ids.ACCELERATION] = (
                Capability(ids.ACCELERATION, CapabilityLevel.NATIVE, status.provenance, status.reason)
                if status.usable
                else absent(ids.ACCELERATION, status.reason, status.provenance)
            )
            if not status.usable:
                stated[ids.UPDATE_VCPUS_UNPLUG] = absent(ids.UPDATE_VCPUS_UNPLUG, UNPLUG_REASON, status.provenance)
    for id_, limits in REMOTE.items() if not local else ():
        stated[id_] = Capability(id_, CapabilityLevel.PARTIAL, CapabilityProvenance.DECLARED, limits)
    for id_, why in missing.items():
        stated[id_] = absent(id_, why, _PROBED)
    return complete(stated.values())
