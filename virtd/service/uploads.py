"""Uploads: files that come to the daemon in pieces, survive a cut, and only then become something.

Received bytes lie in a file of virtd's own (``STATE/uploads``), never in a pool or in the catalogue, for
three reasons: what is cut in the middle can then not be taken for a volume, by anybody; the digest, the
format and the absence of a backing file are checked *before* a host sees the first byte; and a host that
is lost meanwhile costs the client nothing.  The price is room for the file on the daemon's machine while
it is on its way.

What an upload becomes is up to a :class:`Receiver`, one for each :class:`UploadKind`.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import sqlite3
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Final, Protocol
from uuid import uuid4

import structlog

from virtd.errors import (
    DIGEST_MISMATCH,
    LIMIT_EXCEEDED,
    OPERATION_IN_PROGRESS,
    REQUEST_ID_REUSED,
    UPLOAD_INCOMPLETE,
    UPLOAD_NOT_FOUND,
    UPLOAD_OFFSET_MISMATCH,
    UPLOAD_TAKEN_OVER,
    AbortedError,
    ConflictError,
    FailedPreconditionError,
    InvalidArgumentError,
    NotFoundError,
    OutOfRangeError,
    ResourceExhaustedError,
    invalid_field,
)
from virtd.model.guest import DiskFormat
from virtd.model.operation import Operation
from virtd.model.upload import Upload, UploadKind
from virtd.operations import Run
from virtd.service.call import Call, Page, page_of
from virtd.service.core import Core, once
from virtd.service.spool import Piece, Spool, digest_of, refuse_lies, write_piece
from virtd.service.validate import SECTOR, Violations
from virtd.store import Codec

log = structlog.get_logger(__name__)

UPLOADS_MAX: Final = 256
SIZE_MAX: Final = 2**50
KEPT: Final = timedelta(days=7)
"""An upload that gets no bytes for so long is removed."""
SYNC_BYTES: Final = 32 * 2**20
"""After so many bytes they are made safe, and count as received even after a loss of power."""
_DIGEST: Final = re.compile(r"sha256:[0-9a-f]{64}")
_CODEC: Final = Codec(Upload)


class Receiver(Protocol):
    """Makes a volume, an image ... of uploads of one kind."""

    async def check(self, upload: Upload) -> None:
        """Refuse what cannot be made: before the first byte is sent, and again before it is committed.

        :raises VirtdError: the name is taken, the host cannot do it ...
        """

    async def commit(self, call: Call, upload: Upload, digest: str) -> Operation:
        """Submit the operation that makes it.

        Its steps use :meth:`Uploads.begin_commit` (do) with :meth:`Uploads.end_commit` (undo) first, then
        :meth:`Uploads.verify`, and :meth:`Uploads.remove` last.

        :param digest: ``sha256:<hex>`` as the client states it, or empty.
        """


@dataclass(slots=True, eq=False)
class _Writer:
    """A stream that writes an upload."""

    why: str = ""
    give_way: asyncio.Event = field(default_factory=asyncio.Event)
    ended: asyncio.Event = field(default_factory=asyncio.Event)
    pending: asyncio.Future[None] | None = None
    position: int = 0
    saved: int = 0


class Uploads:
    """Use cases of uploads, and what receivers need."""

    def __init__(self, core: Core) -> None:
        self._core = core
        self._spool: Final = Spool(core.options.state_directory / "uploads")
        self._receivers: dict[UploadKind, Receiver] = {}
        self._writers: dict[str, _Writer] = {}
        self._closing: set[asyncio.Task[None]] = set()
        self._starting = asyncio.Lock()
        self.now: Callable[[], datetime] = lambda: datetime.now(UTC)

    def register(self, kind: UploadKind, receiver: Receiver) -> None:
        """Say who makes what of uploads of this kind."""
        self._receivers[kind] = receiver

    # -------------------------------------------------------------------------------- use cases

    async def start(
        self, call: Call, kind: UploadKind, target: str, size_bytes: int, format_: DiskFormat
    ) -> Upload | None:
        """Begin an upload; None with ``validate_only``.

        :param target: the name of what it becomes.
        :raises InvalidArgumentError: FIELD_INVALID, REQUEST_ID_REUSED.
        :raises ResourceExhaustedError: STORAGE_FULL, LIMIT_EXCEEDED.
        :raises VirtdError: what the receiver says.
        """
        _check_size(size_bytes, format_)
        async with self._starting:  # two that are begun at once do not both count on the same room
            if call.request_id:
                known = await self._known(call)
                if known is not None:
                    return known
            now = self.now()
            upload = Upload(
                name=f"uploads/{uuid4()}",
                kind=kind,
                target=target,
                format=format_,
                size_bytes=size_bytes,
                caller=call.caller,
                create_time=now,
                update_time=now,
                expire_time=now + KEPT,
            )
            await self._receiver(kind).check(upload)
            others = await self._all()
            if len(others) >= UPLOADS_MAX:
                raise ResourceExhaustedError(
                    LIMIT_EXCEEDED, f"{len(others)} uploads are open, which is the limit; commit or delete some"
                )
            promised = sum(other.size_bytes - other.received_bytes for other in others)
            await asyncio.to_thread(self._spool.check_room, size_bytes + promised)
            if call.validate_only:
                return None

            def insert(connection: sqlite3.Connection) -> None:
                connection.execute(
                    "INSERT INTO uploads VALUES (?, ?, ?, ?, ?)",
                    (_id(upload), _CODEC.encode(upload), call.caller, call.request_id, call.fingerprint),
                )

            await self._core.database.write(insert)
        await asyncio.to_thread(self._spool.make, _id(upload))
        return upload

    async def get(self, upload_id: str) -> Upload:
        """An upload, with the bytes that are safe.

        :raises NotFoundError: UPLOAD_NOT_FOUND.
        """
        row = await self._core.database.read(
            lambda connection: connection.execute("SELECT record FROM uploads WHERE id = ?", (upload_id,)).fetchone()
        )
        if row is None:
            raise NotFoundError(
                UPLOAD_NOT_FOUND,
                f"there is no upload {upload_id}; it was committed, deleted, or has expired",
                resource=f"uploads/{upload_id}",
            )
        return _CODEC.decode(row[0])

    async def list(self, page_size: int, page_token: str) -> Page[Upload]:
        """All uploads, by name."""
        return page_of(await self._all(), page_size, page_token, lambda upload: upload.name)

    async def write(self, upload_id: str, offset: int, pieces: AsyncIterator[Piece]) -> AsyncGenerator[Upload, None]:
        """Add bytes; yields the upload at the beginning, whenever more bytes are safe, and at the end.

        However it ends, the upload afterwards has what had come by then.

        :raises NotFoundError: UPLOAD_NOT_FOUND.
        :raises OutOfRangeError: UPLOAD_OFFSET_MISMATCH.
        :raises InvalidArgumentError: FIELD_INVALID, more bytes than were announced.
        :raises AbortedError: UPLOAD_TAKEN_OVER.
        :raises ConflictError: OPERATION_IN_PROGRESS, it is being committed.
        :raises ResourceExhaustedError: STORAGE_FULL.
        """
        await self.get(upload_id)
        while (other := self._writers.get(upload_id)) is not None:
            await _displace(other, "another stream writes this upload now")
        writer = self._writers[upload_id] = _Writer()
        descriptor: int | None = None
        try:
            upload = await self.get(upload_id)
            _check_writable(upload, offset)
            writer.position = writer.saved = offset
            descriptor = await asyncio.to_thread(self._spool.open, upload_id, offset)
            yield upload
            async with aclosing(_until(pieces, writer)) as coming:
                async for piece in coming:
                    await self._receive(upload, writer, descriptor, piece)
                    if writer.position - writer.saved >= SYNC_BYTES:
                        yield await self._save(upload_id, writer, descriptor)
                        await asyncio.to_thread(self._spool.check_room, 0)
        finally:
            # Also when the caller has gone away, which cancels this very task.
            closing = asyncio.create_task(self._close(upload_id, writer, descriptor))
            self._closing.add(closing)
            closing.add_done_callback(self._closed)
            await asyncio.shield(closing)
        yield await self.get(upload_id)

    @once
    async def commit(self, call: Call, upload_id: str, digest: str) -> Operation | None:
        """Make the volume or image of it.

        :raises NotFoundError: UPLOAD_NOT_FOUND.
        :raises FailedPreconditionError: UPLOAD_INCOMPLETE.
        :raises VirtdError: what the receiver says.
        """
        if digest and not _DIGEST.fullmatch(digest):
            raise invalid_field("digest", "must be sha256: and 64 lower-case hexadecimal digits, or empty")
        upload = await self.get(upload_id)
        _check_idle(upload)
        if not upload.complete:
            raise FailedPreconditionError(
                UPLOAD_INCOMPLETE,
                f"{upload.name} has {upload.received_bytes} of {upload.size_bytes} bytes",
                resource=upload.name,
                metadata={"received_bytes": str(upload.received_bytes), "size_bytes": str(upload.size_bytes)},
            )
        receiver = self._receiver(upload.kind)
        await receiver.check(upload)
        if call.validate_only:
            return None
        return await receiver.commit(call, upload, digest)

    async def delete(self, call: Call, upload_id: str) -> None:
        """Give it up.

        :raises NotFoundError: UPLOAD_NOT_FOUND.
        :raises ConflictError: OPERATION_IN_PROGRESS, it is being committed.
        """
        _check_idle(await self.get(upload_id))
        if not call.validate_only:
            await self.remove(upload_id)

    async def tidy(self) -> None:
        """Remove what has expired, and files that no upload owns (a crash in the middle)."""
        # The files first: an upload's row is there before its file.
        files = await asyncio.to_thread(self._spool.ids)
        known = {_id(upload): upload for upload in await self._all()}
        now = self.now()
        for upload_id, upload in known.items():
            expired = upload.expire_time is not None and upload.expire_time <= now
            if expired and not upload.operation and upload_id not in self._writers:
                log.info("upload_expired", upload=upload.name, received_bytes=upload.received_bytes)
                await self.remove(upload_id)
        for upload_id in files - known.keys():
            await asyncio.to_thread(self._spool.remove, upload_id)

    async def stop(self) -> None:
        """Wait until what was received is safe.  For the daemon's end."""
        await asyncio.gather(*self._closing, return_exceptions=True)

    # ------------------------------------------------------------------------- for receivers' verbs

    def path(self, upload_id: str) -> Path:
        """The file with the bytes.  A receiver may move it away before :meth:`remove`."""
        return self._spool.path(upload_id)

    async def begin_commit(self, upload_id: str, operation: str) -> Upload:
        """From now on nobody else changes the upload.  Idempotent for one operation.

        :param operation: its name.
        :raises NotFoundError: UPLOAD_NOT_FOUND.
        :raises ConflictError: OPERATION_IN_PROGRESS, another operation commits it.
        """
        upload = await self.get(upload_id)
        if upload.operation != operation:
            _check_idle(upload)
        if (writer := self._writers.get(upload_id)) is not None:
            await _displace(writer, f"{operation} commits this upload now")
        return await self._change(upload_id, operation=operation)

    async def end_commit(self, upload_id: str, operation: str) -> None:
        """The commit has failed: the upload is as it was before.  Idempotent."""
        with contextlib.suppress(NotFoundError):
            if (await self.get(upload_id)).operation == operation:
                await self._change(upload_id, operation="", update_time=self.now(), expire_time=self.now() + KEPT)

    async def verify(self, run: Run[Any], upload_id: str, digest: str) -> str:
        """Read the whole file back from the disk, and say whether it is what was sent.

        Reports bytes; can be cancelled.

        :param digest: what the client says; empty: not checked, with a warning.
        :returns: the digest, ``sha256:<hex>``.
        :raises FailedPreconditionError: UPLOAD_INCOMPLETE.
        :raises InvalidArgumentError: DIGEST_MISMATCH; or IMAGE_INVALID, it is not of the stated format or not
            a file that stands alone.
        """
        upload = await self.get(upload_id)
        path = self.path(upload_id)
        actual = await digest_of(path, upload, run)
        if not digest:
            run.warn(f"no digest was given, so that the content was not checked; it is {actual}")
        elif actual != digest:
            raise InvalidArgumentError(
                DIGEST_MISMATCH,
                f"the bytes that were received have the digest {actual}, not {digest}",
                resource=upload.name,
                metadata={"expected": digest, "actual": actual},
            )
        await refuse_lies(path, upload)
        return actual

    async def remove(self, upload_id: str) -> None:
        """Forget it, with its bytes.  Idempotent."""
        if (writer := self._writers.get(upload_id)) is not None:
            await _displace(writer, "the upload was deleted")
        await self._core.database.write(
            lambda connection: connection.execute("DELETE FROM uploads WHERE id = ?", (upload_id,))
        )
        await asyncio.to_thread(self._spool.remove, upload_id)

    # ---------------------------------------------------------------------------------- receiving

    async def _receive(self, upload: Upload, writer: _Writer, descriptor: int, piece: Piece) -> None:
        length = piece if isinstance(piece, int) else len(piece)
        if writer.position + length > upload.size_bytes:
            raise invalid_field(
                "data", f"reaches beyond the {upload.size_bytes} bytes that were announced for {upload.name}"
            )
        writer.pending = asyncio.ensure_future(
            asyncio.to_thread(write_piece, descriptor, writer.position, piece, self._spool.directory)
        )
        await asyncio.shield(writer.pending)
        writer.position += length

    async def _save(self, upload_id: str, writer: _Writer, descriptor: int) -> Upload:
        """Make what was received safe, then say so."""
        position = writer.position
        await asyncio.to_thread(os.fdatasync, descriptor)
        now = self.now()
        upload = await self._change(upload_id, received_bytes=position, update_time=now, expire_time=now + KEPT)
        writer.saved = position
        return upload

    async def _close(self, upload_id: str, writer: _Writer, descriptor: int | None) -> None:
        try:
            if writer.pending is not None and not writer.pending.done():
                await asyncio.wait({writer.pending})  # its thread cannot be stopped; it does not count
            if descriptor is not None and writer.position != writer.saved:
                await self._save(upload_id, writer, descriptor)
        finally:
            if descriptor is not None:
                await asyncio.to_thread(os.close, descriptor)
            del self._writers[upload_id]
            writer.ended.set()

    def _closed(self, closing: asyncio.Task[None]) -> None:
        self._closing.discard(closing)
        error = None if closing.cancelled() else closing.exception()
        if error is not None:
            log.warning("upload_not_saved", error=str(error))

    # -------------------------------------------------------------------------------------- rows

    async def _all(self) -> Sequence[Upload]:
        rows = await self._core.database.read(
            lambda connection: connection.execute("SELECT record FROM uploads ORDER BY id").fetchall()
        )
        return [_CODEC.decode(record) for (record,) in rows]

    async def _known(self, call: Call) -> Upload | None:
        row = await self._core.database.read(
            lambda connection: connection.execute(
                "SELECT record, fingerprint FROM uploads WHERE caller = ? AND request_id = ?",
                (call.caller, call.request_id),
            ).fetchone()
        )
        if row is None:
            return None
        if row[1] != call.fingerprint:
            raise InvalidArgumentError(
                REQUEST_ID_REUSED,
                f"request_id {call.request_id} was used before with another request",
                metadata={"request_id": call.request_id},
            )
        return _CODEC.decode(row[0])

    async def _change(self, upload_id: str, **changes: Any) -> Upload:
        def update(connection: sqlite3.Connection) -> Upload | None:
            row = connection.execute("SELECT record FROM uploads WHERE id = ?", (upload_id,)).fetchone()
            if row is None:
                return None
            changed = replace(_CODEC.decode(row[0]), **changes)
            connection.execute("UPDATE uploads SET record = ? WHERE id = ?", (_CODEC.encode(changed), upload_id))
            return changed

        changed = await self._core.database.write(update)
        if changed is None:
            return await self.get(upload_id)  # says that it is gone
        return changed

    def _receiver(self, kind: UploadKind) -> Receiver:
        receiver = self._receivers.get(kind)
        if receiver is None:
            raise invalid_field("target", f"uploads of kind {kind.value} are not taken", *self._receivers)
        return receiver


