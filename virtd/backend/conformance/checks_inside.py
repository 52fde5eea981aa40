"""Checks of what reaches into a guest: console, display, agent, addresses, power button."""

from __future__ import annotations

import asyncio
import dataclasses
import struct
from collections.abc import Awaitable, Callable
from uuid import UUID, uuid4

from virtd.backend import capabilities as caps
from virtd.backend.api import ConsoleStream
from virtd.backend.conformance.deeds import reboot, reset, shut_down
from virtd.backend.conformance.kit import Kit, NotRun, Subject, check
from virtd.backend.conformance.shell import shell_run, wait_for_line
from virtd.errors import (
    AGENT_NOT_CONFIGURED,
    AGENT_NOT_READY,
    AGENT_STUCK,
    CAPABILITY_UNSUPPORTED,
    DEADLINE_EXCEEDED,
    FIELD_INVALID,
    INVALID_STATE,
    OPERATION_CANCELLED,
    UnavailableError,
    VirtdError,
)
from virtd.model.console import AgentCommand, AgentResult
from virtd.model.guest import GraphicsSpec, GuestAddress, GuestState


async def read_until(kit: Kit, stream: ConsoleStream, text: bytes, timeout_s: float | None = None) -> bytes:
    """Read the console until a text has come."""
    seen = b""
    try:
        async with asyncio.timeout(kit.bootable().boot_timeout_s if timeout_s is None else timeout_s):
            while text not in seen:
                data = await stream.read()
                assert data, f"the console closed before {text!r} came; it printed {seen[-200:]!r}"
                seen += data
    except TimeoutError:
        raise AssertionError(f"{text!r} did not come; the console printed {seen[-200:]!r}") from None
    return seen


async def wait_ready(kit: Kit, uuid: UUID) -> None:
    """Wait for the guest's system by its console."""
    await wait_for_line(kit, uuid, kit.bootable().ready_line)


async def booted(kit: Kit) -> Subject:
    """A guest whose system is up, by its console or by its agent.  Checks share it."""
    if not kit.declared(caps.CONSOLE_SERIAL):
        return await with_agent(kit)

    async def make() -> Subject:
        subject = await kit.new_guest(make=kit.bootable().guest, running=True)
        await wait_ready(kit, subject.uuid)
        return subject

    return await kit.shared("booted", make)


async def with_agent(kit: Kit) -> Subject:
    """A guest whose agent answers.  Checks share it."""
    if not kit.bootable().agent:
        raise NotRun("the provision's bootable guest has no agent")

    async def make() -> Subject:
        return await kit.new_guest(make=kit.bootable().guest, running=True)

    subject = await kit.shared("booted", make)
    await agent_answers(kit, subject.uuid)
    return subject


async def agent_answers(kit: Kit, uuid: UUID) -> None:
    """Wait for the agent."""

    async def answers() -> bool:
        try:
            await kit.facet("agent").ping_agent(uuid)
        except UnavailableError as error:
            # It is connected before it answers: on a slow machine it then looks as if it were stuck.
            assert error.reason in (AGENT_NOT_READY, AGENT_STUCK), f"{error.reason.name} while the agent starts"
            return False
        return True

    await kit.eventually(answers, "the agent does not answer", kit.bootable().boot_timeout_s)


async def run(kit: Kit, uuid: UUID, command: AgentCommand) -> AgentResult:
    """Run a command that must succeed."""
    result: AgentResult = await kit.facet("agent").run_command(uuid, command, kit.context())
    assert result.exit_code == 0, f"{command.path} ended with {result}"
    return result


async def inside(kit: Kit) -> Subject:
    """A guest in which commands can be run, by its agent or by the shell on its console.  Checks share it."""
    if _by_shell(kit):
        return await booted(kit)
    kit.need(caps.AGENT_EXEC)
    return await with_agent(kit)


def _by_shell(kit: Kit) -> bool:
    bootable = kit.provision.bootable
    by_agent = bootable is not None and bootable.agent and kit.declared(caps.AGENT_EXEC)
    return bootable is not None and bootable.shell and not by_agent and kit.declared(caps.CONSOLE_SERIAL)


