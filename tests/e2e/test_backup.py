"""Backups on real QEMU through the public API: what is restored is what was there at that moment."""

from __future__ import annotations

import contextlib
import hashlib
import os
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from virtd_client import Client, Operation, errors

from tests.e2e.conftest import MIB, Virtd
from tests.e2e.demo import qemu_pid
from virtd.v1.backup_pb2 import BACKUP_KIND_FULL, BACKUP_KIND_INCREMENTAL, Backup
from virtd.v1.guest_pb2 import DISK_FORMAT_RAW, GUEST_STATE_RUNNING, GUEST_STATE_STOPPED, BlankSource, DiskSpec
from virtd.v1.operation_pb2 import OPERATION_STATE_PENDING, OPERATION_STATE_RUNNING

pytestmark = pytest.mark.qemu

GUEST = "hosts/kvm/guests/"
CHUNK = 2**20
BIG = 640 * MIB


@pytest.fixture
def client(virtd: Virtd) -> Iterator[Client]:
    """A client; every backup that a test leaves is deleted."""
    client = virtd.client()
    yield client
    for backup in client.backups.list():
        with contextlib.suppress(errors.NotFound):
            client.backups.delete(backup.name, with_increments=True).result(timeout_s=60)


def booted(virtd: Virtd, client: Client, name: str) -> str:
    spec = virtd.spec(disk=False)
    spec.spec.disks.append(DiskSpec(name="data", blank=BlankSource(capacity_bytes=32 * MIB)))
    client.guests.create("hosts/kvm", name, spec, start=True).result(timeout_s=120)
    client.guests.wait(GUEST + name, condition="agent-ready", timeout_s=120)
    return GUEST + name


def inside(client: Client, guest: str, command: str) -> str:
    done = client.agent.exec(guest, "/bin/sh", ["-c", command], timeout_s=60)
    assert done.exit_code == 0, (command, done.stdout, done.stderr)
    return done.stdout.decode().strip()


def fill(client: Client, guest: str, seek_mib: int, mib: int) -> str:
    """Random bytes somewhere on the data disk; the sha256 of the whole disk after that, as the guest sees it."""
    inside(client, guest, f"dd if=/dev/urandom of=/dev/vda bs=1M seek={seek_mib} count={mib} conv=notrunc && sync")
    return inside(client, guest, "sha256sum /dev/vda").split()[0]


def content_of(path: str) -> bytes:
    """A disk's content, read from outside."""
    raw = Path(path).with_suffix(".checked")
    try:
        subprocess.run(["qemu-img", "convert", "-f", "qcow2", "-O", "raw", path, str(raw)], check=True)
        return raw.read_bytes()
    finally:
        raw.unlink(missing_ok=True)


def hash_of(path: str) -> str:
    """The sha256 of a disk's content."""
    return hashlib.sha256(content_of(path)).hexdigest()


def disk_path(client: Client, guest: str) -> str:
    (path,) = [disk.path for disk in client.guests.get(guest).status.disks if disk.name == "data"]
    return path


def nothing_left(virtd: Virtd, client: Client, guest: str) -> None:
    """No job, no scratch file, no socket, no part of a backup, no helper process."""
    folder = Path(disk_path(client, guest)).parent
    assert [entry.name for entry in folder.iterdir() if "scratch" in entry.name] == []
    assert list((virtd.directory / "hosts" / "kvm" / "nbd").glob("*/*")) == []
    repository = virtd.directory / "backups"
    if repository.exists():
        assert [entry.name for entry in repository.iterdir() if entry.name.startswith(".")] == []
    assert not any(str(folder).encode() in command for command in nbd_processes())


def nbd_processes() -> list[bytes]:
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal():
            with contextlib.suppress(OSError):
                command = (entry / "cmdline").read_bytes()
                if command.startswith(b"qemu-nbd"):
                    found.append(command)
    return found


