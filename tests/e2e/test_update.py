"""A guest that exists is changed: through the public API, on a real QEMU, seen from inside the guest."""

from __future__ import annotations

import contextlib
import subprocess
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from virtd_client import Client, errors

from tests.e2e.conftest import MIB, Virtd
from virtd.v1 import guest_pb2 as g
from virtd.v1 import guest_service_pb2 as gs

pytestmark = pytest.mark.qemu

NAME = "hosts/kvm/guests/changing"
LIVE, NEXT_BOOT = gs.UPDATE_EFFECT_LIVE, gs.UPDATE_EFFECT_NEXT_BOOT


@pytest.fixture(scope="module")
def client(virtd_process: Virtd) -> Client:
    return virtd_process.client()


@pytest.fixture(scope="module")
def running(virtd_process: Virtd, client: Client) -> Iterator[str]:
    """One booted guest for all tests of this file that do not stop it."""
    wanted = virtd_process.spec()
    wanted.spec.vcpus = 1
    wanted.spec.max_vcpus = 2
    wanted.spec.graphics.vnc = False  # libvirt daemons that run side by side race for the same ports
    wanted.spec.disks.append(g.DiskSpec(name="cd", device=g.DISK_DEVICE_CDROM, bus=g.DISK_BUS_SCSI))
    client.guests.create("hosts/kvm", "changing", wanted, start=True).result(timeout_s=120)
    client.guests.wait(NAME, condition="agent-ready", timeout_s=120)
    yield NAME
    client.guests.delete(NAME, force=True).result(timeout_s=60)


def inside(client: Client, script: str, name: str = NAME) -> str:
    done = client.agent.exec(name, "/bin/sh", ["-c", script])
    return (done.stdout + done.stderr).decode()


def until(check: Callable[[], bool], timeout_s: float = 20.0, what: str = "") -> None:
    deadline = time.monotonic() + timeout_s
    while not check():
        assert time.monotonic() < deadline, what or "it does not come true"
        time.sleep(0.2)


def spec(**fields: object) -> g.Guest:
    return g.Guest(name=NAME, spec=g.GuestSpec(**fields))  # type: ignore[arg-type]


def plan(client: Client, guest: g.Guest, paths: list[str], **options: object) -> dict[str, tuple[int, str]]:
    made = client.guests.change(guest, paths, validate_only=True, **options).plan  # type: ignore[arg-type]
    return {change.field: (change.effect, change.reason) for change in made.changes}


