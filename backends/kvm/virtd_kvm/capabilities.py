"""What a KVM host can do, and why not where it cannot."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Final

from virtd.backend import capabilities as ids
from virtd.backend.capabilities import absent, complete, native
from virtd.model.host import AcceleratorStatus, Capability, CapabilityLevel, CapabilityProvenance

_PROBED: Final = CapabilityProvenance.PROBED

SNAPSHOT_LIMITS: Final = (
    "every writable disk must be qcow2 and the firmware BIOS; a running guest's snapshot includes its memory"
)
_DECLARED: Final = (
    ids.LIFECYCLE,
    ids.SHUTDOWN,
    ids.REBOOT,
    ids.RESET,
    ids.PAUSE,
    ids.SUSPEND,
    ids.SNAPSHOT_REVERT,
    ids.CONSOLE_SERIAL,
    ids.CONSOLE_GRAPHICAL,
    ids.SCREENSHOT,
    ids.AGENT_EXEC,
    ids.ADDRESSES,
    ids.METRICS,
    ids.POOLS,
    ids.VOLUMES,
    ids.NETWORKS,
    ids.EVENTS,
    ids.DIRECT_KERNEL_BOOT,
    ids.DISK_BOOT,
    ids.UEFI,
    ids.ADOPT,
)

DECLARED: Final = complete(
    [
        *(native(id_) for id_ in _DECLARED),
        *(
            Capability(id_, CapabilityLevel.PARTIAL, CapabilityProvenance.DECLARED, SNAPSHOT_LIMITS)
            for id_ in (ids.SNAPSHOT, ids.SNAPSHOT_MEMORY)
        ),
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
    ids.CONSOLE_SERIAL: "libvirt's test driver has no consoles",
    ids.CONSOLE_GRAPHICAL: "libvirt's test driver has no displays that can be connected to",
    ids.SCREENSHOT: "libvirt's test driver shows the same picture for every guest",
    ids.AGENT_EXEC: "libvirt's test driver has no guest agents",
    ids.ACCELERATION: "libvirt's test driver runs no guests",
    ids.METRICS: "libvirt's test driver counts nothing",
    ids.VOLUMES: "libvirt's test driver makes no files",
    ids.UEFI: "libvirt's test driver has no firmware",
}
"""What libvirt's in-process test driver lacks."""


def probed(accelerators: Iterable[AcceleratorStatus], missing: Mapping[str, str]) -> tuple[Capability, ...]:
    """The capabilities of a host that was looked at.

    :param missing: capability -> why this host has it not.
    """
    stated = {entry.id: entry for entry in DECLARED}
    for status in accelerators:
        if status.accelerator == "KVM":
            stated[ids.ACCELERATION] = (
                Capability(ids.ACCELERATION, CapabilityLevel.NATIVE, status.provenance, status.reason)
                if status.usable
                else absent(ids.ACCELERATION, status.reason, status.provenance)
            )
    for id_, why in missing.items():
        stated[id_] = absent(id_, why, _PROBED)
    return complete(stated.values())
