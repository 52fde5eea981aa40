"""The plugin: registers the backend."""

from virtd.backend import hookimpl
from virtd.backend.hookspecs import BackendRegistrar
from virtd_sample.backend import SampleBackend


@hookimpl
def virtd_register_backends(registry: BackendRegistrar) -> None:
    registry.register(SampleBackend())
