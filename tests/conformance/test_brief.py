"""A brief run of the kit: what it leaves out, what it may not leave out, and what it proves."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from virtd.backend import capabilities as caps
from virtd.backend.conformance import brief
from virtd.backend.conformance.report import CheckRecord, Outcome, Report, summary
from virtd.backend.conformance.suite import every_check
from virtd.model.host import Capability, CapabilityLevel, CapabilityProvenance, HostFacts

DEAR = {
    caps.CLONE_LINKED: "starts two guests, on disks that some hosts are slow with",
    caps.MIGRATE_LIVE: "needs two hosts, and has tests of its own in the lab",
    caps.MIGRATE_STORAGE: "needs two hosts, and has tests of its own in the lab",
    caps.MIGRATE_POSTCOPY: "needs two hosts, and has tests of its own in the lab",
}
"""Capabilities that a brief run does not try, and why; that they are refused where they are not declared it proves."""


def test_what_it_names_is_there() -> None:
    names = {name.partition("[")[0] for name in every_check()}
    groups = {name.partition(".")[0] for name in names}
    assert brief.named() <= names | groups
    verbs = [name for name in every_check() if name.startswith("TestVerbs.test_verb[")]
    assert sum(map(brief.is_brief, verbs)) > len(verbs) / 3


def test_every_capability_that_can_be_proven_is_tried() -> None:
    proven = {id_ for ids in every_check().values() for id_ in ids}
    tried = {id_ for name, ids in every_check().items() if brief.is_brief(name) for id_ in ids}
    assert proven - tried == set(DEAR)


def test_it_leaves_out_what_is_slow() -> None:
    left_out = [name for name in every_check() if not brief.is_brief(name)]
    assert "TestVerbs.test_verb[suspend-RUNNING]" in left_out
    assert "TestNativeFailures.test_each_call_fails[define]" in left_out
    assert not [name for name in left_out if name.startswith(("TestCapabilities.", "TestDeviceFields."))], "refusals"


MODULE = """
import pytest
from tests.conformance.fake_host import fake_provision
from virtd.backend.conformance.suite import *

pytestmark = pytest.mark.conformance_brief


@pytest.fixture(scope="module")
def provision(tmp_path_factory):
    return fake_provision(tmp_path_factory.mktemp("brief"), golden=False)


def test_of_its_own():
    pass
"""


def _run(module: Path, *arguments: str) -> str:
    root = Path(__file__).parents[2]
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", f"--rootdir={root}", *arguments]
    done = subprocess.run([*command, str(module)], cwd=root, capture_output=True, text=True, timeout=120, check=False)
    return done.stdout + done.stderr


def test_a_marked_module(tmp_path: Path) -> None:
    module = tmp_path / "test_brief_module.py"
    module.write_text(MODULE)
    every = len(every_check())
    chosen = sum(map(brief.is_brief, every_check()))
    collected = _run(module, "--collect-only")
    assert f"{chosen + 1}/{every + 1} tests collected ({every - chosen} deselected)" in collected
    assert f"{every + 1} tests collected" in _run(module, "--collect-only", "--virtd-conformance-all")
    ran = _run(module, "-k", "test_descriptor or test_of_its_own", f"--virtd-conformance-report={tmp_path / 'r.json'}")
    assert re.search(rf"fake: 1 checks of {every}, in brief: 1 PASSED", ran), ran
    assert '"brief": true' in (tmp_path / "r.json").read_text()


PAUSE = "guest.pause"


def _of(level: CapabilityLevel, *records: CheckRecord, expected: tuple[str, ...] = ("a", "b")) -> CapabilityProvenance:
    report = Report("x", facts=HostFacts(), expected=dict.fromkeys(expected, (PAUSE,)), checks=list(records))
    return report.provenance(Capability(PAUSE, level, CapabilityProvenance.PROBED))


def _record(name: str, outcome: Outcome, *, proof: bool = True, refused: str = "") -> CheckRecord:
    return CheckRecord(name, (PAUSE,), outcome, 0.0, proof=proof, refused=refused)


A, B = _record("a", Outcome.PASSED), _record("b", Outcome.PASSED)
REFUSED = _record("b", Outcome.REFUSED)


@pytest.mark.parametrize(
    ("level", "records", "verified"),
    [
        (CapabilityLevel.NATIVE, (A, B), True),
        (CapabilityLevel.NATIVE, (A,), False),  # another check that proves it was left out
        (CapabilityLevel.NATIVE, (A, REFUSED), True),
        (CapabilityLevel.NATIVE, (_record("a", Outcome.REFUSED), REFUSED), False),  # nothing of it was seen to work
        (CapabilityLevel.PARTIAL, (A, REFUSED), True),
        (CapabilityLevel.EMULATED, (A, _record("b", Outcome.NOT_RUN)), False),
        (CapabilityLevel.EMULATED, (A, _record("b", Outcome.NOT_RUN, proof=False)), True),
        (CapabilityLevel.NATIVE, (A, B, _record("c", Outcome.FAILED, proof=False)), False),
        (CapabilityLevel.UNSUPPORTED, (_record("b", Outcome.REFUSED, proof=False, refused=PAUSE),), True),
        (CapabilityLevel.UNSUPPORTED, (_record("b", Outcome.REFUSED, refused="guest.reset"),), False),
        (CapabilityLevel.UNSUPPORTED, (), False),
    ],
)
def test_what_is_verified(level: CapabilityLevel, records: tuple[CheckRecord, ...], verified: bool) -> None:
    expected = CapabilityProvenance.VERIFIED if verified else CapabilityProvenance.PROBED
    assert _of(level, *records) is expected


def test_the_summary_counts_what_was_left_out() -> None:
    report = Report("x", facts=HostFacts(), expected=dict.fromkeys(("a", "b"), (PAUSE,)), checks=[A])
    assert summary([report])[0].startswith("x: 1 checks of 2, in part: 1 PASSED")
    report.checks.append(B)
    assert summary([report])[0].startswith("x: 2 checks: 2 PASSED")
