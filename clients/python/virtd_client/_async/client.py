"""The client."""

from __future__ import annotations

from functools import cached_property
from types import TracebackType
from typing import TYPE_CHECKING, Self

from virtd_client._target import parse_target

if TYPE_CHECKING:
    from virtd_client._async.agent import AsyncAgent
    from virtd_client._async.backups import AsyncBackups
    from virtd_client._async.console import AsyncConsole
    from virtd_client._async.devices import AsyncDevices
    from virtd_client._async.events import AsyncEvents
    from virtd_client._async.guests import AsyncGuests
    from virtd_client._async.images import AsyncImages
    from virtd_client._async.lifecycle import AsyncTrash
    from virtd_client._async.migrations import AsyncMigrations
    from virtd_client._async.networks import AsyncNetworks
    from virtd_client._async.observe import AsyncAudit, AsyncMetrics
    from virtd_client._async.resources import AsyncHosts, AsyncServer
    from virtd_client._async.runtime import AsyncOperations
    from virtd_client._async.schedules import AsyncSchedules
    from virtd_client._async.snapshots import AsyncSnapshots
    from virtd_client._async.storage import AsyncPools, AsyncVolumes
    from virtd_client._async.transfers import AsyncUploads
    from virtd_client._async.transport import AsyncTransport


class AsyncClient:
    """A connection to virtd: ``async with AsyncClient.connect() as client: ...``.

    Errors of every method are those of :mod:`virtd_client.errors`.  A call is repeated, with the same
    request id, while the daemon is away, within its time limit.  Do not fork a process after the
    first call: gRPC's threads and sockets do not survive it; start workers before, or by "spawn".
    """

    def __init__(self, transport: AsyncTransport) -> None:
        self._transport = transport

    @classmethod
    def connect(
        cls,
        target: str | None = None,
        *,
        timeout_s: float = 30.0,
        retry_s: float | None = None,
        token: str | None = None,
    ) -> Self:
        """A client for a target; the connection is made by the first call.

        :param target: ``unix:PATH`` or ``HOST:PORT`` of this machine; None: ``$VIRTD_TARGET``, else the
            socket of the user's own daemon where there is one, else ``/run/virtd/virtd.sock``.
        :param timeout_s: how long one call may take, repetitions included.
        :param retry_s: how long a call, a wait or a watch goes on while the daemon is away; None: until
            the time of a call is over; a wait or a watch, for ever.
        :param token: sent as a bearer token.
        :raises ValueError: a target of another form, or one on another machine.
        """
        from virtd_client._async.transport import AsyncTransport
        from virtd_client._io import aio as io

        connection = io.Connection(parse_target(target))
        return cls(AsyncTransport(connection, timeout_s=timeout_s, retry_s=retry_s, token=token))

    @property
    def target(self) -> str:
        """The address of the daemon."""
        return str(self._transport.connection.target)

    def with_timeout(self, timeout_s: float) -> Self:
        """The same connection with another time limit for calls; close only one of the two."""
        return type(self)(self._transport.with_timeout(timeout_s))

    async def close(self) -> None:
        """Close the connection; what is under way ends."""
        await self._transport.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    @cached_property
    def server(self) -> AsyncServer:
        """The daemon itself."""
        from virtd_client._async.resources import AsyncServer

        return AsyncServer(self._transport)

    @cached_property
    def hosts(self) -> AsyncHosts:
        """Hosts: hypervisor endpoints."""
        from virtd_client._async.resources import AsyncHosts

        return AsyncHosts(self._transport)

    @cached_property
    def guests(self) -> AsyncGuests:
        """Guests of all hosts."""
        from virtd_client._async.guests import AsyncGuests

        return AsyncGuests(self._transport)

    @cached_property
    def devices(self) -> AsyncDevices:
        """Disks, interfaces and media of guests."""
        from virtd_client._async.devices import AsyncDevices

        return AsyncDevices(self._transport)

    @cached_property
    def trash(self) -> AsyncTrash:
        """Deleted guests that can be brought back."""
        from virtd_client._async.lifecycle import AsyncTrash

        return AsyncTrash(self._transport)

    @cached_property
    def backups(self) -> AsyncBackups:
        """Backups of guests."""
        from virtd_client._async.backups import AsyncBackups

        return AsyncBackups(self._transport)

    @cached_property
    def migrations(self) -> AsyncMigrations:
        """Guests that go from one host to another."""
        from virtd_client._async.migrations import AsyncMigrations

        return AsyncMigrations(self._transport)

    @cached_property
    def schedules(self) -> AsyncSchedules:
        """Schedules: snapshots that are taken again and again."""
        from virtd_client._async.schedules import AsyncSchedules

        return AsyncSchedules(self._transport)

    @cached_property
    def snapshots(self) -> AsyncSnapshots:
        """Snapshots of guests."""
        from virtd_client._async.snapshots import AsyncSnapshots

        return AsyncSnapshots(self._transport)

    @cached_property
    def pools(self) -> AsyncPools:
        """Storage pools of hosts."""
        from virtd_client._async.storage import AsyncPools

        return AsyncPools(self._transport)

    @cached_property
    def volumes(self) -> AsyncVolumes:
        """Volumes of pools."""
        from virtd_client._async.storage import AsyncVolumes

        return AsyncVolumes(self._transport)

    @cached_property
    def uploads(self) -> AsyncUploads:
        """Files that are on their way to the daemon."""
        from virtd_client._async.transfers import AsyncUploads

        return AsyncUploads(self._transport)

    @cached_property
    def networks(self) -> AsyncNetworks:
        """Networks of hosts."""
        from virtd_client._async.networks import AsyncNetworks

        return AsyncNetworks(self._transport)

    @cached_property
    def images(self) -> AsyncImages:
        """The catalogue of disk images."""
        from virtd_client._async.images import AsyncImages

        return AsyncImages(self._transport)

    @cached_property
    def console(self) -> AsyncConsole:
        """Serial consoles and screenshots."""
        from virtd_client._async.console import AsyncConsole

        return AsyncConsole(self._transport)

    @cached_property
    def agent(self) -> AsyncAgent:
        """The guest's agent."""
        from virtd_client._async.agent import AsyncAgent

        return AsyncAgent(self._transport)

    @cached_property
    def events(self) -> AsyncEvents:
        """The event log."""
        from virtd_client._async.events import AsyncEvents

        return AsyncEvents(self._transport)

    @cached_property
    def metrics(self) -> AsyncMetrics:
        """Usage of guests."""
        from virtd_client._async.observe import AsyncMetrics

        return AsyncMetrics(self._transport)

    @cached_property
    def audit(self) -> AsyncAudit:
        """Who asked for what."""
        from virtd_client._async.observe import AsyncAudit

        return AsyncAudit(self._transport)

    @cached_property
    def operations(self) -> AsyncOperations:
        """Operations by name."""
        from virtd_client._async.runtime import AsyncOperations

        return AsyncOperations(self._transport)
