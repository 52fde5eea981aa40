"""Runs schedules: when their time has come, once, and whatever happens to the daemon.

A run is written down before its first operation.  After a crash it goes on: each of its operations has a
request id that follows from the schedule, the run's time and the guest, so that what was begun is found
again instead of begun twice.
"""

from __future__ import annotations

import asyncio
import contextlib
import sqlite3
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import partial
from typing import Final
from uuid import UUID, uuid5

import structlog

from virtd.errors import INTERNAL_ERROR, ErrorRecord, InternalError, VirtdError, from_record
from virtd.inventory import GuestView
from virtd.model.event import EventType
from virtd.model.guest import Origin
from virtd.model.names import GuestName, parse_guest
from virtd.model.operation import Operation
from virtd.model.schedule import BackupAction, Schedule
from virtd.model.snapshot import Snapshot, SnapshotLocation
from virtd.service.backups import Backups
from virtd.service.call import Call
from virtd.service.core import Core, attributes_of
from virtd.service.filters import compile_filter
from virtd.service.guests import FILTER_FIELDS
from virtd.service.scheduled_backups import backup_id, delete_backups, make_backup
from virtd.service.schedules import Entry, Schedules
from virtd.service.snapshots import Draft, Snapshots
from virtd.service.timing import kept, next_run, zone

log = structlog.get_logger(__name__)

LOOK_S: Final = 15.0
"""So often it is looked whether a time has come, at least: the machine's clock may be set."""
AT_ONCE: Final = 4
"""So many guests of one run are worked on at the same time."""
WAIT_S: Final = 60.0
_NAMESPACE: Final = UUID("6f0f1a52-6f5a-4c39-8d4e-2f6f1f0f6a11")


@dataclass(frozen=True, slots=True)
class Made:
    """A snapshot that a schedule has made, or has begun to."""

    uid: UUID
    snapshot: str
    due: datetime
    made: datetime | None


