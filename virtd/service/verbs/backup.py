"""Make, verify and delete backups."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Final
from uuid import UUID

from virtd.backend.api import BackupFacet, BackupReader, BackupRequest, DiskIdentity
from virtd.backend.capabilities import AGENT_FREEZE, BACKUP, BACKUP_INCREMENTAL, require
from virtd.errors import (
    BACKUP_CHAIN_BROKEN,
    BACKUP_EXISTS,
    BACKUP_IN_USE,
    GUEST_NOT_FOUND,
    INVALID_STATE,
    AlreadyExistsError,
    FailedPreconditionError,
    NotFoundError,
    UnsupportedError,
    VirtdError,
    unsupported,
)
from virtd.model.backup import BackupKind, BackupVerification
from virtd.model.guest import Firmware, Guest, GuestState
from virtd.operations import Outcome, Probe, Run, Step, Verb
from virtd.service.backup_copy import Copy
from virtd.service.core import Core
from virtd.service.repositories import Parent, Repositories, in_thread, record_of
from virtd.service.verbs.base import GuestArguments, GuestVerb, patience
from virtd.store.repository import BackupRepository, Entry, Manifest, chain_bytes, verify

LONG_S: Final = 24 * 3600.0
"""Backups of large disks take long."""
END_S: Final = 120.0
"""So long the end of a backup may take: the host merges records of changes."""
FROZEN_S: Final = 60.0
"""The longest that a guest stays frozen for the moment of its backup, which takes milliseconds."""


@dataclass(frozen=True, slots=True)
class BackupArguments(GuestArguments):
    """Arguments of ``backup-create``.  ``checkpoint`` is the name of the mark that it sets."""

    backup: str = ""
    repository: str = ""
    kind: BackupKind = BackupKind.AUTO
    quiesce: bool = False
    description: str = ""
    checkpoint: str = ""


class CreateBackup(GuestVerb[BackupArguments]):
    """Copy, commit, forget the checkpoints that are no longer needed."""

    name = "backup-create"

    def __init__(self, core: Core, repositories: Repositories) -> None:
        super().__init__(core)
        self._repositories = repositories
        self._writing: set[str] = set()

    @property
    def arguments(self) -> type[BackupArguments]:
        """Journalled."""
        return BackupArguments

    def timeout_s(self, arguments: BackupArguments) -> float:
        """Long."""
        return LONG_S

    def steps(self, arguments: BackupArguments) -> Sequence[Step[BackupArguments]]:
        """A copy that was interrupted is begun anew: the moment that it was of is gone."""
        return [
            Step("check", self._check, weight=0.1),
            Step("copy", self._copy, probe=self._probe, undo=self._undo, weight=20),
            Step("prune", self._prune, cancellable=False, weight=0.2),
        ]

    def is_writing(self, backup_id: str) -> bool:
        """Whether a backup of this id is being made."""
        return backup_id in self._writing

    def facet(self, run: Run[BackupArguments]) -> BackupFacet:
        """The host's backups."""
        return backup_facet(self.core, run.arguments.host)

    async def _check(self, run: Run[BackupArguments]) -> None:
        """After this, what is there of this name is this operation's own."""
        backup = run.arguments.backup
        if backup in self._writing or await self._repositories.find(backup) is not None:
            raise exists(backup)
        self._writing.add(backup)  # given back at the end of the copy, or when it is undone

    async def _copy(self, run: Run[BackupArguments]) -> None:
        arguments = run.arguments
        self._writing.add(arguments.backup)
        await self._clean(run)
        await self.refresh(run)
        view = self.core.inventory.by_uid(arguments.uid)
        if view is None:
            raise NotFoundError(GUEST_NOT_FOUND, f"{arguments.guest} is gone", resource=str(arguments.guest_name))
        repository = self._repositories.named(arguments.repository)
        parent = await self._parent(run, repository)
        chain = await asyncio.to_thread(repository.chain, parent.entry.id) if parent.entry else ([], [])
        with self._repositories.reading(chain[0]):
            reader, parent = await self._open(run, parent)
            try:
                part = await asyncio.to_thread(repository.begin, arguments.backup)
                copy = Copy(run, self.link(run), reader, repository, part, chain[0] if parent.entry else ())
                moment = datetime.now(UTC)
                disks = await copy.all_disks()
                incremental = any(disk.kind is BackupKind.INCREMENTAL for disk in disks)
                base = parent.entry if incremental else None
                guest = view.guest
                manifest = Manifest(
                    id=arguments.backup,
                    kind=BackupKind.INCREMENTAL if incremental else BackupKind.FULL,
                    guest=str(arguments.guest_name),
                    guest_uid=str(arguments.uid),
                    create_time=moment,
                    spec=guest.spec,
                    disks=disks,
                    guest_state=guest.status.state.value,
                    display_name=guest.display_name,
                    description=arguments.description,
                    quiesced=arguments.quiesce,
                    parent=base.id if base else "",
                    parent_digest=base.digest if base else "",
                    checkpoint=reader.checkpoint,
                    warnings=_warnings(guest, reader),
                )
                await asyncio.to_thread(repository.commit, manifest)
            finally:
                await self.link(run).call(reader.close(), timeout_s=END_S)
        for warning in manifest.warnings:
            run.warn(warning)
        if reader.no_checkpoint:
            run.note(f"the next backup will be a full one: {reader.no_checkpoint}")
        self._writing.discard(arguments.backup)

    async def _parent(self, run: Run[BackupArguments], repository: BackupRepository) -> Parent:
        """What to build upon; none for a full backup.

        :raises FailedPreconditionError: BACKUP_CHAIN_BROKEN, an incremental one is wanted and not possible.
        """
        arguments = run.arguments
        if arguments.kind is BackupKind.FULL:
            return Parent()
        try:
            require(self.link(run).capabilities, BACKUP_INCREMENTAL, resource=str(arguments.guest_name))
        except UnsupportedError as error:
            if arguments.kind is BackupKind.INCREMENTAL:
                raise
            return Parent(why=error.message)
        parent = await asyncio.to_thread(self._repositories.parent, repository, str(arguments.uid))
        if parent.entry is None:
            if arguments.kind is BackupKind.INCREMENTAL:
                raise FailedPreconditionError(BACKUP_CHAIN_BROKEN, f"no incremental backup is possible: {parent.why}")
            _say_full(run, parent.why, broken=parent.broken)
        return parent

    async def _open(self, run: Run[BackupArguments], parent: Parent) -> tuple[BackupReader, Parent]:
        if parent.entry is not None:
            manifest = parent.entry.sound
            expected = tuple(
                DiskIdentity(disk.name, disk.identity, disk.capacity_bytes) for disk in manifest.disks if disk.tracked
            )
            request = BackupRequest(run.arguments.checkpoint, manifest.checkpoint, expected)
            try:
                return await self._fix(run, request), parent
            except FailedPreconditionError as error:
                if error.reason is not BACKUP_CHAIN_BROKEN or run.arguments.kind is BackupKind.INCREMENTAL:
                    raise
                _say_full(run, error.message, broken=True)
        return await self._fix(run, BackupRequest(run.arguments.checkpoint)), Parent()

    async def _fix(self, run: Run[BackupArguments], request: BackupRequest) -> BackupReader:
        """Open the backup; where asked, with the guest's file systems frozen for just that moment."""
        link, uid = self.link(run), run.arguments.uid
        facet = self.facet(run)
        if not run.arguments.quiesce:
            return await link.call(facet.open_backup(uid, request, run), timeout_s=patience(run))
        self._check_quiesce(run)
        name, caller = run.arguments.guest_name, run.operation.name
        async with self.core.freezes.held(name.host, uid, run, caller=caller, timeout_s=FROZEN_S):
            return await link.call(facet.open_backup(uid, request, run), timeout_s=patience(run))

    def _check_quiesce(self, run: Run[BackupArguments]) -> None:
        require(self.link(run).capabilities, AGENT_FREEZE, resource=str(run.arguments.guest_name))
        if self.state(run) is not GuestState.RUNNING:
            raise FailedPreconditionError(
                INVALID_STATE,
                "a guest that does not run has no file systems to freeze: repeat the request without quiesce",
                allowed_actions=("backup",),
            )

    async def _probe(self, run: Run[BackupArguments]) -> Probe:
        self._writing.add(run.arguments.backup)
        repository = self._repositories.named(run.arguments.repository)
        entry = await asyncio.to_thread(repository.find, run.arguments.backup)
        return Probe.DONE if entry is not None else Probe.TODO

    async def _clean(self, run: Run[BackupArguments]) -> None:
        """Remove what an earlier attempt of this very operation has left."""
        arguments, link = run.arguments, self.link(run)
        await link.call(self.facet(run).abort_backup(arguments.uid, run), timeout_s=END_S)
        if run.repeated:
            await link.call(self.facet(run).delete_checkpoint(arguments.uid, arguments.checkpoint, run))

    async def _undo(self, run: Run[BackupArguments]) -> None:
        arguments, link = run.arguments, self.link(run)
        repository = self._repositories.named(arguments.repository)
        await asyncio.to_thread(repository.discard, arguments.backup)
        await asyncio.to_thread(repository.delete, arguments.backup)
        self._writing.discard(arguments.backup)
        with contextlib.suppress(NotFoundError):
            await link.call(self.facet(run).abort_backup(arguments.uid, run), timeout_s=END_S)
            await link.call(
                self.facet(run).delete_checkpoint(arguments.uid, arguments.checkpoint, run), timeout_s=patience(run)
            )

    async def _prune(self, run: Run[BackupArguments]) -> None:
        self._writing.discard(run.arguments.backup)
        try:
            await self.link(run).call(self.facet(run).abort_backup(run.arguments.uid, run), timeout_s=END_S)
            await prune_checkpoints(self.core, self._repositories, run.arguments.host, run.arguments.uid, run)
        except VirtdError as error:
            run.note(f"checkpoints that are no longer needed are still there: {error.message}")

    async def finish(self, run: Run[BackupArguments]) -> Outcome:
        """The backup."""
        repository = self._repositories.named(run.arguments.repository)
        name = f"backups/{run.arguments.backup}"
        entry = await asyncio.to_thread(repository.find, run.arguments.backup)
        return Outcome(name, None if entry is None else record_of(repository, entry))


