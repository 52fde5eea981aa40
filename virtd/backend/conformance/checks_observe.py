"""Checks of what is seen: events in their order, metrics without inventions, presence in three values."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from uuid import UUID

from virtd.backend import capabilities as caps
from virtd.backend.api import NativeEvent, NativeEventType
from virtd.backend.conformance.kit import Kit, NotRun, check
from virtd.errors import HOST_UNREACHABLE
from virtd.model.guest import GuestState
from virtd.model.host import CheckStatus
from virtd.model.metrics import GuestMetrics

_BETWEEN = (GuestState.STARTING, GuestState.STOPPING)


def _steps(events: Sequence[NativeEvent], uuid: UUID) -> list[str]:
    """What happened to a guest: its states without repetitions and passing ones, and its coming and going."""
    steps: list[str] = []
    for event in events:
        if event.uuid != uuid:
            continue
        assert event.time.tzinfo is not None, "an event's time has no zone"
        if event.type is NativeEventType.GUEST_STATE:
            assert event.state is not None, "GUEST_STATE without a state"
            if event.state not in _BETWEEN and (not steps or steps[-1] != event.state):
                steps.append(event.state)
        elif event.type in (NativeEventType.GUEST_DEFINED, NativeEventType.GUEST_UNDEFINED):
            steps.append(event.type)
    return steps


def _last(events: Sequence[NativeEvent], uuid: UUID) -> str:
    return ["", *_steps(events, uuid)][-1]


async def _expect(kit: Kit, uuid: UUID, *wanted: str, since: int = 0) -> None:
    """The guest's steps so far are exactly these."""

    def steps() -> list[str]:
        return _steps(kit.events[since:], uuid)

    await kit.eventually(
        lambda: len(steps()) >= len(wanted) and steps()[-1] == wanted[-1],
        lambda: f"events were {steps()}, not {list(wanted)}",
    )
    assert steps() == list(wanted)


class TestDiagnosis:
    """What is said to be wrong with a host."""

    @check(caps.DIAGNOSIS)
    async def test_each_finding_says_what_to_do(self, kit: Kit) -> None:
        """Every check is there once and says what was found; one that did not go well says what to do."""
        found = await kit.facet("diagnosis").diagnose()
        assert found, "nothing was looked at"
        assert len({check_.id for check_ in found}) == len(found), "one id for two checks"
        for check_ in found:
            assert check_.summary, check_
            wrong = check_.status in (CheckStatus.WARNING, CheckStatus.PROBLEM)
            assert bool(check_.remedy) == wrong, check_


class TestEvents:
    """Events as the hypervisor reports them."""

    @check(caps.EVENTS)
    async def test_life(self, kit: Kit) -> None:
        """Define, start, stop, undefine are reported once each and in order, with times that do not go back."""
        subject = await kit.new_guest()
        defined, undefined = NativeEventType.GUEST_DEFINED, NativeEventType.GUEST_UNDEFINED
        await _expect(kit, subject.uuid, defined)
        await kit.session.start_guest(subject.uuid, kit.context())
        await _expect(kit, subject.uuid, defined, GuestState.RUNNING)
        await kit.session.stop_guest(subject.uuid, kit.context())
        await _expect(kit, subject.uuid, defined, GuestState.RUNNING, GuestState.STOPPED)
        await kit.session.undefine_guest(subject.uuid, kit.context())
        await _expect(kit, subject.uuid, defined, GuestState.RUNNING, GuestState.STOPPED, undefined)
        times = [event.time for event in kit.events if event.uuid == subject.uuid]
        assert times == sorted(times)
        assert {event.name for event in kit.events if event.uuid == subject.uuid} <= {subject.name, ""}

    @check(caps.EVENTS, caps.PAUSE)
    async def test_pause(self, kit: Kit) -> None:
        """Pause and resume are reported."""
        subject = await kit.in_state(GuestState.RUNNING)
        await kit.eventually(lambda: GuestState.RUNNING in _steps(kit.events, subject.uuid), "no event of the start")
        seen = len(kit.events)
        await kit.facet("pause").pause_guest(subject.uuid, kit.context())
        await kit.facet("pause").resume_guest(subject.uuid, kit.context())
        await _expect(kit, subject.uuid, GuestState.PAUSED, GuestState.RUNNING, since=seen)

    @check(caps.EVENTS, caps.SUSPEND)
    async def test_suspend(self, kit: Kit) -> None:
        """A suspended guest is reported as one that does not run any more."""
        subject = await kit.new_guest(running=True)
        await kit.facet("suspend").suspend_guest(subject.uuid, kit.context())

        def told() -> bool:
            return _last(kit.events, subject.uuid) in (GuestState.SUSPENDED, GuestState.STOPPED)

        await kit.eventually(told, lambda: f"events were {_steps(kit.events, subject.uuid)}")

    @check(caps.EVENTS)
    async def test_crash(self, kit: Kit) -> None:
        """A guest that is killed from outside is reported, and is seen as not running."""
        outside = kit.provision.outside
        if outside is None:
            raise NotRun("the provision has no way to act from outside")
        subject = await kit.new_guest(running=True)
        await outside.kill_guest(subject.uuid)
        ends = (GuestState.STOPPED, GuestState.CRASHED)
        await kit.eventually(
            lambda: _last(kit.events, subject.uuid) in ends,
            lambda: f"events were {_steps(kit.events, subject.uuid)}",
        )
        assert await kit.state(subject.uuid) in ends

    @check(caps.EVENTS)
    async def test_foreign_guest(self, kit: Kit) -> None:
        """A guest that somebody else defines and removes is reported."""
        outside = kit.provision.outside
        if outside is None:
            raise NotRun("the provision has no way to act from outside")
        uuid = await outside.define_guest(kit.new_name())
        kit.forget_later(foreign=uuid)
        await _expect(kit, uuid, NativeEventType.GUEST_DEFINED)
        await outside.undefine_guest(uuid)
        await _expect(kit, uuid, NativeEventType.GUEST_DEFINED, NativeEventType.GUEST_UNDEFINED)

    @check(caps.EVENTS)
    async def test_iterator_ends_with_the_session(self, kit: Kit) -> None:
        """Closing the session ends the iterator."""
        session = await kit.open_session()
        source = session.facets.event_source
        assert source is not None
        iterator = source.events()

        async def drain() -> None:
            async for _ in iterator:
                pass

        reader = asyncio.create_task(drain())
        await asyncio.sleep(0)
        await session.close()
        async with asyncio.timeout(kit.provision.event_timeout_s):
            await reader


