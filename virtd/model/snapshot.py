"""Snapshots of guests."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum


class SnapshotKind(StrEnum):
    """DISK: disks only.  DISK_AND_MEMORY: the running guest as it was."""

    DISK = "DISK"
    DISK_AND_MEMORY = "DISK_AND_MEMORY"


class SnapshotLocation(StrEnum):
    """Where a snapshot shall be kept.  AUTO: the host chooses, and says why."""

    AUTO = "AUTO"
    INTERNAL = "INTERNAL"
    EXTERNAL = "EXTERNAL"


INTERNAL = "internal"
"""``Snapshot.location``: inside the guest's disk images."""
EXTERNAL = "external"
"""``Snapshot.location``: the images as they were, below new images for what comes later."""
COPY = "copy"
"""``Snapshot.location``: whole copies of the disks, in volumes of their own."""


@dataclass(frozen=True, slots=True)
class Snapshot:
    """``hosts/{host}/guests/{guest}/snapshots/{snapshot}``.

    ``parent`` is the parent snapshot's id, empty for a root.  ``guest_state`` is the guest's state
    at that moment; reverting to one with memory restores it, reverting to one without leaves the guest
    stopped.  ``reason`` says why it is kept where it is, where the plan of its creation knows.
    """

    name: str
    description: str = ""
    kind: SnapshotKind = SnapshotKind.DISK
    parent: str = ""
    current: bool = False
    guest_state: str = ""
    location: str = ""
    create_time: datetime | None = None
    reason: str = ""
