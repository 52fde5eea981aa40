"""Is what is said of a network right, whatever the host?  No I/O."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Final

from virtd.errors import invalid_field
from virtd.model.names import check_new_id, shown
from virtd.model.network import DhcpRange, DhcpReservation, Network, NetworkMode, NetworkSpec

if TYPE_CHECKING:
    from virtd.service.validate import Violations

ID_MAX: Final = 50
RESERVATIONS_MAX: Final = 1024
PREFIX_MIN: Final = 16
PREFIX_MAX: Final = 30
"""A smaller range has no room for the host and a guest; a larger one is a slip of the pen."""

_DEVICE: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,14}")
_LABEL: Final = re.compile(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?", re.IGNORECASE)
_MAC: Final = re.compile(r"[0-9a-f]{2}(:[0-9a-f]{2}){5}", re.IGNORECASE)


def check_network_id(network_id: str) -> str:
    """A new network's id: libvirt puts it into the names of files.

    :raises InvalidArgumentError: FIELD_INVALID.
    """
    check_new_id(network_id, "network_id")
    if len(network_id) > ID_MAX:
        raise invalid_field("network_id", f"must have at most {ID_MAX} characters, not {len(network_id)}")
    return network_id


def check_spec(spec: NetworkSpec, wrong: Violations, prefix: str = "network") -> None:
    """Check all that can be told without a host."""
    if spec.mode is NetworkMode.BRIDGE:
        _check_bridge(spec, wrong, prefix)
        return
    if spec.bridge and not _DEVICE.fullmatch(spec.bridge):
        wrong.add(f"{prefix}.bridge", f"{shown(spec.bridge)} is not the name of a device")
    if spec.domain and not all(_LABEL.fullmatch(label) for label in spec.domain.split(".")):
        wrong.add(f"{prefix}.domain", f"{shown(spec.domain)} is not a domain name")
    network = _network(spec.cidr, wrong, f"{prefix}.cidr")
    if network is None:
        return
    if spec.dhcp is False:
        if spec.dhcp_range is not None:
            wrong.add(f"{prefix}.dhcp_range", "needs dhcp")
        if spec.reservations:
            wrong.add(f"{prefix}.reservations", "need dhcp")
        return
    if spec.dhcp_range is not None:
        _check_range(spec.dhcp_range, network, wrong, f"{prefix}.dhcp_range")
    _check_entries(spec.reservations, network, wrong, f"{prefix}.reservations")


def with_defaults(spec: NetworkSpec) -> NetworkSpec:
    """The specification, checked, with nothing left to choose but the bridge's name."""
    if spec.mode is NetworkMode.BRIDGE:
        return replace(spec, dhcp=False)
    network = ipaddress.ip_network(spec.cidr)
    dhcp = spec.dhcp is not False
    everything = DhcpRange(str(network[2]), str(network[-2]))
    return replace(
        spec,
        cidr=str(network),
        dhcp=dhcp,
        dhcp_range=(spec.dhcp_range or everything) if dhcp else None,
        reservations=normal_reservations(spec.reservations),
    )


def normal_reservations(entries: Iterable[DhcpReservation]) -> tuple[DhcpReservation, ...]:
    """With MAC addresses in lower case: two ways to write one address are one reservation."""
    return tuple(replace(entry, mac=entry.mac.lower()) for entry in entries)


def check_reservations(
    entries: Sequence[DhcpReservation], network: Network, remove: Iterable[str], wrong: Violations
) -> None:
    """Check reservations that are to be added to a network that exists."""
    field = "set_reservations"
    if not network.dhcp_ranges:
        wrong.add(field, f"{network.name} has no DHCP server")
        return
    ranges = [ipaddress.ip_network(cidr) for cidr in network.cidrs]
    known = next((found for found in ranges if isinstance(found, ipaddress.IPv4Network)), None)
    if known is None:
        wrong.add(field, f"{network.name} has no IPv4 range")
        return
    _check_entries(entries, known, wrong, field)
    removed = {mac.lower() for mac in remove}
    changed = {entry.mac.lower() for entry in entries}
    for index, entry in enumerate(entries):
        if entry.mac.lower() in removed:
            wrong.add(f"{field}[{index}].mac", f"{entry.mac} is to be removed as well")
        for other in network.reservations:
            if other.address == entry.address and other.mac not in removed | changed:
                wrong.add(f"{field}[{index}].address", f"{entry.address} is kept for {other.mac} already")


