"""Screenshots by a guest's VNC display."""

from __future__ import annotations

from contextlib import suppress
from typing import Final
from uuid import UUID

from virtd.backend.api import DisplayFacet
from virtd.backend.capabilities import CONSOLE_GRAPHICAL, SCREENSHOT
from virtd.backend.emulate.rfb import LIMIT_S, picture_of
from virtd.errors import UnsupportedError, VirtdError, unsupported
from virtd.model.console import Screenshot

HOW: Final = "virtd reads the picture from the guest's VNC display"


class DisplayScreenshots:
    """See :class:`virtd.backend.api.ScreenshotFacet`.

    :param display: opens the display.
    :param limit_s: how long the display may take.
    """

    def __init__(self, display: DisplayFacet, limit_s: float = LIMIT_S) -> None:
        self._display: Final = display
        self._limit_s: Final = limit_s

    async def screenshot(self, uuid: UUID) -> Screenshot:
        """See the SPI."""
        try:
            stream = await self._display.open_display(uuid)
        except UnsupportedError as error:
            # The same reason, about what was asked for.
            if error.record.metadata.get("capability") != CONSOLE_GRAPHICAL:
                raise
            raise unsupported(SCREENSHOT, error.record.metadata["why"]) from error
        try:
            return Screenshot(await picture_of(stream, self._limit_s), "image/png")
        finally:
            with suppress(VirtdError):
                await stream.close()
