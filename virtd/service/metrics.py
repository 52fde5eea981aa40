"""Use cases of metrics: the last samples and the history, never a native call."""

from __future__ import annotations

import time
from collections.abc import Sequence
from datetime import datetime
from typing import Final

from virtd.errors import invalid_field
from virtd.inventory.usage import TIERS
from virtd.model.metrics import GuestMetrics, UsagePoint
from virtd.model.names import WILDCARD, GuestName
from virtd.service.call import Page, page_of
from virtd.service.core import Core

DEFAULT_SPAN_S: Final = 3600.0


class Metrics:
    """Use cases of metrics."""

    def __init__(self, core: Core) -> None:
        self._core = core

    async def get(self, parent: str | GuestName) -> Sequence[tuple[str, GuestMetrics]]:
        """The last sample of a guest, of a host's guests, or with ``-`` of all; by name.

        :raises NotFoundError: HOST_NOT_FOUND or GUEST_NOT_FOUND.
        """
        inventory = self._core.inventory
        if isinstance(parent, GuestName):
            views = [self._core.view(parent)]
        else:
            if parent != WILDCARD:
                self._core.link(parent)
            views = inventory.guests(None if parent == WILDCARD else parent)
        return [
            (view.guest.name, inventory.metrics[view.guest.uid])
            for view in views
            if view.guest.uid in inventory.metrics
        ]

    async def usage(
        self,
        name: GuestName,
        start: datetime | None,
        end: datetime | None,
        resolution_s: int,
        page_size: int,
        page_token: str,
    ) -> tuple[int, Page[UsagePoint]]:
        """The history of a guest's usage, oldest first, and its resolution in seconds.

        :raises NotFoundError: HOST_NOT_FOUND or GUEST_NOT_FOUND.
        :raises InvalidArgumentError: FIELD_INVALID, PAGE_TOKEN_INVALID.
        """
        coarsest = TIERS[-1].step_s
        if resolution_s > coarsest:
            raise invalid_field("resolution_s", f"at most {coarsest} is kept, not {resolution_s}")
        until = end.timestamp() if end is not None else time.time()
        since = start.timestamp() if start is not None else until - DEFAULT_SPAN_S
        if since >= until:
            raise invalid_field("start_time", "must be before end_time")
        view = self._core.view(name)
        step, points = await self._core.usage.points(view.guest.uid, since, until, resolution_s)
        return step, page_of(points, page_size, page_token, key=lambda point: f"{point.start_time.timestamp():015.0f}")
