"""Uploads: pieces that come, streams that are cut, and what becomes of them, on the fake hypervisor."""

from __future__ import annotations

import asyncio
import errno
import hashlib
import os
from collections.abc import AsyncIterator, Sequence
from contextlib import aclosing
from datetime import UTC, datetime, timedelta
from pathlib import Path
from uuid import uuid4

import pytest

from tests.support.daemons import HOST, MIB, Lab, call, running_lab, short_directory
from virtd.errors import (
    AbortedError,
    AlreadyExistsError,
    ConflictError,
    FailedPreconditionError,
    InvalidArgumentError,
    NotFoundError,
    OutOfRangeError,
    ResourceExhaustedError,
    VirtdError,
)
from virtd.model.guest import DiskFormat
from virtd.model.operation import OperationState
from virtd.model.upload import Upload, UploadKind
from virtd.service import spool
from virtd.service import uploads as module
from virtd.service.spool import Piece
from virtd.service.uploads import KEPT, Uploads

POOL = f"hosts/{HOST}/pools/virtd"
RAW = DiskFormat.RAW


@pytest.fixture
async def lab() -> AsyncIterator[Lab]:
    with short_directory() as place:
        async with running_lab(place) as made:
            await made.created("a")  # makes the default pool
            facet = made.link.facets.storage
            assert facet is not None
            from virtd.service.detached import DetachedContext

            await facet.ensure_default_pool(DetachedContext(5.0))
            yield made


async def stream(*pieces: Piece) -> AsyncIterator[Piece]:
    for piece in pieces:
        yield piece


async def begin(lab: Lab, size: int, volume: str = "v", **changes: object) -> Upload:
    upload = await lab.services.uploads.start(
        call(**changes),
        UploadKind.VOLUME,
        f"{POOL}/volumes/{volume}",
        size,
        RAW,  # type: ignore[arg-type]  # any
    )
    assert upload is not None
    return upload


def id_of(upload: Upload) -> str:
    return upload.name.removeprefix("uploads/")


async def drain(lab: Lab, upload: Upload, pieces: AsyncIterator[Piece], offset: int = 0) -> Sequence[Upload]:
    """What is told while these pieces are written."""
    async with aclosing(lab.services.uploads.write(id_of(upload), offset, pieces)) as told:
        return [item async for item in told]


async def write(lab: Lab, upload: Upload, offset: int, *pieces: Piece) -> Sequence[Upload]:
    return await drain(lab, upload, stream(*pieces), offset)


async def commit(lab: Lab, upload: Upload, digest: str = "") -> object:
    return await lab.services.uploads.commit(call(), id_of(upload), digest)


async def content(lab: Lab, volume: str = "v") -> bytes:
    data = b""
    async with aclosing(lab.services.downloads.download(HOST, "virtd", volume, 0, "")) as items:
        async for item in items:
            if isinstance(item, bytes):
                data += item
            elif hasattr(item, "length"):
                data += bytes(item.length)
    return data


def files(lab: Lab) -> list[str]:
    directory = lab.core.options.state_directory / "uploads"
    return sorted(path.name for path in directory.iterdir()) if directory.exists() else []


async def volumes(lab: Lab) -> list[str]:
    page = await lab.services.storage.list_volumes(HOST, "virtd", 0, "")
    return [volume.name.rpartition("/")[2] for volume in page.items]


# ------------------------------------------------------------------------------------------- the way


async def test_bytes_and_zeros_become_a_volume(lab: Lab) -> None:
    upload = await begin(lab, 4096)
    told = await write(lab, upload, 0, b"a" * 1000, 2000, b"b" * 1096)
    assert [item.received_bytes for item in told] == [0, 4096]
    whole = b"a" * 1000 + bytes(2000) + b"b" * 1096
    digest = f"sha256:{hashlib.sha256(whole).hexdigest()}"
    done = await lab.done(await commit(lab, upload, digest))  # type: ignore[arg-type]  # an operation
    assert not done.warnings
    assert await content(lab) == whole
    assert files(lab) == []
    with pytest.raises(NotFoundError) as gone:
        await lab.services.uploads.get(id_of(upload))
    assert gone.value.reason.name == "UPLOAD_NOT_FOUND"


