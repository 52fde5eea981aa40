# Generated from _async/images.py by `python -m tests.tools.gen_sync_client`; never edited by hand.
"""The catalogue of images."""

from __future__ import annotations

from functools import cached_property
from typing import TYPE_CHECKING

from virtd_client import _messages
from virtd_client._sync.operation import Operation
from virtd_client._sync.service import Service, pages
from virtd_client.types import DiskFormatName

if TYPE_CHECKING:
    from virtd.v1.image_pb2 import Image
    from virtd.v1.image_pb2_grpc import ImageServiceStub
    from virtd.v1.operation_pb2 import OperationResult

_RESULT = "virtd.v1.OperationResult"


class Images(Service):
    """The catalogue of disk images.  Names are ``images/{image}``."""

    @cached_property
    def _stub(self) -> ImageServiceStub:
        from virtd.v1.image_pb2_grpc import ImageServiceStub

        return ImageServiceStub(self._transport.channel)

    def import_(
        self,
        image_id: str,
        path: str = "",
        format: DiskFormatName = "qcow2",  # noqa: A002 - the API's name
        *,
        url: str = "",
        digest: str = "",
        request_id: str | None = None,
        validate_only: bool = False,
    ) -> Operation[Image]:
        """Copy a file of the daemon's machine, or one that it fetches, into the catalogue.

        :param path: a file in one of the daemon's allowed directories.
        :param format: its true format; never guessed.
        :param url: instead of ``path``: from where the daemon fetches it, by http or https.
        :param digest: ``sha256:<hex>`` that the file must have; empty: not checked.
        """
        from virtd.v1 import image_pb2 as pb

        request = pb.ImportImageRequest(
            image_id=image_id,
            path=path,
            format=_messages.disk_format(format),
            request_id=_messages.new_request_id(request_id),
            validate_only=validate_only,
            url=url,
            digest=digest,
        )
        return self._start(self._stub.ImportImage, request, "virtd.v1.Image")

    def get(self, name: str) -> Image:
        """One image."""
        from virtd.v1 import image_pb2 as pb

        return (self._transport.unary(self._stub.GetImage, pb.GetImageRequest(name=name))).image

    def list(self, *, page_size: int = 0) -> tuple[Image, ...]:
        """All images, by name."""
        from virtd.v1 import image_pb2 as pb

        images: tuple[Image, ...] = ()
        for page in pages(
            lambda token: self._transport.unary(
                self._stub.ListImages, pb.ListImagesRequest(page_size=page_size, page_token=token)
            )
        ):
            images += tuple(page.images)
        return images

    def delete(
        self, name: str, *, request_id: str | None = None, validate_only: bool = False
    ) -> Operation[OperationResult]:
        """Delete an image."""
        from virtd.v1 import image_pb2 as pb

        request = pb.DeleteImageRequest(
            name=name, request_id=_messages.new_request_id(request_id), validate_only=validate_only
        )
        return self._start(self._stub.DeleteImage, request, _RESULT)