def check_macs(macs: Sequence[str], field: str, wrong: Violations) -> None:
    """Check a list of MAC addresses."""
    for index, mac in enumerate(macs):
        if not _MAC.fullmatch(mac):
            wrong.add(f"{field}[{index}]", f"{shown(mac)} is not a MAC address of the form aa:bb:cc:dd:ee:ff")


def _check_bridge(spec: NetworkSpec, wrong: Violations, prefix: str) -> None:
    if not _DEVICE.fullmatch(spec.bridge):
        what = "is required for BRIDGE" if not spec.bridge else f"{shown(spec.bridge)} is not the name of a device"
        wrong.add(f"{prefix}.bridge", what)
    for field in ("cidr", "dhcp_range", "dhcp", "domain", "reservations"):
        if getattr(spec, field):
            wrong.add(f"{prefix}.{field}", "must be empty for BRIDGE: whoever runs that network gives out addresses")


def _network(cidr: str, wrong: Violations, field: str) -> ipaddress.IPv4Network | None:
    if not cidr:
        wrong.add(field, "is required", "192.0.2.0/24")
        return None
    try:
        network = ipaddress.ip_network(cidr if "/" in cidr else "")
    except ValueError:
        loose = _loose(cidr)
        what = f"{shown(cidr)} is not a range such as 192.0.2.0/24"
        wrong.add(field, f"{what}: the bits after the prefix must be zero" if loose else what, *loose)
        return None
    if not isinstance(network, ipaddress.IPv4Network):
        wrong.add(field, "must be an IPv4 range; IPv6 networks cannot be created yet")
        return None
    if not PREFIX_MIN <= network.prefixlen <= PREFIX_MAX:
        wrong.add(field, f"must have a prefix of {PREFIX_MIN} to {PREFIX_MAX} bits, not {network.prefixlen}")
        return None
    if network.is_loopback or network.is_multicast or network.is_link_local or network.is_unspecified:
        wrong.add(field, f"{cidr} cannot be a network of guests")
        return None
    return network


def _loose(cidr: str) -> tuple[str, ...]:
    """The range that was meant, where an address of it was given."""
    try:
        return (str(ipaddress.ip_network(cidr, strict=False)),) if "/" in cidr else ()
    except ValueError:
        return ()


def _check_range(entry: DhcpRange, network: ipaddress.IPv4Network, wrong: Violations, field: str) -> None:
    start = _guest_address(entry.start, network, wrong, f"{field}.start")
    end = _guest_address(entry.end, network, wrong, f"{field}.end")
    if start is not None and end is not None and start > end:
        wrong.add(f"{field}.end", f"{entry.end} comes before {entry.start}")


def _guest_address(
    text: str, network: ipaddress.IPv4Network, wrong: Violations, field: str
) -> ipaddress.IPv4Address | None:
    try:
        address = ipaddress.IPv4Address(text)
    except ValueError:
        wrong.add(field, f"{shown(text)} is not an IPv4 address")
        return None
    if address not in network:
        wrong.add(field, f"{text} lies outside {network}")
    elif address in (network[0], network[-1]):
        wrong.add(field, f"{text} is not an address that a guest can have")
    elif address == network[1]:
        wrong.add(field, f"{text} is the host's own address", str(network[2]))
    else:
        return address
    return None


def _check_entries(
    entries: Sequence[DhcpReservation], network: ipaddress.IPv4Network, wrong: Violations, prefix: str
) -> None:
    if len(entries) > RESERVATIONS_MAX:
        wrong.add(prefix, f"must be at most {RESERVATIONS_MAX}, not {len(entries)}")
        return
    macs: set[str] = set()
    addresses: set[str] = set()
    for index, entry in enumerate(entries):
        field = f"{prefix}[{index}]"
        if not _MAC.fullmatch(entry.mac):
            wrong.add(f"{field}.mac", f"{shown(entry.mac)} is not a MAC address of the form aa:bb:cc:dd:ee:ff")
        elif entry.mac.lower() in macs:
            wrong.add(f"{field}.mac", f"{entry.mac} is there twice")
        macs.add(entry.mac.lower())
        if _guest_address(entry.address, network, wrong, f"{field}.address") and entry.address in addresses:
            wrong.add(f"{field}.address", f"{entry.address} is there twice")
        addresses.add(entry.address)
        if entry.hostname and not _LABEL.fullmatch(entry.hostname):
            wrong.add(f"{field}.hostname", f"{shown(entry.hostname)} is not a host name without a domain")
