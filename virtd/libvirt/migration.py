"""Live migration, peer to peer: the two libvirt daemons do it between themselves.

virtd asks the source's daemon and looks on.  When virtd dies, the migration goes on; who comes after it
finds out from both daemons, by the guest's UUID, what became of it.  What a driver has of its own is in its
policy.  Facts (libvirt 9.0; QEMU 7.2 where not said otherwise):

* while a migration is under way the source has a job, and the target's statistics are refused;
* the job's ``memory_remaining`` is 0 before the first pass, and may be 0 under a bandwidth limit: it is
  believed only together with what was sent;
* the measured downtime is in the statistics of the completed job, on the target;
* an aborted migration ends with VIR_ERR_OPERATION_ABORTED, and the guest runs on at the source;
* where the source's daemon dies, its successor calls an unfinished migration back; where the target's
  does, its successor removes the process that waits.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final
from uuid import UUID

import libvirt

from virtd.backend.api import CallContext, HostConfig
from virtd.backend.facets_migration import MigrationFacet, MigrationOrder, MigrationSide, MigrationTimes
from virtd.errors import (
    INVALID_STATE,
    MIGRATION_FAILED,
    OPERATION_CANCELLED,
    CancelledError,
    FailedPreconditionError,
    InternalError,
    NotFoundError,
    VirtdError,
)
from virtd.libvirt.connections import HostConnections, LaneName
from virtd.libvirt.errors import code_of, native_of, translate
from virtd.libvirt.guests import Guests, is_active
from virtd.libvirt.migration_check import Checker
from virtd.libvirt.migration_policy import MigrationPolicy
from virtd.libvirt.migration_route import Route, route_of
from virtd.libvirt.migration_stats import Progress
from virtd.libvirt.xml.definition import disk_paths, migrated_disk_targets, with_disk_files
from virtd.model.guest import DiskFormat
from virtd.model.migration import MigrationFinding

_POLL_S: Final = 0.5
_FORMATS: Final = {DiskFormat.QCOW2: "qcow2", DiskFormat.RAW: "raw"}
_UNDEFINE: Final = libvirt.VIR_DOMAIN_UNDEFINE_SNAPSHOTS_METADATA | libvirt.VIR_DOMAIN_UNDEFINE_NVRAM
_MIGRATABLE: Final = libvirt.VIR_DOMAIN_XML_MIGRATABLE | libvirt.VIR_DOMAIN_XML_SECURE


class Migration:
    """See :class:`virtd.backend.api.MigrationFacet`.

    :param policy: what the driver has of its own.
    """

    def __init__(
        self, config: HostConfig, connections: HostConnections, guests: Guests, policy: MigrationPolicy
    ) -> None:
        self.config: Final = config
        self.connections: Final = connections
        self._guests: Final = guests
        self._policy: Final = policy
        self._checker: Final = Checker(connections, guests, policy.objections)

    # ----------------------------------------------------------------------------------- before

    async def shared_paths(self, paths: Sequence[str], target: MigrationFacet) -> Mapping[str, str]:
        """See the SPI."""
        return await self._checker.shared_paths(paths, self.config, _ours(target).config, _ours(target).connections)

    async def check_migration(
        self, uuid: UUID, order: MigrationOrder, target: MigrationFacet, *, live: bool
    ) -> Sequence[MigrationFinding]:
        """See the SPI."""
        other = _ours(target)
        found = list(await self._checker.check(uuid, order, other.connections, live=live))
        if live:
            found += route_of(self.config, other.config).findings
        return found

    async def migration_side(self, uuid: UUID) -> MigrationSide:
        """See the SPI."""
        try:
            return await self._guests.on_domain(uuid, "virDomainGetJobStats", self._policy.side)
        except NotFoundError:
            return MigrationSide.ABSENT

    # ------------------------------------------------------------------------------------ during

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
        other = _ours(target)
        self._policy.require(order)
        under_way = await self._is_under_way(uuid, other)
        work: asyncio.Future[libvirt.libvirtError | None]
        if under_way:
            work = asyncio.ensure_future(self._until_over(uuid))
        else:
            context.checkpoint()
            route, flags = route_of(self.config, other.config), self._policy.flags
            if not self._policy.trusts_disks and await self._shared_without_proof(uuid, order, other):
                flags |= libvirt.VIR_MIGRATE_UNSAFE

            def run(connection: Any) -> libvirt.libvirtError | None:
                return _send(connection, uuid, order, route, flags)

            if not self._policy.abortable:
                committed()
            work = asyncio.ensure_future(
                self.connections.call("virDomainMigrateToURI3", run, lane=LaneName.BULK, unlimited=True)
            )
        cancelled = await self._look_on(uuid, order, context, work, committed)
        error = work.result()
        if error is not None:
            raise _failure(error, cancelled=cancelled)
        if under_way and await self.migration_side(uuid) is MigrationSide.ACTIVE:
            if cancelled:
                raise CancelledError(OPERATION_CANCELLED, "the migration was aborted")
            raise FailedPreconditionError(MIGRATION_FAILED, "the hypervisors gave the migration up")

    async def _is_under_way(self, uuid: UUID, other: Migration) -> bool:
        """Whether the guest is on its way already."""
        if await self.migration_side(uuid) is not MigrationSide.OUTGOING:
            return False
        # Where jobs have no names it may be another job, which nothing on the target answers to.
        return self._policy.names_jobs or await other.migration_side(uuid) is not MigrationSide.ABSENT

    async def _shared_without_proof(self, uuid: UUID, order: MigrationOrder, other: Migration) -> bool:
        """Whether there is a disk of which libvirt itself cannot see that both hosts have it, and virtd knows it."""
        if order.mirrors:
            return False  # libvirt does not ask then
        paths = await self._guests.on_domain(uuid, "virDomainGetXMLDesc", lambda domain: disk_paths(domain.XMLDesc(0)))
        known = await self.shared_paths(paths, other)
        moved = {disk.path for disk in order.disks}
        return all(path in known for path in paths if path not in moved)

    async def _look_on(
        self,
        uuid: UUID,
        order: MigrationOrder,
        context: CallContext,
        work: asyncio.Future[libvirt.libvirtError | None],
        committed: Callable[[], None],
    ) -> bool:
        """Report until it is over; whether it was aborted because the context was cancelled.

        When this coroutine itself is cancelled, virtd is stopping: the migration goes on without it.
        """
        progress, switched, cancelled = Progress(context, await self._memory(uuid)), False, False
        if order.max_downtime_ms is not None:
            await self._limit_downtime(uuid, order.max_downtime_ms)
        while not work.done():
            await asyncio.wait({work}, timeout=_POLL_S)
            if work.done():
                break
            stats = await self._stats(uuid)
            progress.report(stats)
            if order.post_copy and not switched and not cancelled and progress.passes > 1:
                committed()
                switched = await self._switch(uuid, context)
            if self._policy.abortable and not cancelled:
                try:
                    context.checkpoint()
                except VirtdError:
                    cancelled = await self._abort(uuid)
        return cancelled

    async def _until_over(self, uuid: UUID) -> libvirt.libvirtError | None:
        while await self.migration_side(uuid) is MigrationSide.OUTGOING:  # noqa: ASYNC110 - nobody tells
            await asyncio.sleep(_POLL_S)
        return None

    async def _stats(self, uuid: UUID) -> Mapping[str, Any]:
        with contextlib.suppress(VirtdError):
            return await self._guests.on_domain(uuid, "virDomainGetJobStats", lambda domain: domain.jobStats(0))
        return {}

    async def _memory(self, uuid: UUID) -> int:
        with contextlib.suppress(VirtdError):
            kibibytes = await self._guests.on_domain(uuid, "virDomainGetInfo", lambda domain: domain.info()[1])
            return int(kibibytes) * 1024
        return 0

    async def _limit_downtime(self, uuid: UUID, limit_ms: int) -> None:
        with contextlib.suppress(VirtdError):
            await self._guests.on_domain(
                uuid, "virDomainMigrateSetMaxDowntime", lambda domain: domain.migrateSetMaxDowntime(limit_ms, 0)
            )

    async def _switch(self, uuid: UUID, context: CallContext) -> bool:
        try:
            await self._guests.on_domain(
                uuid, "virDomainMigrateStartPostCopy", lambda domain: domain.migrateStartPostCopy(0)
            )
        except VirtdError as error:
            context.note(f"not switched to post-copy: {error.message}")
            return False
        context.note("switched to post-copy: the guest runs on the target")
        return True

    async def _abort(self, uuid: UUID) -> bool:
        """Abort the job; again where it has not begun yet."""
        with contextlib.suppress(VirtdError):
            await self._guests.on_domain(uuid, "virDomainAbortJob", lambda domain: domain.abortJob())
            return True
        return False

    # ------------------------------------------------------------------------------------ behind

    async def migration_times(self, uuid: UUID) -> MigrationTimes:
        """See the SPI."""
        if not self._policy.measures:
            return MigrationTimes()

        def run(domain: Any) -> MigrationTimes:
            stats = domain.jobStats(
                libvirt.VIR_DOMAIN_JOB_STATS_COMPLETED | libvirt.VIR_DOMAIN_JOB_STATS_KEEP_COMPLETED
            )
            sent = stats.get("data_processed")
            return MigrationTimes(stats.get("downtime"), stats.get("time_elapsed"), sent)

        return await self._guests.on_domain(uuid, "virDomainGetJobStats", run)

    async def discard_arrival(self, uuid: UUID, context: CallContext) -> None:
        """See the SPI."""

        def run(domain: Any) -> None:
            side = self._policy.side(domain)
            if side in (MigrationSide.ACTIVE, MigrationSide.OUTGOING, MigrationSide.BROKEN):
                raise FailedPreconditionError(INVALID_STATE, "the guest is active here: it has arrived")
            if is_active(domain):
                domain.destroy()
            if domain.isPersistent():
                domain.undefineFlags(_UNDEFINE)

        try:
            await self._guests.on_domain(uuid, "virDomainDestroy", run, lane=LaneName.CHANGE)
        except NotFoundError:
            return
        except InternalError:
            # libvirt itself removes what waits for nobody, and may have been quicker.
            if await self.migration_side(uuid) is not MigrationSide.ABSENT:
                raise


def _ours(target: MigrationFacet) -> Migration:
    assert isinstance(target, Migration), "the core has found both hosts to be of one backend"
    return target


def _send(connection: Any, uuid: UUID, order: MigrationOrder, route: Route, flags: int) -> libvirt.libvirtError | None:
    """Blocking: migrate, and say how it went.  A broken connection to *this* host is raised."""
    domain = connection.lookupByUUID(uuid.bytes)
    parameters = dict(route.parameters(uuid, mirrors=order.mirrors))
    if order.post_copy:
        flags |= libvirt.VIR_MIGRATE_POSTCOPY
    if order.auto_converge:
        flags |= libvirt.VIR_MIGRATE_AUTO_CONVERGE
    if order.bandwidth_bytes_per_s is not None:
        mebibytes = max(1, order.bandwidth_bytes_per_s >> 20)
        parameters[libvirt.VIR_MIGRATE_PARAM_BANDWIDTH] = mebibytes
        if order.post_copy:
            parameters[libvirt.VIR_MIGRATE_PARAM_BANDWIDTH_POSTCOPY] = mebibytes
    if order.disks:
        files = {disk.path: (disk.target_path, _FORMATS[disk.format]) for disk in order.disks}
        live = domain.XMLDesc(_MIGRATABLE)
        parameters[libvirt.VIR_MIGRATE_PARAM_DEST_XML] = with_disk_files(live, files)
        kept = domain.XMLDesc(libvirt.VIR_DOMAIN_XML_INACTIVE | _MIGRATABLE)
        parameters[libvirt.VIR_MIGRATE_PARAM_PERSIST_XML] = with_disk_files(kept, files)
        mirrored = {disk.path for disk in order.disks if disk.mirrored}
        if mirrored:
            flags |= libvirt.VIR_MIGRATE_NON_SHARED_DISK
            parameters[libvirt.VIR_MIGRATE_PARAM_MIGRATE_DISKS] = migrated_disk_targets(live, mirrored)
    try:
        domain.migrateToURI3(route.uri, parameters, flags)
    except libvirt.libvirtError as error:
        if not connection.isAlive():
            raise
        return error
    return None


def _failure(error: libvirt.libvirtError, *, cancelled: bool) -> VirtdError:
    native = native_of(error, "virDomainMigrateToURI3")
    if code_of(error) == libvirt.VIR_ERR_OPERATION_ABORTED or cancelled:
        words = "the migration was aborted" if cancelled else "the migration was aborted from outside"
        return CancelledError(OPERATION_CANCELLED, words, native=native)
    found = translate(error, "virDomainMigrateToURI3")
    if found.reason.kind in ("NotFound", "Unsupported"):
        return FailedPreconditionError(MIGRATION_FAILED, found.record.message, native=native)
    return FailedPreconditionError(
        MIGRATION_FAILED, f"the hypervisors gave the migration up: {native.message}", native=native
    )
