"""The harness of the kill tests; see the package's documentation."""

from __future__ import annotations

import asyncio
import contextlib
import random
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any, Protocol
from uuid import uuid4

from virtd_client import AsyncClient, VirtdError
from virtd_client.types import Reset

from tests.support.processes import DaemonProcess
from virtd.v1 import event_pb2, guest_pb2, operation_pb2

HOST = "hosts/lab"
PATIENCE_S = 60.0
DISK_BYTES = 4 << 20


class Witness(Protocol):
    """Asks the hypervisor itself, behind virtd's back."""

    def guests(self) -> dict[str, str]:
        """Names of all guests, and ``RUNNING`` or ``STOPPED``."""

    def snapshots(self, guest: str) -> list[str]:
        """Names of a guest's snapshots, usable ones only."""

    def volumes(self) -> set[str]:
        """Names of all volumes that lie in virtd's pool: its records and its files, whatever there is."""


def spec(**changes: Any) -> guest_pb2.Guest:
    """A guest with a disk that virtd makes."""
    disk = guest_pb2.DiskSpec(name="root", blank=guest_pb2.BlankSource(capacity_bytes=DISK_BYTES))
    return guest_pb2.Guest(spec=guest_pb2.GuestSpec(vcpus=1, memory_bytes=32 << 20, disks=[disk], **changes))


@dataclass
class Watcher:
    """Watches everything, for as long as the test takes."""

    revisions: list[int] = field(default_factory=list)
    ends: dict[str, list[str]] = field(default_factory=dict)
    resets: int = 0
    _task: asyncio.Task[None] | None = None

    async def run(self, client: AsyncClient, ready: asyncio.Event) -> None:
        async with client.events.watch() as watch:
            ready.set()
            async for item in watch:
                if isinstance(item, Reset):
                    self.resets += 1
                elif isinstance(item, event_pb2.Event):
                    self.revisions.append(item.revision)
                    self._operation(item)

    def _operation(self, event: event_pb2.Event) -> None:
        if event.resource.startswith("operations/") and event.attributes["state"] in {
            "SUCCEEDED",
            "FAILED",
            "CANCELLED",
        }:
            self.ends.setdefault(event.resource, []).append(event.attributes["state"])

    def check(self) -> None:
        """Nothing was missed: every revision since the first came, in order, once."""
        assert self.resets == 0
        first = self.revisions[0]
        assert self.revisions == list(range(first, first + len(self.revisions)))


