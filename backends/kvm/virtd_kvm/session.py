"""One libvirt host with QEMU guests: level 0, and the facets put together."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from typing import Any, Final

from virtd.backend.api import (
    Facets,
    HostConfig,
    NativePlan,
    ResolvedGuest,
)
from virtd.backend.capabilities import VOLUMES
from virtd.libvirt.addresses import Addresses
from virtd.libvirt.backup import Backups
from virtd.libvirt.connections import HostConnections, parse_uri
from virtd.libvirt.consoles import Consoles
from virtd.libvirt.definitions import Definitions
from virtd.libvirt.displays import Displays
from virtd.libvirt.facts import host_facts, read
from virtd.libvirt.guests import Guests
from virtd.libvirt.metrics import Metrics
from virtd.libvirt.migration import Migration
from virtd.libvirt.networks import NetworkChanges, Networks
from virtd.libvirt.notifications import EventSource
from virtd.libvirt.parts import Parts
from virtd.libvirt.places import default_pool_path
from virtd.libvirt.pools import Pools
from virtd.libvirt.screens import Screens
from virtd.libvirt.session import LibvirtSession
from virtd.libvirt.session import open_session as open_libvirt
from virtd.libvirt.snapshots import Snapshots
from virtd.libvirt.storage import Storage
from virtd.libvirt.suspend import Suspend
from virtd.libvirt.update import Update
from virtd.libvirt.volumes import Volumes
from virtd.model.guest import Accelerator
from virtd.model.host import AcceleratorStatus, HostFacts
from virtd_kvm import capabilities, platforms
from virtd_kvm.accelerator import PROBE_PREFIX, Accelerators
from virtd_kvm.agent import Agent
from virtd_kvm.designer import Platform, design
from virtd_kvm.dialect import DIALECT
from virtd_kvm.doctor import Doctor
from virtd_kvm.effects import POLICY
from virtd_kvm.facts import NAMES
from virtd_kvm.migration import POLICY as MIGRATION
from virtd_kvm.places import backup_directory, variables_directory


def _is_probe(name: str) -> bool:
    return name.startswith(PROBE_PREFIX)


class KvmSession(LibvirtSession):
    """A connected host.  Made by :func:`open_session`."""

    def __init__(self, config: HostConfig, connections: HostConnections, guests: Guests, source: EventSource) -> None:
        super().__init__(config, connections, guests, source, DIALECT, _is_probe)
        driver, _ = parse_uri(config.uri)
        self._test: Final = driver == "test"
        self._pool_path: Final = default_pool_path(config)
        self._platform = Platform("test" if self._test else "qemu")
        self._accelerators = Accelerators(connections, self._platform.arch, self._pool_path)
        self._statuses: Sequence[AcceleratorStatus] = ()
        agent = Agent(guests)
        storage = Storage(
            connections, self._pool_path, no_volumes=capabilities.TEST_DRIVER[VOLUMES] if self._test else ""
        )
        volumes = None if self._test else Volumes(connections, storage)
        definitions = Definitions(connections, guests, variables_directory(config))
        self._facets: Final = Facets(
            shutdown=guests,
            reboot=guests,
            reset=guests,
            pause=guests,
            suspend=Suspend(guests),
            snapshots=Snapshots(guests, here=connections.local, images=not self._test),
            backup=Backups(guests, backup_directory(config)) if connections.local and not self._test else None,
            storage=storage,
            pools=None if self._test else Pools(connections),
            volume_changes=volumes,
            volume_transfer=volumes,
            volume_parts=None if self._test else Parts(connections),
            networks=Networks(connections),
            network_changes=None if self._test else NetworkChanges(connections),
            serial_console=None if self._test else Consoles(connections),
            screenshot=None if self._test else Screens(connections),
            agent=None if self._test else agent,
            display=None if self._test else Displays(connections),
            addresses=Addresses(guests, None if self._test else agent),
            metrics=None if self._test else Metrics(connections),
            event_source=source,
            definitions=definitions,
            autostart=definitions,
            update=Update(guests, self.lower, self._without, POLICY),
            diagnosis=None if self._test else Doctor(connections, lambda: self._statuses),
            migration=None if self._test else Migration(config, connections, guests, MIGRATION),
        )

    async def prepare(self) -> None:
        """Learn what ``lower`` must know: it may ask nothing itself."""
        await self.learn()
        self._accelerators = Accelerators(self._connections, self._platform.arch, self._pool_path)

    async def learn(self) -> None:
        """Look at the host's facts again: huge pages may be reserved, or a program installed, by now."""
        driver, local = self._platform.driver, self._connections.local

        def run(connection: Any) -> Platform:
            return platforms.learn(connection, driver=driver, local=local)

        self._platform = await self._connections.call("virConnectGetDomainCapabilities", run)

    @property
    def facets(self) -> Facets:
        """The optional abilities."""
        return self._facets

    async def probe(self) -> HostFacts:
        """Ask the host, and try its accelerators (seconds the first time, then remembered).

        :raises UnavailableError: HOST_UNREACHABLE.
        """
        await self._connections.wait_connected(self._config.call_timeout_s)
        native = await self._connections.call("virConnectGetCapabilities", lambda connection: read(connection, NAMES))
        statuses: list[AcceleratorStatus] = []
        if not self._test:
            statuses = await asyncio.gather(
                *(
                    self._accelerators.status(accelerator, offered=kind in native.domain_kinds)
                    for accelerator, kind in ((Accelerator.KVM, "kvm"), (Accelerator.TCG, "qemu"))
                )
            )
            self._statuses = statuses
        await self.learn()
        local = self._test or self._connections.local
        return host_facts(native, statuses, capabilities.probed(statuses, self._platform.missing, local=local))

    def _without(self) -> Mapping[str, str]:
        """The capabilities that this host has not, and why."""
        return capabilities.TEST_DRIVER if self._test else {}

    def lower(self, guest: ResolvedGuest) -> NativePlan:
        """The domain XML, and what became of each field."""
        return design(guest, self._platform)


async def open_session(config: HostConfig) -> KvmSession:
    """Connect to a host.

    :raises InvalidArgumentError: CONFIG_INVALID.
    :raises UnavailableError: HOST_UNREACHABLE; nothing is left behind.
    """
    return await open_libvirt(config, KvmSession, _is_probe)
