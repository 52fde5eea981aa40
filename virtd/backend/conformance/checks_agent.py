"""Checks of what the agent does besides commands, and of the display."""

from __future__ import annotations

import asyncio
import dataclasses
from uuid import uuid4

from virtd.backend import capabilities as caps
from virtd.backend.conformance.checks_inside import with_agent
from virtd.backend.conformance.kit import Kit, check
from virtd.errors import (
    AGENT_FILE_NOT_FOUND,
    AGENT_FREEZE_FAILED,
    CAPABILITY_UNSUPPORTED,
    DEADLINE_EXCEEDED,
    FIELD_INVALID,
    INVALID_STATE,
    FailedPreconditionError,
)
from virtd.model.console import AgentChannel, AgentCommand, AgentExit, AgentFileRequest, AgentOutput
from virtd.model.guest import GraphicsSpec, GuestState


class TestAgentStream:
    """Commands whose output and input are a dialogue."""

    @check(caps.AGENT_STREAM)
    async def test_dialogue(self, kit: Kit) -> None:
        """Input arrives while the command runs, what it says comes back, and its exit is the last."""
        subject = await with_agent(kit)
        process = await kit.facet("agent").start_command(
            subject.uuid, AgentCommand("/bin/cat"), kit.context(), stdin=True
        )
        try:
            for word in (b"first\n", b"\0second\xff\n"):
                await process.write(word)
                said = b""
                async with asyncio.timeout(30):
                    while said != word:
                        item = await process.read()
                        assert isinstance(item, AgentOutput), f"{item} instead of an echo"
                        assert item.channel is AgentChannel.STDOUT
                        said += item.data
            await process.close_input()
            async with asyncio.timeout(30):
                assert await process.read() == AgentExit(0, None)
            await kit.error(process.write(b"late"), INVALID_STATE)
        finally:
            await process.close()
            await process.close()

    @check(caps.AGENT_STREAM)
    async def test_limits(self, kit: Kit) -> None:
        """A program that is not there, and one that runs too long, which is ended."""
        subject = await with_agent(kit)
        start = kit.facet("agent").start_command
        await kit.error(start(subject.uuid, AgentCommand("/bin/no-such-program"), kit.context()), FIELD_INVALID)
        slow = AgentCommand("/bin/sleep", ("600",), timeout_s=1.0)
        process = await start(subject.uuid, slow, kit.context())
        try:
            await kit.error(process.read(), DEADLINE_EXCEEDED)
        finally:
            await process.close()


class TestAgentFiles:
    """Files of a guest."""

    @check(caps.AGENT_FILES)
    async def test_there_and_back(self, kit: Kit) -> None:
        """A file is written as a whole, read in parts, and changed in its place."""
        subject, agent = await with_agent(kit), kit.facet("agent")
        path, data = f"/tmp/{uuid4().hex[:8]}", bytes(range(256)) * 20  # noqa: S108 - in the guest
        file = await agent.open_file(subject.uuid, AgentFileRequest(path, write=True, mode=0o600), kit.context())
        await file.write(data[:1000])
        if file.atomic:
            missing = agent.open_file(subject.uuid, AgentFileRequest(path), kit.context())
            await kit.error(missing, AGENT_FILE_NOT_FOUND)
        await file.write(data[1000:])
        await file.commit()
        await file.close()
        assert await _content(kit, AgentFileRequest(path), subject) == data
        assert await _content(kit, AgentFileRequest(path, offset=5000), subject) == data[5000:]
        file = await agent.open_file(subject.uuid, AgentFileRequest(path, write=True, offset=2), kit.context())
        assert not file.atomic
        await file.write(b"XY")
        await file.commit()
        await file.close()
        assert await _content(kit, AgentFileRequest(path), subject) == data[:2] + b"XY" + data[4:]

    @check(caps.AGENT_FILES)
    async def test_given_up(self, kit: Kit) -> None:
        """A write that is not committed leaves the old file, where it is said to be atomic."""
        subject, agent = await with_agent(kit), kit.facet("agent")
        path = f"/tmp/{uuid4().hex[:8]}"  # noqa: S108 - in the guest
        for content, commit in ((b"old", True), (b"new", False)):
            file = await agent.open_file(subject.uuid, AgentFileRequest(path, write=True), kit.context())
            await file.write(content)
            if commit:
                await file.commit()
            await file.close()
        if file.atomic:
            assert await _content(kit, AgentFileRequest(path), subject) == b"old"


async def _content(kit: Kit, request: AgentFileRequest, subject: object) -> bytes:
    file = await kit.facet("agent").open_file(subject.uuid, request, kit.context())  # type: ignore[attr-defined]  # a subject
    parts = b""
    while data := await file.read():
        parts += data
    await file.close()
    return parts


class TestAgentMore:
    """Freezing, and what the guest's system tells."""

    @check(caps.AGENT_FREEZE)
    async def test_freeze(self, kit: Kit) -> None:
        """Frozen until thawed, both as often as one likes; a guest that has nothing to freeze says so."""
        subject, agent = await with_agent(kit), kit.facet("agent")
        try:
            try:
                count = await agent.freeze(subject.uuid, kit.context())
            except FailedPreconditionError as error:
                assert error.reason is AGENT_FREEZE_FAILED
                assert not await agent.frozen(subject.uuid)
            else:
                assert count > 0
                assert await agent.frozen(subject.uuid)
                assert await agent.freeze(subject.uuid, kit.context()) == 0
                assert await agent.thaw(subject.uuid) > 0
        finally:
            await agent.thaw(subject.uuid)
        assert await agent.thaw(subject.uuid) == 0
        assert not await agent.frozen(subject.uuid)

    @check(caps.AGENT_INFO)
    async def test_info(self, kit: Kit) -> None:
        """The system has a name of its own, or a kernel."""
        subject = await with_agent(kit)
        info = await kit.facet("agent").os_info(subject.uuid)
        assert info.id or info.kernel_release
        assert info.agent_version


class TestDisplay:
    """The graphical console."""

    @check(caps.CONSOLE_GRAPHICAL)
    async def test_handshake(self, kit: Kit) -> None:
        """A VNC server answers, without a password; it ends with the guest."""
        subject = kit.subject()
        guest = dataclasses.replace(subject.resolved, graphics=GraphicsSpec())
        await kit.session.define_guest(guest, kit.context())
        await kit.session.start_guest(guest.uuid, kit.context())
        display = await kit.facet("display").open_display(guest.uuid)
        try:
            async with asyncio.timeout(kit.provision.event_timeout_s):
                said = await display.read()
                assert said.startswith(b"RFB 003.00"), f"{said!r} is no VNC server's greeting"
                await display.write(said)
                kinds = await display.read()
                assert 1 in kinds[1 : 1 + kinds[0]], f"it asks for a password: {kinds!r}"
        finally:
            await display.close()
            await display.close()
        await kit.session.stop_guest(guest.uuid, kit.context())
        await kit.reaches(guest.uuid, GuestState.STOPPED)
        await kit.error(kit.facet("display").open_display(guest.uuid), INVALID_STATE)

    @check(caps.CONSOLE_GRAPHICAL)
    async def test_guest_without(self, kit: Kit) -> None:
        """A guest that has no display refuses."""
        subject = kit.subject()
        guest = dataclasses.replace(subject.resolved, graphics=None)
        await kit.session.define_guest(guest, kit.context())
        await kit.session.start_guest(guest.uuid, kit.context())
        await kit.error(kit.facet("display").open_display(guest.uuid), CAPABILITY_UNSUPPORTED)
