"""Migration between two real libvirt daemons of this machine, through the public API; also while virtd is killed."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass

import pytest
from virtd_client import Client, Operation, errors

from tests.e2e.conftest import MIB, Virtd, serving
from tests.qemu.fixtures import private_libvirt
from virtd.libvirt.private import PrivateLibvirt
from virtd.v1 import event_pb2
from virtd.v1.guest_pb2 import Guest
from virtd.v1.operation_pb2 import OPERATION_STATE_CANCELLED, OPERATION_STATE_SUCCEEDED, OperationMetadata

pytestmark = [pytest.mark.qemu, pytest.mark.timeout(300)]  # a system boots, and moves three times

HERE, THERE = "hosts/kvm", "hosts/two"
SLOW = {"copy_storage": True, "bandwidth_bytes_per_s": 2 * MIB}
DATA_MIB = 3
"""So much of the disk takes several seconds with SLOW."""
MORE_MIB = 48
"""So much takes longer than a daemon needs to come back, on a busy machine too."""


@dataclass
class Pair:
    """A daemon with two hosts."""

    virtd: Virtd
    other: PrivateLibvirt

    def virsh(self, host: str, *arguments: str) -> str:
        if host == HERE:
            return self.virtd.virsh(*arguments)
        command = ["virsh", "-q", "-c", self.other.uri, *arguments]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout

    def running(self, guest: str) -> list[str]:
        """On which hosts QEMU runs the guest, asked of libvirt itself; one that waits does not run."""
        found = []
        for host in (HERE, THERE):
            names = self.virsh(host, "list", "--name", "--state-running").split()
            found += [host] if guest in names else []
        return found

    def defined(self, guest: str) -> list[str]:
        return [host for host in (HERE, THERE) if guest in self.virsh(host, "list", "--all", "--name").split()]

    def volumes(self, host: str, guest: str) -> list[str]:
        with suppress(subprocess.CalledProcessError):
            lines = self.virsh(host, "vol-list", "virtd").splitlines()
            return [name for line in lines if (name := line.strip().split(" ")[0]).startswith(f"{guest}-")]
        return []

    def restart(self) -> None:
        self.virtd.kill()
        self.virtd.start()


@pytest.fixture(scope="module")
def pair_process(libvirt_host: PrivateLibvirt) -> Iterator[Pair]:
    with private_libvirt() as other, serving(libvirt_host, f'[hosts.two]\nuri = "{other.uri}"\n') as virtd:
        yield Pair(virtd, other)


@pytest.fixture
def two(pair_process: Pair) -> Iterator[Pair]:
    yield pair_process
    client = pair_process.virtd.client()
    for guest in client.guests.list().guests:
        if "delete" in guest.status.allowed_actions:
            client.guests.delete(guest.name, force=True).result(timeout_s=60)


@pytest.fixture
def client(two: Pair) -> Client:
    return two.virtd.client()


def until(holds: Callable[[], bool], timeout_s: float = 30.0) -> None:
    deadline = time.monotonic() + timeout_s
    while not holds():
        assert time.monotonic() < deadline, "it did not come to hold in time"
        time.sleep(0.05)


def until_at(operation: Operation[Guest], holds: Callable[[OperationMetadata], bool]) -> OperationMetadata:
    """Wait for a moment of an operation."""
    deadline = time.monotonic() + 30.0
    while not holds(metadata := operation.refresh()):
        assert not operation.done, metadata
        assert time.monotonic() < deadline, metadata
        time.sleep(0.02)
    return metadata


def sh(client: Client, guest: str, script: str) -> str:
    done = client.agent.exec(guest, "/bin/sh", ["-c", script], timeout_s=30)
    assert done.exit_code == 0, done
    return str(done.stdout.decode())


def with_data(two: Pair, client: Client, name: str, mib: int = DATA_MIB) -> Guest:
    """A guest without a system that runs, with some MiB on its disk."""
    guest = two.virtd.spec(boots=False)
    guest.spec.graphics.vnc = False
    guest.spec.disks[0].blank.capacity_bytes = max(16, mib) * MIB
    made: Guest = client.guests.create(HERE, name, guest).result(timeout_s=60)
    path = made.status.disks[0].path
    subprocess.run(["qemu-io", "-c", f"write -q -P 7 0 {mib}M", path], check=True)
    client.guests.start(made.name).result(timeout_s=60)
    return client.guests.get(made.name)


def test_a_counter_goes_on_counting(two: Pair, client: Client) -> None:
    """Live with its disk, live with post-copy, offline: the same guest all the time."""
    guest = two.virtd.spec()
    guest.labels["tier"] = "web"
    made = client.guests.create(HERE, "a", guest, start=True).result(timeout_s=60)
    client.guests.wait(made.name, condition="agent_ready", timeout_s=120)
    sh(client, made.name, "(i=0; while :; do i=$((i+1)); echo $i > /tmp/count; usleep 50000; done) >/dev/null 2>&1 &")
    sh(client, made.name, "echo on-the-disk | dd of=/dev/vda bs=512 seek=100 conv=sync 2>/dev/null; sync")
    before = int(sh(client, made.name, "cat /tmp/count"))
    check = client.migrations.check(made.name, THERE, copy_storage=True)
    assert check.possible, check
    token = client.guests.list().resume_token
    operation = client.migrations.migrate(made.name, THERE, copy_storage=True)
    moved = operation.result(timeout_s=120)
    assert (moved.name, moved.uid, dict(moved.labels)) == (f"{THERE}/guests/a", made.uid, {"tier": "web"})
    assert two.running("a") == two.defined("a") == [THERE]
    data = operation.refresh().result_data
    assert 0 < int(data["downtime_ms"]) < 10_000
    assert int(data["sent_bytes"]) > MIB
    after = int(sh(client, moved.name, "cat /tmp/count"))
    assert after > before
    assert "on-the-disk" in sh(client, moved.name, "dd if=/dev/vda bs=512 skip=100 count=1 2>/dev/null")
    assert two.volumes(HERE, "a") == []
    names = [
        (event_pb2.EventType.Name(event.type).removeprefix("EVENT_TYPE_"), event.resource)
        for event in client.events.pull(token).events
        if event.attributes.get("reason") == "MOVED"
    ]
    assert names == [("GUEST_REMOVED", made.name), ("GUEST_ADDED", moved.name)]
    # Its memory changes faster than it may be sent: after the first pass it switches over.
    sh(client, moved.name, "(while :; do dd if=/dev/urandom of=/tmp/x bs=1M count=16; done) >/dev/null 2>&1 &")
    back = client.migrations.migrate(moved.name, HERE, post_copy=True, bandwidth_bytes_per_s=24 * MIB)
    home = back.result(timeout_s=180)
    assert back.refresh().result_data["post_copy"] == "true"
    assert two.running("a") == two.defined("a") == [HERE]
    assert int(sh(client, home.name, "cat /tmp/count")) > after
    client.guests.stop(home.name).result(timeout_s=60)


def test_a_stopped_guest_moves_with_its_disk(two: Pair, client: Client) -> None:
    guest = with_data(two, client, "cold")
    client.guests.stop(guest.name).result(timeout_s=60)
    with pytest.raises(errors.FailedPrecondition) as caught:
        client.migrations.migrate(guest.name, THERE, copy_storage=True, mode="live")
    assert caught.value.reason == "INVALID_STATE"
    moved = client.migrations.migrate(guest.name, THERE, copy_storage=True).result(timeout_s=60)
    assert two.defined("cold") == [THERE]
    assert two.volumes(HERE, "cold") == []
    read = ["qemu-io", "-r", "-c", f"read -P 7 0 {DATA_MIB}M", moved.status.disks[0].path]
    assert "verification failed" not in subprocess.run(read, check=True, capture_output=True, text=True).stdout
    client.guests.start(moved.name).result(timeout_s=60)
    assert two.running("cold") == [THERE]


def test_a_cancel_leaves_it_running_where_it_is(two: Pair, client: Client) -> None:
    guest = with_data(two, client, "stay")
    operation = client.migrations.migrate(guest.name, THERE, **SLOW)  # type: ignore[arg-type]
    seen = until_at(operation, lambda now: now.stage == "move" and now.bytes_done > 0)
    assert seen.bytes_total > seen.bytes_done > 0
    operation.cancel()
    with pytest.raises(errors.VirtdError):
        operation.result(timeout_s=30)
    assert operation.refresh().state == OPERATION_STATE_CANCELLED
    assert two.running("stay") == two.defined("stay") == [HERE]
    assert two.volumes(THERE, "stay") == []
    assert client.guests.get(guest.name).status.state == guest.status.state


@pytest.mark.parametrize("moment", ["disks", "move", "late"])
def test_a_killed_daemon_leaves_one_running_guest(two: Pair, client: Client, moment: str) -> None:
    """It dies while the hosts are at work; the next one finds out what became of it."""
    guest = with_data(two, client, f"kill-{moment}")
    name = guest.name.rpartition("/")[2]
    operation = client.migrations.migrate(guest.name, THERE, **SLOW)  # type: ignore[arg-type]
    if moment == "disks":
        until_at(operation, lambda now: now.stage in ("disks", "move"))
    else:
        until_at(operation, lambda now: now.stage == "move" and now.bytes_done > 0)
    two.virtd.kill()
    assert len(two.running(name)) <= 1
    if moment == "late":  # it comes back when all is over
        until(lambda: two.running(name) == [THERE] and two.defined(name) == [THERE], 60)
    two.virtd.start()
    again = two.virtd.client().operations.get(operation.name)
    again.result(timeout_s=90)
    metadata = again.refresh()
    assert metadata.state == OPERATION_STATE_SUCCEEDED
    assert metadata.recovered
    assert two.running(name) == two.defined(name) == [THERE]
    moved = two.virtd.client().guests.get(f"{THERE}/guests/{name}")
    assert moved.uid == guest.uid
    assert two.volumes(HERE, name) == []
    assert len(two.volumes(THERE, name)) == 1


def test_a_cancel_after_a_kill_calls_it_back(two: Pair, client: Client) -> None:
    guest = with_data(two, client, "back", MORE_MIB)
    operation = client.migrations.migrate(guest.name, THERE, **SLOW)  # type: ignore[arg-type]
    until_at(operation, lambda now: now.stage == "move" and now.bytes_done > 0)
    two.restart()
    again = two.virtd.client().operations.get(operation.name)
    again.cancel()
    with pytest.raises(errors.VirtdError):
        again.result(timeout_s=60)
    assert again.refresh().state == OPERATION_STATE_CANCELLED
    assert two.running("back") == two.defined("back") == [HERE]
    assert two.volumes(THERE, "back") == []


def test_guestctl_says_what_is_in_the_way(two: Pair, client: Client) -> None:
    guest = with_data(two, client, "ctl")
    client.snapshots.create(guest.name, "s1").result(timeout_s=60)
    said = two.virtd.guestctl("migrate", "ctl", "--to", "two", "--copy-storage", "--dry-run")
    assert said.returncode == 5, said
    assert "SNAPSHOTS_PRESENT" in said.stdout
    refused = two.virtd.guestctl("migrate", "ctl", "--to", "two", "--copy-storage")
    assert refused.returncode == 5, refused
    client.snapshots.delete(f"{guest.name}/snapshots/s1").result(timeout_s=60)
    done = two.virtd.guestctl("migrate", "ctl", "--to", "two", "--copy-storage")
    assert done.returncode == 0, done
    assert two.running("ctl") == [THERE]
