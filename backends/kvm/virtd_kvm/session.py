"""One libvirt host with QEMU guests: level 0, and the facets put together."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Sequence
from typing import Final
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
from virtd.errors import FIELD_UNSUPPORTED, FieldViolation, InvalidArgumentError, VirtdError
from virtd.libvirt.connections import HostConnections, parse_uri
from virtd.libvirt.consoles import Consoles
from virtd.libvirt.guests import Guests
from virtd.libvirt.metrics import Metrics
from virtd.libvirt.networks import Networks
from virtd.libvirt.notifications import EventSource
from virtd.libvirt.screens import Screens
from virtd.libvirt.snapshots import Snapshots, refuse_by_disks, refuse_by_state
from virtd.libvirt.storage import Storage
from virtd.libvirt.suspend import Suspend
from virtd.libvirt.xml.domain import Domain
from virtd.model.guest import Accelerator
from virtd.model.host import AcceleratorStatus, HostFacts
from virtd_kvm import capabilities, facts
from virtd_kvm.accelerator import PROBE_PREFIX, Accelerators
from virtd_kvm.addresses import Addresses
from virtd_kvm.agent import Agent
from virtd_kvm.designer import Platform, design
from virtd_kvm.places import default_pool_path
from virtd_kvm.reader import read_guest


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
        self._native_facts: facts.NativeFacts | None = None
        agent = Agent(guests)
        self._facets: Final = Facets(
            shutdown=guests,
            reboot=guests,
            reset=guests,
            pause=guests,
            suspend=Suspend(guests),
            snapshots=Snapshots(guests, refuse_by_state if self._test else refuse_by_disks),
            storage=Storage(
                connections, self._pool_path, no_volumes=capabilities.TEST_DRIVER[VOLUMES] if self._test else ""
            ),
            networks=Networks(connections),
            serial_console=None if self._test else Consoles(connections),
            screenshot=None if self._test else Screens(connections),
            agent=None if self._test else agent,
            addresses=Addresses(guests, None if self._test else agent),
            metrics=None if self._test else Metrics(connections),
            event_source=source,
        )

    async def prepare(self) -> None:
        """Learn what ``lower`` must know: it may ask nothing itself."""
        architecture = await self._connections.call("virNodeGetInfo", lambda connection: connection.getInfo()[0])
        self._platform = Platform(self._platform.driver, str(architecture))
        self._accelerators = Accelerators(self._connections, self._platform.arch, self._pool_path)

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
        missing = capabilities.TEST_DRIVER if self._test else native.missing
        return facts.host_facts(native, statuses, capabilities.probed(statuses, missing))

    async def list_guests(self) -> Sequence[GuestSummary]:
        """All guests, in two native calls at most."""
        return [guest for guest in await self._guests.list() if not _is_probe(guest.name)]

    async def get_guest(self, uuid: UUID) -> NativeGuest:
        """One guest in full."""
        state, xml, persistent = await self._guests.describe(uuid)
        return read_guest(uuid, state, Domain.parse(xml), persistent=persistent)

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
        state, xml, persistent = await self._guests.define(guest.uuid, guest.name, plan.native)
        return read_guest(guest.uuid, state, Domain.parse(xml), persistent=persistent)

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
    connections = HostConnections(config.uri, workers=config.workers, call_timeout_s=config.call_timeout_s)
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
