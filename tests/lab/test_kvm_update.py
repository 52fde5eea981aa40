"""A running guest of a real KVM host is changed: through the public API, seen from inside the guest.

What emulation (tests/e2e/test_update.py) cannot show: processors that are taken out, the host's own CPU.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from virtd_client import Client, errors

from tests.lab.daemon import MIB, LabVirtd, kernel_guest, serving
from virtd.v1 import guest_pb2 as g
from virtd.v1 import guest_service_pb2 as gs

pytestmark = pytest.mark.lab

HOST = "hosts/kvm1"
NAME = f"{HOST}/guests/update-kvm"
LIVE = gs.UPDATE_EFFECT_LIVE


@pytest.fixture(scope="module")
def virtd(lab_kvm1: Any) -> Iterator[LabVirtd]:
    with serving({"kvm1": lab_kvm1.uri}) as daemon:
        yield daemon


@pytest.fixture(scope="module")
def client(virtd: LabVirtd) -> Client:
    return virtd.client()


@pytest.fixture(scope="module")
def running(client: Client) -> Iterator[str]:
    """One booted guest for all tests of this file."""
    wanted = kernel_guest(192, initrd="initrd.img")
    wanted.spec.vcpus = 1
    wanted.spec.max_vcpus = 2
    wanted.spec.accelerator = g.ACCELERATOR_KVM
    wanted.spec.interfaces.append(g.InterfaceSpec(name="net0"))
    client.guests.create(HOST, "update-kvm", wanted, start=True).result(timeout_s=300)
    try:
        client.guests.wait(NAME, condition="agent-ready", timeout_s=240)
        yield NAME
    finally:
        client.guests.delete(NAME, force=True).result(timeout_s=120)


def inside(client: Client, script: str) -> str:
    done = client.agent.exec(NAME, "/bin/sh", ["-c", script])
    return (done.stdout + done.stderr).decode().strip()


def until(check: Callable[[], bool], what: str, timeout_s: float = 60) -> None:
    deadline = time.monotonic() + timeout_s
    while not check():
        assert time.monotonic() < deadline, what
        time.sleep(1)


def spec(**fields: object) -> g.Guest:
    return g.Guest(name=NAME, spec=g.GuestSpec(**fields))  # type: ignore[arg-type]


def test_the_host_says_what_kvm_adds(client: Client, running: str) -> None:
    stated = {entry.id: entry for entry in client.hosts.capabilities(HOST)}
    assert stated["host.acceleration"].level == stated["guest.lifecycle"].level
    assert "ran 64-bit code to its end" in stated["host.acceleration"].reason
    guest = client.guests.get(running)
    assert guest.status.accelerator == g.ACCELERATOR_KVM


def test_processors_go_in_and_out(virtd: LabVirtd, client: Client, running: str) -> None:
    assert inside(client, "nproc") == "1"
    client.guests.change(spec(vcpus=2), ["spec.vcpus"]).result(timeout_s=120)
    switch_on = "for c in /sys/devices/system/cpu/cpu[0-9]*/online; do echo 1 > $c; done; nproc"
    until(lambda: inside(client, switch_on) == "2", "the guest does not see the processor")
    (change,) = client.guests.change(spec(vcpus=1), ["spec.vcpus"], validate_only=True).plan.changes
    assert (change.effect, change.reason) == (LIVE, "")
    client.guests.change(spec(vcpus=1), ["spec.vcpus"]).result(timeout_s=180)
    until(lambda: inside(client, "nproc") == "1", "the guest keeps the processor")
    assert "current='1'>2</vcpu>" in virtd.virsh("kvm1", "dumpxml", "update-kvm")
    assert not client.guests.get(running).status.pending_restart_fields
    # What crashes an emulating QEMU at this point.
    client.guests.reset(running).result(timeout_s=60)
    time.sleep(2)
    client.guests.wait(running, condition="agent-ready", timeout_s=240)
    assert inside(client, "nproc") == "1"


def test_a_disk_and_an_interface_go_in_and_out(client: Client, running: str) -> None:
    disk = g.DiskSpec(name="extra", blank=g.BlankSource(capacity_bytes=8 * MIB))
    client.devices.attach_disk(running, disk).result(timeout_s=120)
    until(lambda: "8192 vda" in inside(client, "cat /proc/partitions"), "the guest does not see the disk")
    client.devices.resize_disk(running, "extra", 16 * MIB).result(timeout_s=120)
    until(lambda: "16384 vda" in inside(client, "cat /proc/partitions"), "the guest does not see the new size")
    client.devices.detach_disk(running, "extra", delete_volume=True).result(timeout_s=120)
    assert "vda" not in inside(client, "cat /proc/partitions")
    made = client.devices.attach_interface(running, g.InterfaceSpec(name="second")).result(timeout_s=120)
    mac = made.spec.interfaces[1].mac
    until(lambda: mac in inside(client, "cat /sys/class/net/*/address"), "the guest does not see the interface")
    client.devices.detach_interface(running, "second").result(timeout_s=120)
    assert mac not in inside(client, "cat /sys/class/net/*/address")
    assert not client.guests.get(running).status.pending_restart_fields


def test_memory_goes_down_and_up_by_the_balloon(client: Client, running: str) -> None:
    def total() -> int:
        return int(inside(client, "awk '/MemTotal/ {print $2}' /proc/meminfo"))

    before = total()
    client.guests.change(spec(memory_bytes=160 * MIB), ["spec.memory_bytes"]).result(timeout_s=120)
    until(lambda: total() < before - 24 * 1024, "the guest gives no memory back")
    client.guests.change(spec(memory_bytes=192 * MIB), ["spec.memory_bytes"]).result(timeout_s=120)
    until(lambda: total() > before - 8 * 1024, "the guest gets no memory back")


@pytest.mark.parametrize("model", ["host-passthrough", "host-model", "maximum"])
def test_the_host_s_own_cpu(virtd: LabVirtd, client: Client, model: str) -> None:
    """A guest without a system is enough: QEMU refuses what the host cannot give."""
    wanted = g.Guest(spec=g.GuestSpec(memory_bytes=32 * MIB, accelerator=g.ACCELERATOR_KVM))
    wanted.spec.cpu.model = model
    short = f"update-cpu-{model}"
    name = client.guests.create(HOST, short, wanted, start=True).result(timeout_s=180).name
    try:
        guest = client.guests.get(name)
        assert guest.status.state == g.GUEST_STATE_RUNNING
        assert guest.spec.cpu.model == model
        assert not guest.status.pending_restart_fields, "a worked-out host-model is not another CPU"
        assert "<domain type='kvm'" in virtd.virsh("kvm1", "dumpxml", short)
    finally:
        client.guests.delete(name, force=True).result(timeout_s=120)


def test_emulation_has_no_cpu_of_the_host_s(client: Client) -> None:
    wanted = g.Guest(spec=g.GuestSpec(memory_bytes=32 * MIB, accelerator=g.ACCELERATOR_TCG))
    wanted.spec.cpu.model = "host-passthrough"
    with pytest.raises(errors.InvalidArgument) as refused:
        client.guests.create(HOST, "update-no-cpu", wanted)
    (violation,) = refused.value.violations
    assert violation.field == "guest.spec.cpu.model"
    assert "maximum" in violation.alternatives


def test_huge_pages_are_looked_for(lab_kvm1: Any, client: Client) -> None:
    """What the host has reserved decides, and it is looked at anew."""
    wanted = g.Guest(spec=g.GuestSpec(memory_bytes=64 * MIB, accelerator=g.ACCELERATOR_KVM))
    wanted.spec.memory.hugepage_bytes = 2 * MIB
    with pytest.raises(errors.VirtdError) as refused:
        client.guests.create(HOST, "update-huge", wanted)
    assert "vm.nr_hugepages" in str(refused.value)
    lab_kvm1.run("echo 40 > /proc/sys/vm/nr_hugepages")
    try:
        client.hosts.probe(HOST)
        client.guests.create(HOST, "update-huge", wanted, validate_only=True)
    finally:
        lab_kvm1.run("echo 0 > /proc/sys/vm/nr_hugepages")
        client.hosts.probe(HOST)
