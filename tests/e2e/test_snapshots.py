"""Snapshots of real QEMU guests through the public API: what is on the disks is compared by hash."""

from __future__ import annotations

import hashlib
import json
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from virtd_client import Client, errors

from tests.e2e.conftest import MIB, Virtd
from virtd.v1.guest_pb2 import (
    DISK_FORMAT_QCOW2,
    DISK_FORMAT_RAW,
    FIRMWARE_UEFI,
    GUEST_STATE_RUNNING,
    GUEST_STATE_STOPPED,
    BlankSource,
    DiskSpec,
    Guest,
    GuestSpec,
)
from virtd.v1.schedule_pb2 import Retention, Schedule, SnapshotAction

pytestmark = pytest.mark.qemu


def small(*, formats: tuple[int, ...] = (DISK_FORMAT_QCOW2,), uefi: bool = False) -> Guest:
    """A guest without a system: its disks are written to from outside while it is stopped."""
    spec = GuestSpec(memory_bytes=(128 if uefi else 32) * MIB)
    if uefi:
        spec.firmware = FIRMWARE_UEFI
    for number, format_ in enumerate(formats):
        spec.disks.append(DiskSpec(name=f"d{number}", blank=BlankSource(capacity_bytes=8 * MIB, format=format_)))
    return Guest(spec=spec)


def qemu_img(*arguments: str) -> bytes:
    return subprocess.run(["qemu-img", *arguments], check=True, capture_output=True).stdout


def disks(client: Client, guest: str) -> list[tuple[str, str]]:
    return [(disk.path, disk.format) for disk in client.guests.get(guest).status.disks]


def write(client: Client, guest: str, pattern: int) -> None:
    """Fill a part of every disk of a stopped guest, as the guest would."""
    for path, format_ in disks(client, guest):
        command = f"write -P {pattern} {pattern % 4}M 2M"
        subprocess.run(["qemu-io", "-f", format_, "-c", command, path], check=True, capture_output=True)


def digest(client: Client, guest: str, scratch: Path) -> str:
    """The hash of what a stopped guest has on its disks."""
    total = hashlib.sha256()
    for path, format_ in disks(client, guest):
        qemu_img("convert", "-f", format_, "-O", "raw", path, str(scratch))
        total.update(scratch.read_bytes())
    return total.hexdigest()


def files(virtd: Virtd) -> set[str]:
    pool = virtd.directory / "hosts" / "kvm" / "pool"
    return {path.name for path in pool.iterdir()} if pool.exists() else set()


def take(client: Client, guest: str, name: str, **options: object) -> str:
    made = client.snapshots.create(guest, name, **options).result(timeout_s=120)  # type: ignore[arg-type]  # one place
    assert made.name == f"{guest}/snapshots/{name}"
    return made.location


def tree(client: Client, guest: str) -> dict[str, str]:
    return {entry.name.rpartition("/")[2]: entry.parent for entry in client.snapshots.list(guest)}


@pytest.mark.parametrize(
    ("kind", "formats", "uefi"),
    [
        ("internal", (DISK_FORMAT_QCOW2, DISK_FORMAT_QCOW2), False),
        ("external", (DISK_FORMAT_QCOW2, DISK_FORMAT_RAW), False),
        ("external", (DISK_FORMAT_QCOW2,), True),
    ],
    ids=["internal", "external-raw", "external-uefi"],
)
def test_a_tree_of_snapshots_keeps_every_content(
    virtd: Virtd, tmp_path: Path, kind: str, formats: tuple[int, ...], uefi: bool
) -> None:
    client = virtd.client()
    guest = client.guests.create("hosts/kvm", "tree", small(formats=formats, uefi=uefi)).result(timeout_s=90).name
    scratch, hashes = tmp_path / "disk", {}
    before = files(virtd)
    plan = client.snapshots.plan(guest, "a")
    assert (plan.location, bool(plan.reason)) == (kind, True)
    for number, name in enumerate("abc", start=1):
        write(client, guest, number)
        hashes[name] = digest(client, guest, scratch)
        assert take(client, guest, name, description=f"about {name}") == kind
        assert digest(client, guest, scratch) == hashes[name], "taking a snapshot changed the content"
    write(client, guest, 9)
    for name in ("a", "c", "b"):
        client.snapshots.revert(f"{guest}/snapshots/{name}").result(timeout_s=120)
        assert digest(client, guest, scratch) == hashes[name], name
        write(client, guest, 100)  # what comes later must not reach what a snapshot keeps
    client.snapshots.revert(f"{guest}/snapshots/b").result(timeout_s=120)
    write(client, guest, 5)
    hashes["branch"] = digest(client, guest, scratch)
    take(client, guest, "branch")
    assert tree(client, guest) == {"a": "", "b": "a", "c": "b", "branch": "b"}
    write(client, guest, 6)
    now = digest(client, guest, scratch)
    for gone in ("b", "a"):
        client.snapshots.delete(f"{guest}/snapshots/{gone}").result(timeout_s=120)
        del hashes[gone]
        assert digest(client, guest, scratch) == now, f"deleting {gone} changed what the guest has"
    assert tree(client, guest) == {"c": "", "branch": ""}
    for name in ("c", "branch", "c"):
        client.snapshots.revert(f"{guest}/snapshots/{name}").result(timeout_s=120)
        assert digest(client, guest, scratch) == hashes[name], name
    for name in ("c", "branch"):
        client.snapshots.delete(f"{guest}/snapshots/{name}").result(timeout_s=120)
    assert digest(client, guest, scratch) == hashes["c"]
    assert files(virtd) == before, "files are left behind, or lost"
    client.guests.start(guest).result(timeout_s=60)
    client.guests.delete(guest, force=True).result(timeout_s=60)
    assert not files(virtd)


