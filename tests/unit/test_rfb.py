"""Pictures of VNC displays: of a good one of each version, and of those that stall, lie, or are something else."""

from __future__ import annotations

import asyncio
import struct
import zlib
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from tests.support.daemons import running_lab
from virtd.backend.emulate.rfb import picture_of
from virtd.errors import InternalError, UnavailableError, UnsupportedError
from virtd.model.guest import GraphicsSpec
from virtd.testing.clock import SystemClock

Play = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]
BGRX = 32 // 8


class Stream:
    """A connection to a server of the test's own."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader, self._writer = reader, writer

    async def read(self) -> bytes:
        return await self._reader.read(1000)

    async def write(self, data: bytes) -> None:
        self._writer.write(data)
        await self._writer.drain()

    async def close(self) -> None:
        self._writer.close()


async def picture(play: Play, limit_s: float = 5.0) -> bytes:
    """What a viewer makes of a server."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            await play(reader, writer)
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    async with server:
        reader, writer = await asyncio.open_connection(*server.sockets[0].getsockname())
        try:
            return await picture_of(Stream(reader, writer), limit_s)
        finally:
            writer.close()


def decoded(png: bytes) -> tuple[int, int, bytes]:
    """Width, height and pixels."""
    assert png.startswith(b"\x89PNG\r\n\x1a\n")
    width, height = struct.unpack(">II", png[16:24])
    start = png.index(b"IDAT")
    (length,) = struct.unpack(">I", png[start - 4 : start])
    rows = zlib.decompress(png[start + 4 : start + 4 + length])
    stride = 3 * width + 1
    return width, height, b"".join(rows[row * stride + 1 : (row + 1) * stride] for row in range(height))


def init(width: int, height: int, name: bytes = b"guest") -> bytes:
    return struct.pack(">HH", width, height) + bytes(16) + struct.pack(">I", len(name)) + name


def update(*rectangles: tuple[int, int, int, int, bytes], encoding: int = 0) -> bytes:
    parts = [struct.pack(">BxH", 0, len(rectangles))]
    for x, y, width, height, data in rectangles:
        parts.append(struct.pack(">HHHHi", x, y, width, height, encoding) + data)
    return b"".join(parts)


def pixel(red: int, green: int, blue: int) -> bytes:
    return bytes((blue, green, red, 0))


async def greet(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, version: int = 8) -> None:
    """Up to where the display says what it is."""
    writer.write(b"RFB 003.%03d\n" % version)
    said = await reader.readexactly(12)
    minor = 3 if version < 7 else min(version, 8)
    assert said == b"RFB 003.%03d\n" % minor
    if minor == 3:
        writer.write(struct.pack(">I", 1))
    else:
        writer.write(bytes((2, 2, 1)))
        assert await reader.readexactly(1) == b"\1"
    if minor == 8:
        writer.write(struct.pack(">I", 0))
    assert await reader.readexactly(1) == b"\1", "others are thrown out"


async def wish(reader: asyncio.StreamReader) -> tuple[int, ...]:
    """A request for a picture: whether only what has changed, and of what."""
    return struct.unpack(">BBHHHH", await reader.readexactly(10))


