"""Ways into a fake guest: serial console, display, addresses."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Sequence
from uuid import UUID

from virtd.backend import capabilities as caps
from virtd.errors import unsupported
from virtd.model.console import Screenshot
from virtd.model.guest import GuestAddress, GuestState
from virtd.testing.fake import inside, lowering
from virtd.testing.fake.link import Facet, spi


class Reach(Facet):
    """See the SPI's facets for the serial console, the screenshot and the addresses."""

    @spi
    async def open_console(self, uuid: UUID) -> inside.ConsoleStream:
        """See the SPI."""
        guest = await self._in_states(uuid, "open the console of", GuestState.RUNNING, GuestState.PAUSED)
        if not lowering.parse(guest.active).serial_console:
            raise unsupported(caps.CONSOLE_SERIAL, "the guest has no serial console")
        return await self._native.console_open(uuid)

    @spi
    async def screenshot(self, uuid: UUID) -> Screenshot:
        """See the SPI."""
        guest = await self._in_states(uuid, "take a picture of", GuestState.RUNNING, GuestState.PAUSED)
        self._link.refuse_kind(guest, caps.SCREENSHOT)
        if lowering.parse(guest.active).graphics is None:
            raise unsupported(caps.SCREENSHOT, "the guest has no display")
        guest = await self._native.display_read(uuid)
        return Screenshot(_png(64, 48, guest.uuid.bytes[:3]), "image/png")

    @spi
    async def guest_addresses(self, uuid: UUID) -> Sequence[GuestAddress]:
        """See the SPI."""
        guest = await self._native.guest_lookup(uuid)
        if guest.state is not GuestState.RUNNING or not guest.booted:
            return []
        config = lowering.parse(guest.active)
        source = "AGENT" if config.guest_agent and self._native.agent_answers(guest) else "LEASE"
        number = 2 + guest.uuid.int % 250
        return [
            GuestAddress(item.name, item.mac, f"192.0.2.{(number + index) % 254 + 1}", 24, source)
            for index, item in enumerate(config.interfaces)
        ]


def _png(width: int, height: int, color: bytes) -> bytes:
    """A picture in one color."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    rows = (b"\0" + color * width) * height
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
