"""A running guest of a real Xen host is changed: through the public API, seen from inside the guest.

libvirt's libxl driver accepts some changes and does not carry them out, so nothing here is believed
because a call succeeded: the guest is asked by its console's shell, and Xen by its own tool.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from virtd_client import Client, errors

from tests.lab.daemon import FILES, MIB, XEN_CMDLINE, LabVirtd, Shell, kernel_guest, serving
from virtd.v1 import guest_pb2 as g
from virtd.v1 import guest_service_pb2 as gs

pytestmark = pytest.mark.lab

HOST = "hosts/xen"
BRIDGE = "xenbr0"
LIVE, NEXT_BOOT, REJECTED = gs.UPDATE_EFFECT_LIVE, gs.UPDATE_EFFECT_NEXT_BOOT, gs.UPDATE_EFFECT_REJECTED


@pytest.fixture(scope="module")
def virtd(lab_xen: Any) -> Iterator[LabVirtd]:
    with serving({"xen": lab_xen.uri}) as daemon:
        yield daemon


@pytest.fixture(scope="module")
def client(virtd: LabVirtd) -> Client:
    return virtd.client()


@pytest.fixture(scope="module", params=["xenpv", "xenpvh"])
def running(client: Client, request: pytest.FixtureRequest) -> Iterator[tuple[str, Shell]]:
    """One booted guest of each paravirtual type for all tests of this file."""
    wanted = kernel_guest(192, kernel="vmlinux", initrd="guest-initrd.img", command_line=XEN_CMDLINE)
    wanted.spec.machine = request.param
    wanted.spec.memory_bytes = 160 * MIB
    wanted.spec.max_memory_bytes = 192 * MIB
    wanted.spec.vcpus = 1
    wanted.spec.max_vcpus = 2
    wanted.spec.interfaces.append(g.InterfaceSpec(name="net0", kind=g.INTERFACE_KIND_BRIDGE, network=BRIDGE))
    short = f"update-{request.param}"
    name = client.guests.create(HOST, short, wanted, start=True).result(timeout_s=300).name
    try:
        shell = Shell(client, name)
        shell.wait("GUEST-READY")
        yield name, shell
    finally:
        client.guests.delete(name, force=True).result(timeout_s=120)


def until(check: Callable[[], bool], what: str, timeout_s: float = 60) -> None:
    deadline = time.monotonic() + timeout_s
    while not check():
        assert time.monotonic() < deadline, what
        time.sleep(1)


def spec(name: str, **fields: object) -> g.Guest:
    return g.Guest(name=name, spec=g.GuestSpec(**fields))  # type: ignore[arg-type]


def plan(client: Client, guest: g.Guest, path: str) -> tuple[int, str]:
    (change,) = client.guests.change(guest, [path], validate_only=True).plan.changes
    return change.effect, change.reason


def blank(name: str, mib: int, format_: int = g.DISK_FORMAT_RAW) -> g.DiskSpec:
    return g.DiskSpec(name=name, blank=g.BlankSource(capacity_bytes=mib * MIB, format=format_))  # type: ignore[arg-type]


def test_a_disk_goes_in_and_out(virtd: LabVirtd, client: Client, running: tuple[str, Shell]) -> None:
    name, shell = running
    assert "xvd" not in shell.run("cat /proc/partitions")
    made = client.devices.attach_disk(name, blank("extra", 8)).result(timeout_s=180)
    (status,) = made.status.disks
    assert "8192 xvda" in shell.run("cat /proc/partitions")
    written = "dd if=/dev/zero of=/dev/xvda bs=1M count=1 2>&1 && sync && echo written"
    assert "written" in shell.run(written)
    assert status.target == "xvda"
    assert not made.status.pending_restart_fields
    second = client.devices.attach_disk(name, blank("other", 4)).result(timeout_s=180)
    assert [entry.target for entry in second.status.disks] == ["xvda", "xvdb"]
    assert "4096 xvdb" in shell.run("cat /proc/partitions")
    client.devices.detach_disk(name, "extra", delete_volume=True).result(timeout_s=180)
    assert "xvda" not in shell.run("cat /proc/partitions")
    client.devices.detach_disk(name, "other", delete_volume=True).result(timeout_s=180)
    assert "xvd" not in shell.run("cat /proc/partitions")
    short = name.rpartition("/")[2]
    for view in ([], ["--inactive"]):
        assert "<disk" not in virtd.virsh("xen", "dumpxml", *view, short)
    assert not client.guests.get(name).status.pending_restart_fields


def test_a_disk_in_use_goes_as_well(client: Client, running: tuple[str, Shell]) -> None:
    """Linux lets go of a paravirtual disk at once, whoever has it open (since 5.15)."""
    name, shell = running
    client.devices.attach_disk(name, blank("held", 8)).result(timeout_s=180)
    shell.run("(exec 3</dev/xvda; sleep 100) >/dev/null 2>&1 </dev/null & sleep 1")
    client.devices.detach_disk(name, "held", delete_volume=True).result(timeout_s=240)
    assert "xvda" not in shell.run("cat /proc/partitions")


def test_what_only_the_next_start_can_do_says_why(client: Client, running: tuple[str, Shell]) -> None:
    name, _ = running
    qcow2 = client.devices.attach_disk(name, blank("slow", 8, g.DISK_FORMAT_QCOW2), validate_only=True)
    (change,) = qcow2.plan.changes
    assert change.effect == NEXT_BOOT
    assert "a QEMU that it starts together with the guest" in change.reason
    assert plan(client, spec(name, max_vcpus=3), "spec.max_vcpus")[0] == NEXT_BOOT
    assert plan(client, spec(name, max_memory_bytes=256 * MIB), "spec.max_memory_bytes")[0] == NEXT_BOOT
    with pytest.raises(errors.VirtdError) as cable:
        client.devices.set_link(name, "net0", up=False).result(timeout_s=60)
    assert "libvirt's libxl driver" in str(cable.value)


def test_an_interface_goes_in_and_out(client: Client, running: tuple[str, Shell]) -> None:
    name, shell = running
    wanted = g.InterfaceSpec(name="second", kind=g.INTERFACE_KIND_BRIDGE, network=BRIDGE)
    made = client.devices.attach_interface(name, wanted).result(timeout_s=180)
    mac = made.spec.interfaces[1].mac
    until(lambda: mac in shell.run("cat /sys/class/net/*/address"), "the guest does not see the interface")
    client.devices.detach_interface(name, "second").result(timeout_s=180)
    assert mac not in shell.run("cat /sys/class/net/*/address")
    assert not client.guests.get(name).status.pending_restart_fields


def test_memory_goes_down_and_up_by_the_balloon(client: Client, running: tuple[str, Shell]) -> None:
    name, shell = running

    def total() -> int:
        return int(shell.run("awk '/MemTotal/ {print $2}' /proc/meminfo").split()[-1])

    before = total()
    client.guests.change(spec(name, memory_bytes=128 * MIB), ["spec.memory_bytes"]).result(timeout_s=120)
    until(lambda: total() < before - 24 * 1024, "the guest gives no memory back")
    client.guests.change(spec(name, memory_bytes=192 * MIB), ["spec.memory_bytes"]).result(timeout_s=120)
    until(lambda: total() > before + 24 * 1024, "the guest gets no memory")
    assert not client.guests.get(name).status.pending_restart_fields


def test_processors_go_in_and_out(lab_xen: Any, client: Client, running: tuple[str, Shell]) -> None:
    name, shell = running
    short = name.rpartition("/")[2]
    online = "cat /sys/devices/system/cpu/online"
    assert shell.run(online).endswith("0")
    client.guests.change(spec(name, vcpus=2), ["spec.vcpus"]).result(timeout_s=120)
    switch_on = f"echo 1 > /sys/devices/system/cpu/cpu1/online; {online}"
    until(lambda: shell.run(switch_on).endswith("0-1"), "the guest does not see the processor")
    # ``--p`` or a number: a processor that is off has ``--p`` and no CPU.
    assert lab_xen.run(f"xl vcpu-list {short}").count("--p") == 0
    client.guests.change(spec(name, vcpus=1), ["spec.vcpus"]).result(timeout_s=120)
    until(lambda: shell.run(online).endswith("0"), "the guest keeps the processor")
    assert lab_xen.run(f"xl vcpu-list {short}").count("--p") == 1
    assert client.guests.get(name).spec.vcpus == 1


def test_the_drive_of_an_hvm_guest(lab_xen: Any, client: Client) -> None:
    """Nothing runs in it that could use the drive: Xen's QEMU is asked what is in it."""
    wanted = g.Guest(spec=g.GuestSpec(memory_bytes=64 * MIB, machine="xenfv", max_vcpus=2, vcpus=1))
    root = g.HostFileSource(path=f"{FILES}/hvm.img", format=g.DISK_FORMAT_RAW)
    wanted.spec.disks.append(g.DiskSpec(name="root", host_file=root, bus=g.DISK_BUS_IDE))
    first, second = (
        g.HostFileSource(path=f"{FILES}/{name}", format=g.DISK_FORMAT_RAW) for name in ("data.img", "data2.img")
    )
    wanted.spec.disks.append(g.DiskSpec(name="cd", host_file=first, device=g.DISK_DEVICE_CDROM, bus=g.DISK_BUS_IDE))
    name = client.guests.create(HOST, "update-hvm", wanted, start=True).result(timeout_s=300).name
    try:
        Shell(client, name).wait("HVM-READY")

        def drive() -> str:
            """The emulated drive; its paravirtual twin beside it keeps its first medium, and no guest uses it."""
            said = str(lab_xen.run("xl qemu-monitor-command update-hvm 'info block'"))
            return next(part for part in said.split("\n\n") if part.lstrip().startswith("ide-"))

        def held(path: str) -> bool:
            """libxl hands QEMU an open file, so the drive does not tell its name: the process does."""
            return path in str(lab_xen.run("ls -l /proc/[0-9]*/fd 2>/dev/null || true"))

        assert first.path in drive()
        assert not held(second.path)
        client.devices.insert_medium(name, "cd", g.DiskSpec(host_file=second)).result(timeout_s=120)
        assert first.path not in drive()
        assert held(second.path)
        client.devices.eject_medium(name, "cd").result(timeout_s=120)
        assert "[not inserted]" in drive()
        assert not held(second.path)
        guest = client.guests.get(name)
        assert not guest.spec.disks[1].WhichOneof("source")
        # A drive that was empty at the start would make Xen's QEMU crash now.
        planned = client.devices.insert_medium(name, "cd", g.DiskSpec(host_file=first), validate_only=True)
        (change,) = planned.plan.changes
        assert change.effect == NEXT_BOOT
        assert "crashes" in change.reason
    finally:
        client.guests.delete(name, force=True).result(timeout_s=120)
