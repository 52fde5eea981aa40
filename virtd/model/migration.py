"""Moving a guest between two hosts of one hypervisor: what was asked for, and what the check of it found."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class MigrationMode(StrEnum):
    """AUTO: LIVE for a guest that runs, OFFLINE for one that does not."""

    AUTO = "AUTO"
    LIVE = "LIVE"
    OFFLINE = "OFFLINE"


class FindingSeverity(StrEnum):
    """CRITICAL: the migration is refused.  WARNING: something is lost or uncertain.  INFORMATION: good to know."""

    CRITICAL = "CRITICAL"
    WARNING = "WARNING"
    INFORMATION = "INFORMATION"


class MigrationReason(StrEnum):
    """Why there is a finding.  Part of the public API: never renamed, never reused."""

    SAME_HOST = "SAME_HOST"
    OTHER_HYPERVISOR = "OTHER_HYPERVISOR"
    TARGET_UNREACHABLE = "TARGET_UNREACHABLE"
    UNSUPPORTED = "UNSUPPORTED"
    WRONG_STATE = "WRONG_STATE"
    GUEST_NOT_ADOPTED = "GUEST_NOT_ADOPTED"
    SAVED_STATE = "SAVED_STATE"
    FROZEN = "FROZEN"
    NAME_TAKEN = "NAME_TAKEN"
    UUID_TAKEN = "UUID_TAKEN"
    CPU_INCOMPATIBLE = "CPU_INCOMPATIBLE"
    CPU_UNKNOWN = "CPU_UNKNOWN"
    ACCELERATOR_MISSING = "ACCELERATOR_MISSING"
    ARCHITECTURE_DIFFERS = "ARCHITECTURE_DIFFERS"
    MACHINE_MISSING = "MACHINE_MISSING"
    MEMORY_SHORT = "MEMORY_SHORT"
    HYPERVISOR_OLDER = "HYPERVISOR_OLDER"
    STORAGE_NOT_SHARED = "STORAGE_NOT_SHARED"
    STORAGE_SHARED = "STORAGE_SHARED"
    STORAGE_COPIED = "STORAGE_COPIED"
    STORAGE_NOT_COPYABLE = "STORAGE_NOT_COPYABLE"
    STORAGE_FULL = "STORAGE_FULL"
    POOL_MISSING = "POOL_MISSING"
    VOLUME_TAKEN = "VOLUME_TAKEN"
    DISK_WITHOUT_POOL = "DISK_WITHOUT_POOL"
    MEDIUM_NOT_SHARED = "MEDIUM_NOT_SHARED"
    DEVICE_BLOCKS = "DEVICE_BLOCKS"
    NETWORK_MISSING = "NETWORK_MISSING"
    FILE_MISSING = "FILE_MISSING"
    SNAPSHOTS_PRESENT = "SNAPSHOTS_PRESENT"
    BACKUP_CHAIN_ENDS = "BACKUP_CHAIN_ENDS"
    SCHEDULE_LOSES_GUEST = "SCHEDULE_LOSES_GUEST"
    CHANGES_PENDING = "CHANGES_PENDING"
    CONNECTION_UNKNOWN = "CONNECTION_UNKNOWN"
    CONNECTION_DERIVED = "CONNECTION_DERIVED"
    POST_COPY_RISK = "POST_COPY_RISK"
    ADDRESSES_CHANGE = "ADDRESSES_CHANGE"


@dataclass(frozen=True, slots=True)
class MigrationFinding:
    """One thing that the check found.

    :param reason: a value of :class:`MigrationReason`.
    :param message: one sentence.
    :param remedy: what to do about it; empty where there is nothing to do.
    :param subject: the part of the guest or the request that it is about (``disks[root]``); may be empty.
    """

    severity: FindingSeverity
    reason: str
    message: str
    remedy: str = ""
    subject: str = ""


class DiskPassage(StrEnum):
    """How a disk gets to the target.

    SHARED: it lies where both hosts see it.  MIRRORED: the hypervisors copy it while the guest runs.
    COPIED: virtd copies it.
    """

    SHARED = "SHARED"
    MIRRORED = "MIRRORED"
    COPIED = "COPIED"


@dataclass(frozen=True, slots=True)
class MigrationDisk:
    """One disk's way.  ``pool`` and ``volume`` are the bare ids on the target; empty where it is SHARED."""

    disk: str
    passage: DiskPassage
    path: str
    capacity_bytes: int | None = None
    pool: str = ""
    volume: str = ""


@dataclass(frozen=True, slots=True)
class MigrationCheck:
    """What a migration would be.  ``possible``: no finding is CRITICAL.  ``mode`` is never AUTO."""

    possible: bool
    mode: MigrationMode
    target: str
    findings: tuple[MigrationFinding, ...] = ()
    disks: tuple[MigrationDisk, ...] = ()


@dataclass(frozen=True, slots=True)
class MigrationRequest:
    """What a caller asks for.

    :param target_host: the host's id.
    :param copy_storage: copy the disks to ``pool`` of the target.
    :param copy_disks: only these, by their names; empty: all.
    :param pool: empty: virtd's own.
    :param post_copy: after one pass over the memory let the guest run on the target while the rest follows.
    :param auto_converge: slow the guest's processors down where its memory changes faster than it is sent.
    :param bandwidth_bytes_per_s: at most; None: no limit.
    :param max_downtime_ms: how long the guest may stand still at the end; None: what the hypervisor does by itself.
    :param discard_saved_state: throw the saved memory of a suspended guest away.
    """

    target_host: str
    mode: MigrationMode = MigrationMode.AUTO
    copy_storage: bool = False
    copy_disks: tuple[str, ...] = ()
    pool: str = ""
    post_copy: bool = False
    auto_converge: bool = False
    bandwidth_bytes_per_s: int | None = None
    max_downtime_ms: int | None = None
    discard_saved_state: bool = False
