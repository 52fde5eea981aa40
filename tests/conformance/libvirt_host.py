"""Libvirt hosts under test: native failures, and acts from outside, without the backend's help."""

from __future__ import annotations

import asyncio
import functools
import threading
from collections.abc import Callable, Collection, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any, Final
from uuid import UUID, uuid4

import libvirt

from virtd.libvirt import events

GOLDEN: Final = Path(__file__).parents[1] / "golden"

# What never leaves the process, or belongs to the connection's own keeping.
_LOCAL: Final = frozenset(
    {
        "ID", "UUID", "UUIDString", "c_pointer", "close", "connect", "domain", "getConnect", "getDomain", "getName",
        "getURI", "isAlive", "isEncrypted", "isSecure", "key", "name", "registerCloseCallback", "setKeepAlive",
        "unregisterCloseCallback", "getVersion", "getLibVersion", "getType",
    }
)  # fmt: skip
_CLASSES: Final = ("virConnect", "virDomain", "virDomainSnapshot", "virStoragePool", "virStorageVol", "virStream")


def native_error(call: str) -> libvirt.libvirtError:
    """An error as libvirt would raise it: an internal one, of the QEMU driver."""
    error = libvirt.libvirtError(f"{call} was told to fail")
    message = f"{call} was told to fail"
    error.err = (libvirt.VIR_ERR_INTERNAL_ERROR, libvirt.VIR_FROM_QEMU, message, 2, None, None, None, -1, -1)
    return error


class LibvirtFaults:
    """Wraps libvirt-python's own methods, for all connections of this process, while a block runs."""

    hangable: Collection[str] = frozenset()

    def __init__(self) -> None:
        # Calls come from the backend's worker threads.
        self._lock = threading.Lock()

    @contextmanager
    def _wrapped(self, before: Callable[[str], None]) -> Iterator[None]:
        replaced: list[tuple[type, str, Callable[..., Any]]] = []
        for class_name in _CLASSES:
            cls = getattr(libvirt, class_name)
            for name, method in list(vars(cls).items()):
                if name.startswith(("_", "domainEvent")) or name in _LOCAL or not callable(method):
                    continue
                replaced.append((cls, name, method))
                setattr(cls, name, self._wrap(method, f"{class_name}.{name}", before))
        try:
            yield
        finally:
            for cls, name, method in replaced:
                setattr(cls, name, method)

    @staticmethod
    def _wrap(method: Callable[..., Any], call: str, before: Callable[[str], None]) -> Callable[..., Any]:
        @functools.wraps(method)
        def wrapper(*arguments: Any, **options: Any) -> Any:
            before(call)
            return method(*arguments, **options)

        return wrapper

    @contextmanager
    def recording(self) -> Iterator[list[str]]:
        calls: list[str] = []

        def before(call: str) -> None:
            with self._lock:
                calls.append(call)

        with self._wrapped(before):
            yield calls

    @contextmanager
    def failing(self, call: str, nth: int) -> Iterator[None]:
        seen = 0

        def before(name: str) -> None:
            nonlocal seen
            if name == call:
                with self._lock:
                    seen += 1
                    mine = seen == nth
                if mine:
                    raise native_error(call)

        with self._wrapped(before):
            yield

    def hanging(self, call: str) -> AbstractContextManager[None]:
        message = f"{call} is not in hangable: a thread in a native call cannot be called back"
        raise NotImplementedError(message)


class LibvirtOutside:
    """Somebody else, on a connection of their own.

    :param kill: ends the process of the guest of a name (``virsh destroy`` by default).
    """

    def __init__(self, uri: str, kind: str, kill: Callable[[str], None] | None = None) -> None:
        events.ensure_running()
        self._uri, self._kind, self._kill = uri, kind, kill
        self._connection: Any = None

    def _domain(self, uuid: UUID) -> Any:
        return self._connect().lookupByUUID(uuid.bytes)

    def _connect(self) -> Any:
        if self._connection is None or not self._connection.isAlive():
            self._connection = libvirt.open(self._uri)
        return self._connection

    def close(self) -> None:
        if self._connection is not None:
            self._connection.close()

    async def define_guest(self, name: str) -> UUID:
        uuid = uuid4()
        xml = (
            f"<domain type='{self._kind}'><name>{name}</name><uuid>{uuid}</uuid><memory unit='MiB'>32</memory>"
            "<vcpu>1</vcpu><os><type>hvm</type></os></domain>"
        )
        await asyncio.to_thread(lambda: self._connect().defineXML(xml))
        return uuid

    async def kill_guest(self, uuid: UUID) -> None:
        def kill() -> None:
            domain = self._domain(uuid)
            if not domain.isActive():
                return
            if self._kill is None:
                domain.destroy()
            else:
                self._kill(domain.name())

        await asyncio.to_thread(kill)

    async def undefine_guest(self, uuid: UUID) -> None:
        await asyncio.to_thread(lambda: self._domain(uuid).undefine())
