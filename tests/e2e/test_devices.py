"""Everything that a guest can have, seen from inside a real guest and from libvirt, through the public API."""

from __future__ import annotations

import contextlib
import shutil
import socket
import time
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from xml.etree import ElementTree as ET

import pytest
from virtd_client import Client, errors

from tests.e2e.conftest import MIB, Virtd
from virtd.v1.guest_pb2 import (
    CLOCK_BASE_LOCALTIME,
    DISK_BUS_IDE,
    DISK_BUS_SCSI,
    DISK_CACHE_WRITETHROUGH,
    DISK_DEVICE_CDROM,
    DISK_FORMAT_QCOW2,
    DISK_FORMAT_RAW,
    FILESYSTEM_KIND_P9,
    FIRMWARE_UEFI,
    GUEST_STATE_PAUSED,
    LINK_STATE_DOWN,
    NUMA_POLICY_INTERLEAVE,
    SOUND_MODEL_ICH9,
    WATCHDOG_ACTION_PAUSE,
    WATCHDOG_MODEL_ITCO,
    BlankSource,
    CpuSpec,
    CpuTopology,
    DiskSpec,
    FilesystemSpec,
    GraphicsSpec,
    Guest,
    GuestSpec,
    HostDeviceSpec,
    HostFileSource,
    InterfaceSpec,
    IoTune,
    MemorySpec,
    NumaNode,
    NumaSpec,
    PortForward,
    SoundSpec,
    TpmSpec,
    UsbHostDevice,
    UsbSpec,
    VcpuPin,
    WatchdogSpec,
)

pytestmark = [pytest.mark.qemu, pytest.mark.timeout(300)]

READY = b"demo: ready"
BOOT_S = 180.0
CD_TEXT = b"what is on the disc"


@dataclass
class Inside:
    """A guest that has booted, and a shell in it."""

    client: Client
    name: str
    virtd: Virtd
    port: int
    share: Path

    def sh(self, script: str) -> str:
        done = self.client.agent.exec(self.name, "/bin/sh", ["-c", script], timeout_s=60)
        assert done.exit_code == 0, f"{script}: {done.stdout!r} {done.stderr!r}"
        return done.stdout.decode().strip()

    def pci(self) -> set[str]:
        script = "for d in /sys/bus/pci/devices/*; do echo $(cat $d/vendor):$(cat $d/device); done"
        return set(self.sh(script).split())

    def xml(self) -> ET.Element:
        return ET.fromstring(self.virtd.virsh("dumpxml", self.name.rpartition("/")[2]))


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def eventually(what: Callable[[], Any], timeout_s: float = 60.0) -> Any:
    """Wait until it gives something and does not fail; then return that."""
    deadline = time.monotonic() + timeout_s
    while True:
        failure: object = "it gave nothing"
        try:
            if found := what():
                return found
        except (errors.VirtdError, OSError) as error:
            failure = error
        assert time.monotonic() < deadline, f"not within {timeout_s:g} s: {failure}"
        time.sleep(0.2)


def files(virtd: Virtd) -> Path:
    directory = virtd.directory / "import"
    directory.mkdir(exist_ok=True)
    return directory


