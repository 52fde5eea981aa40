"""Bring an image into the catalogue, and delete one."""

from __future__ import annotations

import asyncio
import errno
import hashlib
import os
import shutil
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from virtd.errors import (
    DIGEST_MISMATCH,
    FETCH_FAILED,
    IMAGE_EXISTS,
    IMAGE_IN_USE,
    LIMIT_EXCEEDED,
    STORAGE_FULL,
    AlreadyExistsError,
    FailedPreconditionError,
    InvalidArgumentError,
    NotFoundError,
    ResourceExhaustedError,
    UnavailableError,
)
from virtd.inventory import HostLink
from virtd.model.guest import DiskFormat
from virtd.model.storage import Image, PoolState
from virtd.operations import Outcome, Run, Step, Verb
from virtd.service.core import Core, is_local
from virtd.service.fetching import ATTEMPTS, Download, RetryableError, source_of
from virtd.service.imagefile import inspect

if TYPE_CHECKING:
    from virtd.service.catalogue import ImageCatalogue
    from virtd.service.uploads import Uploads

_CHUNK: Final = 4 * 2**20
_HOURS: Final = 3600.0
_RESERVE_BYTES: Final = 64 * 2**20
"""So much is left free on the disk: the journal lives there as well."""
_UPLOAD: Final = "upload"


@dataclass(frozen=True, slots=True)
class ImageArguments:
    """Arguments of ``image-delete``."""

    image_id: str


@dataclass(frozen=True, slots=True)
class ImportArguments:
    """Arguments of ``image-import``: a ``path`` or a ``url``, and the digest that is expected."""

    image_id: str
    path: str
    format: DiskFormat
    url: str = ""
    digest: str = ""


@dataclass(frozen=True, slots=True)
class CommitArguments:
    """Arguments of ``image-upload``."""

    image_id: str
    upload_id: str
    format: DiskFormat
    digest: str = ""


class ImportImage(Verb[ImportArguments]):
    """Copy or fetch, hash, check, and only then show."""

    name = "image-import"

    def __init__(self, core: Core, catalogue: ImageCatalogue) -> None:
        self._core = core
        self._catalogue = catalogue

    @property
    def arguments(self) -> type[ImportArguments]:
        """Journalled."""
        return ImportArguments

    def steps(self, arguments: ImportArguments) -> list[Step[ImportArguments]]:
        """The file on its way has the operation's name: nobody else works on it."""
        bring = (
            Step("fetch", self._fetch, undo=self._remove, weight=20)
            if arguments.url
            else Step("copy", self._copy, undo=self._remove, weight=20)
        )
        return [
            Step("check", self._check, weight=0.1),
            bring,
            Step("register", self._register, undo=self._unregister, cancellable=False),
            Step("clean", self._remove, cancellable=False, weight=0.1),
        ]

    def timeout_s(self, arguments: ImportArguments) -> float:
        """Big files take long, slow servers longer."""
        return (24 if arguments.url else 4) * _HOURS

    async def finish(self, run: Run[ImportArguments]) -> Outcome:
        """The image."""
        image = await self._catalogue.get(run.arguments.image_id)
        return Outcome(image.name, image)

    async def _check(self, run: Run[ImportArguments]) -> None:
        await check_absent(self._catalogue, run.arguments.image_id)

    async def _copy(self, run: Run[ImportArguments]) -> None:
        arguments, part = run.arguments, self._part(run)
        source = Path(arguments.path)
        digest = await _copied(run, source, part, await asyncio.to_thread(_size, source))
        await self._accept(run, digest)

    async def _fetch(self, run: Run[ImportArguments]) -> None:
        arguments, part = run.arguments, self._part(run)
        known = await self._catalogue.find_file(arguments.digest, arguments.format) if arguments.digest else None
        if known is not None:
            run.note(f"nothing was fetched: {arguments.digest} is in the catalogue")
            part.unlink(missing_ok=True)
            await asyncio.to_thread(shutil.copyfile, known, part)
            await self._accept(run, arguments.digest)
            return
        download = Download(arguments.url, part, self._core.options.fetch)
        try:
            await _downloaded(run, download, part)
        finally:
            await asyncio.to_thread(download.close)
        await self._accept(run, await _digest_of(run, part))

    async def _accept(self, run: Run[ImportArguments], digest: str) -> None:
        """Only what is as expected goes on.  Checked as a copy: nobody can exchange it any more."""
        arguments, part = run.arguments, self._part(run)
        check_digest(arguments.digest, digest)
        facts = await inspect(str(part), arguments.format)
        run.scratch["digest"] = digest
        run.scratch["capacity"] = str(facts["virtual-size"])

    async def _register(self, run: Run[ImportArguments]) -> None:
        arguments = run.arguments
        source = source_of(arguments.url) if arguments.url else arguments.path
        await register(self._catalogue, run, self._part(run), arguments.image_id, arguments.format, source)

    async def _unregister(self, run: Run[ImportArguments]) -> None:
        await self._catalogue.remove(run.arguments.image_id)

    async def _remove(self, run: Run[ImportArguments]) -> None:
        part = self._part(run)
        for path in (part, part.with_name(part.name + ".json")):
            await asyncio.to_thread(path.unlink, missing_ok=True)

    def _part(self, run: Run[ImportArguments]) -> Path:
        return self._catalogue.part(run.operation_id)


