"""Use cases of the guest agent on the fake hypervisor: streams, files, freezes that always end."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine
from typing import Any

import pytest

from tests.support.daemons import Lab, call, fresh_uri, running_lab, short_directory
from virtd.errors import (
    AGENT_DISABLED,
    AGENT_FILE_NOT_FOUND,
    AGENT_FILE_REFUSED,
    AGENT_FILE_TOO_LARGE,
    AGENT_NOT_CONFIGURED,
    AGENT_NOT_READY,
    AGENT_STUCK,
    CAPABILITY_UNSUPPORTED,
    DEADLINE_EXCEEDED,
    FIELD_INVALID,
    GUEST_FROZEN,
    INVALID_STATE,
    OPERATION_IN_PROGRESS,
    VirtdError,
)
from virtd.model.console import AgentChannel, AgentCommand, AgentExit, AgentFileRequest, AgentOutput
from virtd.model.guest import ConditionStatus, ConditionType
from virtd.service.agents import FilePart


@pytest.fixture
async def lab() -> AsyncIterator[Lab]:
    with short_directory() as place:
        async with running_lab(place, agent={"file_max_bytes": 100_000}) as made:
            await made.created("a", start=True)
            yield made


async def refused(work: Coroutine[Any, Any, object]) -> Any:
    with pytest.raises(VirtdError) as error:
        await work
    return error.value.reason


async def content(lab: Lab, path: str, offset: int = 0, max_bytes: int = 0) -> list[FilePart]:
    return [part async for part in lab.services.agents.read_file(lab.name("a"), path, offset, max_bytes)]


def frozen(lab: Lab) -> bool:
    found = {entry.type: entry.status for entry in lab.guest("a").status.conditions}
    return found.get(ConditionType.FILESYSTEMS_FROZEN) is ConditionStatus.TRUE


# ------------------------------------------------------------------------------------ commands


async def test_a_command_is_a_dialogue(lab: Lab) -> None:
    run = await lab.services.agents.start(lab.name("a"), AgentCommand("/bin/cat"), stdin=True)
    await run.write(b"one")
    assert await run.read() == AgentOutput(AgentChannel.STDOUT, b"one")
    assert await refused(run.write(b"x" * (256 * 1024 + 1))) is FIELD_INVALID
    await run.close_input()
    assert await run.read() == AgentExit(0, None)
    assert await run.read() == AgentExit(0, None)
    assert await refused(run.write(b"late")) is INVALID_STATE
    await run.close()
    late = await lab.services.agents.start(
        lab.name("a"), AgentCommand("/bin/sleep", ("9",), timeout_s=0.05), stdin=False
    )
    assert await refused(late.read()) is DEADLINE_EXCEEDED
    await late.close()


# --------------------------------------------------------------------------------------- files


async def test_files_are_read_in_parts_and_written_as_a_whole(lab: Lab) -> None:
    agents, data = lab.services.agents, bytes(range(256)) * 300
    writer = await agents.write_file(lab.name("a"), AgentFileRequest("/data/x"))
    assert writer.atomic
    await writer.write(data)
    assert await refused(anext(agents.read_file(lab.name("a"), "/data/x", 0, 0))) is AGENT_FILE_NOT_FOUND
    await writer.commit()
    await writer.close()
    parts = await content(lab, "/data/x")
    assert b"".join(part.data for part in parts) == data
    assert [part.size_bytes for part in parts] == [len(data)] + [None] * (len(parts) - 1)
    assert [part.data for part in await content(lab, "/data/x", 10, 5)] == [data[10:15]]
    assert [part.data for part in await content(lab, "/data/x", len(data) + 5)] == [b""]
    inside = await agents.write_file(lab.name("a"), AgentFileRequest("/data/x", offset=3))
    assert not inside.atomic
    await inside.write(b"!")
    await inside.commit()
    assert (await content(lab, "/data/x", 2, 3))[0].data == data[2:3] + b"!" + data[4:5]


async def test_files_that_are_refused(lab: Lab) -> None:
    agents, name = lab.services.agents, lab.name("a")
    lab.world.native.guests[lab.guest("a").uid].files.write("/dir/large", bytes(100_001))
    for path, offset, limit in (
        ("x", 0, 0),
        ("/a\0b", 0, 0),
        ("/" + "x" * 5000, 0, 0),
        ("/x", 2**63, 0),
        ("/x", 0, 100_001),
    ):
        assert await refused(content(lab, path, offset, limit)) is FIELD_INVALID
    assert await refused(content(lab, "/no")) is AGENT_FILE_NOT_FOUND
    assert await refused(content(lab, "/dir")) is AGENT_FILE_REFUSED
    assert await refused(content(lab, "/dir/large")) is AGENT_FILE_TOO_LARGE
    assert len(b"".join(part.data for part in await content(lab, "/dir/large", 1))) == 100_000
    for request in (AgentFileRequest("x"), AgentFileRequest("/x", mode=0o10000), AgentFileRequest("/x", offset=-1)):
        assert await refused(agents.write_file(name, request)) is FIELD_INVALID
    writer = await agents.write_file(name, AgentFileRequest("/dir/new"))
    await writer.write(bytes(100_000))
    assert await refused(writer.write(b"x")) is AGENT_FILE_TOO_LARGE
    await writer.close()
    assert await refused(content(lab, "/dir/new")) is AGENT_FILE_NOT_FOUND


# -------------------------------------------------------------------------------------- freeze


async def test_a_freeze_holds_and_ends_by_itself(lab: Lab) -> None:
    agents, name = lab.services.agents, lab.name("a")
    held = await agents.freeze(call(), name, (), 0.4)
    assert held.frozen_count == 1
    assert frozen(lab)
    assert await refused(agents.execute(call(), name, AgentCommand("/bin/true"))) is GUEST_FROZEN
    again = await agents.freeze(call(), name, (), 0.4)
    assert again.frozen_count == 0
    assert again.thaw_time > held.thaw_time
    await lab.until(lambda: not frozen(lab))
    assert not lab.world.native.guests[lab.guest("a").uid].frozen
    assert await agents.thaw(name) == 0


@pytest.mark.parametrize("after", [False, True])
async def test_an_answer_to_a_freeze_that_was_lost_leaves_nothing_frozen(lab: Lab, after: bool) -> None:
    lab.world.faults.fail("agent_call", error=RuntimeError("lost"), after=after)
    with pytest.raises(VirtdError):
        await lab.services.agents.freeze(call(), lab.name("a"), (), 60)
    uid = lab.guest("a").uid
    lab.world.native.guests[uid].frozen = True  # whatever it did
    await lab.until(lambda: not lab.world.native.guests[uid].frozen)


async def test_a_freeze_ends_also_in_the_next_run_of_the_daemon() -> None:
    uri = fresh_uri()
    with short_directory() as place:
        async with running_lab(place, uri=uri) as lab:
            await lab.created("a", start=True)
            uid = lab.guest("a").uid
            await lab.services.agents.freeze(call(), lab.name("a"), (), 1.0)
            world = lab.world
        assert world.native.guests[uid].frozen
        async with running_lab(place, uri=uri) as lab:
            await lab.until(lambda: not world.native.guests[uid].frozen)
            await lab.until(lambda: not frozen(lab))
            rows = await lab.core.database.read(lambda db: db.execute("SELECT COUNT(*) FROM freezes").fetchone())
            assert rows == (0,)


async def test_a_thaw_is_tried_until_the_agent_answers(lab: Lab) -> None:
    guest = lab.world.native.guests[lab.guest("a").uid]
    await lab.services.agents.freeze(call(), lab.name("a"), (), 0.05)
    guest.agent = "stuck"
    await asyncio.sleep(0.3)
    assert guest.frozen
    guest.agent = "ready"
    await lab.until(lambda: not guest.frozen)


async def test_a_stopped_guest_has_nothing_frozen(lab: Lab) -> None:
    await lab.services.agents.freeze(call(), lab.name("a"), (), 0.2)
    await lab.done(await lab.services.guests.stop(call(), lab.name("a")))
    assert not frozen(lab)

    async def rows() -> int:
        found = await lab.core.database.read(lambda db: db.execute("SELECT COUNT(*) FROM freezes").fetchone())
        return int(found[0])

    async with asyncio.timeout(10):
        while await rows():
            await asyncio.sleep(0.05)


async def test_held_thaws_whatever_happens_in_it(lab: Lab) -> None:
    from virtd.service.detached import DetachedContext

    guest = lab.world.native.guests[lab.guest("a").uid]

    async def fail() -> None:
        async with lab.core.freezes.held("lab", guest.uuid, DetachedContext(10), caller="me", timeout_s=60):
            assert guest.frozen
            raise RuntimeError

    with pytest.raises(RuntimeError):
        await fail()
    assert not guest.frozen


async def test_freezes_that_are_refused(lab: Lab) -> None:
    agents, name = lab.services.agents, lab.name("a")
    for mountpoints, timeout_s in (((), 601.0), ((), -1.0), ((), float("nan")), (("x",), 5.0), (("/x",) * 65, 5.0)):
        assert await refused(agents.freeze(call(), name, mountpoints, timeout_s)) is FIELD_INVALID
    hang = lab.world.faults.hang("guest_pause")
    pausing = await lab.services.guests.pause(call(), name)
    await lab.until(lambda: hang.entered > 0)
    assert await refused(agents.freeze(call(), name, (), 5)) is OPERATION_IN_PROGRESS
    hang.release()
    await lab.done(pausing)
    assert await refused(agents.freeze(call(), name, (), 5)) is INVALID_STATE
    assert not lab.world.native.guests[lab.guest("a").uid].frozen


# ---------------------------------------------------------------------------------- told apart


@pytest.mark.parametrize(
    ("state", "reason"), [("absent", AGENT_NOT_READY), ("stuck", AGENT_STUCK), ("disabled", AGENT_DISABLED)]
)
async def test_agents_that_do_not_answer_are_told_apart(lab: Lab, state: str, reason: object) -> None:
    agents, name = lab.services.agents, lab.name("a")
    lab.world.native.guests[lab.guest("a").uid].agent = state
    calls: tuple[Callable[[], Coroutine[Any, Any, object]], ...] = (
        lambda: agents.execute(call(), name, AgentCommand("/bin/true")),
        lambda: agents.start(name, AgentCommand("/bin/true"), stdin=False),
        lambda: content(lab, "/x"),
        lambda: agents.freeze(call(), name, (), 5),
        lambda: agents.os_info(name),
    )
    for make in calls:
        assert await refused(make()) is reason


async def test_a_guest_without_a_channel(lab: Lab) -> None:
    await lab.created("b", start=True, guest_agent=False)
    assert await refused(lab.services.agents.os_info(lab.name("b"))) is AGENT_NOT_CONFIGURED


@pytest.mark.parametrize("missing", ["stream", "files", "freeze", "info"])
async def test_a_host_without_an_ability_says_so_first(missing: str) -> None:
    with short_directory() as place:
        async with running_lab(place, f"without=guest.agent.{missing}") as lab:
            await lab.created("a", start=True)
            agents, name = lab.services.agents, lab.name("a")
            calls: dict[str, Callable[[], Coroutine[Any, Any, object]]] = {
                "stream": lambda: agents.start(name, AgentCommand("/bin/true"), stdin=False),
                "files": lambda: content(lab, "/x"),
                "freeze": lambda: agents.freeze(call(), name, (), 5),
                "info": lambda: agents.os_info(name),
            }
            lab.world.faults.counts.clear()
            assert await refused(calls[missing]()) is CAPABILITY_UNSUPPORTED
