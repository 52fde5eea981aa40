"""One libvirt host with QEMU guests: level 0, and the facets put together."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Final
from uuid import UUID

from virtd.backend.api import (
    CallContext,
    Facets,
    Fidelity,
    GuestSummary,
    HostConfig,
    NativeGuest,
    NativePlan,
    ResolvedGuest,
)
from virtd.backend.capabilities import VOLUMES
from virtd.backend.pending import pending_fields
from virtd.errors import FIELD_UNSUPPORTED, FieldViolation, InvalidArgumentError, VirtdError
from virtd.libvirt.backup import Backups
from virtd.libvirt.connections import HostConnections, parse_uri
from virtd.libvirt.consoles import Consoles
from virtd.libvirt.definitions import Definitions
from virtd.libvirt.displays import Displays
from virtd.libvirt.guests import Guests
from virtd.libvirt.metrics import Metrics
from virtd.libvirt.networks import NetworkChanges, Networks
from virtd.libvirt.notifications import EventSource
from virtd.libvirt.pools import Pools
from virtd.libvirt.screens import Screens
from virtd.libvirt.snapshots import Snapshots
from virtd.libvirt.states import State
from virtd.libvirt.storage import Storage
from virtd.libvirt.suspend import Suspend
from virtd.libvirt.volumes import Volumes
from virtd.libvirt.xml.domain import Domain
from virtd.model.guest import Accelerator
from virtd.model.host import AcceleratorStatus, HostFacts
from virtd_kvm import capabilities, facts, platforms
from virtd_kvm.accelerator import PROBE_PREFIX, Accelerators
from virtd_kvm.addresses import Addresses
from virtd_kvm.agent import Agent
from virtd_kvm.designer import Platform, design
from virtd_kvm.doctor import Doctor
from virtd_kvm.places import backup_directory, default_pool_path, variables_directory
from virtd_kvm.reader import read_guest
from virtd_kvm.unmodelled import unmodelled_of
from virtd_kvm.update import Update


def _read(uuid: UUID, state: State, xml: str, *, persistent: bool) -> NativeGuest:
    return read_guest(uuid, state, Domain.parse(xml), persistent=persistent, unmodelled=unmodelled_of(xml))


def _is_probe(name: str) -> bool:
    return name.startswith(PROBE_PREFIX)


class KvmSession:
    """A connected host.  Made by :func:`open_session`."""

    def __init__(self, config: HostConfig, connections: HostConnections, guests: Guests, source: EventSource) -> None:
        self._config: Final = config
        self._connections: Final = connections
        self._guests: Final = guests
        self._source: Final = source
        driver, _ = parse_uri(config.uri)
        self._test: Final = driver == "test"
        self._pool_path: Final = default_pool_path(config)
        self._platform = Platform("test" if self._test else "qemu")
        self._accelerators = Accelerators(connections, self._platform.arch, self._pool_path)
        self._statuses: Sequence[AcceleratorStatus] = ()
        self._native_facts: facts.NativeFacts | None = None
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
            update=Update(guests, self.lower, self._without),
            diagnosis=None if self._test else Doctor(connections, lambda: self._statuses),
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

    async def close(self) -> None:
        """Release the connections; guests keep running."""
        self._source.close()
        await self._connections.close()

    async def probe(self) -> HostFacts:
        """Ask the host, and try its accelerators (seconds the first time, then remembered).

        :raises UnavailableError: HOST_UNREACHABLE.
        """
        await self._connections.wait_connected(self._config.call_timeout_s)
        native = await self._connections.call("virConnectGetCapabilities", facts.read)
        self._native_facts = native
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
        return facts.host_facts(native, statuses, capabilities.probed(statuses, self._platform.missing))

    async def list_guests(self) -> Sequence[GuestSummary]:
        """All guests, in two native calls at most."""
        return [guest for guest in await self._guests.list() if not _is_probe(guest.name)]

    async def get_guest(self, uuid: UUID) -> NativeGuest:
        """One guest in full."""
        (state, xml, persistent), config = await self._guests.describe_both(uuid)
        guest = _read(uuid, state, xml, persistent=persistent)
        if not config:
            return guest
        written = _read(uuid, state, config, persistent=persistent)
        return replace(guest, pending_restart_fields=pending_fields(guest.spec, written.spec))

    def _without(self) -> Mapping[str, str]:
        """The capabilities that this host has not, and why."""
        return capabilities.TEST_DRIVER if self._test else {}

    def lower(self, guest: ResolvedGuest) -> NativePlan:
        """The domain XML, and what became of each field."""
        return design(guest, self._platform)

    async def define_guest(self, guest: ResolvedGuest, context: CallContext) -> NativeGuest:
        """Define or redefine."""
        plan = self.lower(guest)
        rejected = [verdict for verdict in plan.verdicts if verdict.fidelity is Fidelity.REJECTED]
        if rejected:
            raise InvalidArgumentError(
                FIELD_UNSUPPORTED,
                "; ".join(f"{verdict.field}: {verdict.reason}" for verdict in rejected),
                violations=[
                    FieldViolation(verdict.field, verdict.reason, verdict.alternatives) for verdict in rejected
                ],
            )
        context.checkpoint()
        state, xml, persistent = await self._guests.define(
            guest.uuid, guest.name, plan.native, autostart=guest.autostart
        )
        return _read(guest.uuid, state, xml, persistent=persistent)

    async def undefine_guest(self, uuid: UUID, context: CallContext) -> None:
        """Forget the guest.  Idempotent."""
        await self._guests.undefine(uuid, context)

    async def start_guest(self, uuid: UUID, context: CallContext) -> None:
        """Start or restore.  Idempotent."""
        await self._guests.start(uuid, context)

    async def stop_guest(self, uuid: UUID, context: CallContext) -> None:
        """Cut the power.  Idempotent."""
        await self._guests.stop(uuid, context)


async def open_session(config: HostConfig) -> KvmSession:
    """Connect to a host.

    :raises InvalidArgumentError: CONFIG_INVALID.
    :raises UnavailableError: HOST_UNREACHABLE; nothing is left behind.
    """
    connections = HostConnections(
        config.uri, host=config.id, workers=config.workers, call_timeout_s=config.call_timeout_s
    )
    guests = Guests(connections)
    source = EventSource(guests, hidden=_is_probe)
    connections.listen(source.register, source.connection_changed)
    await connections.open()
    try:
        session = KvmSession(config, connections, guests, source)
        await session.prepare()
    except BaseException:
        with contextlib.suppress(VirtdError):
            await connections.close()
        raise
    return session
