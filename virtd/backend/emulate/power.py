"""What the core does for reboot and reset where a backend states them as EMULATED and has no facet for them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from virtd.backend.capabilities import REBOOT, RESET, emulated
from virtd.model.host import Capability

HOW: Final[Mapping[str, str]] = {
    REBOOT: "virtd shuts the guest down and starts it",
    RESET: "virtd cuts the guest's power and starts it",
}

CAPABILITIES: Final[tuple[Capability, ...]] = tuple(emulated(id_, how) for id_, how in HOW.items())
"""What a backend says of itself that has neither; one that has shutdown can always be given both."""