def _say_full(run: Run[BackupArguments], why: str, *, broken: bool) -> None:
    text = f"a full backup is made, not an incremental one: {why}"
    if broken:
        run.warn(text)
    else:
        run.note(text)


def _warnings(guest: Guest, reader: BackupReader) -> tuple[str, ...]:
    """What a person who restores this has to know."""
    found = list(reader.left_out)
    if guest.status.state is GuestState.SUSPENDED:
        found.append("the suspended guest's memory is not in the backup: it is restored as if the power had failed")
    if guest.spec.firmware is Firmware.UEFI:
        found.append("the UEFI firmware's variables are not in the backup")
    if guest.spec.tpm is not None:
        found.append(
            "the TPM's state is not in the backup: what is sealed with it cannot be opened in a restored guest"
        )
    return tuple(found)


def backup_facet(core: Core, host: str) -> BackupFacet:
    """The host's backups.

    :raises UnsupportedError: CAPABILITY_UNSUPPORTED.
    """
    facet = core.link(host).facets.backup
    if facet is None:
        raise unsupported(BACKUP, "the host offers no backups", resource=f"hosts/{host}")
    return facet


def exists(backup: str) -> AlreadyExistsError:
    """BACKUP_EXISTS."""
    return AlreadyExistsError(
        BACKUP_EXISTS, f"there is a backup {backup} already, or it is being made", resource=f"backups/{backup}"
    )


