"""The part of the fake hypervisor's own API that is about disks: snapshots, pools and volumes."""

from __future__ import annotations

from abc import ABC, abstractmethod
from contextlib import AbstractAsyncContextManager
from typing import TYPE_CHECKING
from uuid import UUID

from virtd.backend.api import CallContext, ResolvedGuest
from virtd.model.guest import GuestState
from virtd.testing.fake import lowering
from virtd.testing.fake.faults import NativeFailure
from virtd.testing.fake.inside import Files
from virtd.testing.fake.state import FakeGuest, FakePool, FakeSnapshot, FakeVolume

if TYPE_CHECKING:
    from virtd.testing.fake.world import FakeWorld


class NativeDisks(ABC):
    """Part of :class:`virtd.testing.fake.native.NativeHypervisor`."""

    _world: FakeWorld
    guests: dict[UUID, FakeGuest]
    pools: dict[str, FakePool]
    pool_capacity_bytes: int

    @abstractmethod
    def _call(self, name: str, context: CallContext | None = None) -> AbstractAsyncContextManager[None]: ...

    @abstractmethod
    def _find(self, call: str, uuid: UUID) -> FakeGuest: ...

    @abstractmethod
    def _power_off(self, guest: FakeGuest) -> None: ...

    @abstractmethod
    def _booted(self, guest: FakeGuest, config: ResolvedGuest) -> None: ...

    @abstractmethod
    def _set_state(self, guest: FakeGuest, state: GuestState, reason: str) -> None: ...

    async def snapshot_list(self, uuid: UUID) -> list[FakeSnapshot]:
        """The complete ones, in the order in which they were made."""
        async with self._call("snapshot_list"):
            return [item for item in self._find("snapshot_list", uuid).snapshots.values() if item.complete]

    async def snapshot_begin(self, uuid: UUID, name: str, description: str, *, memory: bool, location: str) -> None:
        """Reserve the name."""
        async with self._call("snapshot_begin"):
            guest = self._find("snapshot_begin", uuid)
            guest.snapshots[name] = FakeSnapshot(
                name,
                description,
                memory,
                guest.current_snapshot,
                guest.state,
                self._world.clock.now(),
                location=location,
            )

    async def snapshot_copy_memory(self, uuid: UUID, name: str, context: CallContext) -> None:
        """Copy the running guest's memory."""
        async with self._call("snapshot_copy_memory", context):
            guest = self._find("snapshot_copy_memory", uuid)
            guest.snapshots[name].files.memory = dict(guest.files.memory)

    async def snapshot_copy_disk(self, uuid: UUID, name: str, context: CallContext) -> None:
        """Copy the disks."""
        async with self._call("snapshot_copy_disk", context):
            guest = self._find("snapshot_copy_disk", uuid)
            guest.snapshots[name].files.disk = dict(guest.files.disk)

    async def snapshot_commit(self, uuid: UUID, name: str) -> FakeSnapshot:
        """Make it visible and current."""
        async with self._call("snapshot_commit"):
            guest = self._find("snapshot_commit", uuid)
            guest.snapshots[name].complete = True
            guest.current_snapshot = name
            return guest.snapshots[name]

    async def snapshot_describe(self, uuid: UUID, name: str, description: str) -> None:
        """Change the description (``no-snapshot``)."""
        async with self._call("snapshot_describe"):
            snapshot = self._find("snapshot_describe", uuid).snapshots.get(name)
            if snapshot is None:
                raise NativeFailure("snapshot_describe", "no-snapshot", f"the guest has no snapshot {name}")
            snapshot.description = description

    async def snapshot_delete(self, uuid: UUID, name: str) -> None:
        """Delete one, complete or not; its children go to its parent."""
        async with self._call("snapshot_delete"):
            guest = self._find("snapshot_delete", uuid)
            gone = guest.snapshots.pop(name, None)
            if gone is None:
                return
            for other in guest.snapshots.values():
                if other.parent == name:
                    other.parent = gone.parent
            if guest.current_snapshot == name:
                guest.current_snapshot = gone.parent

    async def snapshot_restore(self, uuid: UUID, name: str, context: CallContext) -> None:
        """Make the guest what it was (``no-snapshot``)."""
        async with self._call("snapshot_restore", context):
            guest = self._find("snapshot_restore", uuid)
            snapshot = guest.snapshots.get(name)
            if snapshot is None or not snapshot.complete:
                raise NativeFailure("snapshot_restore", "no-snapshot", f"the guest has no snapshot {name}")
            if guest.active_now:
                self._power_off(guest)
            files = snapshot.files.copy()
            guest.current_snapshot, guest.saved = name, None
            guest.state = GuestState.STOPPED
            guest.files = Files({}, files.disk)
            guest.checkpoints.clear()  # what has changed since them is not known any more
            if not snapshot.memory:
                self._set_state(guest, GuestState.STOPPED, "REVERTED")
                return
            guest.active = guest.native
            self._set_state(guest, snapshot.state, "REVERTED")
            guest.files.memory = files.memory
            self._booted(guest, lowering.parse(guest.active))

    # ------------------------------------------------------------------- native calls: storage

    async def pool_list(self) -> list[FakePool]:
        """All pools."""
        async with self._call("pool_list"):
            return list(self.pools.values())

    async def pool_create(self, name: str, path: str) -> FakePool:
        """Make a pool, or find it."""
        async with self._call("pool_create"):
            return self.pools.setdefault(name, FakePool(name, path))

    async def volume_allocate(self, pool: str, volume: FakeVolume) -> None:
        """Reserve space (``volume-exists``, ``no-space``)."""
        async with self._call("volume_allocate"):
            volumes = self.pools[pool].volumes
            if volume.name in volumes:
                raise NativeFailure("volume_allocate", "volume-exists", f"volume {volume.name} exists")
            used = sum(other.capacity_bytes for other in volumes.values())
            if used + volume.capacity_bytes > self.pool_capacity_bytes:
                raise NativeFailure("volume_allocate", "no-space", f"pool {pool} has no space for {volume.name}")
            self._world.write_volume(volume)
            volumes[volume.name] = volume

    async def volume_fill(self, pool: str, name: str, size_bytes: int, context: CallContext) -> None:
        """Write the next piece."""
        async with self._call("volume_fill", context):
            self.pools[pool].volumes[name].allocation_bytes += size_bytes

    async def volume_commit(self, pool: str, name: str) -> FakeVolume:
        """Make it visible."""
        async with self._call("volume_commit"):
            volume = self.pools[pool].volumes[name]
            volume.complete = True
            return volume

    async def volume_delete(self, pool: str, name: str) -> None:
        """Delete one, complete or not."""
        async with self._call("volume_delete"):
            volume = self.pools[pool].volumes.pop(name, None) if pool in self.pools else None
            if volume is not None:
                self._world.delete_volume(volume)
