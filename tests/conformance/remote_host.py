"""A libvirt host that is another machine, for the conformance kit: files there, its connection, what is on it.

Everything goes through libvirt connections of our own, past the session under test.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import threading
from collections.abc import Iterator
from typing import Any, Final
from urllib.parse import urlsplit, urlunsplit
from uuid import uuid4

import libvirt

from virtd.libvirt import events

TAG: Final = "conf-"

# Taken before LibvirtFaults wraps them: what the provision does is no native call of the backend.
_create_volume = libvirt.virStoragePool.createXML
_find_volume = libvirt.virStoragePool.storageVolLookupByName
_refresh = libvirt.virStoragePool.refresh
_upload = libvirt.virStorageVol.upload
_path = libvirt.virStorageVol.path
_new_stream = libvirt.virConnect.newStream
_send = libvirt.virStream.send
_finish = libvirt.virStream.finish


class RemoteFiles:
    """See :class:`virtd.backend.conformance.provision.HostFiles`: a pool of our own in a directory of the host."""

    def __init__(self, uri: str) -> None:
        events.ensure_running()
        self._connection = libvirt.open(uri)
        name = f"{TAG}files-{uuid4().hex[:8]}"
        self.directory = f"/var/tmp/{name}"
        xml = f"<pool type='dir'><name>{name}</name><target><path>{self.directory}</path></target></pool>"
        self._pool = self._connection.storagePoolDefineXML(xml)
        self._pool.build()
        self._pool.create()

    def put(self, name: str, data: bytes) -> str:
        """Make a file, or replace it; its path on the host."""
        with contextlib.suppress(libvirt.libvirtError):
            _find_volume(self._pool, name).delete()
        xml = (
            f"<volume><name>{name}</name><capacity unit='bytes'>{len(data)}</capacity><target>"
            "<format type='raw'/><permissions><mode>0666</mode></permissions></target></volume>"
        )
        volume = _create_volume(self._pool, xml)
        stream = _new_stream(self._connection)
        _upload(volume, stream, 0, len(data))
        sent = 0
        while sent < len(data):
            sent += _send(stream, data[sent : sent + 256 * 1024])
        _finish(stream)
        return str(_path(volume))

    async def write(self, name: str, data: bytes) -> None:
        await asyncio.to_thread(self.put, name, data)

    async def exists(self, name: str) -> bool:
        await asyncio.to_thread(_refresh, self._pool)
        with contextlib.suppress(libvirt.libvirtError):
            _find_volume(self._pool, name)
            return True
        return False

    def guests(self) -> str:
        """The kit's guests as libvirt itself lists them."""
        found = [domain for domain in self._connection.listAllDomains() if domain.name().startswith(TAG)]
        lines = [f"{d.name()} {bool(d.isActive())} {bool(d.hasManagedSaveImage())}" for d in found]
        return "\n".join(sorted(lines))

    def close(self) -> None:
        """Remove all of it from the host."""
        self._pool.refresh()
        for volume in self._pool.listAllVolumes():
            volume.delete()
        self._pool.destroy()
        self._pool.delete()
        self._pool.undefine()
        self._connection.close()


class Proxy:
    """See :class:`virtd.backend.conformance.provision.Connection`: a way to the host's port that can be cut.

    The host's own daemon is left alone: others use it.
    """

    def __init__(self, uri: str) -> None:
        parts = urlsplit(uri)
        assert parts.hostname, f"{uri} names no machine"
        assert parts.port, f"{uri} names no port"
        self._target = (parts.hostname, parts.port)
        self._lock = threading.Lock()
        self._open: set[socket.socket] = set()
        self._listener = self._listen(0)
        self._port: int = self._listener.getsockname()[1]
        self.uri = urlunsplit(parts._replace(netloc=f"127.0.0.1:{self._port}"))

    def _listen(self, port: int) -> socket.socket:
        listener = socket.create_server(("127.0.0.1", port))
        threading.Thread(target=self._accept, args=(listener,), daemon=True).start()
        return listener

    def _accept(self, listener: socket.socket) -> None:
        with contextlib.suppress(OSError):  # closed
            while True:
                self._pass_on(listener.accept()[0])

    def _pass_on(self, near: socket.socket) -> None:
        try:
            far = socket.create_connection(self._target, timeout=10)
        except OSError:
            near.close()
            return
        far.settimeout(None)
        with self._lock:
            self._open |= {near, far}
        with contextlib.suppress(OSError):  # who called may have gone already
            for end in (near, far):
                end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for source, target in ((near, far), (far, near)):
            threading.Thread(target=self._copy, args=(source, target), daemon=True).start()

    def _copy(self, source: socket.socket, target: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(1 << 16):
                target.sendall(data)
        for end in (source, target):
            _end(end)
        with self._lock:
            self._open -= {source, target}

    async def cut(self) -> None:
        self.close()
        await asyncio.sleep(0)

    async def restore(self) -> None:
        self._listener = self._listen(self._port)

    def close(self) -> None:
        """End the listener and everything that goes through."""
        _end(self._listener)
        with self._lock:
            for end in self._open:
                _end(end)
            self._open.clear()


def _end(end: Any) -> None:
    with contextlib.suppress(OSError):
        end.shutdown(socket.SHUT_RDWR)
    end.close()


@contextlib.contextmanager
def remote(uri: str) -> Iterator[tuple[RemoteFiles, Proxy]]:
    """The files and the connection of a host, and nothing of them afterwards."""
    files = RemoteFiles(uri)
    try:
        proxy = Proxy(uri)
        try:
            yield files, proxy
        finally:
            proxy.close()
    finally:
        files.close()
