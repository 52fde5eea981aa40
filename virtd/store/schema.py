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
    """
    -- Files on their way to the daemon; the bytes lie in STATE/uploads, under the same id.
    CREATE TABLE uploads (
        id TEXT PRIMARY KEY,
        record TEXT NOT NULL,
        caller TEXT NOT NULL,
        request_id TEXT NOT NULL,
        fingerprint TEXT NOT NULL
    ) STRICT;
    CREATE UNIQUE INDEX uploads_request ON uploads (caller, request_id) WHERE request_id <> '';
    """,
    """
    -- The history of guests' usage: sums over spans of time, fine ones (tier 0) and coarse ones (1).
    CREATE TABLE usage (
        tier INTEGER NOT NULL,
        uid TEXT NOT NULL,
        time INTEGER NOT NULL,
        covered_s REAL NOT NULL, cpu_s REAL NOT NULL, cpu_n_s REAL NOT NULL,
        assigned REAL NOT NULL, assigned_n REAL NOT NULL, used REAL NOT NULL, used_n REAL NOT NULL,
        rss REAL NOT NULL, rss_n REAL NOT NULL,
        read_bytes REAL NOT NULL, written_bytes REAL NOT NULL, reads REAL NOT NULL, writes REAL NOT NULL,
        disk_n_s REAL NOT NULL, received_bytes REAL NOT NULL, sent_bytes REAL NOT NULL, net_n_s REAL NOT NULL,
        cpu_max REAL NOT NULL,
        PRIMARY KEY (tier, uid, time)
    ) STRICT, WITHOUT ROWID;
    CREATE INDEX usage_time ON usage (tier, time);
    """,
    """
    -- Deleted guests that can be brought back.  A row is complete when the guest is gone from the host.
    CREATE TABLE trash (
        id TEXT PRIMARY KEY,
        record TEXT NOT NULL,
        complete INTEGER NOT NULL
    ) STRICT;

    -- What the run strategies remember of each guest.
    CREATE TABLE strategies (uid TEXT PRIMARY KEY, record TEXT NOT NULL) STRICT;
    """,
    """
    -- Guests whose file systems are frozen by virtd, or are about to be: each is thawed, whatever happens.
    CREATE TABLE freezes (
        uid TEXT PRIMARY KEY,
        host TEXT NOT NULL,
        caller TEXT NOT NULL,
        thaw_at REAL NOT NULL
    ) STRICT;
    """,
    """
    -- Images that were sent to hosts of other machines.  image: the file here; path: the file there.
    CREATE TABLE image_bases (
        host TEXT NOT NULL,
        pool TEXT NOT NULL,
        volume TEXT NOT NULL,
        image TEXT NOT NULL,
        path TEXT NOT NULL,
        PRIMARY KEY (host, pool, volume)
    ) STRICT;
    """,
    """
    CREATE TABLE schedules (id TEXT PRIMARY KEY, record TEXT NOT NULL, request_id TEXT NOT NULL) STRICT;

    -- What schedules have made: nothing else is ever pruned.  The row is written before the operation
    -- begins; `made` is the snapshot's own time, known when it is complete.
    CREATE TABLE scheduled (
        schedule TEXT NOT NULL,
        guest TEXT NOT NULL,
        uid TEXT NOT NULL,
        snapshot TEXT NOT NULL,
        due REAL NOT NULL,
        made REAL,
        PRIMARY KEY (schedule, uid, snapshot)
    ) STRICT;
    """,
    """
    -- Images on their way to hosts of other machines: how many bytes are there already.
    CREATE TABLE image_transfers (
        host TEXT NOT NULL,
        pool TEXT NOT NULL,
        volume TEXT NOT NULL,
        image TEXT NOT NULL,
        size INTEGER NOT NULL,
        sent INTEGER NOT NULL,
        time REAL NOT NULL,
        PRIMARY KEY (host, pool, volume)
    ) STRICT;

    -- Since when no disk was based on it, as far as was looked; NULL: one is, or nobody has looked.
    ALTER TABLE image_bases ADD COLUMN unused_since REAL;
    """,
)

BULKY: Final = frozenset({"events", "audit", "usage"})
"""Tables that can grow to hundreds of megabytes, and are not checked at every start."""
