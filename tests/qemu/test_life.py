"""One real guest from definition to removal, with all that can be done to it on the way."""

from __future__ import annotations

import asyncio
import time
from dataclasses import replace
from typing import Any

import libvirt
import pytest

from tests.qemu.fixtures import Context, Lab, eventually, read_until
from virtd.backend.api import SnapshotRequest
from virtd.errors import CancelledError, FailedPreconditionError, InvalidArgumentError, NotFoundError, UnavailableError
from virtd.model.console import AgentCommand
from virtd.model.guest import DiskFormat, Firmware, GuestState
from virtd.model.snapshot import SnapshotKind, SnapshotLocation


async def test_whole_life(lab: Lab) -> None:
    disk = await lab.volume("life.qcow2")
    guest = lab.resolved("life", disks=(disk,))
    facets = lab.session.facets
    assert facets.serial_console and facets.agent and facets.snapshots and facets.pause and facets.shutdown
    assert facets.addresses and facets.screenshot and facets.metrics

    await lab.defined(guest)
    stopped = await lab.session.get_guest(guest.uuid)
    assert stopped.state is GuestState.STOPPED
    assert [entry.name for entry in stopped.disks] == ["life"]
    assert stopped.spec.direct_kernel_boot == guest.direct_kernel_boot
    assert stopped.graphics_address == ""

    await lab.session.start_guest(guest.uuid, Context())
    await lab.session.start_guest(guest.uuid, Context())  # idempotent
    console = await facets.serial_console.open_console(guest.uuid)
    with pytest.raises(UnavailableError) as not_yet:
        await facets.agent.ping_agent(guest.uuid)
    assert not_yet.value.reason.name == "AGENT_NOT_READY"
    await read_until(console, b"demo: ready", 90)
    await console.write(b"echo answer-$((40+2))\n")
    await read_until(console, b"answer-42", 20)
    running = await lab.session.get_guest(guest.uuid)
    assert running.graphics_address.startswith("127.0.0.1:")

    await lab.agent_answers(guest.uuid)
    result = await facets.agent.run_command(
        guest.uuid,
        AgentCommand("/bin/sh", ("-c", "cat; echo $WORD >&2; exit 3"), ("WORD=err",), b"fed in"),
        Context(),
    )
    assert (result.exit_code, result.signal) == (3, None)
    assert (result.stdout, result.stderr) == (b"fed in", b"err\n")
    killed = await facets.agent.run_command(guest.uuid, AgentCommand("/bin/sh", ("-c", "kill -9 $$")), Context())
    assert (killed.exit_code, killed.signal) == (None, 9)
    with pytest.raises(InvalidArgumentError) as missing:
        await facets.agent.run_command(guest.uuid, AgentCommand("/no/such"), Context())
    assert missing.value.reason.name == "FIELD_INVALID"

    addresses = await eventually(lambda: facets.addresses.guest_addresses(guest.uuid), 20)
    assert ("net", "10.0.2.15", "AGENT") in {(entry.interface, entry.address, entry.source) for entry in addresses}

    picture = await facets.screenshot.screenshot(guest.uuid)
    assert picture.mime_type == "image/png" and picture.data.startswith(b"\x89PNG\r\n\x1a\n")

    (sample,) = [entry for entry in await facets.metrics.sample_guests() if entry.uid == guest.uuid]
    assert sample.cpu_time_s and sample.cpu_time_s > 0.5
    assert sample.memory_assigned_bytes == guest.memory_bytes
    assert [block.name for block in sample.blocks] == ["vda"]

    await facets.pause.pause_guest(guest.uuid, Context())
    await facets.pause.pause_guest(guest.uuid, Context())
    assert await lab.state(guest.uuid) is GuestState.PAUSED
    with pytest.raises(FailedPreconditionError) as paused:
        await facets.agent.ping_agent(guest.uuid)
    assert paused.value.reason.name == "INVALID_STATE"
    await facets.pause.resume_guest(guest.uuid, Context())
    assert await lab.state(guest.uuid) is GuestState.RUNNING

    async def run(script: str) -> str:
        await lab.agent_answers(guest.uuid)
        answer = await facets.agent.run_command(guest.uuid, AgentCommand("/bin/sh", ("-c", script)), Context())
        return answer.stdout.decode().strip()

    await run("echo before > /tmp/word")
    taken = await facets.snapshots.create_snapshot(guest.uuid, SnapshotRequest("s1", "a word", memory=True), Context())
    assert (taken.kind, taken.guest_state, taken.current) == (SnapshotKind.DISK_AND_MEMORY, "RUNNING", True)
    again = await facets.snapshots.create_snapshot(guest.uuid, SnapshotRequest("s1", memory=True), Context())
    assert again == replace(taken, reason=""), "why it is of its kind is said when it is taken"
    await run("echo after > /tmp/word")
    await facets.snapshots.revert_snapshot(guest.uuid, "s1", Context())
    assert await lab.state(guest.uuid) is GuestState.RUNNING
    assert await run("cat /tmp/word") == "before"
    with pytest.raises(NotFoundError) as unknown:
        await facets.snapshots.revert_snapshot(guest.uuid, "none", Context())
    assert unknown.value.reason.name == "SNAPSHOT_NOT_FOUND"

    # The revert replaced QEMU, so the old console has closed; open the new one and watch it close.
    console = await facets.serial_console.open_console(guest.uuid)
    for _ in range(20):  # a press can be lost: the core presses again, and so does this test
        await facets.shutdown.request_shutdown(guest.uuid, Context())
        await asyncio.sleep(1.5)
        if await lab.state(guest.uuid) is GuestState.STOPPED:
            break
    async with asyncio.timeout(10):
        while await console.read():
            pass
    stopped = await lab.session.get_guest(guest.uuid)
    assert (stopped.state, stopped.state_reason) == (GuestState.STOPPED, "SHUTDOWN")
    with pytest.raises(FailedPreconditionError):
        await facets.shutdown.request_shutdown(guest.uuid, Context())
    await facets.snapshots.delete_snapshot(guest.uuid, "s1", Context())
    await facets.snapshots.delete_snapshot(guest.uuid, "s1", Context())
    await lab.session.undefine_guest(guest.uuid, Context())
    await lab.session.undefine_guest(guest.uuid, Context())
    with pytest.raises(NotFoundError):
        await lab.session.get_guest(guest.uuid)

    await eventually(lambda: any(event.type == "GUEST_UNDEFINED" for event in lab.events.of(guest.uuid)))
    kinds = [event.type.value for event in lab.events.of(guest.uuid)]
    assert kinds[0] == "GUEST_DEFINED" and kinds[-1] == "GUEST_UNDEFINED"
    assert "AGENT_CONNECTED" in kinds
    states = lab.events.states(guest.uuid)
    assert ("RUNNING", "BOOTED") in states and ("PAUSED", "USER") in states
    assert states[-1] == ("STOPPED", "SHUTDOWN")


