"""The plugin's entry point."""

from __future__ import annotations

from virtd.backend.hookspecs import BackendRegistrar, hookimpl
from virtd_kvm.backend import KvmBackend


@hookimpl
def virtd_register_backends(registry: BackendRegistrar) -> None:
    """Register the backend ``kvm``."""
    registry.register(KvmBackend())
