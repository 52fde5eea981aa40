"""libvirt's states and lifecycle events as virtd's.

The tables follow ``libvirt-domain.h``.  A number that is not in them is UNKNOWN with its number as
the native state: it never blocks anything.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import libvirt

from virtd.model.guest import GuestState

_NATIVE: Final = {
    libvirt.VIR_DOMAIN_NOSTATE: "nostate",
    libvirt.VIR_DOMAIN_RUNNING: "running",
    libvirt.VIR_DOMAIN_BLOCKED: "blocked",
    libvirt.VIR_DOMAIN_PAUSED: "paused",
    libvirt.VIR_DOMAIN_SHUTDOWN: "shutdown",
    libvirt.VIR_DOMAIN_SHUTOFF: "shutoff",
    libvirt.VIR_DOMAIN_CRASHED: "crashed",
    libvirt.VIR_DOMAIN_PMSUSPENDED: "pmsuspended",
}

_STATES: Final = {
    # libxl reports "no state" for a guest that is being scheduled; QEMU for one being set up.
    libvirt.VIR_DOMAIN_NOSTATE: GuestState.UNKNOWN,
    libvirt.VIR_DOMAIN_RUNNING: GuestState.RUNNING,
    libvirt.VIR_DOMAIN_BLOCKED: GuestState.RUNNING,
    libvirt.VIR_DOMAIN_PAUSED: GuestState.PAUSED,
    libvirt.VIR_DOMAIN_SHUTDOWN: GuestState.STOPPING,
    libvirt.VIR_DOMAIN_SHUTOFF: GuestState.STOPPED,
    libvirt.VIR_DOMAIN_CRASHED: GuestState.CRASHED,
    libvirt.VIR_DOMAIN_PMSUSPENDED: GuestState.PAUSED,
}

_SHUTOFF_REASONS: Final = {
    libvirt.VIR_DOMAIN_SHUTOFF_UNKNOWN: "",
    libvirt.VIR_DOMAIN_SHUTOFF_SHUTDOWN: "SHUTDOWN",
    libvirt.VIR_DOMAIN_SHUTOFF_DESTROYED: "DESTROYED",
    libvirt.VIR_DOMAIN_SHUTOFF_CRASHED: "CRASHED",
    libvirt.VIR_DOMAIN_SHUTOFF_MIGRATED: "MIGRATED",
    libvirt.VIR_DOMAIN_SHUTOFF_SAVED: "SAVED",
    libvirt.VIR_DOMAIN_SHUTOFF_FAILED: "FAILED",
    libvirt.VIR_DOMAIN_SHUTOFF_FROM_SNAPSHOT: "FROM_SNAPSHOT",
    libvirt.VIR_DOMAIN_SHUTOFF_DAEMON: "DAEMON",
}

_PAUSED_REASONS: Final = {
    libvirt.VIR_DOMAIN_PAUSED_USER: "USER",
    libvirt.VIR_DOMAIN_PAUSED_MIGRATION: "MIGRATION",
    libvirt.VIR_DOMAIN_PAUSED_SAVE: "SAVE",
    libvirt.VIR_DOMAIN_PAUSED_DUMP: "DUMP",
    libvirt.VIR_DOMAIN_PAUSED_IOERROR: "IO_ERROR",
    libvirt.VIR_DOMAIN_PAUSED_WATCHDOG: "WATCHDOG",
    libvirt.VIR_DOMAIN_PAUSED_FROM_SNAPSHOT: "FROM_SNAPSHOT",
    libvirt.VIR_DOMAIN_PAUSED_SHUTTING_DOWN: "SHUTTING_DOWN",
    libvirt.VIR_DOMAIN_PAUSED_SNAPSHOT: "SNAPSHOT",
    libvirt.VIR_DOMAIN_PAUSED_CRASHED: "CRASHED",
    libvirt.VIR_DOMAIN_PAUSED_STARTING_UP: "STARTING_UP",
}

_RUNNING_REASONS: Final = {
    libvirt.VIR_DOMAIN_RUNNING_BOOTED: "BOOTED",
    libvirt.VIR_DOMAIN_RUNNING_MIGRATED: "MIGRATED",
    libvirt.VIR_DOMAIN_RUNNING_RESTORED: "RESTORED",
    libvirt.VIR_DOMAIN_RUNNING_FROM_SNAPSHOT: "FROM_SNAPSHOT",
    libvirt.VIR_DOMAIN_RUNNING_UNPAUSED: "RESUMED",
    libvirt.VIR_DOMAIN_RUNNING_WAKEUP: "WAKEUP",
    libvirt.VIR_DOMAIN_RUNNING_CRASHED: "CRASHED",
}

_REASONS: Final = {
    libvirt.VIR_DOMAIN_SHUTOFF: _SHUTOFF_REASONS,
    libvirt.VIR_DOMAIN_PAUSED: _PAUSED_REASONS,
    libvirt.VIR_DOMAIN_RUNNING: _RUNNING_REASONS,
    libvirt.VIR_DOMAIN_CRASHED: {libvirt.VIR_DOMAIN_CRASHED_PANICKED: "PANICKED"},
    libvirt.VIR_DOMAIN_PMSUSPENDED: {0: "PM_SUSPENDED"},
}

ACTIVE: Final = frozenset(
    {
        libvirt.VIR_DOMAIN_RUNNING,
        libvirt.VIR_DOMAIN_BLOCKED,
        libvirt.VIR_DOMAIN_PAUSED,
        libvirt.VIR_DOMAIN_SHUTDOWN,
        libvirt.VIR_DOMAIN_PMSUSPENDED,
    }
)
"""Native states in which a process of the guest exists."""


@dataclass(frozen=True, slots=True)
class State:
    """A state, virtd's word for why, and libvirt's own words."""

    state: GuestState
    reason: str
    native: str


def state_of(state: int, reason: int, *, saved: bool = False) -> State:
    """Translate ``virDomainGetState``.

    A guest whose process died without a shutdown is CRASHED, also when libvirt calls it "shut off,
    because crashed".

    :param saved: whether it has a managed save image: shut off then means SUSPENDED.
    """
    ours = _STATES.get(state, GuestState.UNKNOWN)
    why = _REASONS.get(state, {}).get(reason, "")
    native = _NATIVE.get(state, f"state {state}")
    if state == libvirt.VIR_DOMAIN_SHUTOFF and saved:
        ours, why = GuestState.SUSPENDED, "SAVED"
    elif why == "CRASHED" and state in (libvirt.VIR_DOMAIN_SHUTOFF, libvirt.VIR_DOMAIN_PAUSED):
        ours = GuestState.CRASHED
    elif why == "STARTING_UP":
        ours = GuestState.STARTING
    return State(ours, why, native)


_STOPPED_EVENTS: Final = {
    libvirt.VIR_DOMAIN_EVENT_STOPPED_SHUTDOWN: (GuestState.STOPPED, "SHUTDOWN"),
    libvirt.VIR_DOMAIN_EVENT_STOPPED_DESTROYED: (GuestState.STOPPED, "DESTROYED"),
    libvirt.VIR_DOMAIN_EVENT_STOPPED_CRASHED: (GuestState.CRASHED, "CRASHED"),
    libvirt.VIR_DOMAIN_EVENT_STOPPED_MIGRATED: (GuestState.STOPPED, "MIGRATED"),
    libvirt.VIR_DOMAIN_EVENT_STOPPED_SAVED: (GuestState.SUSPENDED, "SAVED"),
    libvirt.VIR_DOMAIN_EVENT_STOPPED_FAILED: (GuestState.CRASHED, "FAILED"),
    libvirt.VIR_DOMAIN_EVENT_STOPPED_FROM_SNAPSHOT: (GuestState.STOPPED, "FROM_SNAPSHOT"),
}

_STARTED_REASONS: Final = {
    libvirt.VIR_DOMAIN_EVENT_STARTED_BOOTED: "BOOTED",
    libvirt.VIR_DOMAIN_EVENT_STARTED_MIGRATED: "MIGRATED",
    libvirt.VIR_DOMAIN_EVENT_STARTED_RESTORED: "RESTORED",
    libvirt.VIR_DOMAIN_EVENT_STARTED_FROM_SNAPSHOT: "FROM_SNAPSHOT",
    libvirt.VIR_DOMAIN_EVENT_STARTED_WAKEUP: "WAKEUP",
}

_SUSPENDED_REASONS: Final = {
    libvirt.VIR_DOMAIN_EVENT_SUSPENDED_PAUSED: "USER",
    libvirt.VIR_DOMAIN_EVENT_SUSPENDED_MIGRATED: "MIGRATION",
    libvirt.VIR_DOMAIN_EVENT_SUSPENDED_IOERROR: "IO_ERROR",
    libvirt.VIR_DOMAIN_EVENT_SUSPENDED_WATCHDOG: "WATCHDOG",
    libvirt.VIR_DOMAIN_EVENT_SUSPENDED_RESTORED: "RESTORED",
    libvirt.VIR_DOMAIN_EVENT_SUSPENDED_FROM_SNAPSHOT: "FROM_SNAPSHOT",
    libvirt.VIR_DOMAIN_EVENT_SUSPENDED_API_ERROR: "API_ERROR",
}

_RESUMED_REASONS: Final = {
    libvirt.VIR_DOMAIN_EVENT_RESUMED_UNPAUSED: "RESUMED",
    libvirt.VIR_DOMAIN_EVENT_RESUMED_MIGRATED: "MIGRATED",
    libvirt.VIR_DOMAIN_EVENT_RESUMED_FROM_SNAPSHOT: "FROM_SNAPSHOT",
}


_DETAILED_EVENTS: Final = {
    libvirt.VIR_DOMAIN_EVENT_STARTED: (GuestState.RUNNING, _STARTED_REASONS),
    libvirt.VIR_DOMAIN_EVENT_RESUMED: (GuestState.RUNNING, _RESUMED_REASONS),
    libvirt.VIR_DOMAIN_EVENT_SUSPENDED: (GuestState.PAUSED, _SUSPENDED_REASONS),
}

_PLAIN_EVENTS: Final = {
    libvirt.VIR_DOMAIN_EVENT_PMSUSPENDED: (GuestState.PAUSED, "PM_SUSPENDED"),
    libvirt.VIR_DOMAIN_EVENT_SHUTDOWN: (GuestState.STOPPING, "SHUTDOWN"),
    libvirt.VIR_DOMAIN_EVENT_CRASHED: (GuestState.CRASHED, "PANICKED"),
}


def state_after(event: int, detail: int) -> tuple[GuestState, str] | None:
    """State and reason after a lifecycle event, as far as the event tells; None where it changes none.

    After STOPPED with SAVED or FAILED the event alone does not tell (a save to a file of somebody's
    own leaves the guest stopped; a failed start is no crash): ask the host.
    """
    if event in _PLAIN_EVENTS:
        return _PLAIN_EVENTS[event]
    if event == libvirt.VIR_DOMAIN_EVENT_STOPPED:
        return _STOPPED_EVENTS.get(detail, (GuestState.STOPPED, ""))
    if event in _DETAILED_EVENTS:
        state, reasons = _DETAILED_EVENTS[event]
        return state, reasons.get(detail, "")
    return None
