"""The files of uploads: where received bytes lie until something is made of them.  Blocking, unless async."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import hashlib
import os
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

from virtd.errors import (
    IMAGE_INVALID,
    STORAGE_FULL,
    UPLOAD_INCOMPLETE,
    FailedPreconditionError,
    FieldViolation,
    InvalidArgumentError,
    ResourceExhaustedError,
    VirtdError,
)
from virtd.model.guest import DiskFormat
from virtd.model.upload import Upload
from virtd.operations import Run
from virtd.service.imagefile import inspect

RESERVE_BYTES: Final = 64 * 2**20
"""So much is left free on the disk: the journal lives there as well."""
_CHUNK: Final = 4 * 2**20
_QCOW2_MAGIC: Final = b"QFI\xfb"

Piece = bytes | int
"""Bytes, or a number of zero bytes."""


class Spool:
    """A directory with one file for each upload, named by its id."""

    def __init__(self, directory: Path) -> None:
        self.directory: Final = directory

    def path(self, upload_id: str) -> Path:
        """The file of an upload."""
        return self.directory / upload_id

    def check_room(self, needed: int) -> None:
        """Refuse what does not fit.

        :raises ResourceExhaustedError: STORAGE_FULL.
        """
        self.directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        free = shutil.disk_usage(self.directory).free - RESERVE_BYTES
        if free < needed:
            raise ResourceExhaustedError(
                STORAGE_FULL,
                f"{self.directory} has room for {max(0, free)} bytes of uploads, and {needed} are needed with those "
                "that are on their way; free space there, or delete uploads that nobody continues",
            )

    def make(self, upload_id: str) -> None:
        """An empty file.  Idempotent."""
        os.close(os.open(self.path(upload_id), os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600))

    def open(self, upload_id: str, received: int) -> int:
        """Open for writing, without what was not safe when the last stream ended."""
        self.directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        descriptor = os.open(self.path(upload_id), os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600)
        os.ftruncate(descriptor, received)
        return descriptor

    def ids(self) -> set[str]:
        """Of all files that are there."""
        with contextlib.suppress(FileNotFoundError):
            return {entry.name for entry in self.directory.iterdir()}
        return set()

    def remove(self, upload_id: str) -> None:
        """Idempotent."""
        self.path(upload_id).unlink(missing_ok=True)


@contextlib.contextmanager
def _full_disk(where: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise ResourceExhaustedError(STORAGE_FULL, f"no space left in {where}; what was received stays") from error
        raise


def write_piece(descriptor: int, position: int, piece: Piece, where: Path) -> None:
    """Put a piece where it belongs; zeros become a hole."""
    with _full_disk(where):
        if isinstance(piece, int):
            os.ftruncate(descriptor, position + piece)
            return
        rest = memoryview(piece)
        while rest:
            written = os.pwrite(descriptor, rest, position)
            position += written
            rest = rest[written:]


async def digest_of(path: Path, upload: Upload, run: Run[Any]) -> str:
    """``sha256:<hex>`` of the whole file; reports bytes.

    :raises FailedPreconditionError: UPLOAD_INCOMPLETE.
    """
    hasher = hashlib.sha256()
    done = 0
    try:
        with path.open("rb") as file:
            while chunk := await asyncio.to_thread(_hash_chunk, file, hasher):
                done += chunk
                run.progress(bytes_done=done, bytes_total=upload.size_bytes)
                run.checkpoint()
    except FileNotFoundError:
        done = 0
    if done != upload.size_bytes:
        raise FailedPreconditionError(
            UPLOAD_INCOMPLETE,
            f"the file of {upload.name} has {done} of {upload.size_bytes} bytes; delete the upload and send it again",
            resource=upload.name,
        )
    return f"sha256:{hasher.hexdigest()}"


def _hash_chunk(file: Any, hasher: Any) -> int:
    chunk = file.read(_CHUNK)
    hasher.update(chunk)
    return len(chunk)


async def refuse_lies(path: Path, upload: Upload) -> None:
    """Refuse a file that is not what it is said to be, or that depends on others."""
    with path.open("rb") as file:
        is_qcow2 = file.read(len(_QCOW2_MAGIC)) == _QCOW2_MAGIC
    if is_qcow2 and upload.format is DiskFormat.RAW:
        # A hypervisor that looks at the content would follow the backing file that its header names.
        raise InvalidArgumentError(
            IMAGE_INVALID,
            f"{upload.name} was announced as RAW but is QCOW2",
            violations=(FieldViolation("format", "the file is QCOW2", (DiskFormat.QCOW2.value,)),),
        )
    try:
        await inspect(str(path), upload.format)
    except VirtdError as error:
        error.record = replace(error.record, message=error.record.message.replace(str(path), upload.name))
        raise
