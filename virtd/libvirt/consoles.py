"""Serial consoles over non-blocking libvirt streams.

Stream callbacks come on libvirt's event thread; bytes go to the event loop in order.  What only
changes the stream's callbacks is done on the event thread as well (by a timer that fires at once);
what talks to the daemon never is, because a hung daemon would then stop the events of all hosts.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time
from collections import deque
from collections.abc import Callable
from typing import Any, Final
from uuid import UUID

import libvirt

from virtd.backend.capabilities import CONSOLE_SERIAL
from virtd.errors import UnavailableError, unsupported
from virtd.libvirt.connections import HostConnections
from virtd.libvirt.errors import unreachable
from virtd.libvirt.guests import require_active
from virtd.libvirt.link import Link
from virtd.libvirt.xml.domain import Domain

_CHUNK: Final = 64 * 1024
# A reader that is this far behind makes the stream wait, and with it the guest's serial port.
_HIGH_WATER: Final = 1024 * 1024
_END: Final = libvirt.VIR_STREAM_EVENT_HANGUP | libvirt.VIR_STREAM_EVENT_ERROR
_AGAIN: Final = -2
_RETRY_S: Final = 0.01


def on_event_thread(function: Callable[[], None]) -> None:
    """Run ``function`` on libvirt's event thread, soon."""

    def fire(timer: int, _opaque: object) -> None:
        libvirt.virEventRemoveTimeout(timer)
        function()

    libvirt.virEventAddTimeout(0, fire, None)


class Consoles:
    """Opens serial consoles."""

    def __init__(self, connections: HostConnections) -> None:
        self._connections: Final = connections

    async def open_console(self, uuid: UUID) -> Console:
        """Open the first serial console, taking it over from a stale holder.

        :raises FailedPreconditionError: INVALID_STATE, the guest does not run.
        :raises UnsupportedError: it has no serial console.
        """
        loop = asyncio.get_running_loop()

        def run(_worker: Any) -> Console:
            # The stream lives longer than a worker's job, so it goes over the event connection.
            link = self._connections.main()
            with link.use_alone() as connection:
                domain = connection.lookupByUUID(uuid.bytes)
                require_active(domain, "open the console")
                described = Domain.parse(domain.XMLDesc(0))
                if not described.consoles and not described.serials:
                    raise unsupported(CONSOLE_SERIAL, "the guest has no serial console")
                stream = connection.newStream(libvirt.VIR_STREAM_NONBLOCK)
                domain.openConsole(None, stream, libvirt.VIR_DOMAIN_CONSOLE_FORCE)
            return Console(self._connections, link, stream, loop)

        return await self._connections.call("virDomainOpenConsole", run)


class Console:
    """An open console: one reader, one writer."""

    def __init__(self, connections: HostConnections, link: Link, stream: Any, loop: asyncio.AbstractEventLoop) -> None:
        self._connections: Final = connections
        self._link: Final = link
        self._stream: Final = stream
        self._loop: Final = loop
        self._received: Final[deque[bytes]] = deque()
        self._unread = 0
        self._lock: Final = threading.Lock()
        self._arrived: Final = asyncio.Event()
        self._ended = False
        self._closing = False
        # Touched on the event thread only.
        self._registered = False
        self._paused = False
        on_event_thread(self._register)

    # ----------------------------------------------------------------------- on the loop

    async def read(self) -> bytes:
        """The next bytes; ``b""`` when the console has closed."""
        while not self._received:
            if self._ended:
                return b""
            self._arrived.clear()
            await self._arrived.wait()
        data = b"".join(self._received)
        self._received.clear()
        with self._lock:
            was_full = self._unread >= _HIGH_WATER
            self._unread -= len(data)
        if was_full:
            on_event_thread(self._continue_reading)
        return data

    async def write(self, data: bytes) -> None:
        """Send all of ``data``.

        :raises UnavailableError: the console has closed.
        """
        if self._ended or self._closing:
            raise unreachable("the console has closed: the guest has stopped or another client took it over")
        # Sending can block when the daemon does not read: on a worker that harms this host only.
        await self._connections.call("virStreamSend", lambda _worker: self._send(data))

    async def close(self) -> None:
        """Release it.  Idempotent; a pending read returns ``b""``."""
        if self._closing:
            return
        self._closing = True
        self._end()
        on_event_thread(self._shut)

    def _deliver(self, data: bytes) -> None:
        if not self._closing:
            self._received.append(data)
            self._arrived.set()

    def _end(self) -> None:
        self._ended = True
        self._arrived.set()

    # ----------------------------------------------------------------------- on a worker

    def _send(self, data: bytes) -> None:
        rest = memoryview(data)
        while rest:
            count = self._stream.send(bytes(rest[:_CHUNK]))
            if count == _AGAIN:
                time.sleep(_RETRY_S)
                if self._ended:
                    raise unreachable("the console has closed")
                continue
            rest = rest[count:]

    # --------------------------------------------------------------- on the event thread

    def _register(self) -> None:
        if self._closing:
            return
        try:
            self._stream.eventAddCallback(libvirt.VIR_STREAM_EVENT_READABLE | _END, self._on_event, None)
            self._registered = True
        except libvirt.libvirtError:
            self._finish()

    def _on_event(self, _stream: Any, event: int, _opaque: object) -> None:
        try:
            # Also on hang-up: what was said last must not be lost.
            self._receive()
        except libvirt.libvirtError:
            self._finish()
        if event & _END:
            self._finish()

    def _receive(self) -> None:
        while self._registered and not self._paused:
            data = self._stream.recv(_CHUNK)
            if data == _AGAIN:
                return
            if not data:
                self._finish()
                return
            # Counted here and not on the loop: a loop that is busy must not let the bytes pile up.
            with self._lock:
                self._unread += len(data)
                self._paused = self._unread >= _HIGH_WATER
            self._hand_over(self._deliver, data)
            if self._paused:
                self._stream.eventUpdateCallback(_END)

    def _continue_reading(self) -> None:
        if self._paused and self._registered:
            self._paused = False
            try:
                self._stream.eventUpdateCallback(libvirt.VIR_STREAM_EVENT_READABLE | _END)
            except libvirt.libvirtError:
                self._finish()

    def _finish(self) -> None:
        """The other side has ended it, or it broke."""
        self._shut()
        self._hand_over(self._end)

    def _shut(self) -> None:
        if not self._registered:
            return
        self._registered = False
        with contextlib.suppress(libvirt.libvirtError):
            self._stream.eventRemoveCallback()
        # Aborting waits for the daemon's answer: never on the thread that serves every host.
        threading.Thread(target=self._abort, name="libvirt-console-close", daemon=True).start()

    def _abort(self) -> None:
        # Where the connection is gone, so is the stream.
        with contextlib.suppress(libvirt.libvirtError, UnavailableError), self._link.use_alone():
            self._stream.abort()

    def _hand_over(self, function: Callable[..., None], *arguments: Any) -> None:
        with contextlib.suppress(RuntimeError):  # the loop is closed
            self._loop.call_soon_threadsafe(function, *arguments)
