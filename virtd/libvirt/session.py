"""One host behind libvirt: what its guests are and how they live is asked in the same way for every hypervisor."""

from __future__ import annotations

import abc
import contextlib
from collections.abc import Callable, Collection, Sequence
from dataclasses import replace
from typing import Final, TypeVar
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
from virtd.backend.pending import pending_fields
from virtd.errors import FIELD_UNSUPPORTED, FieldViolation, InvalidArgumentError, VirtdError
from virtd.libvirt.connections import HostConnections
from virtd.libvirt.dialect import Dialect
from virtd.libvirt.guests import Guests
from virtd.libvirt.notifications import EventSource
from virtd.libvirt.reach import Reach
from virtd.libvirt.reader import read_guest
from virtd.libvirt.states import State
from virtd.libvirt.transports import address_of, complete, ssh_trial, tls_files
from virtd.libvirt.unmodelled import unmodelled_of
from virtd.libvirt.xml.domain import Domain
from virtd.model.host import HostFacts


class LibvirtSession(abc.ABC):
    """A connected host: all of :class:`virtd.backend.api.HostSession` but what a subclass knows.

    :param dialect: what the domains of this hypervisor are made of.
    :param hidden: whether a guest of this name is the backend's own affair, or the host itself.
    """

    def __init__(
        self,
        config: HostConfig,
        connections: HostConnections,
        guests: Guests,
        source: EventSource,
        dialect: Dialect,
        hidden: Callable[[str], bool],
    ) -> None:
        self._config: Final = config
        self._connections: Final = connections
        self._guests: Final = guests
        self._source: Final = source
        self._dialect: Final = dialect
        self._hidden: Final = hidden

    @abc.abstractmethod
    async def prepare(self) -> None:
        """Learn what :meth:`lower` must know; once, right after the connection is made."""

    @property
    @abc.abstractmethod
    def facets(self) -> Facets:
        """The optional abilities."""

    @abc.abstractmethod
    async def probe(self) -> HostFacts:
        """See :class:`virtd.backend.api.HostSession`."""

    @abc.abstractmethod
    def lower(self, guest: ResolvedGuest) -> NativePlan:
        """The domain XML, and what became of each field."""

    async def close(self) -> None:
        """Release the connections; guests keep running."""
        self._source.close()
        await self._connections.close()

    async def list_guests(self) -> Sequence[GuestSummary]:
        """All guests, in two native calls at most."""
        return [guest for guest in await self._guests.list() if not self._hidden(guest.name)]

    async def get_guest(self, uuid: UUID) -> NativeGuest:
        """One guest in full."""
        (state, xml, persistent), config = await self._guests.describe_both(uuid)
        guest = self._read(uuid, state, xml, persistent=persistent)
        if not config:
            return guest
        written = self._read(uuid, state, config, persistent=persistent)
        return replace(guest, pending_restart_fields=pending_fields(guest.spec, written.spec))

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
        return self._read(guest.uuid, state, xml, persistent=persistent)

    async def undefine_guest(self, uuid: UUID, context: CallContext) -> None:
        """Forget the guest.  Idempotent."""
        await self._guests.undefine(uuid, context)

    async def start_guest(self, uuid: UUID, context: CallContext) -> None:
        """Start or restore.  Idempotent."""
        await self._guests.start(uuid, context)

    async def stop_guest(self, uuid: UUID, context: CallContext) -> None:
        """Cut the power.  Idempotent."""
        await self._guests.stop(uuid, context)

    def _read(self, uuid: UUID, state: State, xml: str, *, persistent: bool) -> NativeGuest:
        return read_guest(
            uuid,
            state,
            Domain.parse(xml),
            self._dialect,
            persistent=persistent,
            unmodelled=unmodelled_of(xml, self._dialect),
        )


_Session = TypeVar("_Session", bound=LibvirtSession)
Make = Callable[[HostConfig, HostConnections, Guests, EventSource], _Session]


async def open_session(
    config: HostConfig,
    make: Make[_Session],
    hidden: Callable[[str], bool],
    *,
    untouchable: Collection[UUID] = (),
    reboots_stop: bool = False,
) -> _Session:
    """Connect to a host, and prepare the session that ``make`` makes.

    :param untouchable: domains that are no guests, by whatever way they are named.
    :param reboots_stop: see :class:`EventSource`.

    :raises InvalidArgumentError: CONFIG_INVALID.
    :raises UnavailableError: HOST_UNREACHABLE; nothing is left behind.
    """
    address = address_of(config.uri)
    connections = HostConnections(
        complete(config),
        host=config.id,
        workers=config.workers,
        call_timeout_s=config.call_timeout_s,
        way=None if address is None else Reach(address, tls_files(config), ssh_trial(config)),
        shown=config.uri,
    )
    guests = Guests(connections, untouchable)
    source = EventSource(guests, hidden=hidden, reboots_stop=reboots_stop)
    connections.listen(source.register, source.connection_changed)
    await connections.open()
    try:
        session = make(config, connections, guests, source)
        await session.prepare()
    except BaseException:
        with contextlib.suppress(VirtdError):
            await connections.close()
        raise
    return session
