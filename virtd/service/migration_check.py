"""What is in the way of a migration, and how each disk would get to the target.  Reads only."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Final

from virtd.backend import capabilities as cap
from virtd.backend.api import DEFAULT_POOL
from virtd.backend.facets_backup import CHECKPOINT_PREFIX
from virtd.backend.facets_migration import MigrationOrder, MovedDisk
from virtd.errors import UnsupportedError
from virtd.inventory import GuestView, HostLink
from virtd.model.guest import DiskFormat, DiskStatus, GuestState, InterfaceKind, Origin, Presence
from virtd.model.host import HostState
from virtd.model.migration import (
    DiskPassage,
    FindingSeverity,
    MigrationCheck,
    MigrationFinding,
    MigrationMode,
    MigrationReason,
    MigrationRequest,
)
from virtd.model.names import GuestName
from virtd.model.storage import Pool, PoolState
from virtd.service.core import Core
from virtd.service.migration_disks import MovingDisk, Place, places_of

ACTIVE: Final = frozenset({GuestState.RUNNING, GuestState.PAUSED})
DOWN: Final = frozenset({GuestState.STOPPED, GuestState.CRASHED})
_ORDER: Final = tuple(FindingSeverity)
R = MigrationReason


class Preflight:
    """One check of one guest."""

    def __init__(self, core: Core, name: GuestName, request: MigrationRequest) -> None:
        self._core = core
        self._name = name
        self._request = request
        self._findings: list[MigrationFinding] = []
        self.disks: tuple[MovingDisk, ...] = ()
        self.live = False

    async def run(self) -> MigrationCheck:
        """Everything that can be found out now.  What makes the rest senseless ends it early.

        :raises NotFoundError: HOST_NOT_FOUND or GUEST_NOT_FOUND.
        """
        core, request = self._core, self._request
        await core.settled(self._name.host)
        view, target = core.view(self._name), core.link(request.target_host)
        await core.settled(request.target_host)
        state = view.guest.status.state
        self.live = request.mode is MigrationMode.LIVE or (request.mode is MigrationMode.AUTO and state in ACTIVE)
        if self._fits(view, target):
            self._state(view)
            self._abilities(view, target)
            if not self._blocked:
                await self._look(view, target)
        found = sorted(self._findings, key=lambda finding: _ORDER.index(finding.severity))
        return MigrationCheck(
            possible=not self._blocked,
            mode=MigrationMode.LIVE if self.live else MigrationMode.OFFLINE,
            target=str(GuestName(request.target_host, self._name.guest)),
            findings=tuple(found),
            disks=tuple(disk.record for disk in self.disks),
        )

    def order(self, files: Mapping[str, str]) -> MigrationOrder:
        """What the hypervisor is to do.

        :param files: the disks' files on the target by those on the source, as far as they are known.
        """
        request = self._request
        moved = tuple(
            MovedDisk(disk.path, files.get(disk.path, ""), disk.format, mirrored=disk.passage is DiskPassage.MIRRORED)
            for disk in self.disks
            if disk.passage is not DiskPassage.SHARED
        )
        return MigrationOrder(
            moved,
            mirrors=any(disk.mirrored for disk in moved),
            post_copy=request.post_copy,
            auto_converge=request.auto_converge,
            bandwidth_bytes_per_s=request.bandwidth_bytes_per_s,
            max_downtime_ms=request.max_downtime_ms,
        )

    # -------------------------------------------------------------------------------- the findings

    @property
    def _blocked(self) -> bool:
        return any(finding.severity is FindingSeverity.CRITICAL for finding in self._findings)

    def _critical(self, reason: str, message: str, remedy: str, subject: str = "") -> None:
        self._findings.append(MigrationFinding(FindingSeverity.CRITICAL, reason, message, remedy, subject))

    def _warning(self, reason: str, message: str, remedy: str = "", subject: str = "") -> None:
        self._findings.append(MigrationFinding(FindingSeverity.WARNING, reason, message, remedy, subject))

    def _information(self, reason: str, message: str, subject: str = "") -> None:
        self._findings.append(MigrationFinding(FindingSeverity.INFORMATION, reason, message, "", subject))

    # ------------------------------------------------------------------------ may it be at all?

    def _fits(self, view: GuestView, target: HostLink) -> bool:
        """Whether it makes sense to look any further."""
        source = self._core.link(self._name.host)
        if source.id == target.id:
            self._critical(R.SAME_HOST, f"{self._name.guest} is on {target.id} already", "Name another host.", "target")
        elif source.backend.descriptor.id != target.backend.descriptor.id:
            self._critical(
                R.OTHER_HYPERVISOR,
                f"{source.id} is a host of {source.backend.descriptor.title}, {target.id} one of "
                f"{target.backend.descriptor.title}: a guest migrates between hosts of the same hypervisor only",
                "A move to another hypervisor converts the guest and is another verb: back the guest up and restore it "
                "there, or copy its volumes.",
                "target",
            )
        if view.guest.status.origin is Origin.FOREIGN:
            self._critical(
                R.GUEST_NOT_ADOPTED,
                f"{self._name.guest} was defined outside virtd",
                f"Adopt it first: guestctl adopt {self._name.guest}.",
            )
        for link in (source, target):
            if link.host.state is not HostState.CONNECTED:
                self._critical(
                    R.TARGET_UNREACHABLE,
                    f"host {link.id} does not answer",
                    "Wait until it answers, or look why not: guestctl doctor.",
                    "target" if link is target else "source",
                )
        return not self._blocked

    def _state(self, view: GuestView) -> None:
        state, guest = view.guest.status.state, self._name.guest
        if view.guest.status.presence is Presence.ABSENT:
            self._critical(R.WRONG_STATE, f"{guest} is not on its host any more", "Recover or delete it.")
        elif state is GuestState.SUSPENDED:
            if not self._request.discard_saved_state:
                self._critical(
                    R.SAVED_STATE,
                    f"{guest} is suspended, and its saved memory fits the host that it was saved on only",
                    "Start it and migrate it live, or ask for the saved memory to be thrown away "
                    "(discard_saved_state).",
                )
            else:
                self._warning(R.SAVED_STATE, f"the saved memory of {guest} is thrown away, as asked for")
                self.live = False
        elif self.live and state not in ACTIVE:
            self._critical(
                R.WRONG_STATE,
                f"{guest} is {state.value}: only a guest that runs migrates live",
                "Start it first, or migrate it offline.",
                "mode",
            )
        elif not self.live and state not in DOWN:
            self._critical(
                R.WRONG_STATE,
                f"{guest} is {state.value}: its disks can be moved offline only while it is stopped",
                "Shut it down first, or migrate it live.",
                "mode",
            )
        if self._core.freezes.is_frozen(view.guest.uid):
            self._critical(
                R.FROZEN,
                f"the file systems of {guest} are frozen: who thaws them would look for it on the source",
                f"Thaw them first: guestctl agent thaw {guest}.",
            )
        if view.guest.status.pending_restart_fields:
            fields = ", ".join(view.guest.status.pending_restart_fields)
            self._information(R.CHANGES_PENDING, f"{fields} still take effect at the next start, on the target")

    def _abilities(self, view: GuestView, target: HostLink) -> None:
        source, request = self._core.link(self._name.host), self._request
        wanted = [cap.MIGRATE]
        if self.live:
            wanted = [cap.MIGRATE_LIVE]
            wanted += [cap.MIGRATE_STORAGE] if request.copy_storage else []
            wanted += [cap.MIGRATE_POSTCOPY] if request.post_copy else []
        for link in (source, target):
            for capability in wanted:
                try:
                    cap.require(link.capabilities_of(view.guest.spec.machine), capability)
                except UnsupportedError as error:
                    why = error.record.metadata.get("why", error.message)
                    self._critical(
                        R.UNSUPPORTED,
                        f"host {link.id} cannot {cap.SUMMARIES[capability]}: {why}",
                        "guestctl capabilities HOST says what it can do instead.",
                        capability,
                    )
        ids = {entry.accelerator: entry for entry in target.host.facts.accelerators}
        needed = view.guest.status.accelerator
        found = ids.get(needed.value) if needed is not None else None
        if needed is not None and ids and (found is None or not found.usable):
            why = found.reason if found is not None else "it does not offer it"
            self._critical(
                R.ACCELERATOR_MISSING,
                f"the guest runs by {needed.value}, which host {target.id} cannot: {why}",
                "Mend acceleration on the target (guestctl doctor), or stop the guest and change spec.accelerator.",
                "accelerator",
            )
        here, there = source.host.facts, target.host.facts
        if here.architecture and there.architecture and here.architecture != there.architecture:
            self._critical(
                R.ARCHITECTURE_DIFFERS,
                f"host {source.id} is {here.architecture}, host {target.id} is {there.architecture}",
                "Choose a host of the same architecture.",
            )
        if not self.live and (request.post_copy or request.auto_converge):
            self._information(
                R.POST_COPY_RISK, "a stopped guest has no memory to send: the options for that do nothing"
            )
        if request.post_copy and self.live:
            self._warning(
                R.POST_COPY_RISK,
                "once it has switched to post-copy it cannot be cancelled, and a connection that breaks then stops the "
                "guest",
            )

    # ------------------------------------------------------------------------------ the two hosts

    async def _look(self, view: GuestView, target: HostLink) -> None:
        source = self._core.link(self._name.host)
        self._names(view, target)
        await self._uuid(view, target)
        await self._disks(view, source, target)
        await self._networks(view, target)
        await self._history(view, source)
        facet, other = source.facets.migration, target.facets.migration
        if facet is not None and other is not None:
            found = await source.call(facet.check_migration(view.guest.uid, self.order({}), other, live=self.live))
            self._findings += found

    def _names(self, view: GuestView, target: HostLink) -> None:
        other = self._core.inventory.find(GuestName(target.id, self._name.guest))
        if other is not None and other.guest.uid != view.guest.uid:
            self._critical(
                R.NAME_TAKEN,
                f"host {target.id} has another guest named {self._name.guest}",
                "Rename, move or delete that one.",
                "target",
            )

    async def _uuid(self, view: GuestView, target: HostLink) -> None:
        for summary in await target.call(target.session.list_guests()):
            if summary.uuid == view.guest.uid:
                self._critical(
                    R.UUID_TAKEN,
                    f"host {target.id} has a guest with the UUID {summary.uuid} already ({summary.name}): the same "
                    "guest must not be there twice",
                    "Find out which of the two is the true one and undefine the other on its host.",
                    "target",
                )

    async def _networks(self, view: GuestView, target: HostLink) -> None:
        wanted = {item.network for item in view.guest.spec.interfaces if item.kind is InterfaceKind.NETWORK}
        facet = target.facets.networks
        if not wanted or facet is None:
            return
        active = {network.name for network in await target.call(facet.list_networks()) if network.active}
        for network in sorted(wanted - active):
            self._critical(
                R.NETWORK_MISSING,
                f"host {target.id} has no active network {network or 'default'}",
                f"Create or start it there: guestctl network start {target.id}/{network or 'default'}.",
                "interfaces",
            )
        if self.live and wanted & active:
            self._information(
                R.ADDRESSES_CHANGE,
                "the guest keeps its addresses: on the target's networks they are reachable only where these are the "
                "same network as the source's",
                "interfaces",
            )
        if self.live and any(item.kind is InterfaceKind.USER for item in view.guest.spec.interfaces):
            self._warning(R.ADDRESSES_CHANGE, "connections through a user-mode network break", "", "interfaces")

    async def _history(self, view: GuestView, source: HostLink) -> None:
        uid = view.guest.uid
        snapshots, backup = source.facets.snapshots, source.facets.backup
        if snapshots is not None:
            taken = await source.call(snapshots.list_snapshots(uid))
            if taken:
                self._critical(
                    R.SNAPSHOTS_PRESENT,
                    f"{self._name.guest} has {len(taken)} snapshots, which do not go along",
                    "Delete them; where they matter, back the guest up first.",
                    "snapshots",
                )
        if backup is not None:
            marks = await source.call(backup.list_checkpoints(uid))
            if any(mark.startswith(CHECKPOINT_PREFIX) for mark in marks):
                self._warning(
                    R.BACKUP_CHAIN_ENDS,
                    "the next backup is a full one: what has changed since the last is known on the source only",
                )
        for schedule in await self._schedules():
            self._warning(
                R.SCHEDULE_LOSES_GUEST,
                f"schedules/{schedule} names the guest, which has another name then",
                "Change the schedule afterwards, or let it find its guests by a filter.",
            )
        if view.guest.spec.autostart and source.facets.autostart is None:
            self._warning(R.UNSUPPORTED, "whether the guest starts with its host does not go along", "", "autostart")

    async def _schedules(self) -> list[str]:
        """Ids of the schedules that name the guest."""
        rows = await self._core.database.read(
            lambda connection: connection.execute("SELECT id, record FROM schedules ORDER BY id").fetchall()
        )
        return [id_ for id_, record in rows if json.loads(record)["schedule"].get("guest") == str(self._name)]

    # -------------------------------------------------------------------------------------- disks

    async def _disks(self, view: GuestView, source: HostLink, target: HostLink) -> None:
        files = [disk for disk in view.guest.status.disks if disk.path]
        names = {disk.name for disk in files}
        for unknown in sorted(set(self._request.copy_disks) - names):
            self._critical(
                R.STORAGE_NOT_COPYABLE, f"the guest has no disk {unknown} with a file", f"Its disks: {sorted(names)}.",
                f"copy_disks[{unknown}]",
            )  # fmt: skip
        if not files:
            return
        places = await places_of(source)
        facet, other = source.facets.migration, target.facets.migration
        shared: Mapping[str, str] = {}
        if facet is not None and other is not None:
            shared = await source.call(facet.shared_paths([disk.path for disk in files], other))
        found = [self._one(view, disk, places.get(disk.path), shared.get(disk.path)) for disk in files]
        self.disks = tuple(disk for disk in found if disk is not None)
        await self._room(target)
        if any(disk.passage is DiskPassage.SHARED and disk.owned for disk in self.disks):
            there = await places_of(target)
            for disk in self.disks:
                if disk.passage is DiskPassage.SHARED and disk.owned and disk.path not in there:
                    self._warning(
                        R.DISK_WITHOUT_POOL,
                        f"no pool of host {target.id} has {disk.path}: deleting the guest there will leave the file",
                        "Define a pool of that directory on the target.",
                        f"disks[{disk.disk}]",
                    )

    def _one(self, view: GuestView, disk: DiskStatus, place: Place | None, shared: str | None) -> MovingDisk | None:
        request, subject = self._request, f"disks[{disk.name}]"
        owned = place is not None and f"{place.pool}/{place.volume.name}" in view.owned_volumes
        copied = request.copy_storage and (not request.copy_disks or disk.name in request.copy_disks)
        known = tuple(DiskFormat)
        format_ = DiskFormat(disk.format.upper()) if disk.format.upper() in known else None
        way = MovingDisk(
            disk.name,
            DiskPassage.SHARED,
            disk.path,
            format_ or DiskFormat.RAW,
            place.volume.capacity_bytes if place is not None else disk.capacity_bytes,
            source_pool=place.pool if place is not None else "",
            source_volume=place.volume.name if place is not None else "",
            flatten=bool(place is not None and place.volume.backing_path),
            owned=owned,
        )
        # A medium that everybody has is not copied; one that virtd made for this guest is.
        if not copied or (disk.read_only and not owned and shared):
            if shared:
                self._information(R.STORAGE_SHARED, f"{disk.path} stays where it is: {shared}", subject)
                return way
            if disk.read_only:
                self._critical(
                    R.MEDIUM_NOT_SHARED,
                    f"{disk.path} is not known to be the same file on both hosts",
                    "Eject the medium, or copy the disks (copy_storage), or name the directory in the option "
                    "shared_directories of both hosts.",
                    subject,
                )
            else:
                self._critical(
                    R.STORAGE_NOT_SHARED,
                    f"{disk.path} is not known to be the same file on both hosts",
                    "Copy the disks (copy_storage), or name the directory in the option shared_directories of both "
                    "hosts if it really is shared.",
                    subject,
                )
            return None
        if format_ is None:
            self._critical(
                R.STORAGE_NOT_COPYABLE, f"virtd cannot copy a disk of format {disk.format or 'unknown'}",
                "Convert it to qcow2 or raw.", subject,
            )  # fmt: skip
            return None
        mirrored = self.live and not disk.read_only
        if way.capacity_bytes is None or (not mirrored and place is None):
            self._critical(
                R.STORAGE_NOT_COPYABLE, f"{disk.path} is no volume of a pool, and virtd copies volumes",
                "Make a pool of its directory on the source.", subject,
            )  # fmt: skip
            return None
        volume = place.volume.name if place is not None else ""
        suffix = way.format.value.lower()
        way = replace(
            way,
            passage=DiskPassage.MIRRORED if mirrored else DiskPassage.COPIED,
            pool=request.pool or DEFAULT_POOL,
            volume=volume or f"{self._name.guest}-{disk.name}-{view.guest.uid.hex[:8]}.{suffix}",
        )
        self._information(R.STORAGE_COPIED, f"{disk.path} is copied to {way.pool}/{way.volume}", subject)
        return way

    async def _room(self, target: HostLink) -> None:
        """Whether the copies have a place."""
        copied = [disk for disk in self.disks if disk.passage is not DiskPassage.SHARED]
        storage = target.facets.storage
        if not copied:
            return
        name = copied[0].pool
        if storage is None:
            self._critical(R.POOL_MISSING, f"host {target.id} has no pools", "Copy to another host.", "pool")
            return
        pools = {pool.name: pool for pool in await target.call(storage.list_pools())}
        pool: Pool | None = pools.get(name)
        if pool is None:
            if name != DEFAULT_POOL:
                self._critical(
                    R.POOL_MISSING, f"host {target.id} has no pool {name}",
                    f"Its pools: {', '.join(sorted(pools)) or 'none'}.", "pool",
                )  # fmt: skip
            return
        if pool.state is not PoolState.ACTIVE:
            if name != DEFAULT_POOL:
                self._critical(
                    R.POOL_MISSING, f"the pool {name} of host {target.id} is not started",
                    f"Start it: guestctl pool start {target.id}/{name}.", "pool",
                )  # fmt: skip
            return
        taken = {volume.name for volume in await target.call(storage.list_volumes(name))}
        for disk in copied:
            if disk.volume in taken:
                self._critical(
                    R.VOLUME_TAKEN, f"the pool {name} of host {target.id} has a volume {disk.volume} already",
                    "Delete that volume, or copy to another pool.", f"disks[{disk.disk}]",
                )  # fmt: skip
        needed = sum(disk.capacity_bytes or 0 for disk in copied)
        if pool.available_bytes is not None and needed > pool.available_bytes:
            self._warning(
                R.STORAGE_FULL,
                f"the disks may grow to {needed} bytes, and the pool {name} of host {target.id} has "
                f"{pool.available_bytes} left",
                "Make room, or copy to another pool: a copy that finds no room fails, and the guest stays.",
                "pool",
            )


async def preflight(
    core: Core, name: GuestName, request: MigrationRequest
) -> tuple[MigrationCheck, Sequence[MovingDisk], MigrationOrder]:
    """Check a migration.

    :raises NotFoundError: HOST_NOT_FOUND or GUEST_NOT_FOUND.
    :raises VirtdError: one of the hosts cannot be asked.
    """
    check = Preflight(core, name, request)
    found = await check.run()
    return found, check.disks, check.order({})


__all__ = ["MovingDisk", "Place", "places_of", "preflight"]
