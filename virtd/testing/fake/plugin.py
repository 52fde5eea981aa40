"""The plugin of the entry point ``fake``."""

from __future__ import annotations

from virtd.backend.hookspecs import BackendRegistrar, hookimpl
from virtd.testing.fake.backend import FakeBackend


@hookimpl
def virtd_register_backends(registry: BackendRegistrar) -> None:
    """Register the fake backend."""
    registry.register(FakeBackend())
