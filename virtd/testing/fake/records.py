"""What a fake hypervisor keeps for snapshots that virtd makes by copying disks."""

from __future__ import annotations

from uuid import UUID

from virtd.testing.fake.link import Facet, spi


class Records(Facet):
    """See :class:`virtd.backend.emulate.records.RecordKeeper`."""

    @spi
    async def read_records(self, uuid: UUID) -> str:
        """See there."""
        return (await self._native.guest_lookup(uuid)).records

    @spi
    async def write_records(self, uuid: UUID, text: str) -> None:
        """See there."""
        await self._native.guest_write_records(uuid, text)
