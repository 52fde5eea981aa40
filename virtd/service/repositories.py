"""The backup repositories: which there are, what is in them, and who is reading."""

from __future__ import annotations

import asyncio
import contextlib
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final, TypeVar

from virtd.errors import (
    BACKUP_IN_USE,
    BACKUP_NOT_FOUND,
    REPOSITORY_NOT_FOUND,
    FailedPreconditionError,
    NotFoundError,
    VirtdError,
)
from virtd.model.backup import Backup, Repository
from virtd.operations import Run
from virtd.store.backup_files import Meter, Stopped, storage_full
from virtd.store.repository import BackupRepository, Entry

T = TypeVar("T")

DEFAULT: Final = "default"
_POLL_S: Final = 0.2


@dataclass(frozen=True, slots=True)
class Parent:
    """What an incremental backup can be made on; without ``entry`` none can, and ``why`` says so.

    ``broken``: there was one, but it cannot be used, which the user has to know.
    """

    entry: Entry | None = None
    why: str = ""
    broken: bool = False


class Repositories:
    """All repositories by name.  Reading blocks for milliseconds: it is done on threads."""

    def __init__(self, places: Mapping[str, Path]) -> None:
        self._all = {name: BackupRepository(name, path) for name, path in sorted(places.items())}
        self._readers: Counter[str] = Counter()

    def named(self, name: str) -> BackupRepository:
        """A repository; the default one for an empty name.

        :raises NotFoundError: REPOSITORY_NOT_FOUND.
        """
        found = self._all.get(name or DEFAULT)
        if found is None:
            raise NotFoundError(
                REPOSITORY_NOT_FOUND,
                f"there is no backup repository {name}; there are: {', '.join(self._all)}",
                resource=f"repositories/{name}",
            )
        return found

    async def find(self, backup_id: str) -> tuple[BackupRepository, Entry] | None:
        """A backup, wherever it is."""

        def look() -> tuple[BackupRepository, Entry] | None:
            for repository in self._all.values():
                entry = repository.find(backup_id)
                if entry is not None:
                    return repository, entry
            return None

        return await asyncio.to_thread(look)

    async def get(self, backup_id: str) -> tuple[BackupRepository, Entry]:
        """A backup.

        :raises NotFoundError: BACKUP_NOT_FOUND.
        """
        found = await self.find(backup_id)
        if found is None:
            raise NotFoundError(
                BACKUP_NOT_FOUND, f"there is no backup {backup_id} in any repository", resource=f"backups/{backup_id}"
            )
        return found

    async def entries(self, repository: str = "") -> list[tuple[BackupRepository, Entry]]:
        """All backups of one repository, or of all."""
        places = [self.named(repository)] if repository else list(self._all.values())
        return await asyncio.to_thread(lambda: [(place, entry) for place in places for entry in place.entries()])

    async def list(self) -> list[Repository]:
        """The repositories."""

        def look() -> list[Repository]:
            found = []
            for place in self._all.values():
                records = [entry.record() for entry in place.entries()]
                stored = sum(record.stored_bytes for record in records)
                found.append(Repository(place.name, str(place.path), place.available_bytes, len(records), stored))
            return found

        return await asyncio.to_thread(look)

    def parent(self, repository: BackupRepository, guest_uid: str) -> Parent:
        """What the next backup of a guest can be based on.  Blocks."""
        entries = [entry for entry in repository.entries() if entry.manifest and entry.manifest.guest_uid == guest_uid]
        if not entries:
            return Parent(why="it is the first backup of this guest in this repository")
        marked = [entry for entry in entries if entry.sound.checkpoint]
        if not marked:
            return Parent(why="no earlier backup set a checkpoint")
        newest = marked[-1]
        chain, problems = repository.chain(newest.id)
        for entry in chain:
            wrong = [] if entry.manifest is None else repository.missing_files(entry)
            lines = wrong or repository.known_damage(entry.id)
            if lines:
                return Parent(None, f"backups/{entry.id} is damaged: {lines[0]}", broken=True)
        if problems:
            name = problems[0].backup
            return Parent(None, f"{name} {problems[0].file} {problems[0].description}".replace("  ", " "), broken=True)
        return Parent(newest)

    def needed_checkpoints(self, guest_uid: str) -> set[str]:
        """The checkpoints of a guest that a next increment may be based on: the newest of each repository.  Blocks."""
        needed = set()
        for repository in self._all.values():
            newest = ""
            for entry in repository.entries():
                if entry.manifest and entry.manifest.guest_uid == guest_uid and entry.manifest.checkpoint:
                    newest = entry.manifest.checkpoint
            needed.add(newest)
        return needed - {""}

    async def sweep(self) -> None:
        """Remove what deletions that a crash has cut off have left."""
        for repository in self._all.values():
            await asyncio.to_thread(repository.sweep)

    @contextlib.contextmanager
    def reading(self, entries: Sequence[Entry]) -> Iterator[None]:
        """Keep backups from being deleted while they are read."""
        ids = [entry.id for entry in entries]
        self._readers.update(ids)
        try:
            yield
        finally:
            self._readers.subtract(ids)

    def check_unread(self, backup_id: str) -> None:
        """Refuse while somebody reads a backup.

        :raises FailedPreconditionError: BACKUP_IN_USE.
        """
        if self._readers[backup_id] > 0:
            raise FailedPreconditionError(
                BACKUP_IN_USE,
                f"backups/{backup_id} is being restored, verified or built upon; wait for the operation's end",
                resource=f"backups/{backup_id}",
            )


def record_of(repository: BackupRepository, entry: Entry) -> Backup:
    """A backup as clients see it, with what is known to be wrong with it."""
    record = entry.record()
    damage = [f"damaged: {line}" for line in repository.known_damage(entry.id)]
    return replace(record, warnings=(*record.warnings, *damage)) if damage else record


async def in_thread(run: Run[Any], total: int, work: Callable[[Meter], T], directory: Path) -> T:
    """Work on a thread while progress is reported; a cancel stops it, and is passed on when it has stopped.

    :raises ResourceExhaustedError: STORAGE_FULL.
    """
    meter = Meter()
    task = asyncio.ensure_future(asyncio.to_thread(work, meter))
    try:
        while not task.done():
            await asyncio.wait({task}, timeout=_POLL_S)
            run.progress(bytes_done=min(meter.done, total), bytes_total=total)
            if not task.done():
                run.checkpoint()
    except (VirtdError, asyncio.CancelledError):
        meter.stopped = True
        with contextlib.suppress(Stopped, VirtdError, OSError):
            await asyncio.shield(task)
        raise
    try:
        return task.result()
    except OSError as error:
        full = storage_full(error, directory)
        if full is None:
            raise
        raise full from error
