"""Guests of a fake host that move to another one."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Mapping, Sequence
from typing import Final
from uuid import UUID

from virtd.backend import capabilities as caps
from virtd.backend.api import CallContext, MigrationFacet, MigrationOrder, MigrationSide, MigrationTimes
from virtd.backend.shared import option_of, shared_by_option
from virtd.errors import (
    HOST_UNREACHABLE,
    INVALID_STATE,
    MIGRATION_FAILED,
    FailedPreconditionError,
    UnavailableError,
    VirtdError,
)
from virtd.model.migration import MigrationFinding
from virtd.testing.fake import lowering
from virtd.testing.fake.faults import NativeFailure
from virtd.testing.fake.link import Facet, spi, translate
from virtd.testing.fake.native import NativeHypervisor

PASSES: Final = 4


class Migration(Facet):
    """See :class:`virtd.backend.api.MigrationFacet`."""

    @property
    def native(self) -> NativeHypervisor:
        """The hypervisor, for the other side."""
        return self._native

    @property
    def shared_option(self) -> str:
        """The directories that this host is said to share."""
        return option_of(self._link.config.options)

    @property
    def strange(self) -> Sequence[MigrationFinding]:
        """What a test wants every check of a guest that comes here to find."""
        return self._world.migration_findings

    def _other(self, target: MigrationFacet) -> Migration:
        assert isinstance(target, Migration), "the core has found both hosts to be of one backend"
        return target

    @spi
    async def shared_paths(self, paths: Sequence[str], target: MigrationFacet) -> Mapping[str, str]:
        """See the SPI."""
        return shared_by_option(paths, self.shared_option, self._other(target).shared_option)

    @spi
    async def check_migration(
        self, uuid: UUID, order: MigrationOrder, target: MigrationFacet, *, live: bool
    ) -> Sequence[MigrationFinding]:
        """See the SPI."""
        await self._native.guest_lookup(uuid)
        return list(self._other(target).strange)

    @spi
    async def migration_side(self, uuid: UUID) -> MigrationSide:
        """See the SPI."""
        guest = await self._native.migration_look(uuid)
        if guest is None:
            return MigrationSide.ABSENT
        if not guest.active_now:
            return MigrationSide.DOWN
        return {"incoming": MigrationSide.INCOMING, "outgoing": MigrationSide.OUTGOING}.get(
            guest.migration, MigrationSide.ACTIVE
        )

    @spi
    async def migrate_guest(
        self,
        uuid: UUID,
        order: MigrationOrder,
        target: MigrationFacet,
        context: CallContext,
        *,
        committed: Callable[[], None],
    ) -> None:
        """See the SPI."""
        self._link.refuse_without(caps.MIGRATE_LIVE)
        if order.mirrors:
            self._link.refuse_without(caps.MIGRATE_STORAGE)
        if order.post_copy:
            self._link.refuse_without(caps.MIGRATE_POSTCOPY)
        other = self._other(target).native
        try:
            await self._send(uuid, order, other, context, committed)
        except NativeFailure as failure:
            await self._call_back(uuid, other)
            if failure.code == "unreachable" and not self._native.connected:
                raise UnavailableError(HOST_UNREACHABLE, failure.message) from failure
            if failure.code in ("not-running", "no-guest"):
                raise
            native = translate(failure).record.native
            raise FailedPreconditionError(
                MIGRATION_FAILED, f"the hypervisors gave the migration up: {failure.message}", native=native
            ) from failure
        except VirtdError:
            await self._call_back(uuid, other)
            raise
        except asyncio.CancelledError:
            raise  # whoever asked has gone; it is the hypervisors' own affair from here on

    async def _send(
        self,
        uuid: UUID,
        order: MigrationOrder,
        other: NativeHypervisor,
        context: CallContext,
        committed: Callable[[], None],
    ) -> None:
        guest = await self._native.migration_look(uuid)
        if guest is None or guest.migration != "outgoing":
            context.checkpoint()
        guest = await self._native.migration_begin(uuid)
        await other.migration_prepare(guest)
        total = lowering.parse(guest.active).memory_bytes
        done, switched = guest.passes, False
        while done < PASSES:
            if not switched:
                context.checkpoint()
            done = await self._native.migration_pass(uuid, None if switched else context)
            context.progress(min(1.0, done / PASSES), bytes_done=total * done // PASSES, bytes_total=total)
            if order.post_copy and not switched:
                committed()
                switched = True
        if not switched:
            context.checkpoint()
        files = {disk.path: (disk.target_path, disk.format) for disk in order.disks}
        await self._native.migration_switch(uuid, other, files)

    async def _call_back(self, uuid: UUID, other: NativeHypervisor) -> None:
        """The hypervisors do so by themselves."""
        with contextlib.suppress(NativeFailure):
            await self._native.migration_abort(uuid)
        with contextlib.suppress(NativeFailure):
            await other.migration_discard(uuid)

    @spi
    async def migration_times(self, uuid: UUID) -> MigrationTimes:
        """See the SPI."""
        guest = await self._native.guest_lookup(uuid)
        return MigrationTimes(5, 40, lowering.parse(guest.native).memory_bytes)

    @spi
    async def discard_arrival(self, uuid: UUID, context: CallContext) -> None:
        """See the SPI."""
        try:
            await self._native.migration_discard(uuid)
        except NativeFailure as failure:
            if failure.code != "active":
                raise
            raise FailedPreconditionError(INVALID_STATE, "the guest runs here: it has arrived") from failure


__all__ = ["PASSES", "Migration"]
