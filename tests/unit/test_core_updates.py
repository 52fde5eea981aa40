"""Changes of guests on the fake hypervisor, through the whole core."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.support.daemons import HOST, MIB, Lab, blank, call, running_lab, short_directory
from virtd.backend.api import SnapshotRequest, UpdateEffect
from virtd.backend.conformance.context import KitContext
from virtd.errors import ConflictError, FailedPreconditionError, InvalidArgumentError, UnsupportedError
from virtd.model.devices import DiskCache, IoTune, LinkState, WatchdogSpec
from virtd.model.guest import (
    BlankSource,
    DiskDevice,
    DiskFormat,
    DiskSpec,
    Firmware,
    Guest,
    GuestSpec,
    GuestState,
    HostFileSource,
    InterfaceSpec,
    RunStrategy,
)
from virtd.model.operation import Operation, OperationState
from virtd.service.changes import Presence, UpdatePlan
from virtd.service.verbs.update import UpdateMode, UpdateRequest
from virtd.testing.fake import lowering

E = UpdateEffect
S = GuestState


@pytest.fixture
async def lab() -> AsyncIterator[Lab]:
    with short_directory() as place:
        async with running_lab(place) as made:
            yield made


def asked(*paths: str, **changes: Any) -> UpdateRequest:
    rest = {name: changes.pop(name) for name in tuple(changes) if name not in GuestSpec.__dataclass_fields__}
    spec = GuestSpec(**changes)
    return UpdateRequest(spec, Presence.of(spec), paths or ("spec",), **rest)


async def update(lab: Lab, guest: str, request: UpdateRequest) -> Operation:
    operation = await lab.services.updates.update(call(), lab.name(guest), request)
    assert isinstance(operation, Operation)
    return operation


async def updated(lab: Lab, guest: str, request: UpdateRequest) -> Guest:
    await lab.done(await update(lab, guest, request))
    return lab.guest(guest)


async def plan(lab: Lab, guest: str, request: UpdateRequest) -> UpdatePlan:
    return await lab.services.updates.plan(call(validate_only=True), lab.name(guest), request)


def effects(made: UpdatePlan) -> dict[str, UpdateEffect]:
    return {change.field: change.effect for change in made.changes}


def native(lab: Lab, guest: str) -> Any:
    return lab.world.native.guests[lab.guest(guest).uid]


def volumes(lab: Lab) -> set[str]:
    return {f"{pool.name}/{name}" for pool in lab.world.native.pools.values() for name in pool.volumes}


async def test_a_stopped_guest_takes_everything(lab: Lab) -> None:
    before = await lab.created("a", blank())
    request = asked(vcpus=3, machine="fake-1", watchdog=WatchdogSpec(), disks=(blank(), blank("more")))
    made = await plan(lab, "a", replace(request, spec=replace(request.spec, machine="")))
    assert effects(made) == {"spec.vcpus": E.NEXT_BOOT, "spec.disks[more]": E.NEXT_BOOT, "spec.watchdog": E.NEXT_BOOT}
    assert '"vcpus": 3' in made.native
    guest = await updated(lab, "a", asked(vcpus=3, watchdog=WatchdogSpec(), disks=(blank(), blank("more"))))
    assert guest.generation == before.generation + 1
    assert guest.etag != before.etag
    assert guest.status.pending_restart_fields == ()
    config = lowering.parse(native(lab, "a").native)
    assert (config.vcpus, [disk.name for disk in config.disks]) == (3, ["root", "more"])
    assert set(lab.view("a").owned_volumes) == volumes(lab)
    assert len(volumes(lab)) == 2


async def test_a_running_guest_takes_what_it_can_and_says_what_waits(lab: Lab) -> None:
    await lab.created("a", blank(), start=True, max_vcpus=4)
    request = asked(vcpus=2, watchdog=WatchdogSpec(), disks=(blank(), blank("more")))
    guest = await updated(lab, "a", request)
    assert guest.status.pending_restart_fields == ("spec.watchdog",)
    running = lowering.parse(native(lab, "a").active)
    assert (running.vcpus, running.watchdog, len(running.disks)) == (2, None, 2)
    await lab.done(await lab.services.guests.reset(call(), lab.name("a")))  # type: ignore[arg-type]
    assert lab.guest("a").status.pending_restart_fields == ("spec.watchdog",)
    await lab.done(await lab.services.guests.stop(call(), lab.name("a")))  # type: ignore[arg-type]
    assert lab.guest("a").status.pending_restart_fields == ()
    await lab.done(await lab.services.guests.start(call(), lab.name("a")))  # type: ignore[arg-type]
    assert lab.guest("a").status.pending_restart_fields == ()
    assert lowering.parse(native(lab, "a").active).watchdog is not None


async def test_the_first_volume_of_a_host_lies_where_its_pool_is(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    """Until the default pool is made, where it will lie is a guess, and a wrong one on a system's libvirt."""
    await lab.created("a", start=True)
    assert not lab.world.native.pools
    make = lab.world.native.pool_create

    async def elsewhere(name: str, _path: str) -> Any:
        return await make(name, "/elsewhere/images")

    monkeypatch.setattr(lab.world.native, "pool_create", elsewhere)
    await updated(lab, "a", asked(disks=(blank("first"),)))
    for text in (native(lab, "a").native, native(lab, "a").active):
        (disk,) = lowering.parse(text).disks
        assert disk.path.startswith("/elsewhere/images/")


