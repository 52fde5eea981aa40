"""Backups of fake guests: their first disk's real content, whole or what has changed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Final
from uuid import UUID

from virtd.backend import capabilities as caps
from virtd.backend.api import BackupReader, BackupRequest, CallContext, DiskRange, SourceDisk
from virtd.errors import (
    BACKUP_CHAIN_BROKEN,
    GUEST_NOT_FOUND,
    INVALID_STATE,
    FailedPreconditionError,
    NotFoundError,
    unsupported,
)
from virtd.model.guest import DiskFormat
from virtd.testing.fake.disks import disk_of, disks_of
from virtd.testing.fake.faults import NativeFailure
from virtd.testing.fake.link import Facet, spi, translate

if TYPE_CHECKING:
    from virtd.testing.fake.state import FakeGuest

_PIECE: Final = 4096
_NO_CAPACITY: Final = 1 << 20


class Backups(Facet):
    """See :class:`virtd.backend.api.BackupFacet`."""

    @spi
    async def open_backup(self, uuid: UUID, request: BackupRequest, context: CallContext) -> BackupReader:
        """See the SPI."""
        context.checkpoint()
        guest = await self._native.guest_lookup(uuid)
        if guest.backing_up:
            raise FailedPreconditionError(INVALID_STATE, f"another backup of {guest.name} is at work")
        if request.since:
            self._link.refuse_without(caps.BACKUP_INCREMENTAL)
        sources = self._sources(guest, request)
        if not sources:
            raise unsupported(caps.BACKUP, "the guest has no disk that it can write to")
        if request.since and request.since not in guest.checkpoints:
            raise FailedPreconditionError(BACKUP_CHAIN_BROKEN, f"the host no longer has the checkpoint {request.since}")
        tracked = any(source.tracked for source in sources)
        async with self._native._call("backup_begin", context):  # noqa: SLF001 - this is the rest of that module
            old = guest.checkpoints.get(request.since, b"")
            image = disk_of(guest)
            guest.backing_up = True
            if tracked:
                guest.checkpoints[request.checkpoint] = image
        return _Reader(self, guest, sources, image, old, request.checkpoint if tracked else "")

    def _sources(self, guest: FakeGuest, request: BackupRequest) -> list[SourceDisk]:
        expected = {disk.name: disk for disk in request.expected}
        sources = []
        missing = any(
            entry.id == caps.BACKUP_INCREMENTAL and entry.level == "UNSUPPORTED" for entry in self._link.capabilities
        )
        for disk in disks_of(guest):
            capacity = self.capacity_of(disk.path)
            known = expected.get(disk.name)
            if known is not None and (known.identity, known.capacity_bytes) != (disk.path, capacity):
                raise FailedPreconditionError(BACKUP_CHAIN_BROKEN, f"disk {disk.name} was replaced or resized")
            tracked = disk.format is DiskFormat.QCOW2 and not missing
            sources.append(
                SourceDisk(
                    name=disk.name,
                    identity=disk.path,
                    format=disk.format.value.lower(),
                    capacity_bytes=capacity,
                    incremental=bool(request.since) and known is not None,
                    tracked=tracked,
                    reason="" if tracked else "changes of this disk are not tracked",
                )
            )
        return sources

    def capacity_of(self, path: str) -> int:
        """The size of the volume at a path."""
        for pool in self._native.pools.values():
            for volume in pool.volumes.values():
                if volume.path == path:
                    return volume.capacity_bytes
        return _NO_CAPACITY

    @spi
    async def abort_backup(self, uuid: UUID, context: CallContext) -> None:
        """See the SPI."""
        context.checkpoint()
        await self.end(uuid)

    async def end(self, uuid: UUID) -> None:
        """End the job, if there is one."""
        async with self._native._call("backup_end"):  # noqa: SLF001 - as above
            guest = self._native.guests.get(uuid)
            if guest is not None:
                guest.backing_up = False

    @spi
    async def list_checkpoints(self, uuid: UUID) -> Sequence[str]:
        """See the SPI."""
        return list((await self._native.guest_lookup(uuid)).checkpoints)

    @spi
    async def delete_checkpoint(self, uuid: UUID, name: str, context: CallContext) -> None:
        """See the SPI."""
        context.checkpoint()
        async with self._native._call("checkpoint_delete"):  # noqa: SLF001 - as above
            guest = self._native.guests.get(uuid)
            if guest is not None:
                guest.checkpoints.pop(name, None)

    async def fetch(self, uuid: UUID) -> None:
        """One read of the disks; the guest may be gone, or off, by now."""
        async with self._native._call("backup_read"):  # noqa: SLF001 - as above
            guest = self._native.guests.get(uuid)
            if guest is None:
                raise NotFoundError(GUEST_NOT_FOUND, f"no guest has the UUID {uuid}")
            if not guest.backing_up:
                raise FailedPreconditionError(INVALID_STATE, "the backup was ended from outside")


class _Reader:
    """See :class:`virtd.backend.api.BackupReader`."""

    left_out: Sequence[str] = ()

    def __init__(
        self,
        backups: Backups,
        guest: FakeGuest,
        sources: Sequence[SourceDisk],
        image: bytes,
        old: bytes,
        checkpoint: str,
    ) -> None:
        self._backups = backups
        self._uuid = guest.uuid
        self._ran = guest.active_now
        self._guest = guest
        self.disks = sources
        self._images = {source.name: image if index == 0 else b"" for index, source in enumerate(sources)}
        self._old = {source.name: old if index == 0 else b"" for index, source in enumerate(sources)}
        self.checkpoint = checkpoint
        self.no_checkpoint = "" if checkpoint else "no disk's changes can be tracked"
        self._closed = False

    async def extents(self, disk: str) -> Sequence[DiskRange]:
        """See the SPI."""
        source = next(source for source in self.disks if source.name == disk)
        image, old = self._images[disk], self._old[disk] if source.incremental else b""
        found = []
        for offset in range(0, max(len(image), len(old)), _PIECE):
            piece, before = image[offset : offset + _PIECE], old[offset : offset + _PIECE]
            if piece != before:
                length = min(_PIECE, source.capacity_bytes - offset)
                found.append(DiskRange(offset, length, zero=not piece))
        return found

    async def read(self, disk: str, offset: int, length: int) -> bytes:
        """See the SPI."""
        try:
            await self._backups.fetch(self._uuid)
        except NativeFailure as failure:
            raise translate(failure) from failure
        if self._ran and not self._guest.active_now:
            raise FailedPreconditionError(
                INVALID_STATE, "the guest was powered off while its disks were read", allowed_actions=("backup",)
            )
        return self._images[disk][offset : offset + length].ljust(length, b"\0")

    async def close(self) -> None:
        """See the SPI."""
        if self._closed:
            return
        try:
            await self._backups.end(self._uuid)
        except NativeFailure as failure:
            raise translate(failure) from failure
        self._closed = True
