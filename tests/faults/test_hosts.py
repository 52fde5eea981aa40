"""Hosts that fall silent, hang, come late, lose events or say nonsense; in the test's own process."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest

from tests.support.daemons import HOST, Lab, blank, call, fresh_uri, running_lab, short_directory, until
from virtd.backend.api import NativeEventType
from virtd.errors import HOST_UNREACHABLE, UnavailableError, VirtdError
from virtd.inventory import HostLink
from virtd.model.guest import GuestState, Presence
from virtd.model.host import HostState
from virtd.model.operation import OperationState
from virtd.service.snapshots import Draft
from virtd.testing.fake import WORLDS

S = GuestState
QUICK = {"inventory": {"resync_s": 0.1}}


@pytest.fixture
async def lab() -> AsyncIterator[Lab]:
    with short_directory() as place:
        async with running_lab(place) as made:
            yield made


def notes(lab: Lab, operation: Any) -> str:
    return " ".join(note.message for note in operation.notes)


# ------------------------------------------------------------------------------------ falls silent


async def test_a_host_that_falls_silent_is_stale_and_comes_back_by_itself(lab: Lab) -> None:
    guest = await lab.created("a", start=True)
    lab.world.disconnect()
    await lab.until(lambda: lab.guest("a").status.stale_since is not None)
    status = lab.guest("a").status
    assert (status.state, status.presence) == (S.RUNNING, Presence.UNKNOWN)
    assert lab.link.host.state is HostState.UNREACHABLE
    page = await lab.services.guests.list("-", "", 0, "")
    assert [view.key.guest for view in page.views] == ["a"], "the list is whole, and says what it does not know"
    assert [(host, error.reason) for host, error in page.host_errors] == [("hosts/lab", "HOST_UNREACHABLE")]
    with pytest.raises(UnavailableError) as caught:
        await lab.services.guests.stop(call(), lab.name("a"))
    assert caught.value.reason is HOST_UNREACHABLE
    assert caught.value.record.retry_after_s
    lab.world.native.kill_guest(guest.uid)  # nobody hears it
    lab.world.reconnect()
    await lab.until(lambda: lab.guest("a").status.stale_since is None)
    await lab.until(lambda: lab.state("a") is S.STOPPED)
    assert lab.guest("a").status.presence is Presence.PRESENT


@pytest.mark.parametrize("call_name", ["volume_allocate", "guest_write_config", "guest_create"])
async def test_an_operation_waits_for_a_host_that_falls_silent_in_its_middle(lab: Lab, call_name: str) -> None:
    hang = lab.world.faults.hang(call_name, deaf=True)
    operation = await lab.create("a", blank(), start=True)
    await lab.until(lambda: hang.entered > 0)
    lab.world.disconnect()
    hang.release()
    await asyncio.sleep(0.3)
    now = await lab.core.engine.get(operation.name)
    assert now.state is OperationState.RUNNING, "neither failed nor done: nobody knows"
    assert now.waiting_for == "hosts/lab"
    lab.world.reconnect()
    ended = await lab.done(operation)
    assert ended.waiting_for == ""
    assert "waiting for the host" in notes(lab, ended)
    assert lab.state("a") is S.RUNNING
    assert len(lab.world.native.guests) == 1
    assert len(lab.world.native.pools["virtd"].volumes) == 1


async def test_an_answer_that_got_lost_is_not_a_second_effect(lab: Lab) -> None:
    await lab.created("a", blank(), start=True)
    lab.world.faults.fail("snapshot_commit", 1, UnavailableError(HOST_UNREACHABLE, "the answer got lost"), after=True)
    ended = await lab.done(await lab.services.snapshots.create(call(), lab.name("a"), Draft("s", memory=True)))
    assert ended.state is OperationState.SUCCEEDED
    assert [s.name for s in (await lab.services.snapshots.list(lab.name("a").host, "a", 0, "")).items] == [
        f"{lab.name('a')}/snapshots/s"
    ]


@pytest.mark.parametrize("call_name", ["volume_allocate", "guest_write_config", "guest_create"])
async def test_what_a_silent_host_has_made_after_all_is_taken_for_ones_own(lab: Lab, call_name: str) -> None:
    lab.world.faults.fail(call_name, 1, UnavailableError(HOST_UNREACHABLE, "the answer got lost"), after=True)
    await lab.done(await lab.create("a", blank(), start=True))
    assert lab.state("a") is S.RUNNING
    assert len(lab.world.native.guests) == 1
    assert len(lab.world.native.pools["virtd"].volumes) == 1


async def test_a_cancel_that_has_to_take_something_back_waits_for_the_host_and_says_so(lab: Lab) -> None:
    hang = lab.world.faults.hang("guest_create", deaf=True)
    operation = await lab.create("a", blank(), start=True)
    await lab.until(lambda: hang.entered > 0)
    lab.world.disconnect()
    hang.release()
    await asyncio.sleep(0.1)
    await asyncio.wait_for(lab.core.engine.cancel(operation.name), 1)
    await asyncio.sleep(0.3)
    now = await lab.core.engine.get(operation.name)
    assert (now.state, now.waiting_for, now.stage) == (OperationState.RUNNING, "hosts/lab", "undo:start")
    lab.world.reconnect()
    ended = await lab.end(operation)
    assert (ended.state, ended.waiting_for) == (OperationState.CANCELLED, "")
    assert lab.world.native.guests == {}
    assert not lab.world.native.pools["virtd"].volumes


async def test_a_reboot_whose_answer_got_lost_is_not_repeated(lab: Lab) -> None:
    guest = await lab.created("a", start=True)
    lab.world.faults.fail("guest_reboot", 1, UnavailableError(HOST_UNREACHABLE, "the answer got lost"), after=True)
    operation = await lab.services.guests.reboot(call(), lab.name("a"))
    await lab.failed(operation, "OPERATION_INTERRUPTED")
    assert lab.world.native.guests[guest.uid].boots == 2


async def test_a_cancel_is_obeyed_also_while_the_host_is_silent(lab: Lab) -> None:
    await lab.created("a", start=True)
    lab.world.faults.fail("guest_pause", 1, UnavailableError(HOST_UNREACHABLE, "silent"))
    hang = lab.world.faults.hang("guest_pause", deaf=True)
    operation = await lab.services.guests.pause(call(), lab.name("a"))
    assert operation is not None
    await lab.until(lambda: hang.entered > 0)
    lab.world.disconnect()
    hang.release()
    await asyncio.sleep(0.05)
    await lab.core.engine.cancel(operation.name)
    ended = await lab.end(operation, 10)
    assert ended.error is not None
    assert ended.error.reason == "OPERATION_INTERRUPTED"
    assert "cannot be told" in ended.error.message


async def test_an_operation_whose_time_is_over_while_its_host_is_silent_says_so() -> None:
    with short_directory() as place:
        async with running_lab(place, operations={"timeouts_s.pause": 1.0}) as lab:
            await lab.created("a", start=True)
            hang = lab.world.faults.hang("guest_pause", deaf=True)
            operation = await lab.services.guests.pause(call(), lab.name("a"))
            await lab.until(lambda: hang.entered > 0)
            lab.world.disconnect()
            hang.release()
            ended = await lab.failed(operation, "DEADLINE_EXCEEDED")
            assert ended.error is not None
            assert "hosts/lab does not answer; whether it took effect cannot be told" in ended.error.message
            assert ended.waiting_for == ""
            lab.world.reconnect()
            # The guest is free for the next operation, which finds out how things are.
            await lab.until(lambda: lab.link.host.state is HostState.CONNECTED)
            await lab.done(await lab.services.guests.pause(call(), lab.name("a")))
            assert lab.state("a") is S.PAUSED


async def test_one_whose_time_is_over_takes_back_what_it_may_have_done_when_the_host_is_back() -> None:
    with short_directory() as place:
        async with running_lab(place, operations={"timeouts_s.create": 1.0}) as lab:
            hang = lab.world.faults.hang("guest_create", deaf=True)
            operation = await lab.create("a", blank(), start=True)
            await lab.until(lambda: hang.entered > 0)
            lab.world.disconnect()
            hang.release()

            async def taking_back() -> bool:
                return (await lab.core.engine.get(operation.name)).stage.startswith("undo:")

            while not await taking_back():
                await asyncio.sleep(0.01)
            assert (await lab.core.engine.get(operation.name)).state is OperationState.RUNNING
            lab.world.reconnect()
            ended = await lab.failed(operation, "DEADLINE_EXCEEDED")
            assert ended.error is not None
            assert "hosts/lab does not answer, and whether start took effect cannot be told" in ended.error.message
            assert lab.world.native.guests == {}
            assert not lab.world.native.pools["virtd"].volumes


@pytest.mark.parametrize("call_name", ["guest_create", "guest_write_config"])
async def test_an_operation_ends_when_the_host_that_it_waits_for_is_given_up(call_name: str) -> None:
    uri = fresh_uri()
    with short_directory() as place:
        async with running_lab(place) as lab:
            await lab.services.hosts.add(call(), "gone", uri, {})
            await lab.core.links["gone"].facts(10)
            world = WORLDS.get(uri)
            hang = world.faults.hang(call_name, deaf=True)
            operation = await lab.services.guests.create(call(), "gone", "a", _draft(), start=True)
            await lab.until(lambda: hang.entered > 0)
            world.disconnect()
            hang.release()
            await asyncio.sleep(0.3)
            assert (await lab.core.engine.get(operation.name)).waiting_for == "hosts/gone"
            await lab.services.hosts.remove(call(), "gone", force=True)
            ended = await lab.failed(operation, "HOST_NOT_FOUND")
            assert ended.warnings, "what could not be taken back"
    WORLDS.forget(uri)


# --------------------------------------------------------------------------------------- isolation


async def test_a_host_that_hangs_costs_no_other_host_anything() -> None:
    good = fresh_uri()
    with short_directory() as place:
        async with running_lab(place, hosts={"good": good}, operations={"max_parallel": 2}) as lab:
            await lab.core.links["good"].facts(10)
            for number in range(4):
                await lab.created(f"g{number}")
            hang = lab.world.faults.hang("guest_create", deaf=True)
            stuck = [await lab.services.guests.start(call(), lab.name(f"g{number}")) for number in range(4)]
            await lab.until(lambda: hang.entered >= 2)
            from tests.support.daemons import GuestDraft, spec

            made = await lab.services.guests.create(call(), "good", "a", GuestDraft(spec(blank())), start=True)
            await lab.done(made)
            hang.release()
            for operation in stuck:
                await lab.done(operation)
            WORLDS.forget(good)


async def test_a_call_that_cannot_be_ended_is_left_to_itself(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    from virtd.inventory import tasks

    monkeypatch.setattr(tasks, "CLEAN_UP_S", 0.05)
    gate = asyncio.Event()

    async def stubborn() -> None:
        while not gate.is_set():
            try:
                await gate.wait()
            except asyncio.CancelledError:
                continue

    with pytest.raises(UnavailableError, match="not answered in time"):
        await asyncio.wait_for(lab.link.call(stubborn(), timeout_s=0.05), 5)
    caller = asyncio.create_task(lab.link.call(stubborn(), timeout_s=60))
    await asyncio.sleep(0.01)
    caller.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asyncio.wait_for(caller, 5)
    await asyncio.wait_for(lab.link.stop(), 5)
    gate.set()
    await asyncio.sleep(0.01)


@pytest.mark.parametrize("error", [ZeroDivisionError("secret"), asyncio.CancelledError()])
async def test_what_is_not_a_contract_error_becomes_one(lab: Lab, error: BaseException) -> None:
    async def broken() -> None:
        raise error

    with pytest.raises(VirtdError) as caught:
        await lab.link.call(broken())
    assert "secret" not in caught.value.message
    expected = "BACKEND_ERROR" if isinstance(error, Exception) else "HOST_UNREACHABLE"
    assert caught.value.reason.name == expected


# ---------------------------------------------------------------------------------------- start-up


async def test_a_dead_host_does_not_delay_the_start() -> None:
    uri = fresh_uri()
    WORLDS.get(uri).disconnect()
    with short_directory() as place:
        async with asyncio.timeout(10), running_lab(place, uri=uri, wait=False) as lab:
            page = await lab.services.guests.list("-", "", 0, "")
            assert page.views == ()
            await lab.until(lambda: lab.link.host.state is HostState.UNREACHABLE)
            error = lab.link.host.last_error
            assert error is not None
            assert "disconnected" in error.message
            lab.world.reconnect()
            await lab.until(lambda: lab.link.host.state is HostState.CONNECTED)
            await lab.created("a", start=True)


async def test_work_that_waited_over_a_restart_waits_for_its_host_too() -> None:
    uri = fresh_uri()
    with short_directory() as place:
        async with running_lab(place, uri=uri) as lab:
            await lab.created("a")
            lab.world.faults.hang("guest_create", deaf=True)
            first = await lab.services.guests.start(call(), lab.name("a"))
            second = await lab.services.guests.pause(call(), lab.name("a"))
        world = WORLDS.get(uri)
        world.faults.clear()
        world.disconnect()
        async with running_lab(place, uri=uri, wait=False) as lab:
            await asyncio.sleep(0.3)
            for operation in (first, second):
                assert operation is not None
                assert not (await lab.core.engine.get(operation.name)).state.terminal
            world.reconnect()
            await lab.done(first)
            await lab.done(second)
            assert lab.state("a") is S.PAUSED


async def test_a_host_of_which_the_backend_is_missing_costs_only_itself() -> None:
    with short_directory() as place:
        async with running_lab(place, hosts={"odd": "nonsense://x"}) as lab:
            odd = lab.services.hosts.get("odd")
            await lab.until(lambda: lab.services.hosts.get("odd").state is HostState.UNREACHABLE)
            odd = lab.services.hosts.get("odd")
            assert odd.last_error is not None
            assert "no backend takes the scheme" in odd.last_error.message
            with pytest.raises(UnavailableError):
                await lab.services.guests.plan_one("odd", "a", _draft())
            await lab.created("a")


def _draft() -> Any:
    from tests.support.daemons import GuestDraft, spec

    return GuestDraft(spec())


async def test_a_probe_that_fails_is_tried_again(monkeypatch: pytest.MonkeyPatch) -> None:
    from virtd.inventory import link

    monkeypatch.setattr(link, "PROBE_AGAIN_S", 0.05)
    uri = fresh_uri()
    WORLDS.get(uri).faults.fail("host_info")
    with short_directory() as place:
        async with running_lab(place, uri=uri, wait=False) as lab:
            await lab.until(lambda: lab.link.host.last_error is not None)
            await lab.link.facts(10)
            assert lab.link.host.facts.hypervisor == "fake"
            await lab.created("a")


# ------------------------------------------------------------------------------------------ events


async def test_what_happens_outside_is_seen_at_once(lab: Lab) -> None:
    guest = await lab.created("a", start=True)
    lab.world.native.kill_guest(guest.uid)
    await lab.until(lambda: lab.state("a") is S.STOPPED, 2)
    assert lab.guest("a").status.state_reason == "CRASHED"
    uid = lab.world.native.define_foreign("theirs")
    await lab.until(lambda: lab.core.inventory.by_uid(uid) is not None, 2)
    lab.world.native.undefine_foreign(uid)
    await lab.until(lambda: lab.core.inventory.by_uid(uid) is None, 2)


async def test_a_guest_that_is_made_while_a_list_is_on_its_way_stays(lab: Lab) -> None:
    """The list was asked for before the guest was there, and answers after."""
    session = lab.link.session
    real = session.list_guests
    asked, answer = asyncio.Event(), asyncio.Event()

    async def slow() -> Any:
        found = await real()
        asked.set()
        await answer.wait()
        return found

    session.list_guests = slow  # type: ignore[method-assign]
    resync = asyncio.create_task(lab.link.resync())
    await asked.wait()
    uid = (await lab.created("a", blank(), start=True)).uid
    foreign = lab.world.native.define_foreign("theirs")
    await lab.until(lambda: lab.core.inventory.by_uid(foreign) is not None)
    await lab.core.events.flush()
    head = lab.core.events.head
    answer.set()
    await resync
    assert lab.core.inventory.by_uid(uid) is not None
    assert lab.guest("a").status.presence is Presence.PRESENT
    await lab.core.events.flush()
    assert [e for e in await lab.core.events.read(head, 100) if e.resource.startswith("hosts/lab/guests/")] == []


async def test_without_events_the_core_polls_and_says_so() -> None:
    with short_directory() as place:
        async with running_lab(place, "without=host.events") as lab:
            lab.link._options = _quick(lab.link)
            uid = lab.world.native.define_foreign("theirs")
            await lab.until(lambda: lab.core.inventory.by_uid(uid) is not None, 10)
            capability = next(c for c in lab.services.hosts.capabilities(HOST) if c.id == "host.events")
            assert capability.level == "EMULATED"
            assert "compares the list" in capability.reason
            lab.world.native.start_foreign(uid)
            await lab.until(lambda: lab.state("theirs") is S.RUNNING, 10)
            lab.world.native.undefine_foreign(uid)
            await lab.until(lambda: lab.core.inventory.by_uid(uid) is None, 10)


def _quick(link: HostLink) -> Any:
    from dataclasses import replace

    return replace(link._options, poll_s=0.05, readiness_s=0.05, resync_s=0.05)


async def test_an_event_source_that_breaks_is_taken_up_again(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    from virtd.inventory import link

    monkeypatch.setattr(link, "RESUBSCRIBE_S", 0.02)
    source = lab.link.facets.event_source
    assert source is not None

    class Broken:
        def __aiter__(self) -> Broken:
            return self

        async def __anext__(self) -> Any:
            raise RuntimeError("a defect in a backend")

    task = asyncio.create_task(lab.link._consume(source, Broken()))
    await asyncio.sleep(0.1)
    assert not task.done(), "it listens again"
    uid = lab.world.native.define_foreign("theirs")
    await until(lambda: lab.core.inventory.by_uid(uid) is not None)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


async def test_one_event_that_cannot_be_handled_does_not_end_the_others(lab: Lab, monkeypatch: Any) -> None:
    real = lab.link._handle
    bad = 0

    def handle(event: Any) -> None:
        nonlocal bad
        if event.type is NativeEventType.GUEST_DEFINED and event.name == "bad":
            bad += 1
            raise ZeroDivisionError
        real(event)

    monkeypatch.setattr(lab.link, "_handle", handle)
    lab.world.native.define_foreign("bad")
    uid = lab.world.native.define_foreign("good")
    await lab.until(lambda: lab.core.inventory.by_uid(uid) is not None)
    assert bad == 1


async def test_a_word_that_the_connection_is_back_always_leads_to_a_look(lab: Lab) -> None:
    """Events may have been lost until the callbacks were registered again, whoever noticed first that it is back."""
    with lab.world.recording() as calls:
        lab.world.native._emit(NativeEventType.CONNECTED)
        await lab.until(lambda: "guest_list" in calls)


# ------------------------------------------------------------------------------------------- hosts


async def test_hosts_are_added_remembered_and_removed() -> None:
    added = fresh_uri()
    with short_directory() as place:
        async with running_lab(place) as lab:
            hosts = lab.services.hosts
            await hosts.add(call(), "more", added, {"rack": "1"})
            await lab.core.links["more"].facts(10)
            made = await lab.services.guests.create(call(), "more", "a", _draft(), start=False)
            await lab.done(made)
            with pytest.raises(VirtdError) as caught:
                await hosts.add(call(), "more", added, {})
            assert caught.value.reason.name == "HOST_EXISTS"
            for bad_id, bad_uri, field in (("X", added, "host_id"), ("y", "nope://", "uri"), ("y", "", "uri")):
                with pytest.raises(VirtdError) as caught:
                    await hosts.add(call(), bad_id, bad_uri, {})
                assert caught.value.record.violations[0].field == field
            with pytest.raises(VirtdError) as caught:
                await hosts.remove(call(), "more", force=False)
            assert caught.value.reason.name == "HOST_NOT_EMPTY"
            with pytest.raises(VirtdError) as caught:
                await hosts.remove(call(), HOST, force=True)
            assert caught.value.reason.name == "INVALID_STATE"
        async with running_lab(place) as lab:
            host = lab.services.hosts.get("more")
            assert (host.origin, dict(host.labels)) == ("added", {"rack": "1"})
            await lab.core.links["more"].facts(10)
            await lab.services.hosts.remove(call(), "more", force=True)
            assert [view.key.host for view in lab.core.inventory.guests()] == []
            assert len(WORLDS.get(added).native.guests) == 1, "the guests themselves stay"
        async with running_lab(place) as lab:
            with pytest.raises(VirtdError):
                lab.services.hosts.get("more")
    WORLDS.forget(added)
