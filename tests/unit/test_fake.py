"""What the fake backend promises beyond the SPI (the conformance kit checks the SPI itself).

Longer than 500 lines because it shows every fault of one world.
"""

from __future__ import annotations

import asyncio
import json
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import pytest

from virtd.backend.api import HostConfig, HostSession, NativeEventType, ResolvedGuest, SnapshotRequest, VolumeRequest
from virtd.backend.conformance.context import KitContext
from virtd.errors import (
    CancelledError,
    DeadlineExceededError,
    InternalError,
    InvalidArgumentError,
    ResourceExhaustedError,
    UnavailableError,
)
from virtd.model.console import AgentCommand
from virtd.model.guest import Accelerator, DiskFormat, GuestState
from virtd.testing.clock import ManualClock, settle
from virtd.testing.fake import FakeBackend, FakeWorld, NativeFailure, Worlds
from virtd.testing.fake.options import parse_uri

MIB = 1 << 20


class Host:
    """A fake host, opened."""

    def __init__(self, world: FakeWorld, session: HostSession, clock: ManualClock) -> None:
        self.world, self.session, self.clock = world, session, clock

    async def guest(self, *, running: bool = True, **options: str) -> UUID:
        uuid = uuid4()
        guest = ResolvedGuest(uuid, f"guest-{uuid.hex[:6]}", 1, 64 * MIB, Accelerator.TCG, backend_options=options)
        await self.session.define_guest(guest, KitContext())
        if running:
            await self.session.start_guest(uuid, KitContext())
        return uuid

    async def state(self, uuid: UUID) -> GuestState:
        return (await self.session.get_guest(uuid)).state


async def open_host(tmp_path: Path, uri: str = "fake:///unit", worlds: Worlds | None = None) -> Host:
    clock = ManualClock()
    worlds = worlds or Worlds(clock)
    session = await FakeBackend(worlds).open(HostConfig("h", uri, str(tmp_path)))
    return Host(worlds.get(uri, str(tmp_path)), session, clock)


# ------------------------------------------------------------------------------------- URI, worlds


def test_uri() -> None:
    options = parse_uri(
        "fake:///lab?guests=5&seed=3&latency=0.01&boot=2&presses=0&without=guest.pause,guest.reset&persist=1"
    )
    assert (options.path, options.guests, options.seed, options.latency_s) == ("/lab", 5, 3, 0.01)
    assert (options.boot_s, options.presses, options.persist) == (2, 0, True)
    assert options.without == {"guest.pause", "guest.reset"}


def test_uri_of_another_machine() -> None:
    worlds = Worlds(ManualClock())
    assert parse_uri("fake://far.example/lab").path == "//far.example/lab"
    assert worlds.get("fake://far.example/lab") is worlds.get("fake://far.example/lab?latency=0.1")
    assert worlds.get("fake://far.example/lab") is not worlds.get("fake:///lab")


@pytest.mark.parametrize(
    "uri",
    [
        "fake://somebody@host/x",
        "fake://host:1/x",
        "fake:///?guest=5",
        "fake:///?guests=many",
        "fake:///?guests=-1",
        "fake:///?latency=inf",
        "fake:///?without=guest.flies",
        "fake:///?without=guest.lifecycle",
        "qemu:///system",
        "fake:///#x",
    ],
)
def test_wrong_uri(uri: str) -> None:
    with pytest.raises(InvalidArgumentError) as caught:
        parse_uri(uri)
    assert caught.value.reason.name == "CONFIG_INVALID"
    assert caught.value.record.violations[0].field == "uri"


def test_what_depends_on_an_ability_goes_with_it() -> None:
    assert parse_uri("fake:///?without=guest.snapshot").without == {
        "guest.snapshot",
        "guest.snapshot.memory",
        "guest.snapshot.revert",
        "guest.snapshot.external",
        "guest.snapshot.quiesce",
    }
    assert parse_uri("fake:///?without=host.volumes").without == {
        "host.volumes",
        "host.volumes.resize",
        "host.volumes.clone",
        "host.volumes.transfer",
    }
    pools = {"host.pools.manage", "host.pools.logical", "host.pools.nfs"}
    assert parse_uri("fake:///?without=host.pools.manage").without == pools


