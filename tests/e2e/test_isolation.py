"""A libvirtd that is stopped or killed: the other hosts do not notice, and nothing is done twice when it goes on."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from virtd_client import Client, errors

from tests.e2e.conftest import MIB, Virtd, serving
from tests.qemu.fixtures import private_libvirt
from tests.support.isolation import listening, stale, traffic, until
from virtd.libvirt.private import PrivateLibvirt
from virtd.v1.guest_pb2 import (
    GUEST_STATE_CRASHED,
    GUEST_STATE_PAUSED,
    GUEST_STATE_RUNNING,
    GUEST_STATE_STOPPED,
    BlankSource,
    DiskSpec,
    Guest,
    GuestSpec,
)

pytestmark = [pytest.mark.qemu, pytest.mark.timeout(300)]

GOOD, FRAIL = "hosts/kvm", "hosts/frail"
STOP_S = 12.0
BACK_S = 40.0
"""virtd looks for a host that is away at intervals of up to 30 s."""


@pytest.fixture(scope="module")
def frail() -> Iterator[PrivateLibvirt]:
    """A daemon that is mistreated."""
    with private_libvirt() as daemon:
        yield daemon


@pytest.fixture(scope="module")
def virtd_process(libvirt_host: PrivateLibvirt, frail: PrivateLibvirt) -> Iterator[Virtd]:
    with serving(libvirt_host, f'[hosts.frail]\nuri = "{frail.uri}"\n') as virtd:
        yield virtd


@pytest.fixture
def client(virtd: Virtd) -> Iterator[Client]:
    yield virtd.client()
    assert virtd.process is not None
    assert virtd.process.poll() is None, "a host that hangs has taken the daemon with it"


def small(*disks: str) -> Guest:
    made = [DiskSpec(name=name, blank=BlankSource(capacity_bytes=4 * MIB)) for name in disks]
    return Guest(spec=GuestSpec(memory_bytes=32 * MIB, disks=made))


def make(client: Client, parent: str, name: str, *disks: str, start: bool = True) -> str:
    return client.guests.create(parent, name, small(*disks), start=start).result(timeout_s=60).name


@contextlib.contextmanager
def stopped(daemon: PrivateLibvirt) -> Iterator[None]:
    pid = daemon.pid
    assert pid is not None
    os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(pid, signal.SIGCONT)


def starts(daemon: PrivateLibvirt, guest: str) -> int:
    """How often QEMU was started for a guest, by libvirt's own log."""
    log = daemon.directory / "log" / "qemu" / f"{guest.rpartition('/')[2]}.log"
    return log.read_text(errors="replace").count("starting up libvirt version") if log.exists() else 0


def processes(client: Client, guest: str) -> int:
    """How many QEMUs run a guest."""
    mark = f"\0-uuid\0{client.guests.get(guest).uid}\0".encode()
    found = 0
    for entry in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            found += mark in entry.read_bytes()
    return found


def mistreat(daemon: PrivateLibvirt, how: str) -> None:
    """Keep a daemon from answering for some seconds."""
    if how == "killed":
        pid = daemon.pid
        assert pid is not None
        os.kill(pid, signal.SIGKILL)
        time.sleep(2)
        daemon.start_blocking()
        return
    with stopped(daemon):
        time.sleep(7)


def state(client: Client, guest: str) -> int:
    return client.guests.get(guest).status.state


def test_a_stopped_libvirtd_costs_the_other_hosts_nothing(client: Client, frail: PrivateLibvirt) -> None:
    good, guest = make(client, GOOD, "good"), make(client, FRAIL, "watched")
    late = make(client, FRAIL, "late", start=False)
    given_up = make(client, FRAIL, "given-up", start=False)
    before = traffic(client, good, calls=40)
    with listening(client) as (listener, first):
        with stopped(frail):
            begun = time.monotonic()
            start, cancelled = client.guests.start(late), client.guests.start(given_up)
            during = traffic(client, good, calls=200, every_s=STOP_S / 200)
            until("the host's guests are stale", lambda: stale(client, guest), 3)
            assert state(client, guest) == GUEST_STATE_RUNNING, "as last seen"
            asked = time.monotonic()
            with pytest.raises(errors.Unavailable) as refused:
                client.guests.pause(guest)
            assert refused.value.reason == "HOST_UNREACHABLE"
            # What had begun is not forgotten, and says what it waits for.
            assert start.refresh().waiting_for == FRAIL
            cancelled.cancel()
            assert cancelled.refresh().cancel_requested
            assert time.monotonic() - asked < 1
            time.sleep(max(0.0, begun + STOP_S - time.monotonic()))
        assert during.count == 200
        during.check_against(before)
        until("the host is back", lambda: listener.went_and_came_back(FRAIL), BACK_S)
        assert start.result(timeout_s=30).status.state == GUEST_STATE_RUNNING
        with pytest.raises(errors.Cancelled):
            cancelled.result(timeout_s=30)
        assert start.refresh().waiting_for == ""
        assert starts(frail, late) == 1
        assert listener.states(late).count("RUNNING") == 1
        until("nothing is stale", lambda: not client.guests.list("hosts/-").host_errors, 10)
        # What libvirt found in its socket when it went on has been dealt with by now.
        assert state(client, given_up) == GUEST_STATE_STOPPED
        assert not client.guests.get(guest).status.HasField("stale_since")
        listener.check_no_gap(client, first)


