"""The fake hypervisor's own API: small named calls, each of which can be made to fail, wait or hang.

The session (:mod:`virtd.testing.fake.session`) translates the SPI to these calls as a real backend
translates it to libvirt's.  Methods that are not ``async`` act *from outside*, as ``virsh`` or
``kill -9`` would: a test calls them directly, and they never fail or wait.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import TYPE_CHECKING
from uuid import UUID

from virtd.backend.api import CallContext, NativeEvent, NativeEventType, ResolvedGuest
from virtd.model.guest import Accelerator, GuestState
from virtd.testing.fake import lowering
from virtd.testing.fake.faults import NativeFailure
from virtd.testing.fake.inside import READY, ConsoleStream, Files
from virtd.testing.fake.state import FakeGuest, FakePool, FakeSnapshot, FakeVolume

if TYPE_CHECKING:
    from virtd.testing.fake.world import FakeWorld

__all__ = ["NativeFailure", "NativeHypervisor"]


class NativeHypervisor:
    """The hypervisor of one world."""

    def __init__(self, world: FakeWorld) -> None:
        self._world = world
        self.guests: dict[UUID, FakeGuest] = {}
        self.pools: dict[str, FakePool] = {}
        self.connected = True
        self.pool_capacity_bytes = 1 << 40
        self._subscribers: list[tuple[asyncio.AbstractEventLoop, asyncio.Queue[NativeEvent | None]]] = []
        self._recordings: list[list[str]] = []

    # ------------------------------------------------------------------------------- the plumbing

    @contextmanager
    def recording(self) -> Iterator[list[str]]:
        """The names of the native calls that are made in the block, in order."""
        calls: list[str] = []
        self._recordings.append(calls)
        try:
            yield calls
        finally:
            # By identity: two recordings that are equal are still two.
            self._recordings = [other for other in self._recordings if other is not calls]

    @asynccontextmanager
    async def _call(self, name: str, context: CallContext | None = None) -> AsyncIterator[None]:
        for calls in self._recordings:
            calls.append(name)
        late = await self._world.faults.before(name, context)
        if self._world.options.latency_s:
            await self._world.clock.sleep(self._world.options.latency_s)
        if not self.connected:
            raise NativeFailure(name, "unreachable", "the fake hypervisor is disconnected")
        yield
        self._world.save()
        if late is not None:
            raise late

    def _find(self, call: str, uuid: UUID) -> FakeGuest:
        if uuid not in self.guests:
            raise NativeFailure(call, "no-guest", f"no guest has the UUID {uuid}")
        return self.guests[uuid]

    def subscribe(self) -> tuple[asyncio.Queue[NativeEvent | None], Callable[[], None]]:
        """Events from now on, and a function that ends them (None is the last item)."""
        queue: asyncio.Queue[NativeEvent | None] = asyncio.Queue()
        entry = (asyncio.get_running_loop(), queue)
        self._subscribers.append(entry)

        def end() -> None:
            if entry in self._subscribers:
                self._subscribers.remove(entry)
                queue.put_nowait(None)

        return queue, end

    def _emit(self, type_: NativeEventType, guest: FakeGuest | None = None, *, reason: str = "") -> None:
        state = guest.state if guest is not None and type_ is NativeEventType.GUEST_STATE else None
        event = NativeEvent(
            type_,
            self._world.clock.now(),
            guest.uuid if guest else None,
            guest.name if guest else "",
            state,
            reason,
        )
        host_event = type_ in (NativeEventType.CONNECTED, NativeEventType.DISCONNECTED)
        if not self.connected and not host_event:
            return  # nobody hears it, as with a real connection
        for entry in list(self._subscribers):
            loop, queue = entry
            if loop.is_closed():
                self._subscribers.remove(entry)
            elif loop is _running_loop():
                queue.put_nowait(event)
            else:
                loop.call_soon_threadsafe(queue.put_nowait, event)

    def _set_state(self, guest: FakeGuest, state: GuestState, reason: str) -> None:
        if not guest.active_now and state in (GuestState.RUNNING, GuestState.PAUSED):
            guest.started_at = self._world.clock.monotonic()
        if guest.active_now and state not in (GuestState.RUNNING, GuestState.PAUSED):
            self._power_off(guest)
        guest.state, guest.reason = state, reason
        self._emit(NativeEventType.GUEST_STATE, guest, reason=reason)

    # -------------------------------------------------------------------------- life inside guests

    def _boot(self, guest: FakeGuest) -> None:
        config = lowering.parse(guest.active)
        guest.presses, guest.booted = 0, False
        guest.boots += 1
        if config.serial_console:
            guest.console.print("fake: booting", f"fake: {guest.name} is {config.backend_options.get('mood', 'calm')}")
        boot = guest.boots

        def ready() -> None:
            if guest.active_now and guest.boots == boot:
                self._booted(guest, config)

        if self._world.options.boot_s:
            self._world.clock.call_later(self._world.options.boot_s, ready)
        else:
            ready()

    def _booted(self, guest: FakeGuest, config: ResolvedGuest) -> None:
        guest.booted = True
        if config.serial_console:
            guest.console.print(READY)
        if config.guest_agent and guest.agent == "ready":
            self._emit(NativeEventType.AGENT_CONNECTED, guest)

    def _power_off(self, guest: FakeGuest) -> None:
        if guest.booted and lowering.parse(guest.active).guest_agent and guest.agent == "ready":
            self._emit(NativeEventType.AGENT_DISCONNECTED, guest)
        guest.booted, guest.active = False, ""
        guest.files.memory = {}
        guest.console.power_off()

    def agent_answers(self, guest: FakeGuest) -> bool:
        """Whether the agent in the guest would answer now."""
        return guest.state is GuestState.RUNNING and guest.booted and guest.agent == "ready"

    # ------------------------------------------------------------------------------ from outside

    def disconnect(self) -> None:
        """Every call is refused as unreachable, and events are lost, until :meth:`reconnect`."""
        if self.connected:
            self.connected = False
            self._emit(NativeEventType.DISCONNECTED, reason="INJECTED")

    def reconnect(self) -> None:
        """Answer again."""
        if not self.connected:
            self.connected = True
            self._emit(NativeEventType.CONNECTED)

    def define_foreign(self, name: str, uuid: UUID | None = None, *, vcpus: int = 1, memory_mib: int = 64) -> UUID:
        """Define a guest as somebody else would, without virtd."""
        chosen = uuid or self._world.draw_uuid(name)
        config = ResolvedGuest(chosen, name, vcpus, memory_mib << 20, Accelerator.TCG)
        self._define(config.uuid, name, lowering.lower(config, ()).native)
        self._world.save()
        return chosen

    def start_foreign(self, uuid: UUID) -> None:
        """Start a guest from outside."""
        self._start(self._find("outside", uuid))
        self._world.save()

    def kill_guest(self, uuid: UUID) -> None:
        """End a running guest's process."""
        guest = self._find("outside", uuid)
        if guest.active_now:
            self._set_state(guest, GuestState.STOPPED, "CRASHED")
        self._world.save()

    def panic_guest(self, uuid: UUID) -> None:
        """Let the guest's system crash: the process stays, as CRASHED."""
        guest = self._find("outside", uuid)
        if guest.active_now:
            self._set_state(guest, GuestState.CRASHED, "PANICKED")
        self._world.save()

    def power_off_inside(self, uuid: UUID) -> None:
        """Let the guest shut itself down."""
        guest = self._find("outside", uuid)
        if guest.active_now:
            self._set_state(guest, GuestState.STOPPED, "SHUTDOWN")
        self._world.save()

    def undefine_foreign(self, uuid: UUID) -> None:
        """Remove a guest, running or not, behind virtd's back."""
        self.kill_guest(uuid)
        self._undefine(self.guests[uuid])
        self._world.save()

    # -------------------------------------------------------------------- native calls: guests

    async def host_info(self) -> str:
        """A word that proves that the hypervisor answers."""
        async with self._call("host_info"):
            return f"fake-{self._world.options.seed}"

    async def guest_list(self) -> list[FakeGuest]:
        """All guests."""
        async with self._call("guest_list"):
            return list(self.guests.values())

    async def guest_lookup(self, uuid: UUID) -> FakeGuest:
        """One guest (``no-guest``)."""
        async with self._call("guest_lookup"):
            return self._find("guest_lookup", uuid)

    async def guest_lookup_name(self, name: str) -> UUID | None:
        """The UUID of the guest of this name."""
        async with self._call("guest_lookup_name"):
            return next((guest.uuid for guest in self.guests.values() if guest.name == name), None)

    async def guest_write_config(self, uuid: UUID, name: str, native: str) -> None:
        """Define or redefine."""
        async with self._call("guest_write_config"):
            self._define(uuid, name, native)

    def _define(self, uuid: UUID, name: str, native: str) -> None:
        options = lowering.parse(native).backend_options
        presses = int(options.get("presses", self._world.options.presses))
        if uuid in self.guests:
            guest = self.guests[uuid]
            guest.name, guest.native, guest.presses_needed = name, native, presses
            self._emit(NativeEventType.GUEST_CHANGED, guest)
        else:
            self.guests[uuid] = guest = FakeGuest(uuid, name, native, presses_needed=presses)
            self._emit(NativeEventType.GUEST_DEFINED, guest)

    async def guest_write_firmware(self, uuid: UUID, *, present: bool) -> None:
        """Make or remove the guest's firmware variables."""
        async with self._call("guest_write_firmware"):
            self._find("guest_write_firmware", uuid).firmware_variables = present

    async def guest_delete_config(self, uuid: UUID) -> None:
        """Undefine (``no-guest``, ``active``)."""
        async with self._call("guest_delete_config"):
            guest = self._find("guest_delete_config", uuid)
            if guest.active_now:
                raise NativeFailure("guest_delete_config", "active", "the guest is active")
            self._undefine(guest)

    def _undefine(self, guest: FakeGuest) -> None:
        del self.guests[guest.uuid]
        self._emit(NativeEventType.GUEST_UNDEFINED, guest)

    async def guest_create(self, uuid: UUID, context: CallContext | None = None) -> None:
        """Start or restore (``no-guest``, ``active``)."""
        async with self._call("guest_create", context):
            guest = self._find("guest_create", uuid)
            if guest.active_now:
                raise NativeFailure("guest_create", "active", "the guest is active already")
            self._start(guest)

    def _start(self, guest: FakeGuest) -> None:
        guest.active = guest.native
        if guest.saved is None:
            self._set_state(guest, GuestState.RUNNING, "BOOTED")
            self._boot(guest)
            return
        guest.files.memory, guest.saved = guest.saved, None
        self._set_state(guest, GuestState.RUNNING, "RESTORED")
        self._booted(guest, lowering.parse(guest.active))

    async def guest_destroy(self, uuid: UUID) -> None:
        """Cut the power of a guest in any state; nothing if it has none (``no-guest``)."""
        async with self._call("guest_destroy"):
            guest = self._find("guest_destroy", uuid)
            if guest.active_now or guest.state not in (GuestState.STOPPED, GuestState.SUSPENDED):
                self._set_state(guest, GuestState.STOPPED, "DESTROYED")

    async def guest_power_button(self, uuid: UUID) -> None:
        """Press it once; a guest that still boots does not notice."""
        async with self._call("guest_power_button"):
            guest = self._running("guest_power_button", uuid)
            if guest.booted:
                guest.presses += 1
                if 0 < guest.presses_needed <= guest.presses:
                    self._set_state(guest, GuestState.STOPPED, "SHUTDOWN")

    async def guest_reboot(self, uuid: UUID) -> None:
        """Ask for a reboot; a guest that ignores its power button ignores this, too."""
        async with self._call("guest_reboot"):
            guest = self._running("guest_reboot", uuid)
            if guest.booted and guest.presses_needed:
                self._restart(guest, "REBOOTED")

    async def guest_reset(self, uuid: UUID) -> None:
        """The reset button."""
        async with self._call("guest_reset"):
            self._restart(self._running("guest_reset", uuid), "RESET")

    def _restart(self, guest: FakeGuest, reason: str) -> None:
        guest.files.memory = {}
        self._set_state(guest, GuestState.RUNNING, reason)
        self._boot(guest)

    def _running(self, call: str, uuid: UUID) -> FakeGuest:
        guest = self._find(call, uuid)
        if guest.state is not GuestState.RUNNING:
            raise NativeFailure(call, "not-running", "the guest does not run")
        return guest

    async def guest_pause(self, uuid: UUID) -> None:
        """Stop the CPUs (``not-running``)."""
        async with self._call("guest_pause"):
            self._set_state(self._running("guest_pause", uuid), GuestState.PAUSED, "PAUSED")

    async def guest_resume(self, uuid: UUID) -> None:
        """Let the CPUs go on (``not-paused``)."""
        async with self._call("guest_resume"):
            guest = self._find("guest_resume", uuid)
            if guest.state is not GuestState.PAUSED:
                raise NativeFailure("guest_resume", "not-paused", "the guest is not paused")
            self._set_state(guest, GuestState.RUNNING, "RESUMED")

    async def guest_save_memory(self, uuid: UUID, context: CallContext | None = None) -> None:
        """Write the memory to disk and stop."""
        async with self._call("guest_save_memory", context):
            guest = self._find("guest_save_memory", uuid)
            memory = dict(guest.files.memory)
            self._set_state(guest, GuestState.SUSPENDED, "SAVED")
            guest.saved = memory

    async def guest_discard_memory(self, uuid: UUID) -> None:
        """Throw saved memory away."""
        async with self._call("guest_discard_memory"):
            guest = self._find("guest_discard_memory", uuid)
            if guest.saved is not None:
                guest.saved = None
                self._set_state(guest, GuestState.STOPPED, "DISCARDED")

    # ----------------------------------------------------------------- native calls: snapshots

    async def snapshot_list(self, uuid: UUID) -> list[FakeSnapshot]:
        """The complete ones, in the order in which they were made."""
        async with self._call("snapshot_list"):
            return [item for item in self._find("snapshot_list", uuid).snapshots.values() if item.complete]

    async def snapshot_begin(self, uuid: UUID, name: str, description: str, *, memory: bool) -> None:
        """Reserve the name."""
        async with self._call("snapshot_begin"):
            guest = self._find("snapshot_begin", uuid)
            guest.snapshots[name] = FakeSnapshot(
                name, description, memory, guest.current_snapshot, guest.state, self._world.clock.now()
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
            if snapshot.state is GuestState.STOPPED:
                self._set_state(guest, GuestState.STOPPED, "REVERTED")
                return
            guest.active = guest.native
            self._set_state(guest, snapshot.state, "REVERTED")
            if snapshot.memory:
                guest.files.memory = files.memory
                self._booted(guest, lowering.parse(guest.active))
            else:
                self._boot(guest)

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

    # --------------------------------------------------------------------- native calls: rest

    async def network_list(self) -> list[str]:
        """The names of the networks."""
        async with self._call("network_list"):
            return ["default", "isolated"]

    async def console_open(self, uuid: UUID) -> ConsoleStream:
        """The serial port."""
        async with self._call("console_open"):
            return self._find("console_open", uuid).console.open()

    async def display_read(self, uuid: UUID) -> FakeGuest:
        """The guest whose display is wanted."""
        async with self._call("display_read"):
            return self._find("display_read", uuid)

    async def agent_call(self, uuid: UUID, context: CallContext | None = None) -> FakeGuest:
        """Reach the agent (``agent-away``)."""
        async with self._call("agent_call", context):
            guest = self._find("agent_call", uuid)
            if not self.agent_answers(guest):
                raise NativeFailure("agent_call", "agent-away", f"the agent is {guest.agent} or has not started")
            return guest

    async def stats(self) -> list[FakeGuest]:
        """The active guests."""
        async with self._call("stats"):
            return [guest for guest in self.guests.values() if guest.active_now]


def _running_loop() -> asyncio.AbstractEventLoop | None:
    try:
        return asyncio.get_running_loop()
    except RuntimeError:
        return None