async def test_same_seed_same_world(tmp_path: Path) -> None:
    async def guests(seed: int) -> list[Any]:
        host = await open_host(tmp_path, f"fake:///x?guests=5&seed={seed}")
        return [(guest.uuid, guest.name, guest.state) for guest in await host.session.list_guests()]

    assert await guests(1) == await guests(1)
    assert len({uuid for uuid, *_ in await guests(1) + await guests(2)}) == 10


async def test_worlds_by_path(tmp_path: Path) -> None:
    worlds = Worlds(ManualClock())
    first = await open_host(tmp_path, "fake:///a", worlds)
    uuid = await first.guest()
    await first.session.close()
    again = await open_host(tmp_path, "fake:///a?latency=0", worlds)
    assert await again.state(uuid) is GuestState.RUNNING
    other = await open_host(tmp_path, "fake:///b", worlds)
    assert await other.session.list_guests() == []
    worlds.forget("fake:///a")
    assert await (await open_host(tmp_path, "fake:///a", worlds)).session.list_guests() == []


# -------------------------------------------------------------------------------------------- time


async def test_latency(tmp_path: Path) -> None:
    host = await open_host(tmp_path, "fake:///x?latency=0.5")
    call = asyncio.ensure_future(host.session.list_guests())
    await host.clock.advance(0.4)
    assert not call.done()
    await host.clock.advance(0.2)
    assert call.done()


async def test_boot_takes_time(tmp_path: Path) -> None:
    host = await open_host(tmp_path, "fake:///x?boot=3")
    uuid = await host.guest()
    agent, console = host.session.facets.agent, host.session.facets.serial_console
    shutdown = host.session.facets.shutdown
    assert agent is not None and console is not None and shutdown is not None
    stream = await console.open_console(uuid)
    assert b"fake: booting" in await stream.read()
    with pytest.raises(UnavailableError, match="has not started"):
        await agent.ping_agent(uuid)
    await shutdown.request_shutdown(uuid, KitContext())
    await host.clock.advance(3)
    assert b"fake: ready" in await stream.read()
    await agent.ping_agent(uuid)
    assert await host.state(uuid) is GuestState.RUNNING, "a press while booting must be lost"


async def test_a_stopped_guest_does_not_finish_booting(tmp_path: Path) -> None:
    host = await open_host(tmp_path, "fake:///x?boot=3")
    uuid = await host.guest()
    await host.session.stop_guest(uuid, KitContext())
    await host.session.start_guest(uuid, KitContext())
    await host.clock.advance(1)
    await host.session.stop_guest(uuid, KitContext())
    await host.session.start_guest(uuid, KitContext())
    await host.clock.advance(2.5)
    assert not host.world.native.guests[uuid].booted, "an earlier boot must not count"
    await host.clock.advance(1)
    assert host.world.native.guests[uuid].booted


@pytest.mark.parametrize(("presses", "obeys_after"), [("1", 1), ("3", 3), ("0", None)])
async def test_stubborn_guests(tmp_path: Path, presses: str, obeys_after: int | None) -> None:
    host = await open_host(tmp_path)
    uuid = await host.guest(presses=presses)
    shutdown = host.session.facets.shutdown
    assert shutdown is not None
    for press in range(1, 6):
        if press == (obeys_after or 99) + 1:
            break
        await shutdown.request_shutdown(uuid, KitContext())
        expected = GuestState.STOPPED if press == obeys_after else GuestState.RUNNING
        assert await host.state(uuid) is expected


# ------------------------------------------------------------------------------------------ faults


async def test_nth_call_fails_once(tmp_path: Path) -> None:
    host = await open_host(tmp_path)
    host.world.faults.fail("guest_list", 2)
    await host.session.list_guests()
    with pytest.raises(InternalError) as caught:
        await host.session.list_guests()
    native = caught.value.record.native
    assert native is not None and (native.call, native.code) == ("guest_list", "injected")
    await host.session.list_guests()