async def test_modes(lab: Lab) -> None:
    before = await lab.created("a", blank(), start=True, max_vcpus=4)
    with pytest.raises(FailedPreconditionError) as refused:
        await update(lab, "a", asked(vcpus=2, watchdog=WatchdogSpec(), mode=UpdateMode.LIVE_ONLY))
    assert refused.value.reason.name == "RESTART_REQUIRED"
    assert refused.value.record.metadata["fields"] == "spec.watchdog"
    assert lab.guest("a") == before
    later = asked(vcpus=2, mode=UpdateMode.NEXT_BOOT)
    assert effects(await plan(lab, "a", later)) == {"spec.vcpus": E.NEXT_BOOT}
    guest = await updated(lab, "a", later)
    assert guest.status.pending_restart_fields == ("spec.vcpus",)
    assert lowering.parse(native(lab, "a").active).vcpus == 1
    grown = asked(disks=(blank(mib=16),), mode=UpdateMode.NEXT_BOOT)
    assert effects(await plan(lab, "a", grown)) == {"spec.disks[root].blank.capacity_bytes": E.REJECTED}
    with pytest.raises(InvalidArgumentError) as rejected:
        await update(lab, "a", grown)
    assert rejected.value.reason.name == "FIELD_UNSUPPORTED"
    assert (await updated(lab, "a", asked(vcpus=1, mode=UpdateMode.LIVE_ONLY))).status.pending_restart_fields == ()


async def test_replace_is_never_implicit(lab: Lab) -> None:
    await lab.created("a", blank())
    request = asked(firmware=Firmware.UEFI)
    assert effects(await plan(lab, "a", request)) == {"spec.firmware": E.REPLACE}
    with pytest.raises(FailedPreconditionError) as refused:
        await update(lab, "a", request)
    assert refused.value.reason.name == "REPLACE_REQUIRED"
    await lab.done(await lab.services.guests.start(call(), lab.name("a")))  # type: ignore[arg-type]
    with pytest.raises(FailedPreconditionError) as running:
        await update(lab, "a", replace(request, allow_replace=True))
    assert running.value.reason.name == "INVALID_STATE"
    await lab.done(await lab.services.guests.stop(call(), lab.name("a")))  # type: ignore[arg-type]
    guest = await updated(lab, "a", replace(request, allow_replace=True))
    assert guest.spec.firmware is Firmware.UEFI
    assert native(lab, "a").firmware_variables


async def test_the_same_document_twice_is_one_generation(lab: Lab) -> None:
    await lab.created("a", blank(), interfaces=(InterfaceSpec("net0"),))
    document = asked(vcpus=2, memory_bytes=64 * MIB, disks=(blank(),), interfaces=(InterfaceSpec("net0"),))
    first = await updated(lab, "a", document)
    calls_before = volumes(lab)
    second = await updated(lab, "a", document)
    assert (second.generation, second.etag, second.spec) == (first.generation, first.etag, first.spec)
    assert volumes(lab) == calls_before
    assert (await plan(lab, "a", document)).changes == ()
    assert (await plan(lab, "a", UpdateRequest(first.spec, Presence.of(first.spec), ("spec",)))).changes == ()