class CommitImage(Verb[CommitArguments]):
    """An upload becomes an image."""

    name = "image-upload"

    def __init__(self, core: Core, catalogue: ImageCatalogue, uploads: Uploads) -> None:
        self._core = core
        self._catalogue = catalogue
        self._uploads = uploads

    @property
    def arguments(self) -> type[CommitArguments]:
        """Journalled."""
        return CommitArguments

    def steps(self, arguments: CommitArguments) -> list[Step[CommitArguments]]:
        """Whatever fails, the upload is as it was, and can be committed again."""
        return [
            Step("claim", self._claim, undo=self._release, weight=0.1),
            Step("verify", self._verify, weight=10),
            Step("register", self._register, undo=self._unregister, cancellable=False),
            Step("forget", self._forget, cancellable=False, weight=0.1),
        ]

    def timeout_s(self, arguments: CommitArguments) -> float:
        """Big files take long to read."""
        return 4 * _HOURS

    async def finish(self, run: Run[CommitArguments]) -> Outcome:
        """The image."""
        image = await self._catalogue.get(run.arguments.image_id)
        return Outcome(image.name, image)

    async def _claim(self, run: Run[CommitArguments]) -> None:
        await check_absent(self._catalogue, run.arguments.image_id)
        await self._uploads.begin_commit(run.arguments.upload_id, run.operation.name)

    async def _release(self, run: Run[CommitArguments]) -> None:
        await self._uploads.end_commit(run.arguments.upload_id, run.operation.name)

    async def _verify(self, run: Run[CommitArguments]) -> None:
        arguments = run.arguments
        run.scratch["digest"] = await self._uploads.verify(run, arguments.upload_id, arguments.digest)
        facts = await inspect(str(self._uploads.path(arguments.upload_id)), arguments.format)
        run.scratch["capacity"] = str(facts["virtual-size"])

    async def _register(self, run: Run[CommitArguments]) -> None:
        arguments = run.arguments
        part = self._uploads.path(arguments.upload_id)
        await register(self._catalogue, run, part, arguments.image_id, arguments.format, _UPLOAD)

    async def _unregister(self, run: Run[CommitArguments]) -> None:
        await self._catalogue.remove(run.arguments.image_id)

    async def _forget(self, run: Run[CommitArguments]) -> None:
        await self._uploads.remove(run.arguments.upload_id)


class DeleteImage(Verb[ImageArguments]):
    """Forget, then remove the file."""

    name = "image-delete"

    def __init__(self, core: Core, catalogue: ImageCatalogue) -> None:
        self._core = core
        self._catalogue = catalogue

    @property
    def arguments(self) -> type[ImageArguments]:
        """Journalled."""
        return ImageArguments

    def steps(self, arguments: ImageArguments) -> list[Step[ImageArguments]]:
        """Forward only: what is sent to hosts goes first, so that nothing is left there unknown."""
        return [
            Step("hosts", self._hosts, cancellable=False),
            Step("delete", self._do, cancellable=False),
        ]

    async def check_unused(self, image_id: str) -> None:
        """Refuse when a disk is based on the image, or when that cannot be known.

        :raises FailedPreconditionError: IMAGE_IN_USE.
        :raises UnavailableError: HOST_UNREACHABLE, a host that may have such volumes does not answer.
        """
        path, name = await self._catalogue.path(image_id), f"images/{image_id}"
        for view in self._core.inventory.guests():
            for disk in view.guest.spec.disks:
                if disk.image is not None and disk.image.image == name and not disk.image.copy:
                    raise _in_use(name, f"disk {disk.name} of {view.guest.name}")
        if len(await self._catalogue.names_of(path)) > 1:
            return  # the file stays, whoever is based on it
        for link in self._core.links.values():
            if is_local(link.config):
                await _check_host(link, frozenset({path}), name)
        for host, base in (await self._core.bases.of(path)).items():
            await _check_host(self._core.link(host), frozenset(entry.path for entry in base), name)

    async def finish(self, run: Run[ImageArguments]) -> Outcome:
        """Nothing is left to show."""
        return Outcome()

    async def _hosts(self, run: Run[ImageArguments]) -> None:
        try:
            path = await self._catalogue.path(run.arguments.image_id)
        except NotFoundError:
            return
        await self.check_unused(run.arguments.image_id)
        if len(await self._catalogue.names_of(path)) == 1:
            await self._core.bases.remove(path, self._core.links, run)

    async def _do(self, run: Run[ImageArguments]) -> None:
        await self._catalogue.remove(run.arguments.image_id)


async def check_absent(catalogue: ImageCatalogue, image_id: str) -> None:
    """Refuse a name that is taken.

    :raises AlreadyExistsError: IMAGE_EXISTS.
    """
    if await catalogue.find(image_id) is not None:
        raise AlreadyExistsError(IMAGE_EXISTS, f"there is an image {image_id} already", resource=f"images/{image_id}")


