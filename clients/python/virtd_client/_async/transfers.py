"""Uploads and downloads: files to and from the daemon, which go on after a cut."""

from __future__ import annotations

import os
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from virtd_client import _files, _messages
from virtd_client._async.operation import AsyncOperation
from virtd_client._async.service import AsyncService, pages
from virtd_client._io import aio as io
from virtd_client._retry import Backoff, Deadline, is_outage
from virtd_client.errors import TRANSFER_DAMAGED, Cancelled, Conflict, Internal, VirtdError
from virtd_client.types import DiskFormatName, TransferProgress

if TYPE_CHECKING:
    from virtd.v1.storage_pb2 import DownloadVolumeRequest, DownloadVolumeResponse
    from virtd.v1.upload_pb2 import Upload
    from virtd.v1.upload_pb2_grpc import UploadServiceAsyncStub
    from virtd_client._async.transport import AsyncTransport

# The daemon tells what is safe at least every 64 MiB: so many bytes are under way at most.
_AHEAD_BYTES = 128 * 2**20


class AsyncUploads(AsyncService):
    """Files that are on their way to the daemon.  Names are ``uploads/{upload}``."""

    @cached_property
    def _stub(self) -> UploadServiceAsyncStub:
        from virtd.v1.upload_pb2_grpc import UploadServiceStub

        return UploadServiceStub(self._transport.channel)

    async def start_volume(
        self,
        parent: str,
        volume_id: str,
        size_bytes: int,
        format: DiskFormatName,  # noqa: A002 - the API's name
        *,
        request_id: str | None = None,
    ) -> Upload:
        """Begin the upload of a volume.

        :param parent: the pool's name.
        :param format: of the file; never guessed.
        """
        from virtd.v1 import upload_pb2 as pb

        request = pb.StartUploadRequest(
            volume=pb.VolumeUpload(parent=parent, volume_id=volume_id),
            size_bytes=size_bytes,
            format=_messages.disk_format(format),
            request_id=_messages.new_request_id(request_id),
        )
        return (await self._transport.unary(self._stub.StartUpload, request)).upload

    async def start_image(
        self,
        image_id: str,
        size_bytes: int,
        format: DiskFormatName,  # noqa: A002 - the API's name
        *,
        request_id: str | None = None,
    ) -> Upload:
        """Begin the upload of an image.

        :param format: of the file; never guessed.
        """
        from virtd.v1 import upload_pb2 as pb

        request = pb.StartUploadRequest(
            image=pb.ImageUpload(image_id=image_id),
            size_bytes=size_bytes,
            format=_messages.disk_format(format),
            request_id=_messages.new_request_id(request_id),
        )
        return (await self._transport.unary(self._stub.StartUpload, request)).upload

    async def get(self, name: str) -> Upload:
        """One upload."""
        from virtd.v1 import upload_pb2 as pb

        return (await self._transport.unary(self._stub.GetUpload, pb.GetUploadRequest(name=name))).upload

    async def list(self, *, page_size: int = 0) -> tuple[Upload, ...]:
        """All uploads that are not complete, by name."""
        from virtd.v1 import upload_pb2 as pb

        uploads: tuple[Upload, ...] = ()
        async for page in pages(
            lambda token: self._transport.unary(
                self._stub.ListUploads, pb.ListUploadsRequest(page_size=page_size, page_token=token)
            )
        ):
            uploads += tuple(page.uploads)
        return uploads

    async def send(
        self, name: str, path: str | os.PathLike[str], *, progress: TransferProgress | None = None
    ) -> Upload:
        """Send a file, from where the upload is; while the daemon is away, wait and go on.

        :param progress: called with the bytes that are safe, and the size.
        :raises VirtdError: as the daemon says; the upload is then still there, to be sent again or deleted.
        """
        backoff, patience = Backoff(), Deadline(None)
        outage = False
        while True:
            upload = await self.get(name)
            if outage and upload.received_bytes:
                backoff.reset()
            try:
                return await self._send(upload, path, progress)
            except VirtdError as error:
                if not is_lost(error):
                    raise
                patience = patience if outage else Deadline(self._transport.retry_s)
                outage = True
                if patience.passed:
                    raise
                await io.sleep(backoff.next_s(error.retry_after_s))

    async def commit(
        self, name: str, digest: str, *, request_id: str | None = None, validate_only: bool = False
    ) -> AsyncOperation[Any]:
        """Make the volume or image of it.

        :param digest: ``sha256:<hex>`` of the whole file; empty: not checked.
        """
        from virtd.v1 import upload_pb2 as pb

        kind = (await self.get(name)).kind
        request = pb.CommitUploadRequest(
            name=name,
            digest=digest,
            request_id=_messages.new_request_id(request_id),
            validate_only=validate_only,
        )
        result = "virtd.v1.Image" if kind == pb.UPLOAD_KIND_IMAGE else "virtd.v1.Volume"
        return await self._start(self._stub.CommitUpload, request, result)

    async def delete(self, name: str, *, request_id: str | None = None) -> None:
        """Give an upload up, with what was received."""
        from virtd.v1 import upload_pb2 as pb

        request = pb.DeleteUploadRequest(name=name, request_id=_messages.new_request_id(request_id))
        await self._transport.unary(self._stub.DeleteUpload, request)

    async def complete(
        self, upload: Upload, path: str | os.PathLike[str], *, progress: TransferProgress | None = None
    ) -> AsyncOperation[Any]:
        """Send what is missing of a file, and commit it with its digest."""
        await self.send(upload.name, path, progress=progress)
        return await self.commit(upload.name, await io.in_thread(_files.digest, path))

    async def _send(self, upload: Upload, path: str | os.PathLike[str], progress: TransferProgress | None) -> Upload:
        from virtd.v1 import upload_pb2 as pb

        call = self._transport.bidi(self._stub.WriteUpload)
        safe = upload
        try:
            with Path(path).open("rb", buffering=0) as file:
                source = _files.pieces(file.fileno(), upload.received_bytes, upload.size_bytes)
                start = pb.UploadStart(name=upload.name, offset=upload.received_bytes)
                sent = upload.received_bytes
                going = await call.write(pb.WriteUploadRequest(start=start))
                while going and (piece := await io.in_thread(_files.next_piece, source)) is not None:
                    if isinstance(piece, int):
                        going = await call.write(pb.WriteUploadRequest(zero_bytes=piece))
                        sent += piece
                    else:
                        going = await call.write(pb.WriteUploadRequest(data=piece))
                        sent += len(piece)
                    if sent - safe.received_bytes >= _AHEAD_BYTES:
                        answer = await call.read()
                        safe = answer.upload if answer is not None else safe
                        _tell(progress, safe)
            await call.done_writing()
            while (answer := await call.read()) is not None:
                safe = answer.upload
                _tell(progress, safe)
        except io.RpcError as error:
            raise self._transport.error(error) from None
        finally:
            call.cancel()
        return safe


