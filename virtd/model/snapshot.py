"""Snapshots of guests."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum


class SnapshotKind(StrEnum):
    """DISK: disks only.  DISK_AND_MEMORY: the running guest as it was."""

    DISK = "DISK"
    DISK_AND_MEMORY = "DISK_AND_MEMORY"


@dataclass(frozen=True, slots=True)
class Snapshot:
    """``hosts/{host}/guests/{guest}/snapshots/{snapshot}``.

    ``parent`` is the parent snapshot's id, empty for a root.  ``guest_state`` is the guest's state
    at that moment; reverting restores it.
    """

    name: str
    description: str = ""
    kind: SnapshotKind = SnapshotKind.DISK
    parent: str = ""
    current: bool = False
    guest_state: str = ""
    location: str = ""
    create_time: datetime | None = None
