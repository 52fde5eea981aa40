"""The image catalogue: read-only sources of disks, kept in virtd's own directory by digest."""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import shutil
import sqlite3
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

from virtd.errors import (
    IMAGE_EXISTS,
    IMAGE_IN_USE,
    IMAGE_INVALID,
    IMAGE_NOT_FOUND,
    LIBVIRT_MISSING,
    STORAGE_FULL,
    AlreadyExistsError,
    FailedPreconditionError,
    FieldViolation,
    InvalidArgumentError,
    NotFoundError,
    ResourceExhaustedError,
    UnavailableError,
)
from virtd.inventory import HostLink
from virtd.model.guest import DiskFormat
from virtd.model.names import check_new_id
from virtd.model.operation import Operation
from virtd.model.storage import Image, PoolState
from virtd.operations import Outcome, Run, Step, Verb
from virtd.service.call import Call, Page, page_of
from virtd.service.core import Core, is_local, once, submission
from virtd.service.validate import check_allowed_path
from virtd.store import Codec, Database

_CODEC: Final = Codec(Image)
_CHUNK: Final = 4 * 2**20


class ImageCatalogue:
    """Reading the catalogue."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def get(self, image_id: str) -> Image:
        """An image.

        :raises NotFoundError: IMAGE_NOT_FOUND.
        """
        return (await self._row(image_id))[0]

    async def path(self, image_id: str) -> str:
        """Its file.

        :raises NotFoundError: IMAGE_NOT_FOUND.
        """
        return (await self._row(image_id))[1]

    async def find(self, image_id: str) -> Image | None:
        """An image, or None."""
        try:
            return await self.get(image_id)
        except NotFoundError:
            return None

    async def list(self) -> list[Image]:
        """All images, by name."""
        rows = await self._database.read(
            lambda connection: connection.execute("SELECT record FROM images ORDER BY id").fetchall()
        )
        return [_CODEC.decode(record) for (record,) in rows]

    async def _row(self, image_id: str) -> tuple[Image, str]:
        row = await self._database.read(
            lambda connection: connection.execute(
                "SELECT record, path FROM images WHERE id = ?", (image_id,)
            ).fetchone()
        )
        if row is None:
            raise NotFoundError(IMAGE_NOT_FOUND, f"there is no image {image_id}", resource=f"images/{image_id}")
        return _CODEC.decode(row[0]), row[1]


class Images:
    """Use cases of the catalogue."""

    def __init__(self, core: Core, catalogue: ImageCatalogue) -> None:
        self._core = core
        self._catalogue = catalogue
        self._import = ImportImage(core, catalogue)
        self._delete = DeleteImage(core, catalogue)
        core.engine.register(self._import)
        core.engine.register(self._delete)

    async def get(self, image_id: str) -> Image:
        """An image.

        :raises NotFoundError: IMAGE_NOT_FOUND.
        """
        return await self._catalogue.get(image_id)

    async def list(self, page_size: int, page_token: str) -> Page[Image]:
        """All images, by name."""
        return page_of(await self._catalogue.list(), page_size, page_token, lambda image: image.name)

    @once
    async def import_(self, call: Call, image_id: str, path: str, format_: DiskFormat) -> Operation | None:
        """Copy a file into the catalogue; see the RPC's documentation for the errors."""
        check_new_id(image_id, "image_id")
        real = check_allowed_path(path, self._core.options.allowed_directories, "path", local=True)
        if not Path(real).is_file():
            raise InvalidArgumentError(
                IMAGE_INVALID,
                f"path: there is no file {path}",
                violations=(FieldViolation("path", "no such file"),),
            )
        if await self._catalogue.find(image_id) is not None:
            raise AlreadyExistsError(
                IMAGE_EXISTS, f"there is an image {image_id} already", resource=f"images/{image_id}"
            )
        await inspect(real, format_)
        if call.validate_only:
            return None
        name = f"images/{image_id}"
        return await self._core.engine.submit(
            self._import, ImportArguments(image_id, real, format_), submission(call, name, name)
        )

    @once
    async def delete(self, call: Call, image_id: str) -> Operation | None:
        """Delete an image that no volume is based on."""
        await self._catalogue.get(image_id)
        await self._delete.check_unused(image_id)
        if call.validate_only:
            return None
        name = f"images/{image_id}"
        return await self._core.engine.submit(self._delete, ImageArguments(image_id), submission(call, name, name))


