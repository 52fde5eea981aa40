"""Use cases of metrics: the last samples, never a native call."""

from __future__ import annotations

from collections.abc import Sequence

from virtd.model.metrics import GuestMetrics
from virtd.model.names import WILDCARD, GuestName
from virtd.service.core import Core


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
