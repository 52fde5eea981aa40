"""One native connection with a safe end.

libvirt frees a connection when it is closed, also while another thread is in a call on it; closing
talks to the daemon, which may hang; and callbacks that are still registered keep the connection
alive for ever.  So users are counted, and the last one's end, or the release, closes it on a thread
of its own.

Two threads must never wait in calls on one connection.  Before version 10.4, libvirt leaves the event
source of one that is interrupted behind, pointing into its stack (CVE-2024-4418); when the connection dies
meanwhile, as with a daemon that was stopped, the other thread falls over it and the process is gone.
Debian 12's libvirt has this.  :meth:`Link.use_alone` is for connections that several threads know.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from typing import Any, Final

import libvirt

from virtd.errors import UnavailableError
from virtd.libvirt.errors import unreachable


class Link:
    """A connection.  Thread-safe.

    :param generation: which connect of the host it belongs to.
    """

    def __init__(self, connection: Any, generation: int = 0) -> None:
        self._connection: Any = connection
        self.generation = generation
        self.callbacks: list[int] = []
        self._lock: Final = threading.Lock()
        self._alone: Final = threading.Lock()
        self._users = 0
        self._released = False
        self._closed: Final = threading.Event()

    @contextlib.contextmanager
    def use(self) -> Iterator[Any]:
        """The native connection, which stays open in the block.

        :raises UnavailableError: HOST_UNREACHABLE, it was released.
        """
        with self._lock:
            if self._released:
                raise unreachable("the connection to the host was closed")
            self._users += 1
        try:
            yield self._connection
        finally:
            with self._lock:
                self._users -= 1
                last = self._unused()
            if last:
                self._close_later()

    @contextlib.contextmanager
    def use_alone(self) -> Iterator[Any]:
        """As :meth:`use`, one thread after the other.

        :raises UnavailableError: HOST_UNREACHABLE, it was released.
        """
        with self._alone, self.use() as connection:
            yield connection

    def is_alive(self) -> bool:
        """Whether the connection is open, as far as is known without asking."""
        with contextlib.suppress(libvirt.libvirtError, UnavailableError), self.use() as connection:
            return bool(connection.isAlive())
        return False

    def release(self) -> None:
        """Close it as soon as nobody uses it.  Returns at once; idempotent."""
        with self._lock:
            if self._released:
                return
            self._released = True
            unused = self._unused()
        if unused:
            self._close_later()

    def wait_closed(self, timeout_s: float) -> bool:
        """Wait until it is really closed (an in-process driver then forgets its world)."""
        return self._closed.wait(timeout_s)

    def _unused(self) -> bool:
        return self._released and self._users == 0

    def _close_later(self) -> None:
        threading.Thread(target=self._close, name="libvirt-close", daemon=True).start()

    def _close(self) -> None:
        steps = [
            lambda callback=callback: self._connection.domainEventDeregisterAny(callback) for callback in self.callbacks
        ]
        try:
            for step in (*steps, self._connection.unregisterCloseCallback, self._connection.close):
                with contextlib.suppress(libvirt.libvirtError), self._alone:
                    step()
        finally:
            self._closed.set()
