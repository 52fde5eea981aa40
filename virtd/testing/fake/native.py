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
from virtd.testing.fake.inside import READY, ConsoleStream
from virtd.testing.fake.native_disks import NativeDisks
from virtd.testing.fake.native_migration import NativeMigration
from virtd.testing.fake.state import FakeGuest, FakePool, FakeVolume

if TYPE_CHECKING:
    from virtd.testing.fake.world import FakeWorld

__all__ = ["NativeFailure", "NativeHypervisor"]


class NativeHypervisor(NativeDisks, NativeMigration):
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
        guest.presses, guest.booted, guest.frozen = 0, False, False
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
        guest.booted, guest.frozen, guest.active = False, False, ""
        guest.files.memory = {}
        guest.console.power_off()

    def agent_answers(self, guest: FakeGuest) -> bool:
        """Whether the agent in the guest would answer now."""
        return guest.state is GuestState.RUNNING and guest.booted and guest.agent in ("ready", "disabled")

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

    async def guest_write_records(self, uuid: UUID, records: str) -> None:
        """Keep a text with the guest's definition."""
        async with self._call("guest_write_records"):
            self._find("guest_write_records", uuid).records = records

    async def guest_switch_disks(self, uuid: UUID, native: str, disk: dict[str, bytes] | None) -> None:
        """Define a guest with other disks (``active``), and what is on the first of them where that is known."""
        async with self._call("guest_switch_disks"):
            guest = self._find("guest_switch_disks", uuid)
            if guest.active_now:
                raise NativeFailure("guest_switch_disks", "active", "the guest is active")
            self._define(uuid, guest.name, native)
            if disk is not None:
                guest.files.disk = dict(disk)
                guest.checkpoints.clear()

    async def guest_plug(self, uuid: UUID, active: str, context: CallContext) -> None:
        """Change what a guest runs with (``not-running``)."""
        async with self._call("guest_plug", context):
            guest = self._find("guest_plug", uuid)
            if not guest.active_now:
                raise NativeFailure("guest_plug", "not-running", "the guest does not run")
            guest.active = active
            self._emit(NativeEventType.GUEST_CHANGED, guest)

    async def disk_grow(self, uuid: UUID, volume: FakeVolume, capacity_bytes: int) -> None:
        """Make a guest's disk larger."""
        async with self._call("disk_grow"):
            volume.capacity_bytes = max(volume.capacity_bytes, capacity_bytes)
            self._emit(NativeEventType.GUEST_CHANGED, self._find("disk_grow", uuid))

    async def guest_write_firmware(self, uuid: UUID, *, present: bool) -> None:
        """Make or remove the guest's firmware variables."""
        async with self._call("guest_write_firmware"):
            guest = self._find("guest_write_firmware", uuid)
            guest.firmware_variables = present
            guest.variables = guest.variables if present else b""

    async def guest_set_autostart(self, uuid: UUID, *, enabled: bool) -> None:
        """Whether it starts with its host."""
        async with self._call("guest_set_autostart"):
            self._find("guest_set_autostart", uuid).autostart = enabled

    async def guest_write_variables(self, uuid: UUID, data: bytes) -> None:
        """What the firmware keeps (``active``)."""
        async with self._call("guest_write_variables"):
            guest = self._find("guest_write_variables", uuid)
            if guest.active_now:
                raise NativeFailure("guest_write_variables", "active", "the guest is active")
            guest.firmware_variables, guest.variables = True, data

    async def guest_restore(self, record: FakeGuest) -> None:
        """Define a guest with its snapshots."""
        async with self._call("guest_restore"):
            known = self.guests.get(record.uuid)
            if known is not None:
                record.state, record.active = known.state, known.active
            self.guests[record.uuid] = record
            self._emit(NativeEventType.GUEST_DEFINED if known is None else NativeEventType.GUEST_CHANGED, record)

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
        self._emit(NativeEventType.GUEST_REBOOTED, guest, reason=reason)
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

    # --------------------------------------------------------------------- native calls: rest

    async def console_open(self, uuid: UUID) -> ConsoleStream:
        """The serial port."""
        async with self._call("console_open"):
            return self._find("console_open", uuid).console.open()

    async def display_read(self, uuid: UUID) -> FakeGuest:
        """The guest whose display is wanted."""
        async with self._call("display_read"):
            return self._find("display_read", uuid)

    async def agent_call(self, uuid: UUID, context: CallContext | None = None) -> FakeGuest:
        """Reach the agent (``agent-away``, ``agent-stuck``)."""
        async with self._call("agent_call", context):
            guest = self._find("agent_call", uuid)
            if not self.agent_answers(guest):
                code = "agent-stuck" if guest.agent == "stuck" and guest.booted else "agent-away"
                raise NativeFailure("agent_call", code, f"the agent is {guest.agent} or has not started")
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
