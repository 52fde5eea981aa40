"""What is on the disks of fake guests, as bytes: so that a backup has something to copy, and a copy can be seen.

The first disk that a guest can write to holds its files; the others are empty.
"""

from __future__ import annotations

import base64
import json
import struct
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Final

from virtd.backend.api import ResolvedDisk, ResolvedGuest
from virtd.model.guest import DiskDevice
from virtd.testing.fake import lowering

if TYPE_CHECKING:
    from virtd.testing.fake.native import NativeHypervisor
    from virtd.testing.fake.state import FakeGuest, FakeVolume

_MAGIC: Final = b"virtd fake disk\n"
_SIZE: Final = struct.Struct(">Q")
_HEAD_MAX: Final = 4 * 2**20


def writable(disks: Sequence[ResolvedDisk]) -> list[ResolvedDisk]:
    """The disks that a guest can write to."""
    return [disk for disk in disks if disk.device is DiskDevice.DISK and not disk.read_only]


def image_of(files: Mapping[str, bytes]) -> bytes:
    """The beginning of a disk with these files; the rest of it is zero.  Empty without files."""
    if not files:
        return b""
    text = json.dumps({path: base64.b64encode(data).decode() for path, data in sorted(files.items())}).encode()
    return _MAGIC + _SIZE.pack(len(text)) + text


def files_of(image: bytes) -> dict[str, bytes]:
    """Inverse of :func:`image_of`; none where the disk holds something else."""
    start = len(_MAGIC) + _SIZE.size
    if not image.startswith(_MAGIC) or len(image) < start:
        return {}
    (size,) = _SIZE.unpack_from(image, len(_MAGIC))
    found = json.loads(image[start : start + size])
    return {path: base64.b64decode(data) for path, data in found.items()}


def image_head(path: str) -> str:
    """The beginning of a raw file that is a fake disk, in base64; else empty."""
    try:
        with Path(path).open("rb") as file:
            head = file.read(_HEAD_MAX)
    except OSError:
        return ""
    return base64.b64encode(head).decode() if head.startswith(_MAGIC) else ""


def disk_of(guest: FakeGuest) -> bytes:
    """The beginning of the guest's first disk as it is now."""
    return image_of(guest.files.disk)


def content_of(native: NativeHypervisor, volume: FakeVolume) -> str:
    """The beginning of a volume as it is now, in base64: a guest may have written to it."""
    return content_at(native, volume.path) or volume.content


def content_at(native: NativeHypervisor, path: str) -> str:
    """What a guest has on its first disk, where that is the file at this path; in base64, empty if nothing."""
    for guest in native.guests.values():
        if any(disk.path == path for disk in disks_of(guest)[:1]):
            return base64.b64encode(disk_of(guest)).decode()
    return ""


def is_disk(native: NativeHypervisor, path: str) -> bool:
    """Whether a guest has the file at this path as a disk."""
    return any(disk.path == path for guest in native.guests.values() for disk in disks_of(guest))


def files_at(native: NativeHypervisor, path: str) -> dict[str, bytes] | None:
    """The files on the volume at a path; None for an overlay, which shows what is below it."""
    for pool in native.pools.values():
        for volume in pool.volumes.values():
            if volume.path == path and not volume.backing_path:
                return files_of(base64.b64decode(volume.content))
    return None


def load_disks(native: NativeHypervisor, guest: ResolvedGuest) -> None:
    """A guest that was just defined finds what is on its first disk."""
    for disk in writable(guest.disks)[:1]:
        for pool in native.pools.values():
            for volume in pool.volumes.values():
                if volume.path == disk.path and volume.content:
                    native.guests[guest.uuid].files.disk.update(files_of(base64.b64decode(volume.content)))


def disks_of(guest: FakeGuest) -> list[ResolvedDisk]:
    """The disks of a guest that it can write to."""
    return writable(lowering.parse(guest.active or guest.native).disks)
