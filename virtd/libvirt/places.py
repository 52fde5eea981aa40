"""Where on the host virtd's own pool lies."""

from __future__ import annotations

import os
from typing import Final
from urllib.parse import parse_qs, urlsplit

from virtd.backend.api import HostConfig
from virtd.errors import CONFIG_INVALID, InvalidArgumentError
from virtd.libvirt.connections import parse_uri

OPTION: Final = "pool_directory"
SYSTEM_POOL: Final = "/var/lib/libvirt/images/virtd"


def check_pool_directory(config: HostConfig) -> None:
    """Refuse a directory that names no place.

    :raises InvalidArgumentError: CONFIG_INVALID.
    """
    if not config.options.get(OPTION, "/").startswith("/"):
        raise InvalidArgumentError(CONFIG_INVALID, f"host {config.id}: {OPTION} must be an absolute path of the host")


def own_daemon(config: HostConfig) -> bool:
    """Whether guests run as virtd's own user, so that they can use files in its directory."""
    driver, transport = parse_uri(config.uri)
    parts = urlsplit(config.uri)
    own = driver == "test" or "socket" in parse_qs(parts.query) or parts.path == "/session"
    return transport == "unix" and own


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
