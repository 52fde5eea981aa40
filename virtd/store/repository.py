"""A directory of backups: each is a directory of its own, and is there wholly or not at all.

While a backup is written its directory is called ``.ID.part``; its manifest is the last file that is
written, and the directory gets its name after that.  What is deleted is renamed first.  So a crash at any
moment leaves nothing that could be taken for a backup, and what it does leave is known by its name.

The manifests are the only record: a repository can be moved, copied, and read by another virtd.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Final

from virtd.errors import (
    BACKUP_DAMAGED,
    FailedPreconditionError,
    InternalError,
)
from virtd.model.backup import Backup, BackupDisk, BackupKind, BackupProblem
from virtd.model.guest import GuestSpec
from virtd.store.backup_files import BlockDigests, DiskFiles, Meter, check_file
from virtd.store.codec import Codec

MANIFEST: Final = "manifest.json"
_DAMAGE: Final = "damage.json"
FORMAT: Final = "virtd-backup"
VERSION: Final = 1
_PART: Final = ".part"
_GONE: Final = ".gone"


@dataclass(frozen=True, slots=True)
class StoredDisk:
    """One disk of a manifest.  ``identity`` is the backend's word for it; ``tracked``: it had the checkpoint."""

    name: str
    kind: BackupKind
    format: str
    capacity_bytes: int
    identity: str
    files: DiskFiles
    tracked: bool = False
    reason: str = ""


@dataclass(frozen=True, slots=True)
class Manifest:
    """What is known of a backup.  ``parent`` is an id; ``parent_digest`` is of the parent's manifest."""

    id: str
    kind: BackupKind
    guest: str
    guest_uid: str
    create_time: datetime
    spec: GuestSpec
    disks: tuple[StoredDisk, ...]
    guest_state: str = ""
    display_name: str = ""
    description: str = ""
    quiesced: bool = False
    parent: str = ""
    parent_digest: str = ""
    checkpoint: str = ""
    warnings: tuple[str, ...] = ()

    def disk(self, name: str) -> StoredDisk | None:
        """A disk by its name."""
        return next((disk for disk in self.disks if disk.name == name), None)

    @property
    def stored_bytes(self) -> int:
        """What its files take."""
        return sum(file.size_bytes for disk in self.disks for file in disk.files.all)


_CODEC: Final = Codec(Manifest)


@dataclass(frozen=True, slots=True)
class Entry:
    """A backup in a repository.  ``manifest`` is None where it cannot be read: ``problem`` says why."""

    id: str
    repository: str
    path: Path
    digest: str = ""
    manifest: Manifest | None = None
    problem: str = ""

    def record(self) -> Backup:
        """As clients see it."""
        manifest = self.manifest
        if manifest is None:
            return Backup(name=f"backups/{self.id}", repository=self.repository, warnings=(self.problem,))
        return Backup(
            name=f"backups/{self.id}",
            repository=self.repository,
            kind=manifest.kind,
            parent=f"backups/{manifest.parent}" if manifest.parent else "",
            guest=manifest.guest,
            guest_uid=manifest.guest_uid,
            display_name=manifest.display_name,
            guest_state=manifest.guest_state,
            quiesced=manifest.quiesced,
            description=manifest.description,
            disks=tuple(
                BackupDisk(
                    name=disk.name,
                    kind=disk.kind,
                    format=disk.format,
                    capacity_bytes=disk.capacity_bytes,
                    stored_bytes=disk.files.data.size_bytes,
                    digest=disk.files.data.digest,
                    content_digest=disk.files.content_digest,
                    reason=disk.reason,
                )
                for disk in manifest.disks
            ),
            spec=manifest.spec,
            stored_bytes=manifest.stored_bytes,
            warnings=manifest.warnings,
            create_time=manifest.create_time,
        )

    @property
    def sound(self) -> Manifest:
        """The manifest.

        :raises FailedPreconditionError: BACKUP_DAMAGED.
        """
        if self.manifest is None:
            raise FailedPreconditionError(
                BACKUP_DAMAGED, f"backups/{self.id}: {self.problem}", resource=f"backups/{self.id}"
            )
        return self.manifest


