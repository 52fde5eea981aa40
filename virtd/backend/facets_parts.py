"""The facet for large files that are sent to a host in parts, so that what was cut is gone on with.

Part of :mod:`virtd.backend.api`, whose rules hold here too; import from there.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

from virtd.model.guest import DiskFormat

if TYPE_CHECKING:
    from virtd.backend.api import CallContext


class VolumePartsFacet(Protocol):
    """Beside :class:`virtd.backend.api.VolumeTransferFacet`, for files that take long to send."""

    async def upload_part(
        self,
        pool: str,
        name: str,
        path: str,
        format: DiskFormat,  # noqa: A002 - the API's name
        offset: int,
        length: int,
        context: CallContext,
    ) -> None:
        """Write bytes of a file of the *daemon's* machine into a volume, at the same place.

        The part at offset 0 makes the volume, as long as the file; every other one needs it.  When the last
        part is written, the volume is what ``upload_volume`` would have made.  Idempotent but for offset 0.
        Reports bytes of the whole file; a cancel takes effect within seconds and leaves the volume.

        :raises NotFoundError: POOL_NOT_FOUND or VOLUME_NOT_FOUND.
        :raises AlreadyExistsError: VOLUME_EXISTS, at offset 0; the existing volume is not touched.
        :raises ResourceExhaustedError: STORAGE_FULL; the volume stays as far as it was written.
        """
