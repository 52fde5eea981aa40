"""The inventory: identity, staleness, what a list may and may not change, and what survives a restart."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from pathlib import Path
from uuid import UUID, uuid4

import pytest

from virtd.backend.api import GuestSummary, NativeGuest
from virtd.errors import AlreadyExistsError, NotFoundError
from virtd.events import EventLog
from virtd.inventory import Encoders, Inventory
from virtd.model.event import Event, EventType
from virtd.model.guest import (
    ConditionStatus,
    ConditionType,
    DiskStatus,
    Guest,
    GuestSpec,
    GuestState,
    GuestStatus,
    Origin,
    Presence,
)
from virtd.model.host import Host, HostState
from virtd.model.names import GuestName
from virtd.store import Database, open_database

S = GuestState
ENCODERS = Encoders(
    guest=lambda g: g.name.encode(), operation=lambda o: o.name.encode(), host=lambda h: h.name.encode()
)


class World:
    """An inventory, and a restart of it."""

    def __init__(self, place: Path, *hosts: str) -> None:
        self.place = place
        self.boot(*hosts)

    def boot(self, *hosts: str) -> None:
        self.database: Database = open_database(self.place)
        self.log = EventLog(self.database)
        self.start = self.log.head
        self.inventory = Inventory(self.database, self.log, ENCODERS)
        self.inventory.load()
        for host in hosts:
            self.add(host)
        self.inventory.settle()

    def add(self, host: str) -> None:
        self.inventory.put_host(Host(f"hosts/{host}", "fake", "fake:///", HostState.CONNECTED))

    def restart(self, *hosts: str) -> None:
        self.database.close()
        self.boot(*hosts)

    async def events(self, *types: EventType) -> list[Event]:
        await self.log.flush()
        found = await self.log.read(self.start, 1000)
        self.start = self.log.head
        return [event for event in found if not types or event.type in types]

    def managed(self, host: str, name: str) -> UUID:
        uid = uuid4()
        status = GuestStatus(state=S.STOPPED, presence=Presence.PRESENT, origin=Origin.MANAGED)
        self.inventory.reserve(Guest(str(GuestName(host, name)), uid, GuestSpec(vcpus=1), status, generation=1))
        return uid

    def status(self, uid: UUID) -> GuestStatus:
        view = self.inventory.by_uid(uid)
        assert view is not None
        return view.guest.status


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    made = World(tmp_path, "a", "b")
    yield made
    made.database.close()


def seen(uid: UUID, name: str = "g", state: GuestState = S.STOPPED) -> GuestSummary:
    return GuestSummary(uid, name, state)


# -------------------------------------------------------------------------------- what a list says


async def test_a_list_adds_what_is_new(world: World) -> None:
    uid = uuid4()
    assert world.inventory.observe_list("a", [seen(uid, "web", S.RUNNING)]) == [uid]
    view = world.inventory.get(GuestName("a", "web"))
    assert view.guest.status.origin is Origin.FOREIGN
    assert view.guest.status.state is S.RUNNING
    assert [event.type for event in await world.events(EventType.GUEST_ADDED)] == [EventType.GUEST_ADDED]


async def test_a_list_that_says_nothing_new_changes_nothing(world: World) -> None:
    uid = uuid4()
    world.inventory.observe_list("a", [seen(uid)])
    await world.events()
    for _ in range(3):
        assert world.inventory.observe_list("a", [seen(uid)]) == []
    assert await world.events() == []


async def test_a_list_never_takes_a_guest_away_by_itself(world: World) -> None:
    """It may be older than the guest: whoever is missing in it is asked about."""
    foreign, managed = uuid4(), world.managed("a", "mine")
    world.inventory.observe_list("a", [seen(foreign)])
    await world.events()
    wanted = world.inventory.observe_list("a", [])
    assert set(wanted) == {foreign, managed}
    assert world.status(managed).presence is Presence.PRESENT
    assert world.inventory.by_uid(foreign) is not None
    assert await world.events() == []


async def test_a_list_that_shows_another_state_is_not_believed_either(world: World) -> None:
    uid = uuid4()
    world.inventory.observe_state("a", uid, S.RUNNING, name="g")
    assert world.inventory.observe_list("a", [seen(uid, state=S.STOPPED)]) == [uid]
    assert world.status(uid).state is S.RUNNING


async def test_what_an_event_has_touched_since_is_left_to_a_closer_look(world: World) -> None:
    uid = uuid4()
    assert world.inventory.observe_list("a", [seen(uid)], {uid}) == [uid]
    assert world.inventory.by_uid(uid) is None, "it may just have been undefined"


async def test_absent_is_what_the_host_said(world: World) -> None:
    foreign, managed = uuid4(), world.managed("a", "mine")
    world.inventory.observe_list("a", [seen(foreign)])
    await world.events()
    world.inventory.observe_absent("a", foreign)
    world.inventory.observe_absent("a", managed)
    world.inventory.observe_absent("b", managed)
    assert world.inventory.by_uid(foreign) is None
    status = world.status(managed)
    assert (status.presence, status.state_reason) == (Presence.ABSENT, "UNDEFINED_OUTSIDE")
    assert {event.type for event in await world.events()} == {EventType.GUEST_REMOVED, EventType.GUEST_CHANGED}
    # Asked for again only by those who lost it, and back if it is defined again.
    assert world.inventory.observe_list("a", []) == []
    world.inventory.observe(
        "a", NativeGuest(managed, "mine", S.STOPPED, GuestSpec(), state_reason="DEFINED", native_state="shutoff")
    )
    status = world.status(managed)
    assert (status.presence, status.state_reason) == (Presence.PRESENT, "DEFINED")


# ---------------------------------------------------------------------------------------- identity


async def test_a_managed_guest_is_not_changed_by_what_another_host_says_of_its_uuid(world: World) -> None:
    uid = world.managed("a", "mine")
    await world.events()
    world.inventory.observe_state("b", uid, S.RUNNING, name="copy")
    world.inventory.observe("b", NativeGuest(uid, "copy", S.RUNNING, GuestSpec(vcpus=9)))
    assert world.inventory.observe_list("b", [seen(uid, "copy", S.RUNNING)]) == []
    assert world.status(uid).state is S.STOPPED
    assert await world.events() == []


async def test_one_hypervisor_that_is_configured_twice_does_not_make_guests_jump(world: World) -> None:
    uid = uuid4()
    world.inventory.observe_list("a", [seen(uid)])
    await world.events()
    for _ in range(3):
        world.inventory.observe_list("b", [seen(uid)])
        world.inventory.observe_list("a", [seen(uid)])
    assert [view.guest.name for view in world.inventory.guests()] == ["hosts/a/guests/g"]
    assert await world.events() == []


async def test_a_foreign_guest_that_moved_is_found_at_its_new_host(world: World) -> None:
    uid = uuid4()
    world.inventory.observe_list("a", [seen(uid)])
    world.inventory.mark_stale("a", datetime.now(UTC))
    world.inventory.observe_list("b", [seen(uid)])
    assert [view.guest.name for view in world.inventory.guests()] == ["hosts/b/guests/g"]


@pytest.mark.parametrize(
    ("native", "expected"),
    [
        ("a b/c", "a-b-c"),
        ("<b>x</b>", "b-x-b"),
        ("../../etc", "etc"),
        ("Grüße", "Gr-e"),
        ("-", "guest"),
        ("", "guest"),
        ("x" * 300, "x" * 100),
    ],
)
async def test_any_native_name_gets_an_id_that_a_name_can_carry(world: World, native: str, expected: str) -> None:
    uid, twin = uuid4(), uuid4()
    world.inventory.observe_list("a", [seen(uid, native), seen(twin, native)])
    view = world.inventory.get(GuestName("a", expected))
    assert view.guest.uid == uid
    assert view.guest.display_name == native
    other = world.inventory.by_uid(twin)
    assert other is not None
    assert other.key.guest == f"{expected[:90]}-{twin.hex[:8]}"


async def test_a_name_that_somebody_took_meanwhile_is_not_reserved(world: World) -> None:
    uid = uuid4()
    world.inventory.observe_list("a", [seen(uid, "web")])
    with pytest.raises(AlreadyExistsError):
        world.managed("a", "web")
    view = world.inventory.find(GuestName("a", "web"))
    assert view is not None
    assert view.guest.uid == uid


# --------------------------------------------------------------------------------------- staleness


async def test_a_host_that_does_not_answer_makes_its_guests_stale_not_gone(world: World) -> None:
    mine, theirs, other = world.managed("a", "mine"), uuid4(), uuid4()
    world.inventory.observe_list("a", [seen(theirs, state=S.RUNNING), seen(mine)])
    world.inventory.observe_list("b", [seen(other)])
    since = datetime.now(UTC)
    world.inventory.mark_stale("a", since)
    world.inventory.mark_stale("a", datetime.now(UTC))
    for uid in (mine, theirs):
        status = world.status(uid)
        assert (status.presence, status.stale_since) == (Presence.UNKNOWN, since)
    assert world.status(theirs).state is S.RUNNING
    assert world.status(other).stale_since is None
    world.inventory.observe_list("a", [seen(theirs, state=S.RUNNING), seen(mine)])
    assert world.status(theirs).stale_since is None
    assert world.status(theirs).presence is Presence.PRESENT


async def test_conditions_and_addresses_end_with_the_run(world: World) -> None:
    uid = uuid4()
    world.inventory.observe_state("a", uid, S.RUNNING, name="g")
    world.inventory.observe_condition(uid, ConditionType.BOOTED, ConditionStatus.TRUE, "X")
    first = world.status(uid).conditions[0]
    await world.events()
    world.inventory.observe_condition(uid, ConditionType.BOOTED, ConditionStatus.TRUE, "X")
    assert await world.events() == []
    world.inventory.observe_condition(uid, ConditionType.BOOTED, ConditionStatus.TRUE, "Y")
    assert world.status(uid).conditions[0].change_time == first.change_time
    world.inventory.observe_state("a", uid, S.STOPPED, reason="SHUTDOWN")
    assert world.status(uid).conditions == ()


async def test_one_change_is_one_event(world: World) -> None:
    uid = uuid4()
    world.inventory.observe_state("a", uid, S.RUNNING, name="g")
    await world.events()
    world.inventory.observe_state("a", uid, S.STOPPED, reason="CRASHED")
    world.inventory.observe_state("a", uid, S.STOPPED, reason="OTHER")
    (event,) = await world.events()
    assert event.type is EventType.GUEST_STATE_CHANGED
    assert event.attributes == {"state": "STOPPED", "previous_state": "RUNNING", "reason": "CRASHED"}
    assert event.payload == b"hosts/a/guests/g"


# ---------------------------------------------------------------------------------------- restarts


async def test_the_last_picture_survives_and_is_stale(world: World) -> None:
    mine = world.managed("a", "mine")
    world.inventory.own_volumes(mine, ["virtd/x"])
    world.inventory.observe(
        "a",
        NativeGuest(mine, "mine", S.RUNNING, GuestSpec(), disks=(DiskStatus("root", "/x"),), native_state="running"),
    )
    await world.inventory.change(mine, lambda guest: _labelled(guest, "env", "prod"))
    world.restart("a", "b")
    view = world.inventory.get(GuestName("a", "mine"))
    assert view.owned_volumes == ("virtd/x",)
    assert view.guest.labels == {"env": "prod"}
    assert view.guest.generation == 2
    assert view.guest.status.state is S.RUNNING
    assert view.guest.status.presence is Presence.UNKNOWN
    assert view.guest.status.stale_since is not None
    assert view.guest.status.disks == (DiskStatus("root", "/x"),)


def _labelled(guest: Guest, key: str, value: str) -> Guest:
    from dataclasses import replace

    return replace(guest, labels={**guest.labels, key: value})


async def test_guests_of_a_host_that_is_not_there_are_not_shown_and_not_forgotten(world: World) -> None:
    mine, theirs = world.managed("a", "mine"), uuid4()
    world.inventory.own_volumes(mine, ["virtd/x"])
    world.inventory.observe_list("a", [seen(theirs, "theirs")])
    world.restart("b")  # somebody has taken "a" out of the configuration
    assert world.inventory.guests() == []
    with pytest.raises(NotFoundError):
        world.inventory.get(GuestName("a", "mine"))
    events = await world.events()
    assert {event.resource for event in events if event.type is EventType.GUEST_REMOVED} == {
        "hosts/a/guests/mine",
        "hosts/a/guests/theirs",
    }
    assert [event.resource for event in events if event.type is EventType.HOST_REMOVED] == ["hosts/a"]
    world.restart("a", "b")
    view = world.inventory.get(GuestName("a", "mine"))
    assert view.guest.status.origin is Origin.MANAGED
    assert view.owned_volumes == ("virtd/x",)
    assert world.inventory.by_uid(theirs) is None


async def test_a_host_that_comes_back_later_brings_its_guests_before_it_can_be_asked(world: World) -> None:
    mine = world.managed("a", "mine")
    world.restart("b")
    await world.events()
    world.add("a")
    assert [event.resource for event in await world.events(EventType.GUEST_ADDED)] == ["hosts/a/guests/mine"]
    world.inventory.observe_list("a", [seen(mine, "mine")])
    assert world.status(mine).origin is Origin.MANAGED, "it is not taken for a stranger's"


async def test_a_guest_that_is_forgotten_stays_so_and_the_event_is_not_lost(world: World) -> None:
    mine = world.managed("a", "mine")
    durable = world.inventory.forget(mine)
    assert durable is not None
    await asyncio.wrap_future(durable)
    assert world.inventory.forget(mine) is None
    world.restart("a", "b")
    assert world.inventory.guests() == []
    events = await world.log.read(0, 100)
    assert [e.resource for e in events if e.type is EventType.GUEST_REMOVED] == ["hosts/a/guests/mine"]


async def test_a_host_counts_its_guests_without_an_event_for_each(world: World) -> None:
    await world.events()
    for number in range(3):
        world.inventory.observe_list("a", [seen(uuid4(), f"g{number}")])
    assert world.inventory.host("a").guest_count == 3
    assert [host.guest_count for host in world.inventory.hosts()] == [3, 0]
    world.inventory.put_host(world.inventory.host("a"))
    assert await world.events(EventType.HOST_CHANGED) == []


async def test_a_host_that_is_removed_takes_its_guests_along(world: World) -> None:
    world.managed("a", "mine")
    await world.events()
    world.inventory.remove_host("a")
    types = [event.type for event in await world.events()]
    assert types == [EventType.GUEST_REMOVED, EventType.HOST_REMOVED]
    world.restart("a", "b")
    assert world.inventory.guests() == []
