"""The one native thread that runs libvirt's event loop for the whole process.

libvirt's keep-alive, its callbacks and its streams all need an event loop, and it must be registered
before the first connection is opened.  A thread of its own never starves while asyncio is busy, and
calls from worker threads lose no events (libvirt's asyncio binding does, together with threads).
"""

from __future__ import annotations

import logging
import threading
import time
from typing import Final

import libvirt

_log: Final = logging.getLogger(__name__)
_lock: Final = threading.Lock()
# A heartbeat wakes the loop even when nothing is registered, so that it can never sleep for good.
_HEARTBEAT_MS: Final = 1000


class _State:
    thread: threading.Thread | None = None


def ensure_running() -> None:
    """Start the event thread unless it runs.  Thread-safe; call it before any ``libvirt.open``."""
    with _lock:
        if _State.thread is not None:
            return
        silence()
        libvirt.virEventRegisterDefaultImpl()
        libvirt.virEventAddTimeout(_HEARTBEAT_MS, _heartbeat, None)
        _State.thread = threading.Thread(target=_run, name="libvirt-events", daemon=True)
        _State.thread.start()


def silence() -> None:
    """Stop libvirt from printing errors to stderr: every one is raised, and reported, anyway."""
    libvirt.registerErrorHandler(_ignore, None)


def _ignore(_context: object, _error: object) -> None:
    """Swallow what libvirt would print."""


def _heartbeat(_timer: int, _opaque: object) -> None:
    """Nothing: waking up is the point."""


def _run() -> None:
    while True:
        try:
            libvirt.virEventRunDefaultImpl()
        except Exception:
            # The loop must outlive anything that one callback does; a pause stops a hot spin.
            _log.exception("libvirt's event loop failed; going on")
            time.sleep(0.1)