async def test_a_chosen_error(tmp_path: Path) -> None:
    host = await open_host(tmp_path)
    uuid = await host.guest(running=False)
    host.world.faults.fail("guest_create", 1, NativeFailure("guest_create", "no-space", "full"))
    with pytest.raises(ResourceExhaustedError):
        await host.session.start_guest(uuid, KitContext())
    host.world.faults.fail("guest_create", 1, RuntimeError("a defect of the backend"))
    with pytest.raises(RuntimeError):
        await host.session.start_guest(uuid, KitContext())
    assert await host.state(uuid) is GuestState.STOPPED


async def test_a_lost_answer(tmp_path: Path) -> None:
    host = await open_host(tmp_path)
    uuid = await host.guest(running=False)
    host.world.faults.fail("guest_create", 1, after=True)
    with pytest.raises(InternalError):
        await host.session.start_guest(uuid, KitContext())
    assert await host.state(uuid) is GuestState.RUNNING, "the work was done"


async def test_delay(tmp_path: Path) -> None:
    host = await open_host(tmp_path)
    host.world.faults.delay("guest_list", 10)
    call = asyncio.ensure_future(host.session.list_guests())
    await host.clock.advance(9)
    assert not call.done()
    await host.clock.advance(1)
    assert call.done()


async def test_hang_and_release(tmp_path: Path) -> None:
    host = await open_host(tmp_path)
    uuid = await host.guest(running=False)
    hang = host.world.faults.hang("guest_create")
    start = asyncio.ensure_future(host.session.start_guest(uuid, KitContext()))
    await settle()
    assert not start.done() and hang.entered == 1
    await host.session.list_guests()
    hang.release()
    await start
    assert await host.state(uuid) is GuestState.RUNNING


async def test_hang_notices_a_cancel_unless_it_is_deaf(tmp_path: Path) -> None:
    host = await open_host(tmp_path)
    uuid = await host.guest(running=False)
    context = KitContext()
    host.world.faults.hang("guest_create")
    start = asyncio.ensure_future(host.session.start_guest(uuid, context))
    await settle()
    context.cancel()
    with pytest.raises(CancelledError):
        await start
    host.world.faults.clear()
    hang, context = host.world.faults.hang("guest_create", deaf=True), KitContext()
    start = asyncio.ensure_future(host.session.start_guest(uuid, context))
    await settle()
    context.cancel()
    await settle()
    assert not start.done()
    hang.release()
    await start
    assert await host.state(uuid) is GuestState.RUNNING


async def test_recording(tmp_path: Path) -> None:
    host = await open_host(tmp_path)
    uuid = await host.guest(running=False)
    with host.world.recording() as calls:
        await host.session.start_guest(uuid, KitContext())
    assert calls == ["guest_lookup", "guest_create"]
    await host.session.list_guests()
    assert calls == ["guest_lookup", "guest_create"]
    assert host.world.native_calls["guest_create"] == 1


# ------------------------------------------------------------------------------------ from outside


async def test_events_of_what_others_do(tmp_path: Path) -> None:
    host = await open_host(tmp_path)
    source = host.session.facets.event_source
    assert source is not None
    events = source.events()
    uuid = host.world.native.define_foreign("theirs")
    host.world.native.start_foreign(uuid)
    host.world.native.kill_guest(uuid)
    host.world.native.start_foreign(uuid)
    host.world.native.panic_guest(uuid)
    host.world.native.undefine_foreign(uuid)
    await host.session.close()
    seen = [(event.type, event.state, event.reason) async for event in events]
    assert [item for item in seen if "AGENT" not in item[0]] == [
        (NativeEventType.GUEST_DEFINED, None, ""),
        (NativeEventType.GUEST_STATE, GuestState.RUNNING, "BOOTED"),
        (NativeEventType.GUEST_STATE, GuestState.STOPPED, "CRASHED"),
        (NativeEventType.GUEST_STATE, GuestState.RUNNING, "BOOTED"),
        (NativeEventType.GUEST_STATE, GuestState.CRASHED, "PANICKED"),
        (NativeEventType.GUEST_UNDEFINED, None, ""),
    ]


async def test_events_from_another_thread(tmp_path: Path) -> None:
    host = await open_host(tmp_path)
    uuid = await host.guest()
    source = host.session.facets.event_source
    assert source is not None
    events = source.events()
    thread = threading.Thread(target=host.world.native.kill_guest, args=(uuid,))
    thread.start()
    async with asyncio.timeout(5):
        found = [await anext(events), await anext(events)]
    thread.join()
    assert {event.type for event in found} == {NativeEventType.AGENT_DISCONNECTED, NativeEventType.GUEST_STATE}


