"""A new guest from a backup: put the disks together, then make a guest as any other."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from virtd.errors import BACKUP_DAMAGED, FailedPreconditionError
from virtd.operations import Run, Step
from virtd.service.core import Core
from virtd.service.repositories import Repositories, in_thread
from virtd.service.verbs.backup import LONG_S
from virtd.service.verbs.create import CreateArguments, CreateGuest
from virtd.store.backup_files import Meter, write_raw
from virtd.store.repository import BackupRepository, Entry, chain_bytes, disk_chain, load_digests, verify


@dataclass(frozen=True, slots=True)
class RestoreArguments(CreateArguments):
    """As for a new guest; ``scratch`` is the directory in which the disks are put together."""

    backup: str = ""
    scratch: str = ""


def scratch_file(scratch: str, disk: str) -> str:
    """Where a disk is put together."""
    return str(Path(scratch) / f"{disk}.raw")


class RestoreBackup(CreateGuest):
    """Verify, merge, then everything that creating a guest does."""

    name = "backup-restore"

    def __init__(self, core: Core, repositories: Repositories) -> None:
        super().__init__(core)
        self._repositories = repositories

    @property
    def arguments(self) -> type[RestoreArguments]:
        """Journalled."""
        return RestoreArguments

    def timeout_s(self, arguments: CreateArguments) -> float:
        """Large disks take long."""
        return LONG_S

    def steps(self, arguments: CreateArguments) -> Sequence[Step[CreateArguments]]:
        """The merged disks are removed at the end, and wherever it ends before."""
        return [
            Step("merge", self._merge, undo=self._clean, weight=5),
            *super().steps(arguments),
            Step("clean", self._clean, cancellable=False, weight=0.1),
        ]

    async def _merge(self, run: Run[CreateArguments]) -> None:
        arguments = run.arguments
        assert isinstance(arguments, RestoreArguments)
        scratch = Path(arguments.scratch)
        await self._clean(run)
        repository, _ = await self._repositories.get(arguments.backup)
        chain, _ = await asyncio.to_thread(repository.chain, arguments.backup)
        disks = [volume.disk for volume in arguments.volumes if volume.source_path]
        # Read to be verified, read to be merged, and what was merged is read once more.
        total = 2 * chain_bytes(chain) + sum(
            disk.capacity_bytes for entry in chain[-1:] if entry.manifest for disk in entry.manifest.disks
        )
        with self._repositories.reading(chain):
            await in_thread(
                run, total, lambda meter: _merge(repository, arguments.backup, disks, scratch, meter), scratch.parent
            )

    async def _clean(self, run: Run[CreateArguments]) -> None:
        arguments = run.arguments
        assert isinstance(arguments, RestoreArguments)
        await asyncio.to_thread(shutil.rmtree, arguments.scratch, ignore_errors=True)


def _merge(repository: BackupRepository, backup: str, disks: Sequence[str], scratch: Path, meter: Meter) -> None:
    """On a thread.

    :raises FailedPreconditionError: BACKUP_DAMAGED, naming everything that is wrong; nothing was made.
    """
    chain, problems = verify(repository, backup, meter)
    for entry in chain:
        lines = [f"{p.file} {p.description}".strip() for p in problems if p.backup == f"backups/{entry.id}"]
        repository.note_damage(entry.id, lines)
    if problems:
        text = "; ".join(f"{p.backup} {p.file} {p.description}".replace("  ", " ") for p in problems[:5])
        raise FailedPreconditionError(
            BACKUP_DAMAGED, f"backups/{backup} cannot be restored: {text}", resource=f"backups/{backup}"
        )
    scratch.mkdir(mode=0o711, parents=True)
    for name in disks:
        _merge_disk(chain, name, Path(scratch_file(str(scratch), name)), meter)


def _merge_disk(chain: Sequence[Entry], name: str, target: Path, meter: Meter) -> None:
    needed = disk_chain(chain, name)
    last = needed[-1].sound.disk(name)
    assert last is not None  # disk_chain has seen to it
    parts = [(entry.path, disk.files) for entry in needed if (disk := entry.sound.disk(name)) is not None]
    write_raw(target, last.capacity_bytes, parts, load_digests(chain, name), meter)
