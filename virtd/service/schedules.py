"""Use cases of schedules.  :mod:`virtd.service.scheduling` runs them."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, fields, replace
from datetime import UTC, datetime
from typing import Final
from uuid import uuid4

from virtd.errors import (
    ETAG_MISMATCH,
    SCHEDULE_EXISTS,
    SCHEDULE_NOT_FOUND,
    AlreadyExistsError,
    ConflictError,
    NotFoundError,
    invalid_field,
)
from virtd.model.names import check_new_id, parse_guest
from virtd.model.schedule import Retention, Schedule, ScheduleStatus
from virtd.model.snapshot import SnapshotLocation
from virtd.service.call import Call, Page, page_of
from virtd.service.core import Core
from virtd.service.filters import compile_filter
from virtd.service.guests import FILTER_FIELDS
from virtd.service.timing import EVERY_MAX_S, EVERY_MIN_S, check_cron, next_run, zone
from virtd.service.validate import TEXT_MAX, Violations
from virtd.store import Codec

MUTABLE: Final = ("description", "guest", "filter", "cron", "every_s", "time_zone", "snapshot", "retention", "paused")
KEEP_MAX: Final = 1000
ID_MAX: Final = 40
"""A snapshot's id is the schedule's and a time."""


@dataclass(frozen=True, slots=True)
class Entry:
    """A schedule as it is kept.

    :param due: the time of the run that has begun and not ended, or None.
    :param forced: it shall run now.
    """

    schedule: Schedule
    due: datetime | None = None
    forced: bool = False

    @property
    def id(self) -> str:
        """The schedule's id."""
        return self.schedule.name.partition("/")[2]


CODEC: Final = Codec(Entry)


class Schedules:
    """Use cases of schedules.

    :param now: the clock.
    """

    def __init__(self, core: Core, now: Callable[[], datetime] = lambda: datetime.now(UTC)) -> None:
        self._core = core
        self.now = now
        self.on_change: Callable[[], None] = lambda: None
        """Called when a schedule was added or changed."""
        rows = core.database.read_now(
            lambda connection: connection.execute("SELECT id, record, request_id FROM schedules").fetchall()
        )
        self._entries = {row[0]: CODEC.decode(row[1]) for row in rows}
        self._requests = {row[0]: row[2] for row in rows}

    @property
    def entries(self) -> Mapping[str, Entry]:
        """All schedules by id, as they are kept."""
        return self._entries

    async def create(self, call: Call, schedule_id: str, draft: Schedule) -> Schedule:
        """Create a schedule.

        :raises AlreadyExistsError: SCHEDULE_EXISTS.
        :raises InvalidArgumentError: FIELD_INVALID or FILTER_INVALID.
        """
        check_new_id(schedule_id, "schedule_id")
        if len(schedule_id) > ID_MAX:
            raise invalid_field(
                "schedule_id", f"must have at most {ID_MAX} characters: snapshots carry it in their ids"
            )
        known = self._entries.get(schedule_id)
        if known is not None:
            if call.request_id and self._requests[schedule_id] == _request(call):
                return self._shown(known)
            raise AlreadyExistsError(
                SCHEDULE_EXISTS, f"there is a schedule {schedule_id}", resource=f"schedules/{schedule_id}"
            )
        now = self.now()
        schedule = replace(
            draft,
            name=f"schedules/{schedule_id}",
            etag=_etag(),
            status=ScheduleStatus(),
            create_time=now,
            update_time=now,
        )
        self._check(schedule)
        schedule = replace(schedule, status=ScheduleStatus(next_run_time=_next(schedule, now)))
        if not call.validate_only:
            await self._write(Entry(schedule), _request(call))
            self.on_change()
        return schedule

    def get(self, schedule_id: str) -> Schedule:
        """A schedule.

        :raises NotFoundError: SCHEDULE_NOT_FOUND.
        """
        return self._shown(self._entry(schedule_id))

    def list(self, page_size: int, page_token: str) -> Page[Schedule]:
        """All schedules, by name."""
        found = sorted((self._shown(entry) for entry in self._entries.values()), key=lambda schedule: schedule.name)
        return page_of(found, page_size, page_token, lambda schedule: schedule.name)

    async def update(
        self, call: Call, schedule_id: str, draft: Schedule, changed: Iterable[str], etag: str = ""
    ) -> Schedule:
        """Change some of :data:`MUTABLE`.

        :raises NotFoundError: SCHEDULE_NOT_FOUND.
        :raises ConflictError: ETAG_MISMATCH.
        """
        entry = self._entry(schedule_id)
        _check_etag(entry, etag)
        now = self.now()
        changes = {name: getattr(draft, name) for name in changed}
        schedule = replace(entry.schedule, **changes, etag=_etag(), update_time=now)
        self._check(schedule)
        schedule = replace(schedule, status=replace(schedule.status, next_run_time=_next(schedule, now)))
        if not call.validate_only:
            await self._write(replace(entry, schedule=schedule))
            self.on_change()
        return self._shown(replace(entry, schedule=schedule))

    async def delete(self, call: Call, schedule_id: str, etag: str = "") -> None:
        """Delete a schedule; what it has made stays.

        :raises NotFoundError: SCHEDULE_NOT_FOUND.
        :raises ConflictError: ETAG_MISMATCH.
        """
        _check_etag(self._entry(schedule_id), etag)
        if call.validate_only:
            return

        def delete(connection: sqlite3.Connection) -> None:
            connection.execute("DELETE FROM schedules WHERE id = ?", (schedule_id,))
            connection.execute("DELETE FROM scheduled WHERE schedule = ?", (schedule_id,))

        await self._core.database.write(delete)
        self._entries.pop(schedule_id, None)
        self._requests.pop(schedule_id, None)

    async def run_now(self, schedule_id: str) -> Schedule:
        """Let it run now, unless it does.

        :raises NotFoundError: SCHEDULE_NOT_FOUND.
        """
        entry = self._entry(schedule_id)
        if entry.due is None and not entry.forced:
            entry = replace(entry, forced=True)
            await self._write(entry)
            self.on_change()
        return self._shown(entry)

    async def put(self, schedule_id: str, edit: Callable[[Entry], Entry]) -> Entry | None:
        """Change what is kept of a schedule, by the runner; None where it was deleted meanwhile."""
        entry = self._entries.get(schedule_id)
        if entry is None:
            return None
        edited = edit(entry)
        await self._write(edited)
        return edited

    async def _write(self, entry: Entry, request: str | None = None) -> None:
        text, id_ = CODEC.encode(entry), entry.id
        asked = self._requests.get(id_, "") if request is None else request

        def upsert(connection: sqlite3.Connection) -> None:
            connection.execute("INSERT OR REPLACE INTO schedules VALUES (?, ?, ?)", (id_, text, asked))

        before = self._entries.get(id_)
        self._entries[id_], self._requests[id_] = entry, asked
        try:
            await self._core.database.write(upsert)
        except BaseException:
            if before is None:
                del self._entries[id_]
            else:
                self._entries[id_] = before
            raise

    def _entry(self, schedule_id: str) -> Entry:
        entry = self._entries.get(schedule_id)
        if entry is None:
            raise NotFoundError(
                SCHEDULE_NOT_FOUND, f"there is no schedule {schedule_id}", resource=f"schedules/{schedule_id}"
            )
        return entry

    def _shown(self, entry: Entry) -> Schedule:
        status = replace(entry.schedule.status, running=entry.due is not None)
        if entry.schedule.paused:
            status = replace(status, next_run_time=None)
        return replace(entry.schedule, status=status)

    def _check(self, schedule: Schedule) -> None:
        wrong = Violations()
        if len(schedule.description) > TEXT_MAX or not (schedule.description.isprintable()):
            wrong.add("schedule.description", f"must be at most {TEXT_MAX} printable characters")
        if bool(schedule.guest) == bool(schedule.filter.strip()):
            wrong.add("schedule.guest", "give either the guest or a filter, not both and not neither")
        _check_time(schedule, wrong)
        _check_action(schedule, wrong)
        wrong.check()
        if schedule.guest:
            self._core.view(parse_guest(schedule.guest, "schedule.guest"))
        else:
            compile_filter(schedule.filter, FILTER_FIELDS)


