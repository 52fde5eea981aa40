"""Reboot and reset of guests on hosts that can neither: by the core, once each, whatever happens in between."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import pytest

from tests.support.daemons import Lab, blank, call, running_lab
from virtd.backend.capabilities import REBOOT, RESET
from virtd.backend.emulate.power import HOW
from virtd.errors import VirtdError
from virtd.model.guest import GuestState, RunStrategy
from virtd.model.host import CapabilityLevel
from virtd.model.operation import Operation, OperationState
from virtd.testing.fake.state import FakeGuest

EMULATE = "emulate=guest.reboot,guest.reset"
VERBS = ("reboot", "reset")


@pytest.fixture
async def lab(tmp_path: Path) -> AsyncIterator[Lab]:
    async with running_lab(tmp_path, EMULATE) as made:
        yield made


def native(lab: Lab) -> FakeGuest:
    (guest,) = lab.world.native.guests.values()
    return guest


async def ask(lab: Lab, verb: str, **changes: bool) -> Operation | None:
    operation: Operation | None = await getattr(lab.services.guests, verb)(call(**changes), lab.name("a"))
    return operation


async def test_it_is_said_to_be_emulated(lab: Lab) -> None:
    stated = {entry.id: entry for entry in lab.link.capabilities}
    for id_ in (REBOOT, RESET):
        assert (stated[id_].level, stated[id_].reason) == (CapabilityLevel.EMULATED, HOW[id_])
    assert (lab.link.facets.reboot, lab.link.facets.reset) == (None, None)
    await lab.created("a", start=True)
    assert {"reboot", "reset"} <= set(lab.guest("a").status.allowed_actions)


@pytest.mark.parametrize("verb", VERBS)
async def test_the_guest_boots_anew(lab: Lab, verb: str) -> None:
    await lab.created("a", blank(), start=True)
    assert await ask(lab, verb, validate_only=True) is None
    assert native(lab).boots == 1
    with lab.world.recording() as calls:
        ended = await lab.done(await ask(lab, verb))
    assert native(lab).boots == 2
    assert lab.state("a") is GuestState.RUNNING
    assert calls.count("guest_create") == 1
    assert ("guest_power_button" in calls, "guest_destroy" in calls) == (verb == "reboot", verb == "reset")
    assert any(note.message.startswith("virtd ") for note in ended.notes)


@pytest.mark.parametrize("verb", VERBS)
async def test_a_guest_that_is_down_is_not_started(lab: Lab, verb: str) -> None:
    await lab.created("a")
    with pytest.raises(VirtdError) as refusal:
        await ask(lab, verb)
    assert refusal.value.reason.name == "INVALID_STATE"
    await lab.done(await lab.services.guests.start(call(), lab.name("a")))
    # What is ahead in the queue stops it.
    hang = lab.world.faults.hang("guest_destroy")
    stop = await lab.services.guests.stop(call(), lab.name("a"))
    late = await ask(lab, verb)
    hang.release()
    await lab.done(stop)
    await lab.failed(late, "INVALID_STATE")
    assert lab.state("a") is GuestState.STOPPED
    assert native(lab).boots == 1


async def test_a_paused_guest_is_reset(lab: Lab) -> None:
    await lab.created("a", start=True)
    await lab.done(await lab.services.guests.pause(call(), lab.name("a")))
    await lab.done(await ask(lab, "reset"))
    assert (lab.state("a"), native(lab).boots) == (GuestState.RUNNING, 2)


async def test_a_guest_that_does_not_obey_runs_on(tmp_path: Path) -> None:
    async with running_lab(tmp_path, f"{EMULATE}&presses=0") as lab:
        lab.core.options = replace(lab.core.options, shutdown_timeout_s=0.2)
        await lab.created("a", start=True)
        await lab.failed(await ask(lab, "reboot"), "SHUTDOWN_IGNORED")
        assert (lab.state("a"), native(lab).boots) == (GuestState.RUNNING, 1)
        await lab.done(await ask(lab, "reset"))
        assert native(lab).boots == 2


@pytest.mark.parametrize("verb", VERBS)
async def test_a_cancel_comes_too_late_once_it_is_down(lab: Lab, verb: str) -> None:
    await lab.created("a", start=True)
    hang = lab.world.faults.hang("guest_create")
    operation = await ask(lab, verb)
    assert operation is not None
    await lab.until(lambda: lab.core.engine.current(operation.target)[0].stage == "start")
    await lab.core.engine.cancel(operation.name)
    hang.release()
    assert (await lab.end(operation)).state is OperationState.SUCCEEDED
    assert (lab.state("a"), native(lab).boots) == (GuestState.RUNNING, 2)


@pytest.mark.parametrize("verb", VERBS)
async def test_a_start_that_fails_is_said(lab: Lab, verb: str) -> None:
    await lab.created("a", start=True)
    lab.world.faults.fail("guest_create")
    await lab.failed(await ask(lab, verb), "BACKEND_ERROR")
    assert lab.state("a") is GuestState.STOPPED


@pytest.mark.parametrize("verb", VERBS)
async def test_run_strategies_keep_out_of_it(lab: Lab, verb: str) -> None:
    await lab.created("a", start=True, run_strategy=RunStrategy.ALWAYS)
    boots = native(lab).boots
    await lab.done(await ask(lab, verb))
    assert native(lab).boots == boots + 1
    assert lab.guest("a").spec.run_strategy is RunStrategy.ALWAYS
