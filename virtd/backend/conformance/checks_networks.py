"""Checks of what changes networks, and of the disk that carries a cloud-init seed."""

from __future__ import annotations

import ipaddress
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import cast
from uuid import UUID, uuid4

from virtd.backend import capabilities as caps
from virtd.backend.api import Fidelity, NetworkChangeFacet, NetworkRequest, ResolvedDisk, ResolvedGuest
from virtd.backend.conformance.kit import Kit, NotRun, check
from virtd.errors import NETWORK_EXISTS, NETWORK_NOT_FOUND
from virtd.model.guest import DiskBus, DiskDevice, DiskFormat
from virtd.model.network import DhcpRange, DhcpReservation, Network, NetworkMode, NetworkSpec

_MAC = "52:54:00:00:c0:01"


def _facet(kit: Kit) -> NetworkChangeFacet:
    return cast("NetworkChangeFacet", kit.facet("network_changes"))


async def _find(kit: Kit, name: str) -> Network | None:
    return next((entry for entry in await kit.facet("networks").list_networks() if entry.name == name), None)


@asynccontextmanager
async def _network(kit: Kit) -> AsyncIterator[NetworkRequest]:
    """An isolated network that is not there yet, and is gone afterwards."""
    if not kit.provision.network_cidr:
        raise NotRun("the provision names no range of addresses for a network")
    network = ipaddress.ip_network(kit.provision.network_cidr)
    uuid = uuid4()
    spec = NetworkSpec(
        NetworkMode.ISOLATED,
        str(network),
        DhcpRange(str(network[10]), str(network[20])),
        dhcp=True,
        reservations=(DhcpReservation(_MAC, str(network[11]), "kept"),),
    )
    request = NetworkRequest(uuid, kit.new_name(), f"vtc{uuid.hex[:8]}", spec)
    try:
        yield request
    finally:
        await _facet(kit).undefine_network(request.name, kit.context())


class TestNetworkChanges:
    """Networks that are made, changed and removed."""

    @check(caps.NETWORK_CHANGES)
    async def test_lower(self, kit: Kit) -> None:
        """Pure: the same request gives the same text, and nothing is made."""
        async with _network(kit) as request:
            assert _facet(kit).lower_network(request) == _facet(kit).lower_network(request)
            assert request.name in _facet(kit).lower_network(request)
            assert await _find(kit, request.name) is None

    @check(caps.NETWORK_CHANGES)
    async def test_life(self, kit: Kit) -> None:
        """Defined stopped, started, stopped, forgotten; each step may be repeated."""
        facet = _facet(kit)
        async with _network(kit) as request:
            for _ in range(2):
                made = await facet.define_network(request, kit.context())
                assert (made.name, made.active, made.mode) == (request.name, False, "isolated")
            assert await _find(kit, request.name) == made
            for active, step in ((True, facet.start_network), (False, facet.stop_network)):
                for _ in range(2):
                    assert (await step(request.name, kit.context())).active is active
            assert made.cidrs == (request.spec.cidr,)
            assert made.dhcp_ranges == (request.spec.dhcp_range,)
            assert made.reservations == request.spec.reservations
            for autostart in (True, True, False):
                changed = await facet.set_network_autostart(request.name, kit.context(), autostart=autostart)
                assert changed.autostart is autostart
            for _ in range(2):
                await facet.undefine_network(request.name, kit.context())
            assert await _find(kit, request.name) is None

    @check(caps.NETWORK_CHANGES)
    async def test_undefine_active(self, kit: Kit) -> None:
        """A network that is up is stopped and forgotten."""
        async with _network(kit) as request:
            await _facet(kit).define_network(request, kit.context())
            await _facet(kit).start_network(request.name, kit.context())
            assert await _facet(kit).list_leases(request.name) == []
            await _facet(kit).undefine_network(request.name, kit.context())
            assert await _find(kit, request.name) is None

    @check(caps.NETWORK_CHANGES)
    async def test_reservations(self, kit: Kit) -> None:
        """They are changed in place, up or down; twice is once."""
        async with _network(kit) as request:
            await _facet(kit).define_network(request, kit.context())
            network = ipaddress.ip_network(request.spec.cidr)
            moved = DhcpReservation(_MAC, str(network[12]), "kept")
            other = DhcpReservation("52:54:00:00:c0:02", str(network[11]))
            for start in (False, True):
                if start:
                    await _facet(kit).start_network(request.name, kit.context())
                for _ in range(2):
                    made = await _facet(kit).set_reservations(request.name, (moved, other), (), kit.context())
                    assert set(made.reservations) == {moved, other}
                for _ in range(2):
                    made = await _facet(kit).set_reservations(request.name, (), (other.mac,), kit.context())
                    assert made.reservations == (moved,)

    @check(caps.NETWORK_CHANGES)
    async def test_name_taken(self, kit: Kit) -> None:
        """NETWORK_EXISTS for another network of the same name, which is not touched."""
        async with _network(kit) as request:
            made = await _facet(kit).define_network(request, kit.context())
            stranger = replace(request, uuid=uuid4())
            await kit.error(_facet(kit).define_network(stranger, kit.context()), NETWORK_EXISTS)
            assert await _find(kit, request.name) == made

    @check(caps.NETWORK_CHANGES)
    async def test_unknown(self, kit: Kit) -> None:
        """NETWORK_NOT_FOUND from every method that needs one."""
        facet, name = _facet(kit), "no-such-network"
        await facet.undefine_network(name, kit.context())
        for call in (
            facet.start_network(name, kit.context()),
            facet.stop_network(name, kit.context()),
            facet.set_network_autostart(name, kit.context(), autostart=True),
            facet.set_reservations(name, (DhcpReservation(_MAC, "192.0.2.2"),), (), kit.context()),
            facet.list_leases(name),
        ):
            await kit.error(call, NETWORK_NOT_FOUND)

    @check(caps.NETWORK_CHANGES)
    async def test_host_networks(self, kit: Kit) -> None:
        """Ranges of addresses, as far as the host tells."""
        for cidr in await _facet(kit).host_networks():
            ipaddress.ip_network(cidr)


class TestCloudInit:
    """The seed is a read-only CD-ROM on SCSI; nothing else is asked of a backend."""

    @check(caps.CLOUD_INIT)
    async def test_seed(self, kit: Kit) -> None:
        """It is carried out exactly, and the guest shows it."""
        kit.need(caps.DISK_BOOT)
        path = await kit.host_file("virtd-conformance-seed.iso", bytes(2048 * 32))
        seed = ResolvedDisk("cloud-init", path, DiskFormat.RAW, DiskBus.SCSI, DiskDevice.CDROM, read_only=True)

        def make(name: str, uuid: UUID) -> ResolvedGuest:
            guest = kit.provision.guest(name, uuid)
            return replace(guest, disks=(*guest.disks, seed))

        guest = kit.subject(make=make)
        index = len(guest.resolved.disks) - 1
        verdicts = [v for v in kit.session.lower(guest.resolved).verdicts if f"disks[{index}]" in v.field]
        assert all(verdict.fidelity is Fidelity.EXACT for verdict in verdicts), verdicts
        native = await kit.session.define_guest(guest.resolved, kit.context())
        (disk,) = [disk for disk in native.disks if disk.name == seed.name]
        assert (disk.path, disk.device, disk.read_only) == (seed.path, DiskDevice.CDROM, True)
