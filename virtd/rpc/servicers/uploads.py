"""virtd.v1.UploadService."""
# ruff: noqa: N802 - the methods have the RPCs' names

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import aclosing

from virtd.errors import invalid_field
from virtd.model.guest import DiskFormat
from virtd.model.names import check_new_id, parse
from virtd.model.upload import UploadKind
from virtd.rpc.context import Context, current
from virtd.rpc.convert import enum_member, to_message
from virtd.rpc.servicers.base import POOL, UPLOAD, Servicer, call_of
from virtd.service.spool import Piece
from virtd.v1 import upload_pb2 as pb


class UploadServicer(Servicer):
    """Files on their way to the daemon."""

    async def StartUpload(self, request: pb.StartUploadRequest, _context: Context) -> pb.StartUploadResponse:
        """Begin an upload."""
        kind, target = _target(request)
        format_ = enum_member(request, "format", DiskFormat)
        if format_ is None:
            raise invalid_field("format", "is required; it is never guessed", *DiskFormat)
        current().resource = target
        upload = await self.services.uploads.start(call_of(request), kind, target, request.size_bytes, format_)
        return pb.StartUploadResponse(upload=None if upload is None else to_message(upload, pb.Upload))

    async def GetUpload(self, request: pb.GetUploadRequest, _context: Context) -> pb.GetUploadResponse:
        """One upload."""
        upload = await self.services.uploads.get(parse(request.name, UPLOAD)["upload"])
        return pb.GetUploadResponse(upload=to_message(upload, pb.Upload))

    async def ListUploads(self, request: pb.ListUploadsRequest, _context: Context) -> pb.ListUploadsResponse:
        """All uploads."""
        page = await self.services.uploads.list(request.page_size, request.page_token)
        uploads = [to_message(upload, pb.Upload) for upload in page.items]
        return pb.ListUploadsResponse(uploads=uploads, next_page_token=page.next_page_token)

    async def WriteUpload(
        self, requests: AsyncIterator[pb.WriteUploadRequest], _context: Context
    ) -> AsyncIterator[pb.WriteUploadResponse]:
        """Bytes of an upload."""
        start = await _first(requests)
        current().resource = start.name
        upload_id = parse(start.name, UPLOAD, "start.name")["upload"]
        async with aclosing(self.services.uploads.write(upload_id, start.offset, _pieces(requests))) as uploads:
            async for upload in uploads:
                yield pb.WriteUploadResponse(upload=to_message(upload, pb.Upload))

    async def CommitUpload(self, request: pb.CommitUploadRequest, _context: Context) -> pb.CommitUploadResponse:
        """Make a volume or an image of an upload."""
        upload_id = parse(request.name, UPLOAD)["upload"]
        operation = await self.services.uploads.commit(call_of(request), upload_id, request.digest)
        return pb.CommitUploadResponse(operation=await self.started(operation))

    async def DeleteUpload(self, request: pb.DeleteUploadRequest, _context: Context) -> pb.DeleteUploadResponse:
        """Give an upload up."""
        await self.services.uploads.delete(call_of(request), parse(request.name, UPLOAD)["upload"])
        return pb.DeleteUploadResponse()


def _target(request: pb.StartUploadRequest) -> tuple[UploadKind, str]:
    match request.WhichOneof("target"):
        case "volume":
            parse(request.volume.parent, POOL, "volume.parent")
            volume = check_new_id(request.volume.volume_id, "volume.volume_id")
            return UploadKind.VOLUME, f"{request.volume.parent}/volumes/{volume}"
        case "image":
            return UploadKind.IMAGE, f"images/{check_new_id(request.image.image_id, 'image.image_id')}"
        case _:
            raise invalid_field("target", "exactly one of volume, image is required")


async def _first(requests: AsyncIterator[pb.WriteUploadRequest]) -> pb.UploadStart:
    async for request in requests:
        if request.WhichOneof("request") == "start":
            return request.start
        break
    raise invalid_field("start", "is required: the first request says which upload, and from where")


async def _pieces(requests: AsyncIterator[pb.WriteUploadRequest]) -> AsyncIterator[Piece]:
    async for request in requests:
        match request.WhichOneof("request"):
            case "data":
                yield request.data
            case "zero_bytes":
                yield request.zero_bytes
            case "start":
                raise invalid_field("start", "only the first request may be start")
            case _:
                raise invalid_field("request", "exactly one of data, zero_bytes is required")
