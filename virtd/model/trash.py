"""Deleted guests that can be brought back."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum

from virtd.model.guest import Guest


class DiskPolicy(StrEnum):
    """What becomes of a deleted guest's disks.  Disks that virtd did not create always stay."""

    DELETE = "DELETE"
    KEEP = "KEEP"
    TRASH = "TRASH"


class CloneMode(StrEnum):
    """FULL: copies.  LINKED: overlays over the disks as they are now."""

    FULL = "FULL"
    LINKED = "LINKED"


@dataclass(frozen=True, slots=True)
class TrashEntry:
    """``trash/{entry}``: a guest as it was when it was deleted, and what is kept of it.

    ``volumes`` are resource names.  ``purge_time`` None: never by itself.  ``lost``: what could not be
    kept, one sentence each.
    """

    name: str
    guest: Guest
    volumes: tuple[str, ...] = ()
    trash_time: datetime | None = None
    purge_time: datetime | None = None
    caller: str = ""
    lost: tuple[str, ...] = ()
