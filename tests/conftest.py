"""For all tests."""

from __future__ import annotations

import signal


def pytest_configure() -> None:
    """Undo what a shell does to its background jobs: they, and all their children, ignore Ctrl-C.

    Tests send SIGINT to programs that they start; whether those obey must not depend on how pytest was started.
    """
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
