"""Migration between two fake hosts: every way in which it can fail."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from tests.support.daemons import blank
from tests.support.migrating import MARK, Pair, pair, place, two, write_marks
from virtd.errors import VirtdError
from virtd.model.guest import GuestState
from virtd.model.operation import OperationState

__all__ = ["place", "two"]


async def test_a_cancel_leaves_it_running(two: Pair) -> None:
    await two.lab.created("a", blank(), start=True)
    write_marks(two)
    hang = two.here.faults.hang("migration_pass")
    operation = await two.migrate()
    await two.lab.until(lambda: hang.entered > 0)
    await two.core.engine.cancel(operation.name)
    ended = await two.lab.end(operation)
    assert ended.state is OperationState.CANCELLED
    assert two.running() == two.known() == ["lab"]
    assert two.lab.state("a") is GuestState.RUNNING
    assert two.volumes(two.there) == []
    assert next(iter(two.here.native.guests.values())).files.memory["/run/mark"] == MARK
    two.here.faults.clear()
    await two.done()
    assert two.running() == ["other"]


async def counted(place: Path, live: bool) -> dict[str, dict[str, int]]:
    """The native calls that a good migration makes, by host."""
    async with pair(place) as two:
        await two.lab.created("a", blank(), start=live)
        for world in (two.here, two.there):
            world.faults.counts.clear()
        with two.here.recording() as here, two.there.recording() as there:
            await two.done()
        return {"here": {call: here.count(call) for call in here}, "there": {call: there.count(call) for call in there}}


@pytest.mark.parametrize("after", [False, True])
@pytest.mark.parametrize("live", [True, False])
async def test_every_native_failure_leaves_one_guest(place: Path, live: bool, after: bool) -> None:
    """Whatever call of either host fails: one guest, where the operation says, and no disk that is nobody's."""
    (place / "count").mkdir()
    calls = await counted(place / "count", live)
    cases = [(side, name) for side, names in calls.items() for name in names]
    assert {("here", "migration_switch"), ("there", "migration_prepare")} <= set(cases) or not live
    ends = set()
    for number, (side, name) in enumerate(cases):
        (place / str(number)).mkdir()
        async with pair(place / str(number)) as two:
            await two.lab.created("a", blank(), start=live)
            (two.here if side == "here" else two.there).faults.fail(name, after=after)
            try:
                ended = await two.lab.end(await two.migrate())
            except VirtdError:
                ended = None  # it was found out before anything began
            two.here.faults.clear()
            two.there.faults.clear()
            moved = ended is not None and ended.state is OperationState.SUCCEEDED
            ends.add(moved)
            where, name_now = ("other", two.moved) if moved else ("lab", two.name)
            assert two.known() == [where], (side, name, ended)
            assert two.running() == ([where] if live else []), (side, name)
            view = two.core.inventory.get(name_now)
            assert view.guest.status.state is (GuestState.RUNNING if live else GuestState.STOPPED), (side, name)
            assert (two.view(two.moved) is None) is not moved
            left = ended is not None and any("left" in warning or "undone" in warning for warning in ended.warnings)
            assert len(two.volumes(two.there)) == moved or left, (side, name, ended)
            assert len(two.volumes(two.here)) == (not moved) or left, (side, name, ended)
    assert ends == {True, False}


async def test_a_target_that_dies_midway(two: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("virtd.service.verbs.migrate.UNDO_PATIENCE_S", 0.2)
    monkeypatch.setattr("virtd.service.verbs.migrate.LOOK_S", 0.05)
    await two.lab.created("a", blank(), start=True)
    hang = two.here.faults.hang("migration_pass")
    operation = await two.migrate()
    await two.lab.until(lambda: hang.entered > 0)
    two.there.disconnect()
    two.here.faults.clear()
    ended = await two.lab.failed(operation, "MIGRATION_FAILED")
    assert "goes on on lab" in (ended.error.message if ended.error else "")
    assert two.lab.state("a") is GuestState.RUNNING
    assert any("virtd/a-root" in warning for warning in ended.warnings)  # what is left is named
    two.there.reconnect()
    await two.lab.until(lambda: two.core.links["other"].host.state.value == "CONNECTED")


async def test_a_source_that_falls_silent_is_waited_for(two: Pair) -> None:
    await two.lab.created("a", blank(), start=True)
    hang = two.here.faults.hang("migration_pass")
    operation = await two.migrate()
    await two.lab.until(lambda: hang.entered > 0)
    two.here.disconnect()
    two.here.faults.clear()
    await two.lab.until(lambda: any("waiting for the host" in n.message for n in two.core.engine.live()[0].notes))
    await two.core.engine.cancel(operation.name)
    await asyncio.sleep(0.3)
    assert not two.core.engine.live()[0].state.terminal  # nobody can tell where the guest is
    two.here.reconnect()
    ended = await two.lab.end(operation)
    assert ended.state is OperationState.CANCELLED
    assert two.running() == two.known() == ["lab"]


async def test_two_running_copies_are_never_touched(two: Pair) -> None:
    guest = await two.lab.created("a", blank(), start=True)
    hang = two.there.faults.hang("migration_prepare")
    operation = await two.migrate()
    await two.lab.until(lambda: hang.entered > 0)
    two.there.native.define_foreign("a", guest.uid)
    two.there.native.start_foreign(guest.uid)
    two.there.faults.clear()
    ended = await two.lab.end(operation)
    assert ended.state is OperationState.FAILED
    assert two.running() == ["lab", "other"]
    assert two.lab.state("a") is GuestState.RUNNING
