"""Backups of guests: copies of their disks in a repository of virtd's own."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum

from virtd.model.guest import GuestSpec


class BackupKind(StrEnum):
    """FULL: everything.  INCREMENTAL: what has changed since the parent.  AUTO (requests only): what is possible."""

    FULL = "FULL"
    INCREMENTAL = "INCREMENTAL"
    AUTO = "AUTO"


@dataclass(frozen=True, slots=True)
class BackupDisk:
    """One disk in a backup.

    ``stored_bytes`` is what lies in the repository, ``digest`` its ``sha256:<hex>``.  ``content_digest`` is that of
    the whole disk as it was: sha256 of the sha256 of each 256 KiB block, the last one shorter.  ``reason`` says why
    a disk was kept in full in an incremental backup.
    """

    name: str
    kind: BackupKind = BackupKind.FULL
    format: str = ""
    capacity_bytes: int = 0
    stored_bytes: int = 0
    digest: str = ""
    content_digest: str = ""
    reason: str = ""


@dataclass(frozen=True, slots=True)
class Backup:
    """``backups/{backup}``: a guest's disks and definition at one moment.

    ``parent`` is the backup's name that an incremental one needs.  ``guest`` and ``guest_uid`` are the source, which
    may be gone.  ``quiesced``: its file systems were frozen.  ``create_time`` is the moment that the content is of.
    """

    name: str
    repository: str = ""
    kind: BackupKind = BackupKind.FULL
    parent: str = ""
    guest: str = ""
    guest_uid: str = ""
    display_name: str = ""
    guest_state: str = ""
    quiesced: bool = False
    description: str = ""
    disks: tuple[BackupDisk, ...] = ()
    spec: GuestSpec = field(default_factory=GuestSpec)
    stored_bytes: int = 0
    warnings: tuple[str, ...] = ()
    create_time: datetime | None = None


@dataclass(frozen=True, slots=True)
class BackupProblem:
    """What is wrong with a file of a backup; ``file`` is relative to the backup's directory, empty for the whole."""

    backup: str
    file: str = ""
    description: str = ""


@dataclass(frozen=True, slots=True)
class BackupVerification:
    """What a verification has found.  ``chain`` is every backup that was looked at, the full one first."""

    name: str
    valid: bool = False
    chain: tuple[str, ...] = ()
    problems: tuple[BackupProblem, ...] = ()
    checked_bytes: int = 0


@dataclass(frozen=True, slots=True)
class Repository:
    """A place for backups: a directory of the daemon's machine."""

    name: str
    path: str = ""
    available_bytes: int | None = None
    backup_count: int = 0
    stored_bytes: int = 0
