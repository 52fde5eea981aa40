"""The use case of migrations."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from virtd.backend import capabilities as cap
from virtd.errors import (
    GUEST_EXISTS,
    GUEST_NOT_ADOPTED,
    HOST_UNREACHABLE,
    INVALID_STATE,
    AlreadyExistsError,
    FailedPreconditionError,
    UnavailableError,
    VirtdError,
    invalid_field,
    unsupported,
)
from virtd.model.migration import (
    FindingSeverity,
    MigrationCheck,
    MigrationFinding,
    MigrationMode,
    MigrationReason,
    MigrationRequest,
)
from virtd.model.names import GuestName, shown
from virtd.model.operation import Operation
from virtd.operations import joined
from virtd.service.call import Call
from virtd.service.core import Core, once, submission
from virtd.service.migration_check import preflight
from virtd.service.verbs.migrate import MigrateGuest
from virtd.service.verbs.migrate_parts import MigrateArguments, blocked

if TYPE_CHECKING:
    from virtd.service.guests import Guests

BANDWIDTH_LEAST: Final = 2**20
BANDWIDTH_MOST: Final = 2**44
DOWNTIME_MOST_MS: Final = 600_000
_PRECONDITIONS: Final = {
    MigrationReason.GUEST_NOT_ADOPTED.value: GUEST_NOT_ADOPTED,
    MigrationReason.WRONG_STATE.value: INVALID_STATE,
    MigrationReason.SAVED_STATE.value: INVALID_STATE,
}


class Migrations:
    """Guests that go from one host to another."""

    def __init__(self, core: Core, guests: Guests) -> None:
        self._core = core
        self._guests = guests
        self._migrate = MigrateGuest(core)
        core.engine.register(self._migrate)

    async def check(self, name: GuestName, request: MigrationRequest) -> MigrationCheck:
        """What :meth:`migrate` would do, and what is in its way.  No side effect.

        :raises NotFoundError: HOST_NOT_FOUND or GUEST_NOT_FOUND.
        :raises InvalidArgumentError: FIELD_INVALID.
        """
        _check_options(request)
        return (await preflight(self._core, name, request))[0]

    @once
    async def migrate(self, call: Call, name: GuestName, request: MigrationRequest) -> Operation | MigrationCheck:
        """Migrate; see the RPC's documentation for the errors.  With ``validate_only`` the check."""
        _check_options(request)
        found, disks, _ = await preflight(self._core, name, request)
        critical = [finding for finding in found.findings if finding.severity is FindingSeverity.CRITICAL]
        if critical:
            raise _refusal(name, critical)
        if call.validate_only:
            return found
        target = GuestName(request.target_host, name.guest)
        with self._guests.claimed(target.host, target.guest, new=False):
            view = self._core.view(name)
            arguments = MigrateArguments(
                name.host,
                name.guest,
                view.guest.uid,
                request=request,
                live=found.mode is MigrationMode.LIVE,
                disks=tuple(disks),
            )
            queue = joined(str(name), str(target))
            return await self._core.engine.submit(self._migrate, arguments, submission(call, str(name), queue))


def _check_options(request: MigrationRequest) -> None:
    if (request.copy_disks or request.pool) and not request.copy_storage:
        field = "options.copy_disks" if request.copy_disks else "options.pool"
        raise invalid_field(field, "is of use with copy_storage only")
    if request.mode is MigrationMode.OFFLINE:
        for field in ("post_copy", "auto_converge", "bandwidth_bytes_per_s", "max_downtime_ms"):
            if getattr(request, field):
                raise invalid_field(f"options.{field}", "is of use with a live migration only")
    if request.mode is MigrationMode.LIVE and request.discard_saved_state:
        raise invalid_field("options.discard_saved_state", "a suspended guest has no memory to send: use OFFLINE")
    bandwidth, downtime = request.bandwidth_bytes_per_s, request.max_downtime_ms
    if bandwidth is not None and not BANDWIDTH_LEAST <= bandwidth <= BANDWIDTH_MOST:
        raise invalid_field("options.bandwidth_bytes_per_s", f"must be {BANDWIDTH_LEAST} to {BANDWIDTH_MOST}")
    if downtime is not None and not 1 <= downtime <= DOWNTIME_MOST_MS:
        raise invalid_field("options.max_downtime_ms", f"must be 1 to {DOWNTIME_MOST_MS}")
    for disk in request.copy_disks:
        if not disk or not disk.isprintable():
            raise invalid_field("options.copy_disks", f"{shown(disk)} is not the name of a disk")


def _refusal(name: GuestName, critical: list[MigrationFinding]) -> VirtdError:
    """What the findings come down to: the error that other verbs raise for the same, where there is one."""
    first, reasons = critical[0], {finding.reason for finding in critical}
    if len(reasons) > 1:
        return blocked(name, critical)
    metadata = {"reasons": first.reason}
    if first.reason == MigrationReason.UNSUPPORTED and first.subject in cap.SUMMARIES:
        return unsupported(first.subject, first.message, resource=str(name))
    if first.reason == MigrationReason.TARGET_UNREACHABLE:
        return UnavailableError(
            HOST_UNREACHABLE, first.message, resource=str(name), metadata=metadata, retry_after_s=2.0
        )
    if first.reason in (MigrationReason.NAME_TAKEN, MigrationReason.UUID_TAKEN):
        return AlreadyExistsError(GUEST_EXISTS, first.message, resource=str(name), metadata=metadata)
    precondition = _PRECONDITIONS.get(first.reason)
    if precondition is None:
        return blocked(name, critical)
    return FailedPreconditionError(
        precondition, f"{first.message}. {first.remedy}", resource=str(name), metadata=metadata
    )