@pytest.mark.parametrize("version", [3, 5, 7, 8, 9, 889])
async def test_a_picture_in_pieces(version: int) -> None:
    """Of a server that talks in between, and answers in several parts."""

    async def play(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await greet(reader, writer, version)
        writer.write(init(2, 2))
        settings = await reader.readexactly(28)
        assert settings[0] == 0
        assert settings[20:] == struct.pack(">BxHi", 2, 1, 0)
        assert await wish(reader) == (3, 0, 0, 0, 2, 2)
        writer.write(b"\2")  # the bell
        writer.write(struct.pack(">BxHH", 1, 0, 1) + bytes(6))
        writer.write(struct.pack(">B3xI", 3, 4) + b"text")
        writer.write(update((0, 0, 2, 1, pixel(1, 2, 3) + pixel(4, 5, 6))))
        assert await wish(reader) == (3, 0, 0, 0, 2, 2)
        writer.write(update((0, 1, 1, 1, pixel(7, 8, 9)), (1, 1, 1, 1, pixel(10, 11, 12))))
        await reader.read()

    assert decoded(await picture(play)) == (2, 2, bytes(range(1, 13)))


def says(data: bytes) -> Play:
    """A server that says this after the greeting, and no more, but stays."""

    async def play(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await greet(reader, writer)
        writer.write(data)
        await reader.read()

    return play


def bare(data: bytes) -> Play:
    """A server that says this and no more, but stays."""

    async def play(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(data)
        await reader.read()

    return play


@pytest.mark.parametrize(
    ("play", "words"),
    [
        (bare(b"SSH-2.0-OpenSSH_9.2\r\n"), "does not speak RFB"),
        (bare(b"RFB 002.000\n"), "does not speak RFB"),
        (bare(b"RFB 003.008\n\0" + struct.pack(">I", 4) + b"busy"), "refuses: busy"),
        (bare(b"RFB 003.003\n" + struct.pack(">II", 0, 4) + b"busy"), "refuses: busy"),
        (bare(b"RFB 003.008\n\0" + struct.pack(">I", 2**31)), "says that its reason has 2147483648 bytes"),
        (bare(b"RFB 003.008\n\1\1" + struct.pack(">I", 1)), "refuses a viewer without authentication"),
        (says(init(0, 480)), "0 x 480 pixels"),
        (says(init(65535, 65535)), "65535 x 65535 pixels"),
        (says(struct.pack(">HH", 2, 2) + bytes(16) + struct.pack(">I", 2**32 - 1)), "its name has 4294967295 bytes"),
        (says(init(2, 2) + b"\x99"), "unknown type 153"),
        (says(init(2, 2) + struct.pack(">B3xI", 3, 2**30)), "clipboard"),
        (says(init(2, 2) + update((1, 1, 2, 1, bytes(8)))), "2 x 1 pixels at 1, 1, of 2 x 2"),
        (says(init(2, 2) + update((0, 0, 2, 2, b""), encoding=7)), "encoding 7"),
    ],
)
async def test_what_is_not_a_display(play: Play, words: str) -> None:
    with pytest.raises(InternalError, match=words):
        await picture(play)


async def test_a_password_is_named() -> None:
    with pytest.raises(UnsupportedError, match="asks for a password"):
        await picture(bare(b"RFB 003.008\n\1\2"))
    with pytest.raises(UnsupportedError, match="security of the types 19"):
        await picture(bare(b"RFB 003.008\n\1\x13"))


@pytest.mark.parametrize(
    "play",
    [
        bare(b""),
        bare(b"RFB 003"),
        bare(b"RFB 003.008\n"),
        says(b""),
        says(init(2, 2)),
        says(init(2, 2) + struct.pack(">BxH", 0, 1)),
        says(init(2, 2) + update((0, 0, 2, 1, bytes(8)))),
    ],
    ids=["silent", "half a version", "no security", "no size", "no picture", "no pixels", "half a picture"],
)
async def test_one_that_stalls_is_given_up(play: Play) -> None:
    clock = SystemClock()
    began = clock.monotonic()
    with pytest.raises(UnavailableError, match="no whole picture within"):
        await picture(play, limit_s=0.2)
    assert clock.monotonic() - began < 5


async def test_one_that_talks_for_ever_is_given_up() -> None:
    """It never says nothing, and never says it all."""

    async def play(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await greet(reader, writer)
        writer.write(init(2, 2))
        while True:
            writer.write(b"\2" * 100)
            await writer.drain()
            await asyncio.sleep(0.01)

    with pytest.raises(UnavailableError, match="no whole picture within"):
        await picture(play, limit_s=0.3)


async def test_one_that_goes_away() -> None:
    async def play(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await greet(reader, writer)
        writer.write(init(2, 2)[:7])

    with pytest.raises(UnavailableError, match="has closed"):
        await picture(play)


async def test_the_screenshot_of_a_guest(tmp_path: Path) -> None:
    """By the display of a fake host that takes no pictures itself."""
    async with running_lab(tmp_path, "emulate=guest.screenshot") as lab:
        guest = await lab.created("a", start=True, graphics=GraphicsSpec())
        shot = await lab.services.consoles.screenshot(lab.name("a"))
        assert shot.mime_type == "image/png"
        assert decoded(shot.data) == (64, 48, guest.uid.bytes[:3] * (64 * 48))
        stated = next(entry for entry in lab.link.capabilities if entry.id == "guest.screenshot")
        assert (stated.level.value, stated.reason) == (
            "EMULATED",
            "virtd reads the picture from the guest's VNC display",
        )
        await lab.created("b", start=True, graphics=GraphicsSpec(vnc=False))
        with pytest.raises(UnsupportedError, match=r"^guest\.screenshot .* the guest has no VNC display"):
            await lab.services.consoles.screenshot(lab.name("b"))
