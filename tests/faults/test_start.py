"""What ``virtd serve`` says when it cannot start: one clear line, exit code 1, and nothing is changed."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from virtd_client import AsyncClient

from tests.support.daemons import short_directory, write_config
from tests.support.processes import daemon_process

URI = "fake:///start?persist=1"


def refused(config: Path) -> str:
    """What it says on standard error."""
    ran = subprocess.run(
        [sys.executable, "-m", "virtd.cli.daemon", "serve", "--config", str(config)],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert ran.returncode == 1, ran.stderr
    last = ran.stderr.strip().splitlines()[-1]
    assert last.startswith("virtd: ")
    assert "Traceback" not in ran.stderr
    return last


async def test_two_daemons_do_not_share_a_state_directory() -> None:
    with short_directory() as place:
        async with daemon_process(place, {"lab": URI}) as daemon:
            said = refused(daemon.config)
            assert "is used by another virtd (process " in said
            assert "Stop the other daemon" in said
            async with AsyncClient.connect(daemon.target) as client:
                assert (await client.server.info()).instance_id, "the first one goes on"


async def test_a_damaged_journal_is_told_with_what_to_do_and_kept() -> None:
    with short_directory() as place:
        async with daemon_process(place, {"lab": URI}) as daemon:
            assert daemon.stop() == 0
            journal = daemon.state / "virtd.db"
            content = bytearray(journal.read_bytes())
            content[4096:] = b"\xff" * (len(content) - 4096)
            journal.write_bytes(content)
            said = refused(daemon.config)
            assert str(journal) in said
            assert "damaged" in said
            assert "Restore it from a backup" in said
            assert journal.read_bytes() == bytes(content)
            # As it says: moved away, everything but virtd's own memory is still there.
            journal.rename(journal.with_suffix(".bad"))
            await daemon.start()


def test_a_place_that_cannot_be_written_is_named() -> None:
    with short_directory() as place:
        config = write_config(place, {"lab": URI}, {"state": {"directory": "/proc/virtd"}})
        said = refused(config)
        assert "/proc/virtd" in said
        assert "state.directory" in said


async def test_sigterm_ends_it_in_good_order_and_the_next_one_goes_on() -> None:
    with short_directory() as place:
        async with daemon_process(place, {"lab": URI}) as daemon:
            async with AsyncClient.connect(daemon.target) as client:
                first = (await client.server.info()).instance_id
            assert daemon.stop() == 0
            assert not (place / "virtd.sock").exists()
            await daemon.start()
            async with AsyncClient.connect(daemon.target) as client:
                assert (await client.server.info()).instance_id == first
