"""Checks of what is left when things go wrong: each native call fails in turn, and every cancel point is taken."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any, Final
from uuid import UUID

import pytest

from virtd.backend import capabilities as caps
from virtd.backend.api import SnapshotRequest, VolumeRequest
from virtd.backend.conformance.checks_storage import SOURCE, pool_and_name, source_file, source_on_host
from virtd.backend.conformance.context import KitContext
from virtd.backend.conformance.deeds import revert, take
from virtd.backend.conformance.kit import ABSENT, Kit, NotRun, check
from virtd.backend.conformance.provision import MIB, FaultInjector
from virtd.errors import OPERATION_CANCELLED, CancelledError, VirtdError
from virtd.model.guest import DiskFormat, GuestState

_MOST_POINTS: Final = 200


@dataclass(frozen=True, slots=True)
class Scenario:
    """One SPI call with something to work on.

    :param prepare: makes what it works on (anew each time), and answers a handle.
    :param act: the call.
    :param done: whether the call's work is done.
    :param atomic: a call that fails leaves nothing behind (else: it can be repeated to its end).
    :param long: it may take long, so that a cancel must be able to end it.
    :param cancellable: the SPI promises that it notices a cancel at once.
    """

    name: str
    capabilities: tuple[str, ...]
    prepare: Callable[[Kit], Awaitable[Any]]
    act: Callable[[Kit, Any, KitContext], Awaitable[object]]
    done: Callable[[Kit, Any], Awaitable[bool]]
    atomic: bool = False
    long: bool = False
    cancellable: bool = False

    def __str__(self) -> str:
        return self.name


async def _undefined(kit: Kit) -> UUID:
    return kit.subject().uuid


async def _stopped(kit: Kit) -> UUID:
    return (await kit.new_guest()).uuid


async def _running(kit: Kit) -> UUID:
    return (await kit.new_guest(running=True)).uuid


async def _paused(kit: Kit) -> UUID:
    uuid = await _running(kit)
    await kit.facet("pause").pause_guest(uuid, kit.context())
    return uuid


async def _suspended(kit: Kit) -> UUID:
    uuid = await _running(kit)
    await kit.facet("suspend").suspend_guest(uuid, kit.context())
    return uuid


async def _with_snapshots(kit: Kit) -> UUID:
    uuid = await _stopped(kit)
    for name in ("one", "two"):
        await take(kit, uuid, SnapshotRequest(name))
    return uuid


async def _volume(kit: Kit) -> tuple[str, str]:
    pool, name = await pool_and_name(kit)
    await kit.facet("storage").create_volume(VolumeRequest(pool, name, DiskFormat.RAW, MIB), kit.context())
    return pool, name


def _is(state: str) -> Callable[[Kit, UUID], Awaitable[bool]]:
    async def done(kit: Kit, uuid: UUID) -> bool:
        return await kit.state(uuid) == state

    return done


def _call(facet: str, method: str) -> Callable[[Kit, UUID, KitContext], Awaitable[object]]:
    def act(kit: Kit, uuid: UUID, context: KitContext) -> Awaitable[object]:
        answer: Awaitable[object] = getattr(kit.facet(facet) if facet else kit.session, method)(uuid, context)
        return answer

    return act


def _define(kit: Kit, uuid: UUID, context: KitContext) -> Awaitable[object]:
    return kit.session.define_guest(kit.provision.guest(f"{kit.tag}-{uuid.hex[:12]}", uuid), context)


def _snapshot(*, memory: bool) -> Callable[[Kit, UUID, KitContext], Awaitable[object]]:
    def act(kit: Kit, uuid: UUID, context: KitContext) -> Awaitable[object]:
        return take(kit, uuid, SnapshotRequest("new", memory=memory), context)

    return act


async def _has_new(kit: Kit, uuid: UUID) -> bool:
    return "new" in {item.name for item in await kit.facet("snapshots").list_snapshots(uuid)}


def _revert(kit: Kit, uuid: UUID, context: KitContext) -> Awaitable[object]:
    return revert(kit, uuid, "one", context)


async def _at_one(kit: Kit, uuid: UUID) -> bool:
    return {item.name for item in await kit.facet("snapshots").list_snapshots(uuid) if item.current} == {"one"}


def _delete_snapshot(kit: Kit, uuid: UUID, context: KitContext) -> Awaitable[object]:
    answer: Awaitable[object] = kit.facet("snapshots").delete_snapshot(uuid, "one", context)
    return answer


async def _without_one(kit: Kit, uuid: UUID) -> bool:
    found = {item.name: item.parent for item in await kit.facet("snapshots").list_snapshots(uuid)}
    return found == {"two": ""}


def _copy(kit: Kit, handle: tuple[str, str], context: KitContext) -> Awaitable[object]:
    request = VolumeRequest(*handle, DiskFormat.RAW, 2 * MIB, kit.host_path(SOURCE), DiskFormat.RAW)
    answer: Awaitable[object] = kit.facet("storage").create_volume(request, context)
    return answer


def _delete_volume(kit: Kit, handle: tuple[str, str], context: KitContext) -> Awaitable[object]:
    answer: Awaitable[object] = kit.facet("storage").delete_volume(*handle, context)
    return answer


async def _with_source(kit: Kit) -> tuple[str, str]:
    """A volume to clone, and the name of its clone."""
    pool, name = await pool_and_name(kit)
    kit.forget_later(volume=(pool, f"{name}-source"))
    request = VolumeRequest(pool, f"{name}-source", DiskFormat.RAW, None, await source_on_host(kit), DiskFormat.RAW)
    await kit.facet("storage").create_volume(request, kit.context())
    return pool, name


async def _with_host_file(kit: Kit) -> tuple[str, str]:
    """The place of a new volume; the file to fill it from is on the host."""
    await source_on_host(kit)
    return await pool_and_name(kit)


def _clone(kit: Kit, handle: tuple[str, str], context: KitContext) -> Awaitable[object]:
    pool, name = handle
    clone = kit.facet("volume_changes").clone_volume
    answer: Awaitable[object] = clone(pool, f"{name}-source", pool, name, DiskFormat.RAW, context)
    return answer


def _upload(kit: Kit, handle: tuple[str, str], context: KitContext) -> Awaitable[object]:
    upload = kit.facet("volume_transfer").upload_volume
    answer: Awaitable[object] = upload(*handle, str(source_file(kit)), DiskFormat.RAW, context)
    return answer


def _resize(kit: Kit, handle: tuple[str, str], context: KitContext) -> Awaitable[object]:
    answer: Awaitable[object] = kit.facet("volume_changes").resize_volume(*handle, 2 * MIB, context)
    return answer


async def _has_2_mib(kit: Kit, handle: tuple[str, str]) -> bool:
    volumes = await kit.facet("storage").list_volumes(handle[0])
    return any(volume.name == handle[1] and volume.capacity_bytes == 2 * MIB for volume in volumes)


async def _has_volume(kit: Kit, handle: tuple[str, str]) -> bool:
    return handle[1] in {item.name for item in await kit.facet("storage").list_volumes(handle[0])}


async def _no_volume(kit: Kit, handle: tuple[str, str]) -> bool:
    return not await _has_volume(kit, handle)


SCENARIOS: Final = (
    Scenario("define", (caps.LIFECYCLE,), _undefined, _define, _is(GuestState.STOPPED), atomic=True),
    Scenario("undefine", (caps.LIFECYCLE,), _stopped, _call("", "undefine_guest"), _is(ABSENT)),
    Scenario(
        "start", (caps.LIFECYCLE,), _stopped, _call("", "start_guest"), _is(GuestState.RUNNING), atomic=True, long=True
    ),
    Scenario("stop", (caps.LIFECYCLE,), _running, _call("", "stop_guest"), _is(GuestState.STOPPED)),
    Scenario("pause", (caps.PAUSE,), _running, _call("pause", "pause_guest"), _is(GuestState.PAUSED)),
    Scenario("resume", (caps.PAUSE,), _paused, _call("pause", "resume_guest"), _is(GuestState.RUNNING)),
    Scenario(
        "suspend",
        (caps.SUSPEND,),
        _running,
        _call("suspend", "suspend_guest"),
        _is(GuestState.SUSPENDED),
        atomic=True,
        long=True,
        cancellable=True,
    ),
    Scenario("restore", (caps.SUSPEND,), _suspended, _call("", "start_guest"), _is(GuestState.RUNNING), long=True),
    Scenario("snapshot", (caps.SNAPSHOT,), _stopped, _snapshot(memory=False), _has_new, atomic=True, long=True),
    Scenario(
        "snapshot-memory",
        (caps.SNAPSHOT_MEMORY,),
        _running,
        _snapshot(memory=True),
        _has_new,
        atomic=True,
        long=True,
    ),
    Scenario("revert", (caps.SNAPSHOT_REVERT,), _with_snapshots, _revert, _at_one, long=True),
    Scenario("delete-snapshot", (caps.SNAPSHOT,), _with_snapshots, _delete_snapshot, _without_one),
    Scenario(
        "create-volume",
        (caps.VOLUMES,),
        _with_host_file,
        _copy,
        _has_volume,
        atomic=True,
        long=True,
        cancellable=True,
    ),
    Scenario("delete-volume", (caps.VOLUMES,), _volume, _delete_volume, _no_volume),
    Scenario("resize-volume", (caps.VOLUME_RESIZE,), _volume, _resize, _has_2_mib),
    Scenario("clone-volume", (caps.VOLUME_CLONE,), _with_source, _clone, _has_volume, atomic=True, long=True),
    Scenario(
        "upload-volume",
        (caps.VOLUME_TRANSFER,),
        pool_and_name,
        _upload,
        _has_volume,
        atomic=True,
        long=True,
        cancellable=True,
    ),
)


def _faults(kit: Kit) -> FaultInjector:
    if kit.provision.faults is None:
        raise NotRun("the provision injects no native failures")
    return kit.provision.faults


async def _attempt(call: Awaitable[object]) -> VirtdError | None:
    try:
        await call
    except VirtdError as error:
        return error
    return None


async def _finish(kit: Kit, scenario: Scenario, handle: object, what: str) -> None:
    """Whatever happened, the call can be repeated to its end."""
    await scenario.act(kit, handle, kit.context())
    assert await scenario.done(kit, handle), f"after {what}, repeating {scenario} did not finish it"


class TestNativeFailures:
    """Each native call of an SPI call fails in turn."""

    @pytest.mark.parametrize("scenario", SCENARIOS, ids=str)
    @check(proof=False)
    async def test_each_call_fails(self, kit: Kit, scenario: Scenario) -> None:
        """A contract error comes, what is atomic leaves nothing behind, and a repetition succeeds."""
        kit.need(*scenario.capabilities)
        kit.robustness()
        faults = _faults(kit)
        handle = await scenario.prepare(kit)
        with faults.recording() as calls:
            await scenario.act(kit, handle, kit.context())
        assert await scenario.done(kit, handle)
        assert calls, f"{scenario} made no native call that the provision can see"
        limit = kit.provision.max_faults or len(calls)
        kit.report.notes[f"native_failures.{scenario}"] = min(limit, len(calls))
        for index, call in list(enumerate(calls))[-limit:]:
            await self._fail_one(kit, scenario, call, calls[: index + 1].count(call))

    async def _fail_one(self, kit: Kit, scenario: Scenario, call: str, nth: int) -> None:
        what = f"failure {nth} of {call} in {scenario}"
        handle = await scenario.prepare(kit)
        before = await kit.digest()
        context = kit.context()
        with _faults(kit).failing(call, nth):
            error = await _attempt(scenario.act(kit, handle, context))
        if error is None and context.warnings:
            await _finish(kit, scenario, handle, what)  # it said what it could not do
            return
        if error is None:
            # A backend may do without a call that fails; then its work must be done.
            assert await scenario.done(kit, handle), f"{what}: success was reported, but the work is not done"
            return
        assert error.message, f"{what}: the error says nothing"
        if scenario.atomic:
            await kit.unchanged(before, what)
        await _finish(kit, scenario, handle, what)


class TestCancel:
    """Long calls are cancelled at each of their points."""

    @pytest.mark.parametrize("scenario", SCENARIOS, ids=str)
    @check(proof=False)
    async def test_each_point(self, kit: Kit, scenario: Scenario) -> None:
        """Cancelled at a checkpoint, a call undoes what it did and says OPERATION_CANCELLED."""
        kit.need(*scenario.capabilities)
        kit.robustness()
        points = 0
        for point in range(1, _MOST_POINTS):
            context = kit.context(cancel_at=point)
            handle = await scenario.prepare(kit)
            before = await kit.digest()
            error = await _attempt(scenario.act(kit, handle, context))
            if not context.refused:
                assert error is None, f"{scenario} failed without a fault: {error}"
                assert await scenario.done(kit, handle)
                break
            points += 1
            what = f"cancelling {scenario} at point {point}"
            assert isinstance(error, CancelledError), f"{what}: {error!r} instead of OPERATION_CANCELLED"
            assert error.reason is OPERATION_CANCELLED
            await kit.unchanged(before, what)
            await _finish(kit, scenario, handle, what)
        kit.report.notes[f"cancel_points.{scenario}"] = points

    @pytest.mark.parametrize("scenario", [item for item in SCENARIOS if item.cancellable], ids=str)
    @check(proof=False)
    async def test_cancelled_at_once(self, kit: Kit, scenario: Scenario) -> None:
        """A call that the SPI calls cancellable notices a cancel that came before it."""
        kit.need(*scenario.capabilities)
        kit.robustness()
        handle = await scenario.prepare(kit)
        before = await kit.digest()
        context = kit.context()
        context.cancel()
        await kit.error(scenario.act(kit, handle, context), OPERATION_CANCELLED)
        await kit.unchanged(before, f"cancelling {scenario}")
        await _finish(kit, scenario, handle, f"cancelling {scenario}")

    @pytest.mark.parametrize("scenario", [item for item in SCENARIOS if item.long], ids=str)
    @check(proof=False)
    async def test_hanging_call(self, kit: Kit, scenario: Scenario) -> None:
        """A native call that hangs is left behind when the operation is cancelled."""
        kit.need(*scenario.capabilities)
        kit.robustness()
        faults = _faults(kit)
        calls: list[str] = []
        if faults.hangable:
            handle = await scenario.prepare(kit)
            with faults.recording() as calls:
                await scenario.act(kit, handle, kit.context())
        hangable = [call for call in dict.fromkeys(calls) if call in faults.hangable]
        if not hangable:
            raise NotRun("the provision can make none of its native calls hang in a cancellable way")
        for call in hangable:
            handle = await scenario.prepare(kit)
            before = await kit.digest()
            context = kit.context()
            asyncio.get_running_loop().call_later(0.05, context.cancel)
            with faults.hanging(call):
                async with asyncio.timeout(10):
                    await kit.error(scenario.act(kit, handle, context), OPERATION_CANCELLED)
            await kit.unchanged(before, f"cancelling {scenario} while {call} hangs")
            await _finish(kit, scenario, handle, f"cancelling {scenario} while {call} hangs")
