"""Checks of level 0: guests are defined, found, started, stopped and forgotten, again and again, many at once."""

from __future__ import annotations

import asyncio
import dataclasses
import time
from uuid import uuid4

from virtd.backend import capabilities as caps
from virtd.backend.conformance.kit import ABSENT, Kit, NotRun, Subject, check
from virtd.errors import GUEST_EXISTS, GUEST_NOT_FOUND
from virtd.model.guest import GuestState


class TestGuests:
    """Level 0."""

    @check(caps.LIFECYCLE)
    async def test_round_trip(self, kit: Kit) -> None:
        """A defined guest is stopped, and is described as it was asked for."""
        subject = kit.subject()
        defined = await kit.session.define_guest(subject.resolved, kit.context())
        found = await kit.session.get_guest(subject.uuid)
        assert defined == found, "define_guest and get_guest describe the guest differently"
        assert (found.uuid, found.name) == (subject.uuid, subject.name)
        assert found.state is GuestState.STOPPED
        assert found.spec.vcpus == subject.resolved.vcpus
        assert found.spec.memory_bytes == subject.resolved.memory_bytes
        assert found.persistent
        assert not found.has_saved_state
        assert found.native_ref, "there is no native reference"
        assert found.native_state, "the hypervisor's own word for the state is missing"

    @check(caps.LIFECYCLE)
    async def test_list(self, kit: Kit) -> None:
        """The bulk list agrees with the single look, for each state, and has every guest once."""
        wanted = {}
        states = [GuestState.STOPPED, GuestState.RUNNING]
        states += [GuestState.PAUSED] if kit.declared(caps.PAUSE) else []
        states += [GuestState.SUSPENDED] if kit.declared(caps.SUSPEND) else []
        for state in states:
            wanted[(await kit.in_state(state)).uuid] = state
        guests = await kit.session.list_guests()
        assert len({guest.uuid for guest in guests}) == len(guests), "a guest is in the list twice"
        listed = {guest.uuid: guest for guest in guests}
        for uuid, state in wanted.items():
            single = await kit.session.get_guest(uuid)
            assert listed[uuid].state is state
            assert (listed[uuid].name, listed[uuid].state) == (single.name, single.state)

    @check(caps.LIFECYCLE)
    async def test_life(self, kit: Kit) -> None:
        """Define, start, stop, undefine: the guest is what it should be after each step."""
        subject = kit.subject()
        assert await kit.state(subject.uuid) == ABSENT
        await kit.session.define_guest(subject.resolved, kit.context())
        assert await kit.state(subject.uuid) == GuestState.STOPPED
        await kit.session.start_guest(subject.uuid, kit.context())
        assert await kit.state(subject.uuid) == GuestState.RUNNING
        await kit.session.stop_guest(subject.uuid, kit.context())
        assert await kit.state(subject.uuid) == GuestState.STOPPED
        await kit.session.undefine_guest(subject.uuid, kit.context())
        assert await kit.state(subject.uuid) == ABSENT

    @check(caps.LIFECYCLE)
    async def test_everything_twice(self, kit: Kit) -> None:
        """Recovery repeats what may have been done: define, start, stop and undefine succeed twice."""
        subject = kit.subject()
        first = await kit.session.define_guest(subject.resolved, kit.context())
        assert await kit.session.define_guest(subject.resolved, kit.context()) == first
        names = [guest.name for guest in await kit.session.list_guests()]
        assert names.count(subject.name) == 1, "defining twice made two guests"
        for state in (GuestState.RUNNING, GuestState.RUNNING):
            await kit.session.start_guest(subject.uuid, kit.context())
            assert await kit.state(subject.uuid) == state
        for _ in range(2):
            await kit.session.stop_guest(subject.uuid, kit.context())
            assert await kit.state(subject.uuid) == GuestState.STOPPED
        for _ in range(2):
            await kit.session.undefine_guest(subject.uuid, kit.context())
            assert await kit.state(subject.uuid) == ABSENT

    @check(caps.LIFECYCLE)
    async def test_redefine(self, kit: Kit) -> None:
        """Defining a guest of the same UUID changes it."""
        subject = await kit.new_guest()
        bigger = dataclasses.replace(subject.resolved, memory_bytes=subject.resolved.memory_bytes * 2)
        await kit.session.define_guest(bigger, kit.context())
        assert (await kit.session.get_guest(subject.uuid)).spec.memory_bytes == bigger.memory_bytes

    @check(caps.LIFECYCLE)
    async def test_name_is_taken(self, kit: Kit) -> None:
        """Another guest of the same name is GUEST_EXISTS, and the first one is not touched."""
        subject = await kit.new_guest()
        before = await kit.digest()
        other = dataclasses.replace(subject.resolved, uuid=uuid4(), memory_bytes=subject.resolved.memory_bytes * 2)
        await kit.error(kit.session.define_guest(other, kit.context()), GUEST_EXISTS)
        await kit.unchanged(before, "refusing a name that is taken")
        await kit.error(kit.session.get_guest(other.uuid), GUEST_NOT_FOUND)

    @check(caps.LIFECYCLE)
    async def test_restart_keeps_the_guest(self, kit: Kit) -> None:
        """Closing a session leaves guests as they are."""
        session = await kit.open_session()
        subject = kit.subject()
        try:
            await session.define_guest(subject.resolved, kit.context())
            await session.start_guest(subject.uuid, kit.context())
        finally:
            await session.close()
        assert await kit.state(subject.uuid) == GuestState.RUNNING

    @check(caps.LIFECYCLE)
    async def test_parallel(self, kit: Kit) -> None:
        """Many guests at once: each is made, started, stopped and forgotten, and none is lost or doubled."""
        subjects = [kit.subject() for _ in range(kit.provision.parallel)]
        start = time.monotonic()
        await asyncio.gather(*(_live(kit, subject) for subject in subjects))
        kit.report.notes["parallel_creates"] = len(subjects)
        kit.report.notes["parallel_creates_s"] = round(time.monotonic() - start, 3)
        left = {guest.uuid for guest in await kit.session.list_guests()} & {subject.uuid for subject in subjects}
        assert not left

    @check(caps.ADOPT)
    async def test_foreign_guest(self, kit: Kit) -> None:
        """A guest that somebody else defined is listed and described, and can be managed by its UUID."""
        outside = kit.provision.outside
        if outside is None:
            raise NotRun("the provision has no way to act from outside")
        name = kit.new_name()
        uuid = await outside.define_guest(name)
        kit.forget_later(foreign=uuid)
        await kit.reaches(uuid, GuestState.STOPPED)
        assert (uuid, name) in {(guest.uuid, guest.name) for guest in await kit.session.list_guests()}
        guest = await kit.session.get_guest(uuid)
        assert guest.spec.vcpus
        assert guest.spec.memory_bytes
        await kit.session.start_guest(uuid, kit.context())
        assert await kit.state(uuid) == GuestState.RUNNING
        await kit.session.stop_guest(uuid, kit.context())
        assert await kit.state(uuid) == GuestState.STOPPED
        await kit.session.undefine_guest(uuid, kit.context())
        assert await kit.state(uuid) == ABSENT


async def _live(kit: Kit, subject: Subject) -> None:
    await kit.session.define_guest(subject.resolved, kit.context())
    await kit.session.start_guest(subject.uuid, kit.context())
    assert await kit.state(subject.uuid) == GuestState.RUNNING
    await kit.session.stop_guest(subject.uuid, kit.context())
    await kit.session.undefine_guest(subject.uuid, kit.context())
