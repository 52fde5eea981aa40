"""Schedules: when they run, what they keep, and that they run once, on the fake hypervisor."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import Any
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.support.daemons import HOST, Lab, blank, call, running_lab, short_directory
from virtd.errors import AlreadyExistsError, ConflictError, InvalidArgumentError, NotFoundError
from virtd.model.event import EventType
from virtd.model.schedule import Retention, Schedule, SnapshotAction
from virtd.model.snapshot import SnapshotLocation
from virtd.service.snapshots import Draft
from virtd.service.timing import check_cron, kept, next_run

START = datetime(2026, 3, 1, 12, 0, tzinfo=UTC)
DAY = timedelta(days=1)

# ---------------------------------------------------------------------------------------- timing


def at(text: str) -> datetime:
    return datetime.fromisoformat(text).replace(tzinfo=UTC)


@pytest.mark.parametrize(
    ("cron", "zone", "after", "expected"),
    [
        ("0 3 * * *", "", "2026-03-01 12:00", "2026-03-02 03:00"),
        ("0 3 * * *", "", "2026-03-02 03:00", "2026-03-03 03:00"),
        ("*/15 * * * *", "", "2026-03-01 12:01", "2026-03-01 12:15"),
        ("0 3 * * *", "Europe/Berlin", "2026-01-10 12:00", "2026-01-11 02:00"),
        # The clocks go from 2 to 3 on 2026-03-29, and from 3 to 2 on 2026-10-25.
        ("30 2 * * *", "Europe/Berlin", "2026-03-28 12:00", "2026-03-29 01:00"),
        ("30 2 * * *", "Europe/Berlin", "2026-10-25 00:30", "2026-10-26 01:30"),
        ("0 0 29 2 *", "", "2026-03-01 12:00", "2028-02-29 00:00"),
    ],
)
def test_cron(cron: str, zone: str, after: str, expected: str) -> None:
    assert next_run(Schedule("schedules/a", cron=cron, time_zone=zone), at(after)) == at(expected)


def test_every_so_often_stays_in_step() -> None:
    schedule = Schedule("schedules/a", every_s=3600, create_time=START)
    assert next_run(schedule, START) == START + timedelta(hours=1)
    assert next_run(schedule, START + timedelta(hours=5, minutes=1)) == START + timedelta(hours=6)
    assert next_run(schedule, START - DAY) == START + timedelta(hours=1)


@pytest.mark.parametrize("wrong", ["", "* * * *", "60 * * * *", "x * * * *", "0 0 30 2 *", "0 0 * * * *"])
def test_what_is_no_cron(wrong: str) -> None:
    assert check_cron(wrong)


# ------------------------------------------------------------------------------------- retention

RULES = st.builds(Retention, *(st.integers(0, 6) for _ in range(5)))
TIMES = st.dictionaries(
    st.integers(0, 10_000).map(str),
    st.integers(0, 400 * 24 * 6).map(lambda steps: START - timedelta(minutes=10 * steps)),
    max_size=60,
)


def test_grandfather_father_son() -> None:
    times = {f"{days}d{hours}h": START - days * DAY - timedelta(hours=hours) for days in range(90) for hours in (0, 6)}
    assert kept(times, Retention(keep_last=3)) == {"0d0h", "0d6h", "1d0h"}
    assert kept(times, Retention(keep_daily=3)) == {"0d0h", "1d0h", "2d0h"}
    assert kept(times, Retention(keep_hourly=2)) == {"0d0h", "0d6h"}
    # 2026-03-01 is a Sunday: the last day of its week.
    assert kept(times, Retention(keep_weekly=2)) == {"0d0h", "7d0h"}
    assert kept(times, Retention(keep_monthly=3)) == {"0d0h", "1d0h", "29d0h"}
    assert kept(times, Retention(keep_last=1, keep_monthly=2)) == {"0d0h", "1d0h"}
    assert kept(times, Retention()) == frozenset(times)


def test_days_are_those_of_the_zone() -> None:
    times = {"late": at("2026-03-01 23:30"), "early": at("2026-03-01 22:30")}
    assert kept(times, Retention(keep_daily=5)) == {"late"}
    assert kept(times, Retention(keep_daily=5), ZoneInfo("Europe/Berlin")) == {"late", "early"}


@given(TIMES, RULES)
def test_retention_never_surprises(times: dict[str, datetime], rules: Retention) -> None:
    found = kept(times, rules)
    assert found <= set(times)
    limit = rules.keep_last + rules.keep_hourly + rules.keep_daily + rules.keep_weekly + rules.keep_monthly
    if not limit:
        assert found == set(times)
        return
    assert len(found) <= limit
    if times:
        assert max(times, key=lambda name: (times[name], name)) in found, "the newest is always kept"
    assert kept({name: times[name] for name in found}, rules) == found, "pruning again prunes nothing"
    more = replace(rules, keep_daily=rules.keep_daily + 1)
    assert found <= kept(times, more), "keeping more loses nothing"


# ------------------------------------------------------------------------------------------ runs


@dataclass
class Clock:
    now: datetime = START

    def __call__(self) -> datetime:
        return self.now


@dataclass
class Bench:
    lab: Lab
    clock: Clock

    async def tick(self, **later: float) -> None:
        self.clock.now += timedelta(**later)
        await self.lab.services.scheduler.tick()
        await self.lab.services.scheduler.idle()

    async def make(self, schedule_id: str = "s", **changes: Any) -> Schedule:
        fields = {"guest": f"hosts/{HOST}/guests/a", "every_s": 3600.0, "snapshot": SnapshotAction(), **changes}
        return await self.lab.services.schedules.create(call(), schedule_id, Schedule("", **fields))

    async def snapshots(self, guest: str = "a") -> list[str]:
        listed = await self.lab.services.snapshots.list(HOST, guest, 0, "")
        return [snapshot.name.rpartition("/")[2] for snapshot in listed.items]


async def prepared(lab: Lab, clock: Clock) -> Bench:
    await lab.services.scheduler.stop()  # the tests say when it is time
    lab.services.schedules.now = clock
    return Bench(lab, clock)


@pytest.fixture
async def bench() -> AsyncIterator[Bench]:
    with short_directory() as place:
        async with running_lab(place) as lab:
            made = await prepared(lab, Clock())
            await lab.created("a", blank())
            yield made


async def test_it_runs_when_its_time_has_come_and_prunes_only_its_own(bench: Bench) -> None:
    services = bench.lab.services
    await bench.make(retention=Retention(keep_last=2))
    await bench.lab.done(await services.snapshots.create(call(), bench.lab.name("a"), Draft("s-mine")))
    await bench.tick(minutes=59)
    assert await bench.snapshots() == ["s-mine"]
    for _ in range(4):
        await bench.tick(hours=1)
    assert sorted(await bench.snapshots()) == ["s-20260301t155900z", "s-20260301t165900z", "s-mine"]
    status = services.schedules.get("s").status
    assert (status.last_error, status.failures, status.running) == (None, 0, False)
    assert status.next_run_time == START + timedelta(hours=5)
    operations = [await bench.lab.core.engine.get(name) for name in status.operations]
    assert [operation.verb for operation in operations] == ["snapshot-create", "snapshot-delete"]
    assert {operation.caller for operation in operations} == {"schedule:s"}


async def test_missed_runs_are_made_up_for_once(bench: Bench) -> None:
    await bench.make()
    await bench.tick(days=3, minutes=7)
    await bench.tick(minutes=1)
    assert await bench.snapshots() == ["s-20260304t120700z"]
    assert bench.lab.services.schedules.get("s").status.next_run_time == START + timedelta(days=3, hours=1)


async def test_one_that_is_still_at_work_does_not_begin_again(bench: Bench) -> None:
    await bench.make()
    hang = bench.lab.world.faults.hang("snapshot_copy_disk")
    bench.clock.now += timedelta(hours=1)
    await bench.lab.services.scheduler.tick()
    await bench.lab.until(lambda: hang.entered > 0)
    bench.clock.now += timedelta(hours=5)
    await bench.lab.services.scheduler.tick()
    assert bench.lab.services.schedules.get("s").status.running
    hang.release()
    await bench.lab.services.scheduler.idle()
    assert len(await bench.snapshots()) == 1
    await bench.tick()
    assert len(await bench.snapshots()) == 2, "and the run that was missed meanwhile comes then, once"


async def test_failures_are_seen_and_nothing_is_pruned_then(bench: Bench) -> None:
    await bench.make(retention=Retention(keep_last=1))
    await bench.tick(hours=1)
    bench.lab.world.faults.fail("snapshot_begin")
    await bench.tick(hours=1)
    status = bench.lab.services.schedules.get("s").status
    assert status.last_error is not None
    assert status.last_error.resource == f"hosts/{HOST}/guests/a"
    assert (status.failures, status.last_success_time) == (1, START + timedelta(hours=1))
    assert len(await bench.snapshots()) == 1
    await bench.lab.core.events.flush()
    told = [
        e.attributes["state"] for e in await bench.lab.core.events.read(0, 1000) if e.type is EventType.SCHEDULE_RUN
    ]
    assert told == ["RUNNING", "SUCCEEDED", "RUNNING", "FAILED"]
    await bench.tick(hours=1)
    status = bench.lab.services.schedules.get("s").status
    assert (status.last_error, status.failures) == (None, 0)


async def test_a_filter_finds_its_guests_when_the_run_begins(bench: Bench) -> None:
    await bench.make(guest="", filter='display_name="" AND name:"/b"')
    await bench.lab.created("b1", blank())
    await bench.lab.created("b2", blank())
    await bench.tick(hours=1)
    assert [len(await bench.snapshots(name)) for name in ("a", "b1", "b2")] == [0, 1, 1]


async def test_a_users_snapshot_of_the_same_name_is_the_users(bench: Bench) -> None:
    name = bench.lab.name("a")
    await bench.make(retention=Retention(keep_last=1))
    await bench.tick(hours=1)
    (made,) = await bench.snapshots()
    await bench.lab.done(await bench.lab.services.snapshots.delete(call(), name, made))
    await bench.lab.done(await bench.lab.services.snapshots.create(call(), name, Draft(made)))
    await bench.tick(hours=1)
    await bench.tick(hours=1)
    assert made in await bench.snapshots()


async def test_a_run_goes_on_after_a_restart() -> None:
    with short_directory() as place:
        clock = Clock()
        async with running_lab(place, "persist=1") as lab:
            bench = await prepared(lab, clock)
            await lab.created("a", blank())
            await bench.make()
            clock.now += timedelta(hours=1)
            hang = lab.world.faults.hang("snapshot_copy_disk")
            await lab.services.scheduler.tick()
            await lab.until(lambda: hang.entered > 0)
            await lab.services.scheduler.stop()  # the daemon ends in the middle
            hang.release()
        async with running_lab(place, "persist=1") as lab:
            bench = await prepared(lab, clock)
            await bench.tick()
            assert await bench.snapshots() == ["s-20260301t130000z"]
            status = lab.services.schedules.get("s").status
            assert (status.running, status.last_error) == (False, None)
            await bench.tick()
            assert len(await bench.snapshots()) == 1


async def test_changing_pausing_running_deleting(bench: Bench) -> None:
    schedules = bench.lab.services.schedules
    made = await bench.make()
    changed = await schedules.update(call(), "s", replace(made, paused=True), ["paused"], made.etag)
    assert (changed.paused, changed.status.next_run_time) == (True, None)
    with pytest.raises(ConflictError):
        await schedules.update(call(), "s", made, ["paused"], made.etag)
    await bench.tick(days=1)
    assert await bench.snapshots() == []
    await schedules.run_now("s")
    await bench.tick()
    assert len(await bench.snapshots()) == 1
    again = await schedules.update(call(), "s", replace(made, every_s=60.0, paused=False), ["every_s", "paused"])
    assert again.status.next_run_time == bench.clock.now + timedelta(minutes=1)
    await schedules.delete(call(), "s")
    await bench.tick(days=1)
    assert len(await bench.snapshots()) == 1, "what it has made stays"
    with pytest.raises(NotFoundError):
        schedules.get("s")


async def test_created_once(bench: Bench) -> None:
    fields = Schedule("", guest=f"hosts/{HOST}/guests/a", every_s=60, snapshot=SnapshotAction())
    asked = replace(call(), request_id="7f0c5c9e-5df0-4be3-8d8d-3b31f3f8c1aa", fingerprint="x")
    first = await bench.lab.services.schedules.create(asked, "s", fields)
    assert await bench.lab.services.schedules.create(asked, "s", fields) == first
    with pytest.raises(AlreadyExistsError):
        await bench.lab.services.schedules.create(call(), "s", fields)


@pytest.mark.parametrize(
    ("field", "changes"),
    [
        ("schedule.guest", {"filter": "name=x"}),
        ("schedule.guest", {"guest": ""}),
        ("schedule.cron", {"cron": "0 3 * * *"}),
        ("schedule.cron", {"every_s": 0.0}),
        ("schedule.cron", {"every_s": 0.0, "cron": "at noon"}),
        ("schedule.every_s", {"every_s": 59.0}),
        ("schedule.every_s", {"every_s": 1e12}),
        ("schedule.every_s", {"every_s": -1.0}),
        ("schedule.time_zone", {"time_zone": "Mars/Olympus"}),
        ("schedule.time_zone", {"time_zone": "../../etc/passwd"}),
        ("schedule.snapshot", {"snapshot": None}),
        ("schedule.snapshot.quiesce", {"snapshot": SnapshotAction(memory=True, quiesce=True)}),
        (
            "schedule.snapshot.quiesce",
            {"snapshot": SnapshotAction(location=SnapshotLocation.INTERNAL, quiesce=True)},
        ),
        ("schedule.retention.keep_last", {"retention": Retention(keep_last=-1)}),
        ("schedule.retention.keep_monthly", {"retention": Retention(keep_monthly=1001)}),
        ("schedule.description", {"description": "\x00"}),
    ],
)
async def test_bad_input_is_named(bench: Bench, field: str, changes: dict[str, Any]) -> None:
    with pytest.raises(InvalidArgumentError) as wrong:
        await bench.make(**changes)
    assert [violation.field for violation in wrong.value.record.violations] == [field]
    assert bench.lab.services.schedules.list(0, "").items == ()


async def test_bad_ids_and_targets(bench: Bench) -> None:
    for bad in ("", "A", "x" * 41, "a/b"):
        with pytest.raises(InvalidArgumentError):
            await bench.make(bad)
    with pytest.raises(NotFoundError):
        await bench.make(guest=f"hosts/{HOST}/guests/none")
    with pytest.raises(InvalidArgumentError):
        await bench.make(guest="", filter="nonsense ==")
    assert bench.lab.services.schedules.list(0, "").items == ()