async def test_a_detached_disk_stays_unless_asked_otherwise(lab: Lab) -> None:
    await lab.created("a", blank(), blank("one"), blank("two"), start=True)
    owned = lab.view("a").owned_volumes
    guest = await updated(lab, "a", asked("spec.disks[one]"))
    assert [disk.name for disk in guest.spec.disks] == ["root", "two"]
    assert volumes(lab) == set(owned)
    assert set(lab.view("a").owned_volumes) == {owned[0], owned[2]}
    guest = await updated(lab, "a", asked("spec.disks[two]", delete_removed_disks=True))
    assert volumes(lab) == {owned[0], owned[1]}
    assert lab.view("a").owned_volumes == (owned[0],)
    # The name is free again, and its old volume is not in the way.
    guest = await updated(lab, "a", asked("spec.disks[one]", disks=(blank("one"),)))
    assert len(volumes(lab)) == 3
    await lab.done(await lab.services.guests.delete(call(), lab.name("a"), True, False, ""))  # type: ignore[arg-type]
    assert volumes(lab) == {owned[1]}


async def test_a_disk_that_a_snapshot_needs_is_not_deleted(lab: Lab) -> None:
    before = await lab.created("a", blank(), blank("one"))
    facet = lab.link.facets.snapshots
    assert facet is not None
    await facet.create_snapshot(before.uid, SnapshotRequest("s"), KitContext())
    with pytest.raises(FailedPreconditionError) as refused:
        await update(lab, "a", asked("spec.disks[one]", delete_removed_disks=True))
    assert refused.value.reason.name == "VOLUME_IN_USE"
    await updated(lab, "a", asked("spec.disks[one]"))
    assert len(volumes(lab)) == 2


async def test_a_disk_in_use_is_not_deleted(lab: Lab) -> None:
    sata = replace(blank("old"), device=DiskDevice.CDROM, blank=None)
    await lab.created("a", blank(), sata, blank("one"), start=True)
    with pytest.raises(FailedPreconditionError) as refused:
        await update(lab, "a", asked("spec.disks[one]", delete_removed_disks=True, mode=UpdateMode.NEXT_BOOT))
    assert refused.value.reason.name == "RESTART_REQUIRED"
    assert len(volumes(lab)) == 2
    # Nothing of virtd's is removed with a drive, so nothing stands in its way.
    await updated(lab, "a", asked("spec.disks[old]", delete_removed_disks=True))


@pytest.mark.parametrize("running", [False, True])
@pytest.mark.parametrize("after", [False, True])
@pytest.mark.parametrize("fault", ["volume_allocate", "volume_commit", "guest_plug", "guest_write_config", "disk_grow"])
async def test_an_update_that_fails_leaves_the_guest_as_it_was(
    lab: Lab, fault: str, after: bool, running: bool
) -> None:
    before = await lab.created("a", blank(), blank("gone"), start=running, interfaces=(InterfaceSpec("net0"),))
    kept, config, active = volumes(lab), native(lab, "a").native, native(lab, "a").active
    lab.world.faults.fail(fault, 1, after=after)
    request = asked(
        disks=(blank(mib=16), blank("new")),
        interfaces=(InterfaceSpec("net0", link_state=LinkState.DOWN), InterfaceSpec("net1")),
        watchdog=WatchdogSpec(),
    )
    ended = await lab.end(await update(lab, "a", request))
    if fault == "guest_plug" and not running:
        assert ended.state is OperationState.SUCCEEDED
        return
    assert ended.state is OperationState.FAILED
    assert ended.error is not None
    assert ended.error.native is not None
    assert ended.error.native.call == fault
    guest = lab.guest("a")
    assert (guest.spec, guest.generation, guest.etag) == (before.spec, before.generation, before.etag)
    assert volumes(lab) == kept == set(lab.view("a").owned_volumes)
    assert _named(native(lab, "a").native) == _named(config)
    assert _named(native(lab, "a").active) == _named(active)
    await updated(lab, "a", request)


def _named(text: str) -> Any:
    """A configuration, whatever the order of its devices."""
    if not text:
        return None
    guest = lowering.parse(text)
    return replace(
        guest,
        # A running guest's ceilings are always numbers.
        max_vcpus=guest.max_vcpus or guest.vcpus,
        max_memory_bytes=guest.max_memory_bytes or guest.memory_bytes,
        disks=tuple(sorted(guest.disks, key=lambda disk: disk.name)),
        interfaces=tuple(sorted(guest.interfaces, key=lambda interface: interface.name)),
    )


