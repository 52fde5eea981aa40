"""Use cases of backups."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Final
from uuid import UUID, uuid4

from virtd.backend import capabilities as cap
from virtd.backend.facets_backup import CHECKPOINT_PREFIX
from virtd.errors import (
    GUEST_EXISTS,
    INVALID_STATE,
    AlreadyExistsError,
    FailedPreconditionError,
    invalid_field,
    unsupported,
)
from virtd.model.backup import Backup, BackupKind, Repository
from virtd.model.guest import (
    BlankSource,
    DiskDevice,
    DiskFormat,
    DiskSpec,
    GuestSpec,
    GuestState,
)
from virtd.model.names import GuestName, check_new_id
from virtd.model.operation import Operation
from virtd.service.call import Call, Page, page_of
from virtd.service.core import Core, is_local, once, submission
from virtd.service.filters import compile_filter
from virtd.service.guests import GuestDraft, Guests
from virtd.service.repositories import DEFAULT, Repositories, record_of
from virtd.service.validate import TEXT_MAX, Violations
from virtd.service.verbs.backup import (
    BackupArguments,
    CreateBackup,
    DeleteBackup,
    StoredArguments,
    VerifyBackup,
    exists,
)
from virtd.service.verbs.restore import RestoreArguments, RestoreBackup, scratch_file
from virtd.store.repository import Manifest

FILTER_FIELDS: Final = ("name", "guest", "guest_uid", "kind", "repository", "parent", "description")


class Backups:
    """Use cases of backups."""

    def __init__(self, core: Core, guests: Guests) -> None:
        self._core = core
        self._guests = guests
        places = {DEFAULT: core.options.state_directory / "backups", **core.options.repositories}
        self._repositories = Repositories(places)
        self._create = CreateBackup(core, self._repositories)
        self._delete = DeleteBackup(core, self._repositories)
        self._verify = VerifyBackup(self._repositories)
        self._restore = RestoreBackup(core, self._repositories)
        for verb in (self._create, self._delete, self._verify, self._restore):
            core.engine.register(verb)

    # ------------------------------------------------------------------------------------ reading

    async def get(self, backup_id: str) -> Backup:
        """A backup.

        :raises NotFoundError: BACKUP_NOT_FOUND.
        """
        return record_of(*await self._repositories.get(backup_id))

    async def list(
        self, source: GuestName | str, repository: str, filter_: str, page_size: int, page_token: str
    ) -> Page[Backup]:
        """Backups, oldest first.

        :param source: a guest, a host's id, or empty for all.
        :raises NotFoundError: REPOSITORY_NOT_FOUND.
        :raises InvalidArgumentError: FILTER_INVALID, PAGE_TOKEN_INVALID or FIELD_INVALID.
        """
        predicate = compile_filter(filter_, FILTER_FIELDS)
        prefix = f"hosts/{source}/" if source and isinstance(source, str) else ""
        records = [record_of(place, entry) for place, entry in await self._repositories.entries(repository)]
        wanted = [
            record
            for record in records
            if (not isinstance(source, GuestName) or record.guest == str(source))
            and record.guest.startswith(prefix)
            and predicate(_attributes(record).get)
        ]
        wanted.sort(key=_order)
        return page_of(wanted, page_size, page_token, _order)

    async def repositories(self) -> Sequence[Repository]:
        """The repositories, by name."""
        return await self._repositories.list()

    # ----------------------------------------------------------------------------------- changing

    @once
    async def create(
        self,
        call: Call,
        name: GuestName,
        backup_id: str,
        kind: BackupKind,
        repository: str,
        *,
        quiesce: bool,
        description: str,
    ) -> Operation | None:
        """Back a guest up; see the RPC's documentation for the errors."""
        check_new_id(backup_id, "backup_id")
        wrong = Violations()
        if len(description) > TEXT_MAX or not (description.isprintable() or not description):
            wrong.add("description", f"must be at most {TEXT_MAX} printable characters")
        wrong.check()
        place = self._repositories.named(repository)
        await self._core.settled(name.host)
        busy = bool(self._core.engine.current(str(name)))
        view = self._core.check_verb(name, "backup", now=not busy)
        capabilities = self._core.link(name.host).capabilities
        if kind is BackupKind.INCREMENTAL:
            cap.require(capabilities, cap.BACKUP_INCREMENTAL, resource=str(name))
        if quiesce:
            cap.require(capabilities, cap.AGENT_FREEZE, resource=str(name))
            if not busy and view.guest.status.state is not GuestState.RUNNING:
                raise FailedPreconditionError(
                    INVALID_STATE,
                    f"{name.guest} does not run, so there are no file systems to freeze: repeat without quiesce",
                    resource=str(name),
                    allowed_actions=("backup", "start"),
                )
        if self._create.is_writing(backup_id) or await self._repositories.find(backup_id) is not None:
            raise exists(backup_id)
        if call.validate_only:
            return None
        arguments = BackupArguments(
            name.host,
            name.guest,
            view.guest.uid,
            backup=backup_id,
            repository=place.name,
            kind=kind,
            quiesce=quiesce,
            description=description,
            checkpoint=f"{CHECKPOINT_PREFIX}{uuid4().hex[:12]}",
        )
        return await self._core.engine.submit(self._create, arguments, submission(call, str(name), str(name)))

    @once
    async def verify(self, call: Call, backup_id: str) -> Operation | None:
        """Read a backup and all that it needs."""
        await self._repositories.get(backup_id)
        if call.validate_only:
            return None
        name = f"backups/{backup_id}"
        return await self._core.engine.submit(self._verify, StoredArguments(backup_id), submission(call, name, name))

    @once
    async def delete(self, call: Call, backup_id: str, *, with_increments: bool) -> Operation | None:
        """Delete a backup."""
        await self._delete.check(backup_id, with_increments=with_increments)
        if call.validate_only:
            return None
        name = f"backups/{backup_id}"
        arguments = StoredArguments(backup_id, with_increments)
        return await self._core.engine.submit(self._delete, arguments, submission(call, name, name))

    @once
    async def restore(
        self,
        call: Call,
        backup_id: str,
        host: str,
        guest_id: str,
        *,
        display_name: str,
        pool: str,
        start: bool,
        keep_identity: bool,
    ) -> Operation | None:
        """Make a new guest of a backup; see the RPC's documentation for the errors."""
        check_new_id(guest_id, "guest_id")
        repository, entry = await self._repositories.get(backup_id)
        manifest = entry.sound
        host = host or manifest.guest.split("/")[1]
        await self._core.settled(host)
        if not is_local(self._core.link(host).config):
            raise unsupported(
                cap.VOLUMES, "backups are restored on hosts of the daemon's own machine", resource=f"hosts/{host}"
            )
        uid = UUID(manifest.guest_uid) if keep_identity else uuid4()
        if keep_identity:
            self._check_identity(manifest)
        spec, warnings = restored_spec(manifest, pool, keep_identity=keep_identity)
        draft = GuestDraft(spec, display_name=display_name or manifest.display_name)
        try:
            with self._guests.claimed(host, guest_id):
                resolution, more = await self._guests.resolve_draft(host, guest_id, draft, uid, call.caller)
                self._guests.check_taken(host, guest_id)
                if call.validate_only:
                    return None
                scratch = str(repository.path / f".restore-{uuid4().hex[:12]}")
                in_backup = {disk.name for disk in manifest.disks}
                volumes = tuple(
                    replace(v, source_path=scratch_file(scratch, v.disk), source_format=DiskFormat.RAW)
                    if v.disk in in_backup
                    else v
                    for v in resolution.volumes
                )
                arguments = RestoreArguments(
                    host=host,
                    guest=guest_id,
                    uid=uid,
                    spec=resolution.spec,
                    display_name=draft.display_name,
                    volumes=volumes,
                    accelerator=resolution.accelerator,
                    accelerator_reason=resolution.accelerator_reason,
                    start=start,
                    backup=backup_id,
                    scratch=scratch,
                )
                target = str(GuestName(host, guest_id))
                all_warnings = (*manifest.warnings, *warnings, *more)
                return await self._core.engine.submit(
                    self._restore, arguments, submission(call, target, target, all_warnings)
                )
        except AlreadyExistsError as error:
            if error.reason is not GUEST_EXISTS:
                raise
            raise AlreadyExistsError(
                GUEST_EXISTS,
                f"{error.message}; a backup is never restored over a guest: choose another guest_id, "
                "or delete that guest first",
                resource=error.record.resource,
            ) from error

    def _check_identity(self, manifest: Manifest) -> None:
        """Two guests with one uid, or one address, cannot be told apart.

        :raises AlreadyExistsError: GUEST_EXISTS.
        """
        macs = {interface.mac for interface in manifest.spec.interfaces if interface.mac}
        for view in self._core.inventory.guests():
            guest = view.guest
            same = str(guest.uid) == manifest.guest_uid
            theirs = {interface.mac for interface in guest.spec.interfaces}
            shared = macs & (theirs | {interface.mac for interface in guest.status.interfaces})
            if same or shared:
                what = f"uid {manifest.guest_uid}" if same else f"address {min(shared)}"
                raise AlreadyExistsError(
                    GUEST_EXISTS,
                    f"keep_identity: {guest.name} has the {what}; restore without it, or delete that guest first",
                    resource=guest.name,
                    metadata={"field": "keep_identity"},
                )