def _check_time(schedule: Schedule, wrong: Violations) -> None:
    if bool(schedule.cron) == bool(schedule.every_s):
        wrong.add("schedule.cron", "give either cron or every_s, not both and not neither")
    elif schedule.cron and (problem := check_cron(schedule.cron)):
        wrong.add("schedule.cron", problem)
    elif schedule.every_s and not EVERY_MIN_S <= schedule.every_s <= EVERY_MAX_S:
        wrong.add("schedule.every_s", f"must be from {EVERY_MIN_S:g} to {EVERY_MAX_S:g} seconds")
    try:
        zone(schedule.time_zone)
    except ValueError as error:
        wrong.add("schedule.time_zone", str(error))


def _check_action(schedule: Schedule, wrong: Violations) -> None:
    if (schedule.snapshot is None) == (schedule.backup is None):
        wrong.add("schedule.snapshot", "say what is done: either snapshot or backup")
    elif schedule.backup is not None:
        if not 0 <= (schedule.backup.increments or 0) <= KEEP_MAX:
            wrong.add("schedule.backup.increments", f"must be from 0 to {KEEP_MAX}")
    elif schedule.snapshot is None:
        return
    elif schedule.snapshot.quiesce and schedule.snapshot.memory:
        wrong.add("schedule.snapshot.quiesce", "goes without memory only: with it nothing unwritten is lost")
    elif schedule.snapshot.quiesce and schedule.snapshot.location is SnapshotLocation.INTERNAL:
        wrong.add("schedule.snapshot.quiesce", "goes with external snapshots only")
    for rule in fields(Retention):
        if not 0 <= getattr(schedule.retention, rule.name) <= KEEP_MAX:
            wrong.add(f"schedule.retention.{rule.name}", f"must be from 0 to {KEEP_MAX}")


def _next(schedule: Schedule, now: datetime) -> datetime | None:
    return None if schedule.paused else next_run(schedule, now)


def _request(call: Call) -> str:
    return f"{call.caller} {call.request_id} {call.fingerprint}" if call.request_id else ""


def _etag() -> str:
    return uuid4().hex[:12]


def _check_etag(entry: Entry, etag: str) -> None:
    if etag and etag != entry.schedule.etag:
        raise ConflictError(
            ETAG_MISMATCH,
            f"{entry.schedule.name} has changed since it was read",
            resource=entry.schedule.name,
            metadata={"etag": entry.schedule.etag},
        )