async def test_without_a_digest_the_operation_says_so(lab: Lab) -> None:
    upload = await begin(lab, 512)
    await write(lab, upload, 0, 512)
    done = await lab.done(await commit(lab, upload))  # type: ignore[arg-type]  # an operation
    assert "content was not checked" in done.warnings[0]


async def test_a_cut_stream_leaves_what_it_brought_and_no_more(lab: Lab) -> None:
    upload = await begin(lab, 3072)

    async def cut() -> AsyncIterator[Piece]:
        yield b"x" * 1024
        raise asyncio.CancelledError  # the caller is gone

    with pytest.raises(asyncio.CancelledError):
        await drain(lab, upload, cut())
    assert (await lab.services.uploads.get(id_of(upload))).received_bytes == 1024
    assert await volumes(lab) == []
    with pytest.raises(FailedPreconditionError) as incomplete:
        await commit(lab, upload)
    assert incomplete.value.reason.name == "UPLOAD_INCOMPLETE"
    for offset in (0, 1023, 1025, 3072):
        with pytest.raises(OutOfRangeError) as wrong:
            await write(lab, upload, offset, b"y")
        assert wrong.value.record.metadata == {"received_bytes": "1024"}
    told = await write(lab, upload, 1024, b"z" * 2048)
    assert told[-1].complete


async def test_what_was_not_safe_when_the_daemon_died_is_sent_again(lab: Lab) -> None:
    upload = await begin(lab, 2048)
    await write(lab, upload, 0, b"a" * 1024)
    path = lab.services.uploads.path(id_of(upload))
    with path.open("ab") as file:
        file.write(b"rubbish")  # written, but never said to be safe
    await write(lab, upload, 1024, 1000, b"b" * 24)
    assert path.read_bytes() == b"a" * 1024 + bytes(1000) + b"b" * 24


async def test_bytes_are_made_safe_on_the_way(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "SYNC_BYTES", 1024)
    upload = await begin(lab, 4096)
    told = await write(lab, upload, 0, *[b"x" * 512] * 8)
    assert [item.received_bytes for item in told] == [0, 1024, 2048, 3072, 4096, 4096]


async def test_a_second_stream_takes_over_from_one_that_hangs(lab: Lab) -> None:
    upload = await begin(lab, 2048)
    came = asyncio.Event()

    async def hanging() -> AsyncIterator[Piece]:
        yield b"a" * 1024
        came.set()
        await asyncio.Event().wait()  # a cut that nobody has noticed

    hung = asyncio.create_task(drain(lab, upload, hanging()))
    await came.wait()
    with pytest.raises(OutOfRangeError):  # the first is ended, and what it brought counts
        await write(lab, upload, 0, b"b")
    with pytest.raises(AbortedError) as taken:
        await hung
    assert taken.value.reason.name == "UPLOAD_TAKEN_OVER"
    told = await write(lab, upload, 1024, b"b" * 1024)
    assert told[-1].complete


async def test_deleting_ends_a_stream(lab: Lab) -> None:
    upload = await begin(lab, 2048)
    came = asyncio.Event()

    async def hanging() -> AsyncIterator[Piece]:
        yield b"a" * 1024
        came.set()
        await asyncio.Event().wait()

    hung = asyncio.create_task(drain(lab, upload, hanging()))
    await came.wait()
    await lab.services.uploads.delete(call(validate_only=True), id_of(upload))
    assert not hung.done()
    await lab.services.uploads.delete(call(), id_of(upload))
    with pytest.raises(AbortedError):
        await hung
    assert files(lab) == []


async def test_the_same_request_is_the_same_upload(lab: Lab) -> None:
    request_id = str(uuid4())
    one = await begin(lab, 512, request_id=request_id)
    assert await begin(lab, 512, request_id=request_id) == one
    with pytest.raises(InvalidArgumentError) as reused:
        await begin(lab, 1024, request_id=request_id, fingerprint="another")
    assert reused.value.reason.name == "REQUEST_ID_REUSED"
    assert len((await lab.services.uploads.list(0, "")).items) == 1
    assert (
        await lab.services.uploads.start(call(validate_only=True), UploadKind.VOLUME, f"{POOL}/volumes/w", 512, RAW)
        is None
    )
    assert len(files(lab)) == 1


