"""A volume of one host copied to another, through virtd: the two need not reach each other."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path
from typing import TYPE_CHECKING, Final
from uuid import UUID

from virtd.backend.api import Hole
from virtd.backend.capabilities import VOLUME_CLONE, VOLUME_TRANSFER
from virtd.errors import unsupported
from virtd.model.guest import DiskFormat
from virtd.service.filling import fill_volume
from virtd.service.verbs.base import patience
from virtd.service.verbs.disposal import storage_of

if TYPE_CHECKING:
    from typing import Any

    from virtd.inventory import HostLink
    from virtd.operations import Run
    from virtd.service.migration_disks import MovingDisk

WINDOW_BYTES: Final = 8 * 2**20
WINDOW_S: Final = 120.0
"""The host has so long to give a window."""


async def copy_volume(
    source: HostLink, target: HostLink, disk: MovingDisk, directory: Path, uid: UUID, run: Run[Any]
) -> None:
    """Copy one volume of a guest that does not write to it; an overlay becomes one piece first.

    The bytes lie in ``directory`` meanwhile; a file that a killed daemon has left there is overwritten when
    the operation is taken up again.

    :raises ResourceExhaustedError: STORAGE_FULL.
    :raises UnsupportedError: CAPABILITY_UNSUPPORTED.
    """
    name, made = disk.source_volume, ""
    changes, storage = source.facets.volume_changes, storage_of(source)
    if disk.flatten:
        if changes is None:
            raise unsupported(VOLUME_CLONE, "the host cannot make an overlay one piece", resource=f"hosts/{source.id}")
        name = made = f"{disk.source_volume}-moving-{uid.hex[:8]}"
        await source.call(storage.delete_volume(disk.source_pool, name, run))
        clone = changes.clone_volume(
            disk.source_pool,
            disk.source_volume,
            disk.source_pool,
            name,
            disk.format,
            run,
            source_format=DiskFormat.QCOW2,  # only overlays are made one piece
        )
        await source.call(clone, timeout_s=patience(run))
    path = directory / f"{uid}-{disk.disk}"
    try:
        await _fetch(source, disk.source_pool, name, path, run)
        await fill_volume(target, disk.pool, disk.volume, str(path), disk.format, run)
    finally:
        path.unlink(missing_ok=True)
        if made:
            await source.call(storage.delete_volume(disk.source_pool, made, run))


async def _fetch(source: HostLink, pool: str, name: str, path: Path, run: Run[Any]) -> None:
    """The volume's bytes as a file that only virtd's user can read; holes stay holes."""
    transfer = source.facets.volume_transfer
    if transfer is None:
        raise unsupported(VOLUME_TRANSFER, "the host's volumes cannot be read", resource=f"hosts/{source.id}")
    content = await source.call(transfer.volume_content(pool, name))
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    with contextlib.suppress(FileNotFoundError):
        path.unlink()
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600), "wb") as file:
        position = 0
        while position < content.size_bytes:
            run.checkpoint()
            extents = await source.call(transfer.read_volume(pool, name, position, WINDOW_BYTES), timeout_s=WINDOW_S)
            if not extents:
                break
            for extent in extents:
                if isinstance(extent, Hole):
                    position += extent.length
                    file.seek(position)
                else:
                    file.write(extent)
                    position += len(extent)
            run.progress(position / content.size_bytes / 2, bytes_done=position, bytes_total=content.size_bytes)
        file.truncate(content.size_bytes)
