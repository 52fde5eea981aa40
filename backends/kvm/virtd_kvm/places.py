"""Where QEMU's sockets and firmware variables lie."""

from __future__ import annotations

import os
from typing import Final
from urllib.parse import parse_qs, urlsplit

from virtd.backend.api import HostConfig
from virtd.libvirt.connections import parse_uri
from virtd.libvirt.places import own_daemon

SYSTEM_SOCKETS: Final = "/run/virtd-backup"
"""Where the system's QEMU, which runs as another user, can reach sockets of virtd's."""


def backup_directory(config: HostConfig) -> str:
    """Where the sockets lie through which disks are read."""
    return os.path.join(config.directory, "nbd") if own_daemon(config) else SYSTEM_SOCKETS  # noqa: PTH118 - a string, as the API has it


def variables_directory(config: HostConfig) -> str | None:
    """Where the host's libvirt puts the firmware variables of guests that do not say; None: not known."""
    driver, transport = parse_uri(config.uri)
    parts = urlsplit(config.uri)
    if driver == "test":
        return None
    if parts.path == "/system":
        return "/var/lib/libvirt/qemu/nvram"
    if transport != "unix" or parts.path != "/session":
        return None
    socket = parse_qs(parts.query).get("socket", [""])[0]
    if socket:  # a session daemon of virtd's own: its configuration lies beside DIR/run/libvirt/libvirt-sock
        home = os.path.join(os.path.dirname(socket), "..", "..", "config")  # noqa: PTH118, PTH120 - strings, as the API has them
        return os.path.normpath(os.path.join(home, "libvirt", "qemu", "nvram"))  # noqa: PTH118 - as above
    home = os.environ.get("XDG_CONFIG_HOME") or os.path.expanduser("~/.config")  # noqa: PTH111 - as above
    return os.path.join(home, "libvirt", "qemu", "nvram")  # noqa: PTH118 - as above