async def test_uploads_expire_and_strays_are_removed(lab: Lab) -> None:
    uploads = lab.services.uploads
    old, new = await begin(lab, 512, "old"), await begin(lab, 512, "new")
    (lab.core.options.state_directory / "uploads" / "stray").write_bytes(b"x")
    uploads.now = lambda: datetime.now(UTC) + KEPT - timedelta(hours=1)
    await write(lab, new, 0, b"x")
    await uploads.tidy()
    assert files(lab) == sorted([id_of(old), id_of(new)])
    uploads.now = lambda: datetime.now(UTC) + KEPT + timedelta(hours=1)
    await uploads.tidy()
    assert [item.name for item in (await uploads.list(0, "")).items] == [new.name]
    assert files(lab) == [id_of(new)]


# ---------------------------------------------------------------------------------------- refusals


async def test_sizes_that_cannot_be(lab: Lab) -> None:
    for size, says in ((0, "required"), (-1, "required"), (2**51, "at most"), (513, "multiple")):
        with pytest.raises(InvalidArgumentError) as wrong:
            await begin(lab, size)
        assert wrong.value.record.violations[0].field == "size_bytes"
        assert says in wrong.value.message
    assert files(lab) == []


async def test_what_cannot_become_anything_is_refused_before_the_first_byte(lab: Lab) -> None:
    await lab.done(await lab.services.storage.create_volume(call(), HOST, "virtd", "taken", MIB, RAW))
    start = lab.services.uploads.start
    for target, kind, error, reason in (
        (f"{POOL}/volumes/taken", UploadKind.VOLUME, AlreadyExistsError, "VOLUME_EXISTS"),
        (f"hosts/{HOST}/pools/none/volumes/v", UploadKind.VOLUME, NotFoundError, "POOL_NOT_FOUND"),
        ("hosts/none/pools/p/volumes/v", UploadKind.VOLUME, NotFoundError, "HOST_NOT_FOUND"),
    ):
        with pytest.raises(error) as refused:
            await start(call(), kind, target, 512, RAW)
        assert refused.value.reason.name == reason
    bare = Uploads(lab.core)
    with pytest.raises(InvalidArgumentError) as unknown:
        await bare.start(call(), UploadKind.IMAGE, "images/i", 512, RAW)
    assert unknown.value.record.violations[0].field == "target"
    assert files(lab) == []


async def test_a_host_without_transfers_takes_no_uploads() -> None:
    with short_directory() as place:
        async with running_lab(place, "without=host.volumes.transfer") as lab:
            with pytest.raises(VirtdError) as refused:
                await begin(lab, 512)
            assert refused.value.reason.name == "CAPABILITY_UNSUPPORTED"


async def test_more_bytes_than_announced(lab: Lab) -> None:
    upload = await begin(lab, 1024)
    for pieces in ((b"x" * 1025,), (2048,), (b"x" * 1024, b"y")):
        with pytest.raises(InvalidArgumentError) as wrong:
            await write(lab, upload, (await lab.services.uploads.get(id_of(upload))).received_bytes, *pieces)
        assert wrong.value.record.violations[0].field == "data"
    assert (await lab.services.uploads.get(id_of(upload))).received_bytes == 1024


async def test_digests_that_are_none(lab: Lab) -> None:
    upload = await begin(lab, 512)
    await write(lab, upload, 0, 512)
    for digest in ("sha256:", "md5:" + "0" * 32, "0" * 64, "sha256:" + "A" * 64):
        with pytest.raises(InvalidArgumentError) as wrong:
            await commit(lab, upload, digest)
        assert wrong.value.record.violations[0].field == "digest"


async def test_a_wrong_digest_makes_nothing_and_loses_nothing(lab: Lab) -> None:
    upload = await begin(lab, 512)
    await write(lab, upload, 0, b"x" * 512)
    operation = await commit(lab, upload, "sha256:" + "0" * 64)
    await lab.failed(operation, "DIGEST_MISMATCH")  # type: ignore[arg-type]  # an operation
    assert await volumes(lab) == []
    kept = await lab.services.uploads.get(id_of(upload))
    assert (kept.received_bytes, kept.operation) == (512, "")
    await lab.done(await commit(lab, upload, f"sha256:{hashlib.sha256(b'x' * 512).hexdigest()}"))  # type: ignore[arg-type]