def restored_spec(manifest: Manifest, pool: str, *, keep_identity: bool) -> tuple[GuestSpec, list[str]]:
    """The specification of the new guest, and what is not as it was."""
    warnings: list[str] = []
    kept = {disk.name: disk for disk in manifest.disks}
    disks: list[DiskSpec] = []
    for disk in manifest.spec.disks:
        stored = kept.pop(disk.name, None)
        plain = replace(disk, blank=None, image=None, volume=None, host_file=None)
        if stored is not None:
            source = BlankSource(pool=pool, capacity_bytes=stored.capacity_bytes, format=_format(stored.format))
            disks.append(replace(plain, blank=source))
        elif disk.device is DiskDevice.CDROM:
            if disk != plain:
                warnings.append(f"the CD-ROM drive {disk.name} is empty: its medium is not in the backup")
            disks.append(plain)
        else:
            warnings.append(f"disk {disk.name} is missing: it is not in the backup")
    for stored in kept.values():  # disks that the specification of that time does not know
        source = BlankSource(pool=pool, capacity_bytes=stored.capacity_bytes, format=_format(stored.format))
        disks.append(DiskSpec(stored.name, blank=source))
    if not disks:
        raise invalid_field("name", f"backups/{manifest.id} has no disk")
    interfaces = manifest.spec.interfaces
    if manifest.spec.cloud_init is not None:
        warnings.append("cloud-init does not run again: the system in the backup has been set up")
    spec = replace(manifest.spec, disks=tuple(disks), cloud_init=None)
    if not keep_identity:
        if any(interface.port_forwards for interface in interfaces):
            warnings.append("port forwards are left out: the source may have the ports")
        interfaces = tuple(replace(interface, mac="", port_forwards=()) for interface in interfaces)
        # A copy does not start by itself beside its original.
        spec = replace(spec, interfaces=interfaces, run_strategy=None, autostart=False)
    return spec, warnings


def _format(text: str) -> DiskFormat:
    return DiskFormat.RAW if text.upper() == DiskFormat.RAW.value else DiskFormat.QCOW2


def _attributes(record: Backup) -> dict[str, str]:
    return {field: str(getattr(record, field)) for field in FILTER_FIELDS}


def _order(record: Backup) -> str:
    when = record.create_time
    return f"{'' if when is None else when.isoformat(timespec='microseconds')} {record.name}"
