"""What virtd does itself for guests of a real Xen host: snapshots and clones by copies, reset, pictures.

Through the public API.  What is on disks is compared by hash, read past virtd; and once by a guest that boots on them.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import socket
import struct
import subprocess
import time
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Literal

import pytest
from virtd_client import Client, Operation, errors

from tests.lab.daemon import FILES, MIB, XEN_CMDLINE, LabVirtd, Shell, kernel_guest, serving
from tests.lab.ssh import Ssh
from virtd.v1 import capability_pb2 as c
from virtd.v1 import guest_pb2 as g

pytestmark = [pytest.mark.lab, pytest.mark.timeout(900)]

HOST = "hosts/xen"
POOL = "virtd"
RAW, QCOW2 = g.DISK_FORMAT_RAW, g.DISK_FORMAT_QCOW2
END_S = 300.0
SIZE = 4 * MIB


@pytest.fixture(scope="module")
def virtd(lab_xen: Any) -> Iterator[LabVirtd]:
    with serving({"xen": lab_xen.uri}) as daemon:
        yield daemon


@pytest.fixture(scope="module")
def client(virtd: LabVirtd) -> Client:
    return virtd.client()


@pytest.fixture
def volumes(virtd: LabVirtd) -> Iterator[Callable[[], set[str]]]:
    """The volumes of this test; none may be left at its end."""
    before = _volumes(virtd)
    yield lambda: _volumes(virtd) - before
    assert _volumes(virtd) <= before, "volumes are left over"


def _volumes(virtd: LabVirtd) -> set[str]:
    if POOL not in virtd.virsh("xen", "pool-list", "--name").split():
        return set()
    virtd.virsh("xen", "pool-refresh", POOL)
    return {line.split()[0] for line in virtd.virsh("xen", "vol-list", POOL).splitlines() if line.strip()}


def blank(name: str, format_: int = RAW) -> g.DiskSpec:
    return g.DiskSpec(name=name, blank=g.BlankSource(capacity_bytes=SIZE, format=format_))  # type: ignore[arg-type]


def wanted(*disks: g.DiskSpec) -> g.Guest:
    guest = kernel_guest(160, kernel="vmlinux", initrd="guest-initrd.img", command_line=XEN_CMDLINE)
    guest.spec.machine = "xenpvh"
    guest.spec.disks.extend(disks)
    return guest


@contextlib.contextmanager
def made(client: Client, guest_id: str, guest: g.Guest, *, start: bool = False) -> Iterator[str]:
    name = client.guests.create(HOST, guest_id, guest, start=start).result(timeout_s=END_S).name
    try:
        yield name
    finally:
        with contextlib.suppress(errors.NotFound):
            client.guests.delete(name, force=True).result(timeout_s=END_S)


def paths(client: Client, name: str) -> dict[str, tuple[str, str]]:
    return {disk.name: (disk.path, disk.format) for disk in client.guests.get(name).status.disks}


class Disks:
    """What is on the disks of a stopped guest, past virtd."""

    def __init__(self, virtd: LabVirtd, client: Client, scratch: Path) -> None:
        self._virtd, self._client, self._scratch = virtd, client, scratch

    def write(self, name: str, content: bytes) -> None:
        """All disks."""
        raw = self._scratch / "raw"
        raw.write_bytes(content.ljust(SIZE, b"\0"))
        for path, format_ in paths(self._client, name).values():
            image = raw
            if format_ == "qcow2":
                image = self._scratch / "qcow2"
                subprocess.run(["qemu-img", "convert", "-O", "qcow2", raw, image], check=True)
            self._virtd.virsh("xen", "vol-upload", path, str(image))

    def read(self, name: str) -> list[str]:
        """The hash of what the guest would see, for each disk."""
        found = []
        for path, format_ in paths(self._client, name).values():
            image, raw = self._scratch / "down", self._scratch / "seen"
            self._virtd.virsh("xen", "vol-download", path, str(image))
            subprocess.run(["qemu-img", "convert", "-f", format_, "-O", "raw", image, raw], check=True)
            found.append(digest(raw.read_bytes()))
        return found


def digest(content: bytes) -> str:
    return hashlib.sha256(content.ljust(SIZE, b"\0")).hexdigest()


@pytest.fixture
def disks(virtd: LabVirtd, client: Client, tmp_path: Path) -> Disks:
    return Disks(virtd, client, tmp_path)


def tree(client: Client, name: str) -> dict[str, str]:
    return {item.name.rpartition("/")[2]: item.parent for item in client.snapshots.list(name)}


def test_it_is_said_to_be_emulated(client: Client) -> None:
    until(lambda: bool(client.hosts.get(HOST).facts.capabilities), "the host is not probed")
    found = {entry.id: entry for entry in client.hosts.get(HOST).facts.capabilities}
    for id_ in ("guest.snapshot", "guest.snapshot.revert", "guest.reset", "guest.clone"):
        assert found[id_].level == c.CAPABILITY_LEVEL_EMULATED
        assert "virtd" in found[id_].reason
    assert "libvirt's libxl driver has no snapshots" in found["guest.snapshot"].reason
    assert found["guest.snapshot.memory"].level == c.CAPABILITY_LEVEL_UNSUPPORTED


def test_snapshots(virtd: LabVirtd, client: Client, disks: Disks, volumes: Callable[[], set[str]]) -> None:
    """A tree of them, of a raw and a qcow2 disk; virtd is killed while one is taken, and while it is reverted."""
    content = {text: text.encode() + os.urandom(MIB) for text in ("one", "two", "three")}
    with made(client, "copies-a", wanted(blank("raw"), blank("cow", QCOW2))) as name:
        disks.write(name, content["one"])
        taken = client.snapshots.create(name, "one", description="the first").result(timeout_s=END_S)
        assert (taken.location, taken.parent, taken.description) == ("copy", "", "the first")
        assert len(volumes()) == 4
        disks.write(name, content["two"])
        operation = client.snapshots.create(name, "two")
        killed(virtd, client, operation, "snapshot")
        assert operation.result(timeout_s=END_S).parent == "one"
        assert tree(client, name) == {"one": "", "two": "one"}
        assert len(volumes()) == 6, "half a copy is left"
        disks.write(name, content["three"])
        before = paths(client, name)
        back = client.snapshots.revert(f"{name}/snapshots/one")
        killed(virtd, client, back, "revert")
        back.result(timeout_s=END_S)
        assert disks.read(name) == [digest(content["one"])] * 2
        assert client.guests.get(name).status.state == g.GUEST_STATE_STOPPED
        assert not set(paths(client, name).values()) & set(before.values())
        assert len(volumes()) == 6, "the disks of before are left, or half of the new ones"
        defined = virtd.virsh("xen", "dumpxml", "--inactive", "copies-a")
        assert all(path in defined for path, _ in paths(client, name).values())
        client.snapshots.delete(f"{name}/snapshots/one").result(timeout_s=END_S)
        assert tree(client, name) == {"two": ""}
        assert len(volumes()) == 4
        client.snapshots.revert(f"{name}/snapshots/two").result(timeout_s=END_S)
        assert disks.read(name) == [digest(content["two"])] * 2
        assert len(volumes()) == 4


def killed(virtd: LabVirtd, client: Client, operation: Operation[Any], stage: str) -> None:
    """Kill virtd in the middle of a step, and start it again."""
    until(lambda: client.operations.get(operation.name).metadata.stage == stage, f"it does not begin to {stage}", 0.02)
    virtd.kill()
    virtd.start()


def test_what_libvirt_changes_meanwhile_keeps_them(virtd: LabVirtd, client: Client, disks: Disks) -> None:
    """A guest that is defined anew, goes to the trash and comes back, still has its snapshots."""
    content = b"kept" + os.urandom(1000)
    with made(client, "copies-k", wanted(blank("raw"))) as name:
        disks.write(name, content)
        client.snapshots.create(name, "s").result(timeout_s=END_S)
        changed = g.Guest(name=name, spec=g.GuestSpec(memory_bytes=128 * MIB))
        client.guests.change(changed, ["spec.memory_bytes"]).result(timeout_s=END_S)
        disks.write(name, b"other")
        client.guests.delete(name, disk_policy="trash").result(timeout_s=END_S)
        (entry,) = [entry for entry in client.trash.list() if entry.guest.name == name]
        client.trash.recover(entry.name).result(timeout_s=END_S)
        assert tree(client, name) == {"s": ""}
        client.snapshots.revert(f"{name}/snapshots/s").result(timeout_s=END_S)
        assert disks.read(name) == [digest(content)]
        assert client.guests.get(name).spec.memory_bytes == 128 * MIB, "only disks are reverted"


def test_clones(client: Client, disks: Disks, volumes: Callable[[], set[str]]) -> None:
    """A full one, made by the host itself, and a linked one."""
    content = b"cloned" + os.urandom(MIB)
    with made(client, "copies-s", wanted(blank("cow", QCOW2))) as source:
        disks.write(source, content)
        with cloned(client, source, "copies-c", "full") as twin:
            assert disks.read(twin) == [digest(content)]
            disks.write(twin, b"its own")
            assert disks.read(source) == [digest(content)]
        assert len(volumes()) == 1
        with cloned(client, source, "copies-l", "linked") as twin:
            assert len(volumes()) == 3
            shared = {disk.path for guest in (source, twin) for disk in client.guests.get(guest).status.disks}
            assert len(shared) == 2


@contextlib.contextmanager
def cloned(client: Client, source: str, guest_id: str, mode: Literal["full", "linked"]) -> Iterator[str]:
    name = f"{HOST}/guests/{guest_id}"
    client.guests.clone(source, guest_id, mode=mode).result(timeout_s=END_S)
    try:
        yield name
    finally:
        client.guests.delete(name, force=True).result(timeout_s=END_S)


def test_a_guest_boots_on_what_was_reverted(virtd: LabVirtd, client: Client, disks: Disks) -> None:
    """It sees what was on its disk; while it runs, snapshots and reverts are refused, deletions are not; reset."""
    with made(client, "copies-b", wanted(blank("raw"))) as name:
        disks.write(name, b"first\n")
        client.snapshots.create(name, "s").result(timeout_s=END_S)
        disks.write(name, b"second\n")
        client.snapshots.revert(f"{name}/snapshots/s").result(timeout_s=END_S)
        client.guests.start(name).result(timeout_s=END_S)
        with pytest.raises(errors.FailedPrecondition, match="virtd copies the disks of a stopped guest"):
            client.snapshots.create(name, "t")
        with pytest.raises(errors.FailedPrecondition, match="stop it first"):
            client.snapshots.revert(f"{name}/snapshots/s")
        with pytest.raises(errors.Unsupported, match="suspend the guest to keep its memory"):
            client.snapshots.create(name, "t", memory=True)
        shell = Shell(client, name)
        shell.wait("GUEST-READY")
        assert shell.run("head -n 1 /dev/xvda") == "first"
        client.snapshots.delete(f"{name}/snapshots/s").result(timeout_s=END_S)
        read = "echo 3 >/proc/sys/vm/drop_caches; head -n 1 /dev/xvda"
        assert shell.run(read) == "first", "the running guest needs the copy"
        domain = virtd.virsh("xen", "domid", "copies-b")
        reset = client.guests.reset(name)
        reset.result(timeout_s=END_S)
        assert "virtd cuts the guest's power and starts it" in [note.message for note in reset.metadata.notes]
        assert client.guests.get(name).status.state == g.GUEST_STATE_RUNNING
        assert virtd.virsh("xen", "domid", "copies-b") != domain, "it runs on"


def until(check: Callable[[], bool], what: str, every_s: float = 0.5) -> None:
    deadline = time.monotonic() + END_S
    while not check():
        assert time.monotonic() < deadline, what
        time.sleep(every_s)


def test_a_picture_of_an_hvm_guest(lab_xen: Any, client: Client) -> None:
    """By its VNC display, whose port is brought here as a network would; else nobody answers."""
    image = g.HostFileSource(path=f"{FILES}/hvm.img", format=RAW)
    guest = g.Guest(spec=g.GuestSpec(memory_bytes=64 * MIB, machine="xenfv"))
    guest.spec.disks.append(g.DiskSpec(name="root", host_file=image, read_only=False))
    guest.spec.graphics.vnc = True
    guest.spec.graphics.listen = "0.0.0.0"
    with made(client, "copies-v", guest, start=True) as name:
        Shell(client, name).wait("GUEST-READY")
        port = int(client.guests.get(name).status.graphics_address.rpartition(":")[2])
        with pytest.raises(errors.Unavailable, match="nobody answers"):
            client.console.screenshot(name)
        with forwarded(lab_xen, port):
            shot = client.console.screenshot(name)
        assert shot.mime_type == "image/png"
        width, height, rows = pixels_of(shot.data)
        assert width >= 640
        assert height >= 350
        written = [index for index, row in enumerate(rows) if len(row) > 1]
        assert len(written) >= 12, "no line of text is on it"
        assert len(written) < height, "it is no text on a screen"


def pixels_of(png: bytes) -> tuple[int, int, list[set[bytes]]]:
    """Width and height of a PNG without filters, as virtd makes them, and the colours in each row."""
    assert png.startswith(b"\x89PNG\r\n\x1a\n")
    width, height = struct.unpack(">II", png[16:24])
    content, offset = b"", 8
    while offset < len(png):
        (length,) = struct.unpack(">I", png[offset : offset + 4])
        if png[offset + 4 : offset + 8] == b"IDAT":
            content += png[offset + 8 : offset + 8 + length]
        offset += 12 + length
    raw, stride = zlib.decompress(content), 3 * width + 1
    assert len(raw) == stride * height
    rows = [raw[stride * row + 1 : stride * (row + 1)] for row in range(height)]
    return width, height, [{row[index : index + 3] for index in range(0, len(row), 3)} for row in rows]


@contextlib.contextmanager
def forwarded(host: Any, port: int) -> Iterator[None]:
    """A port of the host, on this machine."""
    *command, target = Ssh(host.name, host.ssh_port, host.ssh_key).command(30)
    command += ["-N", "-oExitOnForwardFailure=yes", f"-L127.0.0.1:{port}:127.0.0.1:{port}", target]
    process = subprocess.Popen(command, stdin=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + 30
        while not _listens(port):
            assert process.poll() is None, "ssh does not forward"
            assert time.monotonic() < deadline, "ssh does not forward"
            time.sleep(0.2)
        yield
    finally:
        process.terminate()
        process.wait(10)


def _listens(port: int) -> bool:
    """Without connecting to it, which a display would see."""
    with contextlib.closing(socket.socket()) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return True
        return False
