"""Pictures: PPM, which older QEMU gives, and bare pixels as PNG."""

from __future__ import annotations

import struct
import zlib
from typing import Final

from virtd.errors import BACKEND_ERROR, InternalError

PNG_MAGIC: Final = b"\x89PNG\r\n\x1a\n"
_PPM_FIELDS: Final = 4
_PPM_DEPTH: Final = 255


def to_png(data: bytes, mime_type: str) -> bytes:
    """``data`` as PNG.

    :raises InternalError: BACKEND_ERROR, it is neither PNG nor PPM.
    """
    if data.startswith(PNG_MAGIC):
        return data
    if data.startswith(b"P6"):
        return _ppm_to_png(data)
    raise InternalError(BACKEND_ERROR, f"the hypervisor gave a picture of type {mime_type!r}, which is not PNG")


def _ppm_to_png(data: bytes) -> bytes:
    fields, offset = _ppm_header(data)
    width, height, depth = fields
    stride = width * 3
    pixels = data[offset : offset + stride * height]
    if depth != _PPM_DEPTH or len(pixels) != stride * height:
        raise InternalError(BACKEND_ERROR, "the hypervisor gave a picture that is cut short or of another depth")
    return png_of(width, height, pixels)


def png_of(width: int, height: int, pixels: bytes) -> bytes:
    """A PNG of pixels of three bytes each, red, green, blue, from the top left to the bottom right."""
    stride = width * 3
    rows = b"".join(b"\0" + pixels[row * stride : (row + 1) * stride] for row in range(height))
    return (
        PNG_MAGIC
        + _chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
        + _chunk(b"IDAT", zlib.compress(rows, 6))
        + _chunk(b"IEND", b"")
    )


def _ppm_header(data: bytes) -> tuple[tuple[int, int, int], int]:
    """Width, height, depth, and where the pixels begin."""
    words: list[bytes] = []
    offset = 0
    while len(words) < _PPM_FIELDS and offset < len(data):
        if data[offset : offset + 1] == b"#":
            offset = data.find(b"\n", offset) + 1 or len(data)
        elif data[offset : offset + 1].isspace():
            offset += 1
        else:
            end = offset
            while end < len(data) and not data[end : end + 1].isspace():
                end += 1
            words.append(data[offset:end])
            offset = end
    numbers = [int(word) for word in words[1:] if word.isdigit()]
    if len(numbers) != _PPM_FIELDS - 1:
        raise InternalError(BACKEND_ERROR, "the hypervisor gave a picture with a broken header")
    return (numbers[0], numbers[1], numbers[2]), offset + 1


def _chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
