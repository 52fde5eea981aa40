"""Consoles of the core on the fake hypervisor: sharing, the right to write, the log, tickets."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.support.daemons import Lab, call, running_lab, short_directory
from virtd.backend.capabilities import CONSOLE_GRAPHICAL
from virtd.errors import (
    FailedPreconditionError,
    InvalidArgumentError,
    PermissionDeniedError,
    ResourceExhaustedError,
    VirtdError,
)
from virtd.model.guest import GraphicsSpec
from virtd.service.console_hub import (
    JUMP,
    RING_BYTES,
    ConsoleChunk,
    ConsoleClient,
    ConsoleHub,
    ConsoleNotice,
    attach,
)
from virtd.service.console_log import ConsoleLog
from virtd.service.graphics import TICKETS_MAX


@pytest.fixture
async def lab() -> AsyncIterator[Lab]:
    with short_directory() as place:
        async with running_lab(place) as made:
            yield made


async def test_a_console_is_shared_and_remembers(lab: Lab) -> None:
    await lab.created("a", start=True)
    one = await lab.services.consoles.attach(call(), lab.name("a"), read_only=False, offset=0)
    two = await lab.services.consoles.attach(call(), lab.name("a"), read_only=True, offset=0)
    await one.write(b"hello\n")
    for client in (one, two):
        found = b""
        while b"hello" not in found:
            chunk = await asyncio.wait_for(client.read(), 5)
            if isinstance(chunk, ConsoleChunk):
                found += chunk.data
        assert b"fake: ready" in found
    with pytest.raises(InvalidArgumentError):
        await two.write(b"x")
    part = await lab.services.consoles.read_log(lab.name("a"), None, 0)
    assert part.next_offset == part.offset + len(part.data)
    assert not part.truncated
    await lab.done(await lab.services.guests.stop(call(), lab.name("a")))
    async with asyncio.timeout(5):
        while not isinstance(await one.read(), ConsoleNotice):
            pass
    with pytest.raises(FailedPreconditionError):
        await one.write(b"x")
    await lab.done(await lab.services.guests.start(call(), lab.name("a")))
    async with asyncio.timeout(5):
        while b"fake: ready" not in getattr(await one.read(), "data", b""):
            pass
    waiting = asyncio.create_task(two.read())
    await asyncio.sleep(0)
    await two.close()
    async with asyncio.timeout(5):
        while await waiting is not None:
            waiting = asyncio.create_task(two.read())


async def test_no_byte_waits_for_the_next_one() -> None:
    """What is printed between a reader's look and its wait is not left lying."""
    hub = ConsoleHub()
    client = await attach(hub, caller="me", read_only=True, offset=None)
    for number in range(50):
        reading = asyncio.create_task(client.read())
        for _ in range(number % 5):
            await asyncio.sleep(0)
        hub.append(b"x")
        chunk = await asyncio.wait_for(reading, 1)
        assert chunk == ConsoleChunk(number, b"x")


async def test_a_reader_that_is_too_slow_is_told_by_the_offset() -> None:
    hub = ConsoleHub()
    client = await attach(hub, caller="me", read_only=True, offset=None)
    hub.append(b"a" * RING_BYTES)
    hub.append(b"b" * 10)
    chunk = await client.read()
    assert isinstance(chunk, ConsoleChunk)
    assert chunk.offset == 10
    late = await attach(hub, caller="me", read_only=True, offset=3)
    assert late.truncated
    assert late.offset == 10


# ---------------------------------------------------------------------------------- right to write


class _Line:
    """A serial line that keeps what was sent."""

    def __init__(self) -> None:
        self.sent = b""

    async def read(self) -> bytes:
        return b""

    async def write(self, data: bytes) -> None:
        self.sent += data

    async def close(self) -> None:
        return


async def _notices(client: ConsoleClient) -> list[tuple[str, str]]:
    found = []
    while True:
        try:
            said = await asyncio.wait_for(client.read(), 0.05)
        except TimeoutError:
            return found
        if isinstance(said, ConsoleNotice):
            found.append((said.kind, said.caller))


async def test_one_client_writes_and_the_others_are_told_why_they_do_not() -> None:
    hub = ConsoleHub()
    hub.stream = line = _Line()
    one = await attach(hub, caller="one", read_only=False, offset=None)
    two = await attach(hub, caller="two", read_only=False, offset=None)
    await one.write(b"a")
    await two.write(b"b")
    one.take()
    assert await _notices(one) == [("TAKEN", "one")]
    for _ in range(3):
        await two.write(b"lost")
    assert await _notices(two) == [("TAKEN", "one"), ("DROPPED", "one")]
    assert line.sent == b"ab"
    two.take()
    await one.write(b"lost")
    await two.write(b"c")
    assert await _notices(one) == [("TAKEN", "two"), ("DROPPED", "two")]
    one.release()  # it is not its own to give
    assert hub.writer is two
    late = await attach(hub, caller="late", read_only=True, offset=None)
    assert late.writer == "two"
    with pytest.raises(InvalidArgumentError):
        late.take()
    await two.close()
    await one.write(b"d")
    assert await _notices(one) == [("RELEASED", "two")]
    assert line.sent == b"abcd"
    assert hub.clients == {one, late}