@dataclass
class Killing:
    """A daemon that is killed again and again, and those who look at it."""

    daemon: DaemonProcess
    client: AsyncClient
    witness: Witness
    watcher: Watcher
    guest: guest_pb2.Guest
    typical_s: dict[str, float] = field(default_factory=dict)
    kills: int = 0
    recovered: Counter[str] = field(default_factory=Counter)
    """By verb: how often the kill fell into the middle of the work."""

    async def timed(self, verb: str, begin: Callable[[], Awaitable[Any]]) -> None:
        """Carry an operation out undisturbed, to learn how long it takes."""
        started = time.monotonic()
        operation = await begin()
        await operation.result(timeout_s=PATIENCE_S)
        self.typical_s[verb] = time.monotonic() - started

    async def killed(self, verb: str, dice: random.Random, begin: Callable[[], Awaitable[Any]]) -> None:
        """Begin an operation, kill the daemon at a moment of it, start it again: the operation succeeds.

        The caller is a client that knows nothing of all this: its call is repeated with the same request id.
        """
        moment_s = dice.uniform(0.0, 1.1 * self.typical_s[verb])
        caller = asyncio.create_task(begin())  # type: ignore[arg-type]  # the client's methods are coroutines
        await asyncio.sleep(moment_s)
        self.daemon.kill()
        self.daemon.spawn()
        operation = await caller
        with contextlib.suppress(VirtdError):
            await operation.result(timeout_s=PATIENCE_S)
        metadata = await operation.refresh()
        assert operation.done, metadata
        self.kills += 1
        self.recovered[verb] += metadata.recovered
        state = operation_pb2.OperationState.Name(metadata.state).removeprefix("OPERATION_STATE_")
        await self._told(operation.name, state)
        again = await self.client.operations.get(operation.name)
        assert again.done
        assert state == "SUCCEEDED", f"after {moment_s:.3f} s: {operation.error!r} {metadata}"

    async def _told(self, name: str, state: str) -> None:
        end = time.monotonic() + PATIENCE_S
        while name not in self.watcher.ends:
            assert time.monotonic() < end, f"the watcher was not told of the end of {name}"
            await asyncio.sleep(0.02)
        assert set(self.watcher.ends[name]) == {state}, "one terminal state, for ever"

    async def guests(self) -> dict[str, str]:
        """What virtd says: guests by id, with their states."""
        listed = await self.client.guests.list()
        assert not listed.host_errors
        return {
            guest.name.rpartition("/")[2]: guest_pb2.GuestState.Name(guest.status.state).removeprefix("GUEST_STATE_")
            for guest in listed.guests
        }

    async def agree(self) -> dict[str, str]:
        """Virtd and the hypervisor agree on which guests there are and what they do; and no disk is nobody's."""
        end = time.monotonic() + 20.0
        while True:
            said, true = await self.guests(), self.witness.guests()
            if said == true or time.monotonic() > end:
                break
            await asyncio.sleep(0.05)
        assert said == true
        owners = {volume.rpartition("-root-")[0] for volume in self.witness.volumes()}
        assert owners == set(true), "each guest has its disk, and each disk its guest"
        assert len(self.witness.volumes()) == len(true)
        return true

    # ------------------------------------------------------------------------------- the verbs

    async def create(self, dice: random.Random, *, start: bool) -> None:
        name = f"c{uuid4().hex[:6]}"
        await self.killed(
            f"create {start}", dice, lambda: self.client.guests.create(HOST, name, self.guest, start=start)
        )
        guests = await self.agree()
        assert guests[name] == ("RUNNING" if start else "STOPPED")
        await (await self.client.guests.delete(f"{HOST}/guests/{name}", force=True)).result(timeout_s=PATIENCE_S)

    async def start(self, dice: random.Random, name: str) -> None:
        full = f"{HOST}/guests/{name}"
        await self.killed("start", dice, lambda: self.client.guests.start(full))
        assert (await self.agree())[name] == "RUNNING"
        await (await self.client.guests.stop(full)).result(timeout_s=PATIENCE_S)

    async def snapshot(self, dice: random.Random, name: str, *, memory: bool) -> None:
        full, snapshot = f"{HOST}/guests/{name}", f"s{uuid4().hex[:6]}"
        await self.killed(
            f"snapshot {memory}", dice, lambda: self.client.snapshots.create(full, snapshot, memory=memory)
        )
        await self.agree()
        assert self.witness.snapshots(name).count(snapshot) == 1
        listed = [entry.name.rpartition("/")[2] for entry in await self.client.snapshots.list(full)]
        assert listed.count(snapshot) == 1
        await (await self.client.snapshots.delete(f"{full}/snapshots/{snapshot}")).result(timeout_s=PATIENCE_S)

    async def delete(self, dice: random.Random, *, running: bool) -> None:
        name = f"d{uuid4().hex[:6]}"
        made = await self.client.guests.create(HOST, name, self.guest, start=running)
        await made.result(timeout_s=PATIENCE_S)
        await self.killed(
            f"delete {running}", dice, lambda: self.client.guests.delete(f"{HOST}/guests/{name}", force=running)
        )
        assert name not in await self.agree()

    async def learn(self) -> None:
        """Do everything without a kill; twice, for the first time is not typical."""
        guests, snapshots, full = self.client.guests, self.client.snapshots, f"{HOST}/guests/first"
        for _ in range(2):
            for active in (False, True):
                await self.timed(
                    f"create {active}", lambda active=active: guests.create(HOST, "first", self.guest, start=active)
                )
                await self.timed(
                    f"snapshot {active}", lambda active=active: snapshots.create(full, "one", memory=active)
                )
                if active:
                    await (await guests.stop(full)).result(timeout_s=PATIENCE_S)
                    await self.timed("start", lambda: guests.start(full))
                await self.timed(f"delete {active}", lambda active=active: guests.delete(full, force=active))
        await self.agree()


@asynccontextmanager
async def killing(
    daemon: DaemonProcess, witness: Witness, guest: guest_pb2.Guest | None = None
) -> AsyncIterator[Killing]:
    """A daemon that runs, a client, and a watcher that stays."""
    ready = asyncio.Event()
    async with AsyncClient.connect(daemon.target, timeout_s=PATIENCE_S) as client:
        made = Killing(daemon, client, witness, Watcher(), guest or spec())
        watching = asyncio.create_task(made.watcher.run(client, ready))
        try:
            await asyncio.wait({watching, asyncio.create_task(ready.wait())}, return_when=asyncio.FIRST_COMPLETED)
            await made.learn()
            yield made
            assert not watching.done(), "the watcher has given up"
            made.watcher.check()
        finally:
            watching.cancel()
            await asyncio.gather(watching, return_exceptions=True)