def run(client: Client, guest: str, script: str) -> str:
    done = client.agent.exec(guest, "/bin/sh", ["-c", script], timeout_s=60)
    assert done.exit_code == 0, (script, done)
    return done.stdout.decode().strip()


def inside(client: Client, guest: str) -> str:
    """The hash of the disk as the guest's own system reads it."""
    return run(client, guest, "sync; echo 3 > /proc/sys/vm/drop_caches; sha256sum /dev/vda").split()[0]


def scribble(client: Client, guest: str, text: str) -> str:
    """Fill the disk with something new and put a word into memory; the disk's hash."""
    run(client, guest, f"dd if=/dev/urandom of=/dev/vda bs=1M count=4 2>/dev/null; sync; echo {text} > /dev/shm.txt")
    return inside(client, guest)


def ready(client: Client, guest: str) -> None:
    client.guests.wait(guest, condition="agent-ready", timeout_s=120)


def test_a_running_guest_is_snapshotted_reverted_and_merged(virtd: Virtd) -> None:
    client = virtd.client()
    before = files(virtd)
    spec = virtd.spec()
    spec.spec.graphics.vnc = False
    guest = client.guests.create("hosts/kvm", "alive", spec, start=True).result(timeout_s=120).name
    first = files(virtd)
    ready(client, guest)
    hashes = {"disk": scribble(client, guest, "one")}
    plan = client.snapshots.plan(guest, "disk", quiesce=True)
    assert plan.location == "external"
    assert "running" in plan.reason
    assert take(client, guest, "disk", quiesce=True) == "external"
    assert client.guests.get(guest).status.state == GUEST_STATE_RUNNING
    hashes["memory"] = scribble(client, guest, "two")
    assert take(client, guest, "memory", memory=True) == "external"  # its others are
    assert client.guests.get(guest).status.state == GUEST_STATE_RUNNING
    hashes["last"] = scribble(client, guest, "three")
    assert take(client, guest, "last", memory=True) == "external"
    hashes["now"] = scribble(client, guest, "four")

    client.snapshots.revert(f"{guest}/snapshots/memory").result(timeout_s=120)
    ready(client, guest)
    assert run(client, guest, "cat /dev/shm.txt") == "two"
    assert inside(client, guest) == hashes["memory"]

    # Merged while the guest runs on: the middle of the tree, and the active image into what is below it.
    client.snapshots.delete(f"{guest}/snapshots/memory").result(timeout_s=120)
    assert run(client, guest, "cat /dev/shm.txt") == "two"
    assert inside(client, guest) == hashes["memory"]
    assert tree(client, guest) == {"disk": "", "last": "disk"}
    client.snapshots.revert(f"{guest}/snapshots/last").result(timeout_s=120)
    ready(client, guest)
    assert run(client, guest, "cat /dev/shm.txt") == "three"
    assert inside(client, guest) == hashes["last"]

    reverted = client.snapshots.revert(f"{guest}/snapshots/disk").result(timeout_s=120)
    assert reverted.status.state == GUEST_STATE_STOPPED, "a snapshot without memory leaves the guest stopped"
    client.guests.start(guest).result(timeout_s=60)
    ready(client, guest)
    assert inside(client, guest) == hashes["disk"]
    done = client.snapshots.delete(f"{guest}/snapshots/disk", children=True)
    done.result(timeout_s=180)
    assert tree(client, guest) == {}
    assert inside(client, guest) == hashes["disk"]
    assert files(virtd) == first, "files are left behind, or lost"
    client.guests.delete(guest, force=True).result(timeout_s=60)
    assert files(virtd) == before


