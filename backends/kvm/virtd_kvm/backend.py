"""The backend ``kvm``: which hosts it takes, and how to find them."""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from virtd.backend.api import BackendDescriptor, HostCandidate, HostConfig, HostSession
from virtd.errors import CONFIG_INVALID, InvalidArgumentError
from virtd.libvirt.connections import parse_uri
from virtd.libvirt.private import PrivateLibvirt
from virtd_kvm import capabilities
from virtd_kvm.designer import OPTIONS
from virtd_kvm.places import OPTION as POOL_DIRECTORY
from virtd_kvm.session import open_session

VERSION: Final = "0.1.0"
SYSTEM_SOCKETS: Final = ("/run/libvirt/libvirt-sock", "/run/libvirt/virtqemud-sock")
SYSTEM_URI: Final = "qemu:///system"
SESSION_URI: Final = "qemu:///session"
_ANSWER_S: Final = 1.0
_SCHEMES: Final = (
    "qemu",
    "qemu+unix",
    "qemu+ssh",
    "qemu+libssh",
    "qemu+libssh2",
    "qemu+tls",
    "qemu+tcp",
    "test",
)


class KvmBackend:
    """Stateless; holds no connection."""

    @property
    def descriptor(self) -> BackendDescriptor:
        """Constant."""
        return BackendDescriptor(
            id="kvm",
            title="QEMU/KVM through libvirt",
            version=VERSION,
            uri_schemes=_SCHEMES,
            capabilities=capabilities.DECLARED,
            native_format="libvirt-xml",
            options=OPTIONS,
        )

    async def discover(self) -> Sequence[HostCandidate]:
        """The system's libvirt if it answers, else this user's session where it runs.

        Sockets are only knocked at: opening ``qemu:///session`` would start a daemon.
        """
        for path in SYSTEM_SOCKETS:
            if await _answers(path):
                return [HostCandidate("local", SYSTEM_URI, "QEMU/KVM of this machine (libvirt system daemon)")]
        if os.geteuid() != 0:
            for path in _session_sockets():
                if await _answers(path):
                    return [HostCandidate("local", SESSION_URI, "QEMU/KVM of this user (libvirt session daemon)")]
        return []

    async def embedded(self, directory: str) -> HostCandidate | None:
        """Start, or find again, a private libvirtd in ``directory`` for a machine where nothing was discovered.

        It outlives virtd, and so do its guests.

        :raises UnavailableError: LIBVIRT_MISSING, with what to install.
        :raises InvalidArgumentError: CONFIG_INVALID, the directory's path is too long for a socket.
        """
        uri = await PrivateLibvirt(Path(directory)).start()
        return HostCandidate("local", uri, "QEMU/KVM of this machine (a private libvirt of virtd's own)")

    async def open(self, config: HostConfig) -> HostSession:
        """Connect.

        :raises InvalidArgumentError: CONFIG_INVALID.
        :raises UnavailableError: HOST_UNREACHABLE.
        """
        driver, transport = parse_uri(config.uri)
        scheme = config.uri.partition(":")[0]
        if scheme not in _SCHEMES:
            raise InvalidArgumentError(
                CONFIG_INVALID,
                f"{config.uri!r}: the backend kvm takes the schemes {', '.join(_SCHEMES)}, not {driver}+{transport}",
            )
        unknown = sorted(set(config.options) - {POOL_DIRECTORY})
        if unknown:
            raise InvalidArgumentError(
                CONFIG_INVALID,
                f"host {config.id}: the backend kvm has no option {unknown[0]!r}; it has {POOL_DIRECTORY}",
            )
        if not config.options.get(POOL_DIRECTORY, "/").startswith("/"):
            raise InvalidArgumentError(
                CONFIG_INVALID, f"host {config.id}: {POOL_DIRECTORY} must be an absolute path of the host"
            )
        return await open_session(config)


def _session_sockets() -> Sequence[str]:
    runtime = os.environ.get("XDG_RUNTIME_DIR") or f"/run/user/{os.geteuid()}"
    return (f"{runtime}/libvirt/libvirt-sock", f"{runtime}/libvirt/virtqemud-sock")


async def _answers(path: str) -> bool:
    """Whether somebody accepts connections at a socket that this user may open."""
    return await asyncio.to_thread(_knock, path)


def _knock(path: str) -> bool:
    with socket.socket(socket.AF_UNIX) as probe:
        probe.settimeout(_ANSWER_S)
        try:
            probe.connect(path)
        except OSError:
            return False
    return True
