"""libvirt's in-process test driver: the same session code without any hypervisor."""

from __future__ import annotations

import asyncio
from uuid import uuid4

import libvirt
import pytest
from virtd_kvm.session import KvmSession

from tests.qemu.fixtures import Context, Events, eventually
from virtd.backend.api import ResolvedDisk, ResolvedGuest, SnapshotRequest
from virtd.errors import AlreadyExistsError, VirtdError
from virtd.model.guest import Accelerator, DiskBus, DiskFormat, GuestState
from virtd.model.host import CapabilityLevel

COUNT = 200


def guest(index: int) -> ResolvedGuest:
    return ResolvedGuest(uuid4(), f"many-{index}", 1, 64 << 20, Accelerator.TCG)


async def test_many_guests_are_listed_by_two_native_calls(
    test_driver: KvmSession, monkeypatch: pytest.MonkeyPatch
) -> None:
    guests = [guest(index) for index in range(COUNT)]
    await asyncio.gather(*(test_driver.define_guest(entry, Context()) for entry in guests))
    await asyncio.gather(*(test_driver.start_guest(entry.uuid, Context()) for entry in guests[:50]))
    calls: list[str] = []
    for name in ("getAllDomainStats", "listAllDomains", "lookupByUUID"):
        original = getattr(libvirt.virConnect, name)

        def counted(*args: object, _name: str = name, _original: object = original) -> object:
            calls.append(_name)
            return _original(*args)  # type: ignore[operator]  # libvirt's method

        monkeypatch.setattr(libvirt.virConnect, name, counted)
    listed = {entry.uuid: entry for entry in await test_driver.list_guests()}
    assert len(calls) <= 2, calls
    assert {entry.uuid for entry in guests} <= set(listed)
    assert sum(entry.state is GuestState.RUNNING for entry in listed.values()) == 50 + 1  # and the driver's own
    assert listed[guests[60].uuid].name == "many-60"


async def test_events_come_in_order_without_loss(test_driver: KvmSession) -> None:
    seen = Events()
    reader = asyncio.create_task(seen.run(test_driver))
    guests = [guest(index) for index in range(40)]
    suspended = test_driver.facets.pause
    assert suspended is not None

    async def live(entry: ResolvedGuest) -> None:
        await test_driver.define_guest(entry, Context())
        await test_driver.start_guest(entry.uuid, Context())
        await suspended.pause_guest(entry.uuid, Context())
        await suspended.resume_guest(entry.uuid, Context())
        await test_driver.stop_guest(entry.uuid, Context())
        await test_driver.undefine_guest(entry.uuid, Context())

    await asyncio.gather(*(live(entry) for entry in guests))
    await eventually(lambda: sum(event.type == "GUEST_UNDEFINED" for event in seen.seen) == len(guests))
    for entry in guests:
        kinds = [event.state.value if event.state else event.type.value for event in seen.of(entry.uuid)]
        assert kinds == ["GUEST_DEFINED", "RUNNING", "PAUSED", "RUNNING", "STOPPED", "GUEST_UNDEFINED"]
    reader.cancel()


async def test_what_the_driver_lacks_is_said(test_driver: KvmSession) -> None:
    facts = await test_driver.probe()
    levels = {entry.id: entry for entry in facts.capabilities}
    for absent in ("guest.console.serial", "guest.agent.exec", "host.acceleration"):
        assert levels[absent].level is CapabilityLevel.UNSUPPORTED
        assert "test driver" in levels[absent].reason
    assert test_driver.facets.serial_console is None and test_driver.facets.agent is None
    assert facts.accelerators == () and facts.default_accelerator == ""


async def test_snapshots_form_a_tree(test_driver: KvmSession) -> None:
    entry = guest(0)
    await test_driver.define_guest(entry, Context())
    snapshots = test_driver.facets.snapshots
    assert snapshots is not None
    for name in ("a", "b", "c"):
        await snapshots.create_snapshot(entry.uuid, SnapshotRequest(name, f"about {name}"), Context())
    await snapshots.revert_snapshot(entry.uuid, "a", Context())
    await snapshots.create_snapshot(entry.uuid, SnapshotRequest("d"), Context())
    tree = await snapshots.list_snapshots(entry.uuid)
    assert tree[0].name == "a"
    assert {(item.name, item.parent) for item in tree} == {("a", ""), ("b", "a"), ("c", "b"), ("d", "a")}
    assert [item.name for item in tree if item.current] == ["d"]
    await snapshots.delete_snapshot(entry.uuid, "b", Context())
    assert {(item.name, item.parent) for item in await snapshots.list_snapshots(entry.uuid)} == {
        ("a", ""),
        ("c", "a"),
        ("d", "a"),
    }


async def test_names_and_duplicates(test_driver: KvmSession) -> None:
    entry = guest(0)
    disks = (ResolvedDisk("root & <data>", "/x/'\"<&>.qcow2", DiskFormat.QCOW2, DiskBus.VIRTIO),)
    odd = ResolvedGuest(entry.uuid, 'odd & <name> "x"', 1, 64 << 20, Accelerator.TCG, disks=disks)
    made = await test_driver.define_guest(odd, Context())
    assert made.name == odd.name
    assert [(disk.name, disk.path) for disk in made.disks] == [("root & <data>", "/x/'\"<&>.qcow2")]
    with pytest.raises(AlreadyExistsError) as refused:
        await test_driver.define_guest(ResolvedGuest(uuid4(), odd.name, 1, 64 << 20, Accelerator.TCG), Context())
    assert refused.value.reason.name == "GUEST_EXISTS"


async def test_closed_session_is_unreachable(test_driver: KvmSession) -> None:
    await test_driver.close()
    await test_driver.close()
    with pytest.raises(VirtdError) as closed:
        await test_driver.list_guests()
    assert closed.value.reason.name == "HOST_UNREACHABLE"
