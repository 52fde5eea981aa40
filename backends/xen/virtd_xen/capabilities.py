"""What a Xen host can do behind libvirt, and why not where it cannot: whose limit it is, is said.

Each was seen with libvirt 9.0 and Xen 4.17.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Final

from virtd.backend import capabilities as ids
from virtd.backend.capabilities import absent, complete, emulated, native
from virtd.backend.emulate import power, screenshots, snapshots
from virtd.model.host import Capability, CapabilityLevel, CapabilityProvenance, GuestKind
from virtd_xen import migration, update_policy
from virtd_xen.dialect import HVM, PV, PVH

_PROBED: Final = CapabilityProvenance.PROBED

NO_HVM: Final = (
    "the CPU has no VT-x or AMD-V, or it is switched off: the host has guests of the type xenpv only, without either"
)
KERNEL_ONLY: Final = (
    "guests of the types xenpv and xenpvh boot a kernel that lies on the host (spec.direct_kernel_boot); xenfv boots "
    "from its disks"
)
NO_DISPLAY: Final = "a guest of the type xenpvh has no display: Xen gives it no framebuffer"
DISPLAY_REACH: Final = "libvirt's libxl driver passes no display on, so virtd itself must reach its address"
DISPLAY_LIMITS: Final = f"xenfv and xenpv; {NO_DISPLAY}; {DISPLAY_REACH}"
NO_REBOOT: Final = (
    "Xen asks the paravirtual drivers of the guest's system to reboot, which one of the type xenfv need not have: "
    "virtd shuts it down and starts it"
)
REBOOT_LIMITS: Final = f"xenpv and xenpvh; for xenfv: {NO_REBOOT}"
REBOOT_EVENTS_HOW: Final = (
    "libvirt's libxl driver reports a reboot as a start and an end: virtd looks whether the guest runs"
)
METRICS_LIMITS: Final = (
    "disks that a QEMU serves (qcow2, emulated drives, CD-ROMs) are not counted by libvirt's libxl driver, nor what "
    "the guest uses of its memory"
)
ADDRESS_LIMITS: Final = "addresses that libvirt's own networks have given out; there is no guest agent to ask"
ADOPT_LIMITS: Final = (
    "guests that libvirt knows: its libxl driver does not see those that others start by Xen's own tools (xl create)"
)
NO_USB: Final = "USB devices are emulated for guests of the type xenfv only"
NO_AGENT: Final = (
    "libvirt's libxl driver has no channel to a guest agent, nor calls that would use one (Xen itself has channels: "
    "xl's option channel)"
)
NO_SNAPSHOT: Final = "libvirt's libxl driver has no snapshots, and Xen itself knows none of disks"
NO_RESET: Final = "libvirt's libxl driver has no reset (Xen itself has one for the type xenfv: xl trigger GUEST reset)"
NO_PICTURES: Final = "libvirt's libxl driver takes no pictures"
SCREENSHOT_LIMITS: Final = f"xenfv and xenpv; {NO_DISPLAY}; {NO_PICTURES}: {screenshots.HOW}; {DISPLAY_REACH}"
NO_BACKUP: Final = "libvirt's libxl driver has no block jobs and no backups: copy the disks of the stopped guest"
NO_PORT_FORWARD: Final = "Xen has no user-mode network: connect the guest to a network or a bridge of the host"
POOL_LIMITS: Final = "the host needs the programs for it (%s); whether they are there shows when a pool starts"
CLONE_LIMITS: Final = "a copy that the host itself makes (other format, overlay, other machine) cannot be aborted"
PCI_LIMITS: Final = (
    "xenfv and xenpv, with an IOMMU, and only devices that the host's own drivers have let go (xl pci-assignable-add); "
    "never tried with real devices by virtd's tests"
)
MIGRATE_HOW: Final = (
    "virtd writes the definition on the other host and then undefines it on the first; disks that the hosts do not "
    "share travel through virtd's machine"
)
NO_PV_MIGRATION: Final = (
    "live migration of a guest of the type xenpv needs a Xen with shadow paging, which Debian's is built without, and "
    "libvirt does not tell which one a host has: migrate it stopped"
)
MIGRATE_REST: Final = (
    "disks must be shared; libvirt's libxl driver can neither abort a migration nor limit it nor tell how far it is; a "
    "guest that does not answer Xen's request to suspend, as one that is booting or paused, stays where it is"
)
MIGRATE_LIMITS: Final = f"xenpvh and xenfv; {NO_PV_MIGRATION}; {MIGRATE_REST}"

UNSUPPORTED: Final[Mapping[str, str]] = {
    **{
        entry.id: f"{NO_SNAPSHOT}; {entry.reason}"
        for entry in snapshots.CAPABILITIES
        if entry.level is CapabilityLevel.UNSUPPORTED
    },
    **dict.fromkeys((ids.BACKUP, ids.BACKUP_INCREMENTAL), NO_BACKUP),
    **dict.fromkeys((ids.AGENT_EXEC, ids.AGENT_STREAM, ids.AGENT_FILES, ids.AGENT_FREEZE, ids.AGENT_INFO), NO_AGENT),
    ids.UEFI: "Debian's Xen brings no UEFI firmware (OVMF) for its guests, and virtd offers what was seen to work",
    ids.SECURE_BOOT: "Xen's UEFI firmware has no secure boot",
    ids.CPU_MODEL: (
        "libvirt's libxl driver has no CPU models and topologies: a guest sees the host's CPU, as far as Xen shows it"
    ),
    ids.NUMA: (
        "virtd leaves a guest's memory where Xen places it (Xen and libvirt can do more: domains with NUMA cells)"
    ),
    ids.HUGEPAGES: "Xen takes large pages by itself wherever it can",
    ids.MEMORY_BACKING: "memory of a Xen guest is never swapped out, and shared by the guest's own grants only",
    ids.TPM: "libvirt's libxl driver has no TPMs (Xen itself has: a vTPM domain, xl's option vtpm)",
    ids.WATCHDOG: (
        "libvirt's libxl driver has no watchdog devices (Xen itself has one without a device: Linux's driver xen_wdt)"
    ),
    ids.SOUND: "QEMU 7.2 has no longer the option by which Xen 4.17 adds sound devices",
    ids.VIRTIOFS: "Xen has no virtiofs: share a directory by the network",
    ids.P9: "libvirt's libxl driver shares no directories (Xen itself can: xl's option p9)",
    ids.PASSTHROUGH_USB: (
        "virtd does not offer it on Xen: it needs a backend for USB in the control domain, and was never tried"
    ),
    ids.DISK_TUNING: (
        "libvirt's libxl driver has no cache modes, limits and serial numbers of disks; discards always go through"
    ),
    ids.PORT_FORWARD: NO_PORT_FORWARD,
    **migration.UNSUPPORTED,
    **update_policy.UNSUPPORTED,
}
"""What no Xen host has behind libvirt, and why."""

_NATIVE: Final = (
    ids.LIFECYCLE,
    ids.SHUTDOWN,
    ids.PAUSE,
    ids.SUSPEND,
    ids.CONSOLE_SERIAL,
    ids.DIAGNOSIS,
    ids.POOLS,
    ids.VOLUMES,
    ids.POOL_MANAGE,
    ids.VOLUME_RESIZE,
    ids.VOLUME_TRANSFER,
    ids.NETWORKS,
    ids.NETWORK_CHANGES,
    ids.EVENTS,
    ids.ACCELERATION,
    ids.DIRECT_KERNEL_BOOT,
    ids.TRASH,
    ids.AUTOSTART,
    ids.CLOUD_INIT,
    ids.CPU_HOTPLUG_RANGE,
    ids.CPU_PINNING,
    ids.BALLOON,
    ids.UPDATE,
    ids.UPDATE_MEMORY,
    ids.UPDATE_VCPUS_UNPLUG,
)
_PARTIAL: Final[Mapping[str, str]] = {
    ids.ADOPT: ADOPT_LIMITS,
    ids.REBOOT: REBOOT_LIMITS,
    ids.DISK_BOOT: KERNEL_ONLY,
    ids.CONSOLE_GRAPHICAL: DISPLAY_LIMITS,
    ids.SCREENSHOT: SCREENSHOT_LIMITS,
    ids.METRICS: METRICS_LIMITS,
    ids.ADDRESSES: ADDRESS_LIMITS,
    ids.USB: NO_USB,
    ids.POOL_LOGICAL: POOL_LIMITS % "LVM",
    ids.POOL_NFS: POOL_LIMITS % "mount.nfs",
    ids.VOLUME_CLONE: CLONE_LIMITS,
    ids.PASSTHROUGH_PCI: PCI_LIMITS,
    ids.MIGRATE_LIVE: MIGRATE_LIMITS,
    **update_policy.PARTIAL,
}

DECLARED: Final = complete(
    [
        *(native(id_) for id_ in _NATIVE),
        *(
            Capability(id_, CapabilityLevel.PARTIAL, CapabilityProvenance.DECLARED, limits)
            for id_, limits in _PARTIAL.items()
        ),
        emulated(ids.REBOOT_EVENTS, REBOOT_EVENTS_HOW),
        emulated(ids.MIGRATE, MIGRATE_HOW),
        emulated(ids.RESET, f"{NO_RESET}: {power.HOW[ids.RESET]}"),
        emulated(ids.SNAPSHOT, f"{NO_SNAPSHOT}: {snapshots.HOW}"),
        emulated(ids.SNAPSHOT_REVERT, f"{NO_SNAPSHOT}: {snapshots.HOW} back"),
        emulated(ids.CLONE, "virtd copies the disks and defines a new guest"),
        emulated(ids.CLONE_LINKED, "virtd makes overlays for both guests; every disk must be a qcow2 that it made"),
        *(absent(id_, why) for id_, why in UNSUPPORTED.items()),
    ]
)
"""What a good host can do."""

LIMITS: Final[Mapping[str, Mapping[str, str]]] = {
    PV: {
        ids.DISK_BOOT: KERNEL_ONLY,
        ids.USB: NO_USB,
        ids.UPDATE_MEDIUM: update_policy.MEDIUM_LIMITS,
        ids.MIGRATE_LIVE: NO_PV_MIGRATION,
    },
    PVH: {
        ids.DISK_BOOT: KERNEL_ONLY,
        ids.CONSOLE_GRAPHICAL: NO_DISPLAY,
        ids.SCREENSHOT: NO_DISPLAY,
        ids.USB: NO_USB,
        ids.PASSTHROUGH_PCI: "Xen gives devices to guests of the types xenpv and xenfv only",
        ids.UPDATE_MEDIUM: update_policy.MEDIUM_LIMITS,
    },
    HVM: {ids.REBOOT: NO_REBOOT},
}
"""By the type of a guest: what its host can do, and it cannot."""

BY_TYPE: Final = tuple(id_ for id_ in ids.SUMMARIES if any(id_ in limits for limits in LIMITS.values()))
"""Capabilities that depend on the type of the guest: hosts have them in part."""

REMAINING: Final[Mapping[str, str]] = {
    ids.CONSOLE_GRAPHICAL: DISPLAY_REACH,
    ids.SCREENSHOT: f"{NO_PICTURES}: {screenshots.HOW}; {DISPLAY_REACH}",
    ids.PASSTHROUGH_PCI: PCI_LIMITS,
    ids.UPDATE_MEDIUM: update_policy.MEDIUM_LIMITS,
    ids.MIGRATE_LIVE: MIGRATE_REST,
}
"""What is left to say of guests of those types that have such a capability."""


def probed(missing: Mapping[str, str]) -> tuple[Capability, ...]:
    """The capabilities of a host that was looked at.

    :param missing: capability -> why this host has it not.
    """
    stated = {entry.id: entry for entry in DECLARED}
    for id_, why in missing.items():
        stated[id_] = absent(id_, why, _PROBED)
    return complete(stated.values())


def kinds(machines: Iterable[str], host: Iterable[Capability]) -> tuple[GuestKind, ...]:
    """In what guests of each type differ from what is said of their host."""
    whole = {entry.id: entry for entry in host}
    return tuple(GuestKind(machine, tuple(_differing(machine, whole))) for machine in machines)


def _differing(machine: str, host: Mapping[str, Capability]) -> Iterator[Capability]:
    for id_ in BY_TYPE:
        if host[id_].level is not CapabilityLevel.PARTIAL:
            continue  # the host has it not at all, whatever the guest is
        why = LIMITS[machine].get(id_)
        if why is None:
            rest = REMAINING.get(id_)
            yield native(id_, _PROBED) if rest is None else Capability(id_, CapabilityLevel.PARTIAL, _PROBED, rest)
        elif id_ == ids.REBOOT:
            yield emulated(id_, why, _PROBED)
        else:
            yield absent(id_, why, _PROBED)
