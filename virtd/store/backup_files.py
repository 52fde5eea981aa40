"""The files of one disk in a backup: how they are written, checked and put together again.

Three files a disk, described in docs/howto/backup.md so that a backup can be read without virtd:

``diskN.data``
    the stored bytes, one after the other;
``diskN.map``
    one JSON array a line, ascending by offset: ``[offset, length, position]`` for bytes that stand at
    ``position`` in the data, ``[offset, length]`` for zeros.  What no line names is zero in a full copy,
    and unchanged since the parent in an incremental one;
``diskN.blocks``
    40 bytes for each block of 256 KiB that was written: its number (8 bytes, big endian) and the sha256
    of its *whole* content.  Blocks of a full copy that it does not name are zero.

The digests are of the content that the source showed, not of what was stored: they tell whether the chain
gives that content again, also where the source's record of changes was wrong.
"""

from __future__ import annotations

import errno
import hashlib
import itertools
import json
import os
import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Final

from virtd.errors import BACKUP_DAMAGED, STORAGE_FULL, FailedPreconditionError, ResourceExhaustedError

BLOCK: Final = 256 * 1024
DIGEST: Final = 32
_RECORD: Final = struct.Struct(f">Q{DIGEST}s")
_CHUNK: Final = 4 * 2**20
_ZEROS: Final = bytes(_CHUNK)
_ZERO_BLOCK: Final = hashlib.sha256(bytes(BLOCK)).digest()
_FULL: Final = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})


class Meter:
    """How far work on a thread is, and whether it shall stop.  Written on one side, read on the other."""

    def __init__(self) -> None:
        self.done = 0
        self.stopped = False

    def advance(self, count: int) -> None:
        """Count bytes.

        :raises Stopped: after ``stopped`` was set.
        """
        if self.stopped:
            raise Stopped
        self.done += count


class Stopped(Exception):  # noqa: N818 - a signal between two threads, not an error
    """The work was told to stop."""


@dataclass(frozen=True, slots=True)
class StoredFile:
    """A file of a backup: its name in the backup's directory, size and ``sha256:<hex>``."""

    name: str
    size_bytes: int
    digest: str


@dataclass(frozen=True, slots=True)
class DiskFiles:
    """The three files of a disk, and the digest of the disk's whole content."""

    data: StoredFile
    map: StoredFile
    blocks: StoredFile
    content_digest: str

    @property
    def all(self) -> tuple[StoredFile, ...]:
        """All of them."""
        return (self.data, self.map, self.blocks)


def storage_full(error: OSError, directory: Path) -> ResourceExhaustedError | None:
    """The contract error if there was no room."""
    if error.errno not in _FULL:
        return None
    return ResourceExhaustedError(STORAGE_FULL, f"no space left in {directory}; nothing was kept")


