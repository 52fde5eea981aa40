"""The backend ``xen``: which hosts it takes, and how to find them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Final

from virtd.backend.api import BackendDescriptor, HostCandidate, HostConfig, HostSession
from virtd.libvirt.migration_route import OPTIONS as MIGRATION_OPTIONS
from virtd.libvirt.migration_route import check_options
from virtd.libvirt.places import OPTION as POOL_DIRECTORY
from virtd.libvirt.places import check_pool_directory
from virtd.libvirt.sockets import answers
from virtd.libvirt.transports import check_config
from virtd_xen import capabilities
from virtd_xen.session import open_session

VERSION: Final = "0.1.0"
SYSTEM_SOCKETS: Final = ("/run/libvirt/libvirt-sock", "/run/libvirt/virtxend-sock")
SYSTEM_URI: Final = "xen:///system"
CAPABILITIES: Final = "/proc/xen/capabilities"
"""What a Linux on Xen may do there; ``control_d`` is the control domain."""
_SCHEMES: Final = ("xen", "xen+unix", "xen+ssh", "xen+libssh", "xen+libssh2", "xen+tls", "xen+tcp")


class XenBackend:
    """Stateless; holds no connection."""

    @property
    def descriptor(self) -> BackendDescriptor:
        """Constant."""
        return BackendDescriptor(
            id="xen",
            title="Xen through libvirt",
            version=VERSION,
            uri_schemes=_SCHEMES,
            capabilities=capabilities.DECLARED,
            native_format="libvirt-xml",
        )

    async def discover(self) -> Sequence[HostCandidate]:
        """This machine, where it is Xen's control domain and its libvirt answers."""
        if not is_control_domain(Path(CAPABILITIES)):
            return []
        for path in SYSTEM_SOCKETS:
            if await answers(path):
                return [HostCandidate("xen", SYSTEM_URI, "Xen of this machine (libvirt system daemon)")]
        return []

    def check_host(self, config: HostConfig) -> None:
        """Refuse what can never be right.

        :raises InvalidArgumentError: CONFIG_INVALID.
        """
        check_config(config, "xen", _SCHEMES, (POOL_DIRECTORY, *MIGRATION_OPTIONS))
        check_pool_directory(config)
        check_options(config)

    async def open(self, config: HostConfig) -> HostSession:
        """Connect.

        :raises InvalidArgumentError: CONFIG_INVALID.
        :raises UnavailableError: HOST_UNREACHABLE.
        """
        self.check_host(config)
        return await open_session(config)


def is_control_domain(capabilities: Path) -> bool:
    """Whether this system is the one that controls a Xen host."""
    try:
        return "control_d" in capabilities.read_text()
    except OSError:
        return False
