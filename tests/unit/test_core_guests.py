"""Use cases of guests on the fake hypervisor, through the whole core.

Longer than 500 lines because every use case of guests is tried on the same fake host.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from uuid import uuid4

import pytest

from tests.support.daemons import HOST, MIB, Lab, blank, call, running_lab, short_directory, spec
from virtd.errors import (
    AlreadyExistsError,
    ConflictError,
    DeadlineExceededError,
    FailedPreconditionError,
    InvalidArgumentError,
    NotFoundError,
    UnsupportedError,
    VirtdError,
)
from virtd.model.guest import (
    BlankSource,
    ConditionType,
    DiskFormat,
    DiskSpec,
    GuestState,
    HostFileSource,
    Origin,
    Presence,
)
from virtd.model.names import GuestName
from virtd.model.operation import OperationState
from virtd.operations import worker
from virtd.service.guests import GuestDraft
from virtd.service.snapshots import Draft as SnapshotDraft

S = GuestState


@pytest.fixture
async def lab() -> AsyncIterator[Lab]:
    with short_directory() as place:
        async with running_lab(place) as made:
            yield made


def volumes(lab: Lab) -> set[str]:
    return {volume for pool in lab.world.native.pools.values() for volume in pool.volumes}


# ----------------------------------------------------------------------------------------- create


async def test_create_makes_what_was_asked_for_and_says_so(lab: Lab) -> None:
    operation = await lab.create("web", blank(), blank("data", 16), start=True, vcpus=2)
    ended = await lab.done(operation)
    assert ended.stages == ("reserve", "disks", "define", "start")
    assert ended.result == f"hosts/{HOST}/guests/web"
    guest = lab.guest("web")
    assert guest.status.state is S.RUNNING
    assert guest.status.origin is Origin.MANAGED
    assert guest.status.presence is Presence.PRESENT
    assert guest.spec.vcpus == 2
    assert [disk.name for disk in guest.status.disks] == ["root", "data"]
    assert guest.status.disks[1].capacity_bytes == 16 * MIB
    assert {f"virtd/{name}" for name in volumes(lab)} == set(lab.view("web").owned_volumes)
    assert guest.status.current_operations == ()
    response = await lab.services.operations.response(ended)
    assert response is not None
    assert response.name == guest.name


async def test_a_name_is_given_once_also_to_many_at_a_time(lab: Lab) -> None:
    found = await asyncio.gather(*(lab.create("one", blank()) for _ in range(8)), return_exceptions=True)
    refused = [error for error in found if isinstance(error, AlreadyExistsError)]
    assert len(refused) == 7
    assert refused[0].reason.name == "GUEST_EXISTS"
    for entry in found:
        if not isinstance(entry, BaseException):
            await lab.done(entry)
    assert len(volumes(lab)) == 1


async def test_the_same_request_twice_at_a_time_is_one_guest(lab: Lab) -> None:
    request, draft = str(uuid4()), GuestDraft(spec(blank()))
    lab.world.faults.delay("pool_list", 0.05)  # so that the second comes while the first is looked at
    made = await asyncio.gather(
        *(lab.services.guests.create(call(request_id=request), HOST, "one", draft, True) for _ in range(4))
    )
    assert len({operation.name for operation in made}) == 1
    await lab.done(made[0])
    again = await lab.services.guests.create(call(request_id=request), HOST, "one", draft, True)
    assert again.state is OperationState.SUCCEEDED
    with pytest.raises(InvalidArgumentError) as caught:
        await lab.services.guests.create(call(request_id=request, fingerprint="other"), HOST, "two", draft, True)
    assert caught.value.reason.name == "REQUEST_ID_REUSED"


@pytest.mark.parametrize(
    "fault", ["pool_create", "volume_allocate", "volume_commit", "guest_write_config", "guest_create"]
)
@pytest.mark.parametrize("after", [False, True])
async def test_a_create_that_fails_leaves_nothing(lab: Lab, fault: str, after: bool) -> None:
    before = lab.world.digest()
    lab.world.faults.fail(fault, 1, after=after)
    ended = await lab.end(await lab.create("a", blank(), start=True))
    assert ended.state is OperationState.FAILED
    assert ended.error is not None
    assert ended.error.native is not None
    assert ended.error.native.call == fault
    assert lab.core.inventory.guests() == []
    assert volumes(lab) == set()
    assert lab.world.native.guests == {}
    assert '"guests": []' in before
    await lab.done(await lab.create("a", blank(), start=True))


async def test_a_create_is_cancelled_at_every_point_and_leaves_nothing(
    lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(worker, "CANCEL_GRACE_S", 0.1)
    for hanging in ("volume_allocate", "guest_write_config", "guest_create"):
        hang = lab.world.faults.hang(hanging)
        operation = await lab.create("a", blank(), start=True)
        await lab.until(lambda hang=hang: hang.entered > 0)  # type: ignore[misc]
        await lab.core.engine.cancel(operation.name)
        # Let go only afterwards: a call that comes back before the cancel is noticed has succeeded.
        assert (await lab.end(operation)).state is OperationState.CANCELLED
        lab.world.faults.clear()
        assert lab.core.inventory.guests() == []
        assert volumes(lab) == set()
        assert lab.world.native.guests == {}


async def test_a_guest_of_that_name_that_comes_meanwhile_is_not_touched(lab: Lab) -> None:
    hang = lab.world.faults.hang("volume_allocate")
    operation = await lab.create("a", blank())
    await lab.until(lambda: hang.entered > 0)
    foreign = lab.world.native.define_foreign("a")
    hang.release()
    await lab.failed(operation, "GUEST_EXISTS")
    assert foreign in lab.world.native.guests
    assert volumes(lab) == set()
    await lab.link.resync()
    assert [view.guest.uid for view in lab.core.inventory.guests()] == [foreign]


# --------------------------------------------------------------------------------------- lifecycle


async def test_the_life_of_a_guest(lab: Lab) -> None:
    guests, name = lab.services.guests, lab.name("a")
    await lab.created("a", blank())
    assert lab.state("a") is S.STOPPED
    await lab.done(await guests.start(call(), name))
    assert lab.state("a") is S.RUNNING
    await lab.done(await guests.start(call(), name))
    await lab.done(await guests.pause(call(), name))
    assert lab.state("a") is S.PAUSED
    await lab.done(await guests.resume(call(), name))
    await lab.done(await guests.suspend(call(), name))
    assert lab.state("a") is S.SUSPENDED
    await lab.done(await guests.start(call(), name))
    boots = lab.world.native.guests[lab.guest("a").uid].boots
    await lab.done(await guests.reboot(call(), name))
    await lab.done(await guests.reset(call(), name))
    assert lab.world.native.guests[lab.guest("a").uid].boots == boots + 2
    await lab.done(await guests.shutdown(call(), name, 0, force_after_timeout=False))
    assert lab.state("a") is S.STOPPED
    await lab.done(await guests.start(call(), name))
    await lab.done(await guests.stop(call(), name))
    assert lab.state("a") is S.STOPPED
    await lab.done(await guests.delete(call(), name, force=False, keep_disks=False, etag=""))
    assert lab.core.inventory.guests() == []
    assert volumes(lab) == set()


@pytest.mark.parametrize(
    ("verb", "state"),
    [("pause", S.STOPPED), ("resume", S.STOPPED), ("reset", S.STOPPED), ("reboot", S.STOPPED), ("suspend", S.STOPPED)],
)
async def test_a_wrong_state_is_refused_with_what_is_allowed(lab: Lab, verb: str, state: GuestState) -> None:
    await lab.created("a")
    assert lab.state("a") is state
    with pytest.raises(FailedPreconditionError) as caught:
        await getattr(lab.services.guests, verb)(call(), lab.name("a"))
    assert caught.value.reason.name == "INVALID_STATE"
    assert "start" in caught.value.record.allowed_actions
    assert verb not in caught.value.record.allowed_actions
    assert await lab.core.engine.list() == [await lab.core.engine.get((await lab.core.engine.list())[0].name)]


@pytest.mark.parametrize(
    ("without", "verb"),
    [
        ("guest.shutdown", "shutdown"),
        ("guest.pause", "pause"),
        ("guest.reset", "reset"),
        ("guest.suspend", "suspend"),
    ],
)
async def test_what_the_host_cannot_do_is_found_first_also_while_the_guest_is_busy(without: str, verb: str) -> None:
    with short_directory() as place:
        async with running_lab(place, f"without={without}") as lab:
            await lab.created("a", start=True)
            extra = (0.0, False) if verb == "shutdown" else ()
            for busy in (False, True):
                if busy:
                    hang = lab.world.faults.hang("guest_destroy")
                    stopping = await lab.services.guests.stop(call(), lab.name("a"))
                    await lab.until(lambda hang=hang: hang.entered > 0)  # type: ignore[misc]
                with pytest.raises(UnsupportedError) as caught:
                    await getattr(lab.services.guests, verb)(call(), lab.name("a"), *extra)
                assert caught.value.record.metadata["capability"] == without
            hang.release()
            await lab.done(stopping)


async def test_a_reboot_is_emulated_where_the_host_cannot(lab: Lab) -> None:
    with short_directory() as place:
        async with running_lab(place, "without=guest.reboot") as other:
            await other.created("a", start=True)
            ended = await other.done(await other.services.guests.reboot(call(), other.name("a")))
            assert ended.stages == ("check", "shutdown", "start")
            assert other.state("a") is S.RUNNING
            assert other.world.native.guests[other.guest("a").uid].boots == 2


async def test_the_power_button_is_pressed_until_the_guest_obeys(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    from virtd.service.verbs import lifecycle

    monkeypatch.setattr(lifecycle, "PRESS_AGAIN_S", (0.02,))
    await lab.created("a", start=True, backend_options={"presses": "4"})
    ended = await lab.done(await lab.services.guests.shutdown(call(), lab.name("a"), 30, force_after_timeout=False))
    assert any("pressed 4 times" in note.message for note in ended.notes)
    assert lab.state("a") is S.STOPPED


@pytest.mark.parametrize("force", [False, True])
async def test_a_guest_that_ignores_the_button(lab: Lab, monkeypatch: pytest.MonkeyPatch, force: bool) -> None:
    from virtd.service.verbs import lifecycle

    monkeypatch.setattr(lifecycle, "PRESS_AGAIN_S", (0.02,))
    await lab.created("a", start=True, backend_options={"presses": "0"})
    operation = await lab.services.guests.shutdown(call(), lab.name("a"), 0.1, force_after_timeout=force)
    if force:
        ended = await lab.done(operation)
        assert any("stopped by force" in warning for warning in ended.warnings)
        assert lab.state("a") is S.STOPPED
    else:
        ended = await lab.failed(operation, "SHUTDOWN_IGNORED")
        assert lab.state("a") is S.RUNNING


async def test_a_stop_goes_before_a_shutdown_that_waits(lab: Lab) -> None:
    await lab.created("a", start=True, backend_options={"presses": "0"})
    shutdown = await lab.services.guests.shutdown(call(), lab.name("a"), 60, force_after_timeout=False)
    await lab.until(lambda: lab.world.native_calls.get("guest_power_button", 0) > 0)
    stop = await lab.services.guests.stop(call(), lab.name("a"))
    await lab.done(stop)
    assert (await lab.end(shutdown)).state is OperationState.CANCELLED
    assert lab.state("a") is S.STOPPED


async def test_a_start_that_is_called_off_is_taken_back(lab: Lab) -> None:
    await lab.created("a")
    hang = lab.world.faults.hang("guest_create", deaf=True)
    operation = await lab.services.guests.start(call(), lab.name("a"))
    await lab.until(lambda: hang.entered > 0)
    assert operation is not None
    await lab.core.engine.cancel(operation.name)
    hang.release()  # the hypervisor starts it after all
    ended = await lab.end(operation)
    truth = lab.world.native.guests[lab.guest("a").uid].state
    assert (ended.state, truth) in {
        (OperationState.CANCELLED, S.STOPPED),
        (OperationState.SUCCEEDED, S.RUNNING),
    }
    assert lab.state("a") is truth


# ----------------------------------------------------------------------------------------- delete


async def test_disks_are_kept_on_request_and_named(lab: Lab) -> None:
    await lab.created("a", blank())
    kept = volumes(lab)
    ended = await lab.done(
        await lab.services.guests.delete(call(), lab.name("a"), force=False, keep_disks=True, etag="")
    )
    assert volumes(lab) == kept
    assert ended.result_data == {"kept_volumes": f"virtd/{next(iter(kept))}"}


async def test_a_running_guest_is_deleted_with_force_only(lab: Lab) -> None:
    await lab.created("a", blank(), start=True)
    with pytest.raises(FailedPreconditionError):
        await lab.services.guests.delete(call(), lab.name("a"), force=False, keep_disks=False, etag="")
    await lab.done(await lab.services.guests.delete(call(), lab.name("a"), force=True, keep_disks=False, etag=""))
    assert lab.world.native.guests == {}


async def test_disks_that_are_still_being_made_when_the_delete_is_asked_for_go_too(lab: Lab) -> None:
    hang = lab.world.faults.hang("volume_allocate", deaf=True)
    creating = await lab.create("a", blank(), blank("data"))
    await lab.until(lambda: hang.entered > 0)
    deleting = await lab.services.guests.delete(call(), lab.name("a"), force=True, keep_disks=False, etag="")
    hang.release()
    await lab.done(creating)
    await lab.done(deleting)
    assert volumes(lab) == set()
    assert lab.world.native.guests == {}


async def test_deleting_cannot_be_stopped_half_way(lab: Lab) -> None:
    await lab.created("a", blank())
    hang = lab.world.faults.hang("guest_delete_config")
    operation = await lab.services.guests.delete(call(), lab.name("a"), force=False, keep_disks=False, etag="")
    assert operation is not None
    await lab.until(lambda: hang.entered > 0)
    await lab.core.engine.cancel(operation.name)
    hang.release()
    await lab.done(operation)
    assert volumes(lab) == set()
    assert lab.core.inventory.guests() == []


async def test_a_guest_that_was_undefined_outside_stays_until_it_is_deleted(lab: Lab) -> None:
    guest = await lab.created("a", blank())
    lab.world.native.undefine_foreign(guest.uid)
    await lab.until(lambda: lab.guest("a").status.presence is Presence.ABSENT)
    assert lab.guest("a").status.allowed_actions == ("delete",)
    with pytest.raises(FailedPreconditionError, match="ABSENT"):
        await lab.services.guests.start(call(), lab.name("a"))
    await lab.done(await lab.services.guests.delete(call(), lab.name("a"), force=False, keep_disks=False, etag=""))
    assert volumes(lab) == set()


async def test_an_unknown_state_does_not_block_deletion(lab: Lab) -> None:
    guest = await lab.created("a", blank())
    lab.core.inventory.observe_state(HOST, guest.uid, S.UNKNOWN, native_state="aborted")
    assert {"stop", "delete"} <= set(lab.guest("a").status.allowed_actions)
    await lab.done(await lab.services.guests.delete(call(), lab.name("a"), force=True, keep_disks=False, etag=""))


# ---------------------------------------------------------------------------------------- foreign


async def test_a_foreign_guest_is_shown_and_never_touched(lab: Lab) -> None:
    uid = lab.world.native.define_foreign("theirs")
    lab.world.native.start_foreign(uid)
    await lab.until(lambda: lab.core.inventory.by_uid(uid) is not None and lab.state("theirs") is S.RUNNING)
    assert lab.guest("theirs").status.allowed_actions == ("adopt",)
    name, guests = lab.name("theirs"), lab.services.guests
    with lab.world.recording() as calls:
        for attempt in (
            guests.stop(call(), name),
            guests.start(call(), name),
            guests.shutdown(call(), name, 0, force_after_timeout=False),
            guests.delete(call(), name, force=True, keep_disks=False, etag=""),
            guests.update(call(), name, "x", None, None, ""),
            lab.services.snapshots.create(call(), name, SnapshotDraft("s")),
            lab.services.consoles.attach(call(), name, read_only=True, offset=None),
        ):
            with pytest.raises(FailedPreconditionError) as caught:
                await attempt
            assert caught.value.reason.name == "GUEST_NOT_ADOPTED"
            assert caught.value.record.allowed_actions == ("adopt",)
        await lab.link._readiness.check()
        await asyncio.sleep(0.05)
    assert set(calls) <= {"guest_list", "guest_lookup", "stats"}, "it was only looked at"


async def test_an_adopted_guest_is_ours_but_its_disks_are_not(lab: Lab) -> None:
    await lab.created("maker", blank())
    path = lab.guest("maker").status.disks[0].path
    await lab.done(await lab.services.guests.delete(call(), lab.name("maker"), force=False, keep_disks=True, etag=""))
    kept = volumes(lab)
    uid = lab.world.native.define_foreign("theirs")
    await lab.until(lambda: lab.core.inventory.by_uid(uid) is not None)
    await lab.done(await lab.services.guests.adopt(call(), lab.name("theirs")))
    assert lab.guest("theirs").status.origin is Origin.MANAGED
    assert lab.guest("theirs").generation == 2
    await lab.done(await lab.services.guests.start(call(), lab.name("theirs")))
    await lab.done(await lab.services.guests.delete(call(), lab.name("theirs"), force=True, keep_disks=False, etag=""))
    assert volumes(lab) == kept
    assert path


# ------------------------------------------------------------------------------------ conflicts, etag


async def test_work_queues_by_default_and_is_refused_on_request(lab: Lab) -> None:
    await lab.created("a")
    hang = lab.world.faults.hang("guest_create")
    starting = await lab.services.guests.start(call(), lab.name("a"))
    await lab.until(lambda: hang.entered > 0)
    assert starting is not None
    assert lab.guest("a").status.current_operations == (starting.name,)
    with pytest.raises(ConflictError) as caught:
        await lab.services.guests.pause(call(reject_conflict=True), lab.name("a"))
    assert caught.value.record.metadata == {"operation": starting.name, "verb": "start"}
    queued = await lab.services.guests.pause(call(), lab.name("a"))
    hang.release()
    await lab.done(starting)
    await lab.done(queued)
    assert lab.state("a") is S.PAUSED


async def test_of_two_changes_with_one_etag_one_wins(lab: Lab) -> None:
    etag = (await lab.created("a")).etag
    update = lab.services.guests.update
    found = await asyncio.gather(
        *(update(call(), lab.name("a"), f"name {n}", None, None, etag) for n in range(5)), return_exceptions=True
    )
    refused = [error for error in found if isinstance(error, ConflictError)]
    assert len(refused) == 4
    assert refused[0].reason.name == "ETAG_MISMATCH"
    assert refused[0].record.metadata["etag"] == lab.guest("a").etag != etag
    assert lab.guest("a").display_name == "name 0"


async def test_a_change_that_the_disk_refuses_has_not_happened(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    await lab.created("a")
    limit = lab.core.database.submit(
        lambda connection: connection.execute(
            f"PRAGMA max_page_count = {connection.execute('PRAGMA page_count').fetchone()[0]}"
        ).fetchall()
    )
    limit.result(5)
    with pytest.raises(VirtdError) as caught:
        await lab.services.guests.update(call(), lab.name("a"), None, None, {"big": "x" * 60_000}, "")
    assert caught.value.reason.name == "STORAGE_FULL"
    assert lab.guest("a").annotations == {}
    lab.core.database.submit(lambda connection: connection.execute("PRAGMA max_page_count = 1000000").fetchall())
    await lab.services.guests.update(call(), lab.name("a"), None, {"env": "prod"}, None, "")
    assert lab.guest("a").labels == {"env": "prod"}


# ------------------------------------------------------------------------------------ wait and plan


async def test_waiting_for_states_conditions_and_the_end(lab: Lab) -> None:
    wait, name = lab.services.guests.wait, lab.name("a")
    await lab.created("a")
    waiting = asyncio.create_task(wait(name, S.RUNNING, None, False, 10))
    await asyncio.sleep(0.01)
    await lab.done(await lab.services.guests.start(call(), name))
    view = await waiting
    assert view is not None
    ready = await wait(name, None, ConditionType.AGENT_READY, False, 10)
    assert ready is not None
    with pytest.raises(DeadlineExceededError, match="is not STOPPED after"):
        await wait(name, S.STOPPED, None, False, 0.05)
    gone = asyncio.create_task(wait(name, None, None, True, 10))
    await lab.done(await lab.services.guests.delete(call(), name, force=True, keep_disks=False, etag=""))
    assert await gone is None
    with pytest.raises(NotFoundError):
        await wait(name, S.RUNNING, None, False, 1)
    with pytest.raises(InvalidArgumentError):
        await wait(name, None, None, False, 1)


async def test_a_plan_has_no_side_effect_and_one_bad_host_does_not_hide_the_others() -> None:
    with short_directory() as place:
        async with running_lab(place, hosts={"poor": "fake:///poor?without=host.volumes"}) as lab:
            await lab.core.links["poor"].facts(10)
            before = lab.world.digest()
            plans = await lab.services.guests.plan(["-"], "a", GuestDraft(spec(blank())))
            by_host = {plan.host: plan for plan in plans}
            assert '"vcpus": 1' in by_host["hosts/lab"].native
            assert by_host["hosts/lab"].native_format == "fake-json"
            error = by_host["hosts/poor"].error
            assert error is not None
            assert error.reason == "FIELD_UNSUPPORTED"
            assert error.violations[0].field == "guest.spec.disks"
            assert error.violations[0].alternatives == ("host_file",)
            assert lab.world.digest() == before
            assert await lab.core.engine.list() == []


# ------------------------------------------------------------------------------------- other's disks


async def test_the_disk_of_one_guest_is_not_given_to_another(lab: Lab) -> None:
    await lab.created("a", blank())
    path = lab.guest("a").status.disks[0].path
    volume = f"hosts/{HOST}/pools/virtd/volumes/{next(iter(volumes(lab)))}"
    for disk in (DiskSpec("root", host_file=HostFileSource(path, DiskFormat.QCOW2)), DiskSpec("root", volume=volume)):
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        Path(path).touch()
        with pytest.raises(FailedPreconditionError) as caught:
            await lab.create("b", disk)
        assert caught.value.reason.name == "VOLUME_IN_USE"
        assert caught.value.record.metadata["used_by"] == str(lab.name("a"))
    reader = DiskSpec("root", volume=volume, read_only=True)
    await lab.created("b", reader)


async def test_lists_are_cut_filtered_and_carry_a_token(lab: Lab) -> None:
    for number in range(5):
        await lab.created(f"g{number}", start=number % 2 == 0)
    page = await lab.services.guests.list("-", "status.state=RUNNING", 2, "")
    assert [view.key.guest for view in page.views] == ["g0", "g2"]
    rest = await lab.services.guests.list("-", "status.state=RUNNING", 2, page.next_page_token)
    assert [view.key.guest for view in rest.views] == ["g4"]
    assert rest.next_page_token == ""
    token = page.resume_token
    await lab.done(await lab.services.guests.stop(call(), lab.name("g0")))
    await lab.core.events.flush()
    events, _ = await lab.services.events.pull("type=GUEST_STATE_CHANGED", token, 10, 0)
    assert [(event.resource, event.attributes["state"]) for event in events] == [(str(lab.name("g0")), "STOPPED")]


async def test_names_that_are_not_there(lab: Lab) -> None:
    with pytest.raises(NotFoundError) as caught:
        lab.services.guests.get(GuestName(HOST, "none"))
    assert caught.value.reason.name == "GUEST_NOT_FOUND"
    with pytest.raises(NotFoundError) as caught:
        await lab.services.guests.start(call(), GuestName("nowhere", "none"))
    assert caught.value.reason.name == "HOST_NOT_FOUND"
    assert HOST in caught.value.message


async def test_a_disk_that_is_too_big_for_the_pool_leaves_nothing(lab: Lab) -> None:
    lab.world.native.pool_capacity_bytes = 10 * MIB
    operation = await lab.create("a", DiskSpec("root", blank=BlankSource(8 * MIB)), blank("data", 8))
    await lab.failed(operation, "STORAGE_FULL")
    assert volumes(lab) == set()
    assert lab.core.inventory.guests() == []
