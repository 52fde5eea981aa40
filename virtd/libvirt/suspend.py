"""Suspend to disk: libvirt's managed save."""

from __future__ import annotations

import asyncio
import contextlib
from typing import Any, Final
from uuid import UUID

import libvirt

from virtd.backend.api import CallContext
from virtd.errors import OPERATION_CANCELLED, CancelledError, NotFoundError, VirtdError
from virtd.libvirt.connections import LaneName
from virtd.libvirt.guests import Guests, native_state, require_active
from virtd.model.guest import GuestState

_POLL_S: Final = 0.5


class Suspend:
    """Saves guests to disk."""

    def __init__(self, guests: Guests) -> None:
        self._guests: Final = guests

    async def suspend_guest(self, uuid: UUID, context: CallContext) -> None:
        """Save and stop; ``start_guest`` restores.  A cancelled one runs on.  Idempotent.

        A cancel that comes when the save is complete restores the guest.  Where that fails, the guest stays
        suspended, and the call succeeds: it did what it was asked for.
        """
        context.checkpoint()

        def run(domain: Any) -> bool:
            if native_state(domain).state is GuestState.SUSPENDED:
                return False
            require_active(domain, "suspend")
            self.save(domain)
            return True

        work = asyncio.ensure_future(
            self._guests.on_domain(uuid, "virDomainManagedSave", run, lane=LaneName.BULK, unlimited=True)
        )
        try:
            while not work.done():
                await asyncio.wait({work}, timeout=_POLL_S)
                if not work.done():
                    await self._report(uuid, context)
                    context.checkpoint()
        except VirtdError:
            if await self._call_off(uuid, work):
                raise
            context.note("the cancel came when the guest was saved, and it could not be restored")
            return
        except asyncio.CancelledError:
            with contextlib.suppress(VirtdError):
                await self._call_off(uuid, work)
            raise
        try:
            work.result()
        except CancelledError as error:
            raise CancelledError(
                OPERATION_CANCELLED, "the save was aborted from outside", native=error.record.native
            ) from error

    def save(self, domain: Any) -> None:
        """Save an active domain, and end it.  Blocking; on a worker."""
        domain.managedSave(0)

    async def discard_saved_state(self, uuid: UUID, context: CallContext) -> None:
        """Throw the saved state away.  Idempotent."""
        context.checkpoint()

        def run(domain: Any) -> None:
            if domain.hasManagedSaveImage(0):
                domain.managedSaveRemove(0)

        with contextlib.suppress(NotFoundError):
            await self._guests.on_domain(uuid, "virDomainManagedSaveRemove", run, lane=LaneName.CHANGE)

    async def _report(self, uuid: UUID, context: CallContext) -> None:
        with contextlib.suppress(VirtdError):
            stats = await self._guests.on_domain(uuid, "virDomainGetJobStats", lambda domain: domain.jobStats(0))
            done, total = stats.get("data_processed"), stats.get("data_total")
            if done is not None and total:
                context.progress(min(1.0, done / total), bytes_done=done, bytes_total=total)

    async def _call_off(self, uuid: UUID, work: asyncio.Future[bool]) -> bool:
        """Stop the save, or restore the guest (paused again if it was) when the save was quicker.

        Answers whether the guest is back; else it is still saved.
        """
        await self._abort(uuid)
        saved = False
        with contextlib.suppress(VirtdError):
            saved = await asyncio.shield(work)
        if not saved:
            return True

        def run(domain: Any) -> bool:
            with contextlib.suppress(libvirt.libvirtError):
                domain.create()
            return native_state(domain).state is not GuestState.SUSPENDED

        return await self._guests.on_domain(uuid, "virDomainCreate", run, lane=LaneName.CHANGE, unlimited=True)

    async def _abort(self, uuid: UUID) -> None:
        def run(domain: Any) -> None:
            with contextlib.suppress(libvirt.libvirtError):
                domain.abortJob()

        with contextlib.suppress(VirtdError):
            await self._guests.on_domain(uuid, "virDomainAbortJob", run, lane=LaneName.READ)
