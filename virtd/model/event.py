"""Events: what changed, in one total order per daemon."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum


class EventType(StrEnum):
    """What happened to the resource that the event names."""

    GUEST_ADDED = "GUEST_ADDED"
    GUEST_CHANGED = "GUEST_CHANGED"
    GUEST_REMOVED = "GUEST_REMOVED"
    GUEST_STATE_CHANGED = "GUEST_STATE_CHANGED"
    OPERATION_CHANGED = "OPERATION_CHANGED"
    HOST_ADDED = "HOST_ADDED"
    HOST_CHANGED = "HOST_CHANGED"
    HOST_REMOVED = "HOST_REMOVED"
    SNAPSHOT_ADDED = "SNAPSHOT_ADDED"
    SNAPSHOT_REMOVED = "SNAPSHOT_REMOVED"
    GUEST_REBOOTED = "GUEST_REBOOTED"
    GUEST_WATCHDOG = "GUEST_WATCHDOG"
    SCHEDULE_RUN = "SCHEDULE_RUN"


@dataclass(frozen=True, slots=True)
class Event:
    """One event.

    ``payload`` is the resource's protobuf encoding after the change, made once and shared by every
    watcher (empty for a removal); the event log does not look inside it.
    ``attributes`` carry what filters use and what a person wants at a glance
    (``state``, ``previous_state``, ``reason``, ``verb``).
    """

    revision: int
    time: datetime
    type: EventType
    resource: str
    uid: str = ""
    payload: bytes = b""
    attributes: Mapping[str, str] = field(default_factory=dict)
