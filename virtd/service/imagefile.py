"""Whether a file is the disk image that it is said to be, and stands alone.

Images come from strangers.  So the header is read here first, by code that follows nothing; only a
file that passes is shown to ``qemu-img``, with the format given, in a process with limits.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import shutil
import struct
from pathlib import Path
from typing import Any, Final

from virtd.errors import (
    IMAGE_INVALID,
    LIBVIRT_MISSING,
    FieldViolation,
    InvalidArgumentError,
    UnavailableError,
)
from virtd.model.guest import DiskFormat

INFO_S: Final = 60.0
_LIMITS: Final = ("--as=1073741824", "--cpu=30", "--core=0")
_HEAD: Final = 1024
_SECTOR: Final = 512
_CAPACITY_MAX: Final = 2**50

_QCOW2: Final = b"QFI\xfb"
# magic, version, backing file (offset, size), cluster bits, size, encryption, L1 size and offset,
# refcount table offset and clusters, snapshots; version 3 goes on with the feature bits.
_QCOW2_HEADER: Final = struct.Struct(">4sIQIIQIIQQIIQ")
_QCOW2_VERSIONS: Final = (2, 3)
_CLUSTER_BITS: Final = range(9, 22)
_CORRUPT, _DATA_FILE, _KNOWN_FEATURES = 1 << 1, 1 << 2, 0b11111

# What begins like this is no raw disk, or nobody could tell whether a guest wrote it there to fool us.
_OTHERS: Final = (
    (0, _QCOW2, "qcow2"),
    (0, b"QED\0", "QED"),
    (0, b"KDMV", "VMDK"),
    (0, b"COWD", "VMDK"),
    (0, b"# Disk DescriptorFile", "VMDK"),
    (0, b"conectix", "VHD"),
    (0, b"vhdxfile", "VHDX"),
    (0, b"LUKS\xba\xbe", "LUKS (encrypted)"),
    (0, b"WithoutFreeSpace", "Parallels"),
    (0, b"WithouFreSpacExt", "Parallels"),
    (0, b"Bochs Virtual HD Image", "Bochs"),
    (64, b"\x7f\x10\xda\xbe", "VDI"),
    (0, b"\x1f\x8b", "gzip (compressed)"),
    (0, b"\xfd7zXZ\0", "xz (compressed)"),
    (0, b"\x28\xb5\x2f\xfd", "zstd (compressed)"),
    (0, b"BZh", "bzip2 (compressed)"),
    (0, b"PK\x03\x04", "zip (compressed)"),
)


async def inspect(path: str, format_: DiskFormat) -> dict[str, Any]:
    """What ``qemu-img info`` says of an image that is what it is said to be and stands alone.

    :raises InvalidArgumentError: IMAGE_INVALID: of another format, damaged, encrypted, with a backing
        file or its data in another file.
    :raises UnavailableError: LIBVIRT_MISSING, there is no qemu-img.
    """
    await asyncio.to_thread(check_header, path, format_)
    facts = await _qemu_img_info(path, format_)
    if facts.get("backing-filename") or facts.get("full-backing-filename"):
        raise _invalid(path, "has a backing file; import a stand-alone image (qemu-img convert)", "path")
    if facts.get("format-specific", {}).get("data", {}).get("data-file"):
        raise _invalid(path, "keeps its data in another file; import a stand-alone image (qemu-img convert)", "path")
    if facts.get("encrypted"):
        raise _invalid(path, "is encrypted; import it decrypted (qemu-img convert)", "path")
    if not 0 < int(facts["virtual-size"]) <= _CAPACITY_MAX:
        raise _invalid(path, f"shows a guest {facts['virtual-size']} bytes", "path")
    return facts


def check_header(path: str, format_: DiskFormat) -> None:
    """Refuse what the first bytes give away.  Follows nothing that they say.

    :raises InvalidArgumentError: IMAGE_INVALID.
    """
    try:
        with Path(path).open("rb") as file:
            head = file.read(_HEAD)
            file.seek(0, 2)
            size = file.tell()
    except OSError as error:
        raise _invalid(path, f"cannot be read: {error.strerror}", "path") from error
    if format_ is DiskFormat.QCOW2:
        _check_qcow2(path, head, size)
        return
    for offset, magic, name in _OTHERS:
        if head[offset:].startswith(magic):
            raise _invalid(path, f"is not RAW but {name}: state its true format, or convert it (qemu-img convert)")
    if size == 0 or size % _SECTOR:
        raise _invalid(path, f"has {size} bytes; a raw disk has a multiple of {_SECTOR}: it may be cut", "path")


def _check_qcow2(path: str, head: bytes, size: int) -> None:
    if not head.startswith(_QCOW2):
        raise _invalid(path, "is not a QCOW2 image: it does not begin like one")
    if len(head) < _QCOW2_HEADER.size:
        raise _invalid(path, "is cut: there is no whole header", "path")
    (_, version, backing, _, bits, capacity, crypt, _, l1_offset, refcounts, _, _, _) = _QCOW2_HEADER.unpack_from(head)
    if version not in _QCOW2_VERSIONS:
        raise _invalid(path, f"has version {version} of QCOW2, which is not known", "path")
    if backing:
        raise _invalid(path, "has a backing file; import a stand-alone image (qemu-img convert)", "path")
    if crypt:
        raise _invalid(path, "is encrypted; import it decrypted (qemu-img convert)", "path")
    _check_features(path, int.from_bytes(head[72:80], "big") if version > _QCOW2_VERSIONS[0] else 0)
    if bits not in _CLUSTER_BITS or not 0 < capacity <= _CAPACITY_MAX:
        raise _invalid(path, f"has a header that makes no sense ({capacity} bytes, clusters of 2^{bits})", "path")
    if max(l1_offset, refcounts) >= size:
        raise _invalid(path, "is cut: its tables lie beyond its end", "path")


def _check_features(path: str, features: int) -> None:
    if features & _DATA_FILE:
        raise _invalid(path, "keeps its data in another file; import a stand-alone image (qemu-img convert)", "path")
    if features & _CORRUPT:
        raise _invalid(path, "is marked as corrupt; repair it first (qemu-img check -r)", "path")
    if features & ~_KNOWN_FEATURES:
        raise _invalid(path, "has features that are not known", "path")


async def _qemu_img_info(path: str, format_: DiskFormat) -> dict[str, Any]:
    command = ["qemu-img", "info", "--output=json", "-f", format_.value.lower(), path]
    if shutil.which("prlimit") is not None:
        command = ["prlimit", *_LIMITS, *command]
    if shutil.which("qemu-img") is None:
        raise UnavailableError(LIBVIRT_MISSING, "images cannot be looked at: qemu-img is not there; install qemu-utils")
    process = await asyncio.create_subprocess_exec(
        *command, stdin=asyncio.subprocess.DEVNULL, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE
    )
    try:
        async with asyncio.timeout(INFO_S):
            out, err = await process.communicate()
    except TimeoutError:
        raise _invalid(path, f"cannot be looked at within {INFO_S:g} s", "path") from None
    finally:
        if process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                process.kill()
            await process.wait()
    if process.returncode != 0:
        detail = err.decode(errors="replace").strip().splitlines()[-1:] or ["unknown"]
        raise _invalid(path, f"is not a {format_.value} image: {detail[0]}")
    facts: dict[str, Any] = json.loads(out)
    return facts


def _invalid(path: str, what: str, field: str = "format") -> InvalidArgumentError:
    name = Path(path).name
    return InvalidArgumentError(
        IMAGE_INVALID, f"{name} {what}", violations=(FieldViolation(field, f"the file {what}"),)
    )
