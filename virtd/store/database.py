"""One SQLite file: a writer thread with group commit, a reader thread, a lock against a second daemon.

Measured on the design's machine: synchronous=FULL gives about 650 commits a second one by one and
30,000 rows a second when what is waiting is committed together; so it is.
"""

from __future__ import annotations

import asyncio
import fcntl
import os
import queue
import sqlite3
import threading
import uuid
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Final, TypeVar

from virtd.errors import (
    INTERNAL_ERROR,
    JOURNAL_CORRUPT,
    STATE_DIRECTORY_LOCKED,
    STORAGE_FULL,
    FailedPreconditionError,
    InternalError,
    ResourceExhaustedError,
    VirtdError,
)
from virtd.store.schema import BULKY, MIGRATIONS

T = TypeVar("T")
Work = Callable[[sqlite3.Connection], T]

FILE_NAME: Final = "virtd.db"
GROUP_LIMIT: Final = 512
"""At most so many writes in one commit, so that the first of them does not wait for ever."""


class Database:
    """The open database.  Made by :func:`open_database`."""

    def __init__(self, path: Path, lock_fd: int, writer: sqlite3.Connection, reader: sqlite3.Connection) -> None:
        self.path = path
        self.on_commit: Callable[[float, int], None] = lambda _seconds, _rows: None
        self._lock_fd = lock_fd
        self._writer = writer
        self._reader = reader
        self._pending: queue.SimpleQueue[tuple[Work[object], Future[object]] | None] = queue.SimpleQueue()
        self._closed = False
        self._thread = threading.Thread(target=self._write_loop, name="virtd-db-writer", daemon=True)
        self._thread.start()
        self._read_pool = ThreadPoolExecutor(1, thread_name_prefix="virtd-db-reader")
        self.instance_id: str = reader.execute("SELECT value FROM meta WHERE key = 'instance'").fetchone()[0]

    def submit(self, work: Work[T]) -> Future[T]:
        """Queue a write and return at once.  Writes are carried out in the order of the calls.

        ``work`` runs on the writer thread inside a transaction; when it raises, only its own
        changes are rolled back.  The future resolves after the commit is on disk.
        """
        future: Future[T] = Future()
        # Running from the start: a caller who goes away cannot take back a write that others, and the
        # order of the journal, depend on.  (A cancelled future would also stop the writer thread.)
        future.set_running_or_notify_cancel()
        if self._closed:
            future.set_exception(InternalError(INTERNAL_ERROR, "the journal is closed"))
            return future
        self._pending.put((work, future))  # type: ignore[arg-type]  # Future is invariant; only work and future meet
        return future

    async def write(self, work: Work[T]) -> T:
        """Carry out a write and return when it is durable.

        Cancelling the wait does not take the write back.

        :raises ResourceExhaustedError: STORAGE_FULL, the disk is full; nothing was changed.
        """
        return await asyncio.wrap_future(self.submit(work))

    async def read(self, work: Work[T]) -> T:
        """Run a query on the reader's connection: it sees what was committed before."""
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._read_pool, self._run_read, work)

    def read_now(self, work: Work[T]) -> T:
        """As :meth:`read`, blocking: for start-up only."""
        return self._read_pool.submit(self._run_read, work).result()

    def close(self) -> None:
        """Commit what is waiting and release the directory.  Idempotent."""
        if self._closed:
            return
        self._closed = True
        self._pending.put(None)
        self._thread.join()
        self._read_pool.shutdown(wait=True)
        self._reader.close()
        self._writer.close()
        os.close(self._lock_fd)

    def _run_read(self, work: Work[T]) -> T:
        try:
            return work(self._reader)
        except sqlite3.Error as error:
            raise translate(error, self.path) from error

    def _write_loop(self) -> None:
        stopping = False
        while not stopping:
            batch = [self._pending.get()]
            with suppress(queue.Empty):
                while len(batch) < GROUP_LIMIT:
                    batch.append(self._pending.get_nowait())
            stopping = None in batch
            entries = [entry for entry in batch if entry is not None]
            try:
                self._commit(entries)
            except BaseException as error:  # a defect; but if this thread ended, every later write would hang
                with suppress(sqlite3.Error):
                    self._writer.execute("ROLLBACK")
                for _, future in entries:
                    if not future.done():
                        future.set_exception(InternalError(INTERNAL_ERROR, f"the journal hit a defect: {error!r}"))

    def _commit(self, batch: list[tuple[Work[object], Future[object]]]) -> None:  # noqa: C901 - one transaction, read in one piece
        if not batch:
            return
        done: list[tuple[Future[object], object, BaseException | None]] = []
        started = _clock()
        try:
            self._writer.execute("BEGIN IMMEDIATE")
            for work, future in batch:
                self._writer.execute("SAVEPOINT work")
                try:
                    done.append((future, work(self._writer), None))
                except Exception as error:
                    if not self._writer.in_transaction:  # SQLite itself gave the transaction up
                        raise
                    self._writer.execute("ROLLBACK TO work")
                    done.append((future, None, error))
                self._writer.execute("RELEASE work")
            self._writer.execute("COMMIT")
        except sqlite3.Error as error:
            with suppress(sqlite3.Error):
                self._writer.execute("ROLLBACK")
            if len(batch) > 1:  # the fault of one, perhaps: what fits on the disk is not to suffer for what does not
                for entry in batch:
                    self._commit([entry])
                return
            batch[0][1].set_exception(translate(error, self.path))
            return
        seconds = _clock() - started
        for future, value, failure in done:
            if failure is None:
                future.set_result(value)
            elif isinstance(failure, sqlite3.Error):
                future.set_exception(translate(failure, self.path))
            else:
                future.set_exception(failure)
        self.on_commit(seconds, len(batch))