async def test_an_update_that_is_cancelled_leaves_the_guest_as_it_was(lab: Lab) -> None:
    before = await lab.created("a", blank(), start=True)
    for hanging in ("volume_allocate", "guest_plug"):
        hang = lab.world.faults.hang(hanging)
        operation = await update(lab, "a", asked(disks=(blank(), blank("new"))))
        await lab.until(lambda hang=hang: hang.entered > 0)  # type: ignore[misc]
        await lab.core.engine.cancel(operation.name)
        lab.world.faults.clear()
        assert (await lab.end(operation)).state is OperationState.CANCELLED
        assert lab.guest("a").spec == before.spec
        assert len(volumes(lab)) == 1
        assert len(lowering.parse(native(lab, "a").active).disks) == 1


@pytest.mark.parametrize("point", ["volume_commit", "guest_plug", "guest_write_config", "disk_grow"])
async def test_a_daemon_that_dies_in_the_middle_finishes_after_its_restart(point: str) -> None:
    from virtd.daemon import Daemon

    with short_directory() as place:
        async with running_lab(place) as lab:
            await lab.created("a", blank(), start=True)
            hang = lab.world.faults.hang(point, deaf=True)
            request = asked(disks=(blank(mib=16), blank("new")), watchdog=WatchdogSpec())
            operation = await update(lab, "a", request)
            await lab.until(lambda: hang.entered > 0)
            uri, world = lab.uri, lab.world
        hang.release()
        world.faults.clear()
        async with running_lab(place, uri=uri) as again:
            ended = await again.end(await again.core.engine.get(operation.name))
            assert isinstance(again.daemon, Daemon)
            assert ended.state is OperationState.SUCCEEDED, ended.error
            guest = again.guest("a")
            assert [disk.name for disk in guest.spec.disks] == ["root", "new"]
            assert guest.generation == 2
            assert len(volumes(again)) == 2 == len(again.view("a").owned_volumes)
            assert [disk.name for disk in lowering.parse(native(again, "a").active).disks] == ["root", "new"]
            assert [disk.name for disk in lowering.parse(native(again, "a").native).disks] == ["root", "new"]
            assert guest.status.pending_restart_fields == ("spec.watchdog",)


async def test_updates_that_queue_are_each_made_for_the_guest_of_their_turn(lab: Lab) -> None:
    await lab.created("a", blank(), start=True)
    hang = lab.world.faults.hang("guest_plug")
    first = await update(lab, "a", asked("spec.disks[one]", disks=(blank("one"),)))
    await lab.until(lambda: hang.entered > 0)
    second = await update(lab, "a", asked("spec.disks[two]", disks=(blank("two"),)))
    third = await update(lab, "a", asked("spec.disks[three]", disks=(blank("three"),), etag=lab.guest("a").etag))
    hang.release()
    lab.world.faults.clear()
    await lab.done(first)
    await lab.done(second)
    await lab.failed(third, "ETAG_MISMATCH")
    assert [disk.name for disk in lab.guest("a").spec.disks] == ["root", "one", "two"]
    assert len(volumes(lab)) == 3 == len(set(lab.view("a").owned_volumes))
    with pytest.raises(ConflictError):
        await update(lab, "a", asked(vcpus=2, etag="old"))


async def test_what_virtd_itself_keeps_needs_no_hypervisor() -> None:
    with short_directory() as place:
        async with running_lab(place, "without=guest.update") as lab:
            await lab.created("a", blank(), start=True)
            request = asked(deletion_protection=True, run_strategy=RunStrategy.ONCE)
            assert set(effects(await plan(lab, "a", request)).values()) == {E.LIVE}
            guest = await updated(lab, "a", request)
            assert guest.spec.deletion_protection
            with pytest.raises(UnsupportedError) as refused:
                await update(lab, "a", asked(vcpus=2))
            assert refused.value.record.metadata["capability"] == "guest.update"


@pytest.mark.parametrize(
    ("without", "request_", "field"),
    [
        ("guest.update.disks", asked("spec.disks[x]", disks=(blank("x"),)), "spec.disks[x]"),
        (
            "guest.update.interfaces",
            asked("spec.interfaces[x]", interfaces=(InterfaceSpec("x"),)),
            "spec.interfaces[x]",
        ),
        ("guest.update.vcpus", asked(vcpus=2), "spec.vcpus"),
        ("guest.update.memory", asked(memory_bytes=48 * MIB), "spec.memory_bytes"),
        (
            "guest.update.disks.io-tune",
            asked("spec.disks[root].io_tune", disks=(DiskSpec("root", io_tune=IoTune(1024)),)),
            "spec.disks[root].io_tune",
        ),
    ],
)
async def test_what_a_host_cannot_do_live_waits_with_its_reason(
    without: str, request_: UpdateRequest, field: str
) -> None:
    with short_directory() as place:
        async with running_lab(place, f"without={without}") as lab:
            await lab.created("a", blank(), start=True, max_vcpus=4)
            (change,) = (await plan(lab, "a", request_)).changes
            assert (change.field, change.effect) == (field, E.NEXT_BOOT)
            capability = next(entry for entry in lab.link.capabilities if entry.id == without)
            assert change.reason == capability.reason
            guest = await updated(lab, "a", request_)
            assert guest.status.pending_restart_fields == (field,)