def test_a_disk_is_plugged_in_and_out(virtd_process: Virtd, client: Client, running: str) -> None:
    before = inside(client, "cat /proc/partitions")
    assert "vdb" not in before
    disk = g.DiskSpec(name="extra", blank=g.BlankSource(capacity_bytes=8 * MIB))
    planned = client.devices.attach_disk(running, disk, validate_only=True)
    assert [(c.field, c.effect) for c in planned.plan.changes] == [("spec.disks[extra]", LIVE)]
    assert "vdb" not in inside(client, "cat /proc/partitions")
    guest = client.devices.attach_disk(running, disk).result(timeout_s=60)
    until(lambda: "vdb" in inside(client, "cat /proc/partitions"), what="the guest does not see the disk")
    assert "8192 vdb" in inside(client, "cat /proc/partitions")
    assert [entry.name for entry in guest.spec.disks] == ["data", "cd", "extra"]
    (status,) = [entry for entry in guest.status.disks if entry.name == "extra"]
    assert status.target == "vdb"
    assert not guest.status.pending_restart_fields
    path = Path(status.path)
    assert path.exists()
    with pytest.raises(errors.InvalidArgument) as twice:
        client.devices.attach_disk(running, disk)
    assert "taken" in str(twice.value)
    assert "dd" in inside(client, "dd if=/dev/zero of=/dev/vdb bs=1M count=1 2>&1; echo dd")
    grown = client.devices.resize_disk(running, "extra", 16 * MIB).result(timeout_s=60)
    until(lambda: "16384 vdb" in inside(client, "cat /proc/partitions"), what="the guest does not see the new size")
    assert grown.spec.disks[2].blank.capacity_bytes == 16 * MIB
    with pytest.raises(errors.InvalidArgument) as smaller:
        client.devices.resize_disk(running, "extra", 8 * MIB)
    assert "shrink" in str(smaller.value)
    limits = g.IoTune(total_requests_per_s=777)
    tuned = spec(disks=[g.DiskSpec(name="extra", io_tune=limits)])
    client.guests.change(tuned, ["spec.disks[extra].io_tune"]).result(timeout_s=60)
    for view in ([], ["--inactive"]):
        assert "<total_iops_sec>777</total_iops_sec>" in virtd_process.virsh("dumpxml", *view, "changing")
    cached = spec(disks=[g.DiskSpec(name="extra", cache=g.DISK_CACHE_WRITETHROUGH)])
    effects = plan(client, cached, ["spec.disks[extra].cache"])
    assert effects["spec.disks[extra].cache"][0] == NEXT_BOOT
    gone = client.devices.detach_disk(running, "extra").result(timeout_s=90)
    assert [entry.name for entry in gone.spec.disks] == ["data", "cd"]
    assert "vdb" not in inside(client, "cat /proc/partitions")
    assert "extra" not in virtd_process.virsh("dumpxml", "--inactive", "changing")
    assert path.exists(), "a disk that is detached is not deleted"
    again = client.devices.attach_disk(running, disk).result(timeout_s=60)
    (status,) = [entry for entry in again.status.disks if entry.name == "extra"]
    assert status.path != str(path)
    client.devices.detach_disk(running, "extra", delete_volume=True).result(timeout_s=90)
    assert not Path(status.path).exists()
    assert path.exists()
    path.unlink()


def test_an_interface_is_plugged_in_and_out(client: Client, running: str) -> None:
    assert inside(client, "ls /sys/class/net | wc -l").strip() == "2"  # lo and eth0
    made = client.devices.attach_interface(running, g.InterfaceSpec(name="second")).result(timeout_s=60)
    mac = made.spec.interfaces[1].mac
    until(lambda: mac in inside(client, "cat /sys/class/net/*/address"), what="the guest does not see the interface")
    client.devices.detach_interface(running, "second").result(timeout_s=90)
    assert mac not in inside(client, "cat /sys/class/net/*/address")
    assert [entry.name for entry in client.guests.get(running).spec.interfaces] == ["net0"]


def test_a_cable_is_plugged_out_and_in(client: Client, running: str) -> None:
    def carrier() -> str:
        return inside(client, "cat /sys/class/net/eth0/carrier").strip()

    assert carrier() == "1"
    down = client.devices.set_link(running, "net0", up=False).result(timeout_s=60)
    until(lambda: carrier() == "0", what="the guest does not see that the cable is out")
    assert down.status.interfaces[0].link_state == g.LINK_STATE_DOWN
    client.devices.set_link(running, "net0", up=True).result(timeout_s=60)
    until(lambda: carrier() == "1", what="the guest does not see that the cable is in")


