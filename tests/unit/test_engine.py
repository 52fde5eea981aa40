"""The operations engine: one terminal state, undo as the inverse of do, order, cancel, crash, idempotency.

Longer than 500 lines because every promise of the engine is held to the same toy world.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.daemons import until
from tests.support.toy import Rig, Toy, ToyArguments
from virtd.errors import (
    GUEST_NOT_FOUND,
    ConflictError,
    FailedPreconditionError,
    InvalidArgumentError,
    NotFoundError,
    ResourceExhaustedError,
    UnavailableError,
)
from virtd.model.operation import Operation, OperationState
from virtd.operations import Outcome, Run, Step, Submission, Verb, worker
from virtd.store import open_database

S = OperationState


@pytest.fixture(autouse=True)
def _impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(worker, "CANCEL_GRACE_S", 0.05)
    monkeypatch.setattr(worker, "RETRY_FIRST_S", 0.005)
    monkeypatch.setattr(worker, "RETRY_MAX_S", 0.02)


@pytest.fixture
async def rig(tmp_path: Path) -> AsyncIterator[Rig]:
    database = open_database(tmp_path)
    made = Rig(database)
    yield made
    await made.engine.stop(0.0)
    database.close()


def stages(rig: Rig, operation: Operation) -> list[str]:
    found: list[str] = []
    for told in rig.told:
        if told.name == operation.name and told.stage and (not found or found[-1] != told.stage):
            found.append(told.stage)
    return found


# ------------------------------------------------------------------------------------- the good way


async def test_an_operation_goes_through_its_steps_to_one_end(rig: Rig) -> None:
    started = await rig.submit("a", "ok", "ok", "ok")
    assert started.state is S.PENDING
    assert started.stages == ("s0", "s1", "s2")
    ended = await rig.end(started)
    assert ended.state is S.SUCCEEDED
    assert (ended.fraction, ended.result, ended.result_data) == (1.0, "a", {"steps": "3"})
    assert stages(rig, started) == ["s0", "s1", "s2"]
    assert rig.told[0].state is S.PENDING
    revisions = [told.revision for told in rig.told]
    assert revisions == sorted(set(revisions))
    assert rig.finished == [ended]
    assert await rig.engine.get(started.name) == ended
    assert rig.world.done == {("a", 0), ("a", 1), ("a", 2)}


async def test_nobody_is_told_of_an_end_that_is_not_on_disk(rig: Rig) -> None:
    on_disk: list[str] = []

    def finished(operation: Operation) -> None:
        row = rig.database.read_now(
            lambda c: c.execute("SELECT terminal FROM operations WHERE id = ?", (operation.name,)).fetchone()
        )
        on_disk.append(row[0])

    rig.engine.on_finished = finished
    await rig.end(await rig.submit("a"))
    assert on_disk == [1]


async def test_fractions_never_go_back_and_are_weighted(rig: Rig) -> None:
    await rig.end(await rig.submit("a", *["ok"] * 10))
    fractions = [told.fraction for told in rig.told if told.fraction is not None]
    assert fractions == sorted(fractions)
    assert fractions[-1] == 1.0


async def test_a_queue_works_in_order_and_queues_work_side_by_side(rig: Rig) -> None:
    first = await rig.submit("a", "hang")
    more = [await rig.submit(f"b{n}") for n in range(5)]
    other = await rig.submit("z", queue="hosts/a/guests/other")
    assert (await rig.end(other)).state is S.SUCCEEDED
    assert (await rig.engine.get(more[0].name)).state is S.PENDING
    assert [entry.caller for entry in rig.engine.current("hosts/a/guests/g")] == ["a", "b0", "b1", "b2", "b3", "b4"]
    rig.world.released.set()
    for operation in (first, *more):
        await rig.end(operation)
    assert rig.world.order["hosts/a/guests/g"] == ["a", "b0", "b1", "b2", "b3", "b4"]
    assert not rig.world.overlaps
    assert rig.engine.current("hosts/a/guests/g") == ()


async def test_submissions_at_once_keep_their_order(rig: Rig) -> None:
    operations = await asyncio.gather(*(rig.submit(f"k{n:02}") for n in range(30)))
    for operation in operations:
        await rig.end(operation)
    assert rig.world.order["hosts/a/guests/g"] == [f"k{n:02}" for n in range(30)]


async def test_a_host_that_hangs_does_not_stop_another(tmp_path: Path) -> None:
    database = open_database(tmp_path)
    rig = Rig(database, options={"parallel": 2})
    hanging = [await rig.submit(f"h{n}", "hang", queue=f"hosts/dead/guests/{n}") for n in range(5)]
    await until(lambda: rig.engine.depth["RUNNING"] == 2)
    assert (await rig.end(await rig.submit("ok", queue="hosts/good/guests/a"))).state is S.SUCCEEDED
    # And what waits for a slot can be cancelled without one.
    assert (await rig.engine.cancel(hanging[4].name)).cancel_requested
    assert (await rig.end(hanging[4])).state is S.CANCELLED
    rig.world.released.set()
    for operation in hanging[:4]:
        assert (await rig.end(operation)).state is S.SUCCEEDED
    await rig.engine.stop(0.0)
    database.close()


# ------------------------------------------------------------------------------------- the bad way


@pytest.mark.parametrize("kind", ["fail", "fail-late", "defect"])
@pytest.mark.parametrize("at", [0, 1, 2])
async def test_a_failure_undoes_everything_backwards(rig: Rig, kind: str, at: int) -> None:
    kinds = ["ok"] * 3
    kinds[at] = kind
    ended = await rig.end(started := await rig.submit("a", *kinds))
    assert ended.state is S.FAILED
    assert ended.error is not None
    assert ended.error.reason == ("INTERNAL_ERROR" if kind == "defect" else "BACKEND_ERROR")
    assert ended.error.resource == "hosts/a/guests/g"
    assert "ZeroDivision" not in ended.error.message or kind == "defect"
    assert rig.world.done == set()
    assert rig.world.half == set()
    undone = [stage for stage in stages(rig, started) if stage.startswith("undo:")]
    assert undone == [f"undo:s{index}" for index in range(at, -1, -1)]


async def test_what_cannot_be_undone_is_told_and_does_not_stop_the_rest(rig: Rig) -> None:
    rig.world.undo_refuses.add(("a", 1))
    ended = await rig.end(await rig.submit("a", "ok", "ok", "fail"))
    assert ended.state is S.FAILED
    assert any("s1 could not be undone" in warning for warning in ended.warnings)
    assert rig.world.done == {("a", 1)}


async def test_the_next_in_the_queue_goes_on_after_a_failure(rig: Rig) -> None:
    await rig.submit("a", "fail")
    assert (await rig.end(await rig.submit("b"))).state is S.SUCCEEDED


async def test_a_listener_with_a_defect_does_not_hold_an_operation_up(rig: Rig) -> None:
    def broken(_operation: Operation) -> None:
        raise RuntimeError("encoder")

    rig.engine.on_change = broken
    rig.engine.on_finished = broken
    assert (await rig.end(await rig.submit("a"))).state is S.SUCCEEDED
    assert (await rig.end(await rig.submit("b"))).state is S.SUCCEEDED


async def test_a_silent_host_is_waited_for_and_the_step_found_out_about(rig: Rig) -> None:
    ended = await rig.end(await rig.submit("a", "silent", sure=frozenset({0})))
    assert ended.state is S.SUCCEEDED
    assert rig.world.effects["a", 0] == 1, "it was done once, and then found done"
    assert any("waiting for the host" in note.message for note in ended.notes)


async def test_what_cannot_be_found_out_is_not_done_again(rig: Rig) -> None:
    ended = await rig.end(await rig.submit("a", "silent", lost=frozenset({0})))
    assert ended.state is S.FAILED
    assert ended.error is not None
    assert ended.error.reason == "OPERATION_INTERRUPTED"
    assert rig.world.effects["a", 0] == 1


class _Unreadable(Toy):
    """Its result cannot be read, or not be written."""

    name = "unreadable"

    def __init__(self, rig: Rig, outcome: Any) -> None:
        super().__init__(rig.world)
        self.outcome = outcome

    async def finish(self, run: Run[ToyArguments]) -> Outcome:
        if isinstance(self.outcome, Exception):
            raise self.outcome
        return self.outcome  # type: ignore[no-any-return]


@pytest.mark.parametrize("outcome", [ValueError("x"), Outcome("a", response=object()), Outcome("a")])  # type: ignore[arg-type]
async def test_done_is_done_also_if_the_answer_cannot_be_given(rig: Rig, outcome: Any) -> None:
    verb = _Unreadable(rig, outcome)
    rig.engine.register(verb)
    started = await rig.engine.submit(verb, ToyArguments("a", "q"), Submission("a", "q", "q"))
    ended = await rig.end(started)
    assert ended.state is S.SUCCEEDED
    assert rig.world.done == {("a", 0)}
    assert bool(ended.warnings) == isinstance(outcome, Exception)


# ------------------------------------------------------------------------------------------ time


async def test_the_time_limit_undoes(rig: Rig) -> None:
    ended = await rig.end(await rig.submit("a", "ok", "hang", timeout_s=0.05))
    assert ended.state is S.FAILED
    assert ended.error is not None
    assert ended.error.reason == "DEADLINE_EXCEEDED"
    assert rig.world.done == set()


async def test_waiting_in_the_queue_costs_no_time(rig: Rig) -> None:
    await rig.submit("a", "hang")
    second = await rig.submit("b", "ok", timeout_s=0.05)
    await asyncio.sleep(0.15)
    rig.world.released.set()
    assert (await rig.end(second)).state is S.SUCCEEDED


async def test_configured_limits_go_before_the_verbs_own(tmp_path: Path) -> None:
    database = open_database(tmp_path)
    rig = Rig(database, options={"timeouts_s": {"toy": 0.05}})
    ended = await rig.end(await rig.submit("a", "hang", timeout_s=60.0))
    assert ended.error is not None
    assert "0.05 s" in ended.error.message
    database.close()


# ---------------------------------------------------------------------------------------- cancel


@pytest.mark.parametrize("kind", ["hang", "deaf"])
async def test_a_cancel_undoes_in_bounded_time(rig: Rig, kind: str) -> None:
    started = await rig.submit("a", "ok", kind)
    await until(lambda: ("a", 1) in rig.world.half)
    asked = await rig.engine.cancel(started.name)
    assert asked.cancel_requested
    ended = await rig.end(started, 5.0)
    assert ended.state is S.CANCELLED
    assert rig.world.done == set()
    assert rig.world.half == set()
    assert await rig.engine.cancel(started.name) == ended, "cancelling is idempotent"


async def test_what_waits_is_cancelled_without_its_turn(rig: Rig) -> None:
    await rig.submit("a", "hang")
    second, third = await rig.submit("b"), await rig.submit("c")
    await rig.engine.cancel(second.name)
    assert (await rig.end(second)).state is S.CANCELLED
    rig.world.released.set()
    assert (await rig.end(third)).state is S.SUCCEEDED
    assert rig.world.effects["b", 0] == 0


async def test_a_step_that_cannot_be_cancelled_is_ended_and_then_undone(rig: Rig) -> None:
    started = await rig.submit("a", "ok", "hang", "ok", fixed=frozenset({1}))
    await until(lambda: ("a", 1) in rig.world.half)
    assert (await rig.engine.get(started.name)).cancellable is False
    await rig.engine.cancel(started.name)
    await asyncio.sleep(0.15)
    assert ("a", 1) in rig.world.half, "it still works"
    rig.world.released.set()
    assert (await rig.end(started)).state is S.CANCELLED
    assert rig.world.effects["a", 1] == 1
    assert rig.world.done == set()


async def test_there_is_no_way_back_between_two_steps_that_cannot_be_cancelled(rig: Rig) -> None:
    started = await rig.submit("a", "hang", "hang", "ok", fixed=frozenset({0, 1, 2}))
    await until(lambda: ("a", 0) in rig.world.half)
    await rig.engine.cancel(started.name)
    rig.world.released.set()
    ended = await rig.end(started)
    assert ended.state is S.SUCCEEDED
    assert rig.world.done == {("a", 0), ("a", 1), ("a", 2)}


async def test_a_cancel_before_the_point_of_no_return_is_obeyed(rig: Rig) -> None:
    started = await rig.submit("a", "hang", "ok", fixed=frozenset({1}))
    await until(lambda: ("a", 0) in rig.world.half)
    await rig.engine.cancel(started.name)
    assert (await rig.end(started)).state is S.CANCELLED
    assert rig.world.effects["a", 1] == 0


async def test_undoing_is_not_disturbed_by_the_cancel(rig: Rig) -> None:
    seen: list[str] = []

    class Careful(Toy):
        name = "careful"

        async def _undo(self, run: Run[ToyArguments], index: int) -> None:
            run.checkpoint()
            waiting = asyncio.ensure_future(run.wait_cancelled())
            await asyncio.sleep(0.01)
            seen.append("disturbed" if waiting.done() else "left alone")
            seen.append(str(run.deadline_s))
            waiting.cancel()
            await super()._undo(run, index)

    verb = Careful(rig.world)
    rig.engine.register(verb)
    started = await rig.engine.submit(verb, ToyArguments("a", "q", ("hang",)), Submission("a", "q", "q"))
    await until(lambda: ("a", 0) in rig.world.half)
    await rig.engine.cancel(started.name)
    assert (await rig.end(started)).state is S.CANCELLED
    assert seen == ["left alone", "None"]


async def test_a_cancel_while_nobody_answers_does_not_wait_for_the_host(rig: Rig) -> None:
    class Away(Toy):
        name = "away"

        async def _do(self, run: Run[ToyArguments], index: int) -> None:
            self.world.half.add((run.arguments.key, index))
            raise UnavailableError(worker.HOST_UNREACHABLE, "away")

    verb = Away(rig.world)
    rig.engine.register(verb)
    for fixed, state, reason in (
        (frozenset(), S.CANCELLED, "OPERATION_CANCELLED"),
        (frozenset({0}), S.FAILED, "OPERATION_INTERRUPTED"),
    ):
        arguments = ToyArguments("a", "q", ("ok",), fixed=fixed)  # type: ignore[arg-type]
        started = await rig.engine.submit(verb, arguments, Submission("a", "q", "q"))
        await until(lambda: ("a", 0) in rig.world.half)
        await rig.engine.cancel(started.name)
        ended = await rig.end(started, 5.0)
        assert (ended.state, ended.error and ended.error.reason) == (state, reason)


async def test_what_has_ended_cannot_be_cancelled(rig: Rig) -> None:
    ended = await rig.end(await rig.submit("a"))
    with pytest.raises(FailedPreconditionError) as caught:
        await rig.engine.cancel(ended.name)
    assert caught.value.reason.name == "OPERATION_NOT_CANCELLABLE"
    with pytest.raises(NotFoundError):
        await rig.engine.cancel("operations/none")


class _Stop(Toy):
    name = "stop"
    preempts = frozenset({"toy"})


async def test_a_verb_can_go_before_others(rig: Rig) -> None:
    verb = _Stop(rig.world)
    rig.engine.register(verb)
    running, waiting = await rig.submit("a", "hang"), await rig.submit("b")
    stop = await rig.engine.submit(
        verb, ToyArguments("stop", "hosts/a/guests/g"), Submission("stop", "hosts/a/guests/g", "hosts/a/guests/g")
    )
    assert (await rig.end(stop)).state is S.SUCCEEDED
    for operation in (running, waiting):
        ended = await rig.end(operation)
        assert ended.state is S.CANCELLED
        assert any(stop.name in note.message for note in ended.notes)


# --------------------------------------------------------------------------- requests and conflicts


async def test_a_repetition_gets_the_same_operation(rig: Rig) -> None:
    async def request(fingerprint: str = "f") -> Operation:
        return await rig.engine.once(
            "a", "r1", fingerprint, lambda: rig.submit("a", request_id="r1", fingerprint=fingerprint)
        )

    first = await request()
    again = await asyncio.gather(*(request() for _ in range(5)))
    assert {operation.name for operation in again} == {first.name}
    await rig.end(first)
    assert (await request()).state is S.SUCCEEDED
    assert rig.world.effects["a", 0] == 1
    with pytest.raises(InvalidArgumentError) as caught:
        await request("other")
    assert caught.value.reason.name == "REQUEST_ID_REUSED"
    await rig.crash()
    assert (await request()).name == first.name, "remembered over a restart"
    await rig.engine.delete(first.name)
    with pytest.raises(NotFoundError, match="deleted since"):
        await request()
    assert rig.world.effects["a", 0] == 1


async def test_two_at_the_same_time_are_one(rig: Rig) -> None:
    entered = 0

    async def slowly() -> Operation:
        nonlocal entered
        entered += 1
        await asyncio.sleep(0.02)
        return await rig.submit("a", request_id="r1", fingerprint="f")

    found = await asyncio.gather(*(rig.engine.once("a", "r1", "f", slowly) for _ in range(8)))
    assert len({operation.name for operation in found}) == 1
    assert entered == 1
    with pytest.raises(InvalidArgumentError):
        await rig.engine.once("a", "r1", "g", slowly)


async def test_another_callers_request_id_is_another_request(rig: Rig) -> None:
    one = await rig.engine.once("a", "r", "f", lambda: rig.submit("a", request_id="r", fingerprint="f"))
    two = await rig.engine.once("b", "r", "g", lambda: rig.submit("b", request_id="r", fingerprint="g"))
    assert one.name != two.name


async def test_a_request_that_failed_before_its_operation_can_be_tried_again(rig: Rig) -> None:
    async def fails() -> Operation:
        await asyncio.sleep(0.01)
        raise NotFoundError(GUEST_NOT_FOUND, "no")

    results = await asyncio.gather(
        rig.engine.once("a", "r1", "f", fails),
        rig.engine.once("a", "r1", "f", lambda: rig.submit("a", request_id="r1", fingerprint="f")),
        return_exceptions=True,
    )
    assert isinstance(results[0], NotFoundError)
    assert isinstance(results[1], Operation)


async def test_without_the_claim_the_journal_itself_keeps_a_request_unique(rig: Rig) -> None:
    made = await asyncio.gather(*(rig.submit("a", request_id="r1", fingerprint="f") for _ in range(5)))
    assert len({operation.name for operation in made}) == 1
    await rig.end(made[0])
    assert rig.world.effects["a", 0] == 1
    with pytest.raises(InvalidArgumentError):
        await rig.submit("a", request_id="r1", fingerprint="other")
    assert (await rig.end(await rig.submit("b"))).state is S.SUCCEEDED, "and the queue is not blocked"


async def test_a_caller_that_goes_away_changes_nothing(rig: Rig) -> None:
    for turns in range(6):
        waiting = asyncio.ensure_future(rig.submit(f"k{turns}", request_id=f"r{turns}", fingerprint="f"))
        for _ in range(turns):
            await asyncio.sleep(0)
        waiting.cancel()
        await asyncio.gather(waiting, return_exceptions=True)
    await until(lambda: not rig.engine._accepting and not rig.engine.live())
    listed = await rig.engine.list()
    assert all(operation.state is S.SUCCEEDED for operation in listed), listed
    assert {key for key, _ in rig.world.done} == {operation.caller for operation in listed}
    assert len(listed) >= 4


async def test_a_conflict_is_refused_where_that_is_asked_for(rig: Rig) -> None:
    first, second = await asyncio.gather(
        rig.submit("a", "hang", reject_conflict=True),
        rig.submit("b", reject_conflict=True),
        return_exceptions=True,
    )
    assert isinstance(first, Operation)
    assert isinstance(second, ConflictError)
    assert second.record.metadata["operation"] == first.name
    assert second.record.retry_after_s
    rig.world.released.set()
    await rig.end(first)
    assert (await rig.end(await rig.submit("c", reject_conflict=True))).state is S.SUCCEEDED


async def test_too_many_are_refused(tmp_path: Path) -> None:
    database = open_database(tmp_path)
    rig = Rig(database, options={"queued_max": 3})
    found = await asyncio.gather(*(rig.submit(f"k{n}", "hang") for n in range(5)), return_exceptions=True)
    refused = [error for error in found if isinstance(error, ResourceExhaustedError)]
    assert len(refused) == 2
    assert "operations.max_queued" in refused[0].message
    await rig.engine.stop(0.0)
    database.close()


# ----------------------------------------------------------------------------------- a full disk


async def test_what_cannot_be_journalled_does_not_happen(rig: Rig) -> None:
    rig.fuse.full = True
    with pytest.raises(ResourceExhaustedError):
        await rig.submit("a", request_id="r", fingerprint="f")
    rig.fuse.full = False
    assert rig.world.effects["a", 0] == 0
    assert rig.told == []
    assert (await rig.end(await rig.submit("b", request_id="r", fingerprint="f"))).state is S.SUCCEEDED


async def test_a_disk_that_fills_up_delays_the_end_and_does_not_falsify_it(rig: Rig) -> None:
    started = await rig.submit("a", "ok", "hang", "ok")
    await until(lambda: ("a", 1) in rig.world.half)
    rig.fuse.full = True
    rig.world.released.set()
    # The next step cannot be journalled, so it does not begin.  The last one is undone, which may make
    # room; the others have to wait, for after a crash now the journal would send us forward over them.
    await until(lambda: rig.world.undone["a", 1] == 1)
    await asyncio.sleep(0.05)
    assert rig.world.done == {("a", 0)}
    assert not (await rig.engine.get(started.name)).state.terminal
    rig.fuse.full = False
    ended = await rig.end(started)
    assert ended.state is S.FAILED
    assert ended.error is not None
    assert ended.error.reason == "STORAGE_FULL"
    assert rig.world.done == set()
    assert rig.world.effects["a", 2] == 0
    assert rig.world.undone["a", 2] == 0, "what has not begun is not undone"


async def test_a_crash_while_a_full_disk_keeps_undoing_back_goes_forward_again(rig: Rig) -> None:
    started = await rig.submit("a", "ok", "hang", "ok")
    await until(lambda: ("a", 1) in rig.world.half)
    rig.fuse.full = True
    rig.world.released.set()
    await until(lambda: rig.world.undone["a", 1] == 1)
    await rig.crash()
    assert (await rig.end(started)).state is S.SUCCEEDED
    assert rig.world.done == {("a", 0), ("a", 1), ("a", 2)}


# --------------------------------------------------------------------------------------- restarts


async def test_a_crash_in_a_step_that_can_be_probed_has_one_effect(rig: Rig) -> None:
    started = await rig.submit("a", "ok", "hang", "ok", sure=frozenset({0, 1, 2}))
    await until(lambda: ("a", 1) in rig.world.half)
    rig.world.done.add(("a", 1))  # the hypervisor got it, and the daemon dies before it is told
    await rig.crash()
    ended = await rig.end(started)
    assert ended.state is S.SUCCEEDED
    assert ended.recovered
    assert rig.world.effects == {("a", 0): 1, ("a", 2): 1}
    assert any("is found DONE" in note.message for note in ended.notes)


async def test_a_crash_in_a_step_that_tells_nothing_ends_the_operation(rig: Rig) -> None:
    started = await rig.submit("a", "ok", "hang", lost=frozenset({1}))
    await until(lambda: ("a", 1) in rig.world.half)
    await rig.crash()
    ended = await rig.end(started)
    assert ended.state is S.FAILED
    assert ended.error is not None
    assert ended.error.reason == "OPERATION_INTERRUPTED"
    assert rig.world.done == set()


async def test_what_waited_keeps_its_place_over_a_crash(rig: Rig) -> None:
    await rig.submit("a", "hang")
    rest = [await rig.submit(f"b{n}") for n in range(4)]
    await rig.crash()
    rig.world.released.set()
    for operation in rest:
        ended = await rig.end(operation)
        assert ended.state is S.SUCCEEDED
        assert not ended.recovered, "it had not begun"
    assert rig.world.order["hosts/a/guests/g"] == ["a", "b0", "b1", "b2", "b3"]


async def test_a_cancel_survives_a_crash(rig: Rig) -> None:
    started = await rig.submit("a", "ok", "deaf")
    await until(lambda: ("a", 1) in rig.world.half)
    await rig.engine.cancel(started.name)
    await rig.crash()
    assert (await rig.end(started)).state is S.CANCELLED
    assert rig.world.done == set()


async def test_undoing_goes_on_after_a_crash(rig: Rig) -> None:
    gate = asyncio.Event()

    class Slow(Toy):
        name = "slow"

        async def _undo(self, run: Run[ToyArguments], index: int) -> None:
            if index == 1:
                await gate.wait()
            await super()._undo(run, index)

    verb = Slow(rig.world)
    rig.engine.register(verb)
    started = await rig.engine.submit(verb, ToyArguments("a", "q", ("ok", "ok", "fail")), Submission("a", "q", "q"))
    await until(lambda: rig.world.undone["a", 2] == 1)
    await asyncio.sleep(0.05)
    rig.fuse.blown = True
    gate.set()
    boot = rig.boot

    def with_slow() -> None:
        boot()
        rig.engine.register(Slow(rig.world))

    rig.boot = with_slow  # type: ignore[method-assign]
    await rig.crash()
    ended = await rig.end(started)
    assert ended.state is S.FAILED
    assert ended.error is not None
    assert ended.error.reason == "BACKEND_ERROR", "the first error, not that of the restart"
    assert rig.world.done == set()
    assert rig.world.effects["a", 0] == 1, "it did not go forward again"


async def test_the_end_is_told_also_if_the_daemon_died_before_it_could(rig: Rig) -> None:
    started = await rig.submit("a", "hang")
    await until(lambda: ("a", 0) in rig.world.half)
    real = rig.engine._tell_end
    rig.engine._worker._tell_end = lambda ended: None  # dies between the journal and the word
    rig.world.released.set()
    await until(lambda: _terminal(rig, started))
    assert not any(told.state.terminal for told in rig.told)
    assert real is not None
    await rig.crash()
    assert [told.state for told in rig.told if told.state.terminal] == [S.SUCCEEDED]
    await asyncio.sleep(0.02)
    await rig.crash()
    assert len([told for told in rig.told if told.state.terminal]) == 1, "and not again and again"


def _terminal(rig: Rig, operation: Operation) -> bool:
    row = rig.database.read_now(
        lambda c: c.execute("SELECT terminal FROM operations WHERE id = ?", (operation.name,)).fetchone()
    )
    return bool(row[0])


async def test_a_verb_that_is_no_longer_known_fails_and_says_so(rig: Rig) -> None:
    started = await rig.submit("a", "hang")
    await until(lambda: ("a", 0) in rig.world.half)
    await rig.database.write(lambda c: c.execute("UPDATE operations SET record = replace(record, 'toy', 'old')"))
    await rig.crash()
    ended = await rig.engine.get(started.name)
    assert ended.state is S.FAILED
    assert ended.error is not None
    assert "does not know the verb old" in ended.error.message
    assert rig.finished[-1].name == started.name


async def test_arguments_that_cannot_be_read_fail_their_own_operation_only(rig: Rig) -> None:
    bad, good = await rig.submit("a", "hang"), await rig.submit("b", queue="hosts/a/guests/other")
    await rig.end(good)
    await rig.database.write(lambda c: c.execute("UPDATE operations SET arguments = '{' WHERE id = ?", (bad.name,)))
    await rig.crash()
    ended = await rig.engine.get(bad.name)
    assert ended.error is not None
    assert ended.error.reason == "JOURNAL_CORRUPT"


async def test_steps_of_another_version_are_found_by_their_names(rig: Rig) -> None:
    started = await rig.submit("a", "ok", "hang")
    await until(lambda: ("a", 1) in rig.world.half)
    # The version that began it had one step more at the front.
    await rig.database.write(
        lambda c: c.execute(
            """UPDATE operations SET step = 2, record = replace(record, '["s0","s1"]', '["x","s0","s1"]')"""
        )
    )
    rig.world.released.set()
    await rig.crash()
    assert (await rig.end(started)).state is S.SUCCEEDED
    assert rig.world.effects["a", 0] == 1


async def test_stopping_lets_end_what_runs_and_begins_nothing(rig: Rig) -> None:
    running, waiting = await rig.submit("a", "hang"), await rig.submit("b")
    await until(lambda: ("a", 0) in rig.world.half)
    stopping = asyncio.ensure_future(rig.engine.stop(5.0))
    await asyncio.sleep(0.01)
    with pytest.raises(UnavailableError) as caught:
        await rig.submit("c")
    assert caught.value.reason.name == "DAEMON_STOPPING"
    rig.world.released.set()
    assert await stopping == 1
    assert (await rig.engine.get(running.name)).state is S.SUCCEEDED
    assert (await rig.engine.get(waiting.name)).state is S.PENDING
    assert rig.world.effects["b", 0] == 0
    await rig.crash()
    assert (await rig.end(waiting)).state is S.SUCCEEDED


async def test_stopping_in_the_middle_of_a_submission_loses_nothing(rig: Rig) -> None:
    waiting = asyncio.ensure_future(rig.submit("a"))
    await asyncio.sleep(0)
    await rig.engine.stop(0.0)
    started = await waiting
    await rig.crash()
    assert (await rig.end(started)).state is S.SUCCEEDED


# --------------------------------------------------------------------------------- housekeeping


async def test_what_has_ended_is_listed_newest_first_and_can_be_forgotten(rig: Rig) -> None:
    made = [await rig.end(await rig.submit(f"k{n}")) for n in range(3)]
    assert [entry.caller for entry in await rig.engine.list()] == ["k2", "k1", "k0"]
    await rig.engine.delete(made[1].name)
    assert [entry.caller for entry in await rig.engine.list()] == ["k2", "k0"]
    running = await rig.submit("r", "hang")
    with pytest.raises(FailedPreconditionError):
        await rig.engine.delete(running.name)


async def test_old_ones_are_forgotten_but_requests_are_remembered_for_a_day(tmp_path: Path) -> None:
    database = open_database(tmp_path)
    rig = Rig(database, options={"retention_s": 100.0})
    old = await rig.end(await rig.submit("a", request_id="r", fingerprint="f"))
    await rig.database.write(lambda c: c.execute("UPDATE operations SET ended = ?", (time.time() - 200,)))
    new = await rig.end(await rig.submit("b"))
    await rig.engine.expire()
    assert [entry.name for entry in await rig.engine.list()] == [new.name]
    with pytest.raises(NotFoundError, match="deleted since"):
        await rig.engine.once("a", "r", "f", lambda: rig.submit("a", request_id="r", fingerprint="f"))
    assert old.name not in {entry.name for entry in await rig.engine.list()}
    await rig.engine.stop(0.0)
    database.close()


def test_a_verb_is_registered_once(rig: Rig) -> None:
    with pytest.raises(ValueError, match="twice"):
        rig.engine.register(Toy(rig.world))


class _Steps(Verb[ToyArguments]):
    name = "steps"

    @property
    def arguments(self) -> type[ToyArguments]:
        return ToyArguments

    def steps(self, arguments: ToyArguments) -> list[Step[ToyArguments]]:
        async def work(run: Run[ToyArguments]) -> None:
            run.progress(0.5)
            run.progress(bytes_done=1, bytes_total=4)
            for number in range(200):
                run.note(f"line {number}")
            run.warn("careful")
            run.warn("careful")
            raise asyncio.CancelledError  # what a backend must never do

        return [Step("work", work)]

    async def finish(self, run: Run[ToyArguments]) -> Outcome:
        return Outcome()


async def test_a_step_that_cancels_itself_is_a_defect_and_not_an_end_without_a_word(rig: Rig) -> None:
    verb = _Steps()
    rig.engine.register(verb)
    ended = await rig.end(await rig.engine.submit(verb, ToyArguments("a", "q"), Submission("a", "q", "q")))
    assert ended.state is S.FAILED
    assert ended.error is not None
    assert ended.error.reason == "INTERNAL_ERROR"
    assert ended.warnings == ("careful",)
    assert len(ended.notes) <= 60
    assert ended.notes[0].message == "line 0"
