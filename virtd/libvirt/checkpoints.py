"""Checkpoints of virtd's: marks in the history of qcow2 disks, kept as bitmaps inside the images.

What libvirt 9.0 and QEMU 7.2 do, measured:

* a checkpoint can be set only while the guest runs; for one that does not, the bitmap is added by
  qemu-img, and libvirt is told (``CREATE_REDEFINE``);
* one of a stopped guest can only be forgotten, its bitmap stays: qemu-img removes it;
* a QEMU that was killed leaves its bitmaps marked as in use: they are worthless, libvirt says 109;
* **a revert to an internal snapshot kills the guest if its image has any bitmap** ("Device has active
  dirty bitmaps"), and offline snapshots are refused while a checkpoint is known: so both drop ours first.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import time
from collections.abc import Sequence
from typing import Any, Final

import libvirt

from virtd.backend.facets_backup import CHECKPOINT_PREFIX
from virtd.errors import BACKEND_ERROR, InternalError, NativeError
from virtd.libvirt.guests import is_active
from virtd.libvirt.xml.backup import DomainCheckpoint
from virtd.libvirt.xml.disk import Disk
from virtd.libvirt.xml.domain import Domain

_OLD_VERSION: Final = 2
_METADATA_ONLY: Final = libvirt.VIR_DOMAIN_CHECKPOINT_DELETE_METADATA_ONLY
_TOOL_S: Final = 60.0
_ABSENT: Final = (libvirt.VIR_ERR_NO_SUPPORT, libvirt.VIR_ERR_INVALID_ARG)


def names(domain: Any) -> list[str]:
    """All checkpoints of a guest, whoever made them, parents first."""
    try:
        found = domain.listAllCheckpoints(libvirt.VIR_DOMAIN_CHECKPOINT_LIST_TOPOLOGICAL)
    except libvirt.libvirtError as error:
        if error.get_error_code() in _ABSENT:
            return []
        raise
    return [str(entry.getName()) for entry in found]


def ours(domain: Any) -> list[str]:
    """Those of virtd's."""
    return [name for name in names(domain) if name.startswith(CHECKPOINT_PREFIX)]


def has_disk(disk: Disk) -> bool:
    """Whether a disk's changes can be tracked: its image is a qcow2 file that the guest writes to."""
    if disk.kind != "file" or disk.format != "qcow2" or disk.device != "disk" or disk.read_only:
        return False
    return _version(disk.path) != _OLD_VERSION


def why_not(disk: Disk) -> str:
    """Why a disk's changes cannot be tracked."""
    if disk.format != "qcow2":
        return f"its image is {disk.format}; changes are tracked inside qcow2 images only"
    return (
        "its image is qcow2 of version 2, which can hold no record of changes; stop the guest and run "
        "qemu-img amend -f qcow2 -o compat=1.1 on it"
    )


def _version(path: str) -> int | None:
    """The version in a qcow2 image's header; None where it cannot be read."""
    try:
        with open(path, "rb") as file:  # noqa: PTH123 - a plain read
            head = file.read(8)
    except OSError:
        return None
    return int.from_bytes(head[4:8], "big") if len(head) == 8 else None  # noqa: PLR2004 - magic and version


def delete(domain: Any, name: str) -> None:
    """Forget a checkpoint and remove its bitmaps.  Idempotent, also for one that is broken."""
    active = is_active(domain)
    try:
        found = domain.checkpointLookupByName(name)
    except libvirt.libvirtError as error:
        if error.get_error_code() not in (libvirt.VIR_ERR_NO_DOMAIN_CHECKPOINT, *_ABSENT):
            raise
    else:
        try:
            found.delete(0 if active else _METADATA_ONLY)
        except libvirt.libvirtError:
            # Its bitmap is lost or broken: there is nothing left that could be merged.
            found.delete(_METADATA_ONLY)
    if not active:
        for disk in _tracked(domain):
            remove_bitmaps(disk.path, {name})