@dataclass(frozen=True, slots=True)
class ImportArguments:
    """Arguments of ``image-import``."""

    image_id: str
    path: str
    format: DiskFormat


@dataclass(frozen=True, slots=True)
class ImageArguments:
    """Arguments of ``image-delete``."""

    image_id: str


class ImportImage(Verb[ImportArguments]):
    """Copy, hash, check, and only then show."""

    name = "image-import"

    def __init__(self, core: Core, catalogue: ImageCatalogue) -> None:
        self._core = core
        self._catalogue = catalogue

    @property
    def arguments(self) -> type[ImportArguments]:
        """Journalled."""
        return ImportArguments

    def steps(self, arguments: ImportArguments) -> list[Step[ImportArguments]]:
        """Copy, then register.  After the check, a file of this name is this operation's own."""
        return [
            Step("check", self._check, weight=0.1),
            Step("copy", self._copy, undo=self._remove, weight=20),
            Step("register", self._register, undo=self._unregister, cancellable=False),
        ]

    def timeout_s(self, arguments: ImportArguments) -> float:
        """Big files take long."""
        return 4 * 3600.0

    async def finish(self, run: Run[ImportArguments]) -> Outcome:
        """The image."""
        image = await self._catalogue.get(run.arguments.image_id)
        return Outcome(image.name, image)

    def _target(self, arguments: ImportArguments) -> Path:
        return self._core.options.image_directory / f"{arguments.image_id}.{arguments.format.value.lower()}"

    async def _check(self, run: Run[ImportArguments]) -> None:
        image_id = run.arguments.image_id
        if await self._catalogue.find(image_id) is not None:
            raise AlreadyExistsError(
                IMAGE_EXISTS, f"there is an image {image_id} already", resource=f"images/{image_id}"
            )

    async def _copy(self, run: Run[ImportArguments]) -> None:
        source, target = Path(run.arguments.path), self._target(run.arguments)
        target.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
        part = target.with_name(target.name + ".part")
        total = source.stat().st_size
        if shutil.disk_usage(target.parent).free < total:
            raise ResourceExhaustedError(STORAGE_FULL, f"{target.parent} has no room for {total} bytes")
        digest = hashlib.sha256()
        done = 0
        try:
            with source.open("rb") as reader, part.open("wb") as writer:
                while chunk := await asyncio.to_thread(_copy_chunk, reader, writer, digest):
                    done += chunk
                    run.progress(bytes_done=done, bytes_total=total)
                    run.checkpoint()
                await asyncio.to_thread(os.fsync, writer.fileno())
        except OSError as error:
            import errno

            if error.errno in (errno.ENOSPC, errno.EDQUOT):
                raise ResourceExhaustedError(STORAGE_FULL, f"no space left in {target.parent}") from error
            raise
        # Checked again as a copy: what was checked before may have been exchanged meanwhile.
        facts = await inspect(str(part), run.arguments.format)
        part.chmod(0o444)
        part.rename(target)
        run.scratch["digest"] = f"sha256:{digest.hexdigest()}"
        run.scratch["capacity"] = str(facts["virtual-size"])

    async def _register(self, run: Run[ImportArguments]) -> None:
        arguments, target = run.arguments, self._target(run.arguments)
        image = Image(
            name=f"images/{arguments.image_id}",
            digest=run.scratch["digest"],
            format=arguments.format.value.lower(),
            size_bytes=target.stat().st_size,
            capacity_bytes=int(run.scratch["capacity"]),
            source=arguments.path,
            create_time=datetime.now(UTC),
        )

        def insert(connection: sqlite3.Connection) -> None:
            connection.execute(
                "INSERT OR REPLACE INTO images VALUES (?, ?, ?)",
                (arguments.image_id, _CODEC.encode(image), str(target)),
            )

        await self._core.database.write(insert)

    async def _remove(self, run: Run[ImportArguments]) -> None:
        target = self._target(run.arguments)
        for file in (target, target.with_name(target.name + ".part")):
            with suppress(FileNotFoundError):
                file.unlink()

    async def _unregister(self, run: Run[ImportArguments]) -> None:
        image_id = run.arguments.image_id
        await self._core.database.write(
            lambda connection: connection.execute("DELETE FROM images WHERE id = ?", (image_id,))
        )


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
        """One step: an image without its file, or the reverse, is never seen."""
        return [Step("delete", self._do, cancellable=False)]

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
        for link in self._core.links.values():
            if is_local(link.config):  # nothing on another machine is based on a file of this one
                await self._check_host(link, path, name)

    async def _check_host(self, link: HostLink, path: str, name: str) -> None:
        storage = link.facets.storage
        if storage is None:
            return
        for pool in await link.call(storage.list_pools()):
            if pool.state is not PoolState.ACTIVE:
                continue
            for volume in await link.call(storage.list_volumes(pool.name)):
                if volume.backing_path == path:
                    raise _in_use(name, f"volume {volume.name} of pool {pool.name} on {link.id}")

    async def finish(self, run: Run[ImageArguments]) -> Outcome:
        """Nothing is left to show."""
        return Outcome()

    async def _do(self, run: Run[ImageArguments]) -> None:
        image_id = run.arguments.image_id
        try:
            path = await self._catalogue.path(image_id)
        except NotFoundError:
            return
        await self.check_unused(image_id)
        with suppress(FileNotFoundError):
            Path(path).unlink()
        await self._core.database.write(
            lambda connection: connection.execute("DELETE FROM images WHERE id = ?", (image_id,))
        )