async def test_disk_boot_by_bios_from_an_overlay(lab: Lab) -> None:
    disk = await lab.volume(
        "boot.qcow2", capacity_bytes=None, source_path=str(lab.demo.disk), source_format=DiskFormat.QCOW2, overlay=True
    )
    await lab.booted(lab.resolved("boot", direct_kernel_boot=None, disks=(disk,)))


async def test_suspend_and_restore(lab: Lab) -> None:
    guest = lab.empty("sleep")
    uuid = await lab.running(guest)
    suspend = lab.session.facets.suspend
    assert suspend is not None
    await suspend.suspend_guest(uuid, Context())
    await suspend.suspend_guest(uuid, Context())
    assert await lab.state(uuid) is GuestState.SUSPENDED
    assert (await lab.session.get_guest(uuid)).has_saved_state
    listed = {entry.uuid: entry.state for entry in await lab.session.list_guests()}
    assert listed[uuid] is GuestState.SUSPENDED
    await lab.session.start_guest(uuid, Context())
    assert await lab.state(uuid) is GuestState.RUNNING
    await suspend.suspend_guest(uuid, Context())
    await suspend.discard_saved_state(uuid, Context())
    await suspend.discard_saved_state(uuid, Context())
    assert await lab.state(uuid) is GuestState.STOPPED


