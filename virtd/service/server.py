"""Use cases of the daemon itself."""

from __future__ import annotations

from typing import Final

from virtd import __version__
from virtd.model.server import BackendInfo, BackendOption, ServerInfo
from virtd.service.core import Core

FEATURES: Final = (
    "events.resume",
    "events.initial_state",
    "guests.plan",
    "operations.cancel",
    "operations.recovery",
    "requests.idempotent",
    "console.shared",
)


class Server:
    """Use cases of the daemon."""

    def __init__(self, core: Core) -> None:
        self._core = core

    def info(self, caller: str) -> ServerInfo:
        """What this daemon is and what it found, plugins that failed included."""
        core = self._core
        backends: list[BackendInfo] = []
        for record in core.plugins.report:
            if record.init_error or not record.backend_ids:
                backends.append(BackendInfo(id=record.name, source=record.source, init_error=record.init_error))
                continue
            for backend_id in record.backend_ids:
                descriptor = core.plugins.backends[backend_id].descriptor
                backends.append(
                    BackendInfo(
                        id=descriptor.id,
                        title=descriptor.title,
                        version=descriptor.version,
                        source=record.source,
                        uri_schemes=descriptor.uri_schemes,
                        capabilities=descriptor.capabilities,
                        options=tuple(
                            BackendOption(o.name, o.description, o.values, o.default) for o in descriptor.options
                        ),
                    )
                )
        return ServerInfo(
            version=__version__,
            api_versions=("virtd.v1",),
            features=FEATURES,
            backends=tuple(backends),
            instance_id=core.events.instance,
            start_time=core.start_time,
            caller=caller,
        )