def test_a_medium_goes_in_and_out(virtd_process: Virtd, client: Client, running: str) -> None:
    place = virtd_process.guest.kernel.parent / f"medium-{uuid.uuid4().hex[:6]}.iso"
    place.write_bytes(b"a medium of a test".ljust(MIB, b"\0"))
    medium = g.DiskSpec(host_file=g.HostFileSource(path=str(place), format=g.DISK_FORMAT_RAW))
    try:
        with pytest.raises(errors.InvalidArgument) as plain:
            client.devices.insert_medium(running, "data", medium)
        assert plain.value.violations[0].alternatives == ("cd",)
        full = client.devices.insert_medium(running, "cd", medium).result(timeout_s=60)
        assert full.spec.disks[1].host_file.path == str(place)
        until(lambda: "a medium of a test" in inside(client, "head -c 18 /dev/sr0 2>&1"), what="no medium in the guest")
        empty = client.devices.eject_medium(running, "cd").result(timeout_s=60)
        assert not empty.spec.disks[1].WhichOneof("source")
        assert "a medium" not in inside(client, "head -c 18 /dev/sr0 2>&1")
        client.devices.insert_medium(running, "cd", medium).result(timeout_s=60)
        # A medium in use is locked by the guest's kernel.
        inside(client, "(exec 3</dev/sr0; sleep 60) >/dev/null 2>&1 </dev/null & sleep 0.5")
        with pytest.raises(errors.FailedPrecondition) as locked:
            client.devices.eject_medium(running, "cd").result(timeout_s=60)
        assert locked.value.reason == "DEVICE_BUSY"
        assert client.guests.get(running).spec.disks[1].host_file.path == str(place)
        assert str(place) in virtd_process.virsh("dumpxml", "--inactive", "changing")
        client.devices.eject_medium(running, "cd", force=True).result(timeout_s=60)
        assert str(place) not in virtd_process.virsh("dumpxml", "changing")
    finally:
        place.unlink()


def test_a_killed_daemon_leaves_spec_configuration_and_guest_agreeing(
    virtd_process: Virtd, client: Client, running: str
) -> None:
    disk = g.DiskSpec(name="killed", blank=g.BlankSource(capacity_bytes=MIB))
    for delay_s in (0.0, 0.1, 0.3):
        operation = client.devices.attach_disk(running, disk)
        time.sleep(delay_s)
        virtd_process.kill()
        virtd_process.start()
        client.guests.wait(running, state="running", timeout_s=30)
        guest = client.operations.get(operation.name).result(timeout_s=60)
        assert [entry.name for entry in guest.spec.disks] == ["data", "cd", "killed"]
        for view in ([], ["--inactive"]):
            xml = virtd_process.virsh("dumpxml", *view, "changing")
            assert xml.count("changing-killed-") == 1
            assert xml.count("name='killed'") + xml.count('name="killed"') == 1
        assert not client.guests.get(running).status.pending_restart_fields
        client.guests.wait(running, condition="agent-ready", timeout_s=60)
        until(lambda: "vdb" in inside(client, "cat /proc/partitions"), what="the guest does not see the disk")
        client.devices.detach_disk(running, "killed", delete_volume=True).result(timeout_s=90)
        assert not list((virtd_process.directory / "hosts").rglob("*killed*"))


def test_memory_goes_down_and_up_by_the_balloon(client: Client, running: str) -> None:
    def total() -> int:
        return int(inside(client, "awk '/MemTotal/ {print $2}' /proc/meminfo"))

    before = total()
    client.guests.change(spec(memory_bytes=160 * MIB), ["spec.memory_bytes"]).result(timeout_s=60)
    until(lambda: total() < before - 24 * 1024, what="the guest gives no memory back")
    assert not client.guests.get(running).status.pending_restart_fields
    client.guests.change(spec(memory_bytes=192 * MIB), ["spec.memory_bytes"]).result(timeout_s=60)
    until(lambda: total() > before - 8 * 1024, what="the guest gets no memory back")
    effects = plan(client, spec(memory_bytes=256 * MIB), ["spec.memory_bytes"])
    assert effects["spec.memory_bytes"] == (NEXT_BOOT, "the running guest has room for 201326592 bytes of memory")


