"""Guests move between the two Xen hosts, live and stopped, through the public API.

A counter in the guest prints on its console, and goes on where it was.  The hosts reach each other over their private
link; their ``/srv/guest`` is said to be shared: both have the same files there.
"""

from __future__ import annotations

import contextlib
import re
import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

import pytest
from virtd_client import Client, errors

from tests.lab.daemon import FILES, MIB, XEN_CMDLINE, LabVirtd, Shell, kernel_guest, serving
from tests.lab.registry import HOSTS
from virtd.v1 import guest_pb2 as g
from virtd.v1 import host_pb2 as h
from virtd.v1.operation_pb2 import OPERATION_STATE_SUCCEEDED
from virtd.v1.transfer_pb2 import FINDING_SEVERITY_CRITICAL

if TYPE_CHECKING:
    from tests.lab.hosts import LabHost

pytestmark = [pytest.mark.lab, pytest.mark.timeout(1200)]

ONE, TWO = "hosts/xen", "hosts/xen2"
LIVE, STOPPED = "xmig-live", "xmig-stopped"
HERE, THERE = f"{ONE}/guests/{LIVE}", f"{TWO}/guests/{LIVE}"
PATIENCE_S = 600.0


def address(name: str) -> str:
    return f"10.9.0.{HOSTS[name].link}"


@pytest.fixture(scope="module")
def virtd(lab_xen: LabHost, lab_xen2: LabHost) -> Iterator[LabVirtd]:
    hosts = {host.name: host for host in (lab_xen, lab_xen2)}
    options = {
        name: {
            "migration_uri": f"xen+tcp://{address(name)}/system",
            "migration_data_uri": f"tcp://{address(name)}",
            "shared_directories": FILES,
        }
        for name in hosts
    }
    with serving({name: host.uri for name, host in hosts.items()}, options) as daemon:
        yield daemon
        client = daemon.client()
        for host in (ONE, TWO, ONE):  # it may still be on its way
            for guest in client.guests.list(host):
                if guest.name.endswith((f"/{LIVE}", f"/{STOPPED}")):
                    with contextlib.suppress(errors.NotFound):
                        client.guests.delete(guest.name, force=True).result(timeout_s=PATIENCE_S)


@pytest.fixture(scope="module")
def client(virtd: LabVirtd) -> Client:
    client = virtd.client()
    for host in (ONE, TWO):
        connected(client, host)
    return client


@pytest.fixture(scope="module")
def booted(client: Client) -> g.Guest:
    """A guest that counts, with a disk that both hosts have."""
    guest = kernel_guest(128, kernel="vmlinux", initrd="guest-initrd.img", command_line=XEN_CMDLINE)
    image = g.HostFileSource(path=f"{FILES}/data.img", format=g.DISK_FORMAT_RAW)
    guest.spec.disks.append(g.DiskSpec(name="data", host_file=image))
    made = client.guests.create(ONE, LIVE, guest, start=True).result(timeout_s=PATIENCE_S)
    Shell(client, made.name).wait(r"GUEST-READY.*\bPVH\b")
    Shell(client, made.name).wait(r"tick 5\b")
    return client.guests.get(made.name)


def until(check: Callable[[], bool], what: str, timeout_s: float = 120) -> None:
    deadline = time.monotonic() + timeout_s
    while not check():
        assert time.monotonic() < deadline, what
        time.sleep(0.3)


def connected(client: Client, host: str) -> None:
    until(lambda: client.hosts.get(host).state == h.HOST_STATE_CONNECTED, f"{host} does not answer")
    until(lambda: bool(client.hosts.get(host).facts.hypervisor), f"{host} was not looked at")


def count(client: Client, name: str) -> int:
    """The last number that the guest printed."""
    seen = re.findall(r"tick (\d+)[\r\n]", client.console.read_log(name).data.decode(errors="replace"))
    return int(seen[-1])


def goes_on(client: Client, name: str, before: int) -> None:
    """It counts on from there, and did not begin anew."""
    until(lambda: count(client, name) > before, f"{name} does not count on from {before}", PATIENCE_S)
    assert len(re.findall("GUEST-READY", client.console.read_log(name).data.decode(errors="replace"))) <= 1


def copies(*hosts: LabHost) -> list[str]:
    """Where Xen itself runs the guest."""
    return [host.name for host in hosts if re.search(rf"^{LIVE}\s", host.run("xl list", 60), re.MULTILINE)]


def findings(client: Client, guest: str, target: str, **options: object) -> dict[str, str]:
    """What is in the way: reason -> message."""
    check = client.migrations.check(guest, target, **options)  # type: ignore[arg-type] - options of several types
    return {one.reason: one.message for one in check.findings if one.severity == FINDING_SEVERITY_CRITICAL}


def test_what_xen_cannot_is_said_beforehand(client: Client, booted: g.Guest) -> None:
    assert client.migrations.check(booted.name, TWO).possible
    assert findings(client, booted.name, TWO) == {}
    assert "memory only" in findings(client, booted.name, TWO, copy_storage=True)["UNSUPPORTED"]
    assert "post-copy" in findings(client, booted.name, TWO, post_copy=True)["UNSUPPORTED"]
    for option in ({"bandwidth_bytes_per_s": MIB}, {"max_downtime_ms": 100}, {"auto_converge": True}):
        with pytest.raises(errors.FailedPrecondition) as caught:
            client.migrations.migrate(booted.name, TWO, **option)
        assert (caught.value.reason, caught.value.metadata["reasons"]) == ("MIGRATION_BLOCKED", "UNSUPPORTED")
        assert "libxl driver" in str(caught.value)
    client.guests.pause(booted.name).result(timeout_s=60)
    try:
        assert "paused" in findings(client, booted.name, TWO)["WRONG_STATE"]
    finally:
        client.guests.resume(booted.name).result(timeout_s=60)