@pytest.mark.timeout(400)
def test_a_chain_restores_what_the_disk_was_at_each_moment(virtd: Virtd, client: Client) -> None:
    guest = booted(virtd, client, "source")
    digests = []
    for number, (seek, mib) in enumerate([(1, 6), (4, 2), (20, 1)]):
        digests.append(fill(client, guest, seek, mib))
        operation = client.backups.create(guest, f"b{number}", kind="auto")
        made = operation.result(timeout_s=120)
        assert made.kind == (BACKUP_KIND_INCREMENTAL if number else BACKUP_KIND_FULL)
        assert list(operation.metadata.warnings) == []
    assert client.guests.get(guest).status.state == GUEST_STATE_RUNNING
    stored = [backup.stored_bytes for backup in client.backups.list(guest)]
    assert stored[0] > 6 * MIB
    assert 2 * MIB <= stored[1] < 3 * MIB, "an increment holds what was changed, and no more"
    assert 1 * MIB <= stored[2] < 2 * MIB
    assert len(virtd.virsh("checkpoint-list", "source", "--name").split()) == 1, "older checkpoints are pruned"
    nothing_left(virtd, client, guest)
    fill(client, guest, 0, 8)  # the source goes on
    for number, digest in enumerate(digests):
        restored = client.backups.restore(f"backups/b{number}", f"r{number}").result(timeout_s=120)
        assert restored.status.state == GUEST_STATE_STOPPED
        assert restored.uid != client.guests.get(guest).uid
        assert restored.spec.interfaces[0].mac != client.guests.get(guest).spec.interfaces[0].mac
        assert hash_of(disk_path(client, restored.name)) == digest
    # One is booted, and says itself what is on its disk.
    client.guests.stop(guest).result(timeout_s=60)
    client.guests.start(GUEST + "r2").result(timeout_s=60)
    client.guests.wait(GUEST + "r2", condition="agent-ready", timeout_s=120)
    assert inside(client, GUEST + "r2", "sha256sum /dev/vda").split()[0] == digests[2]
    client.guests.stop(GUEST + "r2").result(timeout_s=60)

    # The stopped source: an increment since the last checkpoint, by the bitmap in its image.
    now = hash_of(disk_path(client, guest))
    made = client.backups.create(guest, "b3", kind="incremental").result(timeout_s=120)
    assert (made.kind, made.parent, made.guest_state) == (BACKUP_KIND_INCREMENTAL, "backups/b2", "STOPPED")
    assert 8 * MIB <= made.stored_bytes < 9 * MIB
    client.backups.restore("backups/b3", "r3").result(timeout_s=120)
    assert hash_of(disk_path(client, GUEST + "r3")) == now
    nothing_left(virtd, client, guest)
    # It starts, and what it changes then is the next increment.
    client.guests.start(guest).result(timeout_s=60)
    client.guests.wait(guest, condition="agent-ready", timeout_s=120)
    digest = fill(client, guest, 30, 1)
    made = client.backups.create(guest, "b4", kind="incremental").result(timeout_s=120)
    assert 1 * MIB <= made.stored_bytes < 2 * MIB
    assert client.backups.verify("backups/b4").result(timeout_s=120).valid
    client.backups.restore("backups/b4", "r4").result(timeout_s=120)
    assert hash_of(disk_path(client, GUEST + "r4")) == digest

    # A file in the middle is damaged.
    data = virtd.directory / "backups" / "b1" / "disk0.data"
    content = bytearray(data.read_bytes())
    content[CHUNK] ^= 0xFF
    data.write_bytes(content)
    found = client.backups.verify("backups/b4").result(timeout_s=120)
    assert not found.valid
    assert [(problem.backup, problem.file) for problem in found.problems] == [("backups/b1", "disk0.data")]
    with pytest.raises(errors.FailedPrecondition) as refused:
        client.backups.restore("backups/b4", "r5").result(timeout_s=120)
    assert refused.value.reason == "BACKUP_DAMAGED"
    assert "backups/b1 disk0.data" in str(refused.value)
    with pytest.raises(errors.NotFound):
        client.guests.get(GUEST + "r5")
    operation = client.backups.create(guest, "b5", kind="auto")
    assert operation.result(timeout_s=120).kind == BACKUP_KIND_FULL
    assert any("backups/b1 is damaged" in warning for warning in operation.metadata.warnings)

    # What the guest has not written out yet is in a quiesced backup, and the guest goes on.
    mount = "mkdir -p /mnt; mke2fs /dev/vda >/dev/null 2>&1; modprobe ext4 2>/dev/null; mount -t ext4 /dev/vda /mnt"
    inside(client, guest, f"{mount} && sync && echo not-written-out >/mnt/file")
    made = client.backups.create(guest, "quiesced", quiesce=True).result(timeout_s=120)
    assert made.quiesced
    inside(client, guest, "echo thawed >/mnt/more && umount /mnt")
    client.backups.restore("backups/quiesced", "rq").result(timeout_s=120)
    assert b"not-written-out" in content_of(disk_path(client, GUEST + "rq"))

    # Its QEMU is killed: the record of changes is lost, and that is noticed.
    os.kill(qemu_pid(client.guests.get(guest).uid), signal.SIGKILL)
    client.guests.wait(guest, state="crashed", timeout_s=30)
    client.guests.start(guest).result(timeout_s=60)
    with pytest.raises(errors.FailedPrecondition) as broken:
        client.backups.create(guest, "b6", kind="incremental").result(timeout_s=120)
    assert broken.value.reason == "BACKUP_CHAIN_BROKEN"
    operation = client.backups.create(guest, "b6", kind="auto")
    assert operation.result(timeout_s=120).kind == BACKUP_KIND_FULL
    assert any("record of changes is lost" in warning for warning in operation.metadata.warnings)
    nothing_left(virtd, client, guest)
    # Guests with checkpoints can be deleted.
    client.guests.delete(guest, force=True).result(timeout_s=60)
    assert client.backups.list(guest)[-1].name == "backups/b6"