async def test_events_are_lost_while_disconnected(tmp_path: Path) -> None:
    host = await open_host(tmp_path)
    uuid = await host.guest()
    source = host.session.facets.event_source
    assert source is not None
    events = source.events()
    host.world.disconnect()
    with pytest.raises(UnavailableError):
        await host.session.list_guests()
    host.world.native.kill_guest(uuid)
    host.world.reconnect()
    await host.session.close()
    assert [event.type async for event in events] == [NativeEventType.DISCONNECTED, NativeEventType.CONNECTED]


async def test_a_crashed_guest_can_be_stopped_and_removed(tmp_path: Path) -> None:
    host = await open_host(tmp_path)
    uuid = await host.guest()
    host.world.native.panic_guest(uuid)
    assert await host.state(uuid) is GuestState.CRASHED
    await host.session.stop_guest(uuid, KitContext())
    assert await host.state(uuid) is GuestState.STOPPED
    await host.session.undefine_guest(uuid, KitContext())


# ------------------------------------------------------------------------------------------- agent


async def test_agent_states(tmp_path: Path) -> None:
    host = await open_host(tmp_path)
    uuid = await host.guest()
    agent = host.session.facets.agent
    assert agent is not None
    for state in ("absent", "stuck"):
        host.world.native.guests[uuid].agent = state
        with pytest.raises(UnavailableError, match=state):
            await agent.ping_agent(uuid)
    host.world.native.guests[uuid].agent = "ready"
    await agent.ping_agent(uuid)


async def test_sleep_takes_its_time(tmp_path: Path) -> None:
    host = await open_host(tmp_path)
    uuid = await host.guest()
    agent = host.session.facets.agent
    assert agent is not None
    call = asyncio.ensure_future(agent.run_command(uuid, AgentCommand("/bin/sleep", ("5",)), KitContext()))
    await host.clock.advance(4)
    assert not call.done()
    await host.clock.advance(1)
    assert (await call).exit_code == 0
    call = asyncio.ensure_future(agent.run_command(uuid, AgentCommand("/bin/sleep", ("5",), timeout_s=2), KitContext()))
    await host.clock.advance(2)
    with pytest.raises(DeadlineExceededError):
        await call


# ----------------------------------------------------------------------------------------- storage


async def test_volumes_fill_at_a_rate(tmp_path: Path) -> None:
    host = await open_host(tmp_path, "fake:///x?volume_mib_s=1")
    storage = host.session.facets.storage
    assert storage is not None
    pool = (await storage.ensure_default_pool(KitContext())).name
    source = tmp_path / "source"
    source.write_bytes(b"x" * 4 * MIB)
    context = KitContext()
    request = VolumeRequest(pool, "v", DiskFormat.RAW, None, str(source), DiskFormat.RAW)
    call = asyncio.ensure_future(storage.create_volume(request, context))
    await host.clock.advance(2)
    assert not call.done()
    assert context.bytes_done[-1] == 2 * MIB
    assert context.fractions[-1] == 0.5
    assert await storage.list_volumes(pool) == [], "half a volume is not shown"
    await host.clock.advance(2)
    assert (await call).capacity_bytes == 4 * MIB


async def test_a_full_pool(tmp_path: Path) -> None:
    host = await open_host(tmp_path)
    storage = host.session.facets.storage
    assert storage is not None
    host.world.native.pool_capacity_bytes = 10 * MIB
    pool = (await storage.ensure_default_pool(KitContext())).name
    await storage.create_volume(VolumeRequest(pool, "a", DiskFormat.RAW, 8 * MIB), KitContext())
    with pytest.raises(ResourceExhaustedError) as caught:
        await storage.create_volume(VolumeRequest(pool, "b", DiskFormat.RAW, 8 * MIB), KitContext())
    assert caught.value.reason.name == "STORAGE_FULL"
    assert [volume.name for volume in await storage.list_volumes(pool)] == ["a"]


# ------------------------------------------------------------------------------------- persistence

