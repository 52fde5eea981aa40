"""virtd.v1.ImageService."""
# ruff: noqa: N802 - the methods have the RPCs' names

from __future__ import annotations

from virtd.errors import invalid_field
from virtd.model.guest import DiskFormat
from virtd.model.names import check_new_id, parse
from virtd.rpc.context import Context
from virtd.rpc.convert import enum_member, to_message
from virtd.rpc.servicers.base import IMAGE, Servicer, call_of
from virtd.v1 import image_pb2 as pb


class ImageServicer(Servicer):
    """The catalogue of images."""

    async def ImportImage(self, request: pb.ImportImageRequest, _context: Context) -> pb.ImportImageResponse:
        """Copy a file into the catalogue."""
        image_id = check_new_id(request.image_id, "image_id")
        if not request.path and not request.url:
            raise invalid_field("path", "is required, or url")
        true_format = enum_member(request, "format", DiskFormat)
        if true_format is None:
            raise invalid_field("format", "is required; it is never guessed", *DiskFormat)
        operation = await self.services.images.import_(
            call_of(request), image_id, request.path, true_format, request.url, request.digest
        )
        return pb.ImportImageResponse(operation=await self.started(operation))

    async def GetImage(self, request: pb.GetImageRequest, _context: Context) -> pb.GetImageResponse:
        """One image."""
        image = await self.services.images.get(parse(request.name, IMAGE)["image"])
        return pb.GetImageResponse(image=to_message(image, pb.Image))

    async def ListImages(self, request: pb.ListImagesRequest, _context: Context) -> pb.ListImagesResponse:
        """All images."""
        page = await self.services.images.list(request.page_size, request.page_token)
        images = [to_message(image, pb.Image) for image in page.items]
        return pb.ListImagesResponse(images=images, next_page_token=page.next_page_token)

    async def DeleteImage(self, request: pb.DeleteImageRequest, _context: Context) -> pb.DeleteImageResponse:
        """Delete an image."""
        operation = await self.services.images.delete(call_of(request), parse(request.name, IMAGE)["image"])
        return pb.DeleteImageResponse(operation=await self.started(operation))
