"""kill -9 at twenty moments of create, start, snapshot and delete, on the fake hypervisor.

The moments are drawn, with a seed, from the time that the operation takes undisturbed, so that they fall before the
call has arrived, into every step, and after the end.  Each time: one truthful end, no orphan guest, no orphan disk,
and a watcher that misses nothing.
"""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest

from tests.faults.killing import killing
from tests.support.daemons import short_directory
from tests.support.processes import daemon_process

URI = "fake:///kill?persist=1&latency=0.015"


class FakeWitness:
    """Reads the fake hypervisor's own file, and the directory of its pool."""

    def __init__(self, host: Path) -> None:
        self._host = host

    def _world(self) -> dict[str, list[dict[str, object]]]:
        document: dict[str, list[dict[str, object]]] = json.loads((self._host / "fake-world.json").read_text())
        return document

    def guests(self) -> dict[str, str]:
        return {str(guest["name"]): str(guest["state"]) for guest in self._world()["guests"]}

    def snapshots(self, guest: str) -> list[str]:
        for entry in self._world()["guests"]:
            if entry["name"] == guest:
                snapshots = entry["snapshots"]
                assert isinstance(snapshots, list)
                assert all(snapshot["complete"] for snapshot in snapshots), "nothing half made is left"
                return [snapshot["name"] for snapshot in snapshots]
        return []

    def volumes(self) -> set[str]:
        recorded: set[str] = set()
        for pool in self._world()["pools"]:
            volumes = pool["volumes"]
            assert isinstance(volumes, list)
            assert all(volume["complete"] for volume in volumes), "nothing half made is left"
            recorded |= {volume["name"] for volume in volumes}
        files = {path.name for path in (self._host / "pool").glob("*")}
        assert recorded == files
        return recorded


@pytest.mark.timeout(300)
@pytest.mark.parametrize("seed", [1])
async def test_twenty_kills_leave_one_truth(seed: int) -> None:
    dice = random.Random(seed)
    with short_directory() as place:
        async with daemon_process(place, {"lab": URI}) as daemon:
            witness = FakeWitness(daemon.state / "hosts" / "lab")
            async with killing(daemon, witness) as fate:
                made = await fate.client.guests.create("hosts/lab", "stay", fate.guest)
                await made.result(timeout_s=30)
                for number in range(5):
                    await fate.create(dice, start=bool(number % 2))
                    await fate.start(dice, "stay")
                    await fate.delete(dice, running=bool(number % 2))
                await (await fate.client.guests.start("hosts/lab/guests/stay")).result(timeout_s=30)
                for number in range(5):
                    await fate.snapshot(dice, "stay", memory=bool(number % 2))
                assert await fate.agree() == {"stay": "RUNNING"}
                assert fate.kills == 20
                # Otherwise this test would have tried little: most kills fall into the middle of the work.
                assert fate.recovered.total() >= 8, fate.recovered
