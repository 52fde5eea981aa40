"""Operations that work on several things at once."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.support.toy import Rig, ToyArguments
from virtd.errors import ConflictError
from virtd.model.operation import Operation, OperationState
from virtd.operations import Submission, joined
from virtd.store import open_database

A, B = "hosts/a/guests/one", "hosts/a/guests/two"


@pytest.fixture
async def rig(tmp_path: Path) -> AsyncIterator[Rig]:
    database = open_database(tmp_path)
    made = Rig(database)
    yield made
    await made.engine.stop(0.0)
    database.close()


async def both(rig: Rig, key: str, *kinds: str, reject: bool = False) -> Operation:
    arguments = ToyArguments(key, B, kinds or ("ok",))
    queue = Submission(caller=key, target=B, queue=joined(B, A), reject_conflict=reject)
    return await rig.engine.submit(rig.toy, arguments, queue)


async def test_it_waits_for_both_and_both_wait_for_it(rig: Rig) -> None:
    first = await rig.submit("first", "hang", queue=A)
    middle = await both(rig, "middle")
    last = await rig.submit("last", queue=B)
    again = await rig.submit("again", queue=A)
    assert (await rig.engine.get(middle.name)).state is OperationState.PENDING
    assert [entry.name for entry in rig.engine.current(A)] == [first.name, middle.name, again.name]
    assert [entry.name for entry in rig.engine.current(B)] == [middle.name, last.name]
    rig.world.released.set()
    ends = [await rig.end(operation) for operation in (first, middle, last, again)]
    assert {end.state for end in ends} == {OperationState.SUCCEEDED}
    starts = [end.start_time for end in ends]
    assert all(time is not None for time in starts)
    assert starts[0] < starts[1] < min(starts[2], starts[3])  # type: ignore[operator,type-var]  # none is None


async def test_two_that_name_them_in_different_orders_do_not_wait_for_each_other(rig: Rig) -> None:
    one = await both(rig, "one")
    arguments = ToyArguments("two", A, ("ok",))
    two = await rig.engine.submit(rig.toy, arguments, Submission(caller="two", target=A, queue=joined(A, B)))
    for operation in (one, two):
        assert (await rig.end(operation)).state is OperationState.SUCCEEDED


async def test_a_conflict_in_either_is_one(rig: Rig) -> None:
    busy = await rig.submit("busy", "hang", queue=A)
    with pytest.raises(ConflictError) as caught:
        await both(rig, "no", reject=True)
    assert caught.value.record.metadata["operation"] == busy.name
    rig.world.released.set()
    await rig.end(busy)


async def test_a_crash_keeps_its_places_in_both(rig: Rig) -> None:
    await rig.submit("first", "hang", queue=A)
    middle = await both(rig, "middle", "ok", "ok")
    last = await rig.submit("last", queue=B)
    await rig.crash()
    rig.world.released.set()
    ends = [await rig.end(operation.name) for operation in (middle, last)]
    assert {end.state for end in ends} == {OperationState.SUCCEEDED}
    assert ends[0].end_time <= ends[1].start_time  # type: ignore[operator]  # both have ended
