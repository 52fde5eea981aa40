"""Which verbs are legal in which state: one table, used for ``allowed_actions`` and for refusals."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Final

from virtd.backend import capabilities as cap
from virtd.model.guest import GuestState, Origin, Presence
from virtd.model.host import Capability, CapabilityLevel

S = GuestState
_ACTIVE: Final = frozenset({S.RUNNING, S.PAUSED, S.STARTING, S.STOPPING})
_INACTIVE: Final = frozenset({S.STOPPED, S.CRASHED, S.SUSPENDED})

# An unknown state never blocks stop and delete (Multipass could not delete an "aborted" machine).
LEGAL_STATES: Final[Mapping[str, frozenset[GuestState]]] = {
    "start": frozenset({S.STOPPED, S.CRASHED, S.SUSPENDED, S.RUNNING, S.UNKNOWN}),
    "shutdown": frozenset({S.RUNNING, S.STOPPED, S.CRASHED, S.STOPPING}),
    "stop": frozenset(S),
    "reboot": frozenset({S.RUNNING}),
    "reset": frozenset({S.RUNNING, S.PAUSED}),
    "pause": frozenset({S.RUNNING, S.PAUSED}),
    "resume": frozenset({S.PAUSED, S.RUNNING}),
    "suspend": frozenset({S.RUNNING, S.PAUSED, S.SUSPENDED}),
    "discard": frozenset({S.SUSPENDED, S.STOPPED}),
    "clone": frozenset({S.STOPPED, S.CRASHED}),
    "migrate": _INACTIVE | {S.RUNNING, S.PAUSED},
    "delete": frozenset(S),
    "adopt": frozenset(S),
    "update": frozenset(S),
    "release": frozenset(S),
    "snapshot": _INACTIVE | {S.RUNNING, S.PAUSED},
    "revert": frozenset(S),
    "backup": _INACTIVE | {S.RUNNING, S.PAUSED},
    "exec": frozenset({S.RUNNING}),
    "freeze": frozenset({S.RUNNING}),
    "thaw": frozenset({S.RUNNING}),
    "console": frozenset(S),
    "screenshot": frozenset({S.RUNNING, S.PAUSED}),
    "graphics": frozenset({S.RUNNING, S.PAUSED}),
}
"""A verb that finds its work already done (start of a running guest) is legal, and succeeds."""

# What a person is offered: without the verbs that would do nothing.
_OFFERED: Final[Mapping[str, frozenset[GuestState]]] = {
    "start": frozenset({S.STOPPED, S.CRASHED, S.SUSPENDED, S.UNKNOWN}),
    "shutdown": frozenset({S.RUNNING}),
    "stop": _ACTIVE | {S.UNKNOWN},
    "pause": frozenset({S.RUNNING}),
    "resume": frozenset({S.PAUSED}),
    "suspend": frozenset({S.RUNNING, S.PAUSED}),
    "discard": frozenset({S.SUSPENDED}),
}

CAPABILITY_OF: Final[Mapping[str, str]] = {
    "shutdown": cap.SHUTDOWN,
    "reset": cap.RESET,
    "pause": cap.PAUSE,
    "resume": cap.PAUSE,
    "suspend": cap.SUSPEND,
    "discard": cap.SUSPEND,
    "clone": cap.CLONE,
    "migrate": cap.MIGRATE,
    "snapshot": cap.SNAPSHOT,
    "revert": cap.SNAPSHOT_REVERT,
    "backup": cap.BACKUP,
    "exec": cap.AGENT_EXEC,
    "freeze": cap.AGENT_FREEZE,
    "thaw": cap.AGENT_FREEZE,
    "console": cap.CONSOLE_SERIAL,
    "screenshot": cap.SCREENSHOT,
    "graphics": cap.CONSOLE_GRAPHICAL,
}
"""The capability that a verb needs.  Reboot needs REBOOT, or SHUTDOWN to be emulated with."""

_MISSING: Final = (CapabilityLevel.UNSUPPORTED, CapabilityLevel.UNKNOWN)


def legal_in(state: GuestState) -> tuple[str, ...]:
    """The verbs that are legal in a state, whatever the host can do."""
    return tuple(verb for verb, states in LEGAL_STATES.items() if state in _OFFERED.get(verb, states))


def allowed_actions(
    state: GuestState, origin: Origin, presence: Presence, capabilities: Iterable[Capability]
) -> tuple[str, ...]:
    """The verbs that make sense for a guest now."""
    if origin is Origin.FOREIGN:
        return ("adopt",)
    if presence is Presence.ABSENT:
        return ("delete",)
    missing = {entry.id for entry in capabilities if entry.level in _MISSING}
    return tuple(
        verb
        for verb in legal_in(state)
        if verb != "adopt"
        and CAPABILITY_OF.get(verb) not in missing
        and not (verb == "reboot" and {cap.REBOOT, cap.SHUTDOWN} <= missing)
    )
