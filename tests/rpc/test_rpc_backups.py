"""Backups through the public API, on a daemon with the fake backend: what the messages say, and every refusal."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from virtd_client import AsyncClient, errors

from tests.support.daemons import HOST, Lab, blank, running_lab, short_directory
from virtd.v1.backup_pb2 import BACKUP_KIND_FULL, BACKUP_KIND_INCREMENTAL

GUEST = f"hosts/{HOST}/guests/a"


@asynccontextmanager
async def daemon() -> AsyncIterator[tuple[Lab, AsyncClient, Path]]:
    with short_directory() as place:
        async with running_lab(place) as lab:
            client = AsyncClient.connect(f"unix:{place}/virtd.sock", timeout_s=20)
            try:
                yield lab, client, place
            finally:
                await client.close()


async def write(client: AsyncClient, text: bytes) -> None:
    done = await client.agent.exec(GUEST, "/bin/tee", ["/data/file"], input_data=text)
    assert done.exit_code == 0


async def test_a_backups_life_through_the_api() -> None:
    async with daemon() as (lab, client, place):
        await lab.created("a", blank(), start=True)
        await write(client, b"one")
        first = await (await client.backups.create(GUEST, "b0", description="the first")).result(timeout_s=20)
        await write(client, b"two")
        operation = await client.backups.create(GUEST, "b1", kind="incremental", quiesce=True)
        second = await operation.result(timeout_s=20)
        assert operation.metadata.target == GUEST
        assert list(operation.metadata.stages) == ["check", "copy", "prune"]
        assert (first.kind, second.kind) == (BACKUP_KIND_FULL, BACKUP_KIND_INCREMENTAL)
        assert (second.name, second.parent, second.guest) == ("backups/b1", "backups/b0", GUEST)
        assert (second.quiesced, second.guest_state, second.repository) == (True, "RUNNING", "default")
        assert second.spec.memory_bytes == 64 << 20
        (disk,) = second.disks
        assert (disk.name, disk.format, disk.capacity_bytes) == ("root", "qcow2", 8 << 20)
        assert disk.digest.startswith("sha256:")
        assert disk.content_digest.startswith("sha256:")
        assert second.create_time.ToDatetime() > first.create_time.ToDatetime()
        assert await client.backups.get("backups/b0") == first
        assert await client.backups.list(GUEST) == (first, second)
        assert await client.backups.list(f"hosts/{HOST}", filter="kind=incremental", page_size=1) == (second,)
        (repository,) = await client.backups.repositories()
        assert (repository.name, repository.backup_count) == ("default", 2)
        assert repository.path == str(place / "state" / "backups")
        found = await (await client.backups.verify("backups/b1")).result(timeout_s=20)
        assert found.valid
        assert list(found.chain) == ["backups/b0", "backups/b1"]
        assert found.checked_bytes >= first.stored_bytes + second.stored_bytes
        guest = await (await client.backups.restore("backups/b1", "r", display_name="Again", start=True)).result(20)
        assert (guest.name, guest.display_name) == (f"hosts/{HOST}/guests/r", "Again")
        assert lab.world.native.guests[lab.guest("r").uid].files.disk["/data/file"] == b"two"
        (place / "state" / "backups" / "b0" / "disk0.data").unlink()
        bad = await (await client.backups.verify("backups/b1")).result(timeout_s=20)
        assert not bad.valid
        assert [(p.backup, p.file, p.description) for p in bad.problems] == [("backups/b0", "disk0.data", "is missing")]
        assert any("missing" in warning for warning in (await client.backups.get("backups/b0")).warnings)
        await (await client.backups.delete("backups/b0", with_increments=True)).result(timeout_s=20)
        assert await client.backups.list() == ()


@pytest.mark.parametrize(
    ("method", "arguments", "reason"),
    [
        ("create", {"guest": "nonsense", "backup_id": "x"}, "FIELD_INVALID"),
        ("create", {"guest": GUEST, "backup_id": ""}, "FIELD_INVALID"),
        ("create", {"guest": GUEST, "backup_id": "../../x"}, "FIELD_INVALID"),
        ("create", {"guest": GUEST, "backup_id": "b0"}, "BACKUP_EXISTS"),
        ("create", {"guest": GUEST, "backup_id": "x", "repository": "other"}, "REPOSITORY_NOT_FOUND"),
        ("create", {"guest": GUEST, "backup_id": "x", "quiesce": True}, "INVALID_STATE"),
        ("create", {"guest": f"hosts/{HOST}/guests/none", "backup_id": "x"}, "GUEST_NOT_FOUND"),
        ("create", {"guest": "hosts/none/guests/a", "backup_id": "x"}, "HOST_NOT_FOUND"),
        ("get", {"name": "backups/none"}, "BACKUP_NOT_FOUND"),
        ("get", {"name": "backups/.b0.part"}, "FIELD_INVALID"),
        ("get", {"name": "backups/../b0"}, "FIELD_INVALID"),
        ("list", {"source": "images/x"}, "FIELD_INVALID"),
        ("list", {"filter": "nonsense=1"}, "FILTER_INVALID"),
        ("list", {"repository": "other"}, "REPOSITORY_NOT_FOUND"),
        ("list", {"page_size": -1}, "FIELD_INVALID"),
        ("verify", {"name": "backups/none"}, "BACKUP_NOT_FOUND"),
        ("delete", {"name": "backups/none"}, "BACKUP_NOT_FOUND"),
        ("delete", {"name": "backups/b0"}, "BACKUP_IN_USE"),
        ("restore", {"name": "backups/none", "guest_id": "r"}, "BACKUP_NOT_FOUND"),
        ("restore", {"name": "backups/b0", "guest_id": ""}, "FIELD_INVALID"),
        ("restore", {"name": "backups/b0", "guest_id": "A B"}, "FIELD_INVALID"),
        ("restore", {"name": "backups/b0", "guest_id": "a"}, "GUEST_EXISTS"),
        ("restore", {"name": "backups/b0", "guest_id": "r", "keep_identity": True}, "GUEST_EXISTS"),
        ("restore", {"name": "backups/b0", "guest_id": "r", "parent": "hosts/none"}, "HOST_NOT_FOUND"),
        ("restore", {"name": "backups/b0", "guest_id": "r", "pool": "none"}, "POOL_NOT_FOUND"),
    ],
)
async def test_refusals_name_what_is_wrong_and_leave_nothing(
    stock: tuple[Lab, AsyncClient, Path], method: str, arguments: dict[str, Any], reason: str
) -> None:
    lab, client, place = stock
    with pytest.raises(errors.VirtdError) as refused:
        await getattr(client.backups, method)(**arguments)
    assert refused.value.reason == reason, refused.value
    assert str(refused.value)
    assert sorted(entry.name for entry in (place / "state" / "backups").iterdir()) == ["b0", "b1"]
    assert [view.guest.name for view in lab.core.inventory.guests()] == [GUEST]


@pytest.fixture
async def stock() -> AsyncIterator[tuple[Lab, AsyncClient, Path]]:
    """A stopped guest with a full backup and an increment."""
    async with daemon() as (lab, client, place):
        await lab.created("a", blank())
        for name in ("b0", "b1"):
            await (await client.backups.create(GUEST, name)).result(timeout_s=20)
        yield lab, client, place


async def test_a_repeated_request_makes_one_backup() -> None:
    async with daemon() as (lab, client, _):
        await lab.created("a", blank())
        request_id = "99999999-8888-4777-8666-555555555555"
        first = await client.backups.create(GUEST, "b0", request_id=request_id)
        again = await client.backups.create(GUEST, "b0", request_id=request_id)
        assert first.name == again.name
        await again.result(timeout_s=20)
        assert len(await client.backups.list()) == 1
