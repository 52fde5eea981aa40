"""Numbered migrations.  Never edit one that was released; append."""

from __future__ import annotations

from typing import Final

MIGRATIONS: Final[tuple[str, ...]] = (
    """
    CREATE TABLE meta (key TEXT PRIMARY KEY, value TEXT NOT NULL) STRICT;

    CREATE TABLE hosts (id TEXT PRIMARY KEY, record TEXT NOT NULL) STRICT;

    -- Every guest that virtd manages or has seen: the last known picture, so that a restart reports
    -- what changed meanwhile instead of starting from nothing.
    CREATE TABLE guests (
        uid TEXT PRIMARY KEY,
        host TEXT NOT NULL,
        id TEXT NOT NULL,
        managed INTEGER NOT NULL,
        record TEXT NOT NULL,
        owned_volumes TEXT NOT NULL DEFAULT '[]',
        UNIQUE (host, id)
    ) STRICT;

    -- The journal.  A row exists before the first side effect of its operation.
    CREATE TABLE operations (
        id TEXT PRIMARY KEY,
        verb TEXT NOT NULL,
        queue TEXT NOT NULL,
        arguments TEXT NOT NULL,
        record TEXT NOT NULL,
        step INTEGER NOT NULL DEFAULT 0,
        undoing INTEGER NOT NULL DEFAULT 0,
        scratch TEXT NOT NULL DEFAULT '{}',
        response TEXT NOT NULL DEFAULT '',
        terminal INTEGER NOT NULL DEFAULT 0,
        told INTEGER NOT NULL DEFAULT 0, -- whether the event of its end is in the log
        created REAL NOT NULL,
        ended REAL
    ) STRICT;
    CREATE INDEX operations_open ON operations (terminal, told);

    -- request_id -> what it started; remembered as long as the operation, at least 24 hours.
    CREATE TABLE requests (
        caller TEXT NOT NULL,
        request_id TEXT NOT NULL,
        fingerprint TEXT NOT NULL,
        operation TEXT NOT NULL,
        created REAL NOT NULL,
        PRIMARY KEY (caller, request_id)
    ) STRICT;

    CREATE TABLE events (
        revision INTEGER PRIMARY KEY,
        time REAL NOT NULL,
        type TEXT NOT NULL,
        resource TEXT NOT NULL,
        uid TEXT NOT NULL,
        attributes TEXT NOT NULL,
        payload BLOB NOT NULL
    ) STRICT;
    CREATE INDEX events_time ON events (time);

    -- The runs of the daemon, by the first revision that each could give: a token tells the run that it
    -- comes from, so that one of a history that was lost (a restored backup) is known for what it is.
    CREATE TABLE runs (id TEXT PRIMARY KEY, first INTEGER NOT NULL) STRICT;

    CREATE TABLE audit (
        sequence INTEGER PRIMARY KEY AUTOINCREMENT,
        time REAL NOT NULL,
        caller TEXT NOT NULL,
        method TEXT NOT NULL,
        resource TEXT NOT NULL,
        request_id TEXT NOT NULL,
        outcome TEXT NOT NULL,
        operation TEXT NOT NULL
    ) STRICT;

    CREATE TABLE images (id TEXT PRIMARY KEY, record TEXT NOT NULL, path TEXT NOT NULL) STRICT;
    """,
)

BULKY: Final = frozenset({"events", "audit"})
"""Tables that can grow to hundreds of megabytes, and are not checked at every start."""