def test_it_moves_live_and_counts_on(
    virtd: LabVirtd, client: Client, booted: g.Guest, lab_xen: LabHost, lab_xen2: LabHost
) -> None:
    before = count(client, booted.name)
    operation = client.migrations.migrate(booted.name, TWO)
    until(lambda: operation.refresh().stage == "move" and not operation.metadata.cancellable, "it does not begin")
    operation.cancel()  # too late: it arrives all the same
    moved = operation.result(timeout_s=PATIENCE_S)
    assert (moved.name, moved.uid) == (THERE, booted.uid)
    assert moved.status.state == g.GUEST_STATE_RUNNING
    assert copies(lab_xen, lab_xen2) == ["xen2"]
    assert LIVE not in virtd.virsh("xen", "list", "--all", "--name").split()
    assert LIVE in virtd.virsh("xen2", "list", "--persistent", "--name").split()
    goes_on(client, THERE, before)
    assert "16384" in Shell(client, THERE).run("dd if=/dev/xvda bs=4k count=4 2>/dev/null | wc -c")


def test_virtd_is_killed_while_it_moves(
    virtd: LabVirtd, client: Client, booted: g.Guest, lab_xen: LabHost, lab_xen2: LabHost
) -> None:
    assert client.guests.get(THERE).uid == booted.uid
    before = count(client, THERE)
    operation = client.migrations.migrate(THERE, ONE)
    # The target has made a domain for it, which is no guest yet.
    until(lambda: LIVE in virtd.virsh("xen", "list", "--all", "--name").split(), "it does not begin")
    operation.refresh()
    assert not operation.done
    virtd.kill()
    virtd.start()
    again = virtd.client()
    result = again.operations.get(operation.name)
    result.result(timeout_s=PATIENCE_S)
    assert result.refresh().state == OPERATION_STATE_SUCCEEDED
    assert result.metadata.recovered
    assert copies(lab_xen, lab_xen2) == ["xen"]
    assert again.guests.get(HERE).uid == booted.uid
    assert not [guest for guest in again.guests.list(TWO) if guest.name.endswith(f"/{LIVE}")]
    goes_on(again, HERE, before)


def test_a_stopped_guest_takes_its_disk_along(virtd: LabVirtd, client: Client, booted: g.Guest) -> None:
    """One of the type xenpv, which cannot move live."""
    connected(client, ONE)
    connected(client, TWO)
    guest = kernel_guest(128, kernel="vmlinux", initrd="guest-initrd.img", command_line=XEN_CMDLINE)
    guest.spec.machine = "xenpv"
    blank = g.BlankSource(capacity_bytes=8 * MIB, format=g.DISK_FORMAT_RAW)
    guest.spec.disks.append(g.DiskSpec(name="data", blank=blank))
    made = client.guests.create(ONE, STOPPED, guest).result(timeout_s=PATIENCE_S)
    live = findings(client, made.name, TWO, mode="live")
    assert "shadow paging" in live["UNSUPPORTED"]
    assert "STORAGE_NOT_SHARED" in findings(client, made.name, TWO)
    moved = client.migrations.migrate(made.name, TWO, copy_storage=True).result(timeout_s=PATIENCE_S)
    assert (moved.name, moved.uid) == (f"{TWO}/guests/{STOPPED}", made.uid)
    assert moved.spec.machine == "xenpv"
    assert STOPPED not in virtd.virsh("xen", "list", "--all", "--name").split()
    assert not list(client.volumes.list(f"{ONE}/pools/virtd"))
    client.guests.delete(moved.name).result(timeout_s=PATIENCE_S)
    assert not list(client.volumes.list(f"{TWO}/pools/virtd"))


def test_a_target_that_cannot_be_reached(
    virtd: LabVirtd, client: Client, booted: g.Guest, lab_xen: LabHost, lab_xen2: LabHost
) -> None:
    """By the source, or by virtd either: the guest stays, and it is said why."""
    connected(client, ONE)
    connected(client, TWO)
    lab_xen2.run("iptables -I INPUT -i eth1 -p tcp --dport 16509 -j REJECT --reject-with tcp-reset")
    try:
        with pytest.raises(errors.FailedPrecondition) as refused:
            client.migrations.migrate(HERE, TWO).result(timeout_s=PATIENCE_S)
        assert refused.value.reason == "MIGRATION_FAILED"
        assert address("xen2") in str(refused.value)
        assert f"{LIVE} goes on on xen" in str(refused.value)
    finally:
        lab_xen2.run("iptables -D INPUT 1")
    lab_xen2.signal_libvirtd("KILL")
    try:
        until(lambda: client.hosts.get(TWO).state != h.HOST_STATE_CONNECTED, "it is not seen that libvirtd is dead")
        with pytest.raises(errors.Unavailable) as dead:
            client.migrations.migrate(HERE, TWO)
        assert dead.value.reason == "HOST_UNREACHABLE"
        assert "xen2" in str(dead.value)
    finally:
        lab_xen2.signal_libvirtd("start")
    assert copies(lab_xen, lab_xen2) == ["xen"]
    connected(client, TWO)
    goes_on(client, HERE, count(client, HERE))
