"""In what the drivers of libvirt differ when a guest moves: what they are asked for, and what they can tell."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from virtd.backend.capabilities import MIGRATE_POSTCOPY, MIGRATE_STORAGE
from virtd.backend.facets_migration import MigrationOrder, MigrationSide
from virtd.errors import unsupported
from virtd.libvirt.xml.build import Element
from virtd.model.migration import MigrationFinding

Objections = Callable[[Any, Element, MigrationOrder], Iterable[MigrationFinding]]
"""Of a domain, its live XML and what is wanted: what the driver cannot do live.  Blocking; runs on the source."""


def no_objections(_domain: Any, _xml: Element, _order: MigrationOrder) -> Iterable[MigrationFinding]:
    """A driver that takes every guest and every order that its capabilities allow."""
    return ()


@dataclass(frozen=True, slots=True)
class MigrationPolicy:
    """One driver's way.

    :param flags: of virDomainMigrateToURI3, always given.
    :param side: what a host has of a guest, by its domain.  Blocking.
    :param abortable: whether a migration that is under way can be called back.
    :param names_jobs: whether a domain's job says that it is a migration.  Where it does not, ``side`` takes every
        job of a guest that runs for one, and the other host is asked as well.
    :param measures: whether the driver keeps what a migration took.
    :param trusts_disks: whether it takes disks without seeing that both hosts share them; else it must be told.
    :param objections: what it cannot do live.
    :param lacks: capabilities of an order that it has not, and why.
    """

    flags: int
    side: Callable[[Any], MigrationSide]
    abortable: bool = True
    names_jobs: bool = True
    measures: bool = True
    trusts_disks: bool = False
    objections: Objections = no_objections
    lacks: Mapping[str, str] = field(default_factory=dict)

    def require(self, order: MigrationOrder) -> None:
        """Refuse an order that the driver could not obey.

        :raises UnsupportedError: CAPABILITY_UNSUPPORTED.
        """
        for capability, asked in ((MIGRATE_STORAGE, order.mirrors), (MIGRATE_POSTCOPY, order.post_copy)):
            if asked and capability in self.lacks:
                raise unsupported(capability, self.lacks[capability])