def slow(virtd: Virtd, client: Client, name: str) -> str:
    """A running guest without a system, whose backup takes a while: its second disk is large and full."""
    spec = virtd.spec(boots=False, disk=False)
    spec.spec.disks.append(DiskSpec(name="data", blank=BlankSource(capacity_bytes=16 * MIB)))
    big = BlankSource(capacity_bytes=BIG, format=DISK_FORMAT_RAW)
    spec.spec.disks.append(DiskSpec(name="big", blank=big))
    guest = client.guests.create("hosts/kvm", name, spec).result(timeout_s=90)
    (path,) = [disk.path for disk in guest.status.disks if disk.name == "big"]
    piece = os.urandom(8 * MIB)
    with Path(path).open("r+b") as file:
        file.writelines(piece for _ in range(BIG // len(piece)))
    client.guests.start(GUEST + name).result(timeout_s=60)
    return GUEST + name


def at_work(client: Client, guest: str, backup: str) -> Operation[Backup]:
    """A backup in its middle."""
    operation = client.backups.create(guest, backup)
    deadline = time.monotonic() + 60
    while True:
        metadata = client.operations.get(operation.name).metadata
        assert metadata.state in (OPERATION_STATE_PENDING, OPERATION_STATE_RUNNING), "it was too quick for this test"
        if metadata.stage == "copy" and metadata.bytes_done:
            assert metadata.bytes_total >= BIG
            return operation
        assert time.monotonic() < deadline
        time.sleep(0.01)


@pytest.mark.timeout(300)
def test_a_backup_that_is_ended_in_the_middle_leaves_nothing(virtd: Virtd, client: Client) -> None:
    guest = slow(virtd, client, "slow")

    operation = at_work(client, guest, "cancelled")
    operation.cancel()
    with pytest.raises(errors.Cancelled):
        operation.result(timeout_s=60)
    assert client.guests.get(guest).status.state == GUEST_STATE_RUNNING
    assert virtd.virsh("checkpoint-list", "slow", "--name").split() == []
    nothing_left(virtd, client, guest)

    # virtd is killed: what it was doing is taken up again, as a new backup of the same name.
    operation = at_work(client, guest, "killed")
    virtd.kill()
    parts = [entry.name for entry in (virtd.directory / "backups").iterdir()]
    assert parts == [".killed.part"], "half a backup is never taken for a whole one"
    assert "Backup" in virtd.virsh("domjobinfo", "slow"), "QEMU still has the job of the daemon that died"
    virtd.start()
    again = virtd.client()
    ended = again.operations.get(operation.name)
    ended.result(timeout_s=120)
    assert ended.metadata.recovered
    assert again.backups.verify("backups/killed").result(timeout_s=60).valid
    assert again.guests.get(guest).status.state == GUEST_STATE_RUNNING
    assert len(virtd.virsh("checkpoint-list", "slow", "--name").split()) == 1
    nothing_left(virtd, again, guest)

    # The guest dies.
    operation = at_work(again, guest, "off")
    virtd.virsh("destroy", "slow")
    with pytest.raises(errors.FailedPrecondition) as off:
        operation.result(timeout_s=60)
    assert off.value.reason == "INVALID_STATE"
    assert "powered off" in str(off.value)
    assert [backup.name for backup in again.backups.list()] == ["backups/killed"]
    nothing_left(virtd, again, guest)
    # ... and the chain goes on all the same.
    again.guests.start(guest).result(timeout_s=60)
    made = again.backups.create(guest, "after", kind="incremental").result(timeout_s=120)
    kinds = {disk.name: (disk.kind, disk.reason) for disk in made.disks}
    assert kinds["data"] == (BACKUP_KIND_INCREMENTAL, "")
    assert kinds["big"][0] == BACKUP_KIND_FULL
    assert "qcow2" in kinds["big"][1]


def test_backups_and_snapshots_of_one_guest_do_not_harm_each_other(virtd: Virtd, client: Client) -> None:
    guest = GUEST + "both"
    client.guests.create("hosts/kvm", "both", virtd.spec(boots=False), start=True).result(timeout_s=90)
    assert client.backups.create(guest, "s0").result(timeout_s=60).kind == BACKUP_KIND_FULL
    client.snapshots.create(guest, "memory", memory=True).result(timeout_s=60)
    assert client.backups.create(guest, "s1", kind="incremental").result(timeout_s=60).parent == "backups/s0"
    # A revert beside a checkpoint would kill QEMU; after it, what has changed is not known.
    client.snapshots.revert(f"{guest}/snapshots/memory").result(timeout_s=60)
    assert client.guests.get(guest).status.state == GUEST_STATE_RUNNING
    operation = client.backups.create(guest, "s2")
    assert operation.result(timeout_s=60).kind == BACKUP_KIND_FULL
    assert any("checkpoint" in warning for warning in operation.metadata.warnings)
    client.guests.stop(guest).result(timeout_s=60)
    client.snapshots.create(guest, "stopped").result(timeout_s=60)
    client.snapshots.revert(f"{guest}/snapshots/stopped").result(timeout_s=60)
    operation = client.backups.create(guest, "s3")
    assert operation.result(timeout_s=60).kind == BACKUP_KIND_FULL
    assert client.backups.create(guest, "s4").result(timeout_s=60).kind == BACKUP_KIND_INCREMENTAL
    nothing_left(virtd, client, guest)


def test_what_cannot_be_backed_up_says_so(virtd: Virtd, client: Client) -> None:
    guest = GUEST + "diskless"
    client.guests.create("hosts/kvm", "diskless", virtd.spec(boots=False, disk=False)).result(timeout_s=60)
    with pytest.raises(errors.Unsupported) as refused:
        client.backups.create(guest, "none").result(timeout_s=60)
    assert refused.value.reason == "CAPABILITY_UNSUPPORTED"
    assert "no disk" in str(refused.value)
    with pytest.raises(errors.FailedPrecondition) as frozen:
        client.backups.create(guest, "none", quiesce=True)
    assert frozen.value.reason == "INVALID_STATE"
    levels = {entry.id: entry for entry in client.hosts.capabilities("hosts/kvm")}
    assert "qcow2" in levels["guest.backup.incremental"].reason
    assert "TPM" in levels["guest.backup"].reason
    assert client.backups.list() == ()
