"""Uploads: files that are on their way to the daemon."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum

from virtd.model.guest import DiskFormat


class UploadKind(StrEnum):
    """What an upload becomes."""

    VOLUME = "VOLUME"
    IMAGE = "IMAGE"


@dataclass(frozen=True, slots=True)
class Upload:
    """``uploads/{upload}``: a file that has not arrived as a whole, or has not been committed.

    ``target`` is the name of the volume or image that it becomes.  ``received_bytes`` from the beginning
    are safe on disk.  ``operation`` commits it now, or is empty.  It is removed at ``expire_time`` unless
    more bytes come.
    """

    name: str
    kind: UploadKind
    target: str
    format: DiskFormat
    size_bytes: int
    received_bytes: int = 0
    operation: str = ""
    caller: str = ""
    create_time: datetime | None = None
    update_time: datetime | None = None
    expire_time: datetime | None = None

    @property
    def complete(self) -> bool:
        """Whether all bytes are there."""
        return self.received_bytes == self.size_bytes
