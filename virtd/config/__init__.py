"""Configuration: one TOML file, checked on the way in, plain frozen values from then on.

``load`` finds and checks the file; the classes are what the rest of the daemon sees.
"""

from virtd.config.loader import Surroundings, load
from virtd.config.model import (
    Config,
    DiscoveryConfig,
    Embedded,
    EventsConfig,
    HostEntry,
    ImagesConfig,
    InventoryConfig,
    LogConfig,
    LogFormat,
    LogLevel,
    MetricsConfig,
    OperationsConfig,
    PluginsConfig,
    ServerConfig,
    StateConfig,
    StorageConfig,
    TcpAddress,
    TracingConfig,
)

__all__ = [
    "Config",
    "DiscoveryConfig",
    "Embedded",
    "EventsConfig",
    "HostEntry",
    "ImagesConfig",
    "InventoryConfig",
    "LogConfig",
    "LogFormat",
    "LogLevel",
    "MetricsConfig",
    "OperationsConfig",
    "PluginsConfig",
    "ServerConfig",
    "StateConfig",
    "StorageConfig",
    "Surroundings",
    "TcpAddress",
    "TracingConfig",
    "load",
]
