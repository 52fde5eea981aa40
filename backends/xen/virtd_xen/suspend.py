"""Suspend to disk on Xen, where the guest's own system has to do its part.

Xen asks the guest to suspend (``control/shutdown`` in xenstore), and only what the guest then leaves of itself can be
saved.  Seen with libvirt 9.0 and Xen 4.17: one that is still booting is waited for, and suspends as soon as its kernel
has found Xen; where that takes more than a minute, libxl calls the request off and the guest runs on.  libvirt then
leaves the beginning of a saved state behind, from which the next start would try to restore the guest.
"""

from __future__ import annotations

import contextlib
from typing import Any, Final

import libvirt

from virtd.errors import INVALID_STATE, SUSPEND_IGNORED, DeadlineExceededError, FailedPreconditionError
from virtd.libvirt.errors import code_of, native_of
from virtd.libvirt.guests import is_active, native_state
from virtd.libvirt.suspend import Suspend
from virtd.model.guest import GuestState

PAUSED: Final = (
    "a paused guest cannot be suspended on Xen, where its own system has to do its part: resume it, then suspend it"
)
IGNORED: Final = (
    "the guest did not answer Xen's request to suspend within a minute, and runs on: it is still booting, busy, or "
    "its system has no drivers for Xen"
)


class XenSuspend(Suspend):
    """Saves guests that do their part; the others run on, and nothing is left of the attempt."""

    def save(self, domain: Any) -> None:
        """See :meth:`Suspend.save`.

        :raises FailedPreconditionError: INVALID_STATE, it is paused.
        :raises DeadlineExceededError: SUSPEND_IGNORED, it runs on.
        """
        if native_state(domain).state is GuestState.PAUSED:
            raise FailedPreconditionError(INVALID_STATE, PAUSED, allowed_actions=("resume",))
        try:
            super().save(domain)
        except libvirt.libvirtError as error:
            with contextlib.suppress(libvirt.libvirtError):
                _forget(domain)
            if code_of(error) != libvirt.VIR_ERR_INTERNAL_ERROR or not _runs(domain):
                raise
            native = native_of(error, "virDomainManagedSave")
            raise DeadlineExceededError(SUSPEND_IGNORED, IGNORED, native=native) from error


def _forget(domain: Any) -> None:
    """Remove what a failed save left; libvirt itself does not say that it is there."""
    if is_active(domain):
        domain.managedSaveRemove(0)


def _runs(domain: Any) -> bool:
    with contextlib.suppress(libvirt.libvirtError):
        return native_state(domain).state is GuestState.RUNNING
    return False
