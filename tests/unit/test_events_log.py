"""The event log: order, resume, expiry, strangers' tokens, slow watchers, full disks, restarts."""

from __future__ import annotations

import asyncio
import random
import sqlite3
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.support.daemons import until
from virtd.errors import (
    FIELD_INVALID,
    RESUME_TOKEN_EXPIRED,
    WATCHER_TOO_SLOW,
    InvalidArgumentError,
    OutOfRangeError,
    ResourceExhaustedError,
)
from virtd.events import EventLog, Subscription
from virtd.events.log import BATCH, ForeignTokenError
from virtd.model.event import Event, EventType
from virtd.store import Database, open_database


@pytest.fixture
async def database(tmp_path: Path) -> AsyncIterator[Database]:
    made = open_database(tmp_path)
    yield made
    made.close()


@pytest.fixture
async def log(database: Database) -> EventLog:
    return EventLog(database, ring=20)


def every(_event: Event) -> bool:
    return True


async def emit(log: EventLog, count: int, resource: str = "r") -> None:
    for number in range(count):
        log.emit(EventType.GUEST_CHANGED, f"{resource}{number}", payload=f"p{number}".encode())
    await log.flush()


async def drain(subscription: Subscription) -> list[Event]:
    """What there is now."""
    found: list[Event] = []
    while batch := await subscription.next_batch(0.0):
        found += batch
    return found


def revisions(events: list[Event]) -> list[int]:
    return [event.revision for event in events]


# ---------------------------------------------------------------------------------------- order


async def test_events_come_once_and_in_order(log: EventLog) -> None:
    subscription = log.subscribe(None, every)
    await emit(log, 300)
    events = await drain(subscription)
    assert revisions(events) == list(range(1, 301))
    assert events[299].resource == "r299"
    assert events[299].payload == b"p299"


async def test_the_first_revision_after_a_token_is_the_next_one(log: EventLog) -> None:
    await emit(log, 50)
    for start in range(51):
        events = await drain(log.subscribe(log.parse_token(log.token(start)), every))
        assert revisions(events) == list(range(start + 1, 51)), start


@pytest.mark.parametrize("ring", [1, 2, 3, 7, 1000])
async def test_the_edge_between_memory_and_disk_is_not_to_be_seen(database: Database, ring: int) -> None:
    log = EventLog(database, ring=ring)
    dice = random.Random(ring)
    subscription = log.subscribe(None, every)
    found: list[Event] = []
    for _ in range(30):
        await emit(log, dice.randrange(5))
        if dice.random() < 0.3:
            found += await drain(subscription)
    found += await drain(subscription)
    assert revisions(found) == list(range(1, log.head + 1))


async def test_nobody_sees_an_event_that_is_not_on_disk(database: Database, log: EventLog) -> None:
    seen_on_disk: list[bool] = []

    def published(event: Event) -> None:
        row = database.read_now(
            lambda connection: connection.execute(
                "SELECT count(*) FROM events WHERE revision = ?", (event.revision,)
            ).fetchone()
        )
        seen_on_disk.append(row[0] == 1)

    log.on_published = published
    await emit(log, 20)
    assert seen_on_disk == [True] * 20


async def test_a_listener_that_fails_does_not_stop_the_log(log: EventLog) -> None:
    def broken(_event: Event) -> None:
        raise RuntimeError("metrics")

    log.on_published = broken
    subscription = log.subscribe(None, every)
    await emit(log, 3)
    assert revisions(await drain(subscription)) == [1, 2, 3]


async def test_a_watcher_that_waits_is_woken(log: EventLog) -> None:
    waiting = [asyncio.create_task(log.subscribe(None, every).next_batch(5.0)) for _ in range(20)]
    await asyncio.sleep(0)
    log.emit(EventType.GUEST_ADDED, "x")
    for batch in await asyncio.gather(*waiting):
        assert batch is not None
        assert [event.resource for event in batch] == ["x"]


async def test_a_filter_moves_the_position_over_what_it_drops(log: EventLog) -> None:
    subscription = log.subscribe(None, lambda event: event.resource == "yes")
    await emit(log, 3 * BATCH, "no")
    log.emit(EventType.GUEST_ADDED, "yes")
    await emit(log, 10, "no")
    assert [event.resource for event in await drain(subscription)] == ["yes"]
    assert subscription.position == log.head


