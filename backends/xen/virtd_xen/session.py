"""One Xen host behind libvirt: what it is, and the facets put together."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Final
from uuid import UUID

from virtd.backend.api import Facets, HostConfig, NativePlan, ResolvedGuest
from virtd.backend.emulate.screenshots import DisplayScreenshots
from virtd.backend.emulate.snapshots import CopiedSnapshots
from virtd.libvirt.addresses import Addresses
from virtd.libvirt.connections import HostConnections
from virtd.libvirt.consoles import Consoles
from virtd.libvirt.definitions import Definitions
from virtd.libvirt.facts import NativeFacts, host_facts, read
from virtd.libvirt.guests import Guests
from virtd.libvirt.metrics_each import EachMetrics
from virtd.libvirt.migration import Migration
from virtd.libvirt.networks import NetworkChanges, Networks
from virtd.libvirt.notifications import EventSource
from virtd.libvirt.parts import Parts
from virtd.libvirt.places import default_pool_path
from virtd.libvirt.pools import Pools
from virtd.libvirt.records import Records
from virtd.libvirt.session import LibvirtSession
from virtd.libvirt.session import open_session as open_libvirt
from virtd.libvirt.storage import Storage
from virtd.libvirt.update import Update
from virtd.libvirt.viewers import Viewers
from virtd.libvirt.volumes import Volumes
from virtd.model.guest import Accelerator, DiskBus
from virtd.model.host import AcceleratorStatus, ControlDomain, GuestDefaults, HostFacts
from virtd_xen import capabilities, platform
from virtd_xen.designer import design
from virtd_xen.dialect import DIALECT, HVM, PVH
from virtd_xen.doctor import Doctor
from virtd_xen.migration import POLICY as MIGRATION
from virtd_xen.platform import Platform
from virtd_xen.suspend import XenSuspend
from virtd_xen.update_policy import POLICY

CONTROL_DOMAIN: Final = "Domain-0"
CONTROL_UUID: Final = UUID(int=0)
"""Xen's own identity of the control domain."""
DEFAULTS: Final = GuestDefaults(
    cdrom_bus=DiskBus.IDE.value,
    kernel_machine=PVH,
    disk_machine=HVM,
    graphics=False,  # not every type of guest can have one
    guest_agent=False,
    rng=False,
)
_NAMES: Final = {"Xen": "Xen"}
_HOW: Final = "Xen runs its guests itself"


def _is_control_domain(name: str) -> bool:
    return name == CONTROL_DOMAIN


class XenSession(LibvirtSession):
    """A connected host.  Made by :func:`open_session`."""

    def __init__(self, config: HostConfig, connections: HostConnections, guests: Guests, source: EventSource) -> None:
        super().__init__(config, connections, guests, source, DIALECT, _is_control_domain)
        self._platform = Platform()
        storage = Storage(connections, default_pool_path(config))
        volumes = Volumes(connections, storage)
        definitions = Definitions(connections, guests, None)
        viewers = Viewers(guests, connections)
        self._facets: Final = Facets(
            shutdown=guests,
            reboot=guests,
            snapshots=CopiedSnapshots(self.get_guest, storage, volumes, definitions, Records(guests), volumes),
            screenshot=DisplayScreenshots(viewers),
            pause=guests,
            suspend=XenSuspend(guests),
            storage=storage,
            pools=Pools(connections),
            volume_changes=volumes,
            volume_transfer=volumes,
            volume_parts=Parts(connections),
            networks=Networks(connections),
            network_changes=NetworkChanges(connections),
            serial_console=Consoles(connections),
            display=viewers,
            addresses=Addresses(guests, None),
            metrics=EachMetrics(connections, frozenset({CONTROL_UUID})),
            event_source=source,
            definitions=definitions,
            autostart=definitions,
            update=Update(guests, self.lower, self._without, POLICY),
            diagnosis=Doctor(connections),
            migration=Migration(config, connections, guests, MIGRATION),
        )

    async def prepare(self) -> None:
        """Learn what ``lower`` must know: it may ask nothing itself."""
        self._platform = await self._connections.call("virConnectGetCapabilities", platform.learn)

    @property
    def facets(self) -> Facets:
        """The optional abilities."""
        return self._facets

    async def probe(self) -> HostFacts:
        """Ask the host.

        :raises UnavailableError: HOST_UNREACHABLE.
        """
        await self._connections.wait_connected(self._config.call_timeout_s)
        native, control = await self._connections.call("virConnectGetCapabilities", _ask)
        await self.prepare()
        status = AcceleratorStatus(Accelerator.NATIVE.value, usable=bool(self._platform.machines), reason=_HOW)
        found = capabilities.probed(self._platform.missing)
        return replace(
            host_facts(native, (status,), found),
            machines=self._platform.machines,
            control_domain=control,
            guest_defaults=DEFAULTS,
            guest_kinds=capabilities.kinds(self._platform.machines, found),
        )

    def _without(self) -> Mapping[str, str]:
        """The capabilities that this host has not, and why."""
        return self._platform.missing

    def lower(self, guest: ResolvedGuest) -> NativePlan:
        """The domain XML, and what became of each field."""
        return design(guest, self._platform)


def _ask(connection: Any) -> tuple[NativeFacts, ControlDomain | None]:
    # libvirt takes the CPU's model from what Xen leaves of its features: nothing true comes of that.
    return replace(read(connection, _NAMES), cpu_model=""), platform.control_domain(connection)


async def open_session(config: HostConfig) -> XenSession:
    """Connect to a host.

    :raises InvalidArgumentError: CONFIG_INVALID.
    :raises UnavailableError: HOST_UNREACHABLE; nothing is left behind.
    """
    return await open_libvirt(config, XenSession, _is_control_domain, untouchable=(CONTROL_UUID,), reboots_stop=True)
