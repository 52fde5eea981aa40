"""What libvirt's job statistics tell of a migration, as progress that never goes back."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from virtd.backend.api import CallContext

_PAGE: Final = 4096


class Progress:
    """Follows one migration.

    :param memory_bytes: the guest's memory: while disks are mirrored, libvirt does not count it yet.
    """

    def __init__(self, context: CallContext, memory_bytes: int = 0) -> None:
        self._context: Final = context
        self._memory: Final = memory_bytes
        self.passes = 0
        """Which pass over the memory is under way, from 1; 0: none yet."""
        self._done = 0
        self._total = 0

    def report(self, stats: Mapping[str, Any]) -> None:
        """Take a look at the job's statistics; an empty one tells nothing."""
        memory, disks = int(stats.get("memory_total", 0)), int(stats.get("disk_total", 0))
        if not memory and not disks:
            return
        passes = int(stats.get("memory_iteration", 0))
        self._total = max(self._total, max(memory, self._memory) + disks)
        done = int(stats.get("disk_processed", 0))
        if memory and passes:
            left = int(stats.get("memory_remaining", 0))
            sent = int(stats.get("memory_processed", 0)) + int(stats.get("memory_constant", 0)) * _PAGE
            # Nothing left although little was sent: libvirt does not know it yet, or not at all.
            done += memory - left if left else min(memory, sent)
        self._done = max(self._done, min(done, self._total))
        # The end is not reached before the guest has gone over.
        fraction = min(0.99, self._done / self._total)
        self._context.progress(fraction, bytes_done=self._done, bytes_total=self._total)
        if passes > self.passes:
            self.passes = passes
            dirty = int(stats.get("memory_dirty_rate", 0)) * int(stats.get("memory_page_size", _PAGE))
            expected = stats.get("downtime")
            words = f"pass {passes} over the memory"
            if passes > 1:
                words += f": {dirty >> 10} KiB/s change meanwhile"
            if expected is not None:
                words += f", at most {expected} ms of standing still"
            self._context.note(words)