def drop_all(domain: Any) -> list[str]:
    """Forget all of virtd's checkpoints of a guest; the names.  The next backup is a full one."""
    dropped = ours(domain)
    # The newest first: then nothing is merged into one that goes as well.
    for name in reversed(dropped):
        delete(domain, name)
    return dropped


def prepare_revert(domain: Any) -> list[str]:
    """Make a guest ready to be reverted; the checkpoints that were dropped.

    A guest that still has a broken bitmap is stopped, which the revert would do as well: a bitmap that a
    killed QEMU has left can only be removed then.
    """
    dropped = drop_all(domain)
    stale = {disk.path: left for disk in _tracked(domain) if (left := _own_bitmaps(disk.path))}
    if stale and is_active(domain):
        domain.destroy()
    for path, left in stale.items():
        remove_bitmaps(path, left)
    return dropped


def add_offline(domain: Any, name: str, disks: Sequence[Disk], parent: str) -> None:
    """Set a checkpoint on the disks of a guest that does not run.  All or nothing.

    :raises InternalError: BACKEND_ERROR.
    :raises libvirt.libvirtError: libvirt refuses to know of it.
    """
    try:
        for disk in disks:
            if name not in bitmaps(disk.path):
                _tool("qemu-img", "bitmap", "--add", "-f", "qcow2", disk.path, name)
        description = domain.XMLDesc(libvirt.VIR_DOMAIN_XML_INACTIVE | libvirt.VIR_DOMAIN_XML_SECURE)
        targets = {disk.target for disk in disks}
        everything = tuple((disk.target, disk.target in targets) for disk in Domain.parse(description).disks)
        checkpoint = DomainCheckpoint(name, everything, parent)
        domain.checkpointCreateXML(
            checkpoint.to_xml(description, int(time.time())), libvirt.VIR_DOMAIN_CHECKPOINT_CREATE_REDEFINE
        )
    except BaseException:
        for disk in disks:
            with contextlib.suppress(InternalError):
                remove_bitmaps(disk.path, {name})
        raise


def bitmaps(path: str) -> dict[str, bool]:
    """The bitmaps in a qcow2 image, and whether each can be used.  Empty where the file cannot be read."""
    if not os.access(path, os.R_OK):
        return {}
    out = _tool("qemu-img", "info", "-U", "--output=json", "-f", "qcow2", path)
    data = json.loads(out).get("format-specific", {}).get("data", {})
    return {entry["name"]: "in-use" not in entry["flags"] for entry in data.get("bitmaps", ())}


def remove_bitmaps(path: str, wanted: set[str]) -> None:
    """Remove bitmaps of an image that no process uses.  Idempotent.

    :raises InternalError: BACKEND_ERROR.
    """
    for name in set(bitmaps(path)) & wanted:
        _tool("qemu-img", "bitmap", "--remove", "-f", "qcow2", path, name)


def _own_bitmaps(path: str) -> set[str]:
    return {name for name in bitmaps(path) if name.startswith(CHECKPOINT_PREFIX)}


def _tracked(domain: Any) -> list[Disk]:
    return [disk for disk in Domain.parse(domain.XMLDesc(0)).disks if has_disk(disk)]


def _tool(*command: str) -> bytes:
    """Run qemu-img on a worker thread; it is quick, and killed if it is not.

    :raises InternalError: BACKEND_ERROR with what it says.
    """
    environment = {"PATH": os.environ.get("PATH", os.defpath), "LC_ALL": "C"}
    try:
        done = subprocess.run(
            command, stdin=subprocess.DEVNULL, capture_output=True, check=False, timeout=_TOOL_S, env=environment
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise InternalError(BACKEND_ERROR, f"{command[0]} {command[1]} could not be run: {error}") from error
    if done.returncode:
        said = done.stderr.decode(errors="replace").strip()[-300:]
        native = NativeError(f"{command[0]} {command[1]}", str(done.returncode), said)
        raise InternalError(BACKEND_ERROR, f"{command[0]} {command[1]} failed: {said}", native=native)
    return done.stdout
