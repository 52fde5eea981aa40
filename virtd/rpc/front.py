"""The public unix socket: who connects is asked of the kernel, then the bytes go on to gRPC.

gRPC never reads ``SO_PEERCRED`` and calls every unix socket safe.  So it listens on a socket of its
own, in a directory that only this user can enter, and this front owns the public one.  For each
connection it reads the peer's credentials, binds its own end towards gRPC to an abstract name that
nobody else can have at the same time, remembers whom that name stands for, and splices.  A method
then sees the name as ``context.peer()`` and :meth:`Front.identify` tells who it is.

What protects the identity: the directory (0700) keeps others from gRPC's socket; the name is looked
up among those that this front has bound and that are still in use, so that inventing one is no use;
and its random part cannot be guessed beforehand.  The uid in the name is for people (``ss -x``).
"""

from __future__ import annotations

import asyncio
import secrets
import socket
import sys
from typing import Any, Final

from virtd.auth import UNKNOWN, Peer, unix_peer
from virtd.obs.logging import get_logger
from virtd.rpc.listener import BACKLOG, PublicSocket, SocketOptions

log = get_logger(__name__)

_PREFIX: Final = "unix-abstract:"
_CHUNK: Final = 256 * 1024
_CONNECT_TIMEOUT_S: Final = 10.0


def identify_tcp(peer: str) -> Peer:
    """A peer that came by TCP (``ipv4:127.0.0.1:4711``, ``ipv6:[::1]:4711``); else UNKNOWN."""
    kind, _, address = peer.partition(":")
    if kind not in {"ipv4", "ipv6"}:
        return UNKNOWN
    return Peer("tcp", address=address.rpartition(":")[0].replace("%5B", "").replace("%5D", "").strip("[]"))


class Front:
    """Owns the public socket.  Used from the event loop only.

    :param upstream: the path of gRPC's own socket.
    """

    def __init__(self, options: SocketOptions, upstream: str) -> None:
        self._options = options
        self._upstream = upstream
        self._token = secrets.token_hex(8)
        self._peers: dict[str, Peer] = {}
        self._links: set[_Link] = set()
        self._socket: PublicSocket | None = None
        self._server: asyncio.Server | None = None

    async def start(self) -> None:
        """Accept connections.

        :raises FailedPreconditionError: ADDRESS_IN_USE, something listens there.
        :raises InvalidArgumentError: CONFIG_INVALID, the path cannot be used.
        """
        loop = asyncio.get_running_loop()
        self._socket = PublicSocket.open(self._options)
        extra: dict[str, Any] = {"cleanup_socket": False} if sys.version_info >= (3, 13) else {}
        self._server = await loop.create_unix_server(
            lambda: _Client(self), sock=self._socket.listener, backlog=BACKLOG, **extra
        )

    def stop_accepting(self) -> None:
        """Take the public socket away; connections that exist go on.  Idempotent."""
        if self._server is not None:
            self._server.close()
            self._server = None
        if self._socket is not None:
            self._socket.close()
            self._socket = None

    async def close(self) -> None:
        """Take the public socket away and end all connections.  Idempotent."""
        self.stop_accepting()
        for link in list(self._links):
            link.abort()
        # Transports report their end in the loop's next turns.
        for _ in range(3):
            await asyncio.sleep(0)

    @property
    def connections(self) -> int:
        """How many clients are connected."""
        return len(self._links)

    def identify(self, peer: str) -> Peer | None:
        """Whom gRPC's ``context.peer()`` stands for; None when this front did not bind that name."""
        return self._peers.get(peer.removeprefix(_PREFIX)) if peer.startswith(_PREFIX) else None

    # ---------------------------------------------------------------------------- used by the links

    async def connect(self, peer: Peer) -> tuple[socket.socket, str]:
        """Connect to gRPC in the name of ``peer``; return the socket and the name.

        :raises OSError: gRPC's socket does not answer.
        """
        name = f"virtd/{self._token}/{secrets.token_hex(8)}/uid={peer.uid},gid={peer.gid},pid={peer.pid}"
        outgoing = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)
        try:
            outgoing.bind("\0" + name)
            self._peers[name] = peer
            async with asyncio.timeout(_CONNECT_TIMEOUT_S):
                await self._connect(outgoing)
        except BaseException:
            self._peers.pop(name, None)
            outgoing.close()
            raise
        return outgoing, name

    async def _connect(self, outgoing: socket.socket) -> None:
        # A unix socket connects at once or, with a full backlog, not at all (EAGAIN): there is
        # nothing to select on, which asyncio's sock_connect does not know.
        delay = 0.001
        while True:
            try:
                outgoing.connect(self._upstream)
            except BlockingIOError:
                await asyncio.sleep(delay)
                delay = min(delay * 2, 0.1)
            else:
                return

    def opened(self, link: _Link) -> None:
        """Remember a connection."""
        self._links.add(link)

    def closed(self, link: _Link) -> None:
        """Forget a connection; its name then stands for nobody."""
        self._links.discard(link)
        if link.name:
            self._peers.pop(link.name, None)