async def test_a_raw_file_that_is_qcow2_is_not_believed(lab: Lab) -> None:
    upload = await begin(lab, 512)
    await write(lab, upload, 0, b"QFI\xfb" + bytes(508))
    failed = await lab.failed(await commit(lab, upload), "IMAGE_INVALID")  # type: ignore[arg-type]  # an operation
    assert failed.error is not None
    assert failed.error.violations[0].field == "format"
    assert await volumes(lab) == []


async def test_nobody_else_touches_an_upload_that_is_committed(lab: Lab) -> None:
    upload = await begin(lab, 512)
    await write(lab, upload, 0, b"x" * 512)
    hang = lab.world.faults.hang("volume_fill")
    operation = await commit(lab, upload)
    await lab.until(lambda: hang.entered > 0)
    for refused in (
        write(lab, upload, 512),
        lab.services.uploads.delete(call(), id_of(upload)),
        commit(lab, upload),
    ):
        with pytest.raises(ConflictError) as busy:
            await refused  # type: ignore[misc]  # any awaitable
        assert busy.value.reason.name == "OPERATION_IN_PROGRESS"
    # Cancelled: nothing is left, and the upload is as before.
    await lab.core.engine.cancel(operation.name)  # type: ignore[attr-defined]  # an operation
    hang.release()
    ended = await lab.end(operation)  # type: ignore[arg-type]  # an operation
    assert ended.state is OperationState.CANCELLED
    assert await volumes(lab) == []
    assert (await lab.services.uploads.get(id_of(upload))).operation == ""
    await lab.done(await commit(lab, upload))  # type: ignore[arg-type]  # an operation


async def test_a_cancel_at_the_last_moment_takes_the_volume_back(lab: Lab) -> None:
    upload = await begin(lab, 512)
    await write(lab, upload, 0, b"x" * 512)
    hang = lab.world.faults.hang("volume_commit", deaf=True)
    operation = await commit(lab, upload)
    await lab.until(lambda: hang.entered > 0)
    await lab.core.engine.cancel(operation.name)  # type: ignore[attr-defined]  # an operation
    hang.release()
    ended = await lab.end(operation)  # type: ignore[arg-type]  # an operation
    assert ended.state is OperationState.CANCELLED
    assert await volumes(lab) == []
    assert (await lab.services.uploads.get(id_of(upload))).received_bytes == 512


# ---------------------------------------------------------------------------------- no room


async def test_no_room_for_an_upload(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    import shutil

    usage = shutil.disk_usage("/")
    monkeypatch.setattr(spool.shutil, "disk_usage", lambda _: usage._replace(free=spool.RESERVE_BYTES + 3 * 4096))
    upload = await begin(lab, 2 * 4096)
    for size in (2 * 4096, 4 * 4096):  # what others were promised counts
        with pytest.raises(ResourceExhaustedError) as full:
            await begin(lab, size, "w")
        assert full.value.reason.name == "STORAGE_FULL"
    await write(lab, upload, 0, 2 * 4096)
    await begin(lab, 2 * 4096, "w")


async def test_a_disk_that_becomes_full_keeps_what_came(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    upload = await begin(lab, 2048)
    real, writes = os.pwrite, []

    def pwrite(descriptor: int, data: bytes, offset: int) -> int:
        writes.append(offset)
        if offset >= 1024:
            raise OSError(errno.ENOSPC, "No space left on device")
        return real(descriptor, data, offset)

    with monkeypatch.context() as patch:
        patch.setattr(os, "pwrite", pwrite)
        with pytest.raises(ResourceExhaustedError) as full:
            await write(lab, upload, 0, b"a" * 1024, b"b" * 1024)
    assert full.value.reason.name == "STORAGE_FULL"
    assert writes == [0, 1024]
    assert (await lab.services.uploads.get(id_of(upload))).received_bytes == 1024
    await write(lab, upload, 1024, b"b" * 1024)
    assert Path(lab.services.uploads.path(id_of(upload))).read_bytes() == b"a" * 1024 + b"b" * 1024


async def test_the_number_of_uploads_is_limited(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "UPLOADS_MAX", 1)
    await begin(lab, 512)
    with pytest.raises(ResourceExhaustedError) as full:
        await begin(lab, 512, "w")
    assert full.value.reason.name == "LIMIT_EXCEEDED"