def test_a_chain_that_was_broken_outside_is_refused_untouched(virtd: Virtd, tmp_path: Path) -> None:
    client = virtd.client()
    guest = client.guests.create("hosts/kvm", "broken", small()).result(timeout_s=90).name
    for number, name in enumerate("ab", start=1):
        write(client, guest, number)
        take(client, guest, name, location="external")
    ((active, _),) = disks(client, guest)
    chain = [entry["filename"] for entry in json.loads(qemu_img("info", "--backing-chain", "--output=json", active))]
    other = tmp_path / "other.qcow2"
    qemu_img("convert", "-O", "qcow2", chain[1], str(other))
    qemu_img("rebase", "-u", "-b", str(other), "-F", "qcow2", active)
    before = {path: hashlib.sha256(Path(path).read_bytes()).hexdigest() for path in chain}
    records = virtd.virsh("snapshot-list", "broken", "--tree"), virtd.virsh("dumpxml", "broken")
    for verb in (client.snapshots.revert, client.snapshots.delete):
        for name in "ab":
            with pytest.raises(errors.FailedPrecondition) as refused:
                verb(f"{guest}/snapshots/{name}")
            assert refused.value.reason == "SNAPSHOT_CHAIN_BROKEN"
            assert str(other) in refused.value.metadata["chain_on_disk"]
            assert chain[1] in refused.value.metadata["chain_in_records"]
    with pytest.raises(errors.FailedPrecondition) as refused:
        client.snapshots.create(guest, "c")
    assert refused.value.reason == "SNAPSHOT_CHAIN_BROKEN"
    assert {path: hashlib.sha256(Path(path).read_bytes()).hexdigest() for path in chain} == before
    assert (virtd.virsh("snapshot-list", "broken", "--tree"), virtd.virsh("dumpxml", "broken")) == records
    Path(chain[2]).rename(tmp_path / "hidden")
    with pytest.raises(errors.FailedPrecondition, match="Could not open"):
        client.snapshots.delete(f"{guest}/snapshots/a")
    (tmp_path / "hidden").rename(chain[2])
    qemu_img("rebase", "-u", "-b", chain[1], "-F", "qcow2", active)
    client.snapshots.delete(f"{guest}/snapshots/a").result(timeout_s=60)  # mended, it works


def test_what_others_are_based_on_is_not_changed(virtd: Virtd, tmp_path: Path) -> None:
    client = virtd.client()
    guest = client.guests.create("hosts/kvm", "base", small()).result(timeout_s=90).name
    write(client, guest, 1)
    take(client, guest, "inside")
    ((path, _),) = disks(client, guest)
    clone = Path(path).with_name("linked.qcow2")
    qemu_img("create", "-f", "qcow2", "-b", path, "-F", "qcow2", str(clone))
    try:
        with pytest.raises(errors.FailedPrecondition) as refused:
            client.snapshots.revert(f"{guest}/snapshots/inside")
        assert refused.value.reason == "VOLUME_IN_USE"
        assert str(clone) in refused.value.metadata["used_by"]
        client.snapshots.delete(f"{guest}/snapshots/inside").result(timeout_s=60)  # changes no content
        take(client, guest, "outside", location="external")
        content = qemu_img("convert", "-O", "raw", str(clone), str(tmp_path / "a")) or (tmp_path / "a").read_bytes()
        with pytest.raises(errors.FailedPrecondition) as refused:
            client.snapshots.delete(f"{guest}/snapshots/outside")  # would merge into what the clone lies over
        assert refused.value.reason == "VOLUME_IN_USE"
        write(client, guest, 7)
        client.snapshots.revert(f"{guest}/snapshots/outside").result(timeout_s=60)
        qemu_img("convert", "-O", "raw", str(clone), str(tmp_path / "b"))
        assert (tmp_path / "b").read_bytes() == content
    finally:
        clone.unlink()
    client.snapshots.delete(f"{guest}/snapshots/outside").result(timeout_s=60)


