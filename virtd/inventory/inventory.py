"""The inventory: one frozen record per guest, its protobuf bytes encoded once per change.

Every answer to a list or get comes from here; no native call is ever on that path.  Each change
becomes exactly one event.  The last picture is kept in the store, so that a restart reports what
changed meanwhile instead of starting from nothing.

Longer than 500 lines because the indexes, and everything that may change them, have to be read together.

Truth: *absent* is what the hypervisor said; a host that does not answer makes guests stale, not gone.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import replace
from datetime import UTC, datetime
from typing import Final
from uuid import UUID

import structlog

from virtd.backend.api import GuestSummary, NativeGuest
from virtd.backend.capabilities import of_kind
from virtd.errors import GUEST_EXISTS, GUEST_NOT_FOUND, HOST_NOT_FOUND, AlreadyExistsError, NotFoundError
from virtd.events import EventLog
from virtd.inventory.records import (
    CODEC,
    Encoders,
    GuestView,
    edited,
    foreign,
    fresh,
    upsert,
    weaker,
    with_reason,
    with_state,
    without_counters,
)
from virtd.inventory.rules import allowed_actions
from virtd.model.event import EventType
from virtd.model.guest import (
    Condition,
    ConditionStatus,
    ConditionType,
    Guest,
    GuestAddress,
    GuestState,
    Origin,
    Presence,
)
from virtd.model.host import Host
from virtd.model.metrics import GuestMetrics
from virtd.model.names import GuestName, parse_guest, slug
from virtd.model.operation import Operation
from virtd.store import Database

log = structlog.get_logger(__name__)

_RUNNING: Final = (GuestState.RUNNING, GuestState.PAUSED)
_OF_A_BOOT: Final = (ConditionType.BOOTED, ConditionType.AGENT_READY, ConditionType.NETWORK_READY)
"""What has to come true anew after a reboot."""
_LASTING: Final = (ConditionType.CRASH_LOOP,)
"""Conditions that a guest also has while it is down."""

MIGRATED: Final = "MIGRATED"
"""The reason that hypervisors give for a guest that runs on elsewhere."""
MOVED: Final = "MOVED"
"""The reason in the events of a guest that has another name because it is on another host."""


class Inventory:
    """All guests and hosts.  Every method belongs to the event loop and returns at once."""

    def __init__(self, database: Database, events: EventLog, encoders: Encoders) -> None:
        self._database = database
        self._events = events
        self._encoders = encoders
        self._views: dict[UUID, GuestView] = {}
        self._names: dict[tuple[str, str], UUID] = {}
        self._by_host: dict[str, set[UUID]] = {}
        self._hosts: dict[str, Host] = {}
        self._dormant: dict[str, list[GuestView]] = {}
        """The last picture of guests whose host is not there (any more, or yet)."""
        self._settled = False
        self._elsewhere: set[tuple[str, UUID]] = set()
        self._moving: set[UUID] = set()
        self.reboots: dict[UUID, int] = {}
        """How often each guest was seen to reboot since the daemon's start."""
        self.metrics: dict[UUID, GuestMetrics] = {}
        self.on_samples: Callable[[Sequence[GuestMetrics]], None] = lambda _samples: None
        """The last sample of each guest that runs."""

    def load(self) -> None:
        """Read the last picture.  A guest shows when its host is put, and is stale until that answers."""
        rows = self._database.read_now(
            lambda connection: connection.execute("SELECT record, owned_volumes FROM guests").fetchall()
        )
        now = datetime.now(UTC)
        for record, owned in rows:
            guest = CODEC.decode(record)
            status = replace(
                guest.status,
                stale_since=guest.status.stale_since or now,
                presence=weaker(guest.status.presence),
                current_operations=(),
            )
            view = GuestView(*self._encode(replace(guest, status=status)), tuple(json.loads(owned)))
            self._dormant.setdefault(view.key.host, []).append(view)

    def settle(self) -> None:
        """All hosts of the start are put: guests of others are not shown.

        What virtd knows of the guests that it manages is kept for the day when the host is back.
        """
        self._settled = True
        for host_id, views in list(self._dormant.items()):
            for view in views:
                self._tell_removed(view)
                if view.guest.status.origin is Origin.FOREIGN:
                    self._delete_row(view.guest.uid)
            self._dormant[host_id] = [view for view in views if view.guest.status.origin is Origin.MANAGED]
            self._events.emit(EventType.HOST_REMOVED, f"hosts/{host_id}")

    # ------------------------------------------------------------------------------------ reading

    def find(self, name: GuestName) -> GuestView | None:
        """The guest of that name, if there is one."""
        uid = self._names.get((name.host, name.guest))
        return self._views[uid] if uid is not None else None

    def get(self, name: GuestName) -> GuestView:
        """The guest of that name.

        :raises NotFoundError: HOST_NOT_FOUND or GUEST_NOT_FOUND.
        """
        self.host(name.host)
        view = self.find(name)
        if view is None:
            raise NotFoundError(GUEST_NOT_FOUND, f"there is no guest {name.guest} on {name.host}", resource=str(name))
        return view

    def by_uid(self, uid: UUID) -> GuestView | None:
        """The guest with that UUID, if virtd knows it."""
        return self._views.get(uid)

    def guests(self, host: str | None = None) -> list[GuestView]:
        """The guests of one host or of all, by name."""
        uids: Iterable[UUID] = self._views if host is None else self._by_host.get(host, ())
        return sorted((self._views[uid] for uid in uids), key=lambda view: view.guest.name)

    def host(self, host_id: str) -> Host:
        """A host.

        :raises NotFoundError: HOST_NOT_FOUND.
        """
        host = self._hosts.get(host_id)
        if host is None:
            raise NotFoundError(HOST_NOT_FOUND, f"there is no host {host_id}", resource=f"hosts/{host_id}")
        return replace(host, guest_count=len(self._by_host.get(host_id, ())))

    def hosts(self) -> list[Host]:
        """All hosts, by name."""
        return [self.host(key) for key in sorted(self._hosts)]

    def encoded_host(self, host: Host) -> bytes:
        """A host's protobuf bytes."""
        return self._encoders.host(host)

    # -------------------------------------------------------------------------------------- hosts

    def put_host(self, host: Host) -> None:
        """Add or change a host; guests' allowed actions follow its capabilities."""
        host_id = host.name.removeprefix("hosts/")
        old = self._hosts.get(host_id)
        for view in self._dormant.pop(host_id, ()):
            self._index(view)
            if self._settled:
                self._emit(EventType.GUEST_ADDED, view, {"state": view.guest.status.state.value})
        host = replace(host, guest_count=len(self._by_host.get(host_id, ())))
        self._hosts[host_id] = host
        if old is None or without_counters(old) != without_counters(host):
            self._events.emit(
                EventType.HOST_ADDED if old is None else EventType.HOST_CHANGED,
                host.name,
                payload=self._encoders.host(host),
                attributes={"state": host.state.value},
            )
        if old is not None and _abilities(old) != _abilities(host):
            for uid in list(self._by_host.get(host_id, ())):
                self._update(uid, lambda guest: guest)

    def remove_host(self, host_id: str) -> None:
        """Forget a host and its guests; they stay as they are."""
        for uid in list(self._by_host.get(host_id, ())):
            self.forget(uid)
        if self._hosts.pop(host_id, None) is not None:
            self._events.emit(EventType.HOST_REMOVED, f"hosts/{host_id}")

    def mark_stale(self, host_id: str, since: datetime) -> None:
        """The host does not answer: its guests are what was last seen, and may be anything now."""
        for uid in list(self._by_host.get(host_id, ())):
            self._update(
                uid,
                lambda guest: replace(
                    guest,
                    status=replace(
                        guest.status,
                        stale_since=guest.status.stale_since or since,
                        presence=weaker(guest.status.presence),
                    ),
                ),
            )

    # ---------------------------------------------------------------------------- managed guests

    def reserve(self, guest: Guest) -> GuestView:
        """Show a guest that virtd is about to create, before it exists.

        Idempotent by uid.

        :raises AlreadyExistsError: GUEST_EXISTS, somebody else has used the name meanwhile.
        """
        known = self._views.get(guest.uid)
        if known is not None:
            return known
        name = parse_guest(guest.name)
        if (name.host, name.guest) in self._names:
            raise AlreadyExistsError(
                GUEST_EXISTS, f"there is a guest {name.guest} on {name.host} already", resource=guest.name
            )
        return self._put(guest, EventType.GUEST_ADDED, {"state": guest.status.state.value})

    def own_volumes(self, uid: UUID, volumes: Sequence[str]) -> None:
        """Write down which volumes belong to a guest; durable with the next write."""
        view = self._views.get(uid)
        if view is None:
            return  # its host was removed
        self._views[uid] = replace(view, owned_volumes=tuple(volumes))
        text = json.dumps(list(volumes))
        self._database.submit(
            lambda connection: connection.execute("UPDATE guests SET owned_volumes = ? WHERE uid = ?", (text, str(uid)))
        )

    async def change(self, uid: UUID, edit: Callable[[Guest], Guest]) -> GuestView:
        """Change what the user owns (spec, labels, annotations, origin ...): a new generation and etag.

        Durable when it returns.

        :param edit: pure; it may be called twice.
        :raises NotFoundError: GUEST_NOT_FOUND, the guest is gone.
        :raises ResourceExhaustedError: STORAGE_FULL; nothing was changed.
        """
        # First on disk, then for all to see: a change that the disk refuses has not happened.
        await self._database.write(upsert(replace(self._known(uid), guest=edited(self._known(uid).guest, edit))))
        guest = edited(self._known(uid).guest, edit)
        return self._put(guest, EventType.GUEST_CHANGED, {"state": guest.status.state.value})

    def _known(self, uid: UUID) -> GuestView:
        view = self._views.get(uid)
        if view is None:
            raise NotFoundError(GUEST_NOT_FOUND, "the guest is gone")
        return view

    def forget(self, uid: UUID) -> Future[None] | None:
        """The guest is gone for good.  Idempotent.

        :returns: resolves when that is durable; None if it was not known.
        """
        view = self._views.pop(uid, None)
        if view is None:
            return None
        self._unindex(view)
        self._moving.discard(uid)
        self.metrics.pop(uid, None)
        # The event goes first: a crash between the two must not lose it.
        self._tell_removed(view)
        return self._delete_row(uid)

    def _tell_removed(self, view: GuestView) -> None:
        self._events.emit(
            EventType.GUEST_REMOVED,
            view.guest.name,
            uid=str(view.guest.uid),
            attributes={"previous_state": view.guest.status.state.value},
        )

    def _delete_row(self, uid: UUID) -> Future[None]:
        def delete(connection: sqlite3.Connection) -> None:
            connection.execute("DELETE FROM guests WHERE uid = ?", (str(uid),))

        return self._database.submit(delete)

    def set_moving(self, uid: UUID, *, moving: bool) -> None:
        """Whether a guest is on its way to another host: that the old one loses it is then no news."""
        if moving:
            self._moving.add(uid)
        else:
            self._moving.discard(uid)

    async def move(
        self, uid: UUID, name: GuestName, owned_volumes: Sequence[str], edit: Callable[[Guest], Guest]
    ) -> None:
        """The guest is on another host now, with all that virtd knows of it.  Durable when it returns; idempotent.

        Two events in a row: GUEST_REMOVED of the old name, GUEST_ADDED of the new one, the same UUID and the
        reason MOVED in both.

        :param edit: what else changes of what the user owns; pure.
        :raises NotFoundError: GUEST_NOT_FOUND, the guest is gone.
        :raises AlreadyExistsError: GUEST_EXISTS, another guest has the name.
        """
        holder = self._names.get((name.host, name.guest))
        if holder not in (None, uid):
            raise AlreadyExistsError(GUEST_EXISTS, f"there is a guest {name.guest} on {name.host}", resource=str(name))
        old = self._known(uid)
        if old.key == name:
            return

        def moved(view: GuestView) -> GuestView:
            guest = edited(view.guest, lambda guest: replace(edit(guest), name=str(name)))
            guest = replace(guest, status=replace(guest.status, current_operations=()))
            return GuestView(*self._encode(self._derive(guest)), tuple(owned_volumes))

        await self._database.write(upsert(moved(old)))
        view = moved(self._known(uid))
        self._unindex(old)
        self._index(view)
        state = view.guest.status.state.value
        removed = {"previous_state": state, "reason": MOVED, "moved_to": view.guest.name}
        self._events.emit(EventType.GUEST_REMOVED, old.guest.name, uid=str(uid), attributes=removed)
        self._emit(EventType.GUEST_ADDED, view, {"state": state, "reason": MOVED, "moved_from": old.guest.name})
        self._database.submit(upsert(view))
        self._elsewhere = {(host, other) for host, other in self._elsewhere if other != uid}

    def _unindex(self, view: GuestView) -> None:
        name = view.key
        if self._names.get((name.host, name.guest)) == view.guest.uid:
            del self._names[name.host, name.guest]
        self._by_host[name.host].discard(view.guest.uid)

    # ---------------------------------------------------------------------- what the hosts report

    def observe_list(
        self, host_id: str, summaries: Sequence[GuestSummary], moved: Collection[UUID] = frozenset()
    ) -> list[UUID]:
        """A complete list of a host: add what is new, update states, notice what is gone.

        It is as old as its question: guests that it lacks, or shows otherwise, are named for a closer look.

        :param moved: guests of which the host has reported something since the list was asked for.
        :returns: guests of which more should be read.
        """
        wanted: list[UUID] = []
        for summary in summaries:
            uid = summary.uuid
            if self._belongs_elsewhere(host_id, uid):
                continue
            view = self._views.get(uid)
            if uid in moved:
                wanted.append(uid)
            elif view is None:
                self._add_foreign(host_id, uid, summary.name, summary.state, summary.native_state)
                wanted.append(uid)
            else:
                if view.guest.status.state is not summary.state or view.guest.status.presence is not Presence.PRESENT:
                    wanted.append(uid)
                self._update(uid, fresh)
        for uid in self._by_host.get(host_id, set()) - {summary.uuid for summary in summaries}:
            status = self._views[uid].guest.status
            if status.presence is not Presence.ABSENT or status.stale_since is not None:
                wanted.append(uid)
        return wanted

    def observe_state(
        self, host_id: str, uid: UUID, state: GuestState, *, reason: str = "", native_state: str = "", name: str = ""
    ) -> None:
        """The host said in which state a guest is."""
        if self._belongs_elsewhere(host_id, uid):
            return
        view = self._views.get(uid)
        if view is None:
            self._add_foreign(host_id, uid, name or str(uid), state, native_state)
            return
        if uid in self._moving and reason == MIGRATED:
            return  # it does not stop: it goes on elsewhere
        self._update(uid, lambda guest: with_state(fresh(guest), state, reason, native_state))

    def observe(self, host_id: str, native: NativeGuest) -> None:
        """The host described a guest in full."""
        if self._belongs_elsewhere(host_id, native.uuid):
            return
        if native.uuid in self._moving and native.state_reason == MIGRATED and native.state is GuestState.STOPPED:
            return
        if native.uuid not in self._views:
            self._add_foreign(host_id, native.uuid, native.name, native.state, native.native_state)

        def merge(guest: Guest) -> Guest:
            managed = guest.status.origin is Origin.MANAGED
            guest = with_state(fresh(guest), native.state, native.state_reason, native.native_state)
            status = replace(
                guest.status,
                disks=native.disks,
                interfaces=native.interfaces,
                accelerator=native.accelerator or guest.status.accelerator,
                graphics_address=native.graphics_address,
                pending_restart_fields=native.pending_restart_fields,
                vcpus=native.vcpus,
                memory_bytes=native.memory_bytes,
                unmodelled=native.unmodelled,
            )
            return replace(
                guest,
                spec=guest.spec if managed else native.spec,
                display_name=guest.display_name if managed else native.name,
                native_ref=native.native_ref or str(native.uuid),
                status=status,
            )

        self._update(native.uuid, merge)

    def observe_absent(self, host_id: str, uid: UUID) -> None:
        """The host said that it has no such guest.

        A foreign guest is forgotten.  A managed one stays listed as ABSENT until it is deleted: its
        disks may still be there.
        """
        view = self._views.get(uid)
        if view is None or view.key.host != host_id or uid in self._moving:
            return
        if view.guest.status.origin is Origin.FOREIGN:
            self.forget(uid)
            return
        creating = view.guest.status.state_reason == "CREATING"

        def gone(guest: Guest) -> Guest:
            guest = replace(guest, status=replace(guest.status, presence=Presence.ABSENT, stale_since=None))
            return (
                guest if creating else with_reason(with_state(guest, GuestState.STOPPED, "", ""), "UNDEFINED_OUTSIDE")
            )

        self._update(uid, gone)

    def observe_condition(
        self, uid: UUID, type_: ConditionType, status: ConditionStatus, reason: str, message: str = ""
    ) -> None:
        """A condition of a guest is known anew."""
        view = self._views.get(uid)
        if view is None:
            return
        known = {condition.type: condition for condition in view.guest.status.conditions}
        old = known.get(type_)
        if old is not None and (old.status, old.reason, old.message) == (status, reason, message):
            return
        changed = datetime.now(UTC) if old is None or old.status is not status else old.change_time
        known[type_] = Condition(type_, status, reason, message, change_time=changed)
        conditions = tuple(known[key] for key in ConditionType if key in known)
        self._update(uid, lambda guest: replace(guest, status=replace(guest.status, conditions=conditions)))

    def observe_watchdog(self, uid: UUID, action: str) -> None:
        """The host said that a guest's watchdog was not fed, and what it did about it."""
        if view := self._views.get(uid):
            attributes = {"state": view.guest.status.state.value, "reason": "WATCHDOG", "action": action}
            self._emit(EventType.GUEST_WATCHDOG, view, attributes)

    def observe_reboot(self, uid: UUID, reason: str) -> None:
        """The host said that a guest began to boot anew: what was known of the system in it is past."""
        self.reboots[uid] = self.reboots.get(uid, 0) + 1
        view = self._views.get(uid)
        if view is None:
            return
        self._emit(EventType.GUEST_REBOOTED, view, {"state": view.guest.status.state.value, "reason": reason})
        for condition in view.guest.status.conditions:
            if condition.type in _OF_A_BOOT and condition.status is ConditionStatus.TRUE:
                self.observe_condition(uid, condition.type, ConditionStatus.FALSE, "REBOOTED")

    def observe_addresses(self, uid: UUID, addresses: Sequence[GuestAddress]) -> None:
        """The addresses of a guest are known anew."""
        if uid in self._views:
            found = tuple(addresses)
            self._update(uid, lambda guest: replace(guest, status=replace(guest.status, addresses=found)))

    def observe_operation(self, operation: Operation, current: Sequence[str]) -> None:
        """An operation changed: tell, and keep the guest's list of current operations."""
        self._events.emit(
            EventType.OPERATION_CHANGED,
            operation.name,
            payload=self._encoders.operation(operation),
            attributes={"verb": operation.verb, "state": operation.state.value, "target": operation.target},
        )
        host, _, rest = operation.target.removeprefix("hosts/").partition("/guests/")
        uid = self._names.get((host, rest.split("/")[0]))
        if uid is None:
            return
        view = self._views[uid]
        if view.guest.status.current_operations != tuple(current):
            # No event of its own: the operation's event has just said it.
            status = replace(view.guest.status, current_operations=tuple(current))
            guest, encoded = self._encode(replace(view.guest, status=status))
            self._views[uid] = replace(view, guest=guest, encoded=encoded)

    def observe_metrics(self, host_id: str, samples: Sequence[GuestMetrics]) -> None:
        """A bulk sample of a host's guests."""
        for uid in self._by_host.get(host_id, ()):
            self.metrics.pop(uid, None)
        self.metrics.update({sample.uid: sample for sample in samples if sample.uid in self._views})
        self.on_samples(samples)

    # ------------------------------------------------------------------------------------- inside

    def _belongs_elsewhere(self, host_id: str, uid: UUID) -> bool:
        """Whether a host speaks of a guest that is another host's.

        One UUID is one guest.  Where two hosts have it (a copied disk and definition, or one hypervisor
        that is configured twice), the first keeps it, so that it does not change hosts with every list.
        """
        view = self._views.get(uid)
        if view is None or view.key.host == host_id:
            return False
        status = view.guest.status
        if status.origin is Origin.FOREIGN and (status.stale_since is not None or status.presence is Presence.ABSENT):
            self.forget(uid)  # it has moved
            return False
        if (host_id, uid) not in self._elsewhere and uid not in self._moving:
            self._elsewhere.add((host_id, uid))
            log.warning("guest_known_elsewhere", host=host_id, uid=str(uid), guest=view.guest.name)
        return True

    def _add_foreign(self, host_id: str, uid: UUID, name: str, state: GuestState, native_state: str) -> None:
        guest_id = slug(name)
        if (host_id, guest_id) in self._names:
            guest_id = f"{guest_id[:90]}-{uid.hex[:8]}"
        guest = foreign(GuestName(host_id, guest_id), uid, name, state, native_state)
        self._put(guest, EventType.GUEST_ADDED, {"state": state.value})

    def _update(self, uid: UUID, edit: Callable[[Guest], Guest]) -> None:
        old = self._views[uid].guest
        new = self._derive(edit(old))
        if new == old:
            return
        if new.status.state is not old.status.state:
            self._put(
                new,
                EventType.GUEST_STATE_CHANGED,
                {
                    "state": new.status.state.value,
                    "previous_state": old.status.state.value,
                    "reason": new.status.state_reason,
                },
            )
        else:
            self._put(new, EventType.GUEST_CHANGED, {"state": new.status.state.value})

    def _put(self, guest: Guest, type_: EventType, attributes: Mapping[str, str]) -> GuestView:
        guest = self._derive(guest)
        known = self._views.get(guest.uid)
        view = GuestView(*self._encode(guest), known.owned_volumes if known else ())
        self._index(view)
        self._emit(type_, view, attributes)
        self._database.submit(upsert(view))
        return view

    def _emit(self, type_: EventType, view: GuestView, attributes: Mapping[str, str]) -> None:
        guest = view.guest
        self._events.emit(type_, guest.name, uid=str(guest.uid), payload=view.encoded, attributes=attributes)

    def _derive(self, guest: Guest) -> Guest:
        host = self._hosts.get(parse_guest(guest.name).host)
        status = guest.status
        capabilities = of_kind(host.facts, guest.spec.machine) if host is not None else ()
        actions = allowed_actions(status.state, status.origin, status.presence, capabilities)
        if status.state not in _RUNNING and (status.conditions or status.addresses):
            lasting = tuple(condition for condition in status.conditions if condition.type in _LASTING)
            status = replace(status, conditions=lasting, addresses=())
        return replace(guest, status=replace(status, allowed_actions=actions))

    def _encode(self, guest: Guest) -> tuple[Guest, bytes]:
        return guest, self._encoders.guest(guest)

    def _index(self, view: GuestView) -> None:
        name = view.key
        self._views[view.guest.uid] = view
        self._names[name.host, name.guest] = view.guest.uid
        self._by_host.setdefault(name.host, set()).add(view.guest.uid)


def _abilities(host: Host) -> object:
    return host.facts.capabilities, host.facts.guest_kinds
