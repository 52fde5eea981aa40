"""Backups: the disks of one guest at one moment, to be read by the core.

A backend gives access to the content; what is kept, where, and in which form is the core's affair.  So a
backend needs to know neither repositories nor chains: only *checkpoints*, marks in the history of a guest's
disks since which it can tell what has changed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Protocol
from uuid import UUID

if TYPE_CHECKING:
    from virtd.backend.api import CallContext

CHECKPOINT_PREFIX: Final = "virtd-bk-"
"""Names of the marks that the core sets begin so; others are never touched."""


@dataclass(frozen=True, slots=True)
class BackupRequest:
    """What to open.

    :param checkpoint: the name of the mark to set at this moment, chosen by the core; where none can be set,
        the backup is opened without (``BackupReader.checkpoint`` is then empty and says why).
    :param since: a mark of before: only what has changed since is wanted; empty: everything.
    :param expected: of every disk that had the mark ``since``: its identity and size then.  A disk that is another
        one now makes the backup impossible, since changes cannot be told.
    """

    checkpoint: str
    since: str = ""
    expected: tuple[DiskIdentity, ...] = ()


@dataclass(frozen=True, slots=True)
class DiskIdentity:
    """Which disk a mark is about.  ``identity`` is the backend's own word (a path)."""

    name: str
    identity: str
    capacity_bytes: int


@dataclass(frozen=True, slots=True)
class SourceDisk:
    """One disk that is being backed up.

    :param incremental: its :meth:`BackupReader.extents` are the changes since ``since``; else its whole content.
    :param tracked: it has the new mark: the next backup can be incremental for it.
    :param reason: why it is not incremental, or not tracked.
    """

    name: str
    identity: str
    format: str
    capacity_bytes: int
    incremental: bool = False
    tracked: bool = False
    reason: str = ""


@dataclass(frozen=True, slots=True)
class DiskRange:
    """A range of a disk, in bytes.  ``zero``: it is known to read as zeros."""

    offset: int
    length: int
    zero: bool = False


class BackupReader(Protocol):
    """The disks of one guest, frozen in time while the guest goes on.  Its moment is that of the opening."""

    @property
    def disks(self) -> Sequence[SourceDisk]:
        """The disks, in the guest's order."""

    @property
    def left_out(self) -> Sequence[str]:
        """Disks that are not in the backup, each with the reason (a sentence)."""

    @property
    def checkpoint(self) -> str:
        """The mark that was set; empty: none, see :attr:`no_checkpoint`."""

    @property
    def no_checkpoint(self) -> str:
        """Why no mark was set, else empty."""

    async def extents(self, disk: str) -> Sequence[DiskRange]:
        """What to read, ascending, without overlaps.

        Of a disk that is not incremental what is left out reads as zeros; of one that is, it is unchanged.
        """

    async def read(self, disk: str, offset: int, length: int) -> bytes:
        """So many bytes from there.

        :raises FailedPreconditionError: INVALID_STATE, the guest was powered off: the content is lost.
        """

    async def close(self) -> None:
        """End it, and remove whatever it needed; marks stay.  Idempotent."""


class BackupFacet(Protocol):
    """Consistent copies of the disks of guests, running or not."""

    async def open_backup(self, uuid: UUID, request: BackupRequest, context: CallContext) -> BackupReader:
        """Fix the moment and make it readable.  One at a time for each guest; it does not stop the guest.

        :raises FailedPreconditionError: BACKUP_CHAIN_BROKEN: what has changed since ``request.since`` cannot be
            told; the message is the reason.  Nothing has happened.
        :raises FailedPreconditionError: INVALID_STATE: somebody else is backing the guest up.
        :raises UnsupportedError: this guest cannot be backed up; the reason says why.
        """

    async def abort_backup(self, uuid: UUID, context: CallContext) -> None:
        """End what an earlier process of virtd left open for this guest.  Idempotent, also without any."""

    async def list_checkpoints(self, uuid: UUID) -> Sequence[str]:
        """The marks of virtd's that the guest has, oldest first."""

    async def delete_checkpoint(self, uuid: UUID, name: str, context: CallContext) -> None:
        """Forget a mark; older and newer ones stay usable.  Idempotent, also without the guest."""
