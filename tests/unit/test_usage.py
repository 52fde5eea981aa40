"""The history of guests' usage: what was used between samples, gaps that stay gaps, bounded space."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from uuid import UUID, uuid4

import pytest

from virtd.inventory.usage import TIERS, UsageHistory
from virtd.model.metrics import BlockMetrics, GuestMetrics, InterfaceMetrics
from virtd.store import Database, open_database

START = 1_800_000_000.0  # a multiple of a minute and of a quarter of an hour
FINE, COARSE = TIERS


class Clock:
    now = START

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def database(tmp_path: Path) -> Iterator[Database]:
    database = open_database(tmp_path)
    yield database
    database.close()


def sample(uid: UUID, at: float, cpu_s: float | None, *, used: int | None = None, read: int = 0) -> GuestMetrics:
    return GuestMetrics(
        uid=uid,
        sample_time=datetime.fromtimestamp(at, UTC),
        cpu_time_s=cpu_s,
        memory_assigned_bytes=1 << 30,
        memory_used_bytes=used,
        blocks=(BlockMetrics("vda", read, 2 * read, read // 10, read // 5),),
        interfaces=(InterfaceMetrics("vnet0", 5 * read, 7 * read),),
    )


def feed(
    history: UsageHistory, uid: UUID, first: float, seconds: int, *, load: float = 0.5, cpu_s: float = 0.0
) -> None:
    """Samples of a guest that keeps ``load`` CPUs busy and reads 1000 bytes a second."""
    for at in range(0, seconds + 1, 10):
        history.observe([sample(uid, first + at, cpu_s + load * at, read=1000 * at)])


async def test_points_hold_what_was_used_between_samples(database: Database) -> None:
    clock, uid = Clock(), uuid4()
    history = UsageHistory(database, clock)
    feed(history, uid, START, 180)
    clock.now = START + 180
    step, points = await history.points(uid, START, START + 120)
    assert step == 60
    assert [point.start_time.timestamp() for point in points] == [START, START + 60]
    first, second = points
    # The sample at the very border of two minutes counts for the second: what it tells was used before.
    assert (first.covered_s, second.covered_s) == (50.0, 60.0)
    assert first.cpu_cores == pytest.approx(0.5)
    assert second.cpu_cores_max == pytest.approx(0.5)
    assert second.memory_assigned_bytes == 1 << 30
    assert second.memory_used_bytes is None, "what was never told is not zero"
    assert second.disk_read_bytes_per_s == pytest.approx(1000)
    assert second.disk_written_bytes_per_s == pytest.approx(2000)
    assert second.received_bytes_per_s == pytest.approx(5000)
    assert second.sent_bytes_per_s == pytest.approx(7000)


async def test_the_minute_that_is_not_over_is_shown_as_far_as_it_is(database: Database) -> None:
    clock, uid = Clock(), uuid4()
    history = UsageHistory(database, clock)
    feed(history, uid, START, 30)
    _, points = await history.points(uid, START, START + 60)
    assert [point.covered_s for point in points] == [30.0]


async def test_a_restarted_guest_never_used_a_negative_amount(database: Database) -> None:
    clock, uid = Clock(), uuid4()
    history = UsageHistory(database, clock)
    history.observe([sample(uid, START, 1000.0, read=10_000)])
    history.observe([sample(uid, START + 10, 1.0, read=0)])  # counters began anew
    history.observe([sample(uid, START + 20, 3.0, read=500)])
    _, (point,) = await history.points(uid, START, START + 60)
    assert point.cpu_cores == pytest.approx(0.2), "2 s in the 10 s that are known"
    assert point.disk_read_bytes_per_s == pytest.approx(50)


async def test_a_gap_stays_a_gap(database: Database) -> None:
    clock, uid = Clock(), uuid4()
    history = UsageHistory(database, clock)
    feed(history, uid, START, 50)
    feed(history, uid, START + 600, 50, cpu_s=10_000.0)
    clock.now = START + 650
    _, points = await history.points(uid, START, START + 660)
    assert [point.start_time.timestamp() - START for point in points] == [0, 600]
    assert max(point.cpu_cores_max or 0 for point in points) == pytest.approx(0.5)


async def test_an_unknown_counter_is_not_zero(database: Database) -> None:
    clock, uid = Clock(), uuid4()
    history = UsageHistory(database, clock)
    for at in (0, 10, 20):
        history.observe([sample(uid, START + at, None)])
    _, (point,) = await history.points(uid, START, START + 60)
    assert point.covered_s == 20
    assert point.cpu_cores is None
    assert point.cpu_cores_max is None
    assert point.disk_read_bytes_per_s is None


async def test_fine_points_become_coarse_ones_once(database: Database) -> None:
    clock, uid = Clock(), uuid4()
    history = UsageHistory(database, clock)
    feed(history, uid, START, 1800, load=0.25)
    clock.now = START + 1800 + 600
    before = await history.points(uid, START, START + 1800, COARSE.step_s)
    await history.compact()
    await history.compact()
    after = await history.points(uid, START, START + 1800, COARSE.step_s)
    assert before == after, "folding changes where points are kept, not what they say"
    assert after[0] == COARSE.step_s
    assert [point.start_time.timestamp() - START for point in after[1]] == [0, 900]
    assert after[1][1].cpu_cores == pytest.approx(0.25)
    assert after[1][1].covered_s == 900


async def test_space_is_bounded(database: Database) -> None:
    clock, uid = Clock(), uuid4()
    history = UsageHistory(database, clock)
    feed(history, uid, START, 600)
    clock.now = START + FINE.keep_s + 3600
    await history.compact()

    def count() -> list[tuple[int, int]]:
        return database.read_now(
            lambda connection: connection.execute("SELECT tier, COUNT(*) FROM usage GROUP BY tier").fetchall()
        )

    assert await asyncio.to_thread(count) == [(1, 1)], "the fine points are gone, the coarse one is there"
    step, points = await history.points(uid, START, START + 900)
    assert (step, len(points)) == (COARSE.step_s, 1), "the finest that reaches back so far"
    clock.now = START + COARSE.keep_s + 3600
    await history.compact()
    assert await asyncio.to_thread(count) == []


async def test_a_restart_of_the_daemon_goes_on_in_the_same_minute(tmp_path: Path) -> None:
    clock, uid = Clock(), uuid4()
    database = open_database(tmp_path)
    history = UsageHistory(database, clock)
    feed(history, uid, START, 20)
    history.flush()
    database.close()
    database = open_database(tmp_path)
    try:
        history = UsageHistory(database, clock)
        feed(history, uid, START + 30, 20, cpu_s=15.0)
        _, (point,) = await history.points(uid, START, START + 60)
        assert point.covered_s == 40.0
    finally:
        database.close()
