"""Pools, volumes and images."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum


class PoolState(StrEnum):
    """Whether a pool can be used now."""

    ACTIVE = "ACTIVE"
    INACTIVE = "INACTIVE"
    UNKNOWN = "UNKNOWN"


class PoolKind(StrEnum):
    """Kinds of pools that virtd makes."""

    DIR = "DIR"
    """A directory."""
    LOGICAL = "LOGICAL"
    """An LVM volume group."""
    NFS = "NFS"
    """A directory that an NFS server exports."""


class Preallocation(StrEnum):
    """How much of a blank volume's room is taken when it is made."""

    NONE = "NONE"
    METADATA = "METADATA"
    """QCOW2 only: its tables, so that they need not be written later."""
    FULL = "FULL"
    """All of it: a guest cannot find the pool full."""


@dataclass(frozen=True, slots=True)
class Pool:
    """``hosts/{host}/pools/{pool}``: a place for volumes.  ``path`` is a directory of the host.

    ``source`` is what it is made of where that is not the path: ``server:/export``, a volume group.
    ``autostart`` is None where the hypervisor does not tell.
    """

    name: str
    kind: str = ""
    path: str = ""
    state: PoolState = PoolState.UNKNOWN
    capacity_bytes: int | None = None
    allocation_bytes: int | None = None
    available_bytes: int | None = None
    source: str = ""
    autostart: bool | None = None


@dataclass(frozen=True, slots=True)
class Volume:
    """``hosts/{host}/pools/{pool}/volumes/{volume}``: one disk image in a pool.

    ``used_by`` names the guests that have it attached, as far as virtd sees.
    """

    name: str
    path: str = ""
    format: str = ""
    capacity_bytes: int | None = None
    allocation_bytes: int | None = None
    backing_path: str = ""
    used_by: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Image:
    """``images/{image}``: a read-only source of disks in virtd's catalogue.

    ``digest`` is ``sha256:<hex>`` of the file as imported.
    """

    name: str
    digest: str = ""
    format: str = ""
    size_bytes: int = 0
    capacity_bytes: int | None = None
    source: str = ""
    create_time: datetime | None = None
