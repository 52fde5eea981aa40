"""How libvirt's QEMU driver moves a guest that runs, and what it tells of it.  Facts: libvirt 9.0, QEMU 7.2."""

from __future__ import annotations

from typing import Any, Final

import libvirt

from virtd.backend.api import MigrationSide
from virtd.libvirt.errors import code_of
from virtd.libvirt.guests import is_active
from virtd.libvirt.migration_policy import MigrationPolicy

# Newer than the oldest binding that virtd builds with.
_POSTCOPY_FAILED: Final = getattr(libvirt, "VIR_DOMAIN_PAUSED_POSTCOPY_FAILED", -1)
_RUNNING_POSTCOPY_FAILED: Final = getattr(libvirt, "VIR_DOMAIN_RUNNING_POSTCOPY_FAILED", -1)
_BROKEN: Final = (
    (libvirt.VIR_DOMAIN_PAUSED, _POSTCOPY_FAILED),
    (libvirt.VIR_DOMAIN_RUNNING, _RUNNING_POSTCOPY_FAILED),
)
_BETWEEN: Final = (
    (libvirt.VIR_DOMAIN_PAUSED, libvirt.VIR_DOMAIN_PAUSED_MIGRATION),
    (libvirt.VIR_DOMAIN_PAUSED, libvirt.VIR_DOMAIN_PAUSED_STARTING_UP),
)
_JOBS: Final = {
    libvirt.VIR_DOMAIN_JOB_OPERATION_MIGRATION_IN: MigrationSide.INCOMING,
    libvirt.VIR_DOMAIN_JOB_OPERATION_MIGRATION_OUT: MigrationSide.OUTGOING,
}
_REFUSED: Final = {
    # Of a guest that arrives the statistics are refused; of one that has just ended as well.
    libvirt.VIR_ERR_OPERATION_UNSUPPORTED: MigrationSide.INCOMING,
    libvirt.VIR_ERR_OPERATION_INVALID: MigrationSide.DOWN,
}


def _side(domain: Any) -> MigrationSide:
    """What this host has of the guest."""
    state, reason = domain.state()
    if not is_active(domain):
        return MigrationSide.DOWN
    if (state, reason) in _BROKEN:
        return MigrationSide.BROKEN
    job = _job(domain)
    if job is not None:
        return job
    if (state, reason) in _BETWEEN:
        # Stopped for the last moment of a migration, on either side, between two of its phases.
        return MigrationSide.OUTGOING if domain.isPersistent() else MigrationSide.INCOMING
    return MigrationSide.ACTIVE


def _job(domain: Any) -> MigrationSide | None:
    """What the guest's job says; None: there is none that is about migration."""
    try:
        stats = domain.jobStats(0)
    except libvirt.libvirtError as error:
        found = _REFUSED.get(code_of(error))
        if found is None:
            raise
        return found
    if stats.get("type", libvirt.VIR_DOMAIN_JOB_NONE) == libvirt.VIR_DOMAIN_JOB_NONE:
        return None
    return _JOBS.get(stats.get("operation", -1))


POLICY: Final = MigrationPolicy(
    flags=libvirt.VIR_MIGRATE_LIVE
    | libvirt.VIR_MIGRATE_PEER2PEER
    | libvirt.VIR_MIGRATE_PERSIST_DEST
    | libvirt.VIR_MIGRATE_UNDEFINE_SOURCE
    | libvirt.VIR_MIGRATE_ABORT_ON_ERROR,
    side=_side,
)
