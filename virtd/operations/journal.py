"""The journal's SQL, and nothing else."""

from __future__ import annotations

import json
import sqlite3
import time
from dataclasses import dataclass
from typing import Final

from virtd.model.backup import Backup, BackupVerification
from virtd.model.guest import Guest
from virtd.model.network import Network
from virtd.model.operation import Operation
from virtd.model.snapshot import Snapshot
from virtd.model.storage import Image, Pool, Volume
from virtd.operations.verb import Response
from virtd.store import Codec, Database

RECORD: Final = Codec(Operation)
_RESPONSES: Final[dict[str, Codec[Response]]] = {
    type_.__name__: Codec(type_)
    for type_ in (Guest, Snapshot, Pool, Volume, Image, Network, Backup, BackupVerification)
}


@dataclass(frozen=True, slots=True)
class Row:
    """One operation as the journal has it."""

    record: Operation
    queue: str
    arguments: str
    step: int
    undoing: bool
    scratch: dict[str, str]


@dataclass(frozen=True, slots=True)
class Known:
    """What a request_id started before."""

    fingerprint: str
    operation: str


def insert(connection: sqlite3.Connection, row: Row, fingerprint: str) -> Known | None:
    """Journal a new operation and remember its request id, in one transaction.

    :returns: None; or what the request id started before, and then nothing was written.
    """
    now = time.time()
    if row.record.request_id:
        known = _known(connection, row.record.caller, row.record.request_id)
        if known is not None:
            return known
    connection.execute(
        "INSERT INTO operations (id, verb, queue, arguments, record, created) VALUES (?, ?, ?, ?, ?, ?)",
        (row.record.name, row.record.verb, row.queue, row.arguments, RECORD.encode(row.record), now),
    )
    if row.record.request_id:
        connection.execute(
            "INSERT INTO requests VALUES (?, ?, ?, ?, ?)",
            (row.record.caller, row.record.request_id, fingerprint, row.record.name, now),
        )
    return None


def update(connection: sqlite3.Connection, row: Row, response: Response | None) -> None:
    """Journal how far an operation is."""
    terminal = row.record.state.terminal
    connection.execute(
        "UPDATE operations SET record = ?, step = ?, undoing = ?, scratch = ?, response = ?, terminal = ?, ended = ?"
        " WHERE id = ? AND terminal = 0",
        (
            RECORD.encode(row.record),
            row.step,
            int(row.undoing),
            json.dumps(row.scratch),
            _encode_response(response),
            int(terminal),
            time.time() if terminal else None,
            row.record.name,
        ),
    )


async def open_rows(database: Database) -> list[Row]:
    """Every operation that has not ended, oldest first."""
    rows = await database.read(
        lambda connection: connection.execute(
            "SELECT record, queue, arguments, step, undoing, scratch FROM operations"
            " WHERE terminal = 0 ORDER BY rowid"  # not by time: a clock can be set back
        ).fetchall()
    )
    return [
        Row(RECORD.decode(record), queue, arguments, step, bool(undoing), json.loads(scratch))
        for record, queue, arguments, step, undoing, scratch in rows
    ]


async def known_request(database: Database, caller: str, request_id: str) -> Known | None:
    """What this caller's request id started, if it is remembered."""
    return await database.read(lambda connection: _known(connection, caller, request_id))


def _known(connection: sqlite3.Connection, caller: str, request_id: str) -> Known | None:
    row = connection.execute(
        "SELECT fingerprint, operation FROM requests WHERE caller = ? AND request_id = ?", (caller, request_id)
    ).fetchone()
    return Known(*row) if row else None


async def fetch(database: Database, name: str) -> Operation | None:
    """One operation."""
    row = await database.read(
        lambda connection: connection.execute("SELECT record FROM operations WHERE id = ?", (name,)).fetchone()
    )
    return RECORD.decode(row[0]) if row else None


async def fetch_response(database: Database, name: str) -> Response | None:
    """The response of an operation that succeeded."""
    row = await database.read(
        lambda connection: connection.execute("SELECT response FROM operations WHERE id = ?", (name,)).fetchone()
    )
    return _decode_response(row[0]) if row and row[0] else None


async def fetch_all(database: Database) -> list[Operation]:
    """All that are kept, newest first.  Decoded by the reader's thread: there may be very many."""
    return await database.read(
        lambda connection: [
            RECORD.decode(record)
            for (record,) in connection.execute("SELECT record FROM operations ORDER BY rowid DESC")
        ]
    )


async def untold(database: Database) -> list[Operation]:
    """What has ended, but was perhaps never told: the daemon died between the two."""
    rows = await database.read(
        lambda connection: connection.execute(
            "SELECT record FROM operations WHERE terminal = 1 AND told = 0 ORDER BY rowid"
        ).fetchall()
    )
    return [RECORD.decode(record) for (record,) in rows]


def mark_told(connection: sqlite3.Connection, name: str) -> None:
    """The event of its end is in the log.  To be queued behind that event."""
    connection.execute("UPDATE operations SET told = 1 WHERE id = ?", (name,))


def delete(connection: sqlite3.Connection, name: str) -> None:
    """Forget one that has ended."""
    connection.execute("DELETE FROM operations WHERE id = ? AND terminal = 1", (name,))


def delete_older(connection: sqlite3.Connection, before: float) -> None:
    """Forget what ended, and which requests came, before a time (UNIX seconds)."""
    connection.execute("DELETE FROM operations WHERE terminal = 1 AND ended < ?", (before,))
    # A request id is never forgotten before its operation, nor within 24 hours.
    connection.execute(
        "DELETE FROM requests WHERE created < ? AND operation NOT IN (SELECT id FROM operations)",
        (min(before, time.time() - 86_400),),
    )


def _encode_response(response: Response | None) -> str:
    if response is None:
        return ""
    kind = type(response).__name__
    return f"{kind} {_RESPONSES[kind].encode(response)}"


def _decode_response(text: str) -> Response:
    kind, _, record = text.partition(" ")
    return _RESPONSES[kind].decode(record)
