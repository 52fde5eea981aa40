"""One total order of events, durable before anyone sees it.

Watchers are *cursors* into the log, not queues: an event is kept once in a ring (its payload bytes
shared by all), older ones are read from the database, and a slow watcher costs nothing but its
distance.  Nothing is ever skipped: a watcher that falls further behind than it may is closed with its
last token.

A token names the state directory, the run of the daemon and the revision: ``instance:run:revision``.
The run makes a token of a history that was lost (a restored backup, events that a full disk refused
before a restart) known for what it is, although its revision has been given again since.

A full disk does not silence the log: an event whose row is refused is published all the same and
written with a later one.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import sqlite3
import time
import uuid
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from datetime import UTC, datetime
from typing import Final

import structlog

from virtd.errors import (
    FIELD_INVALID,
    RESUME_TOKEN_EXPIRED,
    WATCHER_TOO_SLOW,
    FieldViolation,
    InvalidArgumentError,
    OutOfRangeError,
    ResourceExhaustedError,
)
from virtd.model.event import Event, EventType
from virtd.store import Database

log = structlog.get_logger(__name__)

Match = Callable[[Event], bool]
BATCH: Final = 256
"""At most so many events are given out at a time."""
LATE_MAX: Final = 256
"""At most so many rows that were refused are tried again with a new one."""


class ForeignTokenError(Exception):
    """The resume token comes from another state directory: the watcher must start over."""


class EventLog:
    """The log.  All methods belong to the event loop."""

    def __init__(
        self, database: Database, *, ring: int = 10_000, retention_count: int = 200_000, retention_s: float = 7 * 86_400
    ) -> None:
        self._database = database
        self._ring: list[Event] = []
        """The newest events, without a hole: up to twice ``_ring_size``, then cut to it."""
        self._ring_size = ring
        self._unwritten: list[Event] = []
        """Published, but not on disk: it was full.  Always in the ring, too."""
        self._retention_count = retention_count
        self._retention_s = retention_s
        self._loop = asyncio.get_running_loop()
        self._news: asyncio.Future[None] = self._loop.create_future()
        self._closed = False
        floor, head = database.read_now(_bounds)
        self._floor = floor
        """The newest revision that is no longer held; a token below it has expired."""
        self.head = head
        """The newest revision that watchers can see."""
        self._next = head + 1
        self._first = head + 1
        self._run = uuid.uuid4().hex[:8]
        self._runs: dict[str, int] = database.read_now(_runs)
        """The first revision of each run of the daemon, oldest first, this one last."""
        self._runs[self._run] = self._first
        run = (self._run, self._first)
        database.submit(lambda connection: connection.execute("INSERT INTO runs VALUES (?, ?)", run))
        self._since_trim = 0
        self.on_published: Callable[[Event], None] = lambda _event: None

    @property
    def instance(self) -> str:
        """Identity of this log; part of every token."""
        return self._database.instance_id

    def emit(
        self,
        type_: EventType,
        resource: str,
        *,
        uid: str = "",
        payload: bytes = b"",
        attributes: Mapping[str, str] | None = None,
    ) -> Event:
        """Append an event.  It gets its revision now and is published, in order, once it is on disk."""
        event = Event(self._next, datetime.now(UTC), type_, resource, uid, payload, dict(attributes or {}))
        self._next += 1

        late = tuple(self._unwritten[:LATE_MAX])

        def insert(connection: sqlite3.Connection) -> None:
            rows = [_row(entry) for entry in (*late, event)]
            connection.executemany("INSERT OR IGNORE INTO events VALUES (?, ?, ?, ?, ?, ?, ?)", rows)

        future = self._database.submit(insert)
        future.add_done_callback(lambda done: self._from_writer(event, late, done))
        return event

    async def flush(self) -> None:
        """Return when everything emitted so far is published."""
        target = self._next - 1
        while self.head < target and not self._closed:
            await self._wait_news(1.0)

    def token(self, revision: int | None = None) -> str:
        """The resume token of a revision; by default of the newest."""
        wanted = self.head if revision is None else revision
        run = self._run
        if wanted < self._first - 1:  # before this run: the last run that had begun by then
            run = next((key for key, first in reversed(self._runs.items()) if first - 1 <= wanted), run)
        return f"{self.instance}:{run}:{wanted}"

    def parse_token(self, token: str) -> int:
        """The revision of a token.

        :raises InvalidArgumentError: FIELD_INVALID, it is not a token.
        :raises OutOfRangeError: RESUME_TOKEN_EXPIRED, the log does not reach back so far.
        :raises ForeignTokenError: it belongs to another state directory, or to a history that was lost.
        """
        instance, _, rest = token.partition(":")
        run, _, number = rest.partition(":")
        if not (number.isascii() and number.isdecimal()) or len(number) > len(str(2**62)) - 1:
            raise InvalidArgumentError(
                FIELD_INVALID,
                "resume_token: not a token that virtd issued",
                violations=(FieldViolation("resume_token", "not a token that virtd issued"),),
            )
        revision = int(number)
        if instance != self.instance:
            raise ForeignTokenError
        self._check_held(revision)
        order = list(self._runs)
        if run not in self._runs:
            raise ForeignTokenError
        after = order.index(run) + 1
        end = self._runs[order[after]] if after < len(order) else self._next
        # A revision that its run cannot have given: what the run did at last is lost.
        if not self._runs[run] - 1 <= revision < end:
            raise ForeignTokenError
        return revision

    def subscribe(self, after: int | None, match: Match, *, buffer: int = 10_000) -> Subscription:
        """Read events after a revision (None: from now on).

        :param buffer: how far, in events, a subscription that had caught up may fall behind.
        """
        return Subscription(self, self.head if after is None else after, match, buffer)

    async def read(self, after: int, limit: int) -> list[Event]:
        """At most ``limit`` published events after a revision, in order.

        :raises OutOfRangeError: RESUME_TOKEN_EXPIRED.
        """
        if after >= self.head:
            return []
        if self._ring and self._ring[0].revision <= after + 1:
            start = after + 1 - self._ring[0].revision
            # Revisions in the ring are consecutive, so the place is computed, not searched.
            return self._ring[start : start + limit]
        self._check_held(after)
        head = self._unwritten[0].revision - 1 if self._unwritten else self.head
        rows = await self._database.read(
            lambda connection: connection.execute(
                "SELECT * FROM events WHERE revision > ? AND revision <= ? ORDER BY revision LIMIT ?",
                (after, head, limit),
            ).fetchall()
        )
        self._check_held(after)  # a trim may have come between
        return [_event(row) for row in rows]

    async def wait_news(self, after: int, timeout_s: float) -> None:
        """Return when there are events after a revision, the log closes, or the time is over."""
        if self.head <= after and not self._closed:
            await self._wait_news(timeout_s)

    def close(self) -> None:
        """Wake every watcher; their next read ends.  Idempotent."""
        self._closed = True
        self._wake()

    @property
    def closed(self) -> bool:
        """Whether the daemon is going down."""
        return self._closed

    async def _wait_news(self, timeout_s: float) -> None:
        # asyncio.wait leaves the shared future alone when this watcher gives up.
        await asyncio.wait([self._news], timeout=timeout_s)

    def _check_held(self, revision: int) -> None:
        if revision < self._floor:
            raise OutOfRangeError(
                RESUME_TOKEN_EXPIRED,
                f"events up to revision {self._floor} are no longer held; list again and watch from there",
                metadata={"oldest_revision": str(self._floor)},
            )

    def _from_writer(self, event: Event, late: tuple[Event, ...], done: Future[None]) -> None:
        failed = done.exception() is not None
        try:
            self._loop.call_soon_threadsafe(self._publish, event, late, failed)
        except RuntimeError:
            return  # the loop is closed; the event is on disk and is read after the restart

    def _publish(self, event: Event, late: tuple[Event, ...], failed: bool) -> None:
        if failed:
            self._unwritten.append(event)
            if len(self._unwritten) > self._ring_size:
                self._floor = self._unwritten.pop(0).revision
        elif late:
            self._unwritten = [entry for entry in self._unwritten if entry.revision > late[-1].revision]
        self._ring.append(event)
        if len(self._ring) >= 2 * self._ring_size:
            del self._ring[: len(self._ring) - self._ring_size]
        self.head = event.revision
        self._wake()
        try:
            self.on_published(event)
        except Exception:
            log.exception("on_published_failed")
        self._since_trim += 1
        if self._since_trim >= max(1, self._retention_count // 20):
            self._since_trim = 0
            self.trim()

    def _wake(self) -> None:
        news, self._news = self._news, self._loop.create_future()
        if not news.done():
            news.set_result(None)

    def trim(self) -> None:
        """Forget what is older than the retention; also done now and then while events come."""
        floor = self.head - self._retention_count
        oldest = time.time() - self._retention_s

        def delete(connection: sqlite3.Connection) -> int:
            # The newest row always stays: it is where the next start takes its revision from.
            connection.execute(
                "DELETE FROM events WHERE (revision <= ? OR time < ?)"
                " AND revision < (SELECT max(revision) FROM events)",
                (floor, oldest),
            )
            held = _bounds(connection)[0]
            # Of the runs, the one in which the oldest event lies is the first that a token can name.
            connection.execute(
                "DELETE FROM runs WHERE first < (SELECT max(first) FROM runs WHERE first <= ?)", (held + 1,)
            )
            return held

        def done(future: Future[int]) -> None:
            if future.exception() is None:
                value = future.result()
                with contextlib.suppress(RuntimeError):  # the loop has closed
                    self._loop.call_soon_threadsafe(self._raise_floor, value)

        self._database.submit(delete).add_done_callback(done)

    def _raise_floor(self, value: int) -> None:
        self._floor = max(self._floor, value)


class Subscription:
    """A cursor in the log with a filter."""

    def __init__(self, log: EventLog, after: int, match: Match, buffer: int) -> None:
        self._log = log
        self._match = match
        self._buffer = buffer
        self._caught_up = False
        self.position = after
        """Everything up to this revision has been given out or did not match."""

    @property
    def token(self) -> str:
        """Resume from here."""
        return self._log.token(self.position)

    async def next_batch(self, timeout_s: float) -> list[Event] | None:
        """The next matching events, in order; empty when the time is over; None when the log has closed.

        :raises ResourceExhaustedError: WATCHER_TOO_SLOW, with the last token in the metadata.
        :raises OutOfRangeError: RESUME_TOKEN_EXPIRED.
        """
        deadline = time.monotonic() + timeout_s
        while True:
            if self._caught_up and self._log.head - self.position > self._buffer:
                raise ResourceExhaustedError(
                    WATCHER_TOO_SLOW,
                    f"the watcher is {self._log.head - self.position} events behind; resume from its last token",
                    metadata={"resume_token": self.token},
                )
            events = await self._log.read(self.position, BATCH)
            if events:
                self.position = events[-1].revision
                matching = [event for event in events if self._match(event)]
                if matching:
                    return matching
                await asyncio.sleep(0)  # a filter that matches nothing must not hold the loop
                continue
            self._caught_up = True
            if self._log.closed:
                return None
            left = deadline - time.monotonic()
            if left <= 0:
                return []
            await self._log.wait_news(self.position, left)


def _bounds(connection: sqlite3.Connection) -> tuple[int, int]:
    low, high, count = connection.execute("SELECT min(revision), max(revision), count(*) FROM events").fetchone()
    if low is None:
        return 0, 0
    if count != high - low + 1:  # a full disk has made a hole: what lies before it is no use
        low = connection.execute(
            "SELECT max(revision) FROM events AS e"
            " WHERE NOT EXISTS (SELECT 1 FROM events WHERE revision = e.revision - 1)"
        ).fetchone()[0]
    return low - 1, high


def _runs(connection: sqlite3.Connection) -> dict[str, int]:
    return dict(connection.execute("SELECT id, first FROM runs ORDER BY first, rowid").fetchall())


def _row(event: Event) -> tuple[int, float, str, str, str, str, bytes]:
    return (
        event.revision,
        event.time.timestamp(),
        event.type.value,
        event.resource,
        event.uid,
        json.dumps(dict(event.attributes), separators=(",", ":")),
        event.payload,
    )


def _event(row: tuple[int, float, str, str, str, str, bytes]) -> Event:
    revision, when, type_, resource, uid, attributes, payload = row
    return Event(
        revision, datetime.fromtimestamp(when, UTC), EventType(type_), resource, uid, payload, json.loads(attributes)
    )
