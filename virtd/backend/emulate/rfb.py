"""One picture of a VNC display: just enough of an RFB client, 3.3 to 3.8 (RFC 6143), raw pixels only.

What comes from a display is believed by nobody: sizes are limited before memory is taken for them, and all of it has
one limit of time.
"""

from __future__ import annotations

import asyncio
import re
import struct
from dataclasses import dataclass
from typing import Final

from virtd.backend.api import ConsoleStream
from virtd.backend.capabilities import SCREENSHOT
from virtd.backend.pictures import png_of
from virtd.errors import BACKEND_ERROR, HOST_UNREACHABLE, InternalError, UnavailableError, VirtdError, unsupported

LIMIT_S: Final = 10.0
PIXELS_MAX: Final = 64 * 2**20
_TEXT_MAX: Final = 64 * 1024
_CUT_TEXT_MAX: Final = 16 * 2**20
_RECTANGLES_MAX: Final = 65_535
_LAST_RECTANGLE: Final = 0xFFFF
_VERSION: Final = re.compile(rb"RFB (\d{3})\.(\d{3})\n")
_NONE: Final = 1
_VNC_PASSWORD: Final = 2
_V3_7, _V3_8 = 7, 8
# 32 bits a pixel, 24 of them used, little endian: blue, green, red, nothing.
_FORMAT: Final = struct.pack(">BBBBHHHBBB3x", 32, 24, 0, 1, 255, 255, 255, 16, 8, 0)
_BYTES: Final = 4


class Reader:
    """Exactly so many bytes of a stream."""

    def __init__(self, stream: ConsoleStream) -> None:
        self._stream: Final = stream
        self._data = bytearray()

    async def take(self, length: int) -> bytes:
        """The next bytes.

        :raises UnavailableError: HOST_UNREACHABLE, the display has closed.
        """
        while len(self._data) < length:
            more = await self._stream.read()
            if not more:
                raise UnavailableError(HOST_UNREACHABLE, "the display has closed in the middle of a picture")
            self._data += more
        taken = bytes(self._data[:length])
        del self._data[:length]
        return taken

    async def numbers(self, layout: str) -> tuple[int, ...]:
        """The next bytes as numbers, in network order."""
        return struct.unpack(f">{layout}", await self.take(struct.calcsize(f">{layout}")))


@dataclass(slots=True)
class Picture:
    """What is known of it; ``missing`` pixels are still to come."""

    width: int
    height: int
    pixels: bytearray
    seen: bytearray

    @classmethod
    def blank(cls, width: int, height: int) -> Picture:
        """Nothing yet."""
        return cls(width, height, bytearray(3 * width * height), bytearray(width * height))

    @property
    def complete(self) -> bool:
        """Whether every pixel has come."""
        return not self.seen.count(0)

    def put(self, x: int, y: int, width: int, data: bytes) -> None:
        """One row of a rectangle."""
        start = y * self.width + x
        self.seen[start : start + width] = b"\1" * width
        row = bytearray(3 * width)
        row[0::3], row[1::3], row[2::3] = data[2::_BYTES], data[1::_BYTES], data[0::_BYTES]
        self.pixels[3 * start : 3 * (start + width)] = row


async def picture_of(stream: ConsoleStream, limit_s: float = LIMIT_S) -> bytes:
    """The display's whole content as PNG.  The stream is left open, and is good for nothing else.

    :raises UnavailableError: HOST_UNREACHABLE, it does not answer in time, or has closed.
    :raises UnsupportedError: it asks for a password.
    :raises InternalError: BACKEND_ERROR, what it says is not RFB.
    """
    try:
        async with asyncio.timeout(limit_s):
            return await _read(stream)
    except TimeoutError:
        raise UnavailableError(
            HOST_UNREACHABLE, f"the guest's display gave no whole picture within {limit_s:g} s"
        ) from None