class BackupRepository:
    """One directory.  All methods block; safe from any thread."""

    def __init__(self, name: str, path: Path) -> None:
        self.name = name
        self.path = path
        self._read: dict[str, tuple[tuple[int, int, int], Entry]] = {}

    # ----------------------------------------------------------------------------- reading

    def entries(self) -> list[Entry]:
        """All backups, oldest first; one that cannot be read comes first of all."""
        try:
            names = [entry.name for entry in os.scandir(self.path) if entry.is_dir() and entry.name[0] != "."]
        except FileNotFoundError:
            return []
        found = [entry for name in names if (entry := self.find(name)) is not None]
        return sorted(found, key=lambda entry: (_time(entry), entry.id))

    def find(self, backup_id: str) -> Entry | None:
        """A backup, readable or not; None: there is none of this id."""
        directory = self.path / backup_id
        path = directory / MANIFEST
        try:
            status = path.stat()
            key = (status.st_mtime_ns, status.st_size, status.st_ino)
            known = self._read.get(backup_id)
            if known is not None and known[0] == key:
                return known[1]
            text = path.read_bytes()
        except FileNotFoundError:
            if not directory.is_dir():
                return None
            return Entry(backup_id, self.name, directory, problem=f"{MANIFEST} is missing")
        except OSError as error:
            return Entry(backup_id, self.name, directory, problem=f"{MANIFEST} cannot be read: {error.strerror}")
        entry = self._parse(backup_id, directory, text)
        self._read[backup_id] = (key, entry)
        return entry

    def _parse(self, backup_id: str, directory: Path, text: bytes) -> Entry:
        def bad(why: str) -> Entry:
            return Entry(backup_id, self.name, directory, problem=f"{MANIFEST} {why}")

        try:
            document = json.loads(text)
            if not isinstance(document, dict) or document.get("format") != FORMAT:
                return bad("is not a manifest of virtd")
            if document.get("version") != VERSION:
                return bad(f"has version {document.get('version')!r}; this virtd reads {VERSION}")
            manifest = _CODEC.decode(json.dumps(document.get("backup")))
        except (ValueError, InternalError):
            return bad("is damaged")
        if manifest.id != backup_id:
            return bad(f"is of the backup {manifest.id}: the directory was renamed")
        names = [file.name for disk in manifest.disks for file in disk.files.all]
        if any("/" in name or name in (".", "..", "") for name in names):
            return bad("names files outside the backup")
        digest = f"sha256:{hashlib.sha256(text).hexdigest()}"
        return Entry(backup_id, self.name, directory, digest, manifest)

    def chain(self, backup_id: str) -> tuple[list[Entry], list[BackupProblem]]:
        """The backup and all that it needs, the full one first, and what is wrong with their manifests."""
        found: list[Entry] = []
        problems: list[BackupProblem] = []
        wanted, wanted_digest = backup_id, ""
        while wanted:
            entry = self.find(wanted)
            name = f"backups/{wanted}"
            if entry is None:
                problems.append(BackupProblem(name, "", "is missing"))
                break
            found.append(entry)
            if entry.manifest is None:
                problems.append(BackupProblem(name, MANIFEST, entry.problem.removeprefix(f"{MANIFEST} ")))
                break
            if wanted_digest and entry.digest != wanted_digest:
                problems.append(BackupProblem(name, MANIFEST, "is not the one that the increment was made on"))
                break
            wanted, wanted_digest = entry.manifest.parent, entry.manifest.parent_digest
            if any(known.id == wanted for known in found):
                problems.append(BackupProblem(name, MANIFEST, "is its own ancestor"))
                break
        return found[::-1], problems

    def children(self, backup_id: str) -> list[Entry]:
        """All that depend on a backup, at any distance, the nearest first."""
        everything = [entry for entry in self.entries() if entry.manifest is not None]
        found: list[Entry] = []
        parents = {backup_id}
        while parents:
            layer = [entry for entry in everything if entry.sound.parent in parents and entry not in found]
            found += layer
            parents = {entry.id for entry in layer}
        return found

    def known_damage(self, backup_id: str) -> list[str]:
        """What the last verification or restore found wrong with a backup's own files."""
        try:
            found = json.loads((self.path / backup_id / _DAMAGE).read_text())
            return [str(line) for line in found]
        except FileNotFoundError:
            return []
        except (OSError, ValueError, TypeError):
            return ["its record of damage cannot be read"]

    def note_damage(self, backup_id: str, lines: Sequence[str]) -> None:
        """Remember what is wrong with a backup, so that no increment is made on it; none: forget it."""
        path = self.path / backup_id / _DAMAGE
        with contextlib.suppress(OSError):  # a repository that cannot be written to can still be verified
            if lines:
                path.write_text(json.dumps(list(lines)))
            else:
                path.unlink(missing_ok=True)

    def missing_files(self, entry: Entry) -> list[str]:
        """Files of a backup that are not there, or have another size: a quick look, nothing is read."""
        wrong = []
        for disk in entry.sound.disks:
            for file in disk.files.all:
                try:
                    size = (entry.path / file.name).stat().st_size
                except OSError:
                    wrong.append(f"{file.name} is missing")
                else:
                    if size != file.size_bytes:
                        wrong.append(f"{file.name} has {size} bytes, not {file.size_bytes}")
        return wrong

    @property
    def available_bytes(self) -> int | None:
        """Free space, as far as it can be known."""
        for place in (self.path, *self.path.parents):
            with contextlib.suppress(OSError):
                return shutil.disk_usage(place).free
        return None

    # ----------------------------------------------------------------------------- writing

    def begin(self, backup_id: str) -> Path:
        """An empty directory for a new backup.  What an earlier attempt has left is removed."""
        self.path.mkdir(mode=0o700, parents=True, exist_ok=True)
        self.discard(backup_id)
        part = self._part(backup_id)
        part.mkdir(mode=0o700)
        return part

    def commit(self, manifest: Manifest) -> Entry:
        """The files are complete: write the manifest, then show the backup."""
        part = self._part(manifest.id)
        record = json.loads(_CODEC.encode(manifest))
        text = json.dumps({"format": FORMAT, "version": VERSION, "backup": record}, indent=1).encode() + b"\n"
        temporary = part / f"{MANIFEST}.new"
        with temporary.open("wb") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        temporary.rename(part / MANIFEST)
        _sync(part)
        part.rename(self.path / manifest.id)
        _sync(self.path)
        entry = self.find(manifest.id)
        assert entry is not None  # it was written a moment ago
        return entry

    def discard(self, backup_id: str) -> None:
        """Remove what is there of a backup that was not committed.  Idempotent."""
        shutil.rmtree(self._part(backup_id), ignore_errors=True)

    def delete(self, backup_id: str) -> None:
        """Delete a backup.  Idempotent; after a crash in the middle it is gone as well."""
        gone = self.path / f".{backup_id}{_GONE}"
        shutil.rmtree(gone, ignore_errors=True)
        self._read.pop(backup_id, None)
        with contextlib.suppress(FileNotFoundError):
            (self.path / backup_id).rename(gone)
            _sync(self.path)
        shutil.rmtree(gone, ignore_errors=True)

    def sweep(self) -> None:
        """Remove what deletions that a crash has cut off have left."""
        with contextlib.suppress(FileNotFoundError):
            for entry in list(os.scandir(self.path)):
                if entry.name.startswith(".") and entry.name.endswith(_GONE):
                    shutil.rmtree(entry.path, ignore_errors=True)

    def _part(self, backup_id: str) -> Path:
        return self.path / f".{backup_id}{_PART}"


