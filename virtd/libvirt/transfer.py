"""Upload of a local file into a volume: with progress, with cancel, and holes stay holes."""

from __future__ import annotations

import contextlib
import errno
import os
from typing import Any, Final

import libvirt

from virtd.errors import IMAGE_INVALID, OPERATION_CANCELLED, CancelledError, InvalidArgumentError

_CHUNK: Final = 256 * 1024
_HEAD: Final = 4


class Transfer:
    """One upload.  ``run`` works on a worker thread; the rest may be used from any.

    :param offset: where the part begins that is sent; it goes to the same place of the volume.
    :param length: how long it is at most; None: all that follows.
    :raises InvalidArgumentError: IMAGE_INVALID, the file cannot be read.
    """

    def __init__(self, path: str, offset: int = 0, length: int | None = None) -> None:
        self._path: Final = path
        self._cancelled = False
        self._offset: Final = offset
        self.done_bytes = offset
        """How far of the whole file it is."""
        try:
            with open(path, "rb") as file:  # noqa: PTH123 - the descriptor is what is needed
                self.size: int = os.fstat(file.fileno()).st_size
                self.head: bytes = file.read(_HEAD)
        except OSError as error:
            raise InvalidArgumentError(IMAGE_INVALID, f"{path} cannot be read: {error.strerror}") from error
        self._end: Final = self.size if length is None else min(self.size, offset + length)

    def cancel(self) -> None:
        """Make ``run`` end soon."""
        self._cancelled = True

    def run(self, connection: Any, volume: Any) -> None:
        """Send the file.

        :raises CancelledError: OPERATION_CANCELLED, after :meth:`cancel`; the volume is then half full.
        """
        stream = connection.newStream(0)
        with open(self._path, "rb", buffering=0) as file:  # noqa: PTH123 - the descriptor is what is needed
            descriptor = file.fileno()
            volume.upload(stream, self._offset, self._end - self._offset, libvirt.VIR_STORAGE_VOL_UPLOAD_SPARSE_STREAM)
            try:
                self._send(stream, descriptor)
                stream.finish()
            except BaseException:
                with contextlib.suppress(libvirt.libvirtError):
                    stream.abort()
                raise

    def _send(self, stream: Any, descriptor: int) -> None:
        position = self._offset
        while position < self._end:
            if self._cancelled:
                raise CancelledError(OPERATION_CANCELLED, "the copy was cancelled")
            data_start = _seek(descriptor, position, os.SEEK_DATA, self._end)
            if data_start > position:
                stream.sendHole(data_start - position)
                position = data_start
            else:
                end = _seek(descriptor, position, os.SEEK_HOLE, self._end)
                chunk = os.pread(descriptor, min(_CHUNK, end - position), position)
                if not chunk:
                    break  # the file was cut while it was read: what is missing stays a hole
                sent = 0
                while sent < len(chunk):
                    sent += stream.send(chunk[sent:])
                position += len(chunk)
            self.done_bytes = position


def _seek(descriptor: int, position: int, what: int, size: int) -> int:
    """Where the next data or hole begins; a file system without holes is all data."""
    try:
        return min(os.lseek(descriptor, position, what), size)
    except OSError as error:
        if error.errno == errno.ENXIO:  # nothing but a hole up to the end
            return size
        return position if what == os.SEEK_DATA else size