async def test_closing_ends_every_watch_after_what_there_is(log: EventLog) -> None:
    subscription = log.subscribe(None, every)
    await emit(log, 2)
    waiting = asyncio.create_task(log.subscribe(None, every).next_batch(30.0))
    await asyncio.sleep(0)
    log.close()
    assert await asyncio.wait_for(waiting, 5) is None
    assert revisions(await subscription.next_batch(0.0) or []) == [1, 2]
    assert await subscription.next_batch(0.0) is None


async def test_the_time_is_over_without_news(log: EventLog) -> None:
    assert await log.subscribe(None, every).next_batch(0.01) == []


# --------------------------------------------------------------------------------------- tokens


@pytest.mark.parametrize("token", ["x", "x:1:y", "::", "a:b:-1", "a:b:1.5", "a:b:٣", "a:b:" + "9" * 30, "1"])
async def test_what_is_not_a_token_is_refused(log: EventLog, token: str) -> None:
    with pytest.raises(InvalidArgumentError) as caught:
        log.parse_token(token)
    assert caught.value.reason is FIELD_INVALID
    assert caught.value.record.violations[0].field == "resume_token"


async def test_a_token_of_another_directory_is_a_strangers(log: EventLog, tmp_path: Path) -> None:
    other_database = open_database(tmp_path / "other")
    other = EventLog(other_database)
    with pytest.raises(ForeignTokenError):
        log.parse_token(other.token())
    other_database.close()


async def test_a_token_from_the_future_is_a_strangers(log: EventLog) -> None:
    await emit(log, 3)
    with pytest.raises(ForeignTokenError):
        log.parse_token(log.token(4))


async def test_every_token_holds_over_restarts(tmp_path: Path) -> None:
    tokens: list[str] = []
    for run in range(4):
        database = open_database(tmp_path)
        log = EventLog(database)
        tokens.append(log.token())
        for number in range(3):
            await emit(log, 1, f"{run}.{number}-")
            tokens.append(log.token())
        for position, token in enumerate(tokens):
            after = position - position // 4  # the first token of a run is the last one of the run before
            assert log.parse_token(token) == after
            found = await drain(log.subscribe(log.parse_token(token), every))
            assert revisions(found) == list(range(after + 1, log.head + 1))
            assert log.parse_token(log.token(after)) == after
        database.close()


async def test_tokens_of_a_history_that_a_backup_has_replaced_are_strangers(tmp_path: Path) -> None:
    live = open_database(tmp_path)
    log = EventLog(live)
    await emit(log, 5)
    kept = log.token(3)
    live.submit(lambda connection: connection.execute("SELECT 1")).result()
    backup = sqlite3.connect(tmp_path / "backup.db")
    live.read_now(lambda connection: connection.backup(backup))
    backup.close()
    await emit(log, 5, "lost")
    lost = log.token(8)
    live.close()

    for name in ("virtd.db-wal", "virtd.db-shm"):
        (tmp_path / name).unlink(missing_ok=True)
    (tmp_path / "backup.db").rename(tmp_path / "virtd.db")
    restored = open_database(tmp_path)
    log = EventLog(restored)
    await emit(log, 10, "other")  # revisions 6 to 15: 8 is another event now
    with pytest.raises(ForeignTokenError):
        log.parse_token(lost)
    assert log.parse_token(kept) == 3
    restored.close()


# ------------------------------------------------------------------------------------ retention


async def test_what_is_too_old_expires_and_nothing_is_skipped(database: Database) -> None:
    log = EventLog(database, ring=5, retention_count=20)
    old = log.token()
    await emit(log, 100)
    log.trim()
    await log.flush()
    await until(lambda: log._floor >= 70)  # the trim is told from the writer's thread
    with pytest.raises(OutOfRangeError) as caught:
        log.parse_token(old)
    assert caught.value.reason is RESUME_TOKEN_EXPIRED
    oldest = int(caught.value.record.metadata["oldest_revision"])
    assert 70 <= oldest <= 80
    found = await drain(log.subscribe(log.parse_token(log.token(oldest)), every))
    assert revisions(found) == list(range(oldest + 1, 101))
    # A watcher that is caught by the trim in its middle is told, too.
    with pytest.raises(OutOfRangeError):
        await log.subscribe(10, every).next_batch(0.0)
    rows = database.read_now(lambda connection: connection.execute("SELECT count(*) FROM events").fetchone()[0])
    assert rows == 100 - oldest


async def test_age_ends_an_event_but_never_the_last(database: Database) -> None:
    log = EventLog(database, ring=5, retention_s=0.0)
    await emit(log, 10)
    log.trim()
    await log.flush()
    await database.write(lambda _connection: None)  # behind the trim
    rows = database.read_now(lambda connection: connection.execute("SELECT revision FROM events").fetchall())
    assert rows == [(10,)]
    again = EventLog(database, ring=5)
    assert again.head == 10
    assert again.emit(EventType.HOST_ADDED, "h").revision == 11


