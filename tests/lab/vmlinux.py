"""Unpack a Linux kernel image: Xen starts the ELF file inside it at once, and otherwise unpacks it slowly itself."""

from __future__ import annotations

import lzma
import struct
import zlib
from pathlib import Path

from tests.guests.tools import GuestBuildError, run

_SECTOR = 512
_SETUP_SECTORS = 0x1F1
_PAYLOAD = 0x248
_XZ, _GZIP, _ZSTD = b"\xfd7zXZ\0", b"\x1f\x8b", b"\x28\xb5\x2f\xfd"
_WITH_HEADER = 31


def unpack(image: Path) -> bytes:
    """Return the ELF file in a bzImage.

    The fields are those of the Linux boot protocol (``setup_sects``, ``payload_offset``, ``payload_length``).

    :raises GuestBuildError: when it is packed in a way that is not known here.
    """
    data = image.read_bytes()
    start = ((data[_SETUP_SECTORS] or 4) + 1) * _SECTOR
    offset, length = struct.unpack_from("<II", data, _PAYLOAD)
    payload = data[start + offset :][:length]
    if payload.startswith(_XZ):
        elf = lzma.LZMADecompressor(format=lzma.FORMAT_XZ).decompress(payload)
    elif payload.startswith(_GZIP):
        elf = zlib.decompressobj(_WITH_HEADER).decompress(payload)
    elif payload.startswith(_ZSTD):
        # The last four bytes are the kernel's own: the size when unpacked.
        elf = run("zstd", "-dcq", stdin=payload[:-4])
    else:
        raise GuestBuildError(f"{image}: a kernel that is packed in an unknown way ({payload[:4].hex()})")
    if not elf.startswith(b"\x7fELF"):
        raise GuestBuildError(f"{image}: what is packed in it is no ELF file")
    return elf
