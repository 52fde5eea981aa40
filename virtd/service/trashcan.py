"""The trash itself: what is kept of deleted guests, in the store and in one directory.

Volumes stay where they are: their names carry the guest's UUID, so that a new guest of the same name
does not meet them.  Until an entry is purged it owns them, as a guest does.
"""

from __future__ import annotations

import asyncio
import os
import sqlite3
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from virtd.errors import TRASH_ENTRY_NOT_FOUND, NotFoundError
from virtd.model.guest import Guest
from virtd.model.names import parse_guest
from virtd.model.trash import TrashEntry
from virtd.store import Codec, Database

PREFIX: Final = "trash/"


@dataclass(frozen=True, slots=True)
class Trashed:
    """One entry, with what only the daemon needs.

    :param definition: the hypervisor's own text (:meth:`virtd.backend.api.DefinitionFacet.read_definition`).
    :param owned: the volumes that virtd created for the guest, as ``pool/volume``.
    :param complete: the guest is gone from its host; before that, nobody sees the entry.
    """

    entry: TrashEntry
    definition: str
    owned: tuple[str, ...] = ()
    complete: bool = False

    @property
    def host(self) -> str:
        """The id of its host."""
        return parse_guest(self.entry.guest.name).host


class TrashCan:
    """All entries, by their ids.  Belongs to the event loop."""

    def __init__(self, database: Database, directory: Path) -> None:
        self._database = database
        self._directory = directory
        self._codec = Codec(Trashed)
        rows = database.read_now(lambda connection: connection.execute("SELECT record FROM trash").fetchall())
        found = [self._codec.decode(record) for (record,) in rows]
        self._entries = {trashed.entry.name.removeprefix(PREFIX): trashed for trashed in found}

    def get(self, entry_id: str) -> Trashed:
        """One entry that is complete.

        :raises NotFoundError: TRASH_ENTRY_NOT_FOUND.
        """
        found = self._entries.get(entry_id)
        if found is None or not found.complete:
            name = f"{PREFIX}{entry_id}"
            raise NotFoundError(TRASH_ENTRY_NOT_FOUND, f"there is no {name}", resource=name)
        return found

    def find(self, entry_id: str) -> Trashed | None:
        """One entry, complete or not."""
        return self._entries.get(entry_id)

    def list(self, host: str | None = None) -> list[Trashed]:
        """What is complete, of one host or of all, oldest first."""
        found = [t for t in self._entries.values() if t.complete and host in (None, t.host)]
        return sorted(found, key=lambda trashed: order(trashed.entry))

    def owners(self, host: str) -> Sequence[Trashed]:
        """All entries of a host, complete or not."""
        return [trashed for trashed in self._entries.values() if trashed.host == host]

    async def put(self, trashed: Trashed) -> None:
        """Keep an entry, or its new version; durable when it returns."""
        key = trashed.entry.name.removeprefix(PREFIX)
        row = (key, self._codec.encode(trashed), int(trashed.complete))

        def upsert(connection: sqlite3.Connection) -> None:
            connection.execute("INSERT OR REPLACE INTO trash VALUES (?, ?, ?)", row)

        await self._database.write(upsert)
        self._entries[key] = trashed

    async def remove(self, entry_id: str) -> None:
        """Forget an entry.  Idempotent; durable when it returns."""

        def delete(connection: sqlite3.Connection) -> None:
            connection.execute("DELETE FROM trash WHERE id = ?", (entry_id,))

        await self._database.write(delete)
        self._entries.pop(entry_id, None)
        await asyncio.to_thread(self._variables(entry_id).unlink, missing_ok=True)

    async def keep_variables(self, entry_id: str, data: bytes) -> None:
        """Keep a guest's firmware variables beside its entry."""
        await asyncio.to_thread(_write, self._variables(entry_id), data)

    async def variables(self, entry_id: str) -> bytes | None:
        """What :meth:`keep_variables` kept."""
        try:
            return await asyncio.to_thread(self._variables(entry_id).read_bytes)
        except FileNotFoundError:
            return None

    def _variables(self, entry_id: str) -> Path:
        return self._directory / f"{entry_id}.nvram"


def entry_id(guest: Guest) -> str:
    """The id of the entry that keeps a guest: readable, and unique as long as the guest is one."""
    return f"{parse_guest(guest.name).guest[:80]}-{guest.uid.hex[:8]}"


def order(entry: TrashEntry) -> str:
    """The key by which entries are listed."""
    return f"{entry.trash_time.isoformat() if entry.trash_time else ''} {entry.name}"


def _write(path: Path, data: bytes) -> None:
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    temporary = path.with_suffix(".new")
    with os.fdopen(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600), "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)