def check_digest(expected: str, actual: str) -> None:
    """Refuse other bytes than those expected; no expectation accepts all.

    :raises InvalidArgumentError: DIGEST_MISMATCH.
    """
    if expected and expected != actual:
        raise InvalidArgumentError(
            DIGEST_MISMATCH,
            f"the file has the digest {actual}, not {expected}",
            metadata={"expected": expected, "actual": actual},
        )


async def register(
    catalogue: ImageCatalogue, run: Run[Any], part: Path, image_id: str, format_: DiskFormat, source: str
) -> None:
    """Show the checked file ``part`` as an image; its digest and capacity are in the scratch.  Idempotent."""
    path = await catalogue.find_file(run.scratch["digest"], format_) or part
    image = Image(
        name=f"images/{image_id}",
        digest=run.scratch["digest"],
        format=format_.value.lower(),
        size_bytes=await asyncio.to_thread(_size, path),
        capacity_bytes=int(run.scratch["capacity"]),
        source=source,
        create_time=datetime.now(UTC),
    )
    await catalogue.add(image_id, image, part)


async def _copied(run: Run[Any], source: Path, part: Path, total: int) -> str:
    """Copy with progress; the digest.  Holes are not kept: the file is read-only and is never grown."""
    _check_room(part.parent, total)
    digest = hashlib.sha256()
    done = 0
    try:
        part.unlink(missing_ok=True)
        with source.open("rb") as reader, part.open("wb") as writer:
            while chunk := await asyncio.to_thread(_copy_chunk, reader, writer, digest):
                done += chunk
                run.progress(bytes_done=done, bytes_total=total)
                run.checkpoint()
            await asyncio.to_thread(os.fsync, writer.fileno())
    except OSError as error:
        raise _full(error, part) from error
    return f"sha256:{digest.hexdigest()}"


async def _downloaded(run: Run[Any], download: Download, part: Path) -> None:
    """Fetch until it is whole; a cut is gone on from, with pauses, as long as something comes.

    :raises UnavailableError: FETCH_FAILED.
    """
    failures = 0
    while True:
        before = download.done_bytes
        try:
            await asyncio.to_thread(download.open)
            _check_room(part.parent, (download.total_bytes or 0) - download.done_bytes)
            while await asyncio.to_thread(download.read):
                run.progress(bytes_done=download.done_bytes, bytes_total=download.total_bytes)
                run.checkpoint()
                if download.total_bytes is None:
                    _check_room(part.parent, 0)
        except RetryableError as error:
            failures = 1 if download.done_bytes > before else failures + 1
            if failures >= ATTEMPTS:
                raise UnavailableError(
                    FETCH_FAILED, f"{source_of(run.arguments.url)}: {error}; {ATTEMPTS} attempts brought nothing"
                ) from error
            run.note(f"the fetch was cut ({error}); it goes on from byte {download.done_bytes}")
            await _pause(run, 2.0 ** (failures - 1) / 2)
        except OSError as error:
            raise _full(error, part) from error
        else:
            return


async def _pause(run: Run[Any], seconds: float) -> None:
    """Wait, but not for one who has given up."""
    cancelled = asyncio.ensure_future(run.wait_cancelled())
    try:
        await asyncio.wait({cancelled}, timeout=seconds)
    finally:
        cancelled.cancel()
    run.checkpoint()


async def _digest_of(run: Run[Any], path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as reader:
        while chunk := await asyncio.to_thread(reader.read, _CHUNK):
            await asyncio.to_thread(digest.update, chunk)
            run.checkpoint()
    return f"sha256:{digest.hexdigest()}"


def _check_room(directory: Path, needed: int) -> None:
    free = shutil.disk_usage(directory).free - _RESERVE_BYTES
    if free < needed:
        raise ResourceExhaustedError(
            STORAGE_FULL, f"{directory} has room for {max(0, free)} bytes, and {needed} more are needed"
        )


def _full(error: OSError, part: Path) -> Exception:
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return ResourceExhaustedError(STORAGE_FULL, f"no space left in {part.parent}")
    if error.errno == errno.EFBIG:
        return ResourceExhaustedError(LIMIT_EXCEEDED, f"{part.parent} takes no file of this size")
    return error


async def _check_host(link: HostLink, paths: frozenset[str], name: str) -> None:
    storage = link.facets.storage
    if storage is None:
        return
    for pool in await link.call(storage.list_pools()):
        if pool.state is not PoolState.ACTIVE:
            continue
        for volume in await link.call(storage.list_volumes(pool.name)):
            if volume.backing_path in paths:
                raise _in_use(name, f"volume {volume.name} of pool {pool.name} on {link.id}")


def _in_use(name: str, user: str) -> FailedPreconditionError:
    return FailedPreconditionError(
        IMAGE_IN_USE, f"{user} is based on {name}", resource=name, metadata={"used_by": user}
    )


def _size(path: Path) -> int:
    return path.stat().st_size


def _copy_chunk(reader: Any, writer: Any, digest: Any) -> int:
    chunk = reader.read(_CHUNK)
    writer.write(chunk)
    digest.update(chunk)
    return len(chunk)
