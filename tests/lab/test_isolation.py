"""KVM and Xen in one list and one watch; a libvirtd that is stopped for half a minute, or killed, costs only itself."""

from __future__ import annotations

import time
from collections.abc import Iterator

import pytest
from virtd_client import Client, errors

from tests.lab.daemon import MIB, XEN_CMDLINE, LabVirtd, kernel_guest, serving
from tests.lab.hosts import LabHost
from tests.support.isolation import Listener, listening, stale, traffic, until
from virtd.v1.guest_pb2 import GUEST_STATE_RUNNING, GUEST_STATE_STOPPED, Guest, GuestSpec

pytestmark = pytest.mark.timeout(600)

STOP_S = 30.0
BACK_S = 60.0
KVM, XEN = "hosts/kvm1", "hosts/xen"


@pytest.fixture(scope="module")
def virtd(lab_kvm1: LabHost, lab_xen: LabHost) -> Iterator[LabVirtd]:
    with serving({"kvm1": lab_kvm1.uri, "xen": lab_xen.uri}) as virtd:
        yield virtd


@pytest.fixture(scope="module")
def client(virtd: LabVirtd) -> Iterator[Client]:
    client = virtd.client()
    for host in (KVM, XEN):
        until(f"{host} was probed", lambda host=host: client.hosts.get(host).facts.hypervisor, 90)
    yield client
    for guest in client.guests.list():
        client.guests.delete(guest.name, force=True).result(timeout_s=120)


@pytest.fixture(scope="module")
def guests(client: Client) -> dict[str, str]:
    """One that runs on each host, without a system where that is possible: nothing here needs one."""
    empty = Guest(spec=GuestSpec(memory_bytes=32 * MIB))
    linux = kernel_guest(128, kernel="vmlinux", initrd="guest-initrd.img", command_line=XEN_CMDLINE)
    linux.spec.machine = "xenpvh"
    made = {
        host: client.guests.create(host, f"iso-{host.rpartition('/')[2]}", guest, start=True)
        for host, guest in ((KVM, empty), (XEN, linux))
    }
    return {host: operation.result(timeout_s=180).name for host, operation in made.items()}


def both_seen(listener: Listener, guests: dict[str, str]) -> bool:
    return all(listener.states(name)[-1:] == ["RUNNING"] for name in guests.values())


@pytest.mark.parametrize(("frail", "good"), [(KVM, XEN), (XEN, KVM)])
def test_a_stopped_libvirtd_costs_the_other_platform_nothing(
    client: Client, guests: dict[str, str], lab_kvm1: LabHost, lab_xen: LabHost, frail: str, good: str
) -> None:
    machine = {KVM: lab_kvm1, XEN: lab_xen}[frail]
    client.guests.pause(guests[frail]).result(timeout_s=60)
    client.guests.resume(guests[frail]).result(timeout_s=60)
    with listening(client) as (listener, first):
        before = traffic(client, guests[good], calls=64)
        assert {guest.name for guest in client.guests.list("hosts/-")} >= set(guests.values())
        machine.signal_libvirtd("STOP")
        begun = time.monotonic()
        try:
            # Sent to a daemon that does not read: it finds it when it goes on.
            waiting = client.guests.pause(guests[frail])
            during = traffic(client, guests[good], calls=200, every_s=STOP_S / 200)
            until("the host's guests are stale", lambda: stale(client, guests[frail]), 10)
            assert client.guests.get(guests[frail]).status.state == GUEST_STATE_RUNNING, "as last seen"
            with pytest.raises(errors.Unavailable):
                client.guests.stop(guests[frail])
            assert waiting.refresh().waiting_for == frail
            time.sleep(max(0.0, begun + STOP_S - time.monotonic()))
        finally:
            machine.signal_libvirtd("CONT")
        during.check_against(before)
        until("the host is back", lambda: listener.went_and_came_back(frail), BACK_S)
        waiting.result(timeout_s=60)
        until("the pause is told", lambda: listener.states(guests[frail])[-1:] == ["PAUSED"], 10)
        assert listener.states(guests[frail]).count("PAUSED") == 1
        client.guests.resume(guests[frail]).result(timeout_s=60)
        until("both are seen to run", lambda: both_seen(listener, guests), 10)
        assert not client.guests.list("hosts/-").host_errors
        listener.check_no_gap(client, first)


def test_a_killed_libvirtd_comes_back_and_nothing_was_done_twice(
    client: Client, guests: dict[str, str], lab_kvm1: LabHost
) -> None:
    late = client.guests.create(KVM, "iso-late", Guest(spec=GuestSpec(memory_bytes=32 * MIB))).result(timeout_s=60).name
    with listening(client) as (listener, first):
        before = traffic(client, guests[XEN], calls=40)
        start = client.guests.start(late)
        lab_kvm1.signal_libvirtd("KILL")
        during = traffic(client, guests[XEN], calls=56)
        until("the host's guests are stale", lambda: stale(client, guests[KVM]), 10)
        lab_kvm1.signal_libvirtd("start")
        during.check_against(before)
        until("the host is back", lambda: listener.went_and_came_back(KVM), BACK_S)
        assert start.result(timeout_s=60).status.state == GUEST_STATE_RUNNING
        assert client.guests.get(guests[KVM]).status.state == GUEST_STATE_RUNNING
        # A QEMU that was not ready yet is ended by the libvirtd that comes next: then it is started again.
        assert int(lab_kvm1.run("pgrep -fc '^[^ ]*qemu[^ ]* -name guest=iso-late,'")) == 1
        assert listener.states(late).count("RUNNING") == 1
        client.guests.stop(late).result(timeout_s=60)
        until("the stop is told", lambda: listener.states(late)[-1:] == ["STOPPED"], 10)
        assert client.guests.get(late).status.state == GUEST_STATE_STOPPED
        listener.check_no_gap(client, first)
