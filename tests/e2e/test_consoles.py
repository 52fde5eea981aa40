"""Consoles and displays of real guests, through the public API."""

from __future__ import annotations

import contextlib
import struct
import time
from collections.abc import Callable, Iterator

import pytest
from virtd_client import Client, errors
from virtd_client.types import ConsoleNotice

from tests.e2e.conftest import Virtd
from virtd.v1.guest_pb2 import GraphicsSpec

pytestmark = [pytest.mark.qemu, pytest.mark.timeout(300)]

NAME = "hosts/kvm/guests/seen"
RFB = b"RFB 003.008\n"


@pytest.fixture(scope="module")
def client(virtd_process: Virtd) -> Client:
    return virtd_process.client()


@pytest.fixture(scope="module")
def guest(virtd_process: Virtd, client: Client) -> Iterator[str]:
    """A booted guest with a serial console and a display."""
    spec = virtd_process.spec(disk=False)
    spec.spec.graphics.CopyFrom(GraphicsSpec(vnc=True))
    client.guests.create("hosts/kvm", "seen", spec, start=True).result(90)
    client.guests.wait(NAME, condition="agent-ready", timeout_s=120)
    yield NAME
    with contextlib.suppress(errors.NotFound):
        client.guests.delete(NAME, force=True).result(60)


def until(session: object, wanted: Callable[[object, bytes], bool], timeout_s: float = 30.0) -> bytes:
    """Read a console until something came: (item, all bytes so far) -> whether it did."""
    seen, deadline = b"", time.monotonic() + timeout_s
    for item in session:  # type: ignore[attr-defined]  # a console session
        seen += getattr(item, "data", b"")
        if wanted(item, seen):
            return seen
        assert time.monotonic() < deadline, seen
    raise AssertionError(f"the session ended after {seen!r}")


def says(text: bytes) -> Callable[[object, bytes], bool]:
    return lambda _item, seen: text in seen


def notice(kind: str) -> Callable[[object, bytes], bool]:
    return lambda item, _seen: isinstance(item, ConsoleNotice) and item.kind == kind


# -------------------------------------------------------------------------------------- serial


def test_the_right_to_write_is_taken_stolen_and_given_back(client: Client, guest: str) -> None:
    with client.console.attach(guest) as first, client.console.attach(guest, take=True) as second:
        until(first, notice("TAKEN"))
        first.write(b"echo not-$((6*7))\n")
        until(first, notice("DROPPED"))
        second.write(b"echo mine-$((6*7))\n")
        assert b"not-42" not in until(second, says(b"mine-42"))
        until(first, says(b"mine-42"))  # all read
        with client.console.attach(guest) as third:
            assert third.writer.startswith("unix:uid=")
        first.take()  # stolen back
        until(second, notice("TAKEN"))
        second.write(b"echo late-$((6*7))\n")
        until(second, notice("DROPPED"))
        first.write(b"echo back-$((6*7))\n")
        assert b"late-42" not in until(second, says(b"back-42"))
        first.close()  # detached: the right is free again
        until(second, notice("RELEASED"))
        second.write(b"echo free-$((6*7))\n")
        until(second, says(b"free-42"))
    with pytest.raises(errors.InvalidArgument):
        client.console.attach(guest, read_only=True, take=True).open()
    with client.console.attach(guest, read_only=True) as reader:
        reader.take()
        with pytest.raises(errors.InvalidArgument):
            until(reader, says(b"never"))


