"""The history of guests' usage, in bounded space.

Samples come every few seconds.  Here they become points of a minute, kept for a day; those become points
of a quarter of an hour, kept for a month (:data:`TIERS`).  What is kept depends on the number of guests
and on nothing else: about 4,300 rows a guest.

* Counters are turned into what was used *between two samples*; a counter that fell (the guest was started
  anew) ends the one span and begins another, it is never a negative or a huge number.
* What was not observed is not there: a gap is a gap, and each point says how much of it was seen.
* The coarse tier is made from the fine one in the database, so a crash costs at most the last minute.

Only on the event loop, but for what :class:`virtd.store.Database` runs on its threads.
"""

from __future__ import annotations

import asyncio
import sqlite3
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Final
from uuid import UUID

from virtd.errors import VirtdError
from virtd.model.metrics import GuestMetrics, UsagePoint
from virtd.store import Database


@dataclass(frozen=True, slots=True)
class Tier:
    """Points of ``step_s`` seconds, kept for ``keep_s`` seconds."""

    step_s: int
    keep_s: int


TIERS: Final = (Tier(60, 86_400), Tier(900, 31 * 86_400))
GAP_S: Final = 120.0
"""Two samples that lie further apart say nothing of the time between them."""

# Sums over the observed part of a span.  Each value has what it is to be divided by beside it, for a value
# may be known in some samples only.
_SUMS: Final = (
    "covered_s", "cpu_s", "cpu_n_s", "assigned", "assigned_n", "used", "used_n", "rss", "rss_n",
    "read_bytes", "written_bytes", "reads", "writes", "disk_n_s", "received_bytes", "sent_bytes", "net_n_s",
)  # fmt: skip
_COLUMNS: Final = (*_SUMS, "cpu_max")
_FOLDED: Final = ", ".join([*(f"SUM({name})" for name in _SUMS), "MAX(cpu_max)"])
_INSERT: Final = (
    f"INSERT INTO usage (tier, uid, time, {', '.join(_COLUMNS)}) "  # noqa: S608 - names of our own columns only
    f"VALUES (?, ?, ?, {', '.join('?' * len(_COLUMNS))}) ON CONFLICT (tier, uid, time) DO UPDATE SET "
    + ", ".join([*(f"{name} = {name} + excluded.{name}" for name in _SUMS), "cpu_max = MAX(cpu_max, excluded.cpu_max)"])
)


class _Open:
    """The span that a guest is in now."""

    __slots__ = ("slot", "values")

    def __init__(self, slot: int) -> None:
        self.slot = slot
        self.values = dict.fromkeys(_COLUMNS, 0.0)

    def row(self) -> tuple[float, ...]:
        return tuple(self.values[name] for name in _COLUMNS)


