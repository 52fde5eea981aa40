# Generated from _async/client.py by `python -m tests.tools.gen_sync_client`; never edited by hand.
"""The client."""

from __future__ import annotations

from functools import cached_property
from types import TracebackType
from typing import TYPE_CHECKING, Self

from virtd_client._target import parse_target

if TYPE_CHECKING:
    from virtd_client._sync.agent import Agent
    from virtd_client._sync.backups import Backups
    from virtd_client._sync.console import Console
    from virtd_client._sync.devices import Devices
    from virtd_client._sync.events import Events
    from virtd_client._sync.guests import Guests
    from virtd_client._sync.images import Images
    from virtd_client._sync.lifecycle import Trash
    from virtd_client._sync.migrations import Migrations
    from virtd_client._sync.networks import Networks
    from virtd_client._sync.observe import Audit, Metrics
    from virtd_client._sync.resources import Hosts, Server
    from virtd_client._sync.runtime import Operations
    from virtd_client._sync.schedules import Schedules
    from virtd_client._sync.snapshots import Snapshots
    from virtd_client._sync.storage import Pools, Volumes
    from virtd_client._sync.transfers import Uploads
    from virtd_client._sync.transport import Transport


class Client:
    """A connection to virtd: ``with Client.connect() as client: ...``.

    Errors of every method are those of :mod:`virtd_client.errors`.  A call is repeated, with the same
    request id, while the daemon is away, within its time limit.  Do not fork a process after the
    first call: gRPC's threads and sockets do not survive it; start workers before, or by "spawn".
    """

    def __init__(self, transport: Transport) -> None:
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
        from virtd_client._io import blocking as io
        from virtd_client._sync.transport import Transport

        connection = io.Connection(parse_target(target))
        return cls(Transport(connection, timeout_s=timeout_s, retry_s=retry_s, token=token))

    @property
    def target(self) -> str:
        """The address of the daemon."""
        return str(self._transport.connection.target)

    def with_timeout(self, timeout_s: float) -> Self:
        """The same connection with another time limit for calls; close only one of the two."""
        return type(self)(self._transport.with_timeout(timeout_s))

    def close(self) -> None:
        """Close the connection; what is under way ends."""
        self._transport.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @cached_property
    def server(self) -> Server:
        """The daemon itself."""
        from virtd_client._sync.resources import Server

        return Server(self._transport)

    @cached_property
    def hosts(self) -> Hosts:
        """Hosts: hypervisor endpoints."""
        from virtd_client._sync.resources import Hosts

        return Hosts(self._transport)

    @cached_property
    def guests(self) -> Guests:
        """Guests of all hosts."""
        from virtd_client._sync.guests import Guests

        return Guests(self._transport)

    @cached_property
    def devices(self) -> Devices:
        """Disks, interfaces and media of guests."""
        from virtd_client._sync.devices import Devices

        return Devices(self._transport)

    @cached_property
    def trash(self) -> Trash:
        """Deleted guests that can be brought back."""
        from virtd_client._sync.lifecycle import Trash

        return Trash(self._transport)

    @cached_property
    def backups(self) -> Backups:
        """Backups of guests."""
        from virtd_client._sync.backups import Backups

        return Backups(self._transport)

    @cached_property
    def migrations(self) -> Migrations:
        """Guests that go from one host to another."""
        from virtd_client._sync.migrations import Migrations

        return Migrations(self._transport)

    @cached_property
    def schedules(self) -> Schedules:
        """Schedules: snapshots that are taken again and again."""
        from virtd_client._sync.schedules import Schedules

        return Schedules(self._transport)

    @cached_property
    def snapshots(self) -> Snapshots:
        """Snapshots of guests."""
        from virtd_client._sync.snapshots import Snapshots

        return Snapshots(self._transport)

    @cached_property
    def pools(self) -> Pools:
        """Storage pools of hosts."""
        from virtd_client._sync.storage import Pools

        return Pools(self._transport)

    @cached_property
    def volumes(self) -> Volumes:
        """Volumes of pools."""
        from virtd_client._sync.storage import Volumes

        return Volumes(self._transport)

    @cached_property
    def uploads(self) -> Uploads:
        """Files that are on their way to the daemon."""
        from virtd_client._sync.transfers import Uploads

        return Uploads(self._transport)

    @cached_property
    def networks(self) -> Networks:
        """Networks of hosts."""
        from virtd_client._sync.networks import Networks

        return Networks(self._transport)

    @cached_property
    def images(self) -> Images:
        """The catalogue of disk images."""
        from virtd_client._sync.images import Images

        return Images(self._transport)

    @cached_property
    def console(self) -> Console:
        """Serial consoles and screenshots."""
        from virtd_client._sync.console import Console

        return Console(self._transport)

    @cached_property
    def agent(self) -> Agent:
        """The guest's agent."""
        from virtd_client._sync.agent import Agent

        return Agent(self._transport)

    @cached_property
    def events(self) -> Events:
        """The event log."""
        from virtd_client._sync.events import Events

        return Events(self._transport)

    @cached_property
    def metrics(self) -> Metrics:
        """Usage of guests."""
        from virtd_client._sync.observe import Metrics

        return Metrics(self._transport)

    @cached_property
    def audit(self) -> Audit:
        """Who asked for what."""
        from virtd_client._sync.observe import Audit

        return Audit(self._transport)

    @cached_property
    def operations(self) -> Operations:
        """Operations by name."""
        from virtd_client._sync.runtime import Operations

        return Operations(self._transport)
