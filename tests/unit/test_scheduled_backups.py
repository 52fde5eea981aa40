"""Schedules that make backups: chains that begin anew, and a retention that respects them."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import pytest

from tests.support.daemons import HOST, Lab, blank, call, running_lab, short_directory
from tests.unit.test_schedules import Bench, Clock, prepared
from virtd.errors import InvalidArgumentError
from virtd.model.backup import Backup, BackupKind
from virtd.model.schedule import BackupAction, Retention, Schedule, SnapshotAction


@pytest.fixture
async def bench() -> AsyncIterator[Bench]:
    with short_directory() as place:
        async with running_lab(place) as lab:
            made = await prepared(lab, Clock())
            await lab.created("a", blank(), start=True)
            yield made


async def backups(lab: Lab) -> list[Backup]:
    return list((await lab.services.backups.list(lab.name("a"), "", "", 0, "")).items)


async def schedule(bench: Bench, **changes: Any) -> None:
    fields = {"guest": f"hosts/{HOST}/guests/a", "every_s": 3600.0, "backup": BackupAction(), **changes}
    await bench.lab.services.schedules.create(call(), "nightly", Schedule("", **fields))


async def test_chains_begin_anew_and_old_ones_go_when_nothing_kept_needs_them(bench: Bench) -> None:
    lab = bench.lab
    await schedule(bench, backup=BackupAction(increments=2), retention=Retention(keep_last=2))
    mine = call()
    await lab.done(
        await lab.services.backups.create(
            mine, lab.name("a"), "of-the-user", BackupKind.FULL, "", quiesce=False, description=""
        )
    )
    seen = []
    for _ in range(7):
        await bench.tick(hours=1)
        status = lab.services.schedules.get("nightly").status
        assert status.last_error is None
        kinds = [b.kind for b in await backups(lab) if b.name != "backups/of-the-user"]
        seen.append("".join(kind.value[0] for kind in kinds))
    # The first builds upon the user's.  Then full, two increments, full: a chain goes as a whole.
    assert seen == ["I", "II", "IIF", "FI", "FII", "FIIF", "FI"]
    names = {b.name for b in await backups(lab)}
    assert "backups/of-the-user" in names, "what a user has made is never pruned"
    for found in await backups(lab):
        assert not found.parent or found.parent in names, "a kept increment has its parent"
        assert (await lab.services.backups.get(found.name.partition("/")[2])).warnings == ()
    operation = await lab.services.backups.verify(call(), (await backups(lab))[-1].name.partition("/")[2])
    await lab.done(operation)


async def test_always_full_keeps_exactly_what_it_is_told(bench: Bench) -> None:
    await schedule(bench, backup=BackupAction(increments=0), retention=Retention(keep_last=2))
    for _ in range(4):
        await bench.tick(hours=1)
    found = await backups(bench.lab)
    assert [b.kind for b in found] == [BackupKind.FULL] * 2
    assert all(b.name.startswith("backups/nightly-") for b in found)


async def test_a_backup_that_fails_prunes_nothing(bench: Bench) -> None:
    await schedule(bench, backup=BackupAction(increments=0), retention=Retention(keep_last=1))
    await bench.tick(hours=1)
    bench.lab.world.faults.fail("backup_read")
    bench.lab.world.native.guests[bench.lab.guest("a").uid].files.disk["/x"] = b"x"
    bench.lab.world.faults.fail("backup_begin")
    await bench.tick(hours=1)
    status = bench.lab.services.schedules.get("nightly").status
    assert status.last_error is not None
    assert len(await backups(bench.lab)) == 1
    bench.lab.world.faults.clear()
    await bench.tick(hours=1)
    assert len(await backups(bench.lab)) == 1
    assert bench.lab.services.schedules.get("nightly").status.failures == 0


@pytest.mark.parametrize(
    "changes",
    [
        {"backup": BackupAction(increments=-1)},
        {"backup": BackupAction(increments=1001)},
        {"snapshot": SnapshotAction()},
        {"backup": None},
    ],
)
async def test_bad_actions_are_refused(bench: Bench, changes: dict[str, Any]) -> None:
    with pytest.raises(InvalidArgumentError):
        await schedule(bench, **changes)
    await bench.tick(hours=1)
    assert await backups(bench.lab) == []