class UsageHistory:
    """Collects, keeps, and answers.

    :param clock: Unix time.
    """

    def __init__(self, database: Database, clock: Callable[[], float] = time.time) -> None:
        self._database = database
        self._clock = clock
        self._last: dict[UUID, GuestMetrics] = {}
        self._open: dict[UUID, _Open] = {}
        self._written: Future[None] | None = None

    def observe(self, samples: Iterable[GuestMetrics]) -> None:
        """Take in a host's samples.  Spans that are over are written behind; nothing is waited for."""
        finished: list[tuple[UUID, _Open]] = []
        for sample in samples:
            before = self._last.get(sample.uid)
            self._last[sample.uid] = sample
            slot = _slot(sample.sample_time.timestamp(), TIERS[0])
            span = self._open.get(sample.uid)
            if span is None or span.slot != slot:
                if span is not None and span.values["covered_s"]:
                    finished.append((sample.uid, span))
                span = self._open[sample.uid] = _Open(slot)
            if before is not None:
                _add(span.values, before, sample)
        if finished:
            self._store(finished)

    def flush(self) -> Future[None] | None:
        """Write the spans that are not over; they are added to when they go on.  None: there was nothing."""
        finished = [(uid, span) for uid, span in self._open.items() if span.values["covered_s"]]
        self._open.clear()
        return self._store(finished) if finished else None

    async def compact(self) -> None:
        """Write what nobody adds to any more, make coarse points of fine ones, and drop what is too old."""
        now = self._clock()
        stale = [uid for uid, span in self._open.items() if span.slot < _slot(now - GAP_S, TIERS[0])]
        finished = [(uid, self._open.pop(uid)) for uid in stale]
        for uid in stale:
            del self._last[uid]  # it is down or gone
        self._store([entry for entry in finished if entry[1].values["covered_s"]])
        await self._database.write(lambda connection: _compact(connection, now))

    async def points(
        self, uid: UUID, start: float, end: float, resolution_s: int = 0
    ) -> tuple[int, Sequence[UsagePoint]]:
        """The points whose spans begin in [start, end), oldest first, and their resolution in seconds.

        :param resolution_s: at least so many seconds each; 0: the finest tier that reaches back to ``start``.
        """
        tier = self._tier(start, resolution_s)
        fine = TIERS[0]
        span = self._open.get(uid)
        if self._written is not None:
            with suppress(VirtdError):  # a full disk costs history; what is there can still be read
                await asyncio.shield(asyncio.wrap_future(self._written))
        rows = await self._database.read(lambda connection: _rows(connection, uid, tier, start, end))
        merged = {int(row[0]): row[1:] for row in rows}
        if span is not None and span.values["covered_s"] and start <= _begin(span.slot * fine.step_s, tier) < end:
            slot = _begin(span.slot * fine.step_s, tier)
            merged[slot] = _sum(merged.get(slot), span.row())
        return tier.step_s, [_point(time_s, merged[time_s]) for time_s in sorted(merged)]

    def _tier(self, start: float, resolution_s: int) -> Tier:
        now = self._clock()
        for tier in TIERS:
            if resolution_s and tier.step_s < resolution_s:
                continue
            if resolution_s or start >= now - tier.keep_s:
                return tier
        return TIERS[-1]

    def _store(self, finished: Sequence[tuple[UUID, _Open]]) -> Future[None]:
        rows = [(0, str(uid), span.slot * TIERS[0].step_s, *span.row()) for uid, span in finished]

        def insert(connection: sqlite3.Connection) -> None:
            connection.executemany(_INSERT, rows)

        self._written = self._database.submit(insert)
        return self._written


