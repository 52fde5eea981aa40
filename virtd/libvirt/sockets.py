"""Whether a libvirt daemon of this machine answers, without a connection that could start one."""

from __future__ import annotations

import asyncio
import socket
from typing import Final

_ANSWER_S: Final = 1.0


async def answers(path: str) -> bool:
    """Whether somebody accepts connections at a socket that this user may open."""
    return await asyncio.to_thread(_knock, path)


def _knock(path: str) -> bool:
    with socket.socket(socket.AF_UNIX) as probe:
        probe.settimeout(_ANSWER_S)
        try:
            probe.connect(path)
        except OSError:
            return False
    return True