# ---------------------------------------------------------------------------------------- the log


async def test_the_log_reaches_behind_the_ring_and_over_a_restart(tmp_path: Path) -> None:
    hub = ConsoleHub(ConsoleLog(tmp_path / "g", 4 * RING_BYTES))
    data = os.urandom(2 * RING_BYTES)
    for begin in range(0, len(data), 10_000):
        hub.append(data[begin : begin + 10_000])
    assert (await hub.read(5, 100)) == (5, data[5:105])
    offset, found = 0, b""
    while offset < hub.end:
        begin, part = await hub.read(offset)
        assert begin == offset
        found += part
        offset += len(part)
    assert found == data
    await hub.close()
    again = ConsoleHub(ConsoleLog(tmp_path / "g", 4 * RING_BYTES))
    assert again.end == JUMP  # no offset is given out twice
    assert await again.read(len(data) - 4, 100) == (len(data) - 4, data[-4:])
    assert await again.tail(10) == (len(data) - 10, data[-10:])
    client = await attach(again, caller="me", read_only=True, offset=len(data))
    assert (client.offset, client.truncated) == (JUMP, True)
    again.append(b"new")
    assert await again.tail(10) == (JUMP, b"new")
    assert await again.read(len(data), 10) == (JUMP, b"new")
    follower = await attach(again, caller="me", read_only=True, offset=len(data) - 2)
    assert [await follower.read(), await follower.read()] == [
        ConsoleChunk(len(data) - 2, data[-2:]),
        ConsoleChunk(JUMP, b"new"),
    ]
    await again.remove()
    assert not (tmp_path / "g").exists()


async def test_the_log_is_bounded_and_begins_later_then(tmp_path: Path) -> None:
    limit = 64 * 1024
    hub = ConsoleHub(ConsoleLog(tmp_path / "g", limit))
    for _ in range(100):
        hub.append(b"x" * 10_000)
        await hub.save()
    assert sum(path.stat().st_size for path in (tmp_path / "g").iterdir()) <= limit
    assert (tmp_path / "g").stat().st_mode & 0o777 == 0o700
    begin, data = await hub.read(0, 10)
    assert begin == hub.oldest > 0
    assert data == b"x" * 10


async def test_a_disk_that_takes_nothing_does_not_stop_the_console(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = ConsoleLog(tmp_path / "g", RING_BYTES)
    hub = ConsoleHub(log)
    hub.append(b"before")
    await hub.save()

    def full(_offset: int, _data: bytes) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(log, "append", full)
        hub.append(b"during")
        await hub.save()
    hub.append(b"after")
    await hub.save()
    assert (await hub.read(0, 100))[1] == b"beforeduringafter"  # the memory has it
    await hub.close()
    log = ConsoleLog(tmp_path / "g", RING_BYTES)
    assert log.read(0, 100) == (0, b"before")
    assert log.read(6, 100) == (12, b"after")  # the gap is told by the offset


# ----------------------------------------------------------------------------------------- tickets


async def test_a_ticket_is_good_once_for_its_guest_while_it_runs(lab: Lab) -> None:
    graphics, name = lab.services.consoles.graphics, lab.name("a")
    await lab.created("a", start=True, graphics=GraphicsSpec())
    ticket = await graphics.create(call(), name, 0)
    assert ticket.protocol == "vnc"
    guest, display = await graphics.open(ticket.ticket)
    assert guest == str(name)
    assert await display.read() == b"RFB 003.008\n"
    await display.close()
    with pytest.raises(PermissionDeniedError):
        await graphics.open(ticket.ticket)
    kept = (await graphics.create(call(), name, 60)).ticket
    await lab.done(await lab.services.guests.stop(call(), name))
    await lab.done(await lab.services.guests.start(call(), name))
    for bad in (ticket.ticket, kept, "", "x" * 5000):
        with pytest.raises(PermissionDeniedError):
            await graphics.open(bad)
    for ttl in (-1.0, 601.0, float("nan")):
        with pytest.raises(InvalidArgumentError):
            await graphics.create(call(), name, ttl)
    for _ in range(TICKETS_MAX):
        await graphics.create(call(), name, 60)
    with pytest.raises(ResourceExhaustedError):
        await graphics.create(call(), name, 60)


async def test_tickets_that_are_refused(lab: Lab) -> None:
    await lab.created("a", start=True, graphics=GraphicsSpec(vnc=False))
    with pytest.raises(VirtdError) as refused:
        await lab.services.consoles.graphics.create(call(), lab.name("a"), 0)
    assert refused.value.record.metadata["capability"] == CONSOLE_GRAPHICAL
    await lab.done(await lab.services.guests.stop(call(), lab.name("a")))
    with pytest.raises(FailedPreconditionError):
        await lab.services.consoles.graphics.create(call(), lab.name("a"), 0)
