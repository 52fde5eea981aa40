"""The backend ``kvm``: which hosts it takes, and how to find them."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from virtd.backend.api import BackendDescriptor, HostCandidate, HostConfig, HostSession
from virtd.libvirt.migration_route import OPTIONS as MIGRATION_OPTIONS
from virtd.libvirt.migration_route import check_options
from virtd.libvirt.places import OPTION as POOL_DIRECTORY
from virtd.libvirt.places import check_pool_directory
from virtd.libvirt.private import PrivateLibvirt
from virtd.libvirt.sockets import answers
from virtd.libvirt.transports import check_config
from virtd_kvm import capabilities
from virtd_kvm.designer import OPTIONS
from virtd_kvm.session import open_session

VERSION: Final = "0.1.0"
SYSTEM_SOCKETS: Final = ("/run/libvirt/libvirt-sock", "/run/libvirt/virtqemud-sock")
SYSTEM_URI: Final = "qemu:///system"
SESSION_URI: Final = "qemu:///session"
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
            if await answers(path):
                return [HostCandidate("local", SYSTEM_URI, "QEMU/KVM of this machine (libvirt system daemon)")]
        if os.geteuid() != 0:
            for path in _session_sockets():
                if await answers(path):
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

    def check_host(self, config: HostConfig) -> None:
        """Refuse what can never be right.

        :raises InvalidArgumentError: CONFIG_INVALID.
        """
        check_config(config, "kvm", _SCHEMES, (POOL_DIRECTORY, *MIGRATION_OPTIONS))
        check_options(config)
        check_pool_directory(config)

    async def open(self, config: HostConfig) -> HostSession:
        """Connect.

        :raises InvalidArgumentError: CONFIG_INVALID.
        :raises UnavailableError: HOST_UNREACHABLE.
        """
        self.check_host(config)
        return await open_session(config)


def _session_sockets() -> Sequence[str]:
    runtime = os.environ.get("XDG_RUNTIME_DIR") or f"/run/user/{os.geteuid()}"
    return (f"{runtime}/libvirt/libvirt-sock", f"{runtime}/libvirt/virtqemud-sock")