async def test_runs_that_no_token_can_name_are_forgotten(tmp_path: Path) -> None:
    for _ in range(5):
        database = open_database(tmp_path)
        log = EventLog(database, retention_count=2)
        await emit(log, 10)
        log.trim()
        await log.flush()
        database.close()
    database = open_database(tmp_path)
    assert database.read_now(lambda c: c.execute("SELECT count(*) FROM runs").fetchone()[0]) == 1
    database.close()


async def test_a_slow_watcher_is_closed_with_its_last_token(log: EventLog) -> None:
    subscription = log.subscribe(None, every, buffer=50)
    await emit(log, 5)
    assert revisions(await drain(subscription)) == [1, 2, 3, 4, 5]
    await emit(log, 51)
    with pytest.raises(ResourceExhaustedError) as caught:
        await subscription.next_batch(0.0)
    assert caught.value.reason is WATCHER_TOO_SLOW
    token = caught.value.record.metadata["resume_token"]
    found = await drain(log.subscribe(log.parse_token(token), every, buffer=50))
    assert revisions(found) == list(range(6, 57))


async def test_a_watcher_that_catches_up_from_far_behind_is_not_slow(log: EventLog) -> None:
    await emit(log, 200)
    assert len(await drain(log.subscribe(0, every, buffer=10))) == 200


# ------------------------------------------------------------------------------------ full disks


def _limit(database: Database, pages: int | None) -> None:
    def limit(connection: sqlite3.Connection) -> None:
        count = connection.execute("PRAGMA page_count").fetchone()[0] if pages is None else pages
        connection.execute(f"PRAGMA max_page_count = {count}")

    database.submit(limit).result()


BIG = b"x" * 100_000


async def test_a_full_disk_neither_silences_the_log_nor_makes_a_hole(database: Database) -> None:
    log = EventLog(database, ring=20)
    watcher = log.subscribe(None, every)
    await emit(log, 3)
    token = log.token()
    _limit(database, None)
    for number in range(5):
        log.emit(EventType.GUEST_CHANGED, f"big{number}", payload=BIG)
    await log.flush()
    assert revisions(await drain(watcher)) == list(range(1, 9))
    # In this run nothing is missing for anybody, wherever he comes from ...
    assert revisions(await drain(log.subscribe(0, every))) == list(range(1, 9))
    _limit(database, 1_000_000)
    await emit(log, 40)
    assert revisions(await drain(log.subscribe(0, every))) == list(range(1, 49))
    # ... nor in the next, once there was room again.
    again = EventLog(database, ring=20)
    found = await drain(again.subscribe(again.parse_token(token), every))
    assert revisions(found) == list(range(4, 49))
    assert found[0].payload == BIG


async def test_what_a_full_disk_refused_for_good_is_not_passed_over_in_silence(database: Database) -> None:
    log = EventLog(database, ring=20)
    await emit(log, 3)
    _limit(database, None)
    log.emit(EventType.GUEST_CHANGED, "lost", payload=BIG)
    await log.flush()
    seen = log.token()
    assert seen.endswith(":4")
    _limit(database, 1_000_000)
    # The daemon dies here, and the next run gives revision 4 to another event.
    again = EventLog(database, ring=20)
    await emit(again, 5)
    with pytest.raises(ForeignTokenError):
        again.parse_token(seen)


async def test_a_hole_on_disk_expires_what_lies_before_it(database: Database) -> None:
    log = EventLog(database)
    await emit(log, 10)
    token = log.token(3)
    await database.write(lambda connection: connection.execute("DELETE FROM events WHERE revision = 5"))
    again = EventLog(database)
    with pytest.raises(OutOfRangeError):
        again.parse_token(token)
    assert revisions(await drain(again.subscribe(again.parse_token(again.token(5)), every))) == [6, 7, 8, 9, 10]


async def test_far_more_than_memory_holds_is_refused_and_told(database: Database) -> None:
    log = EventLog(database, ring=20)
    await emit(log, 3)
    _limit(database, None)
    for number in range(60):
        log.emit(EventType.GUEST_CHANGED, f"big{number}", payload=BIG)
    await log.flush()
    with pytest.raises(OutOfRangeError):
        await drain(log.subscribe(3, every))
    assert len(await drain(log.subscribe(log.head - 20, every))) == 20