def _in_use(name: str, user: str) -> FailedPreconditionError:
    return FailedPreconditionError(
        IMAGE_IN_USE, f"{user} is based on {name}", resource=name, metadata={"used_by": user}
    )


async def inspect(path: str, format_: DiskFormat) -> dict[str, Any]:
    """Ask qemu-img whether a file is what it is said to be, and stands alone.

    The format is always given, so a raw file that contains a qcow2 header stays raw, and a backing
    file that the header names is refused, not followed.

    :raises InvalidArgumentError: IMAGE_INVALID.
    :raises UnavailableError: LIBVIRT_MISSING, there is no qemu-img.
    """
    try:
        process = await asyncio.create_subprocess_exec(
            "qemu-img", "info", "--output=json", "-f", format_.value.lower(), path,
            stdin=asyncio.subprocess.DEVNULL, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
        )  # fmt: skip
    except FileNotFoundError:
        raise UnavailableError(
            LIBVIRT_MISSING, "images cannot be looked at: qemu-img is not there; install qemu-utils"
        ) from None
    out, err = await process.communicate()
    if process.returncode != 0:
        detail = err.decode(errors="replace").strip().splitlines()[-1:] or ["unknown"]
        raise InvalidArgumentError(
            IMAGE_INVALID,
            f"{path} is not a {format_.value} image: {detail[0]}",
            violations=(FieldViolation("format", f"the file is not {format_.value}"),),
        )
    facts: dict[str, Any] = json.loads(out)
    if facts.get("backing-filename") or facts.get("full-backing-filename"):
        raise InvalidArgumentError(
            IMAGE_INVALID,
            f"{path} has a backing file; import a stand-alone image (qemu-img convert)",
            violations=(FieldViolation("path", "has a backing file"),),
        )
    data_file = facts.get("format-specific", {}).get("data", {}).get("data-file")
    if data_file:
        raise InvalidArgumentError(
            IMAGE_INVALID,
            f"{path} keeps its data in another file; import a stand-alone image (qemu-img convert)",
            violations=(FieldViolation("path", "has an external data file"),),
        )
    return facts


def _copy_chunk(reader: Any, writer: Any, digest: Any) -> int:
    chunk = reader.read(_CHUNK)
    writer.write(chunk)
    digest.update(chunk)
    return len(chunk)
