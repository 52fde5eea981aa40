"""What others do to the host: virsh, SIGKILL."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import pytest

from tests.qemu.fixtures import Context, Lab, eventually
from virtd.errors import AlreadyExistsError
from virtd.model.guest import GuestState

FOREIGN = """
<domain type='qemu'>
  <name>{name}</name>
  <memory unit='MiB'>32</memory>
  <vcpu>2</vcpu>
  <os><type arch='x86_64' machine='pc'>hvm</type></os>
  <devices>
    <disk type='file' device='cdrom'><target dev='hda' bus='ide'/></disk>
    <interface type='user'><mac address='52:54:00:aa:bb:cc'/></interface>
  </devices>
</domain>
"""


async def test_guest_defined_by_virsh_is_seen_within_a_second(lab: Lab) -> None:
    name = f"foreign-{os.getpid()}"
    xml = lab.directory / f"{name}.xml"
    xml.write_text(FOREIGN.format(name=name))
    lab.virsh("define", str(xml))
    try:
        started = time.monotonic()
        await eventually(lambda: any(event.name == name for event in lab.events.seen), 5)
        assert time.monotonic() - started < 1.0
        (event,) = [event for event in lab.events.seen if event.name == name]
        assert event.type.value == "GUEST_DEFINED" and event.uuid is not None
        guest = await lab.session.get_guest(event.uuid)
        assert (guest.name, guest.state, guest.spec.vcpus) == (name, GuestState.STOPPED, 2)
        assert [disk.name for disk in guest.disks] == ["hda"]
        assert guest.spec.disks[0].host_file is None
        assert [interface.name for interface in guest.interfaces] == ["net0"]
        assert name in {entry.name for entry in await lab.session.list_guests()}
    finally:
        lab.virsh("undefine", name)
    await eventually(lambda: any(event.type.value == "GUEST_UNDEFINED" for event in lab.events.of(event.uuid)), 5)


async def test_killed_qemu_is_a_crash(lab: Lab) -> None:
    guest = lab.empty("victim")
    uuid = await lab.running(guest)
    os.kill(lab.qemu_pid(guest.name), signal.SIGKILL)
    await eventually(lambda: ("CRASHED", "CRASHED") in lab.events.states(uuid), 10)
    found = await lab.session.get_guest(uuid)
    assert (found.state, found.state_reason, found.native_state) == (GuestState.CRASHED, "CRASHED", "shutoff")
    listed = {entry.uuid: entry.state for entry in await lab.session.list_guests()}
    assert listed[uuid] is GuestState.CRASHED
    await lab.session.start_guest(uuid, Context())
    assert await lab.state(uuid) is GuestState.RUNNING


async def test_failed_start_is_no_crash(lab: Lab) -> None:
    disk = await lab.volume("gone.qcow2")
    guest = lab.empty("broken", disks=(disk,))
    await lab.defined(guest)
    Path(disk.path).unlink()
    with pytest.raises(Exception, match=r"gone\.qcow2") as failed:
        await lab.session.start_guest(guest.uuid, Context())
    assert failed.value.reason.name == "BACKEND_ERROR"
    assert await lab.state(guest.uuid) is GuestState.STOPPED


async def test_name_of_another_guest_is_refused_and_leaves_nothing(lab: Lab) -> None:
    first = lab.empty("twin")
    await lab.defined(first)
    second = lab.empty("twin", name=first.name)
    with pytest.raises(AlreadyExistsError) as refused:
        await lab.session.define_guest(second, Context())
    assert refused.value.reason.name == "GUEST_EXISTS"
    named = [entry.uuid for entry in await lab.session.list_guests() if entry.name == first.name]
    assert named == [first.uuid]


async def test_redefining_changes_the_guest(lab: Lab) -> None:
    guest = lab.empty("twice")
    await lab.defined(guest)
    changed = lab.empty("twice", uuid=guest.uuid, name=guest.name, vcpus=2)
    made = await lab.session.define_guest(changed, Context())
    assert (made.uuid, made.spec.vcpus) == (guest.uuid, 2)
