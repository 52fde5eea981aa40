"""A session with a fake host: level 0, and the facets that change a guest's power."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from uuid import UUID

from virtd.backend import capabilities as caps
from virtd.backend.api import (
    CallContext,
    Facets,
    Fidelity,
    GuestSummary,
    NativeGuest,
    NativePlan,
    ResolvedGuest,
)
from virtd.backend.emulate.screenshots import DisplayScreenshots
from virtd.backend.emulate.snapshots import CopiedSnapshots
from virtd.errors import (
    FIELD_UNSUPPORTED,
    GUEST_EXISTS,
    INVALID_STATE,
    AlreadyExistsError,
    FailedPreconditionError,
    FieldViolation,
    InvalidArgumentError,
)
from virtd.model.devices import LinkState
from virtd.model.guest import DiskStatus, Firmware, GuestState, InterfaceStatus
from virtd.model.host import AcceleratorStatus, Capability, CapabilityLevel, CapabilityProvenance, HostFacts
from virtd.testing.fake import lowering
from virtd.testing.fake.agent import AgentReach
from virtd.testing.fake.backup import Backups
from virtd.testing.fake.definitions import Definitions
from virtd.testing.fake.disks import load_disks
from virtd.testing.fake.faults import NativeFailure
from virtd.testing.fake.link import Facet, Link, spi
from virtd.testing.fake.migration import Migration
from virtd.testing.fake.networks import Networks
from virtd.testing.fake.observe import EventSource, Observation
from virtd.testing.fake.reach import Reach
from virtd.testing.fake.records import Records
from virtd.testing.fake.snapshots import Snapshots
from virtd.testing.fake.state import FakeGuest
from virtd.testing.fake.storage import Storage
from virtd.testing.fake.update import Update, pending_of
from virtd.testing.fake.volumes import Pools, Volumes

VERSION = "1"


class Power(Facet):
    """Shutdown, reboot, reset, pause and suspend."""

    @spi
    async def request_shutdown(self, uuid: UUID, context: CallContext) -> None:
        """See the SPI."""
        context.checkpoint()
        await self._in_states(uuid, "shut down", GuestState.RUNNING)
        await self._native.guest_power_button(uuid)

    @spi
    async def request_reboot(self, uuid: UUID, context: CallContext) -> None:
        """See the SPI."""
        context.checkpoint()
        await self._in_states(uuid, "reboot", GuestState.RUNNING)
        await self._native.guest_reboot(uuid)

    @spi
    async def reset_guest(self, uuid: UUID, context: CallContext) -> None:
        """See the SPI."""
        context.checkpoint()
        await self._in_states(uuid, "reset", GuestState.RUNNING)
        await self._native.guest_reset(uuid)

    @spi
    async def pause_guest(self, uuid: UUID, context: CallContext) -> None:
        """See the SPI."""
        context.checkpoint()
        guest = await self._in_states(uuid, "pause", GuestState.RUNNING, GuestState.PAUSED)
        if guest.state is GuestState.RUNNING:
            await self._native.guest_pause(uuid)

    @spi
    async def resume_guest(self, uuid: UUID, context: CallContext) -> None:
        """See the SPI."""
        context.checkpoint()
        guest = await self._in_states(uuid, "resume", GuestState.RUNNING, GuestState.PAUSED)
        if guest.state is GuestState.PAUSED:
            await self._native.guest_resume(uuid)

    @spi
    async def suspend_guest(self, uuid: UUID, context: CallContext) -> None:
        """See the SPI."""
        states = (GuestState.RUNNING, GuestState.PAUSED, GuestState.SUSPENDED)
        guest = await self._in_states(uuid, "suspend", *states)
        self._link.refuse_kind(guest, caps.SUSPEND)
        if guest.state is not GuestState.SUSPENDED:
            context.checkpoint()
            await self._native.guest_save_memory(uuid, context)
            context.progress(1.0)

    @spi
    async def discard_saved_state(self, uuid: UUID, context: CallContext) -> None:
        """See the SPI."""
        context.checkpoint()
        await self._native.guest_discard_memory(uuid)


class FakeSession(Facet):
    """See :class:`virtd.backend.api.HostSession`."""

    def __init__(self, link: Link) -> None:
        super().__init__(link)
        self._events = EventSource(link)
        power, reach, observation = Power(link), Reach(link), Observation(link)
        missing = {
            entry.id
            for entry in link.capabilities
            if entry.id in caps.FACET_OF and entry.level is CapabilityLevel.UNSUPPORTED
        }
        by_virtd = set(link.world.options.emulate)
        transfer = None if caps.VOLUME_TRANSFER in missing else Volumes(link)
        copies = CopiedSnapshots(
            self.get_guest, Storage(link), Volumes(link), Definitions(link), Records(link), transfer
        )
        pictures = DisplayScreenshots(AgentReach(link))
        self._facets = Facets(
            shutdown=None if caps.SHUTDOWN in missing else power,
            reboot=None if caps.REBOOT in missing | by_virtd else power,
            reset=None if caps.RESET in missing | by_virtd else power,
            pause=None if caps.PAUSE in missing else power,
            suspend=None if caps.SUSPEND in missing else power,
            snapshots=None if caps.SNAPSHOT in missing else copies if caps.SNAPSHOT in by_virtd else Snapshots(link),
            storage=None if caps.POOLS in missing else Storage(link),
            pools=None if caps.POOL_MANAGE in missing else Pools(link),
            volume_changes=None if {caps.VOLUME_RESIZE, caps.VOLUME_CLONE} <= missing else Volumes(link),
            volume_transfer=transfer,
            volume_parts=None if caps.VOLUME_TRANSFER in missing else Volumes(link),
            networks=None if caps.NETWORKS in missing else Networks(link),
            network_changes=None if caps.NETWORK_CHANGES in missing else Networks(link),
            backup=None if caps.BACKUP in missing else Backups(link),
            serial_console=None if caps.CONSOLE_SERIAL in missing else reach,
            screenshot=None if caps.SCREENSHOT in missing else pictures if caps.SCREENSHOT in by_virtd else reach,
            agent=None if caps.AGENT_EXEC in missing else AgentReach(link),
            display=None if caps.CONSOLE_GRAPHICAL in missing else AgentReach(link),
            addresses=None if caps.ADDRESSES in missing else reach,
            metrics=None if caps.METRICS in missing else observation,
            diagnosis=None if caps.DIAGNOSIS in missing else observation,
            event_source=None if caps.EVENTS in missing else self._events,
            definitions=None if caps.TRASH in missing else Definitions(link),
            autostart=None if caps.AUTOSTART in missing else Definitions(link),
            update=None if caps.UPDATE in missing else Update(link),
            migration=None if caps.MIGRATE_LIVE in missing else Migration(link),
        )

    @property
    def facets(self) -> Facets:
        """See the SPI."""
        return self._facets

    async def close(self) -> None:
        """See the SPI."""
        self._link.closed = True
        self._events.end()

    @spi
    async def probe(self) -> HostFacts:
        """See the SPI."""
        await self._native.host_info()
        acceleration = next(entry for entry in self._link.capabilities if entry.id == caps.ACCELERATION)
        usable = acceleration.level is CapabilityLevel.NATIVE
        return HostFacts(
            hypervisor="fake",
            hypervisor_version=VERSION,
            api="fake",
            api_version=VERSION,
            hostname=f"fake-{self._world.options.seed}",
            architecture="x86_64",
            cpu_model="Simulated CPU",
            cpus=8,
            memory_bytes=64 << 30,
            default_accelerator="KVM" if usable else "TCG",
            accelerators=(
                AcceleratorStatus("KVM", usable, acceleration.reason or "simulated"),
                AcceleratorStatus("TCG", usable=True, reason="simulated"),
            ),
            capabilities=tuple(
                Capability(entry.id, entry.level, CapabilityProvenance.PROBED, entry.reason)
                for entry in self._link.capabilities
            ),
            machines=lowering.MACHINES,
            guest_kinds=self._link.kinds(),
        )

    @spi
    async def list_guests(self) -> Sequence[GuestSummary]:
        """See the SPI."""
        guests = await self._native.guest_list()
        return [
            GuestSummary(guest.uuid, guest.name, guest.state, f"fake-{guest.state.lower()}", guest.reason)
            for guest in guests
        ]

    @spi
    async def get_guest(self, uuid: UUID) -> NativeGuest:
        """See the SPI."""
        return self._describe(await self._native.guest_lookup(uuid))

    def lower(self, guest: ResolvedGuest) -> NativePlan:
        """See the SPI."""
        return lowering.lower(guest, self._link.capabilities)

    @spi
    async def define_guest(self, guest: ResolvedGuest, context: CallContext) -> NativeGuest:
        """See the SPI."""
        plan = self.lower(guest)
        _refuse_rejected(plan)
        owner = await self._native.guest_lookup_name(guest.name)
        if owner not in (None, guest.uuid):
            raise AlreadyExistsError(GUEST_EXISTS, f"another guest is called {guest.name}", resource=guest.name)
        try:
            before = (await self._native.guest_lookup(guest.uuid)).native
        except NativeFailure as failure:
            if failure.code != "no-guest":
                raise
            before = ""
        context.checkpoint()
        try:
            await self._native.guest_write_config(guest.uuid, guest.name, plan.native)
            if not before:
                load_disks(self._native, guest)
            context.checkpoint()
            await self._native.guest_write_firmware(guest.uuid, present=guest.firmware is Firmware.UEFI)
            context.checkpoint()
            await self._native.guest_set_autostart(guest.uuid, enabled=guest.autostart)
            return self._describe(await self._native.guest_lookup(guest.uuid))
        except BaseException:
            # Also on cancellation: a definition that did not succeed leaves nothing.
            await self._undo_define(guest.uuid, before)
            raise

    async def _undo_define(self, uuid: UUID, before: str) -> None:
        with contextlib.suppress(NativeFailure):
            if before:
                old = lowering.parse(before)
                await self._native.guest_write_config(uuid, old.name, before)
                await self._native.guest_write_firmware(uuid, present=old.firmware is Firmware.UEFI)
            else:
                await self._native.guest_delete_config(uuid)

    @spi
    async def undefine_guest(self, uuid: UUID, context: CallContext) -> None:
        """See the SPI."""
        context.checkpoint()
        try:
            guest = await self._native.guest_lookup(uuid)
            if guest.active_now:
                raise FailedPreconditionError(INVALID_STATE, f"guest {guest.name} is {guest.state}: stop it first")
            await self._native.guest_write_firmware(uuid, present=False)
            await self._native.guest_delete_config(uuid)
        except NativeFailure as failure:
            if failure.code != "no-guest":
                raise

    @spi
    async def start_guest(self, uuid: UUID, context: CallContext) -> None:
        """See the SPI."""
        guest = await self._native.guest_lookup(uuid)
        if not guest.active_now:
            context.checkpoint()
            await self._native.guest_create(uuid, context)

    @spi
    async def stop_guest(self, uuid: UUID, context: CallContext) -> None:
        """See the SPI."""
        context.checkpoint()
        try:
            await self._native.guest_destroy(uuid)
        except NativeFailure as failure:
            if failure.code != "no-guest":
                raise

    def _describe(self, guest: FakeGuest) -> NativeGuest:
        config = lowering.parse(guest.native)
        running = lowering.parse(guest.active) if guest.active else config
        graphics = guest.active_now and running.graphics is not None and running.graphics.vnc
        return NativeGuest(
            uuid=guest.uuid,
            name=guest.name,
            state=guest.state,
            spec=lowering.to_spec(config),
            native_state=f"fake-{guest.state.lower()}",
            state_reason=guest.reason,
            native_ref=str(guest.uuid),
            disks=tuple(
                DiskStatus(
                    name=disk.name,
                    path=disk.path,
                    target=f"vd{chr(ord('a') + index)}",
                    format=disk.format,
                    bus=disk.bus,
                    device=disk.device,
                    read_only=disk.read_only,
                    capacity_bytes=self._capacity_of(disk.path),
                )
                for index, disk in enumerate(running.disks)
            ),
            interfaces=tuple(
                InterfaceStatus(
                    item.name,
                    item.mac,
                    item.kind,
                    item.network,
                    item.model,
                    f"fake{index}",
                    item.link_state or LinkState.UP,
                )
                for index, item in enumerate(running.interfaces)
            ),
            accelerator=running.accelerator,
            graphics_address=f"127.0.0.1:{5900 + guest.uuid.int % 1000}" if graphics else "",
            has_saved_state=guest.saved is not None,
            pending_restart_fields=pending_of(guest),
            vcpus=running.vcpus if guest.active_now else None,
            memory_bytes=running.memory_bytes if guest.active_now else None,
        )

    def _capacity_of(self, path: str) -> int | None:
        for pool in self._native.pools.values():
            for volume in pool.volumes.values():
                if volume.path == path:
                    return volume.capacity_bytes
        return None


def _refuse_rejected(plan: NativePlan) -> None:
    rejected = [verdict for verdict in plan.verdicts if verdict.fidelity is Fidelity.REJECTED]
    if rejected:
        raise InvalidArgumentError(
            FIELD_UNSUPPORTED,
            "; ".join(f"{verdict.field}: {verdict.reason}" for verdict in rejected),
            violations=[FieldViolation(verdict.field, verdict.reason, verdict.alternatives) for verdict in rejected],
        )