def test_the_log_reaches_behind_the_memory_and_over_a_kill_of_virtd(
    client: Client, guest: str, virtd_process: Virtd
) -> None:
    before = client.console.read_log(guest)
    with client.console.attach(guest) as session:
        # More than the 256 KiB that are kept in memory.
        session.write(
            b"i=0; while [ $i -lt 8000 ]; do echo line-$i-abcdefghijklmnopqrstuvwxyzabcdefg; i=$((i+1)); done\n"
        )
        until(session, says(b"line-7999-"), 60)
    time.sleep(1)  # the prompt
    end = client.console.read_log(guest).next_offset
    assert client.console.read_log(guest).start_offset < end - 300_000
    numbers = _numbers(_read_from(client, guest, before.next_offset, end))
    assert numbers == list(range(8000))

    virtd_process.kill()
    virtd_process.start()
    client.guests.wait(guest, state="running", timeout_s=30)
    assert _numbers(_read_from(client, guest, before.next_offset, end)) == list(range(8000))
    # What was printed while virtd was away is missing, and the offsets do not hide it.
    with client.console.attach(guest, offset=end) as session:
        assert session.truncated
        assert session.offset > end
        session.write(b"echo after-$((6*7))\n")
        until(session, says(b"after-42"))
    assert b"after-42" in client.console.read_log(guest).data
    # Whoever follows without the right to write begins where he was.
    seen = b""
    for item in client.console.follow_log(guest, offset=end - 1000):
        seen += getattr(item, "data", b"")
        if b"after-42" in seen:
            break
    assert b"line-7999-" in seen


def _read_from(client: Client, guest: str, offset: int, end: int) -> bytes:
    data = b""
    while offset < end:
        part = client.console.read_log(guest, offset=offset, max_bytes=100_000)
        assert not part.truncated
        assert part.data
        data += part.data
        offset = part.next_offset
    return data


def _numbers(data: bytes) -> list[int]:
    lines = data.replace(b"\r", b"").split(b"\n")
    return [int(line.split(b"-")[1]) for line in lines if line.startswith(b"line-") and line[5:6].isdigit()]


@pytest.mark.parametrize("arguments", [{"max_bytes": 2**21}])
def test_reads_of_the_log_that_are_refused(client: Client, guest: str, arguments: dict[str, int]) -> None:
    with pytest.raises(errors.InvalidArgument) as refused:
        client.console.read_log(guest, **arguments)
    assert refused.value.reason == "FIELD_INVALID"


# ----------------------------------------------------------------------------------- graphical


class _Viewer:
    """As much of a VNC viewer as shakes hands."""

    def __init__(self, session: object) -> None:
        self.session, self._rest = session, b""

    def read(self, count: int) -> bytes:
        while len(self._rest) < count:
            data = self.session.read()  # type: ignore[attr-defined]  # a graphics session
            assert data, "the display has closed"
            self._rest += data
        data, self._rest = self._rest[:count], self._rest[count:]
        return data

    def handshake(self) -> tuple[int, int, str]:
        """Width, height and name of the display."""
        write = self.session.write  # type: ignore[attr-defined]  # as above
        assert self.read(12) == RFB
        write(RFB)
        kinds = self.read(self.read(1)[0])
        assert 1 in kinds, f"a password is asked for: {kinds!r}"
        write(b"\x01")
        assert self.read(4) == bytes(4)
        write(b"\x01")  # shared
        width, height = struct.unpack(">HH", self.read(4))
        self.read(16)
        name = self.read(struct.unpack(">I", self.read(4))[0]).decode()
        return width, height, name

    def update(self, width: int, height: int) -> int:
        """Ask for the whole picture; how many of its pixels came, uncompressed."""
        write = self.session.write  # type: ignore[attr-defined]  # as above
        write(struct.pack(">BxHi", 2, 1, 0))  # nothing but raw pixels
        for _ in range(50):
            write(struct.pack(">BBHHHH", 3, 0, 0, 0, width, height))
            assert self.read(1) == b"\0"
            pixels = 0
            for _rectangle in range(struct.unpack(">xH", self.read(3))[0]):
                _x, _y, wide, high, encoding = struct.unpack(">HHHHi", self.read(12))
                assert encoding == 0
                self.read(wide * high * 4)
                pixels += wide * high
            if pixels:
                return pixels
            time.sleep(0.1)
        return 0


