"""Every verb in every state: one table says what must come of it."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Final
from uuid import UUID

import pytest

from virtd.backend import capabilities as caps
from virtd.backend.api import SnapshotRequest
from virtd.backend.conformance.deeds import by_core, take
from virtd.backend.conformance.kit import ABSENT, Kit, NotRun, Subject, check
from virtd.errors import (
    AGENT_NOT_CONFIGURED,
    AGENT_NOT_READY,
    CAPABILITY_UNSUPPORTED,
    GUEST_NOT_FOUND,
    INVALID_STATE,
    SNAPSHOT_NOT_FOUND,
    Reason,
    VirtdError,
)
from virtd.model.console import AgentCommand
from virtd.model.guest import GuestState

STOPPED, RUNNING, PAUSED, SUSPENDED = (
    GuestState.STOPPED,
    GuestState.RUNNING,
    GuestState.PAUSED,
    GuestState.SUSPENDED,
)
STATES: Final = (ABSENT, STOPPED, RUNNING, PAUSED, SUSPENDED)
OK: Final = None
_Result = Reason | None


@dataclass(frozen=True, slots=True)
class Expect:
    """What may come of a verb: success (OK) or one of some reasons; and the state afterwards.

    ``after`` None: the state does not change.  A refusal never changes it.
    """

    results: tuple[_Result, ...]
    after: tuple[str, ...] | None = None


@dataclass(frozen=True, slots=True)
class Verb:
    """One verb of the SPI.  ``expect`` has an entry for each state."""

    name: str
    capability: str
    call: Callable[[Kit, Subject], Awaitable[object]]
    expect: Mapping[str, Expect]

    def __str__(self) -> str:
        return self.name


def _expect(absent: Expect, stopped: Expect, running: Expect, paused: Expect, suspended: Expect) -> dict[str, Expect]:
    return dict(zip(STATES, (absent, stopped, running, paused, suspended), strict=True))


_DONE: Final = Expect((OK,))
_MISSING: Final = Expect((GUEST_NOT_FOUND,))
_WRONG: Final = Expect((INVALID_STATE,))
# A paused guest is active but does not run: a host may take the press, which acts on resume, or refuse it.
_EITHER: Final = Expect((OK, INVALID_STATE))
_DOWN: Final = Expect((OK, INVALID_STATE), (PAUSED, STOPPED))
_ANEW: Final = Expect((OK, INVALID_STATE), (PAUSED, RUNNING))
_NO_AGENT: Final = Expect((OK, AGENT_NOT_READY, AGENT_NOT_CONFIGURED))
_NO_AGENT_NOW: Final = Expect((INVALID_STATE, AGENT_NOT_READY, AGENT_NOT_CONFIGURED))


def _to(*states: str) -> Expect:
    return Expect((OK,), states)


def _uuid_call(facet: str, method: str, *, context: bool = True) -> Callable[[Kit, Subject], Awaitable[object]]:
    """A call of a method that takes a UUID (and a context) and nothing else."""

    def call(kit: Kit, subject: Subject) -> Awaitable[object]:
        target = kit.facet(facet) if facet else kit.session
        arguments: tuple[object, ...] = (subject.uuid, kit.context()) if context else (subject.uuid,)
        answer: Awaitable[object] = getattr(target, method)(*arguments)
        return answer

    return call


async def _define(kit: Kit, subject: Subject) -> None:
    guest = await kit.session.define_guest(subject.resolved, kit.context())
    assert (guest.uuid, guest.name) == (subject.uuid, subject.name)


async def _snapshot(kit: Kit, subject: Subject) -> None:
    facet = kit.facet("snapshots")
    await take(kit, subject.uuid, SnapshotRequest("verb"))
    await facet.delete_snapshot(subject.uuid, "verb", kit.context())


async def _snapshot_memory(kit: Kit, subject: Subject) -> None:
    facet = kit.facet("snapshots")
    await take(kit, subject.uuid, SnapshotRequest("verb", memory=True))
    await facet.delete_snapshot(subject.uuid, "verb", kit.context())


async def _revert_unknown(kit: Kit, subject: Subject) -> None:
    await kit.facet("snapshots").revert_snapshot(subject.uuid, "no-such-snapshot", kit.context())


async def _delete_unknown(kit: Kit, subject: Subject) -> None:
    await kit.facet("snapshots").delete_snapshot(subject.uuid, "no-such-snapshot", kit.context())


async def _console(kit: Kit, subject: Subject) -> None:
    stream = await kit.facet("serial_console").open_console(subject.uuid)
    await stream.close()
    await stream.close()


async def _run(kit: Kit, subject: Subject) -> None:
    await kit.facet("agent").run_command(subject.uuid, AgentCommand("/bin/true", timeout_s=5), kit.context())


_SNAPSHOT_HERE: Final = Expect((OK, CAPABILITY_UNSUPPORTED))
# Where virtd copies the disks, a guest that does not run can be snapshotted, once it has been stopped.
_SNAPSHOT_NOW: Final = Expect((OK, CAPABILITY_UNSUPPORTED, INVALID_STATE))
_NO_MEMORY: Final = Expect((INVALID_STATE, CAPABILITY_UNSUPPORTED))
_NO_DISPLAY: Final = Expect((OK, CAPABILITY_UNSUPPORTED))
_POWER: Final = _expect(_MISSING, _WRONG, _DONE, _ANEW, _WRONG)
# Whether the guest obeys is its own affair, and may come at once.
_PRESS: Final = _expect(_MISSING, _WRONG, _to(RUNNING, STOPPED), _DOWN, _WRONG)

VERBS: Final = (
    Verb("get", caps.LIFECYCLE, _uuid_call("", "get_guest", context=False), _expect(_MISSING, *[_DONE] * 4)),
    Verb("define", caps.LIFECYCLE, _define, _expect(_to(STOPPED), *[_DONE] * 4)),
    Verb(
        "undefine",
        caps.LIFECYCLE,
        _uuid_call("", "undefine_guest"),
        _expect(_DONE, _to(ABSENT), _WRONG, _WRONG, _to(ABSENT)),
    ),
    Verb(
        "start",
        caps.LIFECYCLE,
        _uuid_call("", "start_guest"),
        _expect(_MISSING, _to(RUNNING), _DONE, _EITHER, _to(RUNNING)),
    ),
    # A suspended guest has no power to cut; whether its saved state goes is not said.
    Verb(
        "stop",
        caps.LIFECYCLE,
        _uuid_call("", "stop_guest"),
        _expect(_DONE, _DONE, _to(STOPPED), _to(STOPPED), _DONE),
    ),
    Verb("shutdown", caps.SHUTDOWN, _uuid_call("shutdown", "request_shutdown"), _PRESS),
    Verb("reboot", caps.REBOOT, _uuid_call("reboot", "request_reboot"), _POWER),
    Verb("reset", caps.RESET, _uuid_call("reset", "reset_guest"), _POWER),
    Verb(
        "pause",
        caps.PAUSE,
        _uuid_call("pause", "pause_guest"),
        _expect(_MISSING, _WRONG, _to(PAUSED), _DONE, _WRONG),
    ),
    Verb(
        "resume",
        caps.PAUSE,
        _uuid_call("pause", "resume_guest"),
        _expect(_MISSING, _WRONG, _DONE, _to(RUNNING), _WRONG),
    ),
    Verb(
        "suspend",
        caps.SUSPEND,
        _uuid_call("suspend", "suspend_guest"),
        # Where the guest's system has to do its part, a paused one cannot.
        _expect(_MISSING, _WRONG, _to(SUSPENDED), Expect((OK, INVALID_STATE), (SUSPENDED,)), _DONE),
    ),
    Verb(
        "discard-saved-state",
        caps.SUSPEND,
        _uuid_call("suspend", "discard_saved_state"),
        _expect(Expect((OK, GUEST_NOT_FOUND)), _DONE, _DONE, _DONE, _to(STOPPED)),
    ),
    Verb(
        "list-snapshots",
        caps.SNAPSHOT,
        _uuid_call("snapshots", "list_snapshots", context=False),
        _expect(_MISSING, *[_DONE] * 4),
    ),
    Verb("snapshot", caps.SNAPSHOT, _snapshot, _expect(_MISSING, _DONE, *[_SNAPSHOT_NOW] * 3)),
    Verb(
        "snapshot-memory",
        caps.SNAPSHOT_MEMORY,
        _snapshot_memory,
        _expect(_MISSING, _NO_MEMORY, _DONE, _SNAPSHOT_HERE, _NO_MEMORY),
    ),
    Verb(
        "revert-unknown",
        caps.SNAPSHOT_REVERT,
        _revert_unknown,
        _expect(_MISSING, *[Expect((SNAPSHOT_NOT_FOUND,))] * 4),
    ),
    Verb(
        "delete-unknown-snapshot",
        caps.SNAPSHOT,
        _delete_unknown,
        _expect(Expect((OK, GUEST_NOT_FOUND)), *[_DONE] * 4),
    ),
    Verb("console", caps.CONSOLE_SERIAL, _console, _expect(_MISSING, _WRONG, _DONE, _DONE, _WRONG)),
    Verb(
        "screenshot",
        caps.SCREENSHOT,
        _uuid_call("screenshot", "screenshot", context=False),
        _expect(_MISSING, _WRONG, _NO_DISPLAY, _NO_DISPLAY, _WRONG),
    ),
    Verb(
        "ping-agent",
        caps.AGENT_EXEC,
        _uuid_call("agent", "ping_agent", context=False),
        _expect(_MISSING, _NO_AGENT_NOW, _NO_AGENT, _NO_AGENT_NOW, _NO_AGENT_NOW),
    ),
    Verb(
        "run-command",
        caps.AGENT_EXEC,
        _run,
        _expect(_MISSING, _NO_AGENT_NOW, _NO_AGENT, _NO_AGENT_NOW, _NO_AGENT_NOW),
    ),
    Verb(
        "addresses",
        caps.ADDRESSES,
        _uuid_call("addresses", "guest_addresses", context=False),
        _expect(_MISSING, *[_DONE] * 4),
    ),
)
"""All verbs that take a guest."""


def _capability(verb: Verb, state: str) -> str:
    del state
    return verb.capability


class TestVerbs:
    """Every verb in every state."""

    @pytest.mark.parametrize("state", STATES)
    @pytest.mark.parametrize("verb", VERBS, ids=str)
    @check(about=_capability)
    async def test_verb(self, kit: Kit, verb: Verb, state: str) -> None:
        """It does what the table says, and nothing else."""
        kit.need(*_needs(state))
        if by_core(kit, verb.capability):
            raise NotRun(f"the core does it; TestPower.test_{verb.name} checks that its way works", elsewhere=True)
        subject = await kit.in_state(state)
        expect = verb.expect[state]
        error = await _error(verb.call(kit, subject))
        result = error.reason if error else OK
        if error is not None and result is CAPABILITY_UNSUPPORTED and result not in expect.results:
            await kit.reaches(subject.uuid, state)
            raise error  # a capability that is PARTIAL may say so
        allowed = [item.name if item else "OK" for item in expect.results]
        assert result in expect.results, f"{verb} of a guest that is {state}: {error!r}, not {allowed}"
        after = expect.after if result is OK and expect.after is not None else (state,)
        await kit.reaches(subject.uuid, *after)

    @pytest.mark.parametrize("verb", [verb for verb in VERBS if verb.name != "define"], ids=str)
    @check(about=lambda verb: verb.capability, proof=False)
    async def test_unknown_guest(self, kit: Kit, verb: Verb) -> None:
        """A UUID that no guest can have is answered like any unknown one, and makes nothing."""
        kit.robustness()
        if by_core(kit, verb.capability):
            raise NotRun("the core does it, which looks for the guest first", elsewhere=True)
        nobody = Subject(UUID(int=0), "nobody", kit.provision.guest("nobody", UUID(int=1)))
        before = await kit.digest()
        error = await _error(verb.call(kit, nobody))
        result = error.reason if error else OK
        assert result in verb.expect[ABSENT].results, f"{verb} of an unknown guest: {error!r}"
        await kit.unchanged(before, f"{verb} of an unknown guest")


def _needs(state: str) -> tuple[str, ...]:
    return {PAUSED: (caps.PAUSE,), SUSPENDED: (caps.SUSPEND,)}.get(GuestState(state), ()) if state != ABSENT else ()


async def _error(call: Awaitable[object]) -> VirtdError | None:
    try:
        await call
    except VirtdError as error:
        return error
    return None
