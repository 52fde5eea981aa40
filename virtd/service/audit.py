"""Audit records: who asked for what, durable, in order."""

from __future__ import annotations

import sqlite3
import time
from concurrent.futures import Future
from datetime import UTC, datetime
from typing import Final

import structlog

from virtd.errors import PAGE_TOKEN_INVALID, InvalidArgumentError
from virtd.model.audit import AuditRecord
from virtd.service.call import Page, check_page_size
from virtd.service.core import Core

log = structlog.get_logger(__name__)

KEPT: Final = 1_000_000
"""So many records are kept: about 200 MB."""


class Audit:
    """Use cases of the audit log."""

    def __init__(self, core: Core) -> None:
        self._core = core

    def record(
        self, caller: str, method: str, resource: str, request_id: str, outcome: str, operation: str = ""
    ) -> None:
        """Write one record; returns at once, durable within the next commit."""
        row = (time.time(), caller, method, resource, request_id, outcome, operation)

        def insert(connection: sqlite3.Connection) -> None:
            connection.execute(
                "INSERT INTO audit (time, caller, method, resource, request_id, outcome, operation)"
                " VALUES (?, ?, ?, ?, ?, ?, ?)",
                row,
            )

        self._core.database.submit(insert).add_done_callback(_report)

    def trim(self) -> None:
        """Forget all but the newest records; returns at once."""

        def delete(connection: sqlite3.Connection) -> None:
            connection.execute("DELETE FROM audit WHERE sequence <= (SELECT max(sequence) FROM audit) - ?", (KEPT,))

        self._core.database.submit(delete).add_done_callback(_report)

    async def list(self, page_size: int, page_token: str) -> Page[AuditRecord]:
        """Records, newest first.

        :raises InvalidArgumentError: PAGE_TOKEN_INVALID or FIELD_INVALID.
        """
        size = check_page_size(page_size)
        if page_token and not page_token.isdecimal():
            raise InvalidArgumentError(PAGE_TOKEN_INVALID, "page_token: not a token of this list")
        before = int(page_token[:18]) if page_token else 2**62
        rows = await self._core.database.read(
            lambda connection: connection.execute(
                "SELECT sequence, time, caller, method, resource, request_id, outcome, operation FROM audit"
                " WHERE sequence < ? ORDER BY sequence DESC LIMIT ?",
                (before, size + 1),
            ).fetchall()
        )
        records = tuple(AuditRecord(row[0], datetime.fromtimestamp(row[1], UTC), *row[2:]) for row in rows[:size])
        more = len(rows) > size
        return Page(records, str(records[-1].sequence) if more and records else "")


def _report(write: Future[None]) -> None:
    if (error := write.exception()) is not None:
        log.error("audit_not_written", error=str(error))
