"""Client of virtd: guests, hosts, snapshots, consoles and events of a daemon, sync and async.

``Client`` and ``AsyncClient`` have the same methods; the sync one is generated from the async one.
Names are loaded when they are first used: importing this package loads neither grpc nor protobuf.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from virtd_client import errors, types
    from virtd_client._async.client import AsyncClient
    from virtd_client._async.console import AsyncConsoleSession
    from virtd_client._async.events import AsyncEventWatch
    from virtd_client._async.operation import AsyncOperation
    from virtd_client._status import from_record, from_status
    from virtd_client._sync.client import Client
    from virtd_client._sync.console import ConsoleSession
    from virtd_client._sync.events import EventWatch
    from virtd_client._sync.operation import Operation
    from virtd_client._target import default_target, parse_target
    from virtd_client.errors import VirtdError
    from virtd_client.types import ConsoleData, ConsoleNotice, EventPage, GuestList, InitialDone, Reset, SnapshotList

__all__ = [
    "AsyncClient",
    "AsyncConsoleSession",
    "AsyncEventWatch",
    "AsyncOperation",
    "Client",
    "ConsoleData",
    "ConsoleNotice",
    "ConsoleSession",
    "EventPage",
    "EventWatch",
    "GuestList",
    "InitialDone",
    "Operation",
    "Reset",
    "SnapshotList",
    "VirtdError",
    "default_target",
    "errors",
    "from_record",
    "from_status",
    "parse_target",
    "types",
]

_WHERE = {
    "AsyncClient": "_async.client",
    "AsyncConsoleSession": "_async.console",
    "AsyncEventWatch": "_async.events",
    "AsyncOperation": "_async.operation",
    "Client": "_sync.client",
    "ConsoleData": "types",
    "ConsoleNotice": "types",
    "ConsoleSession": "_sync.console",
    "EventPage": "types",
    "EventWatch": "_sync.events",
    "GuestList": "types",
    "SnapshotList": "types",
    "InitialDone": "types",
    "Operation": "_sync.operation",
    "Reset": "types",
    "VirtdError": "errors",
    "default_target": "_target",
    "from_record": "_status",
    "from_status": "_status",
    "parse_target": "_target",
}


def __getattr__(name: str) -> object:
    if name in {"errors", "types"}:
        return import_module(f"{__name__}.{name}")
    module = _WHERE.get(name)
    if module is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value: object = getattr(import_module(f"{__name__}.{module}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