URI = "fake:///kept?persist=1"


async def test_a_kept_world_comes_back(tmp_path: Path) -> None:
    host = await open_host(tmp_path, URI)
    uuid = await host.guest()
    agent, snapshots, storage = host.session.facets.agent, host.session.facets.snapshots, host.session.facets.storage
    assert agent is not None and snapshots is not None and storage is not None
    await agent.run_command(uuid, AgentCommand("/bin/tee", ("/tmp/a",), input_data=b"\0memory"), KitContext())
    await agent.run_command(uuid, AgentCommand("/bin/tee", ("/etc/a",), input_data=b"disk"), KitContext())
    await snapshots.create_snapshot(uuid, SnapshotRequest("s", "d", memory=True), KitContext())
    pool = (await storage.ensure_default_pool(KitContext())).name
    volume = await storage.create_volume(VolumeRequest(pool, "v", DiskFormat.QCOW2, MIB), KitContext())
    assert Path(volume.path).read_bytes() == b"fake volume\n"
    before = host.world.digest()

    again = await open_host(tmp_path, URI)  # other Worlds: as after a restart
    assert again.world is not host.world
    assert again.world.digest() == before
    assert await again.state(uuid) is GuestState.RUNNING
    agent, snapshots, storage = again.session.facets.agent, again.session.facets.snapshots, again.session.facets.storage
    assert agent is not None and snapshots is not None and storage is not None
    result = await agent.run_command(uuid, AgentCommand("/bin/cat", ("/tmp/a", "/etc/a")), KitContext())
    assert result.stdout == b"\0memorydisk"
    assert [snapshot.name for snapshot in await snapshots.list_snapshots(uuid)] == ["s"]
    await storage.delete_volume(pool, "v", KitContext())
    assert not Path(volume.path).exists()


async def test_worlds_in_other_directories_are_others(tmp_path: Path) -> None:
    worlds = Worlds(ManualClock())
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    first = await open_host(tmp_path / "a", URI, worlds)
    await first.guest()
    second = await open_host(tmp_path / "b", URI, worlds)
    assert await second.session.list_guests() == []


KILLED = """
import asyncio, os, sys
from uuid import uuid4
from virtd.backend.api import HostConfig, ResolvedGuest
from virtd.backend.conformance.context import KitContext
from virtd.model.guest import Accelerator
from virtd.testing.fake import FakeBackend

async def main():
    session = await FakeBackend().open(HostConfig("h", "fake:///kept?persist=1", sys.argv[1]))
    while True:
        uuid = uuid4()
        await session.define_guest(ResolvedGuest(uuid, str(uuid), 1, 1 << 26, Accelerator.TCG), KitContext())
        await session.start_guest(uuid, KitContext())
        print(uuid, flush=True)

asyncio.run(main())
"""


def test_a_kill_leaves_a_whole_file(tmp_path: Path) -> None:
    process = subprocess.Popen([sys.executable, "-c", KILLED, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        told = [process.stdout.readline().strip() for _ in range(20)]
    finally:
        process.send_signal(signal.SIGKILL)
        process.communicate()
    json.loads((tmp_path / "fake-world.json").read_text())
    guests = Worlds(ManualClock()).get(URI, str(tmp_path)).native.guests.values()
    running = {str(guest.uuid) for guest in guests if guest.state is GuestState.RUNNING}
    assert set(told) <= running, "what was answered must have been kept"


# ------------------------------------------------------------------------------------------- clock


async def test_manual_clock_keeps_the_order() -> None:
    clock = ManualClock()
    seen: list[str] = []

    async def wait(name: str, seconds: float) -> None:
        await clock.sleep(seconds)
        seen.append(f"{name}@{clock.monotonic():g}")

    tasks = [asyncio.create_task(wait("b", 2)), asyncio.create_task(wait("a", 1)), asyncio.create_task(wait("c", 2))]
    await settle()
    await clock.advance(1.5)
    assert seen == ["a@1"]
    tasks[2].cancel()
    await clock.advance(1)
    assert seen == ["a@1", "b@2"]
    assert (clock.now() - ManualClock().now()).total_seconds() == 2.5
    await asyncio.gather(*tasks, return_exceptions=True)
