"""The facet behind UpdateGuest: what a change does, and doing it.

Part of :mod:`virtd.backend.api`, whose rules hold here too; import from there.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, Protocol
from uuid import UUID

from virtd.model.guest import DiskStatus

if TYPE_CHECKING:
    from virtd.backend.api import CallContext, ResolvedGuest


class UpdateEffect(StrEnum):
    """What a change of a field does."""

    NONE = "NONE"
    LIVE = "LIVE"
    NEXT_BOOT = "NEXT_BOOT"
    REPLACE = "REPLACE"
    REJECTED = "REJECTED"


@dataclass(frozen=True, slots=True)
class FieldEffect:
    """What the change of one field would do; a reason is mandatory unless LIVE.

    ``field`` is a path as :mod:`virtd.model.changes` makes them.
    """

    field: str
    effect: UpdateEffect
    reason: str = ""


class UpdateFacet(Protocol):
    """Change a guest that exists, keeping every native part that the change is not about.

    ``current`` is the guest as the core knows it, ``wanted`` as it shall be: what is equal in both is
    left as the hypervisor has it, hand-made parts included.  Files of new disks exist before a call.
    """

    async def configured_disks(self, uuid: UUID) -> Sequence[DiskStatus]:
        """The disks that the guest is started with next, named as in its spec, with path, format and size.

        A guest that runs may have others now.  A size that is not known is None.

        :raises NotFoundError: GUEST_NOT_FOUND.
        """

    async def plan_update(
        self, current: ResolvedGuest, wanted: ResolvedGuest, fields: Sequence[str]
    ) -> Sequence[FieldEffect]:
        """What the change of each field would do to the guest as it is now.  Reads; no side effect.

        LIVE only if the guest runs (or is paused), and the hypervisor can do it to *this* guest now.
        For a guest that does not run: NEXT_BOOT, REPLACE or REJECTED; LIVE for what takes effect at once.

        :raises NotFoundError: GUEST_NOT_FOUND.
        """

    async def apply_live(
        self,
        current: ResolvedGuest,
        wanted: ResolvedGuest,
        fields: Sequence[str],
        context: CallContext,
        *,
        force: bool = False,
    ) -> None:
        """Make these fields, which :meth:`plan_update` called LIVE, so in the running guest; not for its next start.

        Idempotent: what is so already is left.  With ``current`` and ``wanted`` exchanged it takes back what it
        did, in part too.

        :param force: open a CD-ROM tray that the guest has locked.
        :raises FailedPreconditionError: DEVICE_BUSY, the guest does not let go of a device, which it keeps;
            INVALID_STATE, it does not run.
        :raises UnsupportedError: a field that cannot be changed live here; nothing was done.
        """

    async def apply_config(self, current: ResolvedGuest, wanted: ResolvedGuest, context: CallContext) -> None:
        """Change what the guest is started with next.  Idempotent, all or nothing.

        :raises InvalidArgumentError: FIELD_UNSUPPORTED, the hypervisor refuses the result.
        """

    async def native_config(self, current: ResolvedGuest, wanted: ResolvedGuest) -> str:
        """What :meth:`apply_config` would write.  Reads; no side effect."""

    async def resize_disk(self, uuid: UUID, path: str, capacity_bytes: int, context: CallContext) -> None:
        """Make a disk's file larger, so that a running guest sees it at once.  Idempotent; never shrinks.

        :raises FailedPreconditionError: INVALID_STATE, its present state does not allow it.
        :raises ResourceExhaustedError: STORAGE_FULL.
        """
