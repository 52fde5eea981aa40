"""A fake guest's definition as a whole, its firmware variables, its autostart."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from uuid import UUID

from virtd.backend.api import CallContext, DiskFile
from virtd.errors import GUEST_EXISTS, INVALID_STATE, AlreadyExistsError, FailedPreconditionError
from virtd.model.guest import GuestState
from virtd.testing.fake import lowering
from virtd.testing.fake.disks import files_at, writable
from virtd.testing.fake.faults import NativeFailure
from virtd.testing.fake.link import Facet, spi
from virtd.testing.fake.state import guest_from_json, guest_to_json


class Definitions(Facet):
    """See :class:`virtd.backend.api.DefinitionFacet` and :class:`virtd.backend.api.AutostartFacet`."""

    @spi
    async def get_autostart(self, uuid: UUID) -> bool:
        """See the SPI."""
        return (await self._native.guest_lookup(uuid)).autostart

    @spi
    async def set_autostart(self, uuid: UUID, context: CallContext, *, enabled: bool) -> None:
        """See the SPI."""
        context.checkpoint()
        await self._native.guest_set_autostart(uuid, enabled=enabled)

    @spi
    async def read_definition(self, uuid: UUID) -> str:
        """See the SPI."""
        return json.dumps(guest_to_json(await self._native.guest_lookup(uuid)))

    @spi
    async def write_definition(self, uuid: UUID, name: str, definition: str, context: CallContext) -> None:
        """See the SPI."""
        context.checkpoint()
        guest = guest_from_json(json.loads(definition))
        guest.state, guest.reason, guest.active, guest.saved = GuestState.STOPPED, "", "", None
        guest.files.memory, guest.variables, guest.autostart = {}, b"", False
        if name:
            guest.name = name
            guest.native = lowering.lower(replace(lowering.parse(guest.native), name=name), ()).native
        owner = await self._native.guest_lookup_name(guest.name)
        if owner not in (None, uuid):
            raise AlreadyExistsError(GUEST_EXISTS, f"another guest is called {guest.name}", resource=guest.name)
        await self._native.guest_restore(guest)

    @spi
    async def replace_disk_files(self, uuid: UUID, files: Mapping[str, DiskFile], context: CallContext) -> None:
        """See the SPI."""
        context.checkpoint()
        guest = await self._native.guest_lookup(uuid)
        if guest.active_now:
            raise FailedPreconditionError(INVALID_STATE, f"guest {guest.name} is {guest.state}: stop it first")
        config = lowering.parse(guest.native)
        disks = tuple(
            replace(disk, path=files[disk.path].path, format=files[disk.path].format) if disk.path in files else disk
            for disk in config.disks
        )
        if disks != config.disks:
            changed = lowering.lower(replace(config, disks=disks), ()).native
            before, after = writable(config.disks)[:1], writable(disks)[:1]
            content = files_at(self._native, after[0].path) if before != after else None
            await self._native.guest_switch_disks(uuid, changed, content)

    @spi
    async def read_variables(self, uuid: UUID) -> bytes | None:
        """See the SPI."""
        guest = await self._native.guest_lookup(uuid)
        return guest.variables if guest.firmware_variables else None

    @spi
    async def write_variables(self, uuid: UUID, data: bytes, context: CallContext) -> None:
        """See the SPI."""
        context.checkpoint()
        try:
            await self._native.guest_write_variables(uuid, data)
        except NativeFailure as failure:
            if failure.code != "active":
                raise
            raise FailedPreconditionError(INVALID_STATE, "the guest is active: stop it first") from failure
