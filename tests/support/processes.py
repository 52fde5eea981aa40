"""A daemon in a process of its own, which can be killed."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path

from virtd_client import AsyncClient, VirtdError

from tests.support.daemons import write_config

START_S = 30.0


class DaemonProcess:
    """``virtd serve`` in a directory of its own.

    :param place: a short directory: sockets lie in it.
    :param hosts: URIs of its hosts, by id.
    """

    def __init__(self, place: Path, hosts: Mapping[str, str], **sections: Mapping[str, object]) -> None:
        self.place = place
        self.config = write_config(place, hosts, {"log": {"format": "json"}, **sections})
        self.log = place / "virtd.log"
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def target(self) -> str:
        return f"unix:{self.place / 'virtd.sock'}"

    @property
    def state(self) -> Path:
        return self.place / "state"

    def spawn(self) -> None:
        """Start it; returns at once."""
        assert self._process is None
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "virtd.cli.daemon", "serve", "--config", str(self.config)],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )

    async def start(self) -> None:
        """Start it, and wait until it serves and its hosts have answered."""
        self.spawn()
        await self.serving()

    async def serving(self) -> None:
        async with asyncio.timeout(START_S), AsyncClient.connect(self.target, timeout_s=START_S) as client:
            while True:
                assert self._process is not None
                assert self._process.poll() is None, f"the daemon has ended:\n{self.log.read_text()[-4000:]}"
                with contextlib.suppress(VirtdError):
                    hosts = await client.hosts.list()
                    # Not before its abilities are known: a call would wait for them.
                    if all(host.state == 2 and host.facts.capabilities for host in hosts):
                        return
                await asyncio.sleep(0.02)

    def kill(self) -> None:
        """SIGKILL: nothing of it gets a chance to tidy up."""
        process, self._process = self._process, None
        if process is not None:
            process.kill()
            process.wait(10)

    def stop(self) -> int:
        """SIGTERM; its exit code."""
        process, self._process = self._process, None
        assert process is not None
        process.send_signal(signal.SIGTERM)
        try:
            return process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait(10)
            raise


@asynccontextmanager
async def daemon_process(
    place: Path, hosts: Mapping[str, str], **sections: Mapping[str, object]
) -> AsyncIterator[DaemonProcess]:
    """One that runs, and is gone afterwards."""
    daemon = DaemonProcess(place, hosts, **sections)
    try:
        await daemon.start()
        yield daemon
    finally:
        daemon.kill()