async def ask(kit: Kit, uuid: UUID, command: AgentCommand) -> AgentResult:
    """Run a command that must succeed and that may be repeated; see :func:`inside`."""
    if not _by_shell(kit):
        return await run(kit, uuid, command)
    result = await shell_run(kit, uuid, command)
    assert result.exit_code == 0, f"{command.path} ended with {result}"
    return result


async def answers_again(kit: Kit, uuid: UUID) -> None:
    """Wait until commands can be run; see :func:`inside`."""
    if _by_shell(kit):
        await shell_run(kit, uuid, AgentCommand("/bin/true"))
    else:
        await agent_answers(kit, uuid)


class TestConsole:
    """The serial console."""

    @check(caps.CONSOLE_SERIAL)
    async def test_echo(self, kit: Kit) -> None:
        """The boot is seen to the ready line, and what is typed comes back."""
        subject = await booted(kit)
        stream = await kit.facet("serial_console").open_console(subject.uuid)
        word = uuid4().hex[:12].encode()
        await stream.write(b"\n" + word + b"\n")
        await read_until(kit, stream, word)
        await stream.close()
        assert await stream.read() == b"", "a closed console still gives data"

    @check(caps.CONSOLE_SERIAL)
    async def test_taken_over(self, kit: Kit) -> None:
        """A second opener gets the console; it works for the second."""
        subject = await booted(kit)
        first = await kit.facet("serial_console").open_console(subject.uuid)
        second = await kit.facet("serial_console").open_console(subject.uuid)
        word = uuid4().hex[:12].encode()
        await _type_until_echoed(kit, second, word)
        await first.close()
        await second.close()

    @check(caps.CONSOLE_SERIAL)
    async def test_ends_with_the_guest(self, kit: Kit) -> None:
        """When the guest stops, a reader sees the end."""
        subject = await kit.in_state(GuestState.RUNNING)
        stream = await kit.facet("serial_console").open_console(subject.uuid)
        await kit.session.stop_guest(subject.uuid, kit.context())
        async with asyncio.timeout(kit.provision.event_timeout_s):
            while await stream.read():
                pass
        await stream.close()

    @check(caps.CONSOLE_SERIAL)
    async def test_guest_without(self, kit: Kit) -> None:
        """A guest that has no serial console refuses."""
        subject = kit.subject()
        guest = dataclasses.replace(subject.resolved, serial_console=False)
        await kit.session.define_guest(guest, kit.context())
        await kit.session.start_guest(guest.uuid, kit.context())
        await kit.error(kit.facet("serial_console").open_console(guest.uuid), CAPABILITY_UNSUPPORTED)


async def _type_until_echoed(kit: Kit, stream: ConsoleStream, word: bytes) -> None:
    """Type a word again and again: a guest that still boots does not echo."""
    seen = bytearray()

    async def read() -> None:
        while data := await stream.read():
            seen.extend(data)

    reader = asyncio.create_task(read())

    async def echoed() -> bool:
        assert not reader.done(), f"the console closed; it printed {bytes(seen[-200:])!r}"
        if word not in seen:
            await stream.write(b"\n" + word + b"\n")
            await asyncio.sleep(0.2)
        return word in seen

    try:
        await kit.eventually(echoed, lambda: f"no echo in {bytes(seen[-200:])!r}", kit.bootable().boot_timeout_s)
    finally:
        reader.cancel()
        await asyncio.gather(reader, return_exceptions=True)


class TestScreenshot:
    """A picture of the display."""

    @check(caps.SCREENSHOT)
    async def test_picture(self, kit: Kit) -> None:
        """It is a PNG with a size."""
        subject = kit.subject()
        guest = dataclasses.replace(subject.resolved, graphics=GraphicsSpec())
        await kit.session.define_guest(guest, kit.context())
        await kit.session.start_guest(guest.uuid, kit.context())
        picture = await kit.facet("screenshot").screenshot(guest.uuid)
        assert picture.mime_type == "image/png"
        assert picture.data.startswith(b"\x89PNG\r\n\x1a\n"), "not a PNG"
        width, height = struct.unpack(">II", picture.data[16:24])
        assert width > 0
        assert height > 0
        assert picture.data.rstrip().endswith(b"IEND\xaeB`\x82"), "the PNG is cut"


