"""The engine under every order of submissions, cancels, failures, full disks and crashes that hypothesis finds.

Each example is a script.  At its end everything that hangs is let go and every operation runs to its end; then
the world must be what the operations say it is.
"""

from __future__ import annotations

import asyncio
import itertools
import tempfile
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from unittest import mock

import structlog
from hypothesis import HealthCheck, Phase, example, given, settings
from hypothesis import strategies as st

from tests.support.daemons import until
from tests.support.toy import Rig
from virtd.errors import FailedPreconditionError, ResourceExhaustedError
from virtd.model.operation import Operation, OperationState
from virtd.operations import engine, worker
from virtd.store import open_database

KINDS = ("ok", "ok", "ok", "fail", "fail-late", "hang", "deaf", "silent", "defect")
QUEUES = ("hosts/a/guests/x", "hosts/a/guests/y", "hosts/b/guests/z")


@dataclass(frozen=True)
class Submit:
    queue: str
    kinds: tuple[str, ...]
    sure: frozenset[int]
    fixed: frozenset[int]


@dataclass(frozen=True)
class Cancel:
    which: int


@dataclass(frozen=True)
class Turns:
    count: int


@dataclass(frozen=True)
class Crash:
    pass


@dataclass(frozen=True)
class Release:
    pass


@dataclass(frozen=True)
class Disk:
    full: bool


Action = Submit | Cancel | Turns | Crash | Release | Disk


@st.composite
def submissions(draw: st.DrawFn) -> Submit:
    kinds = tuple(draw(st.lists(st.sampled_from(KINDS), min_size=1, max_size=4)))
    indexes = st.frozensets(st.integers(0, len(kinds) - 1))
    return Submit(draw(st.sampled_from(QUEUES)), kinds, draw(indexes), draw(indexes))


ACTIONS = st.one_of(
    submissions(),
    submissions(),
    st.builds(Cancel, st.integers(0, 9)),
    st.builds(Turns, st.integers(1, 12)),
    st.builds(Turns, st.integers(1, 60)),
    st.builds(Crash),
    st.builds(Release),
    st.builds(Disk, st.booleans()),
)


@settings(
    max_examples=80,
    deadline=None,
    phases=(Phase.explicit, Phase.reuse, Phase.generate, Phase.shrink),
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.large_base_example, HealthCheck.data_too_large],
)
@given(script=st.lists(ACTIONS, min_size=3, max_size=25))
@example([Submit(QUEUES[0], ("ok", "hang"), frozenset({1}), frozenset()), Turns(30), Crash(), Cancel(0), Crash()])
@example([Submit(QUEUES[0], ("hang", "ok"), frozenset(), frozenset({0, 1})), Turns(30), Cancel(0), Crash(), Release()])
@example([Submit(QUEUES[0], ("ok", "fail"), frozenset(), frozenset()), Turns(9), Disk(True), Turns(30), Crash()])
@example(
    # It could not be journalled that k1 begins, nor that it failed: the next daemon does it after all.
    [
        Submit(QUEUES[0], ("ok",), frozenset(), frozenset()),
        Submit(QUEUES[0], ("ok",), frozenset({0}), frozenset({0})),
        Crash(),
        Disk(full=True),
        Cancel(0),
        Submit(QUEUES[0], ("ok",), frozenset(), frozenset()),
        Crash(),
    ]
)
def test_the_world_is_what_the_operations_say(script: list[Action]) -> None:
    # Tracebacks of the defects that the scripts are full of take longer to draw than all the rest.
    with (
        tempfile.TemporaryDirectory() as place,
        mock.patch.object(engine, "ENDING_S", 0.01),
        mock.patch.multiple(worker, CANCEL_GRACE_S=0.02, RETRY_FIRST_S=0.002, RETRY_MAX_S=0.005),
        structlog.testing.capture_logs(),
    ):
        asyncio.run(_play(Path(place), script))


async def _play(place: Path, script: list[Action]) -> None:
    database = open_database(place)
    rig = Rig(database)
    plans: dict[str, Submit] = {}
    names: dict[str, str] = {}
    keys: Iterator[str] = (f"k{number}" for number in itertools.count())
    for action in script:
        match action:
            case Submit():
                key = next(keys)
                with suppress(ResourceExhaustedError):
                    operation = await rig.submit(
                        key, *action.kinds, queue=action.queue, sure=action.sure, fixed=action.fixed
                    )
                    plans[key], names[key] = action, operation.name
            case Cancel():
                if names:
                    with suppress(FailedPreconditionError):
                        await rig.engine.cancel(list(names.values())[action.which % len(names)])
            case Turns():
                for _ in range(action.count):
                    await asyncio.sleep(0)
                await asyncio.sleep(0.002)
            case Crash():
                await rig.crash()
            case Release():
                rig.world.released.set()
            case Disk():
                rig.fuse.full = action.full
    rig.fuse.full = False
    rig.world.released.set()
    await until(lambda: not rig.engine.live())
    try:
        ends = {operation.caller: operation for operation in await rig.engine.list()}
        _check(rig, plans, names, ends)
    finally:
        await rig.engine.stop(0.0)
        database.close()


def _check(rig: Rig, plans: dict[str, Submit], names: dict[str, str], ends: dict[str, Operation]) -> None:
    world = rig.world
    assert {key: ends[key].name for key in names} == names, "what was returned is there"
    assert set(ends) == set(names), "and nothing else: what was refused did not happen"
    assert not world.overlaps
    for key, operation in ends.items():
        _check_one(rig, key, plans[key], operation)
    for queue, order in world.order.items():
        submitted = [key for key, plan in plans.items() if plan.queue == queue]
        assert order == [key for key in submitted if key in order], "a queue works in order"


def _check_one(rig: Rig, key: str, plan: Submit, operation: Operation) -> None:
    world, steps = rig.world, range(len(plan.kinds))
    # Exactly one terminal state, and it is the last word, also over crashes.
    told = [change.state for change in rig.told if change.name == operation.name]
    ends = [state for state in told if state.terminal]
    assert ends, f"nobody was told of the end of {key}"
    assert set(ends) == {operation.state}
    assert all(state.terminal for state in told[told.index(ends[0]) :])
    assert not any((key, index) in world.half for index in steps), "nothing is left half done"
    done = {index for index in steps if (key, index) in world.done}
    if operation.state is OperationState.SUCCEEDED:
        assert done == set(steps)
        for index in plan.sure:
            assert world.effects[key, index] - world.removed[key, index] == 1, f"one effect of {key}.{index}"
    else:
        assert done == set(), f"{key} ended {operation.state} but left {done}"
        assert operation.error is not None
    if operation.state is OperationState.CANCELLED:
        assert operation.cancel_requested
    if operation.state is OperationState.FAILED:
        assert operation.error is not None
        reason = operation.error.reason
        full = reason == "STORAGE_FULL"
        assert full or reason in {"BACKEND_ERROR", "INTERNAL_ERROR", "OPERATION_INTERRUPTED"}
