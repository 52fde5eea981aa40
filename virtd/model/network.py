"""Networks of a host."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum


class NetworkMode(StrEnum):
    """How guests of a network reach other networks."""

    NAT = "NAT"
    ISOLATED = "ISOLATED"
    ROUTE = "ROUTE"
    BRIDGE = "BRIDGE"


@dataclass(frozen=True, slots=True)
class DhcpReservation:
    """An address that is kept for one guest interface.  ``mac`` is in lower case once it is checked."""

    mac: str
    address: str
    hostname: str = ""


@dataclass(frozen=True, slots=True)
class DhcpRange:
    """The first and the last address that a DHCP server gives out."""

    start: str
    end: str


@dataclass(frozen=True, slots=True)
class NetworkSpec:
    """A network to create.

    ``dhcp`` None: as if true, where the mode has a ``cidr``; ``dhcp_range`` None: all of it but the
    host's address, which is the first.  ``bridge`` is the device that exists (BRIDGE, which needs nothing
    else), or the name of the one to make.
    """

    mode: NetworkMode
    cidr: str = ""
    dhcp_range: DhcpRange | None = None
    dhcp: bool | None = None
    domain: str = ""
    reservations: tuple[DhcpReservation, ...] = ()
    bridge: str = ""
    autostart: bool = False


@dataclass(frozen=True, slots=True)
class Network:
    """``hosts/{host}/networks/{network}``.

    ``mode`` is ``nat``, ``isolated``, ``route``, ``open``, ``bridge`` or the hypervisor's own word.
    ``used_by`` names the guests with an interface on it, as far as virtd sees.
    """

    name: str
    active: bool | None = None
    mode: str = ""
    bridge: str = ""
    cidrs: tuple[str, ...] = ()
    autostart: bool | None = None
    dhcp_ranges: tuple[DhcpRange, ...] = ()
    reservations: tuple[DhcpReservation, ...] = ()
    domain: str = ""
    used_by: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class DhcpLease:
    """An address that a DHCP server has given out.  ``expire_time`` None: never, or not told.

    ``guest`` is the guest with this interface; empty: none that virtd knows.
    """

    mac: str
    address: str
    prefix_length: int | None = None
    hostname: str = ""
    expire_time: datetime | None = None
    guest: str = ""