class TestMetrics:
    """Usage counters."""

    @check(caps.METRICS)
    async def test_sample(self, kit: Kit) -> None:
        """Active guests only; what is not known is None, never zero; counters do not go back."""
        running = await kit.in_state(GuestState.RUNNING)
        stopped = await kit.in_state(GuestState.STOPPED)
        first = await _sample(kit, running.uuid)
        second = await _sample(kit, running.uuid)
        assert stopped.uuid not in {item.uid for item in await kit.facet("metrics").sample_guests()}
        assert first.sample_time.tzinfo is not None
        assert second.sample_time >= first.sample_time
        for name in ("vcpus", "memory_assigned_bytes", "memory_used_bytes", "memory_rss_bytes"):
            # A running guest has processors and memory: a zero can only be a made-up value.
            assert getattr(second, name) != 0, f"{name} is 0: a value that is not known is None"
        if first.cpu_time_s is not None and second.cpu_time_s is not None:
            assert 0 <= first.cpu_time_s <= second.cpu_time_s
        assert second.vcpus in (None, running.resolved.vcpus)
        known = [second.cpu_time_s, second.vcpus, second.memory_assigned_bytes, second.memory_rss_bytes]
        assert any(value is not None for value in known), "guest.metrics is declared, but nothing is known"
        for block in second.blocks:
            assert block.name
            assert all(value is None or value >= 0 for value in (block.read_bytes, block.written_bytes))

    @check(caps.METRICS)
    async def test_gone_guest(self, kit: Kit) -> None:
        """A guest that was stopped is in no later sample."""
        subject = await kit.new_guest(running=True)
        await _sample(kit, subject.uuid)
        await kit.session.stop_guest(subject.uuid, kit.context())
        assert subject.uuid not in {item.uid for item in await kit.facet("metrics").sample_guests()}


async def _sample(kit: Kit, uuid: UUID) -> GuestMetrics:
    found: list[GuestMetrics] = []

    async def there() -> bool:
        # A busy guest may be left out of one sample.
        found.extend(item for item in await kit.facet("metrics").sample_guests() if item.uid == uuid)
        return bool(found)

    await kit.eventually(there, "the running guest is in no sample")
    return found[-1]


class TestPresence:
    """What cannot be seen is never taken for gone."""

    @check(caps.LIFECYCLE, proof=False)
    async def test_unreachable(self, kit: Kit) -> None:
        """While the host is away every call says HOST_UNREACHABLE; afterwards everything is as it was."""
        connection = kit.provision.connection
        if connection is None:
            raise NotRun("the provision has no way to cut the connection")
        subject = await kit.new_guest(running=True)
        before, seen = await kit.digest(), len(kit.events)
        await connection.cut()
        try:
            await kit.error(kit.session.get_guest(subject.uuid), HOST_UNREACHABLE)
            await kit.error(kit.session.list_guests(), HOST_UNREACHABLE)
            await kit.error(kit.session.probe(), HOST_UNREACHABLE)
            await kit.error(kit.session.start_guest(subject.uuid, kit.context()), HOST_UNREACHABLE)
            await kit.error(kit.session.stop_guest(subject.uuid, kit.context()), HOST_UNREACHABLE)
            await kit.error(kit.session.undefine_guest(subject.uuid, kit.context()), HOST_UNREACHABLE)
        finally:
            await connection.restore()

        async def back() -> bool:
            try:
                await kit.session.list_guests()
            except Exception as error:
                assert getattr(error, "reason", None) is HOST_UNREACHABLE
                return False
            return True

        await kit.eventually(back, "the session does not come back", kit.provision.check_timeout_s / 2)
        await kit.unchanged(before, "a lost connection")
        if kit.declared(caps.EVENTS):

            def told() -> bool:
                types = [event.type for event in kit.events[seen:]]
                away, again = NativeEventType.DISCONNECTED, NativeEventType.CONNECTED
                return away in types and again in types[types.index(away) :]

            await kit.eventually(told, "no DISCONNECTED followed by CONNECTED")
