"""Run strategies on the fake hypervisor, through the whole core.  What takes seconds takes fractions of one here."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import pytest

from tests.support.daemons import Lab, call, fresh_uri, running_lab, short_directory
from virtd.errors import InvalidArgumentError
from virtd.model.guest import ConditionStatus, ConditionType, GuestState, RunStrategy

S, R = GuestState, RunStrategy
QUICK = {"backoff_first_s": 0.3, "backoff_max_s": 0.6, "stable_s": 600.0, "halt_timeout_s": 5.0}
NOTHING_S = 0.4
"""How long nothing must happen before a test believes that it does not."""


@pytest.fixture
async def place() -> AsyncIterator[Path]:
    with short_directory() as made:
        yield made


@pytest.fixture
async def lab(place: Path) -> AsyncIterator[Lab]:
    async with running_lab(place, strategy=QUICK) as made:
        yield made


async def callers(lab: Lab, verb: str) -> list[str]:
    return [o.caller for o in await lab.core.engine.list() if o.verb == verb]


async def stays(lab: Lab, guest: str, state: GuestState) -> None:
    await asyncio.sleep(NOTHING_S)
    assert lab.state(guest) is state
    assert not lab.core.engine.current(str(lab.name(guest)))


def loop_of(lab: Lab, guest: str) -> ConditionStatus | None:
    found = [c.status for c in lab.guest(guest).status.conditions if c.type is ConditionType.CRASH_LOOP]
    return found[0] if found else None


async def set_strategy(lab: Lab, guest: str, strategy: RunStrategy) -> None:
    await lab.core.inventory.change(
        lab.guest(guest).uid, lambda g: replace(g, spec=replace(g.spec, run_strategy=strategy))
    )


async def settled(lab: Lab, guest: str, state: GuestState) -> None:
    await lab.until(lambda: lab.state(guest) is state and not lab.core.engine.current(str(lab.name(guest))))


def kill(lab: Lab, guest: str) -> None:
    lab.world.native.kill_guest(lab.guest(guest).uid)


async def test_always_starts_a_guest_whoever_stopped_it(lab: Lab) -> None:
    guest = await lab.created("a", run_strategy=R.ALWAYS)
    await settled(lab, "a", S.RUNNING)
    assert await callers(lab, "start") == ["strategy"]
    lab.world.native.power_off_inside(guest.uid)
    await lab.until(lambda: lab.world.native.guests[guest.uid].boots == 2)
    await settled(lab, "a", S.RUNNING)
    assert loop_of(lab, "a") is None


async def test_a_crash_loop_waits_longer_each_time_and_is_bounded(lab: Lab) -> None:
    guest = await lab.created("a", run_strategy=R.ALWAYS)
    waits = []
    clock = asyncio.get_running_loop()
    for boots in range(1, 6):
        await lab.until(lambda boots=boots: lab.world.native.guests[guest.uid].boots == boots)  # type: ignore[misc]
        await settled(lab, "a", S.RUNNING)
        kill(lab, "a")
        began = clock.time()
        await lab.until(lambda boots=boots: lab.world.native.guests[guest.uid].boots > boots)  # type: ignore[misc]
        waits.append(clock.time() - began)
    assert loop_of(lab, "a") is ConditionStatus.TRUE
    assert waits[0] < waits[1]
    assert waits[1] >= 0.3  # the configured first wait
    assert waits[2] >= 0.6  # twice that, which is also the bound
    assert max(waits[3:]) < 5.0, "it goes on for ever, and no wait grows beyond its bound"


async def test_a_guest_that_has_run_long_enough_has_not_failed(place: Path) -> None:
    async with running_lab(place, strategy={**QUICK, "stable_s": 0.2}) as lab:
        guest = await lab.created("a", run_strategy=R.ALWAYS)
        for boots in range(1, 4):
            await lab.until(lambda boots=boots: lab.world.native.guests[guest.uid].boots == boots)  # type: ignore[misc]
            await settled(lab, "a", S.RUNNING)
            await asyncio.sleep(0.3)
            kill(lab, "a")
        await settled(lab, "a", S.RUNNING)
        assert loop_of(lab, "a") is not ConditionStatus.TRUE


async def test_stop_and_start_turn_the_strategy(lab: Lab) -> None:
    await lab.created("a", run_strategy=R.ALWAYS)
    await settled(lab, "a", S.RUNNING)
    ended = await lab.done(await lab.services.guests.stop(call(), lab.name("a")))
    assert any("HALTED" in note.message for note in ended.notes)
    assert lab.guest("a").spec.run_strategy is R.HALTED
    await stays(lab, "a", S.STOPPED)
    await lab.done(await lab.services.guests.start(call(), lab.name("a")))
    assert lab.guest("a").spec.run_strategy is R.ALWAYS
    await lab.done(await lab.services.guests.shutdown(call(), lab.name("a"), timeout_s=5, force_after_timeout=False))
    assert lab.guest("a").spec.run_strategy is R.HALTED


@pytest.mark.parametrize("verb", ["pause", "suspend"])
async def test_what_is_paused_or_suspended_is_left_alone(lab: Lab, verb: str) -> None:
    await lab.created("a", run_strategy=R.ALWAYS)
    await settled(lab, "a", S.RUNNING)
    await lab.done(await getattr(lab.services.guests, verb)(call(), lab.name("a")))
    await stays(lab, "a", S.PAUSED if verb == "pause" else S.SUSPENDED)


async def test_halted_asks_and_never_forces(lab: Lab) -> None:
    guest = await lab.created("a", run_strategy=R.HALTED)
    lab.world.native.start_foreign(guest.uid)
    await lab.until(lambda: lab.state("a") is S.STOPPED and lab.guest("a").status.state_reason == "SHUTDOWN")
    assert await callers(lab, "shutdown") == ["strategy"]
    assert lab.guest("a").spec.run_strategy is R.HALTED


async def test_halted_does_not_touch_what_is_not_virtds(lab: Lab) -> None:
    guest = await lab.created("a", run_strategy=R.HALTED)
    await lab.done(await lab.services.guests.release(call(), lab.name("a")))
    lab.world.native.start_foreign(guest.uid)
    await lab.until(lambda: lab.state("a") is S.RUNNING)
    await stays(lab, "a", S.RUNNING)
    assert await callers(lab, "shutdown") == []


async def test_rerun_on_failure_follows_failures_only(lab: Lab) -> None:
    guest = await lab.created("a", start=True, run_strategy=R.RERUN_ON_FAILURE)
    lab.world.native.power_off_inside(guest.uid)
    await lab.until(lambda: lab.state("a") is S.STOPPED)
    await stays(lab, "a", S.STOPPED)
    await lab.done(await lab.services.guests.start(call(), lab.name("a")))
    lab.world.native.panic_guest(guest.uid)
    await lab.until(lambda: lab.world.native.guests[guest.uid].boots == 3)
    await settled(lab, "a", S.RUNNING)
    # Crashed again, it waits for its turn; who stops it now has the last word.
    lab.world.native.panic_guest(guest.uid)
    await lab.until(lambda: loop_of(lab, "a") is ConditionStatus.TRUE)
    await lab.done(await lab.services.guests.stop(call(), lab.name("a")))
    await asyncio.sleep(0.5)
    assert lab.world.native.guests[guest.uid].boots == 3


async def test_once_is_once_also_over_a_restart(place: Path) -> None:
    uri = fresh_uri("persist=1")
    async with running_lab(place, uri=uri, strategy=QUICK) as lab:
        guest = await lab.created("a", run_strategy=R.ONCE)
        await settled(lab, "a", S.RUNNING)
        lab.world.native.power_off_inside(guest.uid)
        await lab.until(lambda: lab.state("a") is S.STOPPED)
        await stays(lab, "a", S.STOPPED)
    async with running_lab(place, uri=uri, strategy=QUICK) as lab:
        await lab.until(lambda: lab.guest("a").status.stale_since is None)
        await stays(lab, "a", S.STOPPED)


async def test_a_start_that_fails_is_tried_again_with_patience(lab: Lab) -> None:
    for _ in range(2):
        lab.world.faults.fail("guest_create", 1)
    guest = await lab.created("a", run_strategy=R.ONCE)
    await settled(lab, "a", S.RUNNING)
    assert lab.world.native.guests[guest.uid].boots == 1
    assert len(await callers(lab, "start")) >= 2


async def test_a_host_that_does_not_answer_is_not_acted_upon(lab: Lab) -> None:
    guest = await lab.created("a", run_strategy=R.ALWAYS)
    await settled(lab, "a", S.RUNNING)
    lab.world.disconnect()
    lab.world.native.guests[guest.uid].state = S.STOPPED
    await lab.until(lambda: lab.guest("a").status.stale_since is not None)
    before = len(await callers(lab, "start"))
    await asyncio.sleep(NOTHING_S)
    assert len(await callers(lab, "start")) == before
    lab.world.reconnect()
    await settled(lab, "a", S.RUNNING)


async def test_while_an_operation_works_the_strategy_waits(lab: Lab) -> None:
    await lab.created("a", run_strategy=R.MANUAL)
    hang = lab.world.faults.hang("guest_delete_config")
    deleting = await lab.services.guests.delete(call(), lab.name("a"), force=True, keep_disks=False, etag="")
    await lab.until(lambda: hang.entered > 0)
    await set_strategy(lab, "a", R.ALWAYS)
    await asyncio.sleep(NOTHING_S)
    assert await callers(lab, "start") == []
    lab.world.faults.clear()
    await lab.done(deleting)


async def test_manual_is_left_alone_and_a_change_is_heard(lab: Lab) -> None:
    await lab.created("a", run_strategy=R.MANUAL)
    await stays(lab, "a", S.STOPPED)
    await set_strategy(lab, "a", R.ALWAYS)
    await settled(lab, "a", S.RUNNING)
    await set_strategy(lab, "a", R.HALTED)
    await settled(lab, "a", S.STOPPED)


async def test_start_of_a_halted_guest_is_refused_at_its_creation(lab: Lab) -> None:
    with pytest.raises(InvalidArgumentError) as caught:
        await lab.create("a", start=True, run_strategy=R.HALTED)
    assert caught.value.record.violations[0].field == "start"


async def test_halted_needs_a_host_that_can_ask(place: Path) -> None:
    async with running_lab(place, "without=guest.shutdown") as lab:
        with pytest.raises(InvalidArgumentError) as caught:
            await lab.create("a", run_strategy=R.HALTED)
        assert caught.value.record.violations[0].field == "guest.spec.run_strategy"
