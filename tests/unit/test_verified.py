"""Evidence of the conformance kit counts on hosts like the one that gave it, and nowhere else."""

from __future__ import annotations

from dataclasses import fields, replace
from datetime import UTC, datetime
from typing import Any

import pytest

from virtd.backend import verified
from virtd.backend.capabilities import SUMMARIES, of_kind
from virtd.backend.verified import Environment, Evidence, apply
from virtd.model.host import Capability, CapabilityLevel, CapabilityProvenance, GuestKind, HostFacts

NATIVE, PARTIAL, UNSUPPORTED, EMULATED = (
    CapabilityLevel.NATIVE,
    CapabilityLevel.PARTIAL,
    CapabilityLevel.UNSUPPORTED,
    CapabilityLevel.EMULATED,
)
DECLARED, PROBED, VERIFIED = (
    CapabilityProvenance.DECLARED,
    CapabilityProvenance.PROBED,
    CapabilityProvenance.VERIFIED,
)
HERE = Environment("kvm", "1", "QEMU", "7.2.22", "libvirt", "9.0.0", "x86_64", "KVM")
TIME = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
PAUSE, SCREENSHOT, EVENTS = "guest.pause", "guest.screenshot", "host.events"


def run(machine: str = "", time: datetime = TIME, /, **levels: CapabilityLevel) -> Evidence:
    return Evidence(HERE, machine, time, {id_.replace("_", "."): level for id_, level in levels.items()})


def facts(*capabilities: Capability, kinds: tuple[GuestKind, ...] = ()) -> HostFacts:
    return HostFacts(capabilities=capabilities, guest_kinds=kinds)


def one(entry: Capability, *evidence: Evidence, environment: Environment = HERE) -> Capability:
    (found,) = apply(environment, facts(entry), evidence).capabilities
    return found


def test_what_was_proven_here_is_verified() -> None:
    found = one(Capability(PAUSE, NATIVE, DECLARED), run(guest_pause=NATIVE))
    assert found == Capability(PAUSE, NATIVE, VERIFIED, "", "QEMU 7.2.22, libvirt 9.0.0", TIME)


@pytest.mark.parametrize("field", [field.name for field in fields(Environment)])
def test_another_host_keeps_what_it_said(field: str) -> None:
    entry = Capability(PAUSE, NATIVE, PROBED)
    other = replace(HERE, **{field: "another"})
    assert one(entry, run(guest_pause=NATIVE), environment=other) == entry


@pytest.mark.parametrize("level", [UNSUPPORTED, PARTIAL, EMULATED, CapabilityLevel.UNKNOWN])
def test_another_level_is_not_what_was_proven(level: CapabilityLevel) -> None:
    """So a probe that denies what was proven elsewhere is never overruled."""
    entry = Capability(PAUSE, level, PROBED, "not here")
    assert one(entry, run(guest_pause=NATIVE)) == entry


def test_what_is_denied_by_this_very_host_stays_its_own_word() -> None:
    probed = Capability(PAUSE, UNSUPPORTED, PROBED, "no huge pages are reserved")
    assert one(probed, run(guest_pause=UNSUPPORTED)) == probed
    declared = Capability(PAUSE, UNSUPPORTED, DECLARED, "Xen has no such thing")
    found = one(declared, run(guest_pause=UNSUPPORTED))
    assert (found.provenance, found.reason) == (VERIFIED, "Xen has no such thing")


def test_nothing_is_known_of_what_was_not_run() -> None:
    entry = Capability(PAUSE, NATIVE, DECLARED)
    assert one(entry, run(guest_screenshot=NATIVE)) == entry
    assert one(entry) == entry


def _xen() -> HostFacts:
    """PV guests have no picture, HVM guests do; all can be paused."""
    no = Capability(SCREENSHOT, UNSUPPORTED, DECLARED, "PV has no display")
    return facts(
        Capability(PAUSE, NATIVE, DECLARED),
        Capability(SCREENSHOT, PARTIAL, DECLARED, "HVM only"),
        Capability(EVENTS, NATIVE, DECLARED),
        kinds=(GuestKind("pv", (no,)), GuestKind("hvm", (Capability(SCREENSHOT, NATIVE, DECLARED),))),
    )


def _shown(found: HostFacts, machine: str = "") -> dict[str, tuple[str, str]]:
    return {entry.id: (entry.level.value, entry.provenance.value) for entry in of_kind(found, machine)}


PV = {"guest_pause": NATIVE, "guest_screenshot": UNSUPPORTED, "host_events": NATIVE}
HVM = {"guest_pause": NATIVE, "guest_screenshot": NATIVE, "host_events": NATIVE}


def test_kinds_of_guests_have_proofs_of_their_own() -> None:
    later = TIME.replace(year=2027)
    found = apply(HERE, _xen(), (run("pv", later, **PV), run("hvm", **HVM)))
    assert _shown(found, "pv") == {
        PAUSE: ("NATIVE", "VERIFIED"),
        SCREENSHOT: ("UNSUPPORTED", "VERIFIED"),
        EVENTS: ("NATIVE", "VERIFIED"),
    }
    assert _shown(found, "hvm")[SCREENSHOT] == ("NATIVE", "VERIFIED")
    assert _shown(found) == {
        PAUSE: ("NATIVE", "VERIFIED"),
        SCREENSHOT: ("PARTIAL", "VERIFIED"),
        EVENTS: ("NATIVE", "VERIFIED"),
    }
    times = {entry.id: entry.verified_time for entry in found.capabilities}
    assert times[PAUSE] == TIME, "as old as its oldest proof"
    assert {entry.verified_time for entry in of_kind(found, "pv")} == {later}


def test_the_host_is_proven_by_all_kinds_together() -> None:
    found = apply(HERE, _xen(), (run("pv", **PV),))
    assert _shown(found, "pv")[PAUSE] == ("NATIVE", "VERIFIED")
    assert _shown(found, "hvm")[PAUSE] == ("NATIVE", "DECLARED")
    assert _shown(found)[PAUSE] == ("NATIVE", "DECLARED")
    assert _shown(found)[EVENTS] == ("NATIVE", "VERIFIED"), "no matter of guests"


def test_a_partial_that_no_kind_has_is_no_partial() -> None:
    found = apply(HERE, _xen(), (run("pv", **PV), run("hvm", **{**HVM, "guest_screenshot": UNSUPPORTED})))
    assert _shown(found)[SCREENSHOT] == ("PARTIAL", "DECLARED")
    assert _shown(found, "hvm")[SCREENSHOT] == ("NATIVE", "DECLARED")


def test_a_run_without_a_kind_proves_nothing_of_kinds() -> None:
    assert apply(HERE, _xen(), (run(**HVM),)) == _xen()


def _document(**changes: Any) -> dict[str, Any]:
    names = [field.name for field in fields(Environment)]
    values = dict(zip(names, (getattr(HERE, name) for name in names), strict=True))
    entry = {**values, "label": "x", "machine": "", "time": TIME.isoformat(), "capabilities": {PAUSE: "NATIVE"}}
    return {"schema": verified.SCHEMA, "runs": [entry], **changes}


def test_a_document_is_read() -> None:
    assert verified.parse(_document()) == (run(guest_pause=NATIVE),)
    with pytest.raises(ValueError, match="schema"):
        verified.parse(_document(schema="virtd.verified/9"))


def test_what_is_shipped_is_of_this_code() -> None:
    assert verified.shipped()
    for evidence in verified.shipped():
        assert set(evidence.levels) <= set(SUMMARIES)
        assert evidence.time.tzinfo is not None
        assert evidence.environment.hypervisor_version
