"""The database: group commit, what a full, damaged or locked one does, and that it survives its callers."""

from __future__ import annotations

import asyncio
import os
import sqlite3
import stat
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

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
from virtd.store import Codec, Database, open_database
from virtd.store.database import FILE_NAME
from virtd.store.schema import MIGRATIONS


@pytest.fixture
def database(tmp_path: Path) -> Iterator[Database]:
    made = open_database(tmp_path)
    yield made
    made.close()


def put(key: str, value: str = "x") -> Any:
    return lambda connection: connection.execute("INSERT INTO meta VALUES (?, ?)", (key, value))


def keys(database: Database) -> set[str]:
    rows = database.read_now(lambda connection: connection.execute("SELECT key FROM meta").fetchall())
    return {key for (key,) in rows} - {"instance"}


def fill(database: Database) -> None:
    """From now on the disk is full."""

    def limit(connection: sqlite3.Connection) -> None:
        pages = connection.execute("PRAGMA page_count").fetchone()[0]
        connection.execute(f"PRAGMA max_page_count = {pages}")

    database.submit(limit).result()


def make_room(database: Database) -> None:
    database.submit(lambda connection: connection.execute("PRAGMA max_page_count = 1000000")).result()


BIG = "x" * 1_000_000


# -------------------------------------------------------------------------------------- writing


async def test_what_was_written_is_there_after_a_restart(tmp_path: Path) -> None:
    first = open_database(tmp_path)
    await first.write(put("a"))
    instance = first.instance_id
    first.close()
    second = open_database(tmp_path)
    assert keys(second) == {"a"}
    assert second.instance_id == instance
    second.close()


async def test_a_read_sees_every_write_that_was_answered(database: Database) -> None:
    for number in range(50):
        await database.write(put(f"k{number}"))
        found = await database.read(lambda connection: connection.execute("SELECT count(*) FROM meta").fetchone()[0])
        assert found == number + 2


def test_what_waits_is_committed_together_and_in_order(database: Database) -> None:
    gate = threading.Event()
    commits: list[int] = []
    database.on_commit = lambda _seconds, rows: commits.append(rows)
    order: list[int] = []
    database.submit(lambda _connection: gate.wait(5))
    futures = [database.submit(lambda _connection, n=n: order.append(n)) for n in range(200)]
    gate.set()
    for future in futures:
        future.result(5)
    assert order == list(range(200))
    database.close()
    assert sum(commits) == 201
    assert len(commits) <= 3


def test_one_write_that_fails_takes_back_its_own_changes_only(database: Database) -> None:
    gate = threading.Event()

    def half(connection: sqlite3.Connection) -> None:
        put("half")(connection)
        raise ValueError("no")

    database.submit(lambda _connection: gate.wait(5))
    before, bad, after = database.submit(put("before")), database.submit(half), database.submit(put("after"))
    twice = database.submit(put("before"))
    gate.set()
    before.result(5)
    after.result(5)
    with pytest.raises(ValueError, match="no"):
        bad.result(5)
    with pytest.raises(InternalError, match="UNIQUE"):
        twice.result(5)
    assert keys(database) == {"before", "after"}


async def test_a_caller_that_goes_away_neither_stops_the_writer_nor_takes_the_write_back(database: Database) -> None:
    gate = threading.Event()
    database.submit(lambda _connection: gate.wait(5))
    waiting = asyncio.create_task(database.write(put("left")))
    await asyncio.sleep(0.01)
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    gate.set()
    await asyncio.wait_for(database.write(put("later")), 5)
    assert keys(database) == {"left", "later"}


async def test_a_defect_in_the_commit_hook_does_not_end_the_writer(database: Database) -> None:
    def broken(_seconds: float, _rows: int) -> None:
        raise RuntimeError("metrics")

    database.on_commit = broken
    await asyncio.wait_for(database.write(put("a")), 5)
    await asyncio.wait_for(database.write(put("b")), 5)
    assert keys(database) == {"a", "b"}


def test_close_writes_what_waits_and_is_idempotent(tmp_path: Path) -> None:
    made = open_database(tmp_path)
    gate = threading.Event()
    made.submit(lambda _connection: gate.wait(5))
    last = made.submit(put("last"))
    threading.Timer(0.05, gate.set).start()
    made.close()
    made.close()
    assert last.exception() is None
    with pytest.raises(InternalError, match="closed"):
        made.submit(put("too late")).result(5)
    again = open_database(tmp_path)
    assert keys(again) == {"last"}
    again.close()


# --------------------------------------------------------------------------- full and read-only


async def test_a_full_disk_is_told_and_changes_nothing(database: Database) -> None:
    await database.write(put("small"))
    fill(database)
    with pytest.raises(ResourceExhaustedError) as caught:
        await database.write(put("big", BIG))
    assert caught.value.reason is STORAGE_FULL
    assert str(database.path) in caught.value.message
    assert keys(database) == {"small"}
    make_room(database)
    await database.write(put("big", BIG))
    assert keys(database) == {"small", "big"}


def test_what_fits_is_written_although_something_in_its_group_does_not(database: Database) -> None:
    fill(database)
    gate = threading.Event()
    database.submit(lambda _connection: gate.wait(5))
    before, big, after = database.submit(put("a")), database.submit(put("big", BIG)), database.submit(put("b"))
    gate.set()
    before.result(5)
    after.result(5)
    with pytest.raises(ResourceExhaustedError):
        big.result(5)
    assert keys(database) == {"a", "b"}


