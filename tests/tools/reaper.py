"""Run a command, and reap at once what its processes leave behind.

``python -m tests.tools.reaper COMMAND [ARGUMENT...]``; the exit code is the command's.

A guest's process has no parent but the machine's first process, and libvirt says that a guest has stopped when
that one has reaped it.  In containers the first process is often no real init: it reaps late (a second or two
for every guest that stops) or never (then stopping fails).
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys
from typing import Final

_PR_SET_CHILD_SUBREAPER: Final = 36  # linux/prctl.h


def run(command: list[str]) -> int:
    """Run it to its end.

    :returns: its exit code, or 128 and the number of the signal that ended it.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0):
        raise OSError(ctypes.get_errno(), "prctl")
    # A SIGTERM that comes before the handler is there waits for it, instead of leaving the child alone.
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    child = os.posix_spawnp(command[0], command, os.environ, setsigmask=before)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a terminal sends it to the child as well
    signal.signal(signal.SIGTERM, lambda number, _frame: os.kill(child, number))
    signal.pthread_sigmask(signal.SIG_SETMASK, before)
    while True:
        ended, status = os.wait()
        if ended == child:
            code = os.waitstatus_to_exitcode(status)
            return code if code >= 0 else 128 - code


if __name__ == "__main__":
    sys.exit(run(sys.argv[1:]))