class Scheduler:
    """The loop that runs schedules."""

    def __init__(self, core: Core, schedules: Schedules, snapshots: Snapshots, backups: Backups) -> None:
        self._core = core
        self._schedules = schedules
        self._snapshots = snapshots
        self._backups = backups
        self._runs: dict[str, asyncio.Task[None]] = {}
        self._wake = asyncio.Event()
        self._ticking = asyncio.Lock()
        self._loop: asyncio.Task[None] | None = None
        self._stopping = False
        schedules.on_change = self._wake.set

    def start(self) -> None:
        """Begin; runs that a crash has interrupted go on first."""
        self._stopping = False
        self._loop = asyncio.create_task(self._look(), name="scheduler")

    async def stop(self) -> None:
        """Begin nothing more.  Operations go on; a run's rest is made up for at the next start."""
        self._stopping = True
        tasks = [task for task in (self._loop, *self._runs.values()) if task is not None]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        self._loop = None

    async def tick(self) -> None:
        """Begin every run whose time has come."""
        async with self._ticking:
            await self._tick()

    async def _tick(self) -> None:
        now = self._schedules.now()
        for schedule_id, entry in list(self._schedules.entries.items()):
            if schedule_id in self._runs:
                continue
            try:
                due = await self._due(schedule_id, entry, now)
            except VirtdError as error:  # the disk is full: tried again
                log.warning("schedule_not_begun", schedule=schedule_id, error=error.message)
                continue
            if due is not None:
                task = asyncio.create_task(self._run(schedule_id, due), name=f"schedule {schedule_id}")
                self._runs[schedule_id] = task
                task.add_done_callback(partial(self._forget_run, schedule_id))

    def _forget_run(self, schedule_id: str, _task: asyncio.Task[None]) -> None:
        self._runs.pop(schedule_id, None)
        self._wake.set()  # it may be due again already

    async def idle(self) -> None:
        """Wait until nothing runs (for tests)."""
        while self._runs:
            await asyncio.wait(tuple(self._runs.values()))
            await asyncio.sleep(0)

    async def _look(self) -> None:
        while not self._stopping:
            self._wake.clear()
            try:
                await self.tick()
            except Exception:
                log.exception("scheduler_defect")
            # Not wait_for: in Python 3.11 it forgets a cancel that comes together with the event, as the
            # end of a run does when everything is stopped.
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self._pause()):
                    await self._wake.wait()

    def _pause(self) -> float:
        now = self._schedules.now()
        left = [
            (entry.schedule.status.next_run_time - now).total_seconds()
            for key, entry in self._schedules.entries.items()
            if entry.schedule.status.next_run_time is not None and not entry.schedule.paused and key not in self._runs
        ]
        return min(LOOK_S, max(0.05, min(left, default=LOOK_S)))

    async def _due(self, schedule_id: str, entry: Entry, now: datetime) -> datetime | None:
        """The time of the run to begin, or to go on with, now; written down."""
        if entry.due is not None:
            return entry.due
        planned = entry.schedule.status.next_run_time
        by_time = planned is not None and not entry.schedule.paused and planned <= now
        if not (by_time or entry.forced):
            return None
        due = now.replace(microsecond=0)

        def begin(entry: Entry) -> Entry:
            schedule = entry.schedule
            # However many times were missed: one run makes up for all of them.
            following = next_run(schedule, now) if by_time else schedule.status.next_run_time
            status = replace(schedule.status, last_run_time=due, next_run_time=following, operations=())
            return replace(entry, schedule=replace(schedule, status=status), due=due, forced=False)

        begun = await self._schedules.put(schedule_id, begin)
        if begun is None:
            return None
        self._tell(begun.schedule, "RUNNING")
        return due

    # --------------------------------------------------------------------------------- one run

    async def _run(self, schedule_id: str, due: datetime) -> None:
        entry = self._schedules.entries.get(schedule_id)
        if entry is None:
            return
        operations: list[str] = []
        errors: list[ErrorRecord] = []
        try:
            slots = asyncio.Semaphore(AT_ONCE)
            views = await self._targets(entry.schedule)

            async def one(view: GuestView) -> None:
                async with slots:
                    try:
                        await self._work(entry.schedule, view, due, operations)
                    except VirtdError as error:
                        errors.append(error.with_resource(view.guest.name).record)

            await asyncio.gather(*(one(view) for view in views))
        except VirtdError as error:
            errors.append(error.with_resource(entry.schedule.guest).record)
        except Exception as error:
            log.exception("schedule_defect", schedule=schedule_id)
            wrong = InternalError(INTERNAL_ERROR, f"the run hit a defect ({type(error).__name__})")
            errors.append(wrong.record)
        await self._end(schedule_id, due, operations, errors)

    async def _end(self, schedule_id: str, due: datetime, operations: list[str], errors: list[ErrorRecord]) -> None:
        def end(entry: Entry) -> Entry:
            status = entry.schedule.status
            status = replace(
                status,
                last_success_time=status.last_success_time if errors else due,
                last_error=errors[0] if errors else None,
                failures=status.failures + 1 if errors else 0,
                operations=tuple(operations),
            )
            return replace(entry, schedule=replace(entry.schedule, status=status), due=None)

        for error in errors:
            log.warning(
                "schedule_failed", schedule=schedule_id, guest=error.resource, reason=error.reason, error=error.message
            )
        while True:
            try:
                ended = await self._schedules.put(schedule_id, end)
                break
            except VirtdError as error:  # the disk is full: its end waits for room
                log.warning("schedule_not_ended", schedule=schedule_id, error=error.message)
                await asyncio.sleep(1.0)
        if ended is not None:
            self._tell(ended.schedule, "FAILED" if errors else "SUCCEEDED", errors[0].reason if errors else "")

    async def _targets(self, schedule: Schedule) -> Sequence[GuestView]:
        if schedule.guest:
            name = parse_guest(schedule.guest)
            await self._core.settled(name.host)
            return [self._core.view(name)]
        predicate = compile_filter(schedule.filter, FILTER_FIELDS)
        return [
            view
            for view in self._core.inventory.guests()
            if view.guest.status.origin is Origin.MANAGED and predicate(attributes_of(view.guest).get)
        ]

    async def _work(self, schedule: Schedule, view: GuestView, due: datetime, operations: list[str]) -> None:
        """One guest: take, then prune; nothing is pruned where nothing could be taken.

        :raises VirtdError: why it failed.
        """
        if schedule.backup is not None:
            await self._back_up(schedule, schedule.backup, view, due, operations)
            return
        action = schedule.snapshot
        if action is None:
            raise InternalError(INTERNAL_ERROR, f"{schedule.name} has no action")
        schedule_id, uid, name = schedule.name.partition("/")[2], view.guest.uid, view.key
        snapshot_id = f"{schedule_id}-{due.astimezone(UTC):%Y%m%dt%H%M%Sz}"
        await self._note(schedule_id, str(name), Made(uid, snapshot_id, due, None))
        draft = Draft(
            snapshot_id,
            f"taken by schedule {schedule_id}",
            action.memory,
            action.location or SnapshotLocation.AUTO,
            action.quiesce,
        )
        started = await self._snapshots.create(_call(schedule_id, due, uid, "create"), name, draft)
        if isinstance(started, Operation):
            operations.append(started.name)
            await self._ended(started)
        taken = await self._snapshots.get(name, snapshot_id)
        await self._note(schedule_id, str(name), Made(uid, snapshot_id, due, taken.create_time or due))
        await self._prune(schedule, name, uid, due, operations)

    async def _back_up(
        self, schedule: Schedule, action: BackupAction, view: GuestView, due: datetime, operations: list[str]
    ) -> None:
        """The same with backups."""
        schedule_id, uid, name = schedule.name.partition("/")[2], view.guest.uid, view.key
        new_id = backup_id(schedule_id, uid, due)
        known = sorted(await self._made(schedule_id, uid), key=lambda made: made.due)
        last = next((made.snapshot for made in reversed(known) if made.made and made.snapshot != new_id), "")
        await self._note(schedule_id, str(name), Made(uid, new_id, due, None))

        async def finish(operation: Operation) -> None:
            operations.append(operation.name)
            await self._ended(operation)

        call = _call(schedule_id, due, uid, "create")
        _, taken = await make_backup(self._backups, call, name, action, new_id, last, finish)
        await self._note(schedule_id, str(name), Made(uid, new_id, due, taken.create_time or due))
        times = {made.snapshot: made.due for made in await self._made(schedule_id, uid) if made.made}
        keep = kept(times, schedule.retention, zone(schedule.time_zone))
        for gone in await delete_backups(
            self._backups, times, keep, lambda old: _call(schedule_id, due, uid, f"prune {old}"), finish
        ):
            await self._forget(schedule_id, uid, gone)

    async def _prune(
        self, schedule: Schedule, name: GuestName, uid: UUID, due: datetime, operations: list[str]
    ) -> None:
        schedule_id = schedule.name.partition("/")[2]
        page, there = "", dict[str, Snapshot]()
        while True:
            found = await self._snapshots.list(name.host, name.guest, 1000, page)
            there |= {snapshot.name.rpartition("/")[2]: snapshot for snapshot in found.items}
            page = found.next_page_token
            if not page:
                break
        times: dict[str, datetime] = {}
        for mine in await self._made(schedule_id, uid):
            snapshot = there.get(mine.snapshot)
            # One that a user has deleted and made anew under the same name is the user's.
            if snapshot is not None and mine.made is not None and (snapshot.create_time or mine.made) == mine.made:
                times[mine.snapshot] = mine.due
            elif snapshot is None or mine.made is not None:
                await self._forget(schedule_id, uid, mine.snapshot)
        keep = kept(times, schedule.retention, zone(schedule.time_zone))
        for snapshot_id in sorted(set(times) - keep, key=lambda key: times[key]):
            call = _call(schedule_id, due, uid, f"prune {snapshot_id}")
            started = await self._snapshots.delete(call, name, snapshot_id)
            if isinstance(started, Operation):
                operations.append(started.name)
                await self._ended(started)
            await self._forget(schedule_id, uid, snapshot_id)

    async def _ended(self, operation: Operation) -> None:
        """Wait for an operation.

        :raises VirtdError: what it failed with.
        """
        while not operation.state.terminal:
            operation = await self._core.engine.wait(operation.name, WAIT_S)
        if operation.error is not None:
            raise from_record(operation.error)

    # ---------------------------------------------------------------------- what was made by whom

    async def _note(self, schedule_id: str, guest: str, made: Made) -> None:
        row = (
            schedule_id,
            guest,
            str(made.uid),
            made.snapshot,
            made.due.timestamp(),
            None if made.made is None else made.made.timestamp(),
        )

        def upsert(connection: sqlite3.Connection) -> None:
            connection.execute("INSERT OR REPLACE INTO scheduled VALUES (?, ?, ?, ?, ?, ?)", row)

        await self._core.database.write(upsert)

    async def _forget(self, schedule_id: str, uid: UUID, snapshot_id: str) -> None:
        def delete(connection: sqlite3.Connection) -> None:
            connection.execute(
                "DELETE FROM scheduled WHERE schedule = ? AND uid = ? AND snapshot = ?",
                (schedule_id, str(uid), snapshot_id),
            )

        await self._core.database.write(delete)

    async def _made(self, schedule_id: str, uid: UUID) -> Sequence[Made]:
        rows = await self._core.database.read(
            lambda connection: connection.execute(
                "SELECT snapshot, due, made FROM scheduled WHERE schedule = ? AND uid = ?", (schedule_id, str(uid))
            ).fetchall()
        )
        return [
            Made(
                uid,
                snapshot,
                datetime.fromtimestamp(due, UTC),
                None if made is None else datetime.fromtimestamp(made, UTC),
            )
            for snapshot, due, made in rows
        ]

    def _tell(self, schedule: Schedule, state: str, reason: str = "") -> None:
        self._core.events.emit(EventType.SCHEDULE_RUN, schedule.name, attributes={"state": state, "reason": reason})


def _call(schedule_id: str, due: datetime, uid: UUID, what: str) -> Call:
    request_id = str(uuid5(_NAMESPACE, f"{schedule_id} {due.isoformat()} {uid} {what}"))
    return Call(
        caller=f"schedule:{schedule_id}",
        method=f"schedule {what.partition(' ')[0]}",
        rpc_id=request_id,
        request_id=request_id,
        fingerprint=what,
    )