async def _read(stream: ConsoleStream) -> bytes:
    reader = Reader(stream)
    await _shake_hands(reader, stream)
    width, height = await reader.numbers("HH")
    await reader.take(16)  # its own pixel format
    await reader.take(await _length(reader, _TEXT_MAX, "name"))
    if not width or not height or width * height > PIXELS_MAX:
        raise _broken(f"says that it has {width} x {height} pixels")
    await stream.write(b"\0\0\0\0" + _FORMAT)
    await stream.write(struct.pack(">BxHi", 2, 1, 0))  # raw pixels only
    picture = Picture.blank(width, height)
    while not picture.complete:
        await stream.write(struct.pack(">BBHHHH", 3, 0, 0, 0, width, height))
        while not await _message(reader, picture):
            pass
    return await asyncio.to_thread(png_of, width, height, bytes(picture.pixels))


async def _shake_hands(reader: Reader, stream: ConsoleStream) -> None:
    """Version and security; afterwards the display says what it is."""
    said = _VERSION.fullmatch(await reader.take(12))
    if said is None or int(said[1]) < 3:  # noqa: PLR2004 - RFB began with 3.3
        raise _broken("does not speak RFB")
    minor = int(said[2]) if int(said[1]) == 3 else _V3_8  # noqa: PLR2004 - others must know the last of 3
    minor = _V3_8 if minor >= _V3_8 else _V3_7 if minor == _V3_7 else 3
    await stream.write(b"RFB 003.%03d\n" % minor)
    if minor < _V3_7:
        (kind,) = await reader.numbers("I")
        kinds = bytes((kind,)) if 0 < kind < 256 else b""  # noqa: PLR2004 - one byte
    else:
        (count,) = await reader.numbers("B")
        kinds = await reader.take(count)
    if not kinds:
        why = await reader.take(await _length(reader, _TEXT_MAX, "reason"))
        raise _broken(f"refuses: {why.decode(errors='replace')[:200]}")
    if _NONE not in kinds:
        what = "a password" if _VNC_PASSWORD in kinds else f"security of the types {', '.join(map(str, kinds))}"
        raise unsupported(SCREENSHOT, f"the guest's display asks for {what}, which virtd does not have")
    if minor >= _V3_7:
        await stream.write(bytes((_NONE,)))
    if minor >= _V3_8:
        (refused,) = await reader.numbers("I")
        if refused:
            raise _broken("refuses a viewer without authentication, which it had offered")
    await stream.write(b"\1")  # others stay connected


async def _message(reader: Reader, picture: Picture) -> bool:
    """Take one message; whether it was the answer to the request."""
    (kind,) = await reader.numbers("B")
    match kind:
        case 0:
            _, count = await reader.numbers("BH")
            for _ in range(count if count != _LAST_RECTANGLE else _RECTANGLES_MAX):
                await _rectangle(reader, picture)
            return True
        case 1:  # a palette, for other pixel formats
            _, _, count = await reader.numbers("BHH")
            await reader.take(6 * count)
        case 2:  # the bell
            pass
        case 3:  # what somebody has cut
            await reader.take(3)
            await reader.take(await _length(reader, _CUT_TEXT_MAX, "clipboard"))
        case _:
            raise _broken(f"sent a message of the unknown type {kind}")
    return False


async def _rectangle(reader: Reader, picture: Picture) -> None:
    x, y, width, height, encoding = await reader.numbers("HHHHi")
    if encoding != 0:
        raise _broken(f"sent pixels in the encoding {encoding}, which was not asked for")
    if x + width > picture.width or y + height > picture.height:
        raise _broken(f"sent {width} x {height} pixels at {x}, {y}, of {picture.width} x {picture.height}")
    for row in range(y, y + height):
        picture.put(x, row, width, await reader.take(_BYTES * width))


async def _length(reader: Reader, most: int, what: str) -> int:
    (length,) = await reader.numbers("I")
    if length > most:
        raise _broken(f"says that its {what} has {length} bytes")
    return length


def _broken(what: str) -> VirtdError:
    return InternalError(BACKEND_ERROR, f"the guest's display {what}")
