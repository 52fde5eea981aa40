"""Where on the host virtd's own pool lies."""

from __future__ import annotations

import os
from typing import Final
from urllib.parse import parse_qs, urlsplit

from virtd.backend.api import HostConfig
from virtd.libvirt.connections import parse_uri

OPTION: Final = "pool_directory"
SYSTEM_POOL: Final = "/var/lib/libvirt/images/virtd"


SYSTEM_SOCKETS: Final = "/run/virtd-backup"
"""Where the system's QEMU, which runs as another user, can reach sockets of virtd's."""


def own_daemon(config: HostConfig) -> bool:
    """Whether guests run as virtd's own user, so that they can use files in its directory."""
    driver, transport = parse_uri(config.uri)
    parts = urlsplit(config.uri)
    own = driver == "test" or "socket" in parse_qs(parts.query) or parts.path == "/session"
    return transport == "unix" and own


def backup_directory(config: HostConfig) -> str:
    """Where the sockets lie through which disks are read."""
    return os.path.join(config.directory, "nbd") if own_daemon(config) else SYSTEM_SOCKETS  # noqa: PTH118 - as below


def default_pool_path(config: HostConfig) -> str | None:
    """The host's directory for the pool ``virtd``; None where it has to be configured.

    The host's own configuration (``pool_directory``) comes first.  A daemon that runs as virtd's own
    user, on this machine, keeps disks in virtd's directory.  A system daemon runs QEMU as another
    user, who cannot enter that (it is 0700), so its disks lie where the system's images do.
    """
    if config.options.get(OPTION):
        return config.options[OPTION]
    parts = urlsplit(config.uri)
    if own_daemon(config):
        return os.path.join(config.directory, "pool")  # noqa: PTH118 - a string, as the API has it
    return SYSTEM_POOL if parts.path == "/system" else None


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
