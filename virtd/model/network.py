"""Networks of a host."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Network:
    """``hosts/{host}/networks/{network}``.

    ``mode`` is ``nat``, ``isolated``, ``route``, ``open``, ``bridge`` or the hypervisor's own word.
    """

    name: str
    active: bool | None = None
    mode: str = ""
    bridge: str = ""
    cidrs: tuple[str, ...] = ()
    autostart: bool | None = None
