"""Use cases of hosts: configured, found, added."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

from virtd.backend.api import CheckingBackend, HostConfig
from virtd.errors import (
    CONFIG_INVALID,
    HOST_EXISTS,
    HOST_NOT_EMPTY,
    INVALID_STATE,
    AlreadyExistsError,
    FailedPreconditionError,
    VirtdError,
    invalid_field,
)
from virtd.inventory import HostLink
from virtd.model.guest import Origin
from virtd.model.host import Capability, CheckStatus, Host, HostCheck
from virtd.model.names import GuestName, check_new_id, shown
from virtd.service.call import Call, Page, page_of
from virtd.service.core import Core
from virtd.store import Codec

URI_MAX: Final = 2000
_NONE: Final[Mapping[str, str]] = {}


@dataclass(frozen=True, slots=True)
class AddedHost:
    """What AddHost remembers."""

    id: str
    uri: str
    labels: Mapping[str, str] = field(default_factory=dict)
    options: Mapping[str, str] = field(default_factory=dict)


_CODEC: Final = Codec(AddedHost)
MakeLink = Callable[[str, str, str, Mapping[str, str], Mapping[str, str]], HostLink]
"""(id, uri, origin, labels, options) -> a started link; raises CONFIG_INVALID for a URI that no backend takes."""


class Hosts:
    """Use cases of hosts."""

    def __init__(self, core: Core, make_link: MakeLink) -> None:
        self._core = core
        self._make_link = make_link

    def load_added(self) -> list[AddedHost]:
        """What AddHost has remembered (for start-up)."""
        rows = self._core.database.read_now(
            lambda connection: connection.execute("SELECT record FROM hosts ORDER BY id").fetchall()
        )
        return [_CODEC.decode(record) for (record,) in rows]

    def get(self, host_id: str) -> Host:
        """A host.

        :raises NotFoundError: HOST_NOT_FOUND.
        """
        return self._core.link(host_id).host

    async def list(self, page_size: int, page_token: str) -> Page[Host]:
        """All hosts, by name."""
        return page_of(self._core.inventory.hosts(), page_size, page_token, lambda host: host.name)

    async def add(
        self,
        call: Call,
        host_id: str,
        uri: str,
        labels: Mapping[str, str],
        options: Mapping[str, str] = _NONE,
    ) -> Host:
        """Add a host and remember it; it connects by itself.

        :raises AlreadyExistsError: HOST_EXISTS, unless it is there with the same URI (a repetition).
        :raises InvalidArgumentError: FIELD_INVALID for the id, the URI or the options.
        """
        check_new_id(host_id, "host_id")
        if not uri or len(uri) > URI_MAX or not uri.isprintable():
            raise invalid_field("uri", f"{shown(uri)} is not a URI")
        if host_id in self._core.links:
            link = self._core.links[host_id]
            if call.request_id and link.config.uri == uri and link.host.origin == "added":
                return link.host
            raise AlreadyExistsError(HOST_EXISTS, f"there is a host {host_id} already", resource=f"hosts/{host_id}")
        self._check(host_id, uri, options)
        if call.validate_only:
            return Host(name=f"hosts/{host_id}", backend="", uri=uri, labels=dict(labels))
        record = _CODEC.encode(AddedHost(host_id, uri, dict(labels), dict(options)))

        def insert(connection: sqlite3.Connection) -> None:
            connection.execute("INSERT OR REPLACE INTO hosts VALUES (?, ?)", (host_id, record))

        await self._core.database.write(insert)
        self._core.links[host_id] = self._make_link(host_id, uri, "added", labels, options)
        return self._core.links[host_id].host

    def _check(self, host_id: str, uri: str, options: Mapping[str, str]) -> None:
        wrong = "uri"
        try:
            backend = self._core.plugins.backend_for_uri(uri)
            if isinstance(backend, CheckingBackend):
                # What the URI alone is refused for is the URI's fault, and all else the options'.
                backend.check_host(HostConfig(host_id, uri, ""))
                wrong = "options"
                backend.check_host(HostConfig(host_id, uri, "", options=dict(options)))
            elif options:
                wrong = "options"
                raise invalid_field(wrong, f"the backend {backend.descriptor.id} has no options for hosts")
        except VirtdError as error:
            if error.reason is CONFIG_INVALID:
                raise invalid_field(wrong, error.message) from None
            raise

    async def remove(self, call: Call, host_id: str, force: bool) -> None:
        """Forget a host that AddHost added; guests stay as they are.

        :raises FailedPreconditionError: HOST_NOT_EMPTY, or INVALID_STATE for a configured host.
        """
        link = self._core.link(host_id)
        if link.host.origin != "added":
            raise FailedPreconditionError(
                INVALID_STATE,
                f"host {host_id} comes from the {link.host.origin} and cannot be removed by a call: "
                "remove it from the configuration",
                resource=f"hosts/{host_id}",
            )
        managed = [v for v in self._core.inventory.guests(host_id) if v.guest.status.origin is Origin.MANAGED]
        if managed and not force:
            raise FailedPreconditionError(
                HOST_NOT_EMPTY,
                f"virtd manages {len(managed)} guests on {host_id}",
                resource=f"hosts/{host_id}",
                metadata={"guests": str(len(managed))},
            )
        if call.validate_only:
            return
        await self._core.database.write(
            lambda connection: connection.execute("DELETE FROM hosts WHERE id = ?", (host_id,))
        )
        del self._core.links[host_id]
        await link.stop()
        self._core.inventory.remove_host(host_id)

    async def probe(self, host_id: str) -> Host:
        """Look at the host now.

        :raises UnavailableError: HOST_UNREACHABLE.
        """
        return await self._core.link(host_id).probe()

    async def diagnose(self, host_id: str) -> Sequence[HostCheck]:
        """Look a host over.  A host that does not answer is a check that says so.

        :raises NotFoundError: HOST_NOT_FOUND.
        """
        await self._core.settled(host_id)
        link = self._core.link(host_id)
        try:
            await link.probe()
            diagnosis = link.facets.diagnosis
            found = await link.call(diagnosis.diagnose()) if diagnosis is not None else ()
        except VirtdError as error:
            return (HostCheck("connection", CheckStatus.PROBLEM, error.message, error.reason.remedy),)
        answers = HostCheck("connection", CheckStatus.OK, f"{link.host.facts.api or 'the host'} answers")
        return (answers, *found)

    def capabilities(
        self, host_id: str, *, machine: str = "", guest: GuestName | None = None
    ) -> tuple[Capability, ...]:
        """What the host can do, or what can be done with a kind of guests, or with one guest, with reasons.

        :raises NotFoundError: HOST_NOT_FOUND or GUEST_NOT_FOUND.
        :raises InvalidArgumentError: FIELD_INVALID: both a machine and a guest, a guest of another host, or no
            kind of this host's guests.
        """
        link = self._core.link(host_id)
        if guest is not None:
            if machine:
                raise invalid_field("machine", "a guest is of one kind: leave the machine out")
            if guest.host != host_id:
                raise invalid_field("guest", f"{shown(str(guest))} is not a guest of hosts/{host_id}")
            machine = self._core.view(guest).guest.spec.machine
        elif machine and machine not in (kinds := [kind.machine for kind in link.host.facts.guest_kinds]):
            what = "guests of this host are of one kind" if not kinds else f"{shown(machine)} is no kind of its guests"
            raise invalid_field("machine", what, *kinds)
        return link.capabilities_of(machine)


__all__ = ["AddedHost", "HostConfig", "Hosts", "MakeLink"]