async def prune_checkpoints(core: Core, repositories: Repositories, host: str, uid: UUID, run: Run[object]) -> None:
    """Forget the checkpoints of a guest that no next increment can be based on."""
    link, facet = core.link(host), backup_facet(core, host)
    needed = await asyncio.to_thread(repositories.needed_checkpoints, str(uid))
    for name in await link.call(facet.list_checkpoints(uid)):
        if name not in needed:
            await link.call(facet.delete_checkpoint(uid, name, run), timeout_s=patience(run))


@dataclass(frozen=True, slots=True)
class StoredArguments:
    """Arguments of verbs about a backup that exists."""

    backup: str
    with_increments: bool = False


class DeleteBackup(Verb[StoredArguments]):
    """Delete one, or with all that depend on it, those first."""

    name = "backup-delete"

    def __init__(self, core: Core, repositories: Repositories) -> None:
        self._core = core
        self._repositories = repositories

    @property
    def arguments(self) -> type[StoredArguments]:
        """Journalled."""
        return StoredArguments

    def steps(self, arguments: StoredArguments) -> Sequence[Step[StoredArguments]]:
        """Idempotent, and each deletion whole."""
        return [Step("delete", self._do, cancellable=False)]

    async def check(self, backup: str, *, with_increments: bool) -> list[Entry]:
        """What is to be deleted, the last first.

        :raises NotFoundError: BACKUP_NOT_FOUND.
        :raises FailedPreconditionError: BACKUP_IN_USE.
        """
        repository, entry = await self._repositories.get(backup)
        children = await asyncio.to_thread(repository.children, backup)
        if children and not with_increments:
            names = ", ".join(f"backups/{child.id}" for child in children)
            raise FailedPreconditionError(
                BACKUP_IN_USE,
                f"backups/{backup} is needed by {names}; delete those first, or all with with_increments",
                resource=f"backups/{backup}",
                metadata={"used_by": names.replace(" ", "")},
            )
        doomed = [*children[::-1], entry]
        for victim in doomed:
            self._repositories.check_unread(victim.id)
        return doomed

    async def _do(self, run: Run[StoredArguments]) -> None:
        arguments = run.arguments
        await self._repositories.sweep()
        try:
            repository, _ = await self._repositories.get(arguments.backup)
            doomed = await self.check(arguments.backup, with_increments=arguments.with_increments)
        except NotFoundError:
            return
        for entry in doomed:
            await asyncio.to_thread(repository.delete, entry.id)
            run.note(f"backups/{entry.id} is deleted")
        manifest = doomed[-1].manifest
        if manifest is not None:
            await self._forget_checkpoints(run, UUID(manifest.guest_uid))

    async def _forget_checkpoints(self, run: Run[StoredArguments], uid: UUID) -> None:
        """A guest whose backups are gone need not keep a record of its changes.  Best effort."""
        view = self._core.inventory.by_uid(uid)
        if view is None:
            return
        host = view.guest.name.split("/")[1]
        try:
            async with asyncio.timeout(30):
                await prune_checkpoints(self._core, self._repositories, host, uid, run)
        except (VirtdError, TimeoutError) as error:
            run.note(f"checkpoints that are no longer needed are still there: {error}")

    async def finish(self, run: Run[StoredArguments]) -> Outcome:
        """Nothing is left to show."""
        return Outcome()


