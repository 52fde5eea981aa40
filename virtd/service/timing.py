"""When a schedule runs, and what its retention keeps.  Pure."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from datetime import UTC, datetime, timedelta, tzinfo
from typing import Final
from zoneinfo import ZoneInfo

from cronsim import CronSim, CronSimError

from virtd.model.schedule import Retention, Schedule

CRON_FIELDS: Final = 5
EVERY_MIN_S: Final = 60.0
EVERY_MAX_S: Final = 366 * 86_400.0

_BUCKETS: Final[Mapping[str, Callable[[datetime], tuple[int, ...]]]] = {
    # The hour by UTC: an hour that a change of the clocks repeats is two hours.
    "keep_hourly": lambda local: (int(local.timestamp() // 3600),),
    "keep_daily": lambda local: (local.year, local.month, local.day),
    "keep_weekly": lambda local: local.isocalendar()[:2],
    "keep_monthly": lambda local: (local.year, local.month),
}


def zone(name: str) -> tzinfo:
    """A time zone by its IANA name; ``""`` is UTC.

    :raises ValueError: there is none of this name.
    """
    if not name:
        return UTC
    try:
        return ZoneInfo(name)
    except (KeyError, OSError) as error:  # ZoneInfoNotFoundError is a KeyError; a directory gives an OSError
        message = f"no time zone {name[:64]!r}"
        raise ValueError(message) from error


def check_cron(expression: str) -> str:
    """What is wrong with an expression; ``""``: nothing."""
    if len(expression.split()) != CRON_FIELDS:
        return "must have five fields: minute, hour, day of the month, month, day of the week"
    try:
        next(CronSim(expression, datetime(2026, 1, 1, tzinfo=UTC)))
    except CronSimError as error:
        return f"is no cron expression: {error}"
    except StopIteration:
        return "names a date that never comes"
    return ""


def next_run(schedule: Schedule, after: datetime) -> datetime:
    """The first time of a schedule that is later than ``after``, in UTC.

    Times that a change of the clocks skips or repeats are taken as cron does: skipped ones run right
    after it, repeated ones run once.
    """
    if schedule.cron:
        found: datetime = next(CronSim(schedule.cron, after.astimezone(zone(schedule.time_zone))))
        return found.astimezone(UTC)
    first = schedule.create_time or after
    periods = math.floor((after - first).total_seconds() / schedule.every_s) + 1
    return first + timedelta(seconds=max(periods, 1) * schedule.every_s)


def kept(times: Mapping[str, datetime], retention: Retention, zone_: tzinfo = UTC) -> frozenset[str]:
    """What a retention keeps of things with these times: grandfather, father, son.

    Each rule goes from the newest to the oldest and keeps the newest of each period (hour, day, week,
    month), for as many periods as its number; periods in which there is nothing do not count.  What any
    rule keeps is kept.
    """
    if retention == Retention():
        return frozenset(times)
    newest_first = sorted(times, key=lambda name: (times[name], name), reverse=True)
    found = set(newest_first[: retention.keep_last])
    for rule, bucket in _BUCKETS.items():
        seen: set[tuple[int, ...]] = set()
        for name in newest_first:
            period = bucket(times[name].astimezone(zone_))
            if period not in seen and len(seen) < getattr(retention, rule):
                seen.add(period)
                found.add(name)
    return frozenset(found)
