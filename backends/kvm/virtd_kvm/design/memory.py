"""The guest's memory: how much, and by what it is backed."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from virtd.backend.api import ResolvedGuest
from virtd.backend.notes import Notes
from virtd.libvirt.xml.controller import Balloon
from virtd.libvirt.xml.tuning import MemoryBacking
from virtd.model.devices import FilesystemKind, MemorySpec
from virtd_kvm.design.platform import Platform

_BALLOON_PERIOD_S: Final = 5


def balloon_of(guest: ResolvedGuest, options: Mapping[str, str]) -> Balloon:
    """``<memballoon>``; without one it has to be said, or libvirt adds it."""
    if guest.memory is not None and guest.memory.balloon is False:
        return Balloon(model="none")
    return Balloon(stats_period_s=_BALLOON_PERIOD_S if options.get("balloon_stats", "yes") == "yes" else None)


def backing_of(guest: ResolvedGuest, platform: Platform, notes: Notes) -> MemoryBacking:
    """``<memoryBacking>``.  virtiofsd reads the guest's memory, so virtiofs needs it to be shared."""
    spec = guest.memory or MemorySpec()
    if spec.hugepage_bytes and not platform.test:
        _check_pages(guest, spec.hugepage_bytes, platform, notes)
    shared = spec.shared or needs_shared_memory(guest)
    return MemoryBacking(spec.hugepage_bytes, spec.locked, "memfd" if shared else "", shared)


def needs_shared_memory(guest: ResolvedGuest) -> bool:
    """Whether something of the guest works with shared memory only."""
    return any(filesystem.kind is FilesystemKind.VIRTIOFS for filesystem in guest.filesystems)


def _check_pages(guest: ResolvedGuest, size: int, platform: Platform, notes: Notes) -> None:
    field = "spec.memory.hugepage_bytes"
    most = max(guest.max_memory_bytes or 0, guest.memory_bytes)
    if most % size:
        notes.reject(field, f"the guest's memory of {most} bytes is no multiple of a page of {size} bytes")
        return
    if not platform.huge_pages:
        return
    reserved = platform.huge_pages.get(size)
    sizes = [str(known) for known in sorted(platform.huge_pages)]
    if reserved is None:
        notes.reject(field, f"the host has no huge pages of {size} bytes", *sizes)
    elif reserved * size < most:
        notes.reject(
            field,
            f"the guest needs {most // size} pages of {size} bytes, and the host has reserved {reserved}: "
            "reserve more (vm.nr_hugepages), or give the guest ordinary pages",
            "0",
        )