def test_a_ticket_opens_the_display_once(client: Client, guest: str) -> None:
    ticket = client.console.ticket(guest)
    assert (ticket.protocol, ticket.method) == ("vnc", "/virtd.v1.ConsoleService/AttachGraphics")
    with client.console.graphics(ticket.ticket) as session:
        viewer = _Viewer(session)
        width, height, name = viewer.handshake()
        assert width >= 320
        assert height >= 200
        assert "seen" in name
        assert viewer.update(width, height) >= 1000
        _refused(client, ticket.ticket)  # it was used
        with client.console.graphics(client.console.ticket(guest).ticket) as second:  # another viewer beside it
            assert _Viewer(second).handshake()[:2] == (width, height)
        assert viewer.update(width, height) >= 1000


def _refused(client: Client, ticket: str) -> None:
    with pytest.raises(errors.PermissionDenied) as refused:
        client.console.graphics(ticket)
    assert refused.value.reason == "CONSOLE_TICKET_INVALID"
    assert ticket not in str(refused.value)


def test_tickets_expire_and_are_not_guessed(client: Client, guest: str) -> None:
    short = client.console.ticket(guest, ttl_s=0.5).ticket
    time.sleep(0.7)
    _refused(client, short)
    _refused(client, "x" * 43)
    for ttl in (-1.0, 601.0):
        with pytest.raises(errors.InvalidArgument) as refused:
            client.console.ticket(guest, ttl_s=ttl)
        assert [violation.field for violation in refused.value.violations] == ["ttl_s"]
    tickets = {client.console.ticket(guest, ttl_s=3).ticket for _ in range(32)}
    assert len(tickets) == 32
    with pytest.raises(errors.ResourceExhausted) as many:
        client.console.ticket(guest)
    assert many.value.reason == "LIMIT_EXCEEDED"
    time.sleep(3)


def test_pictures_tickets_and_viewers_over_the_life_of_a_guest(client: Client, virtd_process: Virtd) -> None:
    spec = virtd_process.spec(boots=False, disk=False)
    spec.spec.graphics.CopyFrom(GraphicsSpec(vnc=False))
    client.guests.create("hosts/kvm", "blind", spec, start=True).result(60)
    with pytest.raises(errors.Unsupported) as none:
        client.console.ticket("hosts/kvm/guests/blind")
    assert none.value.reason == "CAPABILITY_UNSUPPORTED"
    client.guests.delete("hosts/kvm/guests/blind", force=True).result(60)

    spec.spec.graphics.CopyFrom(GraphicsSpec(vnc=True))
    name = client.guests.create("hosts/kvm", "shown", spec, start=True).result(60).name
    assert client.console.screenshot(name).data.startswith(b"\x89PNG")
    client.guests.pause(name).result(30)
    paused = client.console.screenshot(name)
    assert (paused.mime_type, paused.data[:4]) == ("image/png", b"\x89PNG")
    kept = client.console.ticket(name, ttl_s=300).ticket
    with client.console.graphics(client.console.ticket(name).ticket) as session:
        _Viewer(session).handshake()  # a paused guest can be looked at
        client.guests.stop(name).result(60)
        deadline = time.monotonic() + 20
        while session.read():
            assert time.monotonic() < deadline, "the viewer is not told that the guest has stopped"
    for call in (client.console.screenshot, client.console.ticket):
        with pytest.raises(errors.FailedPrecondition) as stopped:
            call(name)
        assert stopped.value.reason == "INVALID_STATE"
    client.guests.start(name).result(60)
    _refused(client, kept)  # it died with the guest that it was for
    client.guests.delete(name, force=True).result(60)


def test_the_log_goes_with_its_guest(client: Client, guest: str, virtd_process: Virtd) -> None:
    """The last of this module's: it deletes the guest that they share."""
    directory = virtd_process.directory / "consoles" / client.guests.get(guest).uid
    assert any(directory.glob("*.log"))
    assert directory.stat().st_mode & 0o077 == 0
    client.guests.delete(guest, force=True).result(60)
    deadline = time.monotonic() + 10
    while directory.exists():
        assert time.monotonic() < deadline
        time.sleep(0.1)
