"""kill -9 at twenty moments, on a real libvirt daemon with real QEMU guests.

As ``test_kill.py``, with libvirt and the pool's directory as the witnesses.  The guests have nothing to boot: they
start in half a second and stay up, and a snapshot with memory of one takes half a second as well.
"""

from __future__ import annotations

import contextlib
import random
from collections.abc import Iterator
from pathlib import Path

import libvirt
import pytest

from tests.faults.killing import killing, spec
from tests.qemu.fixtures import libvirt_host
from tests.support.daemons import short_directory
from tests.support.processes import daemon_process
from virtd.libvirt import events
from virtd.libvirt.private import PrivateLibvirt
from virtd.v1 import guest_pb2

__all__ = ["libvirt_host"]

pytestmark = pytest.mark.qemu

PROBE = "virtd-probe-"
RUNNING = libvirt.VIR_DOMAIN_RUNNING


class LibvirtWitness:
    """Asks libvirt on a connection of its own, and looks into the directory of the pool."""

    def __init__(self, connection: libvirt.virConnect, pool: Path) -> None:
        self._connection = connection
        self._pool = pool

    def guests(self) -> dict[str, str]:
        states = {}
        for domain in self._connection.listAllDomains():
            if domain.name().startswith(PROBE):
                continue  # virtd tries the accelerator out with a guest that ends with its connection
            states[domain.name()] = "RUNNING" if domain.state()[0] == RUNNING else "STOPPED"
        return states

    def snapshots(self, guest: str) -> list[str]:
        return [str(name) for name in self._connection.lookupByName(guest).snapshotListNames()]

    def volumes(self) -> set[str]:
        return {path.name for path in self._pool.glob("*")}


@pytest.fixture
def connection(libvirt_host: PrivateLibvirt) -> Iterator[libvirt.virConnect]:
    events.ensure_running()
    made = libvirt.open(libvirt_host.uri)
    yield made
    made.close()


@pytest.mark.timeout(600)
async def test_twenty_kills_leave_one_truth(libvirt_host: PrivateLibvirt, connection: libvirt.virConnect) -> None:
    dice = random.Random(2)
    guest = spec(graphics=guest_pb2.GraphicsSpec(vnc=False), guest_agent=False)
    with short_directory() as place:
        witness = LibvirtWitness(connection, place / "state" / "hosts" / "lab" / "pool")
        try:
            async with (
                daemon_process(place, {"lab": libvirt_host.uri}) as daemon,
                killing(daemon, witness, guest) as fate,
            ):
                made = await fate.client.guests.create("hosts/lab", "stay", fate.guest)
                await made.result(timeout_s=60)
                for _ in range(5):
                    await fate.create(dice, start=True)
                    await fate.start(dice, "stay")
                    await fate.delete(dice, running=True)
                await (await fate.client.guests.start("hosts/lab/guests/stay")).result(timeout_s=60)
                for _ in range(5):
                    await fate.snapshot(dice, "stay", memory=True)
                assert await fate.agree() == {"stay": "RUNNING"}
                assert fate.kills == 20
                assert fate.recovered.total() >= 5, fate.recovered
        finally:
            for domain in connection.listAllDomains():
                with contextlib.suppress(libvirt.libvirtError):  # a probe's guest has gone meanwhile
                    if domain.isActive():
                        domain.destroy()
                    domain.undefineFlags(libvirt.VIR_DOMAIN_UNDEFINE_SNAPSHOTS_METADATA)
            for pool in connection.listAllStoragePools():
                if str(place) in pool.XMLDesc():
                    if pool.isActive():
                        pool.destroy()
                    pool.undefine()
