"""Abilities that each work alone, one after the other on the same guest: no data is lost between them.

Where two exclude each other, the refusal comes before anything is touched, and names the other.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from virtd_client import Client, errors

from tests.e2e.conftest import MIB, Virtd
from tests.e2e.test_snapshots import digest, disks, qemu_img, small, take, tree, write
from virtd.v1.guest_pb2 import Guest, GuestSpec

pytestmark = pytest.mark.qemu


@pytest.fixture
def client(virtd: Virtd) -> Client:
    return virtd.client()


def make(client: Client, name: str) -> str:
    guest = client.guests.create("hosts/kvm", name, small()).result(timeout_s=120).name
    write(client, guest, 1)
    return guest


def change(client: Client, guest: str, spec: GuestSpec, *fields: str) -> Guest:
    return client.guests.change(Guest(name=guest, spec=spec), fields).result(timeout_s=60)


def restart(client: Client, guest: str) -> None:
    client.guests.start(guest).result(timeout_s=120)
    client.guests.stop(guest).result(timeout_s=60)


def outcome(work: object) -> str:
    """The word done, or the reason of a refusal; an error that names nothing is a failure."""
    try:
        work().result(timeout_s=180)  # type: ignore[operator]  # starts an operation
    except errors.VirtdError as error:
        assert error.reason not in {"INTERNAL_ERROR", "BACKEND_ERROR"}, error
        assert len(error.message) > 20
        return error.reason
    return "done"


def test_an_update_keeps_the_disks_that_a_snapshot_has_put_in(client: Client, tmp_path: Path) -> None:
    guest = make(client, "updated")
    scratch = tmp_path / "raw"
    before = digest(client, guest, scratch)
    assert take(client, guest, "base", location="external") == "external"
    write(client, guest, 2)
    after = digest(client, guest, scratch)
    assert after != before
    paths = disks(client, guest)
    change(client, guest, GuestSpec(memory_bytes=48 * MIB), "spec.memory_bytes")
    change(client, guest, GuestSpec(vcpus=2), "spec.vcpus")
    assert disks(client, guest) == paths, "an update of the memory does not change the disks"
    restart(client, guest)
    assert disks(client, guest) == paths
    assert digest(client, guest, scratch) == after
    client.snapshots.revert(f"{guest}/snapshots/base").result(timeout_s=120)
    assert digest(client, guest, scratch) == before
    restart(client, guest)
    assert digest(client, guest, scratch) == before


@pytest.mark.parametrize("location", ["internal", "external"])
def test_backups_and_snapshots_of_one_guest(client: Client, tmp_path: Path, location: str) -> None:
    guest = make(client, f"both-{location}")
    scratch = tmp_path / "raw"
    client.guests.start(guest).result(timeout_s=120)
    client.backups.create(guest, f"{location}-1", kind="full").result(timeout_s=120)
    client.guests.stop(guest).result(timeout_s=60)
    first = digest(client, guest, scratch)
    snapshot = outcome(lambda: client.snapshots.create(guest, "s", location=location))
    write(client, guest, 2)
    second = digest(client, guest, scratch)
    client.guests.start(guest).result(timeout_s=120)
    backup = outcome(lambda: client.backups.create(guest, f"{location}-2"))
    client.guests.stop(guest).result(timeout_s=60)
    assert digest(client, guest, scratch) == second
    if snapshot == "done":
        reverted = outcome(lambda: client.snapshots.revert(f"{guest}/snapshots/s"))
        if reverted == "done":
            assert digest(client, guest, scratch) == first
        client.guests.start(guest).result(timeout_s=120)
        # What the bitmaps of before know says nothing of the content of now.
        third = outcome(lambda: client.backups.create(guest, f"{location}-3"))
        client.guests.stop(guest).result(timeout_s=60)
        if reverted == "done" and third == "done":
            made = client.backups.restore(f"backups/{location}-3", f"again-{location}-3").result(timeout_s=120)
            assert digest(client, made.name, scratch) == first
    if backup == "done":
        made = client.backups.restore(f"backups/{location}-2", f"again-{location}-2").result(timeout_s=120)
        assert digest(client, made.name, scratch) == second
    made = client.backups.restore(f"backups/{location}-1", f"again-{location}-1").result(timeout_s=120)
    assert digest(client, made.name, scratch) == first


def test_clones_and_snapshots(client: Client, tmp_path: Path) -> None:
    guest = make(client, "parent")
    scratch = tmp_path / "raw"
    first = digest(client, guest, scratch)
    linked = client.guests.clone(guest, "linked", mode="linked").result(timeout_s=120).name
    write(client, guest, 2)
    second = digest(client, guest, scratch)
    assert digest(client, linked, scratch) == first, "what the parent writes is not the clone's"
    for location in ("internal", "external"):
        for of, content in ((guest, second), (linked, first)):
            if (
                outcome(
                    lambda of=of, location=location: client.snapshots.create(of, f"s-{location}", location=location)
                )
                != "done"
            ):
                continue
            write(client, of, 3)
            assert (
                outcome(lambda of=of, location=location: client.snapshots.revert(f"{of}/snapshots/s-{location}"))
                == "done"
            )
            assert digest(client, of, scratch) == content
            client.snapshots.delete(f"{of}/snapshots/s-{location}").result(timeout_s=120)
            assert digest(client, of, scratch) == content
    assert (digest(client, guest, scratch), digest(client, linked, scratch)) == (second, first)
    # A full clone of a guest with snapshots has the content of now, and no snapshots.
    take(client, guest, "kept")
    write(client, guest, 3)
    third = digest(client, guest, scratch)
    if outcome(lambda: client.guests.clone(guest, "full", mode="full")) == "done":
        assert digest(client, "hosts/kvm/guests/full", scratch) == third
        assert tree(client, "hosts/kvm/guests/full") == {}
    client.guests.delete(guest).result(timeout_s=120)
    assert digest(client, linked, scratch) == first, "the base stays for those who need it"
    restart(client, linked)
    assert digest(client, linked, scratch) == first


@pytest.mark.parametrize("location", ["internal", "external"])
def test_what_comes_back_from_the_trash_is_what_went_in(client: Client, tmp_path: Path, location: str) -> None:
    guest = make(client, f"trashed-{location}")
    scratch = tmp_path / "raw"
    take(client, guest, "s", location=location)
    write(client, guest, 2)
    content = digest(client, guest, scratch)
    removed = outcome(lambda: client.guests.delete(guest, disk_policy="trash"))
    if removed != "done":
        assert digest(client, guest, scratch) == content, "refused, so nothing was touched"
        return
    (entry,) = [entry for entry in client.trash.list() if entry.guest.name == guest]
    back = client.trash.recover(entry.name).result(timeout_s=120).name
    assert digest(client, back, scratch) == content
    restart(client, back)
    assert digest(client, back, scratch) == content


def test_a_larger_disk_and_snapshots(client: Client, tmp_path: Path) -> None:
    guest = make(client, "grown")
    scratch = tmp_path / "raw"
    take(client, guest, "small", location="external")
    write(client, guest, 2)
    grown = outcome(lambda: client.devices.resize_disk(guest, "d0", 12 * MIB))
    if grown == "done":
        ((path, _),) = disks(client, guest)
        assert json.loads(qemu_img("info", "--output=json", path))["virtual-size"] == 12 * MIB
    content = digest(client, guest, scratch)
    restart(client, guest)
    assert digest(client, guest, scratch) == content
    if outcome(lambda: client.snapshots.delete(f"{guest}/snapshots/small")) == "done":
        assert digest(client, guest, scratch) == content
