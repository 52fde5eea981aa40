"""The kit finds defects: the fake backend is broken in one place, and a check must notice.

A kit that cannot fail is worth nothing.  Each defect is one that a real backend has had somewhere.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from tests.conformance.fake_host import fake_provision
from virtd.backend.api import NativeEventType
from virtd.backend.conformance import (
    checks_chaos,
    checks_describe,
    checks_guests,
    checks_inside,
    checks_observe,
    checks_snapshots,
    checks_storage,
)
from virtd.backend.conformance.context import KitContext
from virtd.backend.conformance.kit import Kit
from virtd.backend.conformance.report import Outcome, Report
from virtd.backend.conformance.suite import every_check
from virtd.errors import GUEST_NOT_FOUND, NotFoundError
from virtd.model.console import AgentResult
from virtd.testing.fake import faults, inside, link, lowering, native, observe, session, state, storage

SCENARIO = {scenario.name: scenario for scenario in checks_chaos.SCENARIOS}


async def nothing(*_arguments: Any, **_options: Any) -> None:
    """Does not do what it should."""


def _no_events_of(type_: NativeEventType) -> Callable[[pytest.MonkeyPatch], None]:
    emit = native.NativeHypervisor._emit

    def broken(self: native.NativeHypervisor, kind: NativeEventType, *arguments: Any, **options: Any) -> None:
        if kind is not type_:
            emit(self, kind, *arguments, **options)

    return lambda patch: patch.setattr(native.NativeHypervisor, "_emit", broken)


def _zero_metrics(patch: pytest.MonkeyPatch) -> None:
    sample = observe.Observation._sample

    def broken(self: observe.Observation, guest: state.FakeGuest) -> Any:
        return replace(sample(self, guest), memory_used_bytes=0)

    patch.setattr(observe.Observation, "_sample", broken)


def _gone_when_unseen(patch: pytest.MonkeyPatch) -> None:
    patch.setitem(link._ERRORS, "unreachable", (NotFoundError, GUEST_NOT_FOUND))


def _unknown_error_escapes(patch: pytest.MonkeyPatch) -> None:
    def broken(_failure: faults.NativeFailure) -> Exception:
        return RuntimeError("native trouble")

    patch.setattr(link, "translate", broken)


def _shared_files(patch: pytest.MonkeyPatch) -> None:
    async def memory(self: native.NativeHypervisor, uuid: Any, name: str, _context: Any) -> None:
        self.guests[uuid].snapshots[name].files.memory = self.guests[uuid].files.memory

    async def disk(self: native.NativeHypervisor, uuid: Any, name: str, _context: Any) -> None:
        self.guests[uuid].snapshots[name].files.disk = self.guests[uuid].files.disk

    patch.setattr(native.NativeHypervisor, "snapshot_copy_memory", memory)
    patch.setattr(native.NativeHypervisor, "snapshot_copy_disk", disk)


def _deaf(patch: pytest.MonkeyPatch) -> None:
    async def broken(self: storage.Storage, request: Any, _context: Any) -> Any:
        return await create(self, request, KitContext())

    create = storage.Storage.create_volume
    patch.setattr(storage.Storage, "create_volume", broken)


def _orphaned_children(patch: pytest.MonkeyPatch) -> None:
    async def broken(self: native.NativeHypervisor, uuid: Any, name: str) -> None:
        self.guests[uuid].snapshots.pop(name, None)

    patch.setattr(native.NativeHypervisor, "snapshot_delete", broken)


def _forgets_memory(patch: pytest.MonkeyPatch) -> None:
    start = native.NativeHypervisor._start

    def broken(self: native.NativeHypervisor, guest: state.FakeGuest) -> None:
        guest.saved = None if guest.saved is None else {}
        start(self, guest)

    patch.setattr(native.NativeHypervisor, "_start", broken)


def _unstable_lower(patch: pytest.MonkeyPatch) -> None:
    lower, count = lowering.lower, iter(range(1000))

    def broken(guest: Any, capabilities: Any) -> Any:
        plan = lower(guest, capabilities)
        return replace(plan, native=f"{plan.native}{next(count)}")

    patch.setattr(lowering, "lower", broken)


def _overwrites_volumes(patch: pytest.MonkeyPatch) -> None:
    async def broken(self: storage.Storage, request: Any, context: Any) -> Any:
        self._native.pools[request.pool].volumes.pop(request.name, None)
        return await create(self, request, context)

    create = storage.Storage.create_volume
    patch.setattr(storage.Storage, "create_volume", broken)


@dataclass(frozen=True)
class Defect:
    """What is broken, and which check must find it."""

    name: str
    break_it: Callable[[pytest.MonkeyPatch], None]
    check: Callable[..., None]
    arguments: dict[str, Any]

    def __str__(self) -> str:
        return self.name


def _defect(name: str, break_it: Callable[[pytest.MonkeyPatch], None], check: Any, **arguments: Any) -> Defect:
    return Defect(name, break_it, check, arguments)


DEFECTS = (
    _defect(
        "define leaves a guest behind",
        lambda patch: patch.setattr(session.FakeSession, "_undo_define", nothing),
        checks_chaos.TestNativeFailures().test_each_call_fails,
        scenario=SCENARIO["define"],
    ),
    _defect(
        "define leaves a guest behind when it is cancelled",
        lambda patch: patch.setattr(session.FakeSession, "_undo_define", nothing),
        checks_chaos.TestCancel().test_each_point,
        scenario=SCENARIO["define"],
    ),
    _defect(
        "a failed snapshot leaves its half",
        lambda patch: patch.setattr(native.NativeHypervisor, "snapshot_delete", nothing),
        checks_chaos.TestNativeFailures().test_each_call_fails,
        scenario=SCENARIO["snapshot-memory"],
    ),
    _defect(
        "a failed volume leaves its half",
        lambda patch: patch.setattr(native.NativeHypervisor, "volume_delete", nothing),
        checks_chaos.TestNativeFailures().test_each_call_fails,
        scenario=SCENARIO["create-volume"],
    ),
    _defect(
        "native errors escape",
        _unknown_error_escapes,
        checks_chaos.TestNativeFailures().test_each_call_fails,
        scenario=SCENARIO["start"],
    ),
    _defect(
        "cancel is not noticed",
        _deaf,
        checks_chaos.TestCancel().test_cancelled_at_once,
        scenario=SCENARIO["create-volume"],
    ),
    _defect(
        "definitions are not reported",
        _no_events_of(NativeEventType.GUEST_DEFINED),
        checks_observe.TestEvents().test_life,
    ),
    _defect(
        "states are not reported", _no_events_of(NativeEventType.GUEST_STATE), checks_observe.TestEvents().test_crash
    ),
    _defect(
        "lost connections are not reported",
        _no_events_of(NativeEventType.CONNECTED),
        checks_observe.TestPresence().test_unreachable,
    ),
    _defect("unreachable is taken for gone", _gone_when_unseen, checks_observe.TestPresence().test_unreachable),
    _defect("unknown is reported as zero", _zero_metrics, checks_observe.TestMetrics().test_sample),
    _defect("snapshots share their contents", _shared_files, checks_snapshots.TestMemorySnapshots().test_contents),
    _defect(
        "disks are not reverted", _shared_files, checks_snapshots.TestDiskContents().test_revert_brings_the_disk_back
    ),
    _defect("deleting a snapshot orphans its child", _orphaned_children, checks_snapshots.TestSnapshots().test_chain),
    _defect("suspend loses the memory", _forgets_memory, checks_inside.TestMemoryIsKept().test_suspend_with_content),
    _defect("lower is not pure", _unstable_lower, checks_describe.TestLowering().test_pure, case="plain"),
    _defect("lower has changed", _unstable_lower, checks_describe.TestLowering().test_golden, case="plain"),
    _defect("a volume is overwritten", _overwrites_volumes, checks_storage.TestVolumes().test_name_is_taken),
    _defect(
        "the console is deaf",
        lambda patch: patch.setattr(inside.Console, "typed", lambda *_: None),
        checks_inside.TestConsole().test_echo,
    ),
    _defect(
        "the agent loses its input",
        lambda patch: patch.setattr(inside, "_cat", lambda *_: AgentResult(0, None)),
        checks_inside.TestAgent().test_commands,
    ),
    _defect(
        "stop does nothing",
        lambda patch: patch.setattr(native.NativeHypervisor, "guest_destroy", nothing),
        checks_guests.TestGuests().test_life,
    ),
)


@pytest.fixture
def report() -> Report:
    return Report("fake", expected=every_check())


@pytest.fixture
def kit(tmp_path: Path, report: Report) -> Iterator[Kit]:
    provision = fake_provision(tmp_path)
    provision = replace(
        provision,
        event_timeout_s=0.2,
        check_timeout_s=5,
        bootable=replace(provision.bootable, boot_timeout_s=0.2) if provision.bootable else None,
    )
    report.descriptor = provision.backend.descriptor
    under_test = Kit(provision, report)
    under_test.open()
    yield under_test
    under_test.close()


@pytest.mark.parametrize("defect", DEFECTS, ids=str)
def test_defect_is_found(defect: Defect, kit: Kit, report: Report) -> None:
    defect.check(kit=kit, **defect.arguments)
    assert report.checks[-1].outcome is Outcome.PASSED, "the check must pass before anything is broken"
    with pytest.MonkeyPatch.context() as patch:
        defect.break_it(patch)
        with pytest.raises((AssertionError, TimeoutError)):
            defect.check(kit=kit, **defect.arguments)
    last = report.checks[-1]
    assert (last.outcome, bool(last.message)) == (Outcome.FAILED, True)


def test_report_says_what_was_proven(kit: Kit, report: Report, tmp_path: Path) -> None:
    checks_inside.TestMemoryIsKept().test_pause(kit=kit)
    path = report.write(tmp_path / "reports")
    document = json.loads(path.read_text())
    assert path.name == "fake.json"
    assert not document["complete"], "one check is not the suite"
    by_id = {entry["id"]: entry for entry in document["capabilities"]}
    assert by_id["guest.pause"]["provenance"] == "PROBED", "it has other checks, which were not run"
    assert by_id["guest.pause"]["checks"] == ["TestMemoryIsKept.test_pause"]
    assert by_id["guest.reset"]["provenance"] == "PROBED"
    assert "hostname" not in json.dumps(document)


def test_a_failed_check_is_no_proof(kit: Kit, report: Report) -> None:
    checks_inside.TestMemoryIsKept().test_pause(kit=kit)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(native.NativeHypervisor, "guest_pause", nothing)
        with pytest.raises(AssertionError):
            checks_inside.TestMemoryIsKept().test_pause(kit=kit)
    pause = next(entry for entry in report.document()["capabilities"] if entry["id"] == "guest.pause")
    assert pause["provenance"] == "PROBED"


def test_what_cannot_be_checked_is_said(tmp_path: Path) -> None:
    report = Report("fake")
    under_test = Kit(replace(fake_provision(tmp_path), faults=None), report)
    under_test.open()
    try:
        checks_chaos.TestNativeFailures().test_each_call_fails(kit=under_test, scenario=SCENARIO["define"])
    finally:
        under_test.close()
    assert [(check.outcome, check.message) for check in report.checks] == [
        (Outcome.NOT_RUN, "the provision injects no native failures")
    ]


def test_leftovers_of_the_kit_itself_are_none(kit: Kit, report: Report, tmp_path: Path) -> None:
    before = fake_provision(tmp_path)
    checks_guests.TestGuests().test_parallel(kit=kit)
    assert report.notes["parallel_creates"] == before.parallel
    assert kit.provision.digest is not None
    assert json.loads(kit.provision.digest())["guests"] == []


def test_every_check_has_a_name_of_its_own() -> None:
    names = every_check()
    assert "TestVerbs.test_verb[pause-RUNNING]" in names
    assert "TestLowering.test_golden[plain]" in names
    assert len(names) > 200
