"""The display of a fake guest: just enough of RFB 3.8 (VNC) to shake hands and to send one picture."""

from __future__ import annotations

import asyncio
import struct
from typing import Final

from virtd.errors import HOST_UNREACHABLE, UnavailableError

_VERSION: Final = b"RFB 003.008\n"
_NO_AUTHENTICATION: Final = 1
_SIZE: Final = (64, 48)
_REQUESTS: Final = 20 + 8 + 10  # a viewer's pixel format, one encoding, and its wish for a picture
_PIXELS: Final = struct.pack(">BBBBHHHBBB3x", 32, 24, 0, 1, 255, 255, 255, 16, 8, 0)


class Display:
    """See :class:`virtd.backend.api.ConsoleStream`: version, security, result, size and name, and one picture.

    :param color: of the picture: red, green, blue.
    """

    def __init__(self, name: str, color: bytes = b"\0\0\0") -> None:
        title = name.encode()
        size = struct.pack(">HH", *_SIZE) + _PIXELS + struct.pack(">I", len(title)) + title
        # What the viewer sends at each turn, and what it gets for it.
        self._turns = [
            (len(_VERSION), bytes((1, _NO_AUTHENTICATION))),
            (1, struct.pack(">I", 0)),
            (1, size),
            (_REQUESTS, struct.pack(">BxHHHHHi", 0, 1, 0, 0, *_SIZE, 0) + bytes((*color[::-1], 0)) * (64 * 48)),
        ]
        self._received = bytearray()
        self._answers: asyncio.Queue[bytes] = asyncio.Queue()
        self._answers.put_nowait(_VERSION)
        self._closed = False

    async def read(self) -> bytes:
        """See the SPI."""
        return b"" if self._closed and self._answers.empty() else await self._answers.get()

    async def write(self, data: bytes) -> None:
        """See the SPI."""
        if self._closed:
            raise UnavailableError(HOST_UNREACHABLE, "the display has closed")
        self._received += data
        while self._turns and len(self._received) >= self._turns[0][0]:
            length, answer = self._turns.pop(0)
            del self._received[:length]
            self._answers.put_nowait(answer)

    async def close(self) -> None:
        """See the SPI."""
        self._closed = True
        self._answers.put_nowait(b"")
