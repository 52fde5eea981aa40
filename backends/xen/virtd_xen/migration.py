"""How libvirt's libxl driver moves a guest that runs, and what it tells of it.  Facts: libvirt 9.0, Xen 4.17.

* a job has a beginning and no more: not what it does, not how far it is, no abort, no limits, nothing afterwards;
* while the memory comes, the target has a transient domain that is not active; when all of it is there, one that is
  paused and still transient; the definition is written last;
* the source's domain is called running to the end, also while Xen has it suspended for the last pass, and its job ends
  when it has gone;
* a guest is asked to suspend itself for the last pass: one that is paused cannot.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Final

import libvirt

from virtd.backend import capabilities as ids
from virtd.backend.api import MigrationOrder, MigrationSide
from virtd.libvirt.guests import is_active
from virtd.libvirt.migration_policy import MigrationPolicy
from virtd.libvirt.xml.build import Element
from virtd.model.migration import FindingSeverity, MigrationFinding, MigrationReason

UNSUPPORTED: Final[Mapping[str, str]] = {
    ids.MIGRATE_STORAGE: (
        "Xen sends a guest's memory only: share the disks (option shared_directories), or migrate the stopped guest"
    ),
    ids.MIGRATE_POSTCOPY: "Xen has no post-copy: all of the memory is there before the guest runs on the other host",
}
"""What no Xen host has, and why."""
_NO_LIMITS: Final = "libvirt's libxl driver has no limits for a migration"


def _side(domain: Any) -> MigrationSide:
    """What this host has of the guest."""
    persistent = bool(domain.isPersistent())
    if not is_active(domain):
        return MigrationSide.DOWN if persistent else MigrationSide.INCOMING
    if not persistent and domain.state()[0] == libvirt.VIR_DOMAIN_PAUSED:
        return MigrationSide.INCOMING
    if domain.jobStats(0).get("type", libvirt.VIR_DOMAIN_JOB_NONE) == libvirt.VIR_DOMAIN_JOB_NONE:
        return MigrationSide.ACTIVE
    return MigrationSide.OUTGOING if persistent else MigrationSide.INCOMING


def _objections(domain: Any, _xml: Element, order: MigrationOrder) -> Iterator[MigrationFinding]:
    if domain.state()[0] == libvirt.VIR_DOMAIN_PAUSED:
        yield _critical(
            MigrationReason.WRONG_STATE,
            "the guest is paused: Xen asks the guest itself to stop for the last of its memory, and it cannot answer",
            "Resume it first.",
        )
    wanted = {
        "auto_converge": order.auto_converge,
        "bandwidth_bytes_per_s": order.bandwidth_bytes_per_s is not None,
        "max_downtime_ms": order.max_downtime_ms is not None,
    }
    for option, asked in wanted.items():
        if asked:
            yield _critical(MigrationReason.UNSUPPORTED, f"{option}: {_NO_LIMITS}", "Leave it out.", option)


def _critical(reason: str, message: str, remedy: str, subject: str = "") -> MigrationFinding:
    return MigrationFinding(FindingSeverity.CRITICAL, reason, message, remedy, subject)


POLICY: Final = MigrationPolicy(
    flags=libvirt.VIR_MIGRATE_LIVE
    | libvirt.VIR_MIGRATE_PEER2PEER
    | libvirt.VIR_MIGRATE_PERSIST_DEST
    | libvirt.VIR_MIGRATE_UNDEFINE_SOURCE,
    side=_side,
    abortable=False,
    names_jobs=False,
    measures=False,
    trusts_disks=True,
    objections=_objections,
    lacks=UNSUPPORTED,
)
