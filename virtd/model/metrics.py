"""Usage of guests.  Counters only ever grow while a guest runs; None is "not known here"."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from uuid import UUID


@dataclass(frozen=True, slots=True)
class BlockMetrics:
    """Counters of one disk since the guest's start."""

    name: str
    read_bytes: int | None = None
    written_bytes: int | None = None
    read_requests: int | None = None
    write_requests: int | None = None


@dataclass(frozen=True, slots=True)
class InterfaceMetrics:
    """Counters of one interface since the guest's start."""

    name: str
    received_bytes: int | None = None
    sent_bytes: int | None = None
    received_packets: int | None = None
    sent_packets: int | None = None


@dataclass(frozen=True, slots=True)
class GuestMetrics:
    """One sample of one guest."""

    uid: UUID
    sample_time: datetime
    cpu_time_s: float | None = None
    vcpus: int | None = None
    memory_assigned_bytes: int | None = None
    memory_used_bytes: int | None = None
    memory_rss_bytes: int | None = None
    blocks: tuple[BlockMetrics, ...] = ()
    interfaces: tuple[InterfaceMetrics, ...] = ()


@dataclass(frozen=True, slots=True)
class UsagePoint:
    """A guest's usage over one span of time, as averages.

    ``start_time`` is the span's beginning and ``covered_s`` how much of it was observed, in seconds:
    less than the resolution where the guest was down, the daemon was away, or the span is not over.
    A span without observation has no point at all.  None is "not known here", never zero.
    """

    start_time: datetime
    covered_s: float
    cpu_cores: float | None = None
    cpu_cores_max: float | None = None
    memory_assigned_bytes: int | None = None
    memory_used_bytes: int | None = None
    memory_rss_bytes: int | None = None
    disk_read_bytes_per_s: float | None = None
    disk_written_bytes_per_s: float | None = None
    disk_reads_per_s: float | None = None
    disk_writes_per_s: float | None = None
    received_bytes_per_s: float | None = None
    sent_bytes_per_s: float | None = None
