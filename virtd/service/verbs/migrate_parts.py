"""The arguments of a migration, and the pure parts of its work."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from virtd.backend.api import DEFAULT_POOL
from virtd.errors import MIGRATION_BLOCKED, FailedPreconditionError
from virtd.model.guest import DiskSpec, Guest, GuestSpec
from virtd.model.migration import DiskPassage, MigrationFinding, MigrationRequest
from virtd.model.names import GuestName
from virtd.service.migration_disks import MovingDisk
from virtd.service.verbs.base import GuestArguments


@dataclass(frozen=True, slots=True)
class MigrateArguments(GuestArguments):
    """Every choice, made before the first side effect.  ``host`` is the source."""

    request: MigrationRequest = field(default_factory=lambda: MigrationRequest(""))
    live: bool = False
    disks: tuple[MovingDisk, ...] = ()

    @property
    def target_name(self) -> GuestName:
        """The guest's name when it has arrived."""
        return GuestName(self.request.target_host, self.guest)

    @property
    def copied(self) -> tuple[MovingDisk, ...]:
        """The disks that get a volume on the target."""
        return tuple(disk for disk in self.disks if disk.passage is not DiskPassage.SHARED)


def with_disks(guest: Guest, arguments: MigrateArguments) -> Guest:
    """The guest with the disks of its spec where they are now."""
    moved = {disk.disk: disk for disk in arguments.copied}
    host = arguments.request.target_host

    def one(disk: DiskSpec) -> DiskSpec:
        now = moved.get(disk.name)
        if now is None:
            return disk
        pool = "" if now.pool == DEFAULT_POOL else now.pool
        if disk.blank is not None:
            return replace(disk, blank=replace(disk.blank, pool=pool))
        if disk.image is not None:
            return replace(disk, image=replace(disk.image, pool=pool))
        volume = f"hosts/{host}/pools/{now.pool}/volumes/{now.volume}"
        return replace(disk, host_file=None, volume=volume)

    spec: GuestSpec = replace(guest.spec, disks=tuple(one(disk) for disk in guest.spec.disks))
    return replace(guest, spec=spec)


def left_behind(arguments: MigrateArguments, owned: Sequence[str]) -> list[str]:
    """The guest's volumes that nobody on the source needs when it is gone."""
    copied = {f"{disk.source_pool}/{disk.source_volume}" for disk in arguments.copied}
    if len(arguments.copied) < len(arguments.disks):
        return [volume for volume in owned if volume in copied]  # what is below a shared disk stays
    return list(owned)


def blocked(name: GuestName, findings: Sequence[MigrationFinding]) -> FailedPreconditionError:
    """MIGRATION_BLOCKED with everything that is in the way."""
    return FailedPreconditionError(
        MIGRATION_BLOCKED,
        f"{name.guest} cannot be migrated: " + "; ".join(finding.message for finding in findings),
        resource=str(name),
        metadata={"reasons": ",".join(dict.fromkeys(str(finding.reason) for finding in findings))},
    )