class TestAgent:
    """The guest agent."""

    @check(caps.AGENT_EXEC)
    async def test_commands(self, kit: Kit) -> None:
        """Output, input and exit codes arrive."""
        subject = await with_agent(kit)
        assert (await run(kit, subject.uuid, AgentCommand("/bin/echo", ("hello", "guest")))).stdout == b"hello guest\n"
        assert (await run(kit, subject.uuid, AgentCommand("/bin/cat", input_data=b"\0in\xff"))).stdout == b"\0in\xff"
        failed = await kit.facet("agent").run_command(subject.uuid, AgentCommand("/bin/false"), kit.context())
        assert (failed.exit_code, failed.signal) == (1, None)
        missing = await kit.facet("agent").run_command(
            subject.uuid, AgentCommand("/bin/cat", ("/no/such/file",)), kit.context()
        )
        assert missing.exit_code
        assert missing.stderr

    @check(caps.AGENT_EXEC)
    async def test_limits(self, kit: Kit) -> None:
        """A command that does not exist, one that takes too long, and one that is cancelled."""
        subject = await with_agent(kit)
        agent = kit.facet("agent")
        await kit.error(
            agent.run_command(subject.uuid, AgentCommand("/bin/no-such-program"), kit.context()), FIELD_INVALID
        )
        slow = AgentCommand("/bin/sleep", ("20",), timeout_s=1.0)
        await kit.error(agent.run_command(subject.uuid, slow, kit.context()), DEADLINE_EXCEEDED)
        context = kit.context()
        asyncio.get_running_loop().call_later(0.3, context.cancel)
        async with asyncio.timeout(10):
            await kit.error(
                agent.run_command(subject.uuid, dataclasses.replace(slow, timeout_s=30), context), OPERATION_CANCELLED
            )

    @check(caps.AGENT_EXEC)
    async def test_guest_without(self, kit: Kit) -> None:
        """A guest that has no agent channel says so: that is not "not ready"."""
        subject = kit.subject()
        guest = dataclasses.replace(subject.resolved, guest_agent=False)
        await kit.session.define_guest(guest, kit.context())
        await kit.session.start_guest(guest.uuid, kit.context())
        await kit.error(kit.facet("agent").ping_agent(guest.uuid), AGENT_NOT_CONFIGURED)

    @check(caps.ADDRESSES)
    async def test_addresses(self, kit: Kit) -> None:
        """A guest with an interface gets an address, from a source that is named; loopback is left out."""
        if not kit.bootable().addresses:
            raise NotRun("the provision's bootable guest takes no address")
        subject = await booted(kit)
        found: list[GuestAddress] = []

        async def there() -> bool:
            found[:] = await kit.facet("addresses").guest_addresses(subject.uuid)
            return bool(found)

        await kit.eventually(there, "the guest has no address", kit.bootable().boot_timeout_s)
        macs = {interface.mac for interface in subject.resolved.interfaces}
        for item in found:
            assert item.source in ("AGENT", "LEASE", "ARP")
            assert not item.address.startswith("127.")
            assert item.address != "::1"
            assert 0 <= item.prefix_length <= 128
        assert {item.mac for item in found} & macs, "no address belongs to an interface of the guest"


class TestPower:
    """Reboot and shutdown, with a system that hears them; the last ends the guest that checks share."""

    @check(caps.RESET)
    async def test_reset(self, kit: Kit) -> None:
        """The guest boots anew: it stays running, and its system comes up again."""
        await _boots_again(kit, reset)

    @check(caps.REBOOT)
    async def test_reboot(self, kit: Kit) -> None:
        """The guest's system goes down and comes up again."""
        if not kit.bootable().obeys_shutdown:
            raise NotRun("the provision's bootable guest does not obey its power button")
        await _boots_again(kit, reboot)

    @check(caps.SHUTDOWN)
    async def test_shutdown(self, kit: Kit) -> None:
        """The guest shuts down; a press that comes too early is lost, so it is pressed again."""
        if not kit.bootable().obeys_shutdown:
            raise NotRun("the provision's bootable guest does not obey its power button")
        subject = await booted(kit)
        await shut_down(kit, subject.uuid)


