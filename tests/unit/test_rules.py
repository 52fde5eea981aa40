"""Which verbs are legal when, and what is offered."""

from __future__ import annotations

import itertools

import pytest

from virtd.backend import capabilities as cap
from virtd.inventory.rules import CAPABILITY_OF, LEGAL_STATES, allowed_actions, legal_in
from virtd.model.guest import GuestState, Origin, Presence
from virtd.model.host import Capability

ALL = cap.complete(cap.native(id_) for id_ in cap.SUMMARIES)


def without(*missing: str) -> tuple[Capability, ...]:
    return cap.complete(cap.native(id_) for id_ in cap.SUMMARIES if id_ not in missing)


@pytest.mark.parametrize("state", list(GuestState))
def test_nothing_that_is_offered_is_refused(state: GuestState) -> None:
    for verb in allowed_actions(state, Origin.MANAGED, Presence.PRESENT, ALL):
        assert state in LEGAL_STATES[verb]


@pytest.mark.parametrize(("state", "presence"), list(itertools.product(GuestState, Presence)))
def test_deletion_is_always_possible(state: GuestState, presence: Presence) -> None:
    assert "delete" in allowed_actions(state, Origin.MANAGED, presence, ())
    assert state in LEGAL_STATES["delete"]
    assert state in LEGAL_STATES["stop"]


@pytest.mark.parametrize("state", list(GuestState))
def test_strangers_can_be_adopted_and_nothing_else(state: GuestState) -> None:
    assert allowed_actions(state, Origin.FOREIGN, Presence.PRESENT, ALL) == ("adopt",)


def test_the_absent_can_be_deleted_and_nothing_else() -> None:
    assert allowed_actions(GuestState.STOPPED, Origin.MANAGED, Presence.ABSENT, ALL) == ("delete",)


@pytest.mark.parametrize(("verb", "capability"), sorted(CAPABILITY_OF.items()))
def test_what_the_host_cannot_do_is_not_offered(verb: str, capability: str) -> None:
    for state in GuestState:
        offered = allowed_actions(state, Origin.MANAGED, Presence.PRESENT, without(capability))
        assert verb not in offered


def test_a_reboot_is_offered_as_long_as_it_can_be_emulated() -> None:
    def offered(*missing: str) -> bool:
        return "reboot" in allowed_actions(GuestState.RUNNING, Origin.MANAGED, Presence.PRESENT, without(*missing))

    assert offered()
    assert offered(cap.REBOOT)
    assert offered(cap.SHUTDOWN)
    assert not offered(cap.REBOOT, cap.SHUTDOWN)


def test_a_running_guest_is_not_offered_what_would_do_nothing() -> None:
    assert not {"start", "resume"} & set(legal_in(GuestState.RUNNING))
    assert not {"stop", "pause", "shutdown", "suspend"} & set(legal_in(GuestState.STOPPED))
    assert {"start", "delete", "snapshot"} <= set(legal_in(GuestState.SUSPENDED))


def test_unknown_abilities_are_not_promised() -> None:
    with pytest.raises(Exception, match=r"guest\.pause is not supported here"):
        cap.require(without(cap.PAUSE), cap.PAUSE)
    assert cap.require(ALL, cap.PAUSE).id == cap.PAUSE
