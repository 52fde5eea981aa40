"""Graphical consoles: tickets that open one connection each.

A ticket is what a viewer is given instead of rights: good once, for one guest, for a short time, and
not longer than the guest runs.  Only a hash of it is kept, in memory: a restart of the daemon makes
all of them worthless, which is what a secret that nobody wrote down should do.
"""

from __future__ import annotations

import hashlib
import secrets
import time
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Final
from uuid import UUID

from virtd.backend import capabilities as cap
from virtd.backend.api import ConsoleStream
from virtd.errors import (
    CONSOLE_TICKET_INVALID,
    LIMIT_EXCEEDED,
    PermissionDeniedError,
    ResourceExhaustedError,
    invalid_field,
    unsupported,
)
from virtd.inventory import HostLink
from virtd.model.guest import GuestState
from virtd.model.names import GuestName
from virtd.service.call import Call
from virtd.service.core import Core

TTL_DEFAULT_S: Final = 60.0
TTL_MAX_S: Final = 600.0
TICKETS_MAX: Final = 32
"""So many tickets of one guest can be open at a time."""
DATA_MAX: Final = 64 * 1024
_BYTES: Final = 32
_ACTIVE: Final = (GuestState.RUNNING, GuestState.PAUSED)


@dataclass(frozen=True, slots=True)
class Ticket:
    """A ticket, as its first owner gets it."""

    ticket: str
    expire_time: datetime
    protocol: str
    method: str


@dataclass(frozen=True, slots=True)
class _Entry:
    uid: UUID
    deadline: float


class Graphics:
    """Use cases of graphical consoles."""

    def __init__(self, core: Core) -> None:
        self._core = core
        self._entries: dict[bytes, _Entry] = {}

    async def create(self, call: Call, name: GuestName, ttl_s: float) -> Ticket:
        """Make a ticket.

        :raises FailedPreconditionError: INVALID_STATE, GUEST_NOT_ADOPTED.
        :raises UnsupportedError: CAPABILITY_UNSUPPORTED.
        :raises ResourceExhaustedError: LIMIT_EXCEEDED.
        """
        ttl = ttl_s or TTL_DEFAULT_S
        if not 0 < ttl <= TTL_MAX_S:  # NaN as well
            raise invalid_field("ttl_s", f"must be above 0 and at most {TTL_MAX_S:g}")
        await self._core.settled(name.host)
        view = self._core.check_verb(name, "graphics")
        self._facet_link(name.host)
        graphics = view.guest.spec.graphics
        if graphics is None or not graphics.vnc:
            raise unsupported(cap.CONSOLE_GRAPHICAL, "the guest has no VNC display", resource=view.guest.name)
        self._expire()
        uid = view.guest.uid
        if sum(entry.uid == uid for entry in self._entries.values()) >= TICKETS_MAX:
            raise ResourceExhaustedError(
                LIMIT_EXCEEDED, f"{TICKETS_MAX} tickets of {name.guest} are open: use one, or wait", retry_after_s=ttl
            )
        ticket = secrets.token_urlsafe(_BYTES)
        self._entries[_hash(ticket)] = _Entry(uid, time.monotonic() + ttl)
        expires = datetime.now(UTC) + timedelta(seconds=ttl)
        return Ticket(ticket, expires, "vnc", "/virtd.v1.ConsoleService/AttachGraphics")

    async def open(self, ticket: str) -> tuple[str, ConsoleStream]:
        """Use a ticket up: the guest's name, and a connection to its display.

        :raises PermissionDeniedError: CONSOLE_TICKET_INVALID.
        """
        self._expire()
        entry = self._entries.pop(_hash(ticket), None)
        view = None if entry is None else self._core.inventory.by_uid(entry.uid)
        if view is None or view.guest.status.state not in _ACTIVE:
            raise PermissionDeniedError(
                CONSOLE_TICKET_INVALID, "the ticket is unknown, was used, has expired, or its guest has stopped since"
            )
        link = self._facet_link(view.key.host)
        display = link.facets.display
        assert display is not None
        return view.guest.name, await link.call(display.open_display(view.guest.uid))

    def drop(self, uid: UUID) -> None:
        """The guest has stopped, or is gone: its tickets with it."""
        for key in [key for key, entry in self._entries.items() if entry.uid == uid]:
            del self._entries[key]

    def _expire(self) -> None:
        now = time.monotonic()
        for key in [key for key, entry in self._entries.items() if entry.deadline <= now]:
            del self._entries[key]

    def _facet_link(self, host: str) -> HostLink:
        link = self._core.link(host)
        if link.facets.display is None:
            raise unsupported(cap.CONSOLE_GRAPHICAL, "the host offers no displays", resource=f"hosts/{host}")
        return link


def _hash(ticket: str) -> bytes:
    return hashlib.sha256(ticket.encode("utf-8", "surrogatepass")).digest()