# ----------------------------------------------------------------------------------------- splicing


class _Link:
    """One client's connection: its two halves, and the name towards gRPC."""

    def __init__(self, front: Front, client: _Half) -> None:
        self.front = front
        self.client = client
        self.upstream: _Half | None = None
        self.name = ""
        self._open = 1
        front.opened(self)

    async def connect(self, connection: socket.socket) -> None:
        """Find out who it is and connect to gRPC."""
        try:
            outgoing, self.name = await self.front.connect(unix_peer(connection))
        except (OSError, TimeoutError) as error:
            log.warning("connection refused: the server's own socket does not answer", error=str(error))
            self.client.abort()
            return
        if self.client.gone:
            outgoing.close()
            self.front.closed(self)
            return
        self._open += 1
        loop = asyncio.get_running_loop()
        await loop.create_connection(lambda: _Upstream(self), sock=outgoing)

    def half_closed(self) -> None:
        """One of the two connections has ended."""
        self._open -= 1
        if self._open == 0:
            self.front.closed(self)

    def abort(self) -> None:
        """End both halves at once."""
        self.client.abort()
        if self.upstream is not None:
            self.upstream.abort()


# All halves read into one buffer, since what was read is passed on before the loop turns again: an
# idle connection costs no memory here.
_BUFFER: Final = bytearray(_CHUNK)
_VIEW: Final = memoryview(_BUFFER)


class _Half(asyncio.BufferedProtocol):
    """One of the two connections; passes what it reads to the other one."""

    def __init__(self, link: _Link | None) -> None:
        self.link = link
        self.gone = False
        self.transport: asyncio.Transport | None = None
        self._other: _Half | None = None
        self._ended = False
        self._early = bytearray()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport

    def join(self, other: _Half) -> None:
        """Tie two halves together and let the bytes flow from the other one."""
        self._other, other._other = other, self
        if self.transport is not None and other._early:
            self.transport.write(bytes(other._early))
            other._early.clear()
        if other.transport is not None:
            other.transport.resume_reading()

    def get_buffer(self, sizehint: int) -> bytearray:
        return _BUFFER

    def buffer_updated(self, nbytes: int) -> None:
        if self._other is not None and self._other.transport is not None:
            # A copy: a transport that cannot send at once keeps what it was given.
            self._other.transport.write(bytes(_VIEW[:nbytes]))
        elif self.transport is not None:
            # Early releases of Python 3.11 (Debian 12 has 3.11.2) read all the same from a transport that
            # connection_made has paused: keep what came, and pause again so that it counts.
            self._early += _VIEW[:nbytes]
            self.transport.resume_reading()
            self.transport.pause_reading()

    def eof_received(self) -> bool:
        self._ended = True
        other = self._other
        if other is None or other.transport is None or other.transport.is_closing():
            return False
        if other._ended:  # noqa: SLF001 - the same class
            other.transport.close()
            return False
        other.transport.write_eof()
        return True  # the other direction stays open

    def pause_writing(self) -> None:
        if self._other is not None and self._other.transport is not None:
            self._other.transport.pause_reading()

    def resume_writing(self) -> None:
        if self._other is not None and self._other.transport is not None:
            self._other.transport.resume_reading()

    def connection_lost(self, exc: Exception | None) -> None:
        self.gone = True
        if self._other is not None and self._other.transport is not None:
            self._other.transport.close()  # sends what is left first
        if self.link is not None:
            self.link.half_closed()

    def abort(self) -> None:
        """End this half at once."""
        if self.transport is not None:
            self.transport.abort()


class _Client(_Half):
    """The half towards a client."""

    def __init__(self, front: Front) -> None:
        super().__init__(None)
        self._front = front
        self._task: asyncio.Task[None] | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        assert self.transport is not None
        self.transport.pause_reading()
        self.link = _Link(self._front, self)
        self._task = asyncio.create_task(self.link.connect(transport.get_extra_info("socket")))


class _Upstream(_Half):
    """The half towards gRPC, which speaks first: it is joined before anything can be read."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        assert self.link is not None
        self.link.upstream = self
        if self.link.client.gone:
            transport.close()
        else:
            self.join(self.link.client)
