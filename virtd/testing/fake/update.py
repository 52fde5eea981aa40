"""Changing a fake guest that exists."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import fields, replace
from typing import Any, Final
from uuid import UUID

from virtd.backend import capabilities as caps
from virtd.backend.api import CallContext, FieldEffect, ResolvedGuest, UpdateEffect
from virtd.backend.pending import pending_fields
from virtd.errors import INVALID_STATE, FailedPreconditionError, unsupported
from virtd.model.changes import NAMED_LISTS, Part, parse_path
from virtd.model.guest import DiskBus, DiskDevice, DiskStatus, GuestState
from virtd.model.host import CapabilityLevel
from virtd.testing.fake import lowering
from virtd.testing.fake.link import Facet, spi
from virtd.testing.fake.state import FakeGuest, FakeVolume

_E: Final = UpdateEffect
_SOURCES: Final = ("source", "blank", "image", "volume", "host_file")
# What changes a running fake guest, by the field's first part.
_LIVE: Final[Mapping[str, str]] = {"vcpus": caps.UPDATE_VCPUS, "memory_bytes": caps.UPDATE_MEMORY}


class Update(Facet):
    """See :class:`virtd.backend.api.UpdateFacet`."""

    @spi
    async def configured_disks(self, uuid: UUID) -> Sequence[DiskStatus]:
        """See the SPI."""
        config = lowering.parse((await self._native.guest_lookup(uuid)).native)
        return [
            DiskStatus(
                disk.name,
                disk.path,
                format=disk.format.value.lower(),
                bus=disk.bus.value.lower(),
                device=disk.device,
                read_only=disk.read_only,
                capacity_bytes=None if volume is None else volume.capacity_bytes,
            )
            for disk in config.disks
            for volume in (self._volume(disk.path),)
        ]

    @spi
    async def plan_update(
        self, current: ResolvedGuest, wanted: ResolvedGuest, fields: Sequence[str]
    ) -> Sequence[FieldEffect]:
        """See the SPI."""
        guest = await self._native.guest_lookup(wanted.uuid)
        return [FieldEffect(path, *self._effect(guest, current, wanted, path)) for path in fields]

    @spi
    async def apply_live(
        self,
        current: ResolvedGuest,
        wanted: ResolvedGuest,
        fields: Sequence[str],
        context: CallContext,
        *,
        force: bool = False,
    ) -> None:
        """See the SPI."""
        guest = await self._native.guest_lookup(wanted.uuid)
        if not guest.active_now:
            raise FailedPreconditionError(INVALID_STATE, f"guest {guest.name} is {guest.state}: it does not run")
        for path in fields:
            effect, reason = self._effect(guest, current, wanted, path)
            if effect is not _E.LIVE and not self._is_so(guest, wanted, path):
                raise unsupported(self._capability(current, wanted, path), reason)
        for number, path in enumerate(fields):
            context.checkpoint()
            running = lowering.parse(guest.active)
            part, *rest = parse_path(path)
            changed = _touched(running, wanted, part, rest) if rest else _carried(running, current, wanted, part)
            # What it was started with stays the most that it can have.
            changed = replace(changed, max_memory_bytes=_most_memory(running), max_vcpus=_most_vcpus(running))
            if changed != running:
                await self._native.guest_plug(wanted.uuid, lowering.lower(changed, ()).native, context)
            context.progress((number + 1) / len(fields))

    @spi
    async def apply_config(self, current: ResolvedGuest, wanted: ResolvedGuest, context: CallContext) -> None:
        """See the SPI."""
        context.checkpoint()
        guest = await self._native.guest_lookup(wanted.uuid)
        changed = self._merged(guest, current, wanted)
        if changed != guest.native:
            await self._native.guest_write_config(wanted.uuid, guest.name, changed)

    @spi
    async def native_config(self, current: ResolvedGuest, wanted: ResolvedGuest) -> str:
        """See the SPI."""
        return self._merged(await self._native.guest_lookup(wanted.uuid), current, wanted)

    @spi
    async def resize_disk(self, uuid: UUID, path: str, capacity_bytes: int, context: CallContext) -> None:
        """See the SPI."""
        self._link.refuse_without(caps.UPDATE_RESIZE)
        context.checkpoint()
        guest = await self._native.guest_lookup(uuid)
        if guest.state is GuestState.SUSPENDED:
            raise FailedPreconditionError(INVALID_STATE, f"guest {guest.name} is suspended")
        volume = self._volume(path)
        if volume is not None and volume.capacity_bytes < capacity_bytes:
            await self._native.disk_grow(uuid, volume, capacity_bytes)

    # -------------------------------------------------------------------------------------- inside

    def _volume(self, path: str) -> FakeVolume | None:
        volumes = (volume for pool in self._native.pools.values() for volume in pool.volumes.values())
        return next((volume for volume in volumes if volume.path == path), None)

    @staticmethod
    def _merged(guest: FakeGuest, current: ResolvedGuest, wanted: ResolvedGuest) -> str:
        config = lowering.parse(guest.native)
        for field in fields(ResolvedGuest):
            if getattr(current, field.name) != getattr(wanted, field.name):
                config = _carried(config, current, wanted, Part(field.name))
        return lowering.lower(config, ()).native

    def _missing(self, capability: str) -> str:
        return next(
            (
                entry.reason
                for entry in self._link.capabilities
                if entry.id == capability and entry.level is CapabilityLevel.UNSUPPORTED
            ),
            "",
        )

    def _effect(
        self, guest: FakeGuest, current: ResolvedGuest, wanted: ResolvedGuest, path: str
    ) -> tuple[UpdateEffect, str]:
        part, *rest = parse_path(path)
        if part.name in ("firmware", "secure_boot", "machine"):
            return _E.REPLACE, "a fake guest's firmware and machine are made once"
        if part.name == "disks" and rest:
            always = self._of_content(guest, current, wanted, part.key, rest)
            if always is not None:
                return always
        if not guest.active_now:
            return _E.NEXT_BOOT, "the guest does not run"
        capability = self._capability(current, wanted, path)
        if not capability:
            return _E.NEXT_BOOT, "a fake guest reads it when it starts"
        running, why = lowering.parse(guest.active), self._missing(capability)
        room = {"memory_bytes": _most_memory(running), "vcpus": _most_vcpus(running)}
        if not why and part.name in room and getattr(wanted, part.name) > room[part.name]:
            why = f"the running guest has room for {room[part.name]} only"
        return (_E.NEXT_BOOT, why) if why else (_E.LIVE, "")

    def _of_content(
        self, guest: FakeGuest, current: ResolvedGuest, wanted: ResolvedGuest, name: str, rest: Sequence[Part]
    ) -> tuple[UpdateEffect, str] | None:
        if rest[-1].name == "capacity_bytes":
            why = self._missing(caps.UPDATE_RESIZE)
            if not why and guest.state is GuestState.SUSPENDED:
                why = "the guest is suspended"
            return (_E.REJECTED, why) if why else (_E.LIVE, "")
        disk = _named(current.disks, name)
        if rest[0].name in _SOURCES and disk is not None and disk.device is DiskDevice.DISK:
            return _E.REJECTED, "the disk would have another content under the same name"
        return None

    @staticmethod
    def _capability(current: ResolvedGuest, wanted: ResolvedGuest, path: str) -> str:
        """What stands behind a live change; empty: there is none."""
        part, *rest = parse_path(path)
        if part.name == "vcpus" and wanted.vcpus < current.vcpus:
            return caps.UPDATE_VCPUS_UNPLUG
        if part.name == "disks" and not rest:
            disk = _named(wanted.disks, part.key) or _named(current.disks, part.key)
            plain = disk is not None and disk.device is DiskDevice.DISK and disk.bus in (DiskBus.VIRTIO, DiskBus.SCSI)
            return caps.UPDATE_DISKS if plain else ""
        if part.name == "disks":
            return {"io_tune": caps.UPDATE_IO_TUNE, **dict.fromkeys(_SOURCES, caps.UPDATE_MEDIUM)}.get(rest[0].name, "")
        if part.name == "interfaces":
            return caps.UPDATE_INTERFACES if not rest or rest[0].name == "link_state" else ""
        return _LIVE.get(part.name, "")

    @staticmethod
    def _is_so(guest: FakeGuest, wanted: ResolvedGuest, path: str) -> bool:
        part, *rest = parse_path(path)
        if rest or part.name not in ("disks", "interfaces"):
            return False
        running = getattr(lowering.parse(guest.active), part.name)
        return (_named(running, part.key) is None) is (_named(getattr(wanted, part.name), part.key) is None)


def pending_of(guest: FakeGuest) -> tuple[str, ...]:
    """Which fields of a running guest wait for its next start."""
    if not guest.active:
        return ()
    running, config = lowering.to_spec(lowering.parse(guest.active)), lowering.to_spec(lowering.parse(guest.native))
    return pending_fields(running, config)


def _carried(config: ResolvedGuest, current: ResolvedGuest, wanted: ResolvedGuest, part: Part) -> ResolvedGuest:
    """A configuration with what changes in one field, or one entry of it."""
    value: Any = getattr(wanted, part.name)
    if part.name not in NAMED_LISTS:
        return replace(config, **{part.name: value})
    old, entries = getattr(current, part.name), list(getattr(config, part.name))
    names = dict.fromkeys(entry.name for entry in (*old, *value))
    for name in [part.key] if part.key else names:
        before, after = _named(old, name), _named(value, name)
        if before == after:
            continue
        entries = [after if entry.name == name else entry for entry in entries]
        if after is None:
            entries = [entry for entry in entries if entry is not None]
        elif after not in entries:
            entries.append(after)
    changed: Any = tuple(entries)
    return replace(config, **{part.name: changed})


def _touched(running: ResolvedGuest, wanted: ResolvedGuest, part: Part, rest: Sequence[Part]) -> ResolvedGuest:
    """What a guest runs with, with one field of one entry as it shall be."""
    names = ("path", "format") if rest[0].name in _SOURCES else (rest[0].name,)
    entry = _named(getattr(wanted, part.name), part.key)
    changed: Any = tuple(
        replace(held, **{name: getattr(entry, name) for name in names}) if held.name == part.key else held
        for held in getattr(running, part.name)
    )
    return replace(running, **{part.name: changed})


def _named(entries: Sequence[Any], name: str) -> Any:
    return next((entry for entry in entries if entry.name == name), None)


def _most_memory(running: ResolvedGuest) -> int:
    return max(running.max_memory_bytes or 0, running.memory_bytes)


def _most_vcpus(running: ResolvedGuest) -> int:
    return max(running.max_vcpus or 0, running.vcpus)
