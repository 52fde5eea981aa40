"""Suspending guests of Xen: what libvirt's libxl driver answers, as seen on a real host, and what becomes of it."""

from __future__ import annotations

import libvirt
import pytest
from virtd_xen.suspend import XenSuspend

from virtd.errors import DeadlineExceededError, FailedPreconditionError
from virtd.libvirt.guests import Guests

RUNNING, PAUSED, DOWN = libvirt.VIR_DOMAIN_RUNNING, libvirt.VIR_DOMAIN_PAUSED, libvirt.VIR_DOMAIN_SHUTOFF


def failure(code: int) -> libvirt.libvirtError:
    error = libvirt.libvirtError("Failed to save domain '11' with libxenlight")
    error.err = (code, libvirt.VIR_FROM_LIBXL, str(error), 2, "", "", "", 0, 0)
    return error


class Domain:
    """One whose saves fail, if ``fails``; ``left`` is what is then left of one on the host."""

    def __init__(self, state: int, fails: libvirt.libvirtError | None = None, after: int = RUNNING) -> None:
        self._state, self._fails, self._after = state, fails, after
        self.left = False
        self.saved = False

    def state(self) -> tuple[int, int]:
        return self._state, 0

    def hasManagedSaveImage(self) -> bool:  # noqa: N802 - libvirt's name
        return self.saved

    def managedSave(self, _flags: int) -> None:  # noqa: N802 - libvirt's name
        if self._fails is not None:
            self.left, self._state = True, self._after
            raise self._fails
        self.saved, self._state = True, DOWN

    def managedSaveRemove(self, _flags: int) -> None:  # noqa: N802 - libvirt's name
        self.left = False


@pytest.fixture
def suspend() -> XenSuspend:
    return XenSuspend(Guests.__new__(Guests))  # the host is not asked


def test_a_guest_that_does_its_part(suspend: XenSuspend) -> None:
    domain = Domain(RUNNING)
    suspend.save(domain)
    assert domain.saved


def test_a_paused_guest_is_refused_before_anything_is_done(suspend: XenSuspend) -> None:
    domain = Domain(PAUSED)
    with pytest.raises(FailedPreconditionError) as refused:
        suspend.save(domain)
    assert refused.value.reason.name == "INVALID_STATE"
    assert "resume it" in refused.value.message
    assert not domain.saved


def test_a_guest_that_does_not_answer_runs_on_and_nothing_is_left(suspend: XenSuspend) -> None:
    """A start would take what a failed save leaves for the guest's memory."""
    domain = Domain(RUNNING, failure(libvirt.VIR_ERR_INTERNAL_ERROR))
    with pytest.raises(DeadlineExceededError) as ignored:
        suspend.save(domain)
    assert ignored.value.reason.name == "SUSPEND_IGNORED"
    assert "runs on" in ignored.value.message
    assert ignored.value.record.native is not None
    assert "libxenlight" in ignored.value.record.native.message
    assert not domain.left


@pytest.mark.parametrize(
    ("code", "after"),
    [(libvirt.VIR_ERR_INTERNAL_ERROR, DOWN), (libvirt.VIR_ERR_SYSTEM_ERROR, RUNNING)],
    ids=["it ended meanwhile", "the disk is full"],
)
def test_other_failures_are_told_as_they_are(suspend: XenSuspend, code: int, after: int) -> None:
    with pytest.raises(libvirt.libvirtError):
        suspend.save(Domain(RUNNING, failure(code), after))
