"""Schedules: what virtd does by itself, again and again."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime

from virtd.errors import ErrorRecord
from virtd.model.snapshot import SnapshotLocation


@dataclass(frozen=True, slots=True)
class SnapshotAction:
    """Take a snapshot."""

    memory: bool = False
    location: SnapshotLocation | None = None
    quiesce: bool = False


@dataclass(frozen=True, slots=True)
class BackupAction:
    """Make a backup.  After so many ``increments`` (None: the default) the next one is full."""

    repository: str = ""
    quiesce: bool = False
    increments: int | None = None


@dataclass(frozen=True, slots=True)
class Retention:
    """What is kept; each number counts as in its name.  All zero: everything."""

    keep_last: int = 0
    keep_hourly: int = 0
    keep_daily: int = 0
    keep_weekly: int = 0
    keep_monthly: int = 0


@dataclass(frozen=True, slots=True)
class ScheduleStatus:
    """What became of a schedule."""

    next_run_time: datetime | None = None
    last_run_time: datetime | None = None
    last_success_time: datetime | None = None
    last_error: ErrorRecord | None = None
    failures: int = 0
    running: bool = False
    operations: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Schedule:
    """``schedules/{schedule}``: for one guest or for those that a filter finds, by cron or every so often."""

    name: str
    description: str = ""
    guest: str = ""
    filter: str = ""
    cron: str = ""
    every_s: float = 0.0
    time_zone: str = ""
    snapshot: SnapshotAction | None = None
    backup: BackupAction | None = None
    retention: Retention = field(default_factory=Retention)
    paused: bool = False
    etag: str = ""
    status: ScheduleStatus = field(default_factory=ScheduleStatus)
    create_time: datetime | None = None
    update_time: datetime | None = None
