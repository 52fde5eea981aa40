"""The part of the fake hypervisor's own API that is about guests on their way to another one."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from contextlib import AbstractAsyncContextManager
from dataclasses import replace
from typing import TYPE_CHECKING
from uuid import UUID

from virtd.backend.api import CallContext, NativeEventType
from virtd.model.guest import DiskFormat, GuestState
from virtd.testing.fake import lowering
from virtd.testing.fake.faults import NativeFailure
from virtd.testing.fake.state import FakeGuest, guest_from_json, guest_to_json

if TYPE_CHECKING:
    from virtd.testing.fake.native import NativeHypervisor
    from virtd.testing.fake.state import FakePool
    from virtd.testing.fake.world import FakeWorld


class NativeMigration(ABC):
    """Part of :class:`virtd.testing.fake.native.NativeHypervisor`."""

    _world: FakeWorld
    guests: dict[UUID, FakeGuest]
    pools: dict[str, FakePool]
    connected: bool

    @abstractmethod
    def _call(self, name: str, context: CallContext | None = None) -> AbstractAsyncContextManager[None]: ...

    @abstractmethod
    def _find(self, call: str, uuid: UUID) -> FakeGuest: ...

    @abstractmethod
    def _set_state(self, guest: FakeGuest, state: GuestState, reason: str) -> None: ...

    @abstractmethod
    def _undefine(self, guest: FakeGuest) -> None: ...

    @abstractmethod
    def _emit(self, type_: NativeEventType, guest: FakeGuest | None = None, *, reason: str = "") -> None: ...

    async def migration_look(self, uuid: UUID) -> FakeGuest | None:
        """The guest, if this host knows it."""
        async with self._call("migration_look"):
            return self.guests.get(uuid)

    async def migration_begin(self, uuid: UUID) -> FakeGuest:
        """Begin to send a guest (``not-running``)."""
        async with self._call("migration_begin"):
            guest = self._find("migration_begin", uuid)
            if not guest.active_now:
                raise NativeFailure("migration_begin", "not-running", "the guest does not run")
            if guest.migration != "outgoing":
                guest.migration, guest.passes = "outgoing", 0
            return guest

    async def migration_prepare(self, record: FakeGuest) -> None:
        """As target: a process that waits for the guest; one that waits already is kept."""
        async with self._call("migration_prepare"):
            if record.uuid in self.guests:
                if self.guests[record.uuid].migration != "incoming":
                    raise NativeFailure("migration_prepare", "active", "the guest is here already")
                return
            guest = guest_from_json(guest_to_json(record))
            guest.state, guest.reason, guest.migration = GuestState.PAUSED, "MIGRATION", "incoming"
            self.guests[guest.uuid] = guest
            self._emit(NativeEventType.GUEST_STATE, guest, reason="MIGRATION")

    async def migration_pass(self, uuid: UUID, context: CallContext | None) -> int:
        """Send all that has changed; how many passes that makes (``aborted``)."""
        async with self._call("migration_pass", context):
            guest = self._find("migration_pass", uuid)
            if guest.migration != "outgoing":
                raise NativeFailure("migration_pass", "aborted", "the migration was aborted")
            guest.passes += 1
            return guest.passes

    async def migration_abort(self, uuid: UUID) -> None:
        """Call it back; nothing if there is none."""
        async with self._call("migration_abort"):
            guest = self.guests.get(uuid)
            if guest is not None and guest.migration == "outgoing":
                guest.migration, guest.passes = "", 0

    async def migration_discard(self, uuid: UUID) -> None:
        """As target: remove what waits, or is defined (``active``)."""
        async with self._call("migration_discard"):
            guest = self.guests.get(uuid)
            if guest is None:
                return
            if guest.active_now and guest.migration != "incoming":
                raise NativeFailure("migration_discard", "active", "the guest runs here")
            guest.state, guest.active = GuestState.STOPPED, ""
            self._undefine(guest)

    async def migration_switch(
        self, uuid: UUID, target: NativeHypervisor, files: Mapping[str, tuple[str, DiskFormat]]
    ) -> None:
        """The last pass: the guest stops here and goes on there, at one moment (``target-away``)."""
        async with self._call("migration_switch"):
            guest = self._find("migration_switch", uuid)
            waiting = target.guests.get(uuid)
            if not target.connected or waiting is None or waiting.migration != "incoming":
                raise NativeFailure("migration_switch", "target-away", "the target does not wait for the guest")
            state = guest.state
            arrived = guest_from_json(guest_to_json(guest))
            arrived.native, arrived.active = _moved(guest.native, files), _moved(guest.active, files)
            arrived.state, arrived.migration, arrived.passes, arrived.booted = state, "", 0, guest.booted
            arrived.console, arrived.started_at = waiting.console, guest.started_at
            for old, (new, _) in files.items():
                _copy_content(self.pools, old, target.pools, new)
            target.take(arrived)
            guest.migration = ""
            self._set_state(guest, GuestState.STOPPED, "MIGRATED")
            self._undefine(guest)

    def take(self, guest: FakeGuest) -> None:
        """As target: the guest is here."""
        self.guests[guest.uuid] = guest
        guest.reason = "MIGRATED"
        self._world.save()
        self._emit(NativeEventType.GUEST_DEFINED, guest)
        self._emit(NativeEventType.GUEST_STATE, guest, reason="MIGRATED")


def _moved(native: str, files: Mapping[str, tuple[str, DiskFormat]]) -> str:
    if not native:
        return native
    config = lowering.parse(native)
    disks = tuple(
        replace(disk, path=files[disk.path][0], format=files[disk.path][1]) if disk.path in files else disk
        for disk in config.disks
    )
    return lowering.lower(replace(config, disks=disks), ()).native


def _copy_content(here: Mapping[str, FakePool], old: str, there: Mapping[str, FakePool], new: str) -> None:
    found = [volume for pool in here.values() for volume in pool.volumes.values() if volume.path == old]
    for pool in there.values():
        for volume in pool.volumes.values():
            if volume.path == new and found:
                volume.content, volume.allocation_bytes = found[0].content, found[0].allocation_bytes
