"""Networks of a host."""

from __future__ import annotations

import contextlib
import ipaddress
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final, TypeVar

import libvirt

from virtd.backend.api import CallContext, NetworkRequest
from virtd.errors import (
    NETWORK_EXISTS,
    NETWORK_REFUSED,
    AlreadyExistsError,
    FailedPreconditionError,
    VirtdError,
)
from virtd.libvirt.connections import HostConnections, LaneName
from virtd.libvirt.errors import native_of, translate
from virtd.libvirt.xml.network import DhcpHost, NetworkXml
from virtd.model.network import DhcpLease, DhcpRange, DhcpReservation, Network, NetworkMode

T = TypeVar("T")

_FORWARD: Final = {
    NetworkMode.NAT: "nat",
    NetworkMode.ISOLATED: "isolated",
    NetworkMode.ROUTE: "route",
    NetworkMode.BRIDGE: "bridge",
}
_ROUTES: Final = Path("/proc/net/route")
# Of these, libvirt says in words of the host's tools what is wrong with the host.
_HOSTS_FAULT: Final = frozenset(
    {
        libvirt.VIR_ERR_INTERNAL_ERROR,
        libvirt.VIR_ERR_SYSTEM_ERROR,
        libvirt.VIR_ERR_OPERATION_FAILED,
        libvirt.VIR_ERR_CONFIG_UNSUPPORTED,
        libvirt.VIR_ERR_NO_SUPPORT,
        libvirt.VIR_ERR_XML_ERROR,
        libvirt.VIR_ERR_OPERATION_INVALID,
    }
)


class Networks:
    """Reads the host's networks."""

    def __init__(self, connections: HostConnections) -> None:
        self._connections: Final = connections

    async def list_networks(self) -> Sequence[Network]:
        """All networks, active or not."""
        return await self._connections.call("virConnectListAllNetworks", _list)


class NetworkChanges:
    """Changes the host's networks, and asks their DHCP servers."""

    def __init__(self, connections: HostConnections) -> None:
        self._connections: Final = connections

    def lower_network(self, request: NetworkRequest) -> str:
        """The network XML."""
        return _xml(request).to_xml()

    async def define_network(self, request: NetworkRequest, context: CallContext) -> Network:
        """Define, or define anew what has this UUID.

        :raises AlreadyExistsError: NETWORK_EXISTS.
        """
        context.checkpoint()
        xml = self.lower_network(request)

        def run(connection: Any) -> Network:
            known = _find(connection, request.name)
            if known is not None and known.UUIDString() != str(request.uuid):
                raise AlreadyExistsError(NETWORK_EXISTS, f"the host has a network {request.name} already")
            return _read(connection.networkDefineXML(xml))

        return await self._change("virNetworkDefineXML", run)

    async def start_network(self, network: str, context: CallContext) -> Network:
        """Start.  Idempotent.

        :raises FailedPreconditionError: NETWORK_REFUSED.
        """
        context.checkpoint()

        def run(connection: Any) -> Network:
            found = connection.networkLookupByName(network)
            if not found.isActive():
                try:
                    found.create()
                except libvirt.libvirtError:
                    if not found.isActive():  # nobody was quicker
                        raise
            return _read(found)

        return await self._change("virNetworkCreate", run)

    async def stop_network(self, network: str, context: CallContext) -> Network:
        """Stop.  Idempotent."""
        context.checkpoint()

        def run(connection: Any) -> Network:
            found = connection.networkLookupByName(network)
            _stop(found)
            return _read(found)

        return await self._change("virNetworkDestroy", run)

    async def set_network_autostart(self, network: str, context: CallContext, *, autostart: bool) -> Network:
        """Whether it starts with the host.  Idempotent."""
        context.checkpoint()

        def run(connection: Any) -> Network:
            found = connection.networkLookupByName(network)
            found.setAutostart(int(autostart))
            return _read(found)

        return await self._change("virNetworkSetAutostart", run)

    async def set_reservations(
        self, network: str, reservations: Sequence[DhcpReservation], remove: Sequence[str], context: CallContext
    ) -> Network:
        """Change reservations, in the running server too.  Idempotent."""
        context.checkpoint()

        def run(connection: Any) -> Network:
            found = connection.networkLookupByName(network)
            flags = libvirt.VIR_NETWORK_UPDATE_AFFECT_CONFIG
            if found.isActive():
                flags |= libvirt.VIR_NETWORK_UPDATE_AFFECT_LIVE
            known = {host.mac: host for host in NetworkXml.parse(found.XMLDesc(0)).hosts}
            wanted = {entry.mac: DhcpHost(entry.mac, entry.address, entry.hostname) for entry in reservations}
            # What is given up comes first: its address may be what another one gets.
            for mac, host in known.items():
                if mac in remove or wanted.get(mac, host) != host:
                    _update(found, libvirt.VIR_NETWORK_UPDATE_COMMAND_DELETE, host, flags)
            for mac, host in wanted.items():
                if known.get(mac) != host or mac in remove:
                    _update(found, libvirt.VIR_NETWORK_UPDATE_COMMAND_ADD_LAST, host, flags)
            return _read(found)

        return await self._change("virNetworkUpdate", run)

    async def undefine_network(self, network: str, context: CallContext) -> None:
        """Stop and forget.  Idempotent."""
        context.checkpoint()

        def run(connection: Any) -> None:
            found = _find(connection, network)
            if found is None:
                return
            _stop(found)
            with contextlib.suppress(libvirt.libvirtError):
                found.undefine()
            if _find(connection, network) is not None:
                found.undefine()  # says why

        await self._change("virNetworkUndefine", run)

    async def list_leases(self, network: str) -> Sequence[DhcpLease]:
        """What the DHCP server has given out; none while the network is down."""

        def run(connection: Any) -> list[DhcpLease]:
            found = connection.networkLookupByName(network)
            return [_lease(entry) for entry in found.DHCPLeases(None, 0)] if found.isActive() else []

        return await self._connections.call("virNetworkGetDHCPLeases", run)

    async def host_networks(self) -> Sequence[str]:
        """From this machine's routes, where it is the host; another machine's libvirt does not tell."""
        return list(_routes()) if self._connections.local else []

    async def _change(self, call: str, function: Callable[[Any], T]) -> T:
        def run(connection: Any) -> T:
            try:
                return function(connection)
            except libvirt.libvirtError as error:
                raise _refused(error, call, alive=bool(connection.isAlive())) from error

        return await self._connections.call(call, run, lane=LaneName.CHANGE)