BAD: list[tuple[UpdateRequest, str, str]] = [
    (asked(vcpus=100000), "FIELD_INVALID", "guest.spec.vcpus"),
    (asked(memory_bytes=1), "FIELD_INVALID", "guest.spec.memory_bytes"),
    (asked("spec.memory_bytes"), "FIELD_INVALID", "guest.spec.memory_bytes"),
    (
        asked(disks=(DiskSpec("root", blank=BlankSource(MIB)),)),
        "FIELD_INVALID",
        "guest.spec.disks[root].blank.capacity_bytes",
    ),
    (asked("spec.disks[n]", disks=(DiskSpec("n"),)), "FIELD_INVALID", "guest.spec.disks[n].source"),
    (asked("spec.disks[N!]", disks=(blank("N!"),)), "FIELD_INVALID", "guest.spec.disks[N!].name"),
    (
        asked("spec.disks[n]", disks=(DiskSpec("n", host_file=HostFileSource("/etc/shadow", DiskFormat.RAW)),)),
        "PATH_NOT_ALLOWED",
        "guest.spec.disks[n].host_file.path",
    ),
    (
        asked("spec.disks[root].source", disks=(DiskSpec("root", volume=f"hosts/{HOST}/pools/virtd/volumes/x"),)),
        "VOLUME_NOT_FOUND",
        "",
    ),
    (asked("spec.disks[n]", disks=(DiskSpec("n", blank=BlankSource(MIB, pool="none")),)), "POOL_NOT_FOUND", ""),
    (
        asked("spec.interfaces[n]", interfaces=(InterfaceSpec("n", mac="nonsense"),)),
        "FIELD_INVALID",
        "guest.spec.interfaces[n].mac",
    ),
    (asked(machine="no-such"), "FIELD_UNSUPPORTED", "guest.spec.machine"),
    (asked(backend_options={"nothing": "1"}), "FIELD_UNSUPPORTED", "guest.spec.backend_options[nothing]"),
    (asked("spec.nothing"), "FIELD_INVALID", "update_fields[0]"),
    (
        asked("spec.disks[none].cache", disks=(DiskSpec("other", cache=DiskCache.NONE),)),
        "FIELD_INVALID",
        "update_fields[0]",
    ),
    (asked(display_name="\x01"), "FIELD_INVALID", "guest.display_name"),
]


@pytest.mark.parametrize(
    ("request_", "reason", "field"), BAD, ids=lambda value: value if isinstance(value, str) else ""
)
async def test_a_wrong_request_changes_nothing(lab: Lab, request_: UpdateRequest, reason: str, field: str) -> None:
    before = await lab.created("a", blank(), start=True)
    world = lab.world.digest()
    for attempt in (update, plan):
        with pytest.raises(Exception) as wrong:
            await attempt(lab, "a", request_)
        record = wrong.value.record  # type: ignore[attr-defined]
        assert record.reason == reason
        if field:
            assert [violation.field for violation in record.violations] == [field]
            assert field in record.message
    assert lab.guest("a") == before
    assert lab.world.digest() == world
    assert not [op for op in await lab.core.engine.list() if op.verb == "update"]


async def test_a_disk_of_another_guest_is_refused(lab: Lab, tmp_path: Path) -> None:
    await lab.created("other", blank())
    await lab.created("a", blank())
    (volume,) = lab.view("other").owned_volumes
    pool, _, name = volume.partition("/")
    stolen = DiskSpec("x", volume=f"hosts/{HOST}/pools/{pool}/volumes/{name}")
    with pytest.raises(FailedPreconditionError) as refused:
        await update(lab, "a", asked("spec.disks[x]", disks=(stolen,)))
    assert refused.value.reason.name == "VOLUME_IN_USE"
    (own,) = lab.view("a").owned_volumes
    pool, _, name = own.partition("/")
    twice = DiskSpec("x", volume=f"hosts/{HOST}/pools/{pool}/volumes/{name}")
    with pytest.raises(FailedPreconditionError):
        await update(lab, "a", asked("spec.disks[x]", disks=(twice,)))
