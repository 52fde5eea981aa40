"""Volumes made of files of the daemon's machine, on hosts near and far."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from virtd.backend import capabilities as cap
from virtd.backend.api import VolumeRequest
from virtd.errors import unsupported
from virtd.service.core import is_local
from virtd.service.verbs.base import patience

if TYPE_CHECKING:
    from typing import Any

    from virtd.inventory import HostLink
    from virtd.model.guest import DiskFormat
    from virtd.operations import Run


async def fill_volume(link: HostLink, pool: str, name: str, path: str, format_: DiskFormat, run: Run[Any]) -> None:
    """Make a volume of a file of this machine; the bytes and the format stay.

    :raises AlreadyExistsError: VOLUME_EXISTS.
    :raises ResourceExhaustedError: STORAGE_FULL.
    :raises UnsupportedError: CAPABILITY_UNSUPPORTED, the host takes no files from here.
    """
    transfer = link.facets.volume_transfer
    if transfer is not None:
        await link.call(transfer.upload_volume(pool, name, path, format_, run), timeout_s=patience(run))
        return
    storage = link.facets.storage
    if storage is None or not is_local(link.config):
        raise unsupported(cap.VOLUMES, "the host takes no files of the daemon's machine", resource=f"hosts/{link.id}")
    request = VolumeRequest(pool, name, format_, source_path=path, source_format=format_)
    await link.call(storage.create_volume(request, run), timeout_s=patience(run))


@contextlib.contextmanager
def private_file(directory: Path, name: str, data: bytes) -> Iterator[Path]:
    """A file that only the daemon's user can read, gone after the block.

    One that a killed daemon has left is overwritten when its operation is taken up again.
    """
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    path = directory / name
    path.unlink(missing_ok=True)
    try:
        with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600), "wb") as file:
            file.write(data)
        yield path
    finally:
        path.unlink(missing_ok=True)