def _id(upload: Upload) -> str:
    return upload.name.removeprefix("uploads/")


def _check_size(size_bytes: int, format_: DiskFormat) -> None:
    wrong = Violations()
    if size_bytes <= 0:
        wrong.add("size_bytes", "is required and must be greater than zero")
    elif size_bytes > SIZE_MAX:
        wrong.add("size_bytes", f"must be at most {SIZE_MAX} (1 PiB), not {size_bytes}")
    elif format_ is DiskFormat.RAW and size_bytes % SECTOR:
        wrong.add(
            "size_bytes",
            f"must be a multiple of {SECTOR} for RAW, not {size_bytes}: pad the file with zeros",
            str(-(-size_bytes // SECTOR) * SECTOR),
        )
    wrong.check()


def _check_idle(upload: Upload) -> None:
    if upload.operation:
        raise ConflictError(
            OPERATION_IN_PROGRESS,
            f"{upload.operation} commits {upload.name}",
            resource=upload.name,
            metadata={"operation": upload.operation},
            retry_after_s=1.0,
        )


def _check_writable(upload: Upload, offset: int) -> None:
    _check_idle(upload)
    if offset != upload.received_bytes:
        raise OutOfRangeError(
            UPLOAD_OFFSET_MISMATCH,
            f"{upload.name} has {upload.received_bytes} bytes: go on from there, not from {offset}",
            resource=upload.name,
            metadata={"received_bytes": str(upload.received_bytes)},
        )


async def _displace(writer: _Writer, why: str) -> None:
    """Let a stream end, and wait until what it brought is safe."""
    writer.why = writer.why or why
    writer.give_way.set()
    await writer.ended.wait()


async def _until(pieces: AsyncIterator[Piece], writer: _Writer) -> AsyncGenerator[Piece, None]:
    """The pieces, until the stream has to give way to another.

    :raises AbortedError: UPLOAD_TAKEN_OVER.
    """
    giving_way = asyncio.ensure_future(writer.give_way.wait())
    coming: asyncio.Future[Piece] | None = None
    try:
        while True:
            coming = asyncio.ensure_future(anext(pieces))
            await asyncio.wait({coming, giving_way}, return_when=asyncio.FIRST_COMPLETED)
            if giving_way.done():
                raise AbortedError(UPLOAD_TAKEN_OVER, writer.why)
            try:
                piece = coming.result()
            except StopAsyncIteration:
                return
            yield piece
    finally:
        giving_way.cancel()
        if coming is not None:
            coming.cancel()
            await asyncio.wait({coming})
            if not coming.cancelled():
                coming.exception()  # seen: the stream has ended for another reason
