"""Use cases of the image catalogue."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Final

from virtd.errors import (
    IMAGE_EXISTS,
    IMAGE_INVALID,
    AlreadyExistsError,
    FieldViolation,
    InvalidArgumentError,
)
from virtd.model.guest import DiskFormat
from virtd.model.names import check_new_id
from virtd.model.operation import Operation
from virtd.model.storage import Image
from virtd.model.upload import Upload, UploadKind
from virtd.service.call import Call, Page, page_of
from virtd.service.catalogue import ImageCatalogue
from virtd.service.core import Core, once, submission
from virtd.service.fetching import check_url
from virtd.service.imagefile import inspect
from virtd.service.uploads import Uploads
from virtd.service.validate import Violations, check_allowed_path
from virtd.service.verbs.image import (
    CommitArguments,
    CommitImage,
    DeleteImage,
    ImageArguments,
    ImportArguments,
    ImportImage,
)

DIGEST: Final = re.compile(r"sha256:[0-9a-f]{64}")


class Images:
    """Use cases of the catalogue."""

    def __init__(self, core: Core, catalogue: ImageCatalogue, uploads: Uploads) -> None:
        self._core = core
        self._catalogue = catalogue
        self._import = ImportImage(core, catalogue)
        self._delete = DeleteImage(core, catalogue)
        core.engine.register(self._import)
        core.engine.register(self._delete)
        uploads.register(UploadKind.IMAGE, ImageReceiver(core, catalogue, uploads))

    async def get(self, image_id: str) -> Image:
        """An image.

        :raises NotFoundError: IMAGE_NOT_FOUND.
        """
        return await self._catalogue.get(image_id)

    async def list(self, page_size: int, page_token: str) -> Page[Image]:
        """All images, by name."""
        return page_of(await self._catalogue.list(), page_size, page_token, lambda image: image.name)

    @once
    async def import_(
        self, call: Call, image_id: str, path: str, format_: DiskFormat, url: str = "", digest: str = ""
    ) -> Operation | None:
        """Bring a file into the catalogue; see the RPC's documentation for the errors."""
        check_new_id(image_id, "image_id")
        wrong = Violations()
        if bool(path) == bool(url):
            wrong.add("path", "one of path and url is required, and not both")
        if digest and not DIGEST.fullmatch(digest):
            wrong.add("digest", "must be sha256: and 64 hexadecimal digits in lower case")
        wrong.check()
        if url:
            check_url(url, self._core.options.fetch)
        else:
            path = check_allowed_path(path, self._core.options.allowed_directories, "path", local=True)
            _check_file(path)
        await self._check_absent(image_id)
        if path:
            await inspect(path, format_)
        if call.validate_only:
            return None
        name = f"images/{image_id}"
        return await self._core.engine.submit(
            self._import, ImportArguments(image_id, path, format_, url, digest), submission(call, name, name)
        )

    @once
    async def delete(self, call: Call, image_id: str) -> Operation | None:
        """Delete an image that no disk is based on."""
        await self._catalogue.get(image_id)
        await self._delete.check_unused(image_id)
        if call.validate_only:
            return None
        name = f"images/{image_id}"
        return await self._core.engine.submit(self._delete, ImageArguments(image_id), submission(call, name, name))

    async def _check_absent(self, image_id: str) -> None:
        if await self._catalogue.find(image_id) is not None:
            raise exists(image_id)


class ImageReceiver:
    """Makes images of uploads."""

    def __init__(self, core: Core, catalogue: ImageCatalogue, uploads: Uploads) -> None:
        self._core = core
        self._catalogue = catalogue
        self._verb = CommitImage(core, catalogue, uploads)
        core.engine.register(self._verb)

    async def check(self, upload: Upload) -> None:
        """Refuse a name that is taken, or a file that is too large.

        :raises AlreadyExistsError: IMAGE_EXISTS.
        :raises InvalidArgumentError: FIELD_INVALID.
        """
        image_id = check_new_id(upload.target.removeprefix("images/"), "image.image_id")
        wrong = Violations()
        most = self._core.options.fetch.max_bytes
        if upload.size_bytes > most:
            wrong.add("size_bytes", f"must be at most {most}, which images.max_bytes allows, not {upload.size_bytes}")
        wrong.check()
        if await self._catalogue.find(image_id) is not None:
            raise exists(image_id)

    async def commit(self, call: Call, upload: Upload, digest: str) -> Operation:
        """Submit the operation that makes it."""
        arguments = CommitArguments(
            upload.target.removeprefix("images/"), upload.name.removeprefix("uploads/"), upload.format, digest
        )
        return await self._core.engine.submit(self._verb, arguments, submission(call, upload.target, upload.target))


def exists(image_id: str) -> AlreadyExistsError:
    """IMAGE_EXISTS."""
    return AlreadyExistsError(IMAGE_EXISTS, f"there is an image {image_id} already", resource=f"images/{image_id}")


def _check_file(path: str) -> None:
    if not Path(path).is_file():
        raise InvalidArgumentError(
            IMAGE_INVALID, f"path: there is no file {path}", violations=(FieldViolation("path", "no such file"),)
        )
