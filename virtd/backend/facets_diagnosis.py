"""The facet that looks a host over for what commonly goes wrong."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from virtd.model.host import HostCheck


class DiagnosisFacet(Protocol):
    """Checks of a host, for a person who wonders why something does not work."""

    async def diagnose(self) -> Sequence[HostCheck]:
        """Look now; nothing is changed.  A check that cannot be made is UNKNOWN, with the reason.

        Quick (a few seconds): what takes longer, such as trying an accelerator, is the probe's, and its
        result is repeated here.

        :raises UnavailableError: HOST_UNREACHABLE.
        """
