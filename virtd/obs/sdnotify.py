"""Talk to the service manager: sd_notify(3), the watchdog and passed sockets, without libsystemd."""

from __future__ import annotations

import os
import socket
from collections.abc import Mapping
from typing import Final

_FIRST_FD: Final = 3
"""SD_LISTEN_FDS_START of sd_listen_fds(3)."""


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


def listen_sockets(environ: Mapping[str, str] | None = None) -> tuple[socket.socket, ...]:
    """The listening sockets that the service manager passed to this process; the caller owns them.

    They are marked close-on-exec, so that no child inherits them.  Call it once.

    :raises OSError: a passed descriptor is not a socket.
    """
    values = os.environ if environ is None else environ
    count = values.get("LISTEN_FDS", "")
    if values.get("LISTEN_PID") != str(os.getpid()) or not (count.isascii() and count.isdigit()):
        return ()
    passed = []
    for descriptor in range(_FIRST_FD, _FIRST_FD + int(count)):
        os.set_inheritable(descriptor, False)  # noqa: FBT003 -- positional only
        passed.append(socket.socket(fileno=descriptor))
    return tuple(passed)