class BlockDigests:
    """The digest of every block of a disk: a bytearray, 128 MiB for a disk of 1 TiB."""

    def __init__(self, capacity_bytes: int) -> None:
        self.count = -(-capacity_bytes // BLOCK)
        self._all = bytearray(_ZERO_BLOCK * self.count)
        tail = capacity_bytes % BLOCK
        if tail:
            self[self.count - 1] = hashlib.sha256(bytes(tail)).digest()

    def __getitem__(self, block: int) -> bytes:
        return bytes(self._all[block * DIGEST : (block + 1) * DIGEST])

    def __setitem__(self, block: int, digest: bytes) -> None:
        self._all[block * DIGEST : (block + 1) * DIGEST] = digest

    def apply(self, path: Path) -> None:
        """Take over what a ``.blocks`` file says.

        :raises FailedPreconditionError: BACKUP_DAMAGED.
        """
        with path.open("rb") as file:
            while chunk := file.read(_RECORD.size * 4096):
                if len(chunk) % _RECORD.size:
                    raise damaged(path, "is cut short")
                for block, digest in _RECORD.iter_unpack(chunk):
                    if block >= self.count:
                        raise damaged(path, "names a block beyond the disk's end")
                    self[block] = digest

    def content_digest(self) -> str:
        """``sha256:<hex>`` of all digests in order."""
        return f"sha256:{hashlib.sha256(self._all).hexdigest()}"


class _Hashed:
    """A file that is written once, and hashed as it is."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file: IO[bytes] = path.open("xb")
        self._hash = hashlib.sha256()
        self.size = 0

    def write(self, data: bytes | memoryview) -> None:
        self._file.write(data)
        self._hash.update(data)
        self.size += len(data)

    def finish(self) -> StoredFile:
        self._file.flush()
        os.fsync(self._file.fileno())
        self._file.close()
        return StoredFile(self._path.name, self.size, f"sha256:{self._hash.hexdigest()}")

    def close(self) -> None:
        self._file.close()


class DiskWriter:
    """Writes one disk's files.  Blocking; regions come in ascending order, cut at blocks.

    :param base: the digests of the parent's content for an incremental copy, else None.
    """

    def __init__(self, directory: Path, stem: str, capacity_bytes: int, base: BlockDigests | None) -> None:
        self._incremental = base is not None
        self._capacity = capacity_bytes
        self._digests = base if base is not None else BlockDigests(capacity_bytes)
        self._data = _Hashed(directory / f"{stem}.data")
        self._map = _Hashed(directory / f"{stem}.map")
        self._blocks = _Hashed(directory / f"{stem}.blocks")
        self._pending: list[int] | None = None

    @property
    def stored_bytes(self) -> int:
        """How much of the disk was stored until now."""
        return self._data.size

    def put(self, offset: int, data: bytes, ranges: Sequence[tuple[int, int]]) -> None:
        """Whole blocks that begin at ``offset``, and the ranges (offset, length) in them to be stored."""
        view = memoryview(data)
        for start in range(0, len(data), BLOCK):
            block = view[start : start + BLOCK]
            self._record((offset + start) // BLOCK, hashlib.sha256(block).digest())
        for begin, length in ranges:
            for at, size in _pieces(begin, length):
                piece = view[at - offset : at - offset + size]
                if piece == memoryview(_ZEROS)[:size]:
                    if self._incremental:
                        self._add(at, size, None)
                else:
                    self._add(at, size, self._data.size)
                    self._data.write(piece)

    def put_zeros(self, offset: int, length: int) -> None:
        """Whole blocks that are known to be zero now."""
        for at, size in _pieces(offset, length):
            self._record(at // BLOCK, _zero_digest(size))
        if self._incremental:
            self._add(offset, length, None)

    def finish(self) -> DiskFiles:
        """Make everything durable."""
        self._flush()
        return DiskFiles(self._data.finish(), self._map.finish(), self._blocks.finish(), self._digests.content_digest())

    def close(self) -> None:
        """Let the files go, whatever is in them."""
        for file in (self._data, self._map, self._blocks):
            file.close()

    def _record(self, block: int, digest: bytes) -> None:
        if digest != self._digests[block]:
            self._digests[block] = digest
            self._blocks.write(_RECORD.pack(block, digest))

    def _add(self, offset: int, length: int, position: int | None) -> None:
        last = self._pending
        stored = position is not None
        if last is not None and last[0] + last[1] == offset and (len(last) == 3) == stored:  # noqa: PLR2004 - see the format
            last[1] += length
            return
        self._flush()
        self._pending = [offset, length] if position is None else [offset, length, position]

    def _flush(self) -> None:
        if self._pending is not None:
            self._map.write(json.dumps(self._pending).encode() + b"\n")
            self._pending = None


def _pieces(offset: int, length: int) -> Iterator[tuple[int, int]]:
    """Cut a range at blocks."""
    end = offset + length
    while offset < end:
        size = min(end, (offset // BLOCK + 1) * BLOCK) - offset
        yield offset, size
        offset += size


def _zero_digest(size: int) -> bytes:
    return _ZERO_BLOCK if size == BLOCK else hashlib.sha256(bytes(size)).digest()


def damaged(path: Path, what: str) -> FailedPreconditionError:
    """BACKUP_DAMAGED for a file of a backup."""
    return FailedPreconditionError(
        BACKUP_DAMAGED, f"{path.parent.name}/{path.name} {what}", metadata={"file": f"{path.parent.name}/{path.name}"}
    )


def check_file(directory: Path, file: StoredFile, meter: Meter) -> str:
    """What is wrong with a file; empty: nothing."""
    path = directory / file.name
    digest = hashlib.sha256()
    try:
        with path.open("rb") as reader:
            size = os.fstat(reader.fileno()).st_size
            if size != file.size_bytes:
                return f"has {size} bytes, not {file.size_bytes}"
            while chunk := reader.read(_CHUNK):
                digest.update(chunk)
                meter.advance(len(chunk))
    except FileNotFoundError:
        return "is missing"
    except OSError as error:
        return f"cannot be read: {error.strerror}"
    if f"sha256:{digest.hexdigest()}" != file.digest:
        return "is damaged: its sha256 is not what the manifest says"
    return ""


def read_map(path: Path, capacity_bytes: int) -> Iterator[tuple[int, int, int | None]]:
    """The lines of a map: offset, length, and position or None for zeros.

    :raises FailedPreconditionError: BACKUP_DAMAGED.
    """
    end = 0
    with path.open("rb") as file:
        for line in file:
            try:
                offset, length, *position = json.loads(line)
                inside = end <= offset and length > 0 and offset + length <= capacity_bytes
                end = offset + length
            except (ValueError, TypeError) as error:
                raise damaged(path, "is not a map") from error
            if not inside or len(position) > 1:
                raise damaged(path, f"has a line that cannot be: {line[:80]!r}")
            yield offset, length, position[0] if position else None


def write_raw(
    target: Path, capacity_bytes: int, chain: Sequence[tuple[Path, DiskFiles]], digests: BlockDigests, meter: Meter
) -> None:
    """Put a disk together from its chain, full copy first, as a raw file with holes; then check every block.

    ``meter`` counts what is read from the chain, and the blocks' content once more.

    :raises FailedPreconditionError: BACKUP_DAMAGED, naming the first block that is not what it was.
    """
    with target.open("x+b") as file:  # zeros are written only where something else is
        descriptor = file.fileno()
        os.ftruncate(descriptor, capacity_bytes)
        for directory, files in chain:
            with (directory / files.data.name).open("rb") as source:
                for offset, length, position in read_map(directory / files.map.name, capacity_bytes):
                    if position is None:
                        _write_zeros(descriptor, offset, length, meter)
                    else:
                        _copy(source, position, descriptor, offset, length, meter)
        os.fsync(descriptor)
    _check_blocks(target, capacity_bytes, digests, meter)


def _copy(source: IO[bytes], position: int, descriptor: int, offset: int, length: int, meter: Meter) -> None:
    source.seek(position)
    while length:
        chunk = source.read(min(_CHUNK, length))
        if not chunk:
            raise damaged(Path(source.name), "is cut short")
        os.pwrite(descriptor, chunk, offset)
        offset += len(chunk)
        length -= len(chunk)
        meter.advance(len(chunk))


def _write_zeros(descriptor: int, offset: int, length: int, meter: Meter) -> None:
    while length:
        size = min(_CHUNK, length)
        # Only over what is there: a hole that nothing was written to stays one.
        if os.pread(descriptor, size, offset) != _ZEROS[:size]:
            os.pwrite(descriptor, _ZEROS[:size], offset)
        offset += size
        length -= size
        meter.advance(0)


def _check_blocks(path: Path, capacity_bytes: int, digests: BlockDigests, meter: Meter) -> None:
    with path.open("rb") as file:
        descriptor = file.fileno()
        hole_end = 0
        for block in itertools.count():
            offset = block * BLOCK
            if offset >= capacity_bytes:
                return
            size = min(BLOCK, capacity_bytes - offset)
            if offset >= hole_end:
                hole_end = _next_data(descriptor, offset, capacity_bytes)
            if offset + size <= hole_end:
                found = _zero_digest(size)
                meter.advance(0)
            else:
                found = hashlib.sha256(os.pread(descriptor, size, offset)).digest()
                meter.advance(size)
            if found != digests[block]:
                raise FailedPreconditionError(
                    BACKUP_DAMAGED,
                    f"the chain does not give the content that was backed up: the {size} bytes at {offset} are others",
                    metadata={"offset": str(offset)},
                )


def _next_data(descriptor: int, offset: int, end: int) -> int:
    """Where the next data begins; a file system without holes is all data."""
    try:
        return os.lseek(descriptor, offset, os.SEEK_DATA)
    except OSError as error:
        return end if error.errno == errno.ENXIO else offset
