"""Snapshots where virtd cannot work on the image files itself, and ones that are called off."""

from __future__ import annotations

import asyncio
import subprocess
from pathlib import Path

import pytest

from tests.qemu.fixtures import Context, Lab
from virtd.backend.api import SnapshotRequest
from virtd.errors import VirtdError
from virtd.libvirt import qemu_img
from virtd.model.guest import GuestState
from virtd.model.snapshot import SnapshotLocation


async def reason_of(call: object, match: str = "") -> str:
    with pytest.raises(VirtdError, match=match) as failed:
        await call  # type: ignore[misc]  # any awaitable
    return failed.value.reason.name


async def test_without_access_to_the_files_libvirt_is_asked(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a host of another machine: chains come from libvirt's volumes; a stopped guest's are not merged."""
    monkeypatch.setattr(qemu_img, "available", lambda: False)
    monkeypatch.setattr(qemu_img, "chain", lambda *_: pytest.fail("qemu-img was used"))
    monkeypatch.setattr(qemu_img, "_run", lambda *_: pytest.fail("qemu-img was used"))
    snapshots = lab.session.facets.snapshots
    assert snapshots is not None
    disk = await lab.volume("far.qcow2")
    uuid = await lab.defined(lab.empty("far", disks=(disk,)))
    for name in ("one", "two"):
        request = SnapshotRequest(name, location=SnapshotLocation.EXTERNAL)
        await snapshots.create_snapshot(uuid, request, Context())
    await snapshots.revert_snapshot(uuid, "two", Context())
    assert await reason_of(snapshots.plan_delete(uuid, "one"), "start the guest first") == "CAPABILITY_UNSUPPORTED"
    await lab.session.start_guest(uuid, Context())
    for name in ("one", "two"):
        await snapshots.delete_snapshot(uuid, name, Context())
    assert await snapshots.list_snapshots(uuid) == []
    assert [entry.path for entry in (await lab.session.get_guest(uuid)).disks] == [disk.path]
    assert await lab.state(uuid) is GuestState.RUNNING


async def test_writing_memory_can_be_called_off(lab: Lab) -> None:
    """The guest runs on, and nothing is left behind."""
    snapshots = lab.session.facets.snapshots
    assert snapshots is not None
    disk = await lab.volume("off.qcow2")
    uuid = await lab.running(lab.empty("off", disks=(disk,), memory_bytes=64 << 20))
    request = SnapshotRequest("off", memory=True, location=SnapshotLocation.EXTERNAL)
    plan = await snapshots.plan_create(uuid, request)
    context = Context()
    work = asyncio.create_task(snapshots.create_snapshot(uuid, request, context, plan))
    await asyncio.sleep(0.02)
    context.cancel()
    try:
        await work
    except VirtdError as error:
        assert error.reason.name == "OPERATION_CANCELLED"
        assert await snapshots.list_snapshots(uuid) == []
        assert [entry.path for entry in (await lab.session.get_guest(uuid)).disks] == [disk.path]
        pool = Path(disk.path).parent
        assert not [path for path in pool.iterdir() if path.name.startswith(f"{uuid.hex[:8]}-")]
    else:
        await snapshots.delete_snapshot(uuid, "off", Context())  # it was quicker
    assert await lab.state(uuid) is GuestState.RUNNING


async def test_a_revert_that_fails_gives_the_former_disks_back(lab: Lab) -> None:
    """Its memory is damaged: the guest is stopped, with its disks as they were before."""
    snapshots = lab.session.facets.snapshots
    assert snapshots is not None
    disk = await lab.volume("back.qcow2")
    uuid = await lab.running(lab.empty("back", disks=(disk,)))
    request = SnapshotRequest("s", memory=True, location=SnapshotLocation.EXTERNAL)
    await snapshots.create_snapshot(uuid, request, Context())
    await lab.session.stop_guest(uuid, Context())
    ((before),) = [entry.path for entry in (await lab.session.get_guest(uuid)).disks]
    subprocess.run(["qemu-io", "-f", "qcow2", "-c", "write -P 7 0 1M", before], check=True, capture_output=True)
    content = Path(before).read_bytes()
    (memory,) = Path(disk.path).parent.glob(f"{uuid.hex[:8]}-memory.s-*")
    damaged = bytearray(memory.read_bytes())
    damaged[-(len(damaged) // 2) :] = bytes(len(damaged) // 2)
    memory.write_bytes(damaged)
    with pytest.raises(VirtdError):
        await snapshots.revert_snapshot(uuid, "s", Context())
    assert await lab.state(uuid) is not GuestState.RUNNING
    assert [entry.path for entry in (await lab.session.get_guest(uuid)).disks] == [before]
    assert Path(before).read_bytes() == content
    await snapshots.delete_snapshot(uuid, "s", Context())
    assert not memory.exists()
