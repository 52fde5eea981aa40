"""Local files that are sent or received: the same for both flavours, and blocking."""

from __future__ import annotations

import errno
import hashlib
import os
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

from virtd_client.errors import LOCAL_FILE_CHANGED, FailedPrecondition

PIECE_BYTES: Final = 512 * 1024
_CHUNK: Final = 4 * 2**20
_ZEROS: Final = bytes(2**20)


def pieces(descriptor: int, offset: int, size: int) -> Iterator[bytes | int]:
    """What lies in a file from ``offset`` to ``size``: bytes, or the length of a hole.

    :raises FailedPrecondition: the file has become shorter.
    """
    while offset < size:
        data_start = _seek(descriptor, offset, os.SEEK_DATA, size)
        if data_start > offset:
            yield data_start - offset
            offset = data_start
            continue
        end = _seek(descriptor, offset, os.SEEK_HOLE, size)
        piece = os.pread(descriptor, min(PIECE_BYTES, end - offset), offset)
        if not piece:
            raise FailedPrecondition("the file became shorter while it was sent", reason=LOCAL_FILE_CHANGED)
        yield piece
        offset += len(piece)


def next_piece(source: Iterator[bytes | int]) -> bytes | int | None:
    """The next one; None: the end."""
    return next(source, None)


def digest(path: str | os.PathLike[str]) -> str:
    """``sha256:<hex>`` of a file."""
    hasher = hashlib.sha256()
    with Path(path).open("rb") as file:
        while chunk := file.read(_CHUNK):
            hasher.update(chunk)
    return f"sha256:{hasher.hexdigest()}"


class Receiver:
    """A file that is being received.  ``position`` is behind what has been written."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.position = 0
        self._hasher: Any = hashlib.sha256()
        self._descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)

    def begin(self, position: int) -> None:
        """A stream begins here: what was written behind is forgotten."""
        os.ftruncate(self._descriptor, position)
        self.position = position
        self._hasher = hashlib.sha256()

    def data(self, data: bytes) -> None:
        """The next bytes."""
        rest = memoryview(data)
        while rest:
            written = os.pwrite(self._descriptor, rest, self.position)
            self.position += written
            rest = rest[written:]
        self._hasher.update(data)

    def zeros(self, length: int) -> None:
        """The next bytes are zeros, and become a hole."""
        for start in range(0, length, len(_ZEROS)):
            self._hasher.update(_ZEROS[: length - start])
        self.position += length
        os.ftruncate(self._descriptor, self.position)

    @property
    def digest(self) -> str:
        """Of what this stream brought."""
        return f"sha256:{self._hasher.hexdigest()}"

    def finish(self, target: Path) -> None:
        """It is complete: give it its name."""
        os.fsync(self._descriptor)
        self.path.replace(target)

    def close(self) -> None:
        """Close, and remove what is not complete."""
        os.close(self._descriptor)
        with suppress(FileNotFoundError):
            self.path.unlink()


def _seek(descriptor: int, position: int, what: int, size: int) -> int:
    """Where the next data or hole begins; a file system without holes is all data."""
    try:
        return min(os.lseek(descriptor, position, what), size)
    except OSError as error:
        if error.errno == errno.ENXIO:  # nothing but a hole up to the end
            return size
        return position if what == os.SEEK_DATA else size
