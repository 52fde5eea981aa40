"""The plugin's entry point."""

from __future__ import annotations

from virtd.backend.hookspecs import BackendRegistrar, hookimpl
from virtd_xen.backend import XenBackend


@hookimpl
def virtd_register_backends(registry: BackendRegistrar) -> None:
    """Register the backend ``xen``."""
    registry.register(XenBackend())
