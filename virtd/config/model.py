"""The configuration as the daemon sees it: frozen, plain values, every path absolute.

Nothing here reads a file or knows pydantic, so that any module may import it.  The defaults stand
here and only here; :mod:`virtd.config.schema` takes them over and adds limits and documentation.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from types import MappingProxyType


def _nothing() -> Mapping[str, str]:
    return MappingProxyType({})


class Embedded(StrEnum):
    """When virtd runs a private libvirt daemon: where none answers, always, or never."""

    AUTO = "auto"
    ALWAYS = "always"
    NEVER = "never"


class LogLevel(StrEnum):
    """The least important level that is written."""

    DEBUG = "debug"
    INFO = "info"
    WARNING = "warning"
    ERROR = "error"


class LogFormat(StrEnum):
    """AUTO: console on a terminal, JSON otherwise."""

    AUTO = "auto"
    JSON = "json"
    CONSOLE = "console"


@dataclass(frozen=True, slots=True)
class TcpAddress:
    """An address to listen on.  ``host`` is a numeric address without brackets; port 0 is any free one."""

    host: str
    port: int

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerConfig:
    """Where the API is served.  ``socket_owner`` and ``socket_group`` are numeric ids; None keeps the process's."""

    socket: Path
    socket_mode: int
    socket_owner: int | None = None
    socket_group: int | None = None
    tcp_listen: TcpAddress | None = None
    insecure: bool = False
    max_concurrent_calls: int = 10_000
    max_message_bytes: int = 16 * 1024 * 1024
    drain_timeout_s: float = 30.0


@dataclass(frozen=True, slots=True, kw_only=True)
class StateConfig:
    """Where virtd keeps what must survive, and what must not survive a reboot."""

    directory: Path
    runtime_directory: Path

    @property
    def images_directory(self) -> Path:
        """The files of the image catalogue."""
        return self.directory / "images"

    @property
    def import_directory(self) -> Path:
        """Where an administrator puts disks, kernels and images that a guest may use."""
        return self.directory / "import"

    @property
    def hosts_directory(self) -> Path:
        """One directory for each host's session."""
        return self.directory / "hosts"

    @property
    def database(self) -> Path:
        """The journal."""
        return self.directory / "virtd.db"


@dataclass(frozen=True, slots=True, kw_only=True)
class HostEntry:
    """One configured host."""

    id: str
    uri: str
    labels: Mapping[str, str] = field(default_factory=_nothing)
    call_timeout_s: float = 30.0
    workers: int = 4
    options: Mapping[str, str] = field(default_factory=_nothing)


@dataclass(frozen=True, slots=True, kw_only=True)
class DiscoveryConfig:
    """Whether hypervisors of this machine are found, and a private libvirt daemon is run."""

    enabled: bool = True
    embedded: Embedded = Embedded.AUTO


@dataclass(frozen=True, slots=True, kw_only=True)
class PluginsConfig:
    """Plugins that are not loaded, by the name of their entry point."""

    block: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class StorageConfig:
    """``allowed_directories``: absolute, symbolic links followed.  ``backup_repositories``: by name."""

    allowed_directories: tuple[Path, ...]
    backup_repositories: Mapping[str, Path] = field(default_factory=lambda: MappingProxyType({}))


@dataclass(frozen=True, slots=True, kw_only=True)
class ImagesConfig:
    """What the daemon fetches for the catalogue."""

    allow_private_addresses: bool = False
    max_bytes: int = 2**40


@dataclass(frozen=True, slots=True, kw_only=True)
class OperationsConfig:
    """How many operations work at once, how long they may take, how long they are remembered."""

    max_parallel: int = 16
    max_queued: int = 10_000
    default_timeout_s: float = 1800.0
    timeouts_s: Mapping[str, float] = field(default_factory=lambda: MappingProxyType({}))
    retention_days: float = 7.0

    def timeout_for(self, verb: str) -> float:
        """Seconds that an operation of this verb may take."""
        return self.timeouts_s.get(verb, self.default_timeout_s)


@dataclass(frozen=True, slots=True, kw_only=True)
class EventsConfig:
    """The event log: whichever limit is reached first ends an event's life."""

    retention_count: int = 100_000
    retention_hours: float = 72.0
    watcher_buffer: int = 10_000


@dataclass(frozen=True, slots=True, kw_only=True)
class ConsolesConfig:
    """``log_max_bytes``: how much of each guest's console is kept on the disk; 0: nothing."""

    log_max_bytes: int = 4 * 1024 * 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class AgentConfig:
    """``file_max_bytes``: the largest file that is passed through a guest agent at once."""

    file_max_bytes: int = 64 * 1024 * 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class MetricsConfig:
    """Sampling of guests, and the Prometheus endpoint (None: off)."""

    interval_s: float = 10.0
    listen: TcpAddress | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class InventoryConfig:
    """The safety net behind the hypervisors' own events."""

    resync_s: float = 60.0


@dataclass(frozen=True, slots=True, kw_only=True)
class LogConfig:
    """What is logged, and how; always to standard error."""

    level: LogLevel = LogLevel.INFO
    format: LogFormat = LogFormat.AUTO


@dataclass(frozen=True, slots=True, kw_only=True)
class TracingConfig:
    """Where traces go (``""``: nowhere), and which part of them."""

    endpoint: str = ""
    sample: float = 1.0


class OnDelete(StrEnum):
    """What becomes of a deleted guest whose caller does not say."""

    DELETE = "delete"
    TRASH = "trash"


@dataclass(frozen=True, slots=True, kw_only=True)
class TrashConfig:
    """``retention_days`` 0: nothing is purged by itself."""

    on_delete: OnDelete = OnDelete.DELETE
    retention_days: float = 7.0


@dataclass(frozen=True, slots=True, kw_only=True)
class StrategyConfig:
    """How run strategies start guests again; times in seconds."""

    backoff_first_s: float = 10.0
    backoff_max_s: float = 300.0
    stable_s: float = 600.0
    halt_timeout_s: float = 120.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Config:
    """Everything.  ``source`` is the file that was read, or None for defaults alone."""

    server: ServerConfig
    state: StateConfig
    storage: StorageConfig
    images: ImagesConfig = field(default_factory=ImagesConfig)
    hosts: tuple[HostEntry, ...] = ()
    discovery: DiscoveryConfig = field(default_factory=DiscoveryConfig)
    plugins: PluginsConfig = field(default_factory=PluginsConfig)
    operations: OperationsConfig = field(default_factory=OperationsConfig)
    events: EventsConfig = field(default_factory=EventsConfig)
    metrics: MetricsConfig = field(default_factory=MetricsConfig)
    consoles: ConsolesConfig = field(default_factory=ConsolesConfig)
    agent: AgentConfig = field(default_factory=AgentConfig)
    trash: TrashConfig = field(default_factory=TrashConfig)
    strategy: StrategyConfig = field(default_factory=StrategyConfig)
    inventory: InventoryConfig = field(default_factory=InventoryConfig)
    log: LogConfig = field(default_factory=LogConfig)
    tracing: TracingConfig = field(default_factory=TracingConfig)
    source: Path | None = None
