"""Who calls: the identity of a peer, as the transport proves it.

On a unix socket it is the kernel's word (``SO_PEERCRED``): user, group and process of the one who
called ``connect``.  On TCP without TLS nothing is proved; such a peer is only an address.
"""

from __future__ import annotations

import os
import pwd
import socket
import struct
from dataclasses import dataclass, field
from typing import Final

_UCRED: Final = struct.Struct("iII")  # pid, uid, gid: struct ucred of unix(7)
_SO_PEERGROUPS: Final = 59  # asm-generic/socket.h; Python has no name for it
_BUFFER: Final = 1024  # the most that Python's getsockopt takes: 256 groups


@dataclass(frozen=True, slots=True)
class Peer:
    """One caller.

    :param kind: ``unix``, ``tcp`` or ``unknown``.
    :param uid: of the process that connected; None unless ``unix``.
    :param groups: all its groups, the primary one included.
    :param pid: of the process that connected; it may have passed the socket on, or be gone.
    :param address: of a TCP peer, without the port.
    """

    kind: str = "unknown"
    uid: int | None = None
    gid: int | None = None
    pid: int | None = None
    address: str = ""
    groups: frozenset[int] = field(default_factory=frozenset)

    @property
    def caller(self) -> str:
        """The name in operations, logs and audit records: ``unix:uid=0``, ``tcp:127.0.0.1``."""
        if self.kind == "unix":
            return f"unix:uid={self.uid}"
        return f"tcp:{self.address}" if self.kind == "tcp" else self.kind


UNKNOWN: Final = Peer()
"""A peer of whom nothing is known.  It may do nothing but ask for the daemon's health."""


def unix_peer(connection: socket.socket) -> Peer:
    """The peer of a connected unix socket.

    :raises OSError: the socket is not a connected unix socket.
    """
    pid, uid, gid = _UCRED.unpack(connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _UCRED.size))
    return Peer("unix", uid=uid, gid=gid, pid=pid, groups=frozenset({gid, *_groups(connection, uid, gid)}))


def _groups(connection: socket.socket, uid: int, gid: int) -> list[int]:
    """The supplementary groups: the process's own, or else those of its user's account."""
    try:
        raw = connection.getsockopt(socket.SOL_SOCKET, _SO_PEERGROUPS, _BUFFER)
    except OSError:  # ERANGE: more than 256 groups.  ENOPROTOOPT: Linux before 4.13.
        return _account_groups(uid, gid)
    return list(struct.unpack(f"{len(raw) // 4}I", raw))


def _account_groups(uid: int, gid: int) -> list[int]:
    try:
        return os.getgrouplist(pwd.getpwuid(uid).pw_name, gid)
    except (KeyError, OSError):
        return []
