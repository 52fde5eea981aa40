"""The options of ``network create`` as the message of the API."""

from __future__ import annotations

from typing import Any

from virtd.cli.ctl.errors import UsageError
from virtd.cli.ctl.spec import choice


def network_spec(
    mode: str,
    cidr: str | None,
    dhcp: str | None,
    bridge: str | None,
    domain: str | None,
    *,
    dhcp_off: bool,
    autostart: bool,
) -> Any:
    """A NetworkSpec.

    :raises UsageError: an option is wrong, or does not go with another.
    """
    from virtd.v1 import network_pb2 as pb

    spec = pb.NetworkSpec(cidr=cidr or "", domain=domain or "", bridge=bridge or "", autostart=autostart)
    spec.mode = choice("--mode", mode, pb.NetworkMode.DESCRIPTOR)
    bridged = spec.mode == pb.NETWORK_MODE_BRIDGE
    if not bridged and not cidr:
        raise UsageError("--cidr is missing", next="The network's addresses, for example --cidr 192.168.150.0/24")
    if dhcp_off and not bridged:
        spec.dhcp = False
    if dhcp:
        first, dash, last = dhcp.partition("-")
        if not (first and dash and last):
            raise UsageError(f"--dhcp {dhcp!r} is not FIRST-LAST, such as 192.168.150.100-192.168.150.200")
        spec.dhcp_range.start, spec.dhcp_range.end = first.strip(), last.strip()
    return spec
