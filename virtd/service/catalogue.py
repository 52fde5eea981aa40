"""The image catalogue: names, and the files behind them, each kept once whatever the number of its names.

A file's name in virtd's directory is its digest.  Files are read-only and never change; disks are
based on them.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import sqlite3
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from virtd.errors import IMAGE_NOT_FOUND, STORAGE_FULL, NotFoundError, ResourceExhaustedError
from virtd.model.guest import DiskFormat
from virtd.model.storage import Image
from virtd.store import Codec, Database

_CODEC: Final = Codec(Image)


class ImageCatalogue:
    """The rows and the files.

    :param directory: where the files lie.
    """

    def __init__(self, database: Database, directory: Path) -> None:
        self._database = database
        self.directory: Final = directory
        # Between "does another name use this file?" and what follows from it, nothing may come.
        self._files = asyncio.Lock()

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

    async def list(self) -> Sequence[Image]:
        """All images, by name."""
        rows = await self._database.read(
            lambda connection: connection.execute("SELECT record FROM images ORDER BY id").fetchall()
        )
        return [_CODEC.decode(record) for (record,) in rows]

    async def names_of(self, path: str) -> Sequence[str]:
        """The ids of the images with this file."""
        rows = await self._database.read(
            lambda connection: connection.execute(
                "SELECT id FROM images WHERE path = ? ORDER BY id", (path,)
            ).fetchall()
        )
        return [image_id for (image_id,) in rows]

    async def find_file(self, digest: str, format_: DiskFormat) -> Path | None:
        """The file with this digest, if there is one in the catalogue."""
        path = self._target(digest, format_)
        return path if await self.names_of(str(path)) and path.is_file() else None

    async def add(self, image_id: str, image: Image, part: Path) -> None:
        """Show an image whose checked file is ``part``, which stays.  Idempotent.

        :raises ResourceExhaustedError: STORAGE_FULL.
        """
        async with self._files:
            target = self._target(image.digest, DiskFormat(image.format.upper()))
            if not target.is_file():
                await asyncio.to_thread(_place, part, target)

            def insert(connection: sqlite3.Connection) -> None:
                connection.execute(
                    "INSERT OR REPLACE INTO images VALUES (?, ?, ?)", (image_id, _CODEC.encode(image), str(target))
                )

            await self._database.write(insert)

    async def remove(self, image_id: str) -> None:
        """Forget an image, and its file if no other image has it.  Idempotent."""
        async with self._files:
            try:
                path = await self.path(image_id)
            except NotFoundError:
                return
            await self._database.write(
                lambda connection: connection.execute("DELETE FROM images WHERE id = ?", (image_id,))
            )
            if not await self.names_of(path):
                await asyncio.to_thread(Path(path).unlink, missing_ok=True)

    async def tidy(self) -> None:
        """Remove files that no image has, and no operation works on: a crash in the middle left them."""
        async with self._files:
            rows = await self._database.read(
                lambda connection: connection.execute("SELECT path FROM images").fetchall()
            )
            known = {path for (path,) in rows}
            for path in await asyncio.to_thread(lambda: list(self.directory.glob("sha256-*"))):
                if str(path) not in known:
                    await asyncio.to_thread(path.unlink, missing_ok=True)

    def part(self, operation_id: str) -> Path:
        """Where an operation puts a file that is on its way."""
        return self.directory / f"import-{operation_id.removeprefix('operations/')}.part"

    def _target(self, digest: str, format_: DiskFormat) -> Path:
        return self.directory / f"{digest.replace(':', '-')}.{format_.value.lower()}"

    async def _row(self, image_id: str) -> tuple[Image, str]:
        row = await self._database.read(
            lambda connection: connection.execute(
                "SELECT record, path FROM images WHERE id = ?", (image_id,)
            ).fetchone()
        )
        if row is None:
            raise NotFoundError(IMAGE_NOT_FOUND, f"there is no image {image_id}", resource=f"images/{image_id}")
        return _CODEC.decode(row[0]), row[1]


def _place(part: Path, target: Path) -> None:
    """A second name for the file, so that this can be repeated; a copy where the file system has none."""
    part.chmod(0o444)
    try:
        os.link(part, target)
    except FileExistsError:
        return
    except OSError as error:
        if error.errno not in (errno.EPERM, errno.EOPNOTSUPP, errno.EMLINK, errno.EXDEV):
            raise
        _copy(part, target)
    with contextlib.suppress(OSError):
        descriptor = os.open(target.parent, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def _copy(part: Path, target: Path) -> None:
    import shutil

    copy = target.with_name(target.name + ".part")
    try:
        shutil.copyfile(part, copy)
        copy.chmod(0o444)
        copy.replace(target)
    except OSError as error:
        copy.unlink(missing_ok=True)
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise ResourceExhaustedError(STORAGE_FULL, f"no space left in {target.parent}") from error
        raise