def open_database(directory: Path) -> Database:
    """Open, or create, the database of a state directory.

    :raises FailedPreconditionError: STATE_DIRECTORY_LOCKED, another virtd uses it.
    :raises InternalError: JOURNAL_CORRUPT, the file is damaged; it was not changed.
    :raises ResourceExhaustedError: STORAGE_FULL.
    """
    try:
        directory.mkdir(mode=0o711, parents=True, exist_ok=True)
        lock_fd = os.open(directory / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise _unusable(directory, error) from error
    connections: list[sqlite3.Connection] = []
    try:
        _lock(lock_fd, directory)
        path = directory / FILE_NAME
        try:
            # SQLite gives its own files (-wal, -shm) the mode of this one: nobody else reads the journal.
            os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))
        except OSError as error:
            raise _unusable(directory, error) from error
        try:
            connections.append(_connect(path))
            _migrate(connections[0], path)
            connections.append(_connect(path))
            connections[1].execute("PRAGMA query_only = ON")
            return Database(path, lock_fd, *connections)
        except sqlite3.Error as error:
            raise translate(error, path) from error
    except BaseException:
        for connection in connections:
            connection.close()
        os.close(lock_fd)
        raise


def _lock(fd: int, directory: Path) -> None:
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        owner = os.pread(fd, 32, 0).decode(errors="replace").strip() or "unknown"
        raise FailedPreconditionError(
            STATE_DIRECTORY_LOCKED,
            f"the state directory {directory} is used by another virtd (process {owner})",
            metadata={"directory": str(directory), "pid": owner},
        ) from None
    except OSError as error:
        raise _unusable(directory, error) from error
    with suppress(OSError):  # a full disk: the number is for people only
        os.ftruncate(fd, 0)
        os.pwrite(fd, f"{os.getpid()}\n".encode(), 0)


def _connect(path: Path) -> sqlite3.Connection:
    connection = sqlite3.connect(path, isolation_level=None, check_same_thread=False, timeout=10)
    connection.execute("PRAGMA journal_mode = WAL")
    connection.execute("PRAGMA synchronous = FULL")
    connection.execute("PRAGMA foreign_keys = ON")
    return connection


def _migrate(connection: sqlite3.Connection, path: Path) -> None:
    # Looks at every page of what cannot be made again; about 10 ms for 10,000 guests.  Events and audit
    # records are many and are only read: damage there is noticed then.
    for (table,) in connection.execute("SELECT name FROM sqlite_schema WHERE type = 'table'").fetchall():
        if table not in BULKY and not table.startswith("sqlite_"):
            verdict = connection.execute(f"PRAGMA quick_check({table})").fetchone()[0]
            if verdict != "ok":
                raise _corrupt(path, verdict)
    version: int = connection.execute("PRAGMA user_version").fetchone()[0]
    if version > len(MIGRATIONS):
        raise InternalError(
            JOURNAL_CORRUPT,
            f"{path} was written by a newer virtd (schema {version}, this one knows {len(MIGRATIONS)}): "
            "run that version again; nothing was changed",
        )
    for number, script in enumerate(MIGRATIONS[version:], start=version + 1):
        connection.executescript(f"BEGIN IMMEDIATE; {script}; PRAGMA user_version = {number}; COMMIT;")
    connection.execute("INSERT OR IGNORE INTO meta (key, value) VALUES ('instance', ?)", (uuid.uuid4().hex[:12],))


def translate(error: sqlite3.Error, path: Path) -> VirtdError:
    """The contract error for what SQLite says, by its extended code."""
    code = getattr(error, "sqlite_errorcode", None)
    primary = code & 0xFF if isinstance(code, int) else None
    if primary == sqlite3.SQLITE_FULL:
        return ResourceExhaustedError(STORAGE_FULL, f"no space left for the journal {path}; nothing was changed")
    if primary in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB):
        return _corrupt(path, str(error))
    if primary in (sqlite3.SQLITE_READONLY, sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_PERM):
        return InternalError(
            INTERNAL_ERROR, f"the journal {path} cannot be written: {error}; check the owner and mode of its directory"
        )
    return InternalError(INTERNAL_ERROR, f"the journal {path} failed: {error}")


def _corrupt(path: Path, detail: str) -> InternalError:
    return InternalError(JOURNAL_CORRUPT, f"the journal {path} is damaged ({detail}); virtd changed nothing in it")


def _unusable(directory: Path, error: OSError) -> VirtdError:
    import errno

    if error.errno == errno.ENOSPC:
        return ResourceExhaustedError(STORAGE_FULL, f"no space left for the state directory {directory}")
    return InternalError(
        INTERNAL_ERROR,
        f"the state directory {directory} cannot be used: {error.strerror}; check its owner and mode, "
        "or choose another with `state.directory` or --state-dir",
    )


def _clock() -> float:
    import time

    return time.monotonic()