_LIMITED = """
import asyncio, resource, signal, sys
from pathlib import Path
from virtd.store import open_database
from virtd.errors import VirtdError
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
database = open_database(Path(sys.argv[1]))
size = max(f.stat().st_size for f in Path(sys.argv[1]).iterdir())
resource.setrlimit(resource.RLIMIT_FSIZE, (size + 20000, size + 20000))
written = 0
try:
    for number in range(1000):
        database.submit(lambda c: c.execute("INSERT INTO meta VALUES (?, ?)", (f"k{number}", "x" * 1000))).result()
        written += 1
except VirtdError as error:
    print(written, error.reason.name)
"""


def test_a_limit_of_the_system_is_told_and_what_was_answered_is_kept(tmp_path: Path) -> None:
    ran = subprocess.run([sys.executable, "-c", _LIMITED, str(tmp_path)], capture_output=True, text=True, timeout=60)
    assert ran.returncode == 0, ran.stderr
    written, reason = ran.stdout.split()
    assert reason in {STORAGE_FULL.name, INTERNAL_ERROR.name}
    assert int(written) > 0
    again = open_database(tmp_path)
    assert len(keys(again)) == int(written)
    again.close()


@pytest.mark.parametrize("sealed", ["directory", "file"])
def test_a_place_that_cannot_be_written_is_named_with_what_to_do(tmp_path: Path, sealed: str) -> None:
    place = tmp_path / "state"
    if sealed == "directory":
        tmp_path.joinpath("state").write_text("a file where a directory should be")
    else:
        place.mkdir()
        (place / FILE_NAME).mkdir()
    with pytest.raises(InternalError) as caught:
        open_database(place)
    assert str(place) in caught.value.message
    assert "check its owner and mode" in caught.value.message


def test_a_directory_that_cannot_be_made_is_named() -> None:
    # Nobody, root included, can make a directory there.
    with pytest.raises(InternalError, match="check its owner and mode") as caught:
        open_database(Path("/proc/virtd-state"))
    assert "/proc/virtd-state" in caught.value.message


# ------------------------------------------------------------------------------ damaged, locked


def _filled(place: Path) -> Path:
    made = open_database(place)
    for number in range(50):
        made.submit(
            lambda connection, n=number: connection.execute(
                "INSERT INTO operations (id, verb, queue, arguments, record, created) VALUES (?, '', '', ?, '', 0)",
                (f"operations/{n}", "x" * 500),
            )
        ).result()
    made.close()
    return place / FILE_NAME


@pytest.mark.parametrize("damage", ["header", "middle", "cut"])
def test_a_damaged_journal_is_refused_and_left_as_it_is(tmp_path: Path, damage: str) -> None:
    path = _filled(tmp_path)
    content = bytearray(path.read_bytes())
    if damage == "header":
        content[0:16] = b"something else.."
    elif damage == "middle":
        root = 4096 * 6
        for page in range(root, len(content), 4096):
            content[page : page + 200] = b"\xff" * 200
    else:
        del content[len(content) // 2 :]
    path.write_bytes(content)
    with pytest.raises(InternalError) as caught:
        open_database(tmp_path)
    assert caught.value.reason is JOURNAL_CORRUPT
    assert str(path) in caught.value.message
    assert path.read_bytes() == bytes(content)
    # And the directory is free again: a better file can be put there.
    path.unlink()
    open_database(tmp_path).close()


def test_a_journal_of_a_newer_virtd_is_left_alone(tmp_path: Path) -> None:
    path = _filled(tmp_path)
    connection = sqlite3.connect(path)
    connection.execute(f"PRAGMA user_version = {len(MIGRATIONS) + 1}")
    connection.close()
    with pytest.raises(InternalError, match="newer virtd") as caught:
        open_database(tmp_path)
    assert caught.value.reason is JOURNAL_CORRUPT


def test_two_daemons_do_not_share_a_directory(tmp_path: Path) -> None:
    first = open_database(tmp_path)
    with pytest.raises(FailedPreconditionError) as caught:
        open_database(tmp_path)
    assert caught.value.reason is STATE_DIRECTORY_LOCKED
    assert caught.value.record.metadata["pid"] == str(os.getpid())
    assert str(tmp_path) in caught.value.message
    first.close()
    open_database(tmp_path).close()


def test_nobody_else_can_read_the_journal(tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        made = open_database(tmp_path)
        made.submit(put("a")).result()
        modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in tmp_path.iterdir()}
        made.close()
    finally:
        os.umask(before)
    assert {FILE_NAME, "lock"} <= set(modes)
    assert set(modes.values()) == {0o600}


def test_readers_cannot_write(database: Database) -> None:
    with pytest.raises(VirtdError):
        database.read_now(put("sneaky"))
    assert keys(database) == set()


# --------------------------------------------------------------------------------------- codec


@dataclass(frozen=True, slots=True)
class _Sample:
    name: str
    size: int = 7
    tags: tuple[str, ...] = field(default=())


def test_rows_are_small_and_old_ones_readable() -> None:
    codec = Codec(_Sample)
    assert codec.encode(_Sample("a")) == '{"name":"a"}'
    assert codec.decode('{"name": "a"}') == _Sample("a")
    assert codec.decode(codec.encode(_Sample("b", 1, ("x", "y")))) == _Sample("b", 1, ("x", "y"))


@pytest.mark.parametrize("text", ["", "{", "{}", '{"name": 5}', '{"name": "a", "size": "many"}', "null"])
def test_a_damaged_row_is_found_and_its_content_not_told(text: str) -> None:
    with pytest.raises(InternalError) as caught:
        Codec(_Sample).decode(text)
    assert caught.value.reason is JOURNAL_CORRUPT
    assert "many" not in caught.value.message