@pytest.fixture(scope="module")
def full(virtd_process: Virtd) -> Iterator[Guest]:
    """A guest with everything that the demo guest's kernel can show."""
    virtd, port = virtd_process, free_port()
    share = files(virtd) / "share"
    share.mkdir()
    (share / "from-host").write_text("hello")
    disc = files(virtd) / "disc.iso"
    disc.write_bytes(CD_TEXT.ljust(64 * 1024, b"\0"))
    guest = virtd.spec()
    spec = guest.spec
    spec.vcpus, spec.max_vcpus = 2, 4
    spec.memory_bytes, spec.max_memory_bytes = 224 * MIB, 256 * MIB
    spec.cpu.CopyFrom(
        CpuSpec(
            topology=CpuTopology(sockets=2, cores=2, threads=1),
            model="maximum",
            pins=[VcpuPin(vcpu=0, host_cpus="0"), VcpuPin(vcpu=1, host_cpus="0")],
            emulator_host_cpus="0",
        )
    )
    del spec.disks[:]
    spec.disks.extend(
        [
            DiskSpec(
                name="data",
                blank=BlankSource(capacity_bytes=16 * MIB),
                cache=DISK_CACHE_WRITETHROUGH,
                io_tune=IoTune(read_bytes_per_s=64 * MIB, total_requests_per_s=5000),
                discard=True,
                serial="DATA-1",
            ),
            DiskSpec(name="more", blank=BlankSource(capacity_bytes=8 * MIB), bus=DISK_BUS_SCSI, serial="MORE_2"),
            DiskSpec(
                name="disc",
                device=DISK_DEVICE_CDROM,
                host_file=HostFileSource(path=str(disc), format=DISK_FORMAT_RAW),
            ),
            DiskSpec(name="empty", device=DISK_DEVICE_CDROM),
        ]
    )
    spec.interfaces[0].port_forwards.append(PortForward(host_port=port, guest_port=80))
    spec.interfaces.append(InterfaceSpec(name="net1", model="virtio", link_state=LINK_STATE_DOWN))
    spec.filesystems.extend(
        [
            FilesystemSpec(name="share", path=str(share)),
            FilesystemSpec(name="nine", path=str(share), kind=FILESYSTEM_KIND_P9, read_only=True),
        ]
    )
    spec.graphics.CopyFrom(GraphicsSpec(vnc=True, video_model="virtio"))
    spec.tpm.CopyFrom(TpmSpec())
    spec.watchdog.CopyFrom(WatchdogSpec(action=WATCHDOG_ACTION_PAUSE))
    spec.usb.CopyFrom(UsbSpec(tablet=True, keyboard=True))
    spec.sound.CopyFrom(SoundSpec(model=SOUND_MODEL_ICH9))
    spec.clock = CLOCK_BASE_LOCALTIME
    with Client.connect(virtd.target, timeout_s=60) as client:
        made = client.guests.create("hosts/kvm", "full", guest, start=True).result(timeout_s=BOOT_S)
        eventually(lambda: client.agent.exec(made.name, "/bin/true").exit_code == 0, BOOT_S)
        yield client.guests.get(made.name)
        with contextlib.suppress(errors.NotFound):  # a test that cleans up after itself may have been the last
            client.guests.delete(made.name, force=True).result(timeout_s=60)


@pytest.fixture
def inside(virtd_process: Virtd, full: Guest) -> Inside:
    client = virtd_process.client()
    port = full.spec.interfaces[0].port_forwards[0].host_port
    return Inside(client, full.name, virtd_process, port, files(virtd_process) / "share")


def test_cpus_and_memory(inside: Inside, full: Guest) -> None:
    assert inside.sh("nproc") == "2"
    assert inside.sh("cat /sys/devices/system/cpu/possible") == "0-3"
    # Two of four are on, and both are cores of the first socket.
    assert inside.sh("cat /sys/devices/system/cpu/cpu0/topology/core_siblings_list") == "0-1"
    assert "cpu cores\t: 2" in inside.sh("cat /proc/cpuinfo")
    assert 150 * 1024 < int(inside.sh("awk '/MemTotal/ {print $2}' /proc/meminfo")) <= 256 * 1024
    status = inside.client.guests.get(full.name).status
    assert status.vcpus == 2
    assert 0 < status.memory_bytes <= 256 * MIB
    assert not status.unmodelled
    xml = inside.xml()
    assert xml.findtext("memory") == str(256 * 1024)
    assert "0" in inside.virtd.virsh("vcpupin", "full", "--vcpu", "1").split()[-1:]
    assert inside.virtd.virsh("emulatorpin", "full").split()[-1] == "0"