def test_what_cannot_be_is_refused_with_its_reason(virtd: Virtd) -> None:
    client = virtd.client()
    guest = client.guests.create("hosts/kvm", "kinds", small()).result(timeout_s=90).name
    raw = client.guests.create("hosts/kvm", "raw", small(formats=(DISK_FORMAT_RAW,))).result(timeout_s=90).name
    uefi = client.guests.create("hosts/kvm", "uefi", small(uefi=True)).result(timeout_s=90).name

    def refused(on: str, reason: str, says: str, **options: object) -> None:
        for check in (True, False):
            call: Callable[..., object] = client.snapshots.plan if check else client.snapshots.create
            with pytest.raises(errors.VirtdError, match=says) as error:
                call(on, "no", **options)
            assert error.value.reason == reason

    refused(raw, "CAPABILITY_UNSUPPORTED", "is raw", location="internal")
    refused(uefi, "CAPABILITY_UNSUPPORTED", "UEFI", location="internal")
    take(client, guest, "inside")
    refused(guest, "SNAPSHOT_MIXED", "internal snapshots", location="external")
    client.guests.start(guest).result(timeout_s=60)
    refused(guest, "SNAPSHOT_MIXED", "running guest's disks change")
    refused(guest, "CAPABILITY_UNSUPPORTED", "running guest's disks change", location="internal")
    refused(guest, "AGENT_NOT_READY", "agent", quiesce=True)
    client.guests.suspend(guest).result(timeout_s=60)
    client.snapshots.delete(f"{guest}/snapshots/inside").result(timeout_s=60)
    refused(guest, "SNAPSHOT_BLOCKED", "suspended", location="external")
    take(client, guest, "saved")
    done = client.snapshots.revert(f"{guest}/snapshots/saved").result(timeout_s=60)
    assert done.status.state == GUEST_STATE_STOPPED, "a saved state of other disks must not be restored"
    client.snapshots.delete(f"{guest}/snapshots/saved").result(timeout_s=60)

    # Checkpoints of a backup: what they count on is not taken away.
    client.guests.start(guest).result(timeout_s=60)
    take(client, guest, "before", memory=True)
    checkpoint = virtd.directory / "checkpoint.xml"
    checkpoint.write_text("<domaincheckpoint><name>backup-1</name></domaincheckpoint>")
    virtd.virsh("checkpoint-create", "kinds", str(checkpoint))
    with pytest.raises(errors.FailedPrecondition, match="backup-1") as blocked:
        client.snapshots.revert(f"{guest}/snapshots/before")
    assert blocked.value.reason == "SNAPSHOT_BLOCKED"
    virtd.virsh("checkpoint-delete", "kinds", "backup-1")
    client.snapshots.revert(f"{guest}/snapshots/before").result(timeout_s=60)
    assert client.guests.get(guest).status.state == GUEST_STATE_RUNNING
    changed = client.snapshots.update(f"{guest}/snapshots/before", description="other words").result(timeout_s=30)
    assert (changed.description, changed.current) == ("other words", True)
    assert [entry.description for entry in client.snapshots.list("hosts/-/guests/-")] == ["other words"]


def test_a_killed_daemon_ends_every_verb_truthfully(virtd: Virtd, tmp_path: Path) -> None:
    """kill -9 while it works; whatever was done of it, the operation's end and the disks agree."""
    client = virtd.client()
    guest = client.guests.create("hosts/kvm", "killed", small(formats=(DISK_FORMAT_RAW,))).result(timeout_s=90).name
    scratch, before = tmp_path / "disk", files(virtd)
    write(client, guest, 1)
    hashes = {"a": digest(client, guest, scratch)}
    take(client, guest, "a", location="external")
    write(client, guest, 2)
    hashes["b"] = digest(client, guest, scratch)
    for delay, (verb, name) in (
        (0.01, ("create", "b")),
        (0.03, ("revert", "a")),
        (0.06, ("revert", "b")),
        (0.03, ("delete", "a")),
        (0.06, ("delete", "b")),
    ):
        full = f"{guest}/snapshots/{name}"
        if verb == "create":
            operation = client.snapshots.create(guest, name).name
        else:
            operation = (client.snapshots.revert if verb == "revert" else client.snapshots.delete)(full).name
        time.sleep(delay)
        virtd.kill()
        virtd.start()
        client = virtd.client()
        client.operations.get(operation).result(timeout_s=60)
        there = name in tree(client, guest)
        assert there is (verb != "delete"), (verb, name)
        expected = hashes[name] if verb != "delete" else hashes["b"]
        assert digest(client, guest, scratch) == expected, (verb, name)
    assert files(virtd) == before


def test_a_schedule_takes_and_prunes_only_its_own(virtd: Virtd) -> None:
    client = virtd.client()
    guest = client.guests.create("hosts/kvm", "regular", small()).result(timeout_s=90).name
    take(client, guest, "mine")
    made = client.schedules.create(
        "often",
        Schedule(guest=guest, every_s=86400, snapshot=SnapshotAction(), retention=Retention(keep_last=2)),
    )
    try:
        taken: list[str] = []
        for _ in range(3):
            begun = client.schedules.run(made.name)
            deadline = time.monotonic() + 60
            while (status := client.schedules.get(made.name).status).last_run_time == begun.status.last_run_time or (
                status.running
            ):
                assert time.monotonic() < deadline
                time.sleep(0.1)
            assert not status.HasField("last_error"), status
            new = sorted(set(tree(client, guest)) - set(taken) - {"mine"})
            taken += new
            time.sleep(1.1)  # their names carry the second
        assert len(taken) == 3
        assert set(tree(client, guest)) == {"mine", *taken[1:]}
        callers = {client.operations.get(name).metadata.caller for name in status.operations}
        assert callers == {"schedule:often"}
    finally:
        client.schedules.delete(made.name)