@pytest.mark.parametrize(("how", "delay_s"), [("stopped", 0.0), ("stopped", 0.1), ("killed", 0.1)])
def test_what_was_under_way_happens_once(client: Client, frail: PrivateLibvirt, how: str, delay_s: float) -> None:
    """Changes of every kind, and the daemon goes somewhere in their middle."""
    n = f"-{how}{delay_s * 1000:.0f}"
    running = {name: make(client, FRAIL, f"{name}{n}", "d0") for name in ("stop", "pause", "plug", "gone", "reset")}
    still = {name: make(client, FRAIL, f"{name}{n}", "d0", start=False) for name in ("start", "snap", "edit")}
    more = DiskSpec(name="d1", blank=BlankSource(capacity_bytes=4 * MIB))
    work: dict[str, Callable[[], Any]] = {
        "made": lambda: client.guests.create(FRAIL, f"made{n}", small("d0", "d1"), start=True),
        "stop": lambda: client.guests.stop(running["stop"]),
        "plug": lambda: client.devices.attach_disk(running["plug"], more),
        "gone": lambda: client.guests.delete(running["gone"], force=True),
        "start": lambda: client.guests.start(still["start"]),
        "snap": lambda: client.snapshots.create(still["snap"], "s", location="internal"),
        "edit": lambda: client.devices.attach_disk(still["edit"], more),
        "pause": lambda: client.guests.pause(running["pause"]),
        "reset": lambda: client.guests.reset(running["reset"]),
        "volume": lambda: client.volumes.create(f"{FRAIL}/pools/virtd", f"v{n}", 4 * MIB),
    }
    begun = {name: do() for name, do in work.items()}
    time.sleep(delay_s)
    mistreat(frail, how)
    failed = {}
    for name, operation in begun.items():
        try:
            operation.result(timeout_s=BACK_S)
        except errors.VirtdError as error:
            failed[name] = error
    # Only what leaves no trace may end in doubt, and then it says so.
    assert set(failed) <= {"reset"}, failed
    assert all(error.reason == "OPERATION_INTERRUPTED" for error in failed.values())
    # To a libvirtd that comes after one that was killed while it ended a QEMU, that has died by itself.
    ends = (GUEST_STATE_STOPPED, *((GUEST_STATE_CRASHED,) if how == "killed" else ()))
    assert state(client, running["stop"]) in ends
    assert state(client, running["pause"]) == GUEST_STATE_PAUSED
    assert state(client, still["start"]) == GUEST_STATE_RUNNING
    assert state(client, running["reset"]) == GUEST_STATE_RUNNING
    assert state(client, f"{FRAIL}/guests/made{n}") == GUEST_STATE_RUNNING
    for name in (still["start"], f"{FRAIL}/guests/made{n}", running["pause"], running["plug"]):
        assert processes(client, name) == 1, name
        # A libvirtd that comes after a killed one ends a QEMU that was not ready: it is then started again.
        assert starts(frail, name) == 1 or how == "killed", name
    assert processes(client, running["stop"]) == 0
    for name in (running["plug"], still["edit"]):
        assert [disk.name for disk in client.guests.get(name).spec.disks] == ["d0", "d1"]
    assert [s.name.rpartition("/")[2] for s in client.snapshots.list(still["snap"])] == ["s"]
    with pytest.raises(errors.NotFound):
        client.guests.get(running["gone"])
    # Nothing is left that belongs to nobody.
    uses = {disk.path for entry in client.guests.list(FRAIL) for disk in entry.status.disks}
    there = {volume.path for volume in client.volumes.list(f"{FRAIL}/pools/virtd")}
    assert {path for path in there - uses if not path.endswith(f"/v{n}")} == set()
    client.volumes.delete(f"{FRAIL}/pools/virtd/volumes/v{n}").result(timeout_s=30)
    for entry in client.guests.list(FRAIL):
        client.guests.delete(entry.name, force=True).result(timeout_s=60)


def test_a_killed_libvirtd_comes_back_with_all_its_guests(client: Client, frail: PrivateLibvirt) -> None:
    good, guest = make(client, GOOD, "good"), make(client, FRAIL, "survivor")
    late = make(client, FRAIL, "later", start=False)
    before = traffic(client, good, calls=40)
    pid = frail.pid
    assert pid is not None
    with listening(client) as (listener, first):
        start = client.guests.start(late)
        os.kill(pid, signal.SIGKILL)
        during = traffic(client, good, calls=100)
        until("the host's guests are stale", lambda: stale(client, guest), 5)
        with pytest.raises(errors.Unavailable):
            client.guests.stop(guest)
        frail.start_blocking()
        during.check_against(before)
        until("the host is back", lambda: listener.went_and_came_back(FRAIL), BACK_S)
        assert start.result(timeout_s=30).status.state == GUEST_STATE_RUNNING
        until("nothing is stale", lambda: not client.guests.list("hosts/-").host_errors, 10)
        assert state(client, guest) == GUEST_STATE_RUNNING
        assert starts(frail, guest) == 1
        assert "RUNNING" not in listener.states(guest), "it was never touched"
        # Events come again without a restart of virtd.
        client.guests.stop(guest).result(timeout_s=30)
        until("the stop is told", lambda: listener.states(guest)[-1:] == ["STOPPED"], 5)
        assert listener.states(guest).count("STOPPED") == 1
        listener.check_no_gap(client, first)
