"""Talk to the service manager: sd_notify(3) and its watchdog, without libsystemd."""

from __future__ import annotations

import os
import socket
from collections.abc import Mapping


def notify(state: str, environ: Mapping[str, str] | None = None) -> bool:
    """Send ``READY=1``, ``STOPPING=1``, ``STATUS=...``, ``WATCHDOG=1`` (several: one a line).

    :returns: whether it was sent: False without a service manager, or when that does not listen.
    """
    address = (os.environ if environ is None else environ).get("NOTIFY_SOCKET", "")
    if not address.startswith(("/", "@")):
        return False
    if address.startswith("@"):
        address = "\0" + address[1:]
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as channel:
            channel.settimeout(1.0)
            channel.connect(address)
            channel.sendall(state.encode())
    except OSError:
        return False
    return True


def watchdog_interval_s(environ: Mapping[str, str] | None = None) -> float | None:
    """Seconds between two ``WATCHDOG=1``: half of what the service manager allows.  None: it does not watch us."""
    values = os.environ if environ is None else environ
    if values.get("WATCHDOG_PID", str(os.getpid())) != str(os.getpid()):
        return None
    text = values.get("WATCHDOG_USEC", "")
    return int(text) / 2_000_000 if text.isascii() and text.isdigit() and int(text) else None