def test_processors_go_in_and_only_a_restart_takes_them_out(virtd_process: Virtd, client: Client, running: str) -> None:
    def online() -> str:
        return inside(client, "for c in /sys/devices/system/cpu/cpu[0-9]*/online; do echo 1 > $c; done; nproc").strip()

    assert inside(client, "nproc").strip() == "1"
    client.guests.change(spec(vcpus=2), ["spec.vcpus"]).result(timeout_s=60)
    until(lambda: online() == "2", what="the guest does not see the processor")
    capability = {entry.id: entry for entry in client.hosts.capabilities("hosts/kvm")}["guest.update.vcpus.unplug"]
    effects = plan(client, spec(vcpus=1), ["spec.vcpus"])
    assert effects["spec.vcpus"] == (NEXT_BOOT, capability.reason)
    assert "crashes at the guest's next reset" in capability.reason
    with pytest.raises(errors.FailedPrecondition) as refused:
        client.guests.change(spec(vcpus=1), ["spec.vcpus"], mode="live-only")
    assert refused.value.reason == "RESTART_REQUIRED"
    waiting = client.guests.change(spec(vcpus=1), ["spec.vcpus"]).result(timeout_s=60)
    assert list(waiting.status.pending_restart_fields) == ["spec.vcpus"]
    assert inside(client, "nproc").strip() == "2"
    # A reset does not crash QEMU, because it was never asked, and does not apply what waits.
    token = client.events.pull().resume_token
    client.guests.reset(running).result(timeout_s=30)
    time.sleep(1)
    client.guests.wait(running, condition="agent-ready", timeout_s=120)
    survived = client.guests.get(running)
    assert list(survived.status.pending_restart_fields) == ["spec.vcpus"]
    pulled = client.events.pull(resume_token=token, filter=f"type=GUEST_STATE_CHANGED AND uid={survived.uid}")
    assert "CRASHED" not in [event.attributes["state"] for event in pulled.events]
    client.guests.stop(running).result(timeout_s=60)
    assert not client.guests.get(running).status.pending_restart_fields
    client.guests.start(running).result(timeout_s=60)
    client.guests.wait(running, condition="agent-ready", timeout_s=120)
    assert inside(client, "nproc").strip() == "1"


def test_a_document_applied_twice_changes_nothing_the_second_time(client: Client, running: str) -> None:
    shown = client.guests.get(running)
    document = g.Guest(name=running, labels={"tier": "web"}, spec=g.GuestSpec())
    document.spec.vcpus = 1
    document.spec.disks.append(g.DiskSpec(name="data", blank=g.BlankSource(capacity_bytes=16 * MIB)))
    document.spec.disks.append(g.DiskSpec(name="cd", device=g.DISK_DEVICE_CDROM))
    document.spec.interfaces.append(g.InterfaceSpec(name="net0"))
    first = client.guests.change(document, ["spec", "labels"]).result(timeout_s=60)
    assert dict(first.labels) == {"tier": "web"}
    assert first.spec == shown.spec
    assert first.generation == shown.generation + 1
    second = client.guests.change(document, ["spec", "labels"]).result(timeout_s=60)
    assert second.generation == first.generation
    assert second.etag == first.etag
    assert not client.guests.plan_for(running, document).update.changes
    # What GetGuest shows is a document as well.
    assert not client.guests.plan_for(running, first).update.changes
    document.spec.memory_bytes = 176 * MIB
    (change,) = client.guests.plan_for(running, document).update.changes
    assert (change.field, change.old, change.new, change.effect) == (
        "spec.memory_bytes", str(192 * MIB), str(176 * MIB), LIVE,
    )  # fmt: skip