async def _boots_again(kit: Kit, deed: Callable[[Kit, UUID], Awaitable[None]]) -> None:
    kit.need(caps.CONSOLE_SERIAL)
    subject = await booted(kit)
    stream = await kit.facet("serial_console").open_console(subject.uuid)
    try:
        # What it printed at its first boot must not be taken for the second.
        await _type_until_echoed(kit, stream, uuid4().hex[:12].encode())
        await deed(kit, subject.uuid)
        stream = await _ready_again(kit, subject.uuid, stream)
    finally:
        await stream.close()
    assert await kit.state(subject.uuid) == GuestState.RUNNING


async def _ready_again(kit: Kit, uuid: UUID, stream: ConsoleStream) -> ConsoleStream:
    """Read to the ready line; where a reboot ends the console (a new machine has a new one), open it again."""
    ready, seen = kit.bootable().ready_line.encode(), b""
    try:
        async with asyncio.timeout(kit.bootable().boot_timeout_s):
            while ready not in seen:
                if data := await stream.read():
                    seen += data
                    continue
                await stream.close()
                await kit.reaches(uuid, GuestState.RUNNING)
                try:
                    stream = await kit.facet("serial_console").open_console(uuid)
                except VirtdError as error:
                    assert error.reason is INVALID_STATE, f"{error!r} while the guest reboots"
                    await asyncio.sleep(0.2)
    except TimeoutError:
        raise AssertionError(f"{ready!r} did not come again; the console printed {seen[-300:]!r}") from None
    return stream


async def frozen_while_paused(kit: Kit, subject: Subject) -> None:
    """A paused guest does not answer, and answers when it is resumed."""
    await kit.facet("pause").pause_guest(subject.uuid, kit.context())
    await kit.reaches(subject.uuid, GuestState.PAUSED)
    await kit.facet("pause").resume_guest(subject.uuid, kit.context())
    await answers_again(kit, subject.uuid)


class TestMemoryIsKept:
    """Pause and suspend keep what is in the guest's memory."""

    @check(caps.PAUSE)
    async def test_pause(self, kit: Kit) -> None:
        """Pause, resume: the guest goes on."""
        subject = await kit.in_state(GuestState.RUNNING)
        for _ in range(2):
            await kit.facet("pause").pause_guest(subject.uuid, kit.context())
            assert await kit.state(subject.uuid) == GuestState.PAUSED
        for _ in range(2):
            await kit.facet("pause").resume_guest(subject.uuid, kit.context())
            assert await kit.state(subject.uuid) == GuestState.RUNNING

    @check(caps.PAUSE, proof=False)
    async def test_pause_with_content(self, kit: Kit) -> None:
        """What was in memory is there after a pause."""
        subject = await inside(kit)
        await ask(kit, subject.uuid, kit.bootable().write_memory("before"))
        await frozen_while_paused(kit, subject)
        assert (await ask(kit, subject.uuid, kit.bootable().read_memory)).stdout == b"before"

    @check(caps.SUSPEND)
    async def test_suspend(self, kit: Kit) -> None:
        """Suspend to disk, start: the guest runs; discarding makes it an ordinary stopped guest."""
        subject = await kit.new_guest(running=True)
        await kit.facet("suspend").suspend_guest(subject.uuid, kit.context())
        assert await kit.state(subject.uuid) == GuestState.SUSPENDED
        assert (await kit.session.get_guest(subject.uuid)).has_saved_state
        await kit.session.start_guest(subject.uuid, kit.context())
        assert await kit.state(subject.uuid) == GuestState.RUNNING
        assert not (await kit.session.get_guest(subject.uuid)).has_saved_state
        await kit.facet("suspend").suspend_guest(subject.uuid, kit.context())
        for _ in range(2):
            await kit.facet("suspend").discard_saved_state(subject.uuid, kit.context())
            assert await kit.state(subject.uuid) == GuestState.STOPPED
        assert not (await kit.session.get_guest(subject.uuid)).has_saved_state

    @check(caps.SUSPEND)
    async def test_suspend_with_content(self, kit: Kit) -> None:
        """What was in memory is there after a suspend."""
        subject = await inside(kit)
        await ask(kit, subject.uuid, kit.bootable().write_memory("before"))
        await kit.facet("suspend").suspend_guest(subject.uuid, kit.context())
        await kit.session.start_guest(subject.uuid, kit.context())
        await answers_again(kit, subject.uuid)
        assert (await ask(kit, subject.uuid, kit.bootable().read_memory)).stdout == b"before"