def _save_late(context: Context, monkeypatch: pytest.MonkeyPatch) -> None:
    """Cancel the operation when its save is complete, before it can notice."""
    save = libvirt.virDomain.managedSave

    def wrapper(domain: Any, flags: int = 0) -> None:
        save(domain, flags)
        context.cancel()
        time.sleep(1.5)  # it is looked at twice a second whether somebody has cancelled

    monkeypatch.setattr(libvirt.virDomain, "managedSave", wrapper)


@pytest.mark.parametrize("state", [GuestState.RUNNING, GuestState.PAUSED])
async def test_suspend_that_is_cancelled_too_late_is_undone(
    lab: Lab, monkeypatch: pytest.MonkeyPatch, state: GuestState
) -> None:
    uuid = await lab.running(lab.empty("late"))
    facets, context = lab.session.facets, Context()
    assert facets.suspend and facets.pause
    if state is GuestState.PAUSED:
        await facets.pause.pause_guest(uuid, Context())
    _save_late(context, monkeypatch)
    with pytest.raises(CancelledError):
        await facets.suspend.suspend_guest(uuid, context)
    assert await lab.state(uuid) is state
    assert ("SUSPENDED", "SAVED") in lab.events.states(uuid)
    assert not (await lab.session.get_guest(uuid)).has_saved_state


async def test_suspend_that_cannot_be_undone_is_done(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    uuid = await lab.running(lab.empty("kept"))
    suspend, context = lab.session.facets.suspend, Context()
    assert suspend is not None
    _save_late(context, monkeypatch)

    def refuse(_domain: Any) -> None:
        raise libvirt.libvirtError("told to fail")

    with monkeypatch.context() as patched:
        patched.setattr(libvirt.virDomain, "create", refuse)
        await suspend.suspend_guest(uuid, context)
    assert await lab.state(uuid) is GuestState.SUSPENDED
    assert len(context.notes) == 1
    await suspend.discard_saved_state(uuid, Context())


async def test_stop_and_undefine_of_what_is_not_there(lab: Lab) -> None:
    guest = lab.empty("nobody")
    await lab.session.stop_guest(guest.uuid, Context())
    await lab.session.undefine_guest(guest.uuid, Context())
    with pytest.raises(NotFoundError) as missing:
        await lab.session.start_guest(guest.uuid, Context())
    assert missing.value.reason.name == "GUEST_NOT_FOUND"
    assert missing.value.record.native is not None and missing.value.record.native.code == "42"


async def test_undefine_of_a_running_guest_is_refused(lab: Lab) -> None:
    uuid = await lab.running(lab.empty("busy"))
    with pytest.raises(FailedPreconditionError) as refused:
        await lab.session.undefine_guest(uuid, Context())
    assert refused.value.record.allowed_actions
    assert await lab.state(uuid) is GuestState.RUNNING


async def test_reset_and_reboot(lab: Lab) -> None:
    uuid = await lab.running(lab.empty("reset"))
    facets = lab.session.facets
    assert facets.reset and facets.reboot
    await facets.reset.reset_guest(uuid, Context())
    await eventually(lambda: any(event.reason == "REBOOT" for event in lab.events.of(uuid)))
    await facets.reboot.request_reboot(uuid, Context())
    assert await lab.state(uuid) is GuestState.RUNNING


async def test_uefi_guest_starts_and_leaves_no_variables(lab: Lab) -> None:
    disk = await lab.volume("uefi.qcow2")
    guest = lab.empty("uefi", firmware=Firmware.UEFI, memory_bytes=128 << 20, disks=(disk,))
    uuid = await lab.running(guest)
    assert (await lab.session.get_guest(uuid)).spec.firmware is Firmware.UEFI
    variables = lab.daemon.directory / "lib" / "qemu" / "nvram"
    assert [path.name for path in variables.glob(f"{guest.name}*")]
    snapshots = lab.session.facets.snapshots
    assert snapshots is not None
    request = SnapshotRequest("no", memory=True, location=SnapshotLocation.INTERNAL)
    with pytest.raises(Exception, match="UEFI") as refused:
        await snapshots.create_snapshot(uuid, request, Context())
    assert refused.value.reason.name == "CAPABILITY_UNSUPPORTED"
    await lab.session.stop_guest(uuid, Context())
    await lab.session.undefine_guest(uuid, Context())
    assert not list(variables.glob(f"{guest.name}*"))