def _refused(error: libvirt.libvirtError, call: str, *, alive: bool) -> VirtdError:
    """What the host says when it cannot set up a network is a matter of the host, not a defect."""
    native = native_of(error, call)
    if alive and error.get_error_code() in _HOSTS_FAULT:
        return FailedPreconditionError(NETWORK_REFUSED, f"the host refuses: {native.message}", native=native)
    return translate(error, call, connection_alive=alive)


def _xml(request: NetworkRequest) -> NetworkXml:
    spec = request.spec
    ranges = ((spec.dhcp_range.start, spec.dhcp_range.end),) if spec.dhcp and spec.dhcp_range is not None else ()
    return NetworkXml(
        request.name,
        _FORWARD[spec.mode],
        request.bridge,
        (spec.cidr,) if spec.cidr else (),
        uuid=request.uuid,
        ranges=ranges,
        hosts=tuple(DhcpHost(entry.mac, entry.address, entry.hostname) for entry in spec.reservations),
        domain=spec.domain,
    )


def _find(connection: Any, name: str) -> Any:
    try:
        return connection.networkLookupByName(name)
    except libvirt.libvirtError as error:
        if error.get_error_code() != libvirt.VIR_ERR_NO_NETWORK:
            raise
        return None


def _stop(network: Any) -> None:
    if network.isActive():
        try:
            network.destroy()
        except libvirt.libvirtError:
            if network.isActive():
                raise


def _update(network: Any, command: int, host: DhcpHost, flags: int) -> None:
    network.update(command, libvirt.VIR_NETWORK_SECTION_IP_DHCP_HOST, -1, host.to_xml(), flags)


def _lease(entry: Any) -> DhcpLease:
    expiry = entry.get("expirytime")
    return DhcpLease(
        mac=(entry.get("mac") or "").lower(),
        address=entry.get("ipaddr") or "",
        prefix_length=entry.get("prefix"),
        hostname=entry.get("hostname") or "",
        expire_time=datetime.fromtimestamp(expiry, UTC) if expiry else None,
    )


def _routes() -> Iterator[str]:
    """IPv4 networks of this machine's interfaces; in the kernel's table numbers are little-endian."""
    try:
        lines = _ROUTES.read_text().splitlines()[1:]
    except OSError:
        return
    for line in lines:
        fields = line.split()
        destination, mask = (int.from_bytes(bytes.fromhex(fields[index]), "little") for index in (1, 7))
        if mask:
            yield str(ipaddress.ip_network((destination, mask.bit_count())))


def _list(connection: Any) -> list[Network]:
    found = []
    for network in connection.listAllNetworks(0):
        try:
            found.append(_read(network))
        except libvirt.libvirtError as error:
            if error.get_error_code() != libvirt.VIR_ERR_NO_NETWORK:  # removed while it was being looked at
                raise
    return found


def _read(network: Any) -> Network:
    xml = NetworkXml.parse(network.XMLDesc(0))
    return Network(
        name=network.name(),
        active=bool(network.isActive()),
        mode=xml.mode,
        bridge=xml.bridge,
        cidrs=xml.cidrs,
        # A network that was made without being defined cannot start with the host.
        autostart=bool(network.autostart()) if network.isPersistent() else False,
        dhcp_ranges=tuple(DhcpRange(start, end) for start, end in xml.ranges or ()),
        reservations=tuple(DhcpReservation(host.mac, host.ip, host.name) for host in xml.hosts if host.mac),
        domain=xml.domain,
    )