async def download(
    transport: AsyncTransport,
    method: io.StreamMethod[DownloadVolumeRequest, DownloadVolumeResponse],
    name: str,
    path: str | os.PathLike[str],
    progress: TransferProgress | None,
) -> str:
    """Receive a volume into a file, which appears under its name when it is complete; its format.

    While the daemon or the host is away, waits and goes on; where the volume has changed meanwhile, begins anew.
    """
    target = Path(path)
    receiver = await io.in_thread(_files.Receiver, target.with_name(f".{target.name}.part"))
    backoff, outage = Backoff(), False
    patience = Deadline(None)
    state = _Download(name)
    try:
        while True:
            try:
                await _receive(transport, method, state, receiver, progress)
            except VirtdError as error:
                if isinstance(error, Conflict) and state.etag and error.reason == "ETAG_MISMATCH":
                    if receiver.position == 0 or state.began_anew:
                        raise
                    state.etag, state.began_anew = "", True
                    receiver.begin(0)
                    continue
                if not (is_lost(error) or error.reason == "HOST_UNREACHABLE"):
                    raise
                patience = patience if outage else Deadline(transport.retry_s)
                outage = True
                if patience.passed:
                    raise
                await io.sleep(backoff.next_s(error.retry_after_s))
            else:
                await io.in_thread(receiver.finish, target)
                return state.format
    finally:
        receiver.close()


class _Download:
    """How far a download is."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.etag = ""
        self.format = ""
        self.began_anew = False


async def _receive(
    transport: AsyncTransport,
    method: io.StreamMethod[DownloadVolumeRequest, DownloadVolumeResponse],
    state: _Download,
    receiver: _files.Receiver,
    progress: TransferProgress | None,
) -> None:
    from virtd.v1 import storage_pb2 as pb

    offset = receiver.position if state.etag else 0
    receiver.begin(offset)
    request = pb.DownloadVolumeRequest(name=state.name, offset=offset, etag=state.etag if offset else "")
    call = transport.stream(method, request)
    size = 0
    try:
        while (response := await call.read()) is not None:
            kind = response.WhichOneof("response")
            if kind == "start":
                size, state.etag, state.format = response.start.size_bytes, response.start.etag, response.start.format
            elif kind == "data":
                await io.in_thread(receiver.data, response.data)
            elif kind == "zero_bytes":
                await io.in_thread(receiver.zeros, response.zero_bytes)
            elif kind == "end":
                if response.end.digest != receiver.digest or receiver.position != size:
                    receiver.begin(0)
                    raise Internal("the bytes that arrived are not those that were sent", reason=TRANSFER_DAMAGED)
                return
            if progress is not None:
                progress(receiver.position, size)
    except io.RpcError as error:
        raise transport.error(error) from None
    finally:
        call.cancel()
    raise Internal("the download ended without an end", reason="GRPC_INTERNAL")


def is_lost(error: VirtdError) -> bool:
    """Whether a stream ended for a reason after which it can go on: the daemon was away, or the connection."""
    return is_outage(error) or (isinstance(error, Cancelled | Internal) and error.reason.startswith("GRPC_"))


def _tell(progress: TransferProgress | None, upload: Upload) -> None:
    if progress is not None:
        progress(upload.received_bytes, upload.size_bytes)
