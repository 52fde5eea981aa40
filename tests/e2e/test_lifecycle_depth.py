"""Clone, trash, protection, run strategies, autostart, adoption, suspension, reboot: on real QEMU guests.

Longer than 500 lines because the scenarios share one daemon, whose start costs more than they do.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import signal
import subprocess
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from virtd_client import Client, errors

from tests.e2e.conftest import MIB, Virtd, serving
from tests.e2e.demo import qemu_pid
from tests.qemu.fixtures import PrivateLibvirt
from virtd.v1.guest_pb2 import (
    CONDITION_STATUS_TRUE,
    CONDITION_TYPE_CRASH_LOOP,
    FIRMWARE_UEFI,
    GUEST_STATE_CRASHED,
    GUEST_STATE_RUNNING,
    GUEST_STATE_STOPPED,
    GUEST_STATE_SUSPENDED,
    ORIGIN_FOREIGN,
    ORIGIN_MANAGED,
    RUN_STRATEGY_ALWAYS,
    RUN_STRATEGY_HALTED,
    RUN_STRATEGY_MANUAL,
    RUN_STRATEGY_ONCE,
    RUN_STRATEGY_RERUN_ON_FAILURE,
    Guest,
    GuestSpec,
)

pytestmark = pytest.mark.qemu

STRATEGY = "[strategy]\nbackoff_first_s = 1.5\nbackoff_max_s = 3\nstable_s = 600\nhalt_timeout_s = 60\n"
HOST = "hosts/kvm"


@pytest.fixture(scope="module")
def virtd_process(libvirt_host: PrivateLibvirt) -> Iterator[Virtd]:
    """A daemon whose run strategies wait for seconds instead of minutes."""
    with serving(libvirt_host, STRATEGY) as virtd:
        yield virtd


def name_of(guest: str) -> str:
    return f"{HOST}/guests/{guest}"


def content(path: str) -> str:
    """The hash of what a guest sees of an image."""
    raw = Path(path + ".raw")
    subprocess.run(["qemu-img", "convert", "-O", "raw", path, str(raw)], check=True, capture_output=True)
    try:
        return hashlib.sha256(raw.read_bytes()).hexdigest()
    finally:
        raw.unlink()


def fill(path: str, pattern: int, offset: int = 0) -> None:
    """Write to an image as its guest would."""
    command = ["qemu-io", "-f", "qcow2", "-c", f"write -P {pattern:#x} {offset} 1M", path]
    subprocess.run(command, check=True, capture_output=True)


def backing(path: str) -> str:
    shown = subprocess.run(["qemu-img", "info", path], check=True, capture_output=True, text=True).stdout
    found = [line for line in shown.splitlines() if line.startswith("backing file:")]
    return found[0].split(": ")[1].split(" (")[0] if found else ""


def disk(guest: Guest) -> str:
    return guest.status.disks[0].path


def eventually(holds: Callable[[], object], timeout_s: float = 30.0) -> None:
    deadline = time.monotonic() + timeout_s
    while not holds():
        assert time.monotonic() < deadline, "it did not come to hold in time"
        time.sleep(0.1)


def make(virtd: Virtd, client: Client, name: str, *, start: bool = False, uefi: bool = False, **spec: object) -> Guest:
    """A small guest without a system, with a disk of known content."""
    guest = virtd.spec(boots=False)
    for field, value in spec.items():
        setattr(guest.spec, field, value)
    if uefi:
        guest.spec.firmware = FIRMWARE_UEFI
        guest.spec.memory_bytes = 64 * MIB
    guest.labels["made"] = "here"
    return client.guests.create(HOST, name, guest, start=start).result(timeout_s=90)


# ------------------------------------------------------------------------------------------- clone


def test_a_full_clone_shares_nothing_with_its_source(virtd: Virtd) -> None:
    client = virtd.client()
    source = make(virtd, client, "source", uefi=True)
    fill(disk(source), 0x5A)
    client.guests.start(source.name).result(timeout_s=60)  # makes the firmware's variables
    with pytest.raises(errors.FailedPrecondition) as running:
        client.guests.clone(source.name, "copy")
    assert running.value.reason == "INVALID_STATE"
    assert "shut it down" in running.value.message
    client.guests.stop(source.name).result(timeout_s=60)
    variables = virtd.libvirt.directory / "lib" / "qemu" / "nvram" / "source_VARS.fd"
    marked = bytearray(variables.read_bytes())
    marked[-16:] = b"virtd-test-mark!"
    variables.write_bytes(marked)
    with pytest.raises(errors.AlreadyExists) as taken:
        client.guests.clone(source.name, "source")
    assert taken.value.reason == "GUEST_EXISTS"
    plan = client.guests.clone(source.name, "copy", validate_only=True).plan
    assert plan is not None
    assert "copy" in plan.native
    before, hash_before = disk(source), content(disk(source))
    clone = client.guests.clone(source.name, "copy").result(timeout_s=120)
    assert clone.uid != source.uid
    assert clone.labels == {"made": "here"}
    assert disk(clone) != before
    assert not backing(disk(clone))
    assert content(disk(clone)) == hash_before == content(before)
    copied = variables.with_name("copy_VARS.fd")
    assert copied.read_bytes() == marked
    # Neither sees what the other writes, and the source's end is not the clone's.
    fill(disk(clone), 0x77)
    assert content(before) == hash_before
    client.guests.start(clone.name).result(timeout_s=60)
    client.guests.delete(source.name).result(timeout_s=60)
    assert client.guests.get(clone.name).status.state == GUEST_STATE_RUNNING


def test_linked_clones_keep_their_base_until_the_last_of_them_goes(virtd: Virtd) -> None:
    client = virtd.client()
    source = make(virtd, client, "template")
    base = disk(source)
    fill(base, 0x11)
    frozen, hash_base = Path(base).read_bytes(), content(base)
    clone = client.guests.clone(source.name, "linked", mode="linked").result(timeout_s=60)
    source = client.guests.get(source.name)
    assert {backing(disk(source)), backing(disk(clone))} == {base}
    assert content(disk(source)) == content(disk(clone)) == hash_base
    # Both run, each writes to its own, and what is below does not change.
    client.guests.start(source.name).result(timeout_s=60)
    client.guests.start(clone.name).result(timeout_s=60)
    for name in (source.name, clone.name):
        client.guests.stop(name).result(timeout_s=60)
    fill(disk(source), 0x22)
    fill(disk(clone), 0x33, offset=2 * MIB)
    assert Path(base).read_bytes() == frozen
    assert len({content(disk(source)), content(disk(clone)), hash_base}) == 3
    own = content(disk(clone))
    with pytest.raises(errors.FailedPrecondition) as used:
        client.volumes.delete(f"{HOST}/pools/virtd/volumes/{Path(base).name}")
    assert used.value.reason == "VOLUME_IN_USE"
    second = client.guests.clone(clone.name, "second", mode="linked").result(timeout_s=60)
    assert content(disk(second)) == own
    overlay = disk(source)
    client.guests.delete(source.name).result(timeout_s=60)
    assert Path(base).exists()
    assert not Path(overlay).exists()
    clone = client.guests.get(clone.name)
    middle = backing(disk(clone))
    client.guests.delete(clone.name).result(timeout_s=60)
    assert Path(base).exists()
    assert Path(middle).exists()
    assert content(disk(second)) == own
    client.guests.start(second.name).result(timeout_s=60)
    last = disk(second)
    client.guests.delete(second.name, force=True).result(timeout_s=60)
    assert not any(Path(path).exists() for path in (base, middle, last))


def test_a_clone_that_cannot_be_linked_says_why(virtd: Virtd) -> None:
    client = virtd.client()
    source = make(virtd, client, "snapped")
    client.snapshots.create(source.name, "one").result(timeout_s=60)
    with pytest.raises(errors.FailedPrecondition) as refused:
        client.guests.clone(source.name, "linked", mode="linked")
    assert refused.value.reason == "CLONE_IMPOSSIBLE"
    assert "snapshot" in refused.value.message
    with pytest.raises(errors.NotFound) as pool:
        client.guests.clone(source.name, "copy", pool="nowhere")
    assert pool.value.reason == "POOL_NOT_FOUND"
    # A full clone has the disks as they are now, and no snapshots.
    clone = client.guests.clone(source.name, "copy").result(timeout_s=60)
    assert len(client.snapshots.list(clone.name)) == 0
    shown = subprocess.run(["qemu-img", "snapshot", "-l", disk(clone)], check=True, capture_output=True, text=True)
    assert "one" not in shown.stdout


def test_a_daemon_killed_in_a_clone_ends_it_truthfully(virtd: Virtd) -> None:
    client = virtd.client()
    source = make(virtd, client, "victim")
    fill(disk(source), 0x44)
    hash_source = content(disk(source))
    for number, mode in enumerate(("full", "linked")):
        operation = client.guests.clone(source.name, f"clone{number}", mode=mode)  # type: ignore[arg-type]
        virtd.kill()
        virtd.start()
        client.operations.get(operation.name).result(timeout_s=90)
        clone = client.guests.get(name_of(f"clone{number}"))
        assert content(disk(clone)) == hash_source
        assert content(disk(client.guests.get(source.name))) == hash_source
        client.guests.start(clone.name).result(timeout_s=60)


# ------------------------------------------------------------------------------------------- trash


def test_a_guest_goes_to_the_trash_and_comes_back_as_it_was(virtd: Virtd) -> None:
    client = virtd.client()
    guest = make(virtd, client, "gone", uefi=False, autostart=True)
    fill(disk(guest), 0x66)
    client.snapshots.create(guest.name, "kept").result(timeout_s=60)
    hash_before = content(disk(guest))
    deleted = client.guests.delete(guest.name, disk_policy="trash")
    result = deleted.result(timeout_s=60)
    entry = client.trash.get(result.data["trash"])
    assert entry.guest.uid == guest.uid
    assert entry.purge_time.ToDatetime() > entry.trash_time.ToDatetime()
    assert "gone" not in virtd.virsh("list", "--all", "--name").split()
    assert content(disk(guest)) == hash_before
    with pytest.raises(errors.FailedPrecondition) as used:
        client.volumes.delete(entry.volumes[0])
    assert used.value.reason == "VOLUME_IN_USE"
    # A new guest of the name does not meet the old one's disks.
    other = make(virtd, client, "gone")
    assert disk(other) != disk(guest)
    with pytest.raises(errors.AlreadyExists) as taken:
        client.trash.recover(entry.name)
    assert taken.value.reason == "GUEST_EXISTS"
    back = client.trash.recover(entry.name, guest_id="back").result(timeout_s=60)
    assert back.uid == guest.uid
    assert back.name == name_of("back")
    assert back.labels == {"made": "here"}
    assert back.status.state == GUEST_STATE_STOPPED
    assert content(disk(back)) == hash_before
    assert [snapshot.name for snapshot in client.snapshots.list(back.name)] == [f"{back.name}/snapshots/kept"]
    assert "enable" in virtd.virsh("dominfo", "back").split("Autostart:")[1].splitlines()[0]
    fill(disk(back), 0x67)
    client.snapshots.revert(f"{back.name}/snapshots/kept").result(timeout_s=60)
    assert content(disk(client.guests.get(back.name))) == hash_before
    client.guests.start(back.name).result(timeout_s=60)
    assert client.trash.list() == ()
    with pytest.raises(errors.NotFound) as gone:
        client.trash.get(entry.name)
    assert gone.value.reason == "TRASH_ENTRY_NOT_FOUND"


def test_what_is_purged_is_gone(virtd: Virtd) -> None:
    client = virtd.client()
    names = [make(virtd, client, f"waste{number}") for number in range(2)]
    for guest in names:
        client.guests.delete(guest.name, disk_policy="trash").result(timeout_s=60)
    assert [entry.guest.name for entry in client.trash.list(HOST)] == [guest.name for guest in names]
    client.trash.purge(client.trash.list()[0].name).result(timeout_s=60)
    assert [Path(disk(guest)).exists() for guest in names] == [False, True]
    client.trash.purge().result(timeout_s=60)
    assert not Path(disk(names[1])).exists()
    assert client.trash.list() == ()


def test_the_trash_keeps_a_uefi_guests_variables(virtd: Virtd) -> None:
    client = virtd.client()
    guest = make(virtd, client, "uefi", uefi=True, start=True)
    variables = virtd.libvirt.directory / "lib" / "qemu" / "nvram" / "uefi_VARS.fd"
    client.guests.stop(guest.name).result(timeout_s=60)
    marked = bytearray(variables.read_bytes())
    marked[-16:] = b"virtd-test-mark!"
    variables.write_bytes(marked)
    entry = client.guests.delete(guest.name, disk_policy="trash").result(timeout_s=60).data["trash"]
    assert not variables.exists()
    client.trash.recover(entry).result(timeout_s=60)
    assert variables.read_bytes() == marked
    client.guests.start(guest.name).result(timeout_s=60)


# -------------------------------------------------------------------------------------- protection


def test_a_protected_guest_is_not_deleted(virtd: Virtd) -> None:
    client = virtd.client()
    guest = make(virtd, client, "precious", deletion_protection=True)
    for force in (False, True):
        with pytest.raises(errors.FailedPrecondition) as refused:
            client.guests.delete(guest.name, force=force)
        assert refused.value.reason == "GUEST_PROTECTED"
        assert "deletion_protection" in refused.value.message
    assert Path(disk(guest)).exists()
    clone = client.guests.clone(guest.name, "not-precious").result(timeout_s=60)
    client.guests.delete(clone.name).result(timeout_s=60)
    changed = Guest(name=guest.name, spec=guest.spec)
    changed.spec.deletion_protection = False
    client.guests.change(changed, ["spec.deletion_protection"]).result(timeout_s=60)
    client.guests.delete(guest.name).result(timeout_s=60)


# ---------------------------------------------------------------------------------- run strategies


def strategy_of(client: Client, name: str) -> int:
    return client.guests.get(name).spec.run_strategy


def test_always_brings_a_guest_back_and_waits_longer_each_time(virtd: Virtd) -> None:
    client = virtd.client()
    guest = make(virtd, client, "always", run_strategy=RUN_STRATEGY_ALWAYS)
    client.guests.wait(guest.name, state="running", timeout_s=30)
    started = [o for o in client.operations.list() if (o.metadata.verb, o.metadata.target) == ("start", guest.name)]
    assert {operation.metadata.caller for operation in started} == {"strategy"}
    first = qemu_pid(guest.uid)
    os.kill(first, signal.SIGKILL)
    eventually(lambda: up_again(client, guest, first))
    second = qemu_pid(guest.uid)
    os.kill(second, signal.SIGKILL)
    eventually(lambda: loops(client, guest.name))
    assert client.guests.get(guest.name).status.state == GUEST_STATE_CRASHED  # it waits
    eventually(lambda: up_again(client, guest, first, second))
    # It survives the daemon: what dies while virtd is dead comes back with it.
    virtd.kill()
    os.kill(qemu_pid(guest.uid), signal.SIGKILL)
    virtd.start()
    eventually(lambda: up_again(client, guest))
    # What its user says goes first.
    client.guests.stop(guest.name).result(timeout_s=60)
    assert strategy_of(client, guest.name) == RUN_STRATEGY_HALTED
    time.sleep(4)
    assert client.guests.get(guest.name).status.state == GUEST_STATE_STOPPED
    client.guests.start(guest.name).result(timeout_s=60)
    assert strategy_of(client, guest.name) == RUN_STRATEGY_ALWAYS
    # Suspended by its user, it stays so.
    client.guests.suspend(guest.name).result(timeout_s=60)
    time.sleep(2)
    assert client.guests.get(guest.name).status.state == GUEST_STATE_SUSPENDED


def up_again(client: Client, guest: Guest, *old: int) -> bool:
    status = client.guests.get(guest.name).status
    new = running_pid(guest.uid)
    return status.state == GUEST_STATE_RUNNING and not status.current_operations and new is not None and new not in old


def running_pid(uid: str) -> int | None:
    with contextlib.suppress(Exception):
        return qemu_pid(uid)
    return None


def loops(client: Client, name: str) -> bool:
    return any(
        condition.type == CONDITION_TYPE_CRASH_LOOP and condition.status == CONDITION_STATUS_TRUE
        for condition in client.guests.get(name).status.conditions
    )


def test_rerun_on_failure_follows_a_crash_only(virtd: Virtd) -> None:
    client = virtd.client()
    guest = make(virtd, client, "rerun", run_strategy=RUN_STRATEGY_RERUN_ON_FAILURE, start=True)
    first = qemu_pid(guest.uid)
    os.kill(first, signal.SIGKILL)
    eventually(lambda: running_pid(guest.uid) not in (None, first))
    client.guests.wait(guest.name, state="running", timeout_s=30)
    # Crashed again, it waits for its turn; who stops it now has the last word, though it is down already.
    eventually(lambda: up_again(client, guest, first))
    os.kill(qemu_pid(guest.uid), signal.SIGKILL)
    eventually(lambda: loops(client, guest.name))
    client.guests.stop(guest.name).result(timeout_s=60)
    time.sleep(3)
    assert client.guests.get(guest.name).status.state == GUEST_STATE_CRASHED
    client.guests.start(guest.name).result(timeout_s=60)
    virtd.virsh("destroy", "rerun")  # somebody has decided so
    client.guests.wait(guest.name, state="stopped", timeout_s=30)
    time.sleep(3)
    assert client.guests.get(guest.name).status.state == GUEST_STATE_STOPPED
    client.guests.start(guest.name).result(timeout_s=60)
    client.guests.stop(guest.name).result(timeout_s=60)
    assert strategy_of(client, guest.name) == RUN_STRATEGY_RERUN_ON_FAILURE
    time.sleep(2)
    assert client.guests.get(guest.name).status.state == GUEST_STATE_STOPPED


def test_once_is_once_and_manual_is_never(virtd: Virtd) -> None:
    client = virtd.client()
    once = make(virtd, client, "once", run_strategy=RUN_STRATEGY_ONCE)
    manual = make(virtd, client, "manual", run_strategy=RUN_STRATEGY_MANUAL, start=True)
    client.guests.wait(once.name, state="running", timeout_s=30)
    for guest in (once, manual):
        os.kill(qemu_pid(guest.uid), signal.SIGKILL)
        client.guests.wait(guest.name, state="crashed", timeout_s=30)
    virtd.kill()
    virtd.start()
    time.sleep(5)
    assert client.guests.get(once.name).status.state == GUEST_STATE_CRASHED
    assert client.guests.get(manual.name).status.state == GUEST_STATE_CRASHED


def test_autostart_is_the_hypervisors_own_and_halted_contradicts_start(virtd: Virtd) -> None:
    client = virtd.client()
    guest = make(virtd, client, "auto", autostart=True)
    assert "auto" in virtd.virsh("list", "--all", "--autostart", "--name").split()
    clone = client.guests.clone(guest.name, "manual").result(timeout_s=60)
    assert not clone.spec.autostart
    assert "manual" not in virtd.virsh("list", "--all", "--autostart", "--name").split()
    with pytest.raises(errors.InvalidArgument) as refused:
        make(virtd, client, "no", run_strategy=RUN_STRATEGY_HALTED, start=True)
    assert refused.value.reason == "FIELD_INVALID"


# ------------------------------------------------------------------------------------------- adopt

FOREIGN = """<domain type='qemu'><name>{name}</name><uuid>{uid}</uuid><memory unit='MiB'>48</memory>
<vcpu>2</vcpu><os><type arch='x86_64' machine='q35'>hvm</type></os>
<devices><disk type='file' device='disk'><driver name='qemu' type='qcow2'/><source file='{disk}'/>
<target dev='vda' bus='virtio'/></disk>
<interface type='user'><mac address='52:54:00:12:34:56'/><model type='virtio'/></interface>
<panic model='isa'/><serial type='pty'/></devices></domain>"""


def test_a_running_foreign_guest_is_adopted_and_released_untouched(virtd: Virtd) -> None:
    client, uid = virtd.client(), str(uuid.uuid4())
    image = virtd.directory / "foreign.qcow2"
    subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", str(image), "8M"], check=True)
    definition = virtd.directory / "foreign.xml"
    definition.write_text(FOREIGN.format(name="foreign", uid=uid, disk=image))
    virtd.virsh("define", str(definition))
    virtd.virsh("start", "foreign")
    name = name_of("foreign")
    client.guests.wait(name, state="running", timeout_s=20)
    before, process = virtd.virsh("dumpxml", "foreign"), qemu_pid(uid)
    operation = client.guests.adopt(name)
    adopted = operation.result(timeout_s=30)
    assert adopted.status.origin == ORIGIN_MANAGED
    assert adopted.spec.vcpus == 2
    assert adopted.spec.memory_bytes == 48 * MIB
    assert adopted.spec.disks[0].host_file.path == str(image)
    assert adopted.spec.interfaces[0].mac == "52:54:00:12:34:56"
    assert any("panic" in part for part in adopted.status.unmodelled), adopted.status.unmodelled
    assert any("panic" in warning for warning in client.operations.get(operation.name).metadata.warnings)
    assert (virtd.virsh("dumpxml", "foreign"), qemu_pid(uid)) == (before, process)
    released = client.guests.release(name).result(timeout_s=30)
    assert released.status.origin == ORIGIN_FOREIGN
    assert (virtd.virsh("dumpxml", "foreign"), qemu_pid(uid)) == (before, process)
    with pytest.raises(errors.FailedPrecondition) as foreign:
        client.guests.stop(name)
    assert foreign.value.reason == "GUEST_NOT_ADOPTED"
    client.guests.adopt(name).result(timeout_s=30)
    # Through the trash and back, what virtd cannot express is still there; the disk never was virtd's.
    entry = client.guests.delete(name, force=True, disk_policy="trash").result(timeout_s=60).data["trash"]
    assert image.exists()
    client.trash.recover(entry).result(timeout_s=60)
    assert "<panic model='isa'" in virtd.virsh("dumpxml", "foreign")
    client.guests.delete(name).result(timeout_s=60)
    assert image.exists()


def test_a_transient_guest_is_not_adopted(virtd: Virtd) -> None:
    client = virtd.client()
    definition = virtd.directory / "transient.xml"
    image = virtd.directory / "transient.qcow2"
    subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", str(image), "8M"], check=True)
    definition.write_text(FOREIGN.format(name="transient", uid=uuid.uuid4(), disk=image))
    virtd.virsh("create", str(definition))
    try:
        client.guests.wait(name_of("transient"), state="running", timeout_s=20)
        with pytest.raises(errors.FailedPrecondition) as refused:
            client.guests.adopt(name_of("transient")).result(timeout_s=30)
        assert refused.value.reason == "INVALID_STATE"
        assert "virsh define" in refused.value.message
    finally:
        virtd.virsh("destroy", "transient")


# ----------------------------------------------------------------------- suspend, reboot, clone live


def run(client: Client, name: str, script: str) -> str:
    done = client.agent.exec(name, "/bin/sh", ["-c", script])
    assert done.exit_code == 0, done.stderr
    return done.stdout.decode().strip()


def test_a_booted_guest_is_suspended_rebooted_and_cloned(virtd: Virtd) -> None:
    client = virtd.client()
    name = client.guests.create(HOST, "booted", virtd.spec(), start=True).result(timeout_s=90).name
    client.guests.wait(name, condition="agent-ready", timeout_s=120)
    # Suspend: memory goes on where it was.
    run(client, name, "(n=0; while true; do n=$((n+1)); echo $n > /tmp/count; sleep 0.2; done) >/dev/null 2>&1 &")
    boot_id = run(client, name, "cat /proc/sys/kernel/random/boot_id")
    before = int(run(client, name, "sleep 1; cat /tmp/count"))
    client.guests.suspend(name).result(timeout_s=120)
    assert client.guests.get(name).status.state == GUEST_STATE_SUSPENDED
    client.guests.start(name).result(timeout_s=120)
    client.guests.wait(name, condition="agent-ready", timeout_s=60)
    assert int(run(client, name, "sleep 1; cat /tmp/count")) > before
    assert run(client, name, "cat /proc/sys/kernel/random/boot_id") == boot_id
    # Reboot: the operation ends when it is seen.
    token = client.events.pull().resume_token
    client.guests.reboot(name).result(timeout_s=120)
    pulled = client.events.pull(resume_token=token, filter="type=GUEST_REBOOTED", wait_s=5)
    assert pulled.events
    client.guests.wait(name, condition="agent-ready", timeout_s=120)
    assert run(client, name, "cat /proc/sys/kernel/random/boot_id") != boot_id
    # A clone has the source's data, as seen from inside, and runs beside it.
    run(client, name, "dd if=/dev/urandom of=/dev/vda bs=64k count=16 2>/dev/null; sync")
    written = run(client, name, "md5sum < /dev/vda")
    client.guests.shutdown(name, timeout_s=60).result(timeout_s=90)
    clone = client.guests.clone(name, "twin", start=True).result(timeout_s=120)
    assert clone.status.interfaces[0].mac != client.guests.get(name).spec.interfaces[0].mac
    client.guests.wait(clone.name, condition="agent-ready", timeout_s=120)
    assert run(client, clone.name, "md5sum < /dev/vda") == written
    # Saved memory that is thrown away is a power cut.
    client.guests.suspend(clone.name).result(timeout_s=120)
    client.guests.discard_saved_state(clone.name).result(timeout_s=30)
    assert client.guests.get(clone.name).status.state == GUEST_STATE_STOPPED
    client.guests.start(clone.name).result(timeout_s=60)
    client.guests.suspend(clone.name).result(timeout_s=120)
    client.guests.delete(clone.name).result(timeout_s=60)  # with its saved memory


def test_halted_asks_a_running_guest_to_shut_down_and_never_forces_it(virtd: Virtd) -> None:
    client = virtd.client()
    guest = client.guests.create(HOST, "halted", virtd.spec(), start=True).result(timeout_s=120)
    client.guests.wait(guest.name, condition="agent-ready", timeout_s=180)
    wanted = Guest(name=guest.name, spec=GuestSpec(run_strategy=RUN_STRATEGY_HALTED))
    client.guests.change(wanted, ["spec.run_strategy"]).result(timeout_s=60)
    stopped = client.guests.wait(guest.name, state="stopped", timeout_s=90)
    assert stopped is not None
    assert stopped.status.state_reason == "SHUTDOWN"
    asked = [
        o.metadata for o in client.operations.list() if (o.metadata.verb, o.metadata.target) == ("shutdown", guest.name)
    ]
    assert {operation.caller for operation in asked} == {"strategy"}