def test_hand_made_parts_survive_and_replace_is_never_implicit(virtd_process: Virtd, client: Client) -> None:
    name, uid = f"byhand-{uuid.uuid4().hex[:6]}", str(uuid.uuid4())
    disk = virtd_process.guest.kernel.parent / f"{name}.raw"
    disk.write_bytes(bytes(MIB))
    path = virtd_process.directory / f"{name}.xml"
    path.write_text(
        f"""<domain type='qemu'><name>{name}</name><uuid>{uid}</uuid>
        <metadata><mine:note xmlns:mine='urn:mine'>keep me</mine:note></metadata>
        <memory unit='MiB'>32</memory><vcpu>1</vcpu><os><type arch='x86_64' machine='q35'>hvm</type></os>
        <iothreads>1</iothreads>
        <devices><disk type='file' device='disk'><driver name='qemu' type='raw' iothread='1' queues='1'/>
        <source file='{disk}'/><target dev='vdc' bus='virtio'/></disk>
        <controller type='scsi' index='0' model='virtio-scsi'/></devices></domain>"""
    )
    virtd_process.virsh("define", str(path))
    guest_name = f"hosts/kvm/guests/{name}"
    try:
        client.guests.wait(guest_name, state="stopped", timeout_s=10)
        client.guests.adopt(guest_name).result(timeout_s=30)
        before = virtd_process.virsh("dumpxml", name)
        assert not client.guests.plan_for(guest_name, client.guests.get(guest_name)).update.changes
        wanted = g.Guest(name=guest_name, spec=g.GuestSpec(vcpus=2, watchdog=g.WatchdogSpec()))
        wanted.spec.disks.append(g.DiskSpec(name="more", blank=g.BlankSource(capacity_bytes=MIB)))
        changed = client.guests.change(wanted, ["spec.vcpus", "spec.watchdog", "spec.disks[more]"]).result(timeout_s=60)
        assert {entry.name: entry.target for entry in changed.status.disks} == {"vdc": "vdc", "more": "vda"}
        after = virtd_process.virsh("dumpxml", name)
        for line in ("iothread='1' queues='1'", "<iothreads>1</iothreads>", "keep me"):
            assert line in after
        for line in before.splitlines():
            assert line in after or "vcpu" in line or "metadata" in line, line
        assert "<vcpu placement='static'>2</vcpu>" in after
        assert "model='i6300esb'" in after
        other = g.Guest(name=guest_name, spec=g.GuestSpec(firmware=g.FIRMWARE_UEFI))
        with pytest.raises(errors.FailedPrecondition) as refused:
            client.guests.change(other, ["spec.firmware"])
        assert refused.value.reason == "REPLACE_REQUIRED"
        replaced = client.guests.change(other, ["spec.firmware"], allow_replace=True).result(timeout_s=60)
        assert replaced.spec.firmware == g.FIRMWARE_UEFI
        assert "firmware='efi'" in virtd_process.virsh("dumpxml", name)
        client.guests.delete(guest_name).result(timeout_s=60)
        assert disk.exists()
    finally:
        disk.unlink()
        with contextlib.suppress(subprocess.CalledProcessError):
            virtd_process.virsh("undefine", "--nvram", name)


def test_what_waits_is_applied_by_stop_and_start(virtd_process: Virtd, client: Client) -> None:
    wanted = virtd_process.spec(boots=False)
    wanted.spec.graphics.vnc = False
    name = client.guests.create("hosts/kvm", "waiting", wanted, start=True).result(timeout_s=90).name
    change = g.Guest(name=name, spec=g.GuestSpec(watchdog=g.WatchdogSpec(), memory_bytes=48 * MIB))
    change.spec.disks.append(g.DiskSpec(name="data", cache=g.DISK_CACHE_WRITETHROUGH))
    changed = client.guests.change(change).result(timeout_s=60)
    pending = ["spec.memory_bytes", "spec.disks[data].cache", "spec.watchdog"]
    assert list(changed.status.pending_restart_fields) == pending
    client.guests.stop(name).result(timeout_s=60)
    started = client.guests.start(name).result(timeout_s=60)
    assert not started.status.pending_restart_fields
    xml = virtd_process.virsh("dumpxml", "waiting")
    assert "cache='writethrough'" in xml
    assert "i6300esb" in xml
    # Nothing in this guest lets go of a device: it is told so, and everything is as it was.
    before, record = virtd_process.virsh("dumpxml", "--inactive", "waiting"), client.guests.get(name)
    with pytest.raises(errors.FailedPrecondition) as busy:
        client.devices.detach_disk(name, "data").result(timeout_s=120)
    assert busy.value.reason == "DEVICE_BUSY"
    assert virtd_process.virsh("dumpxml", "--inactive", "waiting") == before
    assert client.guests.get(name).spec == record.spec
    assert client.guests.get(name).generation == record.generation