def disk_chain(chain: Sequence[Entry], name: str) -> list[Entry]:
    """Those of a chain that a disk needs: from its last full copy on."""
    needed: list[Entry] = []
    for entry in chain:
        disk = entry.sound.disk(name)
        if disk is None:
            continue
        if disk.kind is BackupKind.FULL:
            needed = []
        needed.append(entry)
    return needed


def load_digests(chain: Sequence[Entry], name: str) -> BlockDigests:
    """The digests of a disk's content at the chain's end.

    :raises FailedPreconditionError: BACKUP_DAMAGED.
    """
    needed = disk_chain(chain, name)
    disk = needed[-1].sound.disk(name)
    assert disk is not None  # disk_chain has seen to it
    digests = BlockDigests(disk.capacity_bytes)
    for entry in needed:
        stored = entry.sound.disk(name)
        assert stored is not None
        digests.apply(entry.path / stored.files.blocks.name)
    return digests


def verify(repository: BackupRepository, backup_id: str, meter: Meter) -> tuple[list[Entry], list[BackupProblem]]:
    """Read a backup and all that it needs; the chain, and everything that is wrong with it."""
    chain, problems = repository.chain(backup_id)
    for entry in chain:
        problems += _wrong_files(entry, meter)
    if not problems:
        for disk in chain[-1].sound.disks:
            if load_digests(chain, disk.name).content_digest() != disk.files.content_digest:
                name = f"backups/{backup_id}"
                problems.append(BackupProblem(name, disk.files.blocks.name, "does not give the disk's content digest"))
    return chain, problems


def _wrong_files(entry: Entry, meter: Meter) -> Iterator[BackupProblem]:
    if entry.manifest is None:
        return
    for disk in entry.manifest.disks:
        for file in disk.files.all:
            why = check_file(entry.path, file, meter)
            if why:
                yield BackupProblem(f"backups/{entry.id}", file.name, why)


def chain_bytes(chain: Sequence[Entry]) -> int:
    """What is to be read to verify a chain."""
    return sum(entry.manifest.stored_bytes for entry in chain if entry.manifest is not None)


def _time(entry: Entry) -> float:
    return entry.manifest.create_time.timestamp() if entry.manifest is not None else 0.0


def _sync(directory: Path) -> None:
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
