"""The facets of storage beyond listing, creating and deleting volumes.

Part of :mod:`virtd.backend.api`, whose rules hold here too; import from there.  A facet that changes
volumes of a pool is offered beside :class:`virtd.backend.api.StorageFacet`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from virtd.model.guest import DiskFormat
from virtd.model.storage import Pool, PoolKind, Volume

if TYPE_CHECKING:
    from virtd.backend.api import CallContext


@dataclass(frozen=True, slots=True)
class PoolRequest:
    """A pool to define.

    :param path: DIR: its directory; NFS: where it is mounted; LOGICAL: empty.
    :param server: NFS: name or address of the server.
    :param export: NFS: the directory that the server exports.
    :param volume_group: LOGICAL: an LVM volume group that exists.
    """

    name: str
    kind: PoolKind
    path: str = ""
    server: str = ""
    export: str = ""
    volume_group: str = ""
    autostart: bool = False


class PoolFacet(Protocol):
    """Pools: define, start, stop, forget.  ``Pool.name`` is the bare id here."""

    def lower_pool(self, request: PoolRequest) -> str:
        """The native configuration.  Pure: no I/O, same input, same output."""

    async def define_pool(self, request: PoolRequest, context: CallContext) -> Pool:
        """Make the pool known, stopped, and make what it needs (a directory, a mount point) where it is missing.

        Never formats a device and never makes a volume group.  Idempotent: a pool of this name with the same
        place is defined anew.

        :raises UnsupportedError: the host has no pools of this kind; the reason says why.
        :raises AlreadyExistsError: POOL_EXISTS, another pool has this name or this place.
        """

    async def start_pool(self, pool: str, context: CallContext) -> Pool:
        """Make its volumes usable.  Idempotent.

        :raises NotFoundError: POOL_NOT_FOUND.
        """

    async def stop_pool(self, pool: str, context: CallContext) -> Pool:
        """Let it go; nothing in it changes.  Idempotent.

        :raises NotFoundError: POOL_NOT_FOUND.
        """

    async def refresh_pool(self, pool: str, context: CallContext) -> Pool:
        """Look again at what is in it.

        :raises NotFoundError: POOL_NOT_FOUND.
        :raises FailedPreconditionError: POOL_INACTIVE.
        """

    async def set_pool_autostart(self, pool: str, *, autostart: bool) -> Pool:
        """Whether the hypervisor starts it with itself.  Idempotent.

        :raises NotFoundError: POOL_NOT_FOUND.
        """

    async def delete_pool(self, pool: str, context: CallContext, *, remove_directory: bool = False) -> None:
        """Stop and forget it.  Its volumes stay where they are.  Idempotent.

        :param remove_directory: remove its directory as well, which must be empty.
        :raises FailedPreconditionError: POOL_NOT_EMPTY; the pool is then as it was.
        """


class VolumeChangeFacet(Protocol):
    """Resize and clone volumes of guests that do not run."""

    async def resize_volume(
        self, pool: str, name: str, capacity_bytes: int, context: CallContext, *, allow_shrink: bool = False
    ) -> Volume:
        """Change the size that a guest sees.  Idempotent.

        :raises NotFoundError: POOL_NOT_FOUND or VOLUME_NOT_FOUND.
        :raises FailedPreconditionError: SHRINK_REFUSED, without ``allow_shrink``.
        :raises ResourceExhaustedError: STORAGE_FULL; the volume is as it was.
        """

    async def clone_volume(
        self,
        source_pool: str,
        source: str,
        pool: str,
        name: str,
        format: DiskFormat,  # noqa: A002 - the API's name
        context: CallContext,
        *,
        source_format: DiskFormat | None = None,
    ) -> Volume:
        """Make a volume that stands alone, with the source's content in this format.

        Reports bytes where it can.  A cancel undoes it; where the native copy cannot be aborted, after its end.

        :param source_format: what the guest that it belongs to takes it for; None: what the host takes it for.  A
            guest can write on its raw disk what looks like an image that is based on a file of the host: such a disk
            is copied as it is or refused, never followed.

        :raises NotFoundError: POOL_NOT_FOUND or VOLUME_NOT_FOUND (the source).
        :raises AlreadyExistsError: VOLUME_EXISTS; the existing volume is not touched.
        :raises InvalidArgumentError: IMAGE_INVALID, it is not what ``source_format`` says.
        :raises ResourceExhaustedError: STORAGE_FULL; nothing is left behind.
        """


@dataclass(frozen=True, slots=True)
class Hole:
    """So many zero bytes, which take no room."""

    length: int


Extent = bytes | Hole
"""A part of a volume's content."""


@dataclass(frozen=True, slots=True)
class VolumeContent:
    """What there is to read of a volume: the bytes of its file, which for qcow2 are not those that a guest sees.

    :param etag: changes whenever the content may have changed.
    """

    size_bytes: int
    format: str
    etag: str


class VolumeTransferFacet(Protocol):
    """Content of volumes, to and from the daemon's machine, wherever the host is."""

    async def upload_volume(self, pool: str, name: str, path: str, format: DiskFormat, context: CallContext) -> Volume:  # noqa: A002 - the API's name
        """Make a volume of a file of the *daemon's* machine; the bytes and the format stay.

        The file has been checked: it is of this format and stands alone.  Reports bytes; a cancel takes effect
        within seconds and leaves nothing.

        :raises NotFoundError: POOL_NOT_FOUND.
        :raises AlreadyExistsError: VOLUME_EXISTS; the existing volume is not touched.
        :raises ResourceExhaustedError: STORAGE_FULL; nothing is left behind.
        """

    async def volume_content(self, pool: str, name: str) -> VolumeContent:
        """What :meth:`read_volume` would read.

        :raises NotFoundError: POOL_NOT_FOUND or VOLUME_NOT_FOUND.
        """

    async def read_volume(self, pool: str, name: str, offset: int, length: int) -> Sequence[Extent]:
        """The bytes from ``offset``, in order: ``length`` of them, or fewer at the end.

        :param length: some MiB at most: all of it is held in memory.
        :raises NotFoundError: POOL_NOT_FOUND or VOLUME_NOT_FOUND.
        """
