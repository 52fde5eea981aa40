"""The facets behind clone, trash and autostart: a guest's definition as a whole, and what lies beside it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol
from uuid import UUID

from virtd.model.guest import DiskFormat

if TYPE_CHECKING:
    from virtd.backend.api import CallContext


@dataclass(frozen=True, slots=True)
class DiskFile:
    """What a disk is to read and write from now on."""

    path: str
    format: DiskFormat


class AutostartFacet(Protocol):
    """The hypervisor's own list of guests that start with the host."""

    async def get_autostart(self, uuid: UUID) -> bool:
        """Whether the guest starts with its host.

        :raises NotFoundError: GUEST_NOT_FOUND.
        """

    async def set_autostart(self, uuid: UUID, context: CallContext, *, enabled: bool) -> None:
        """Put it on the list, or take it off.  Idempotent; the guest itself is not touched.

        :raises NotFoundError: GUEST_NOT_FOUND.
        """


class DefinitionFacet(Protocol):
    """A guest's definition as the hypervisor's own text: nothing that virtd does not model is lost.

    The text is opaque to the core, which keeps it and hands it back to the same host.
    """

    async def read_definition(self, uuid: UUID) -> str:
        """All that is needed to define this guest anew, records of its snapshots included.

        Memory that is saved is not part of it, nor are disks and firmware variables.

        :raises NotFoundError: GUEST_NOT_FOUND.
        """

    async def write_definition(self, uuid: UUID, name: str, definition: str, context: CallContext) -> None:
        """Define the guest of a text that :meth:`read_definition` gave, stopped, under a (new) native name.

        Idempotent, all or nothing.

        :raises AlreadyExistsError: GUEST_EXISTS, another guest has the name.
        """

    async def replace_disk_files(self, uuid: UUID, files: Mapping[str, DiskFile], context: CallContext) -> None:
        """Let disks of a stopped guest use other files from its next start on; the rest is unchanged.

        Idempotent: paths that the guest does not use are passed over.

        :param files: the new file by the path of the old one.
        :raises FailedPreconditionError: INVALID_STATE, the guest is active.
        """

    async def read_variables(self, uuid: UUID) -> bytes | None:
        """A guest's firmware variables (UEFI's NVRAM); None: it has none (yet)."""

    async def write_variables(self, uuid: UUID, data: bytes, context: CallContext) -> None:
        """Give a stopped guest these firmware variables.  Idempotent.

        :raises FailedPreconditionError: INVALID_STATE, the guest is active.
        """