def _slot(at: float, tier: Tier) -> int:
    return int(at // tier.step_s)


def _begin(at: float, tier: Tier) -> int:
    return _slot(at, tier) * tier.step_s


def _add(values: dict[str, float], before: GuestMetrics, now: GuestMetrics) -> None:
    """Add what was used between two samples of one guest."""
    seconds = (now.sample_time - before.sample_time).total_seconds()
    if not 0 < seconds <= GAP_S:
        return
    values["covered_s"] += seconds
    for gauge, bytes_ in (
        ("assigned", now.memory_assigned_bytes),
        ("used", now.memory_used_bytes),
        ("rss", now.memory_rss_bytes),
    ):
        if bytes_ is not None:
            values[gauge] += bytes_
            values[f"{gauge}_n"] += 1
    cpu = _grown(before.cpu_time_s, now.cpu_time_s)
    if cpu is None:
        return  # it was started anew: the other counters began again as well
    values["cpu_s"] += cpu
    values["cpu_n_s"] += seconds
    values["cpu_max"] = max(values["cpu_max"], cpu / seconds)
    disks = _grown_all(
        [(b.name, (b.read_bytes, b.written_bytes, b.read_requests, b.write_requests)) for b in before.blocks],
        [(b.name, (b.read_bytes, b.written_bytes, b.read_requests, b.write_requests)) for b in now.blocks],
    )
    if disks is not None:
        values["disk_n_s"] += seconds
        for name, value in zip(("read_bytes", "written_bytes", "reads", "writes"), disks, strict=True):
            values[name] += value
    net = _grown_all(
        [(i.name, (i.received_bytes, i.sent_bytes)) for i in before.interfaces],
        [(i.name, (i.received_bytes, i.sent_bytes)) for i in now.interfaces],
    )
    if net is not None:
        values["net_n_s"] += seconds
        values["received_bytes"] += net[0]
        values["sent_bytes"] += net[1]


def _grown(before: float | None, now: float | None) -> float | None:
    """How much a counter grew; None: not known, or it began anew."""
    return None if before is None or now is None or now < before else now - before


Counters = Sequence[tuple[str, tuple[int | None, ...]]]


def _grown_all(before: Counters, now: Counters) -> tuple[float, ...] | None:
    """How much the counters of all disks (or interfaces) grew together; None: not known.

    A device that has just been plugged in counts from the next sample on.
    """
    known = dict(before)
    grown = [
        tuple(_grown(old, new) for old, new in zip(known[name], values, strict=True))
        for name, values in now
        if name in known
    ]
    if not grown or any(value is None for row in grown for value in row):
        return None
    return tuple(sum(value or 0.0 for value in column) for column in zip(*grown, strict=True))


def _compact(connection: sqlite3.Connection, now: float) -> None:
    fine, coarse = TIERS
    done = connection.execute("SELECT value FROM meta WHERE key = 'usage_compacted'").fetchone()
    first = int(done[0]) if done else 0
    # A span is folded a minute after its end, when nobody adds to its parts any more.
    last = _begin(now - GAP_S - fine.step_s, coarse)
    if last > first:
        connection.execute(
            f"INSERT OR REPLACE INTO usage (tier, uid, time, {', '.join(_COLUMNS)}) "  # noqa: S608 - our own columns
            f"SELECT 1, uid, time / ? * ?, {_FOLDED} FROM usage WHERE tier = 0 AND time >= ? AND time < ? "
            "GROUP BY uid, time / ?",
            (coarse.step_s, coarse.step_s, first, last, coarse.step_s),
        )
        connection.execute("INSERT OR REPLACE INTO meta VALUES ('usage_compacted', ?)", (str(last),))
    for number, tier in enumerate(TIERS):
        connection.execute("DELETE FROM usage WHERE tier = ? AND time < ?", (number, now - tier.keep_s))


def _rows(connection: sqlite3.Connection, uid: UUID, tier: Tier, start: float, end: float) -> list[tuple[float, ...]]:
    columns = ", ".join(_COLUMNS)
    number = TIERS.index(tier)
    rows: list[tuple[float, ...]] = connection.execute(
        f"SELECT time, {columns} FROM usage WHERE tier = ? AND uid = ? AND time >= ? AND time < ? ORDER BY time",  # noqa: S608
        (number, str(uid), start, end),
    ).fetchall()
    if number:
        # What is not folded yet.
        done = connection.execute("SELECT value FROM meta WHERE key = 'usage_compacted'").fetchone()
        rows += connection.execute(
            f"SELECT time / ? * ?, {_FOLDED} FROM usage WHERE tier = 0 AND uid = ? AND time >= ? "  # noqa: S608
            "GROUP BY time / ? HAVING time / ? * ? >= ? AND time / ? * ? < ? ORDER BY 1",
            (
                tier.step_s, tier.step_s, str(uid), int(done[0]) if done else 0, tier.step_s,
                tier.step_s, tier.step_s, start, tier.step_s, tier.step_s, end,
            ),
        ).fetchall()  # fmt: skip
    return rows


def _sum(one: Sequence[float] | None, other: Sequence[float]) -> tuple[float, ...]:
    if one is None:
        return tuple(other)
    *sums, _ = (a + b for a, b in zip(one, other, strict=True))
    return (*sums, max(one[-1], other[-1]))


def _point(time_s: int, row: Sequence[float]) -> UsagePoint:
    values = dict(zip(_COLUMNS, row, strict=True))

    def average(name: str, over: str) -> float | None:
        return values[name] / values[over] if values[over] else None

    def whole(name: str) -> int | None:
        value = average(name, f"{name}_n")
        return None if value is None else round(value)

    return UsagePoint(
        start_time=datetime.fromtimestamp(time_s, UTC),
        covered_s=round(values["covered_s"], 3),
        cpu_cores=average("cpu_s", "cpu_n_s"),
        cpu_cores_max=values["cpu_max"] if values["cpu_n_s"] else None,
        memory_assigned_bytes=whole("assigned"),
        memory_used_bytes=whole("used"),
        memory_rss_bytes=whole("rss"),
        disk_read_bytes_per_s=average("read_bytes", "disk_n_s"),
        disk_written_bytes_per_s=average("written_bytes", "disk_n_s"),
        disk_reads_per_s=average("reads", "disk_n_s"),
        disk_writes_per_s=average("writes", "disk_n_s"),
        received_bytes_per_s=average("received_bytes", "net_n_s"),
        sent_bytes_per_s=average("sent_bytes", "net_n_s"),
    )
