"""The daemon as data."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

from virtd.model.host import Capability


@dataclass(frozen=True, slots=True)
class BackendOption:
    """One key of ``spec.backend_options`` that a backend understands."""

    name: str
    description: str
    values: tuple[str, ...] = ()
    default: str = ""


@dataclass(frozen=True, slots=True)
class BackendInfo:
    """One backend plugin; ``init_error`` says why it is not usable, empty when it is."""

    id: str
    title: str = ""
    version: str = ""
    source: str = ""
    uri_schemes: tuple[str, ...] = ()
    init_error: str = ""
    capabilities: tuple[Capability, ...] = ()
    options: tuple[BackendOption, ...] = ()


@dataclass(frozen=True, slots=True)
class ServerInfo:
    """The daemon: its version and what it found."""

    version: str
    api_versions: tuple[str, ...]
    features: tuple[str, ...]
    backends: tuple[BackendInfo, ...]
    instance_id: str
    start_time: datetime
    caller: str
