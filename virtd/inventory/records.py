"""What the inventory keeps of a guest, and the pure changes of it."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Final
from uuid import UUID

from virtd.model.guest import Guest, GuestSpec, GuestState, GuestStatus, Origin, Presence
from virtd.model.host import Host
from virtd.model.names import GuestName, parse_guest
from virtd.model.operation import Operation
from virtd.store import Codec

CODEC: Final = Codec(Guest)


@dataclass(frozen=True, slots=True)
class Encoders:
    """How records become protobuf bytes; given by the edge, so that the inventory knows no protobuf."""

    guest: Callable[[Guest], bytes]
    operation: Callable[[Operation], bytes]
    host: Callable[[Host], bytes]


@dataclass(frozen=True, slots=True)
class GuestView:
    """A guest as it is now, and its encoding."""

    guest: Guest
    encoded: bytes
    owned_volumes: tuple[str, ...] = ()
    """Names of the volumes that virtd created for it (``pool/volume``)."""

    @property
    def key(self) -> GuestName:
        """Its parsed name."""
        return parse_guest(self.guest.name)


def upsert(view: GuestView) -> Callable[[sqlite3.Connection], None]:
    """A write of a guest's row."""
    name, guest = view.key, view.guest
    row = (
        str(guest.uid),
        name.host,
        name.guest,
        int(guest.status.origin is Origin.MANAGED),
        CODEC.encode(guest),
        json.dumps(list(view.owned_volumes)),
    )

    def upsert(connection: sqlite3.Connection) -> None:
        connection.execute("DELETE FROM guests WHERE host = ? AND id = ? AND uid != ?", (row[1], row[2], row[0]))
        connection.execute("INSERT OR REPLACE INTO guests VALUES (?, ?, ?, ?, ?, ?)", row)

    return upsert


def foreign(name: GuestName, uid: UUID, native_name: str, state: GuestState, native_state: str) -> Guest:
    """A guest that somebody else has defined, as far as a list or an event tells of it."""
    now = datetime.now(UTC)
    return Guest(
        name=str(name),
        uid=uid,
        spec=GuestSpec(),
        status=GuestStatus(
            state=state,
            native_state=native_state,
            presence=Presence.PRESENT,
            origin=Origin.FOREIGN,
            state_change_time=now,
        ),
        display_name=native_name,
        native_ref=str(uid),
        generation=1,
        etag=f"1-{uid.hex[:8]}",
        create_time=now,
        update_time=now,
    )


def edited(guest: Guest, edit: Callable[[Guest], Guest]) -> Guest:
    """A new generation of a guest."""
    generation = guest.generation + 1
    return replace(
        edit(guest),
        generation=generation,
        etag=f"{generation}-{guest.uid.hex[:8]}",
        update_time=datetime.now(UTC),
    )


def without_counters(host: Host) -> Host:
    """What of a host is worth an event: not that it has answered once more, nor how many guests it has."""
    return replace(host, last_contact_time=None, guest_count=None)


def weaker(presence: Presence) -> Presence:
    """What a presence is when the host does not answer any more: absent stays absent."""
    return presence if presence is Presence.ABSENT else Presence.UNKNOWN


def fresh(guest: Guest) -> Guest:
    """A guest that its host has just spoken of."""
    if guest.status.stale_since is None and guest.status.presence is Presence.PRESENT:
        return guest
    return replace(guest, status=replace(guest.status, stale_since=None, presence=Presence.PRESENT))


def with_reason(guest: Guest, reason: str) -> Guest:
    """A guest in the same state for another reason."""
    return replace(guest, status=replace(guest.status, state_reason=reason))


def with_state(guest: Guest, state: GuestState, reason: str, native_state: str) -> Guest:
    """A guest in a state, with the reason."""
    status = guest.status
    if status.state is state:
        # The same state seen again by a list or a read, which know less of the why than an event.
        reason = reason if status.state_reason in ("CREATING", "UNDEFINED_OUTSIDE") else status.state_reason
        return replace(
            guest, status=replace(status, state_reason=reason, native_state=native_state or status.native_state)
        )
    return replace(
        guest,
        status=replace(
            status,
            state=state,
            state_reason=reason,
            native_state=native_state,
            state_change_time=datetime.now(UTC),
        ),
    )


def without_password(uri: str) -> str:
    """The URI fit for eyes and logs."""
    scheme, separator, rest = uri.partition("://")
    authority, slash, path = rest.partition("/")
    user, at, address = authority.rpartition("@")
    if at and ":" in user:
        authority = user.partition(":")[0] + ":***@" + address
    return scheme + separator + authority + slash + path