def test_disks_and_discs(inside: Inside, full: Guest) -> None:
    assert inside.sh("cat /sys/block/vda/serial") == "DATA-1"
    assert int(inside.sh("cat /sys/block/vda/size")) * 512 == 16 * MIB
    assert inside.sh("cat /sys/block/sda/size") == str(8 * MIB // 512)
    assert "MORE_2" in inside.sh("tr -c 'A-Za-z0-9_' ' ' </sys/block/sda/device/vpd_pg80")
    # Which of the two drives Linux finds first is chance.
    read = {inside.sh(f"head -c {len(CD_TEXT)} /dev/sr{n} 2>/dev/null || echo none") for n in (0, 1)}
    assert read == {CD_TEXT.decode(), "none"}
    root = inside.xml()
    disk = root.find("devices/disk[serial='DATA-1']")
    assert disk is not None
    driver = disk.find("driver")
    assert driver is not None
    assert (driver.get("cache"), driver.get("discard")) == ("writethrough", "unmap")
    assert disk.findtext("iotune/read_bytes_sec") == str(64 * MIB)
    assert disk.findtext("iotune/total_iops_sec") == "5000"
    devices = {disk.name: disk for disk in full.status.disks}
    assert (devices["empty"].path, devices["empty"].device) == ("", DISK_DEVICE_CDROM)


def test_a_share_by_virtiofs_in_both_directions(inside: Inside) -> None:
    inside.sh("mkdir -p /mnt/share && mount -t virtiofs share /mnt/share")
    assert inside.sh("cat /mnt/share/from-host") == "hello"
    inside.sh("echo from the guest >/mnt/share/from-guest; sync")
    assert (inside.share / "from-guest").read_text() == "from the guest\n"
    # Shared memory is what it needs; the spec did not ask for it.
    access = inside.xml().find("memoryBacking/access")
    assert access is not None
    assert access.get("mode") == "shared"


def test_devices_that_the_guest_sees(inside: Inside) -> None:
    found = inside.pci()
    for device, what in {
        "0x1af4:0x1049": "9p, over virtio",
        "0x1af4:0x105a": "virtiofs",
        "0x1af4:0x1050": "the virtio video card",
        "0x1af4:0x1045": "the balloon",
        "0x8086:0x25ab": "the watchdog",
        "0x8086:0x293e": "ICH9's sound",
        "0x1b36:0x000d": "the USB controller",
    }.items():
        assert device in found, f"{what} is not there: {sorted(found)}"
    assert "virtio_rng" in inside.sh("cat /sys/class/misc/hw_random/rng_available")
    assert inside.sh("cat /sys/class/tpm/tpm0/tpm_version_major") == "2"
    # A real answer of the TPM: its register of the firmware's measurements has been written to.
    assert inside.sh("cat /sys/class/tpm/tpm0/pcr-sha256/0").strip("0") != ""
    devices = inside.xml().find("devices")
    assert devices is not None
    assert {(found.get("type"), found.get("bus")) for found in devices.findall("input")} >= {
        ("tablet", "usb"),
        ("keyboard", "usb"),
    }
    tag = devices.find("filesystem/target[@dir='nine']")
    assert tag is not None
    assert inside.xml().find("clock").get("offset") == "localtime"  # type: ignore[union-attr]  # it is there


def test_a_forwarded_port_and_a_pulled_cable(inside: Inside, full: Guest) -> None:
    def answer() -> bytes:
        with urllib.request.urlopen(f"http://127.0.0.1:{inside.port}/", timeout=5) as reply:
            data: bytes = reply.read()
            return data

    assert b"<h1>demo</h1>" in eventually(answer)
    assert inside.sh("ip link set eth1 up; sleep 1; cat /sys/class/net/eth1/carrier") == "0"
    assert inside.sh("cat /sys/class/net/eth0/carrier") == "1"
    found = {interface.name: interface for interface in full.status.interfaces}
    assert found["net1"].link_state == LINK_STATE_DOWN
    # The port is taken now: another guest that wants it is told so, and is not left half made.
    other = inside.virtd.spec(boots=False, disk=False)
    other.spec.interfaces.append(
        InterfaceSpec(name="net0", port_forwards=[PortForward(host_port=inside.port, guest_port=80)])
    )
    with pytest.raises(errors.VirtdError) as refused:
        inside.client.guests.create("hosts/kvm", "greedy", other, start=True).result(timeout_s=60)
    assert str(inside.port) in str(refused.value), refused.value
    assert "greedy" not in inside.virtd.virsh("list", "--all", "--name").split()


def test_the_spec_is_read_back_from_libvirt(inside: Inside, full: Guest) -> None:
    """What a stranger's guest like this one would look like: the same spec, from the XML alone."""
    client = inside.client
    xml = inside.virtd.directory / "twin.xml"
    text = inside.virtd.virsh("dumpxml", "full", "--inactive")
    uid = "11111111-2222-4333-8444-0000000000aa"
    text = text.replace("<name>full</name>", "<name>twin</name>").replace(full.uid, uid).replace("52:54:00", "52:54:01")
    xml.write_text(text)
    inside.virtd.virsh("define", str(xml))
    try:
        twin = eventually(lambda: [g for g in client.guests.list().guests if g.uid == uid and g.spec.vcpus])[0]
        found, wanted = twin.spec, full.spec
        for field in ("vcpus", "max_vcpus", "memory_bytes", "max_memory_bytes", "watchdog", "usb", "sound", "clock"):
            assert getattr(found, field) == getattr(wanted, field), field
        for field in ("filesystems", "rng", "secure_boot", "serial_console", "guest_agent", "firmware", "cpu"):
            assert getattr(found, field) == getattr(wanted, field), field
        assert [next(iter(entry.port_forwards)).host_port for entry in found.interfaces if entry.port_forwards] == [
            inside.port
        ]
        assert not twin.status.unmodelled
        by_serial = {disk.serial: disk for disk in found.disks}
        assert by_serial["DATA-1"].io_tune == wanted.disks[0].io_tune
        assert by_serial["DATA-1"].discard
    finally:
        inside.virtd.virsh("undefine", "twin", "--nvram", "--keep-tpm")


# The registers of Intel's 6300ESB: the demo guest's kernel has no driver for it, so the shell is one.
BITE = r"""
for device in /sys/bus/pci/devices/*; do
    [ "$(cat $device/vendor):$(cat $device/device)" = 0x8086:0x25ab ] && break
done
echo 1 >$device/enable
base=$(head -n 1 $device/resource | cut -d' ' -f1)
put() { devmem $((base + $1)) $2 $3; }
unlock() { put 12 16 0x80; put 12 16 0x86; }
unlock; put 0 32 0x10
unlock; put 4 32 0x10
printf '\002' | dd of=$device/config bs=1 seek=104 conv=notrunc 2>/dev/null
unlock; put 12 16 0x100
"""


def test_a_watchdog_that_nobody_feeds(inside: Inside, full: Guest) -> None:
    """Last in this module's order of the full guest: it pauses it."""
    client = inside.client
    token = client.events.pull().resume_token
    with contextlib.suppress(errors.VirtdError):
        client.agent.exec(full.name, "/bin/sh", ["-c", BITE], timeout_s=5)
    client.guests.wait(full.name, state="paused", timeout_s=30)
    status = client.guests.get(full.name).status
    assert (status.state, status.state_reason) == (GUEST_STATE_PAUSED, "WATCHDOG")
    seen = client.events.pull(resume_token=token, filter=f"type=GUEST_WATCHDOG AND uid={full.uid}", wait_s=10).events
    assert [dict(event.attributes)["action"] for event in seen] == ["PAUSE"]
    client.guests.resume(full.name).result(timeout_s=30)


# ------------------------------------------------------------------------------------------ firmware


def demo_disk(virtd: Virtd, name: str) -> DiskSpec:
    """The demo guest as a disk of its own: its GRUB is not signed by anybody."""
    path = files(virtd) / f"{name}.qcow2"
    shutil.copyfile(virtd.guest.disk, path)
    return DiskSpec(name="root", host_file=HostFileSource(path=str(path), format=DISK_FORMAT_QCOW2))


def test_a_uefi_guest_boots_and_with_secure_boot_it_refuses_what_is_not_signed(virtd: Virtd) -> None:
    client = virtd.client()
    names = {}
    for label, secure in (("open", False), ("secure", True)):
        spec = GuestSpec(memory_bytes=256 * MIB, firmware=FIRMWARE_UEFI, secure_boot=secure)
        spec.disks.append(demo_disk(virtd, label))
        names[label] = client.guests.create("hosts/kvm", label, Guest(spec=spec), start=True).result(timeout_s=90).name
    said = dict.fromkeys(names, b"")

    def both() -> bool:
        for label, name in names.items():
            said[label] = client.console.read_log(name, max_bytes=200_000).data
        return READY in said["open"] and b"Access Denied" in said["secure"]

    try:
        eventually(both, 240.0)
    finally:
        for label, text in said.items():
            print(label, text[-400:])
    assert READY not in said["secure"]
    loader = ET.fromstring(virtd.virsh("dumpxml", "secure")).find("os/loader")
    assert loader is not None
    assert loader.get("secure") == "yes"
    secure = client.guests.get(names["secure"])
    assert secure.spec.secure_boot
    assert not secure.status.unmodelled


# ------------------------------------------------------------------- what needs no system in the guest


def test_numa_and_shared_memory_reach_libvirt(virtd: Virtd) -> None:
    guest = virtd.spec(boots=False, disk=False)
    guest.spec.vcpus, guest.spec.memory_bytes = 2, 64 * MIB
    guest.spec.numa.CopyFrom(
        NumaSpec(
            nodes=[NumaNode(vcpus=str(n), memory_bytes=32 * MIB, host_nodes="0") for n in (0, 1)],
            policy=NUMA_POLICY_INTERLEAVE,
        )
    )
    guest.spec.memory.CopyFrom(MemorySpec(shared=True))
    client = virtd.client()
    made = client.guests.create("hosts/kvm", "numa", guest, start=True).result(timeout_s=90)
    assert "interleave" in virtd.virsh("numatune", "numa")
    cells = ET.fromstring(virtd.virsh("dumpxml", "numa")).findall("cpu/numa/cell")
    assert [(cell.get("cpus"), cell.get("memory")) for cell in cells] == [("0", "32768"), ("1", "32768")]
    access = ET.fromstring(virtd.virsh("dumpxml", "numa")).find("memoryBacking/access")
    assert access is not None
    assert access.get("mode") == "shared"
    assert made.spec.numa == guest.spec.numa
    assert client.guests.get(made.name).status.vcpus == 2


REFUSED: list[tuple[GuestSpec, str, str]] = [
    (GuestSpec(cpu=CpuSpec(model="host-passthrough")), "cpu.model", "maximum"),
    (GuestSpec(cpu=CpuSpec(model="host-model")), "cpu.model", "maximum"),
    (GuestSpec(cpu=CpuSpec(model="Cray-1")), "cpu.model", "maximum"),
    (GuestSpec(cpu=CpuSpec(nested=False)), "cpu.nested", "true"),
    (GuestSpec(cpu=CpuSpec(pins=[VcpuPin(vcpu=0, host_cpus="4095")])), "cpu.pins[0].host_cpus", ""),
    (GuestSpec(firmware=FIRMWARE_UEFI, secure_boot=True, machine="pc"), "secure_boot", "false"),
    (GuestSpec(watchdog=WatchdogSpec(model=WATCHDOG_MODEL_ITCO)), "watchdog.model", "I6300ESB"),
    (GuestSpec(memory=MemorySpec(hugepage_bytes=2**31)), "memory.hugepage_bytes", ""),
    (GuestSpec(graphics=GraphicsSpec(video_model="voodoo")), "graphics.video_model", "virtio"),
    (
        GuestSpec(disks=[DiskSpec(name="a", blank=BlankSource(capacity_bytes=MIB), bus=DISK_BUS_IDE)]),
        "disks[0].bus",
        "VIRTIO",
    ),
    (GuestSpec(interfaces=[InterfaceSpec(name="a", mtu=1400)]), "interfaces[0].mtu", "NETWORK"),
    (
        GuestSpec(host_devices=[HostDeviceSpec(name="a", usb=UsbHostDevice(vendor_id=65535, product_id=1))]),
        "host_devices[0].usb",
        "",
    ),
]


@pytest.mark.parametrize(("spec", "field", "alternative"), REFUSED, ids=[row[1] for row in REFUSED])
def test_what_this_host_cannot_do_is_refused_before_anything_is_made(
    virtd: Virtd, spec: GuestSpec, field: str, alternative: str
) -> None:
    client = virtd.client()
    wanted = Guest()
    wanted.CopyFrom(Guest(spec=spec))
    wanted.spec.memory_bytes = wanted.spec.memory_bytes or 32 * MIB
    before = virtd.virsh("list", "--all", "--uuid")
    with pytest.raises(errors.VirtdError) as refused:
        client.guests.create("hosts/kvm", "never", wanted)
    found = {violation.field: violation for violation in refused.value.violations}
    assert f"guest.spec.{field}" in found, found
    assert not alternative or alternative in found[f"guest.spec.{field}"].alternatives
    assert virtd.virsh("list", "--all", "--uuid") == before
