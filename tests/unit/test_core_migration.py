"""Migration between two fake hosts: what is refused, and what moves along."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from pathlib import Path

import pytest

from tests.support.daemons import blank, call, spec
from tests.support.migrating import COPY, MARK, Pair, pair, place, two, write_marks
from virtd.backend.capabilities import MIGRATE_LIVE, absent
from virtd.errors import (
    CAPABILITY_UNSUPPORTED,
    GUEST_EXISTS,
    GUEST_NOT_ADOPTED,
    HOST_NOT_FOUND,
    HOST_UNREACHABLE,
    INVALID_STATE,
    MIGRATION_BLOCKED,
    VirtdError,
)
from virtd.model.event import EventType
from virtd.model.guest import GuestState, InterfaceKind, InterfaceSpec, RunStrategy
from virtd.model.host import GuestKind
from virtd.model.migration import (
    DiskPassage,
    FindingSeverity,
    MigrationFinding,
    MigrationMode,
    MigrationReason,
    MigrationRequest,
)
from virtd.model.names import GuestName
from virtd.model.operation import Operation, OperationState
from virtd.model.schedule import Schedule, SnapshotAction
from virtd.service.guests import GuestDraft
from virtd.service.snapshots import Draft as SnapshotDraft

__all__ = ["place", "two"]

# ------------------------------------------------------------------------------------ the good ways


@pytest.mark.parametrize("live", [True, False])
async def test_everything_goes_along(two: Pair, live: bool) -> None:
    draft = GuestDraft(
        spec(blank(), blank("data"), run_strategy=RunStrategy.ALWAYS if live else RunStrategy.MANUAL,
             deletion_protection=True, autostart=True),
        "the web server", {"env": "prod"}, {"note": "x"},
    )  # fmt: skip
    await two.lab.done(await two.services.guests.create(call(), "lab", "a", draft, live))
    before = two.lab.guest("a")
    write_marks(two)
    revision = two.core.events.head
    ended = await two.done()
    after = two.guest()
    assert (after.uid, after.display_name, dict(after.labels), dict(after.annotations)) == (
        before.uid, "the web server", {"env": "prod"}, {"note": "x"},
    )  # fmt: skip
    assert after.spec.run_strategy is before.spec.run_strategy
    assert after.spec.deletion_protection
    assert after.spec.autostart
    assert after.generation > before.generation
    assert after.status.state is (GuestState.RUNNING if live else GuestState.STOPPED)
    assert after.status.stale_since is None
    assert ended.result == after.name == "hosts/other/guests/a"
    assert two.view(two.name) is None
    assert two.known() == ["other"]
    moved = two.there.native.guests[after.uid]
    assert moved.files.disk["/mark"] == MARK
    assert moved.autostart or live
    if live:
        assert moved.files.memory["/run/mark"] == MARK
        assert ended.result_data["downtime_ms"] == "5"
    assert two.volumes(two.here) == []
    assert len(two.volumes(two.there)) == 2
    owned = two.core.inventory.get(two.moved).owned_volumes
    assert sorted(owned) == sorted(f"virtd/{name}" for name in two.volumes(two.there))
    assert all("/hosts/other/" in disk.path for disk in after.status.disks)
    kinds = [
        (event.type, event.resource, event.attributes.get("reason"))
        for event in await two.core.events.read(revision, 1000)
        if event.resource.startswith("hosts/") and event.uid == str(before.uid)
    ]
    moves = [entry for entry in kinds if entry[2] == "MOVED"]
    assert moves == [
        (EventType.GUEST_REMOVED, "hosts/lab/guests/a", "MOVED"),
        (EventType.GUEST_ADDED, "hosts/other/guests/a", "MOVED"),
    ]
    if live:  # nobody ever saw it stop
        assert not [entry for entry in kinds if entry[0] is EventType.GUEST_STATE_CHANGED]


async def test_shared_disks_stay(place: Path) -> None:
    shared = {"shared_directories": str(place / "state" / "hosts" / "lab" / "pool")}
    async with pair(place, **{"hosts.lab.options": shared, "hosts.other.options": shared}) as two:
        await two.lab.created("a", blank(), start=True)
        path = two.lab.guest("a").status.disks[0].path
        request = MigrationRequest("other")
        found = await two.services.migrations.check(two.name, request)
        assert [disk.passage for disk in found.disks] == [DiskPassage.SHARED]
        assert found.mode is MigrationMode.LIVE
        assert await two.reasons(request) == {"STORAGE_SHARED": "INFORMATION", "DISK_WITHOUT_POOL": "WARNING"}
        await two.done(request)
        assert two.guest().status.disks[0].path == path
        assert two.volumes(two.here) == [Path(path).name]
        assert two.core.inventory.get(two.moved).owned_volumes == ()


async def test_there_and_back_again(two: Pair) -> None:
    guest = await two.lab.created("a", blank(), start=True)
    await two.done()
    answer = await two.services.migrations.migrate(call(), two.moved, replace(COPY, target_host="lab"))
    assert isinstance(answer, Operation)
    await two.lab.done(answer)
    assert two.lab.guest("a").uid == guest.uid
    assert two.known() == ["lab"]
    assert two.lab.state("a") is GuestState.RUNNING
    assert len(two.volumes(two.here)) == 1
    assert two.volumes(two.there) == []


async def test_a_paused_guest_stays_paused(two: Pair) -> None:
    await two.lab.created("a", start=True)
    await two.lab.done(await two.services.guests.pause(call(), two.name))
    await two.done()
    assert two.guest().status.state is GuestState.PAUSED


async def test_saved_memory_is_thrown_away_only_if_wished(two: Pair) -> None:
    await two.lab.created("a", blank(), start=True)
    await two.lab.done(await two.services.guests.suspend(call(), two.name))
    await two.refused(INVALID_STATE)
    await two.done(replace(COPY, discard_saved_state=True))
    assert two.guest().status.state is GuestState.STOPPED


async def test_post_copy_cannot_be_cancelled_after_the_switch(two: Pair) -> None:
    await two.lab.created("a", blank(), start=True)
    operation = await two.migrate(replace(COPY, post_copy=True))
    two.here.faults.hang("migration_switch")
    await two.lab.until(lambda: not two.core.engine.live()[0].cancellable)
    await two.core.engine.cancel(operation.name)
    two.here.faults.clear()
    ended = await two.lab.done(operation)
    assert ended.result_data["post_copy"] == "true"
    assert two.running() == ["other"]


# -------------------------------------------------------------------------------------- refusals


async def test_what_is_refused(two: Pair) -> None:
    await two.lab.created("a", blank(), start=True)
    await two.refused(HOST_NOT_FOUND, MigrationRequest("nowhere"))
    error = await two.refused(MIGRATION_BLOCKED, MigrationRequest("lab"))
    assert error.record.metadata["reasons"] == "SAME_HOST"
    error = await two.refused(MIGRATION_BLOCKED, MigrationRequest("other"))
    assert error.record.metadata["reasons"] == "STORAGE_NOT_SHARED"
    await two.refused(INVALID_STATE, replace(COPY, mode=MigrationMode.OFFLINE))
    error = await two.refused(MIGRATION_BLOCKED, replace(COPY, pool="fast"))
    assert error.record.metadata["reasons"] == "POOL_MISSING"
    error = await two.refused(MIGRATION_BLOCKED, replace(COPY, copy_disks=("rot",)))
    assert "STORAGE_NOT_COPYABLE" in error.record.metadata["reasons"]
    await two.lab.done(await two.services.guests.stop(call(), two.name))
    await two.refused(INVALID_STATE, replace(COPY, mode=MigrationMode.LIVE))


@pytest.mark.parametrize(
    ("field", "request_"),
    [
        ("pool", MigrationRequest("other", pool="fast")),
        ("copy_disks", MigrationRequest("other", copy_disks=("root",))),
        ("post_copy", replace(COPY, mode=MigrationMode.OFFLINE, post_copy=True)),
        ("auto_converge", replace(COPY, mode=MigrationMode.OFFLINE, auto_converge=True)),
        ("bandwidth_bytes_per_s", replace(COPY, mode=MigrationMode.OFFLINE, bandwidth_bytes_per_s=1 << 20)),
        ("max_downtime_ms", replace(COPY, mode=MigrationMode.OFFLINE, max_downtime_ms=5)),
        ("bandwidth_bytes_per_s", replace(COPY, bandwidth_bytes_per_s=1)),
        ("bandwidth_bytes_per_s", replace(COPY, bandwidth_bytes_per_s=1 << 60)),
        ("max_downtime_ms", replace(COPY, max_downtime_ms=0)),
        ("max_downtime_ms", replace(COPY, max_downtime_ms=600_001)),
        ("discard_saved_state", replace(COPY, mode=MigrationMode.LIVE, discard_saved_state=True)),
        ("copy_disks", replace(COPY, copy_disks=("\x07",))),
    ],
)
async def test_options_that_make_no_sense(two: Pair, field: str, request_: MigrationRequest) -> None:
    await two.lab.created("a", blank())
    for ask in (two.services.migrations.check(two.name, request_),
                two.services.migrations.migrate(call(), two.name, request_)):  # fmt: skip
        with pytest.raises(VirtdError) as caught:
            await ask
        assert caught.value.record.violations[0].field == f"options.{field}"


async def test_what_the_check_finds(two: Pair) -> None:
    uid = (await two.lab.created("a", blank())).uid
    await two.lab.done(await two.services.snapshots.create(call(), two.name, SnapshotDraft("s1", "")))
    assert (await two.reasons())["SNAPSHOTS_PRESENT"] == "CRITICAL"
    await two.lab.done(await two.services.snapshots.delete(call(), two.name, "s1", children=False))
    assert await two.reasons() == {"STORAGE_COPIED": "INFORMATION"}
    two.there.native.define_foreign("twin", uid)
    assert (await two.reasons())["UUID_TAKEN"] == "CRITICAL"
    await two.refused(GUEST_EXISTS)
    two.there.native.undefine_foreign(uid)
    two.there.native.define_foreign("a")
    await two.lab.until(lambda: two.view(two.moved) is not None)
    assert (await two.reasons())["NAME_TAKEN"] == "CRITICAL"
    await two.refused(GUEST_EXISTS)
    two.there.migration_findings.append(
        MigrationFinding(FindingSeverity.CRITICAL, MigrationReason.CPU_INCOMPATIBLE, "no AVX there", "another host")
    )
    assert (await two.reasons())["CPU_INCOMPATIBLE"] == "CRITICAL"


async def test_networks_freezes_and_schedules(two: Pair) -> None:
    lan = InterfaceSpec("net0", InterfaceKind.NETWORK, "isolated")
    await two.lab.created("a", blank(), start=True, interfaces=(lan,))
    assert (await two.reasons())["ADDRESSES_CHANGE"] == "INFORMATION"
    del two.there.networks.all["isolated"]
    assert (await two.reasons())["NETWORK_MISSING"] == "CRITICAL"
    schedule = Schedule(name="", guest=str(two.name), every_s=3600, snapshot=SnapshotAction())
    await two.services.schedules.create(call(), "daily", schedule)
    assert (await two.reasons())["SCHEDULE_LOSES_GUEST"] == "WARNING"
    await two.services.agents.freeze(call(), two.name, (), 60.0)
    assert (await two.reasons())["FROZEN"] == "CRITICAL"


async def test_what_its_strategy_remembers_goes_along(two: Pair) -> None:
    """A guest that shall come up once, and did, is not started again because it has another name."""
    await two.lab.created("a", blank(), start=True, run_strategy=RunStrategy.ONCE)
    uid = two.lab.guest("a").uid
    await two.lab.until(lambda: uid in two.services.strategies._known)
    before = two.services.strategies._known[uid]
    await two.done()
    await asyncio.sleep(0.2)
    assert two.services.strategies._known[uid] == before


async def test_the_console_goes_along(two: Pair) -> None:
    guest = await two.lab.created("a", blank(), start=True)
    consoles = two.services.consoles

    async def printed(name: GuestName) -> bytes:
        return (await consoles.read_log(name, None, 0)).data

    await two.lab.until(lambda: guest.uid in consoles._hubs and consoles._hubs[guest.uid].end > 0)
    before = await printed(two.name)
    await two.done()
    two.there.native.guests[guest.uid].console.print("on the other host")
    await two.lab.until(lambda: consoles._hubs[guest.uid].end > len(before))
    after = await printed(two.moved)
    assert after.startswith(before)
    assert b"on the other host" in after


async def test_foreign_guests_and_networks(two: Pair) -> None:
    two.here.native.define_foreign("b")
    await two.lab.until(lambda: two.view(two.lab.name("b")) is not None)
    await two.refused(GUEST_NOT_ADOPTED, COPY, two.lab.name("b"))
    assert "GUEST_NOT_ADOPTED" in await two.reasons(COPY, two.lab.name("b"))


async def test_a_volume_of_that_name(two: Pair) -> None:
    await two.lab.created("a", blank(), start=True)
    name = two.volumes(two.here)[0]
    await two.done()
    back = replace(COPY, target_host="lab")
    from virtd.model.guest import DiskFormat

    made = await two.services.storage.create_volume(call(), "lab", "virtd", name, 1 << 20, DiskFormat.RAW)
    assert isinstance(made, Operation)
    await two.lab.done(made)
    assert (await two.reasons(back, two.moved))["VOLUME_TAKEN"] == "CRITICAL"
    error = await two.refused(MIGRATION_BLOCKED, back, two.moved)
    assert error.record.metadata["reasons"] == "VOLUME_TAKEN"


@pytest.mark.parametrize("missing", ["guest.migrate.live", "guest.migrate.storage", "guest.migrate.postcopy"])
async def test_what_a_host_cannot_do(place: Path, missing: str) -> None:
    async with pair(place, f"without={missing}") as two:
        await two.lab.created("a", blank(), start=True)
        request = replace(COPY, post_copy=True)
        assert (await two.reasons(request))["UNSUPPORTED"] == "CRITICAL"
        error = await two.refused(CAPABILITY_UNSUPPORTED, request)
        assert error.record.metadata["capability"] == missing
        assert "without=" in error.record.metadata["why"]
        await two.lab.done(await two.services.guests.stop(call(), two.name))
        await two.done()  # a stopped guest needs none of these


@pytest.mark.parametrize("side", ["lab", "other"])
async def test_what_guests_of_a_kind_cannot_do(two: Pair, side: str) -> None:
    """The host can, and not with such a guest; stopped it moves."""
    await two.lab.created("a", blank(), start=True)
    host = two.core.links[side].host
    kind = GuestKind(two.lab.guest("a").spec.machine, (absent(MIGRATE_LIVE, "not these"),))
    two.core.inventory.put_host(replace(host, facts=replace(host.facts, guest_kinds=(kind,))))
    error = await two.refused(CAPABILITY_UNSUPPORTED)
    assert "not these" in error.record.metadata["why"]
    await two.lab.done(await two.services.guests.stop(call(), two.name))
    await two.done()


async def test_a_host_without_definitions(place: Path) -> None:
    async with pair(place, "without=guest.migrate") as two:
        await two.lab.created("a", blank())
        error = await two.refused(CAPABILITY_UNSUPPORTED)
        assert error.record.metadata["capability"] == "guest.migrate"


async def test_a_target_that_does_not_answer(two: Pair) -> None:
    await two.lab.created("a", blank(), start=True)
    two.there.disconnect()
    await two.lab.until(lambda: two.core.links["other"].host.state.value == "UNREACHABLE")
    assert (await two.reasons())["TARGET_UNREACHABLE"] == "CRITICAL"
    await two.refused(HOST_UNREACHABLE)


async def test_validate_only_and_repetitions(two: Pair) -> None:
    await two.lab.created("a", blank(), start=True)
    before = two.there.digest()
    checked = await two.services.migrations.migrate(call(validate_only=True), two.name, COPY)
    assert not isinstance(checked, Operation)
    assert checked.possible
    assert two.there.digest() == before
    again = {"request_id": "6ba7b810-9dad-41d1-80b4-00c04fd430c8", "fingerprint": "f"}
    first = await two.migrate(**again)
    await two.lab.done(first)
    assert (await two.migrate(**again)).name == first.name


async def test_the_name_is_kept_free(two: Pair) -> None:
    await two.lab.created("a", blank(), start=True)
    two.here.faults.hang("migration_pass")
    operation = await two.migrate()
    await two.lab.until(lambda: two.here.faults.counts["migration_pass"] > 0)
    with pytest.raises(VirtdError) as caught:
        await two.services.guests.create(call(), "other", "a", GuestDraft(spec()), False)
    assert caught.value.reason is GUEST_EXISTS
    waiting = await two.services.guests.stop(call(), two.name)
    assert waiting.state is OperationState.PENDING
    two.here.faults.clear()
    await two.lab.done(operation)