class VerifyBackup(Verb[StoredArguments]):
    """Read everything that a backup needs."""

    name = "backup-verify"

    def __init__(self, repositories: Repositories) -> None:
        self._repositories = repositories
        self._found: dict[str, BackupVerification] = {}

    @property
    def arguments(self) -> type[StoredArguments]:
        """Journalled."""
        return StoredArguments

    def timeout_s(self, arguments: StoredArguments) -> float:
        """Long."""
        return LONG_S

    def steps(self, arguments: StoredArguments) -> Sequence[Step[StoredArguments]]:
        """One step that changes nothing."""
        return [Step("read", self._do)]

    async def _do(self, run: Run[StoredArguments]) -> None:
        backup = run.arguments.backup
        repository, _ = await self._repositories.get(backup)
        chain, _ = await asyncio.to_thread(repository.chain, backup)
        total = chain_bytes(chain)
        with self._repositories.reading(chain):
            chain, problems = await in_thread(
                run, total, lambda meter: verify(repository, backup, meter), repository.path
            )
        for entry in chain:
            lines = [f"{p.file} {p.description}".strip() for p in problems if p.backup == f"backups/{entry.id}"]
            await asyncio.to_thread(repository.note_damage, entry.id, lines)
        for problem in problems:
            run.warn(f"{problem.backup} {problem.file} {problem.description}".replace("  ", " "))
        self._found[run.operation_id] = BackupVerification(
            name=f"backups/{backup}",
            valid=not problems,
            chain=tuple(f"backups/{entry.id}" for entry in chain),
            problems=tuple(problems),
            checked_bytes=total,
        )

    async def finish(self, run: Run[StoredArguments]) -> Outcome:
        """What was found."""
        return Outcome(f"backups/{run.arguments.backup}", self._found.pop(run.operation_id, None))
