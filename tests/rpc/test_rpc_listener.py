"""Sockets that a service manager passes in."""

from __future__ import annotations

import asyncio
import os
import socket
from pathlib import Path

import pytest

from virtd.rpc.listener import granted_group


@pytest.mark.parametrize(("mode", "granted"), [(0o660, True), (0o600, False), (0o640, False)])
def test_the_group_of_a_passed_socket_is_a_permission(tmp_path: Path, mode: int, granted: bool) -> None:
    path = tmp_path / "s.sock"
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen()
        gid = 12345 if os.geteuid() == 0 else os.getegid()
        os.chown(path, -1, gid)
        path.chmod(mode)
        assert granted_group(listener.fileno()) == (gid if granted and gid else None)
        assert listener.fileno() >= 0, "the descriptor stays open"


def test_a_socket_without_a_file_grants_nobody() -> None:
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(f"\0virtd-test-{os.getpid()}")
        listener.listen()
        assert granted_group(listener.fileno()) is None


async def test_bytes_that_come_before_the_upstream_is_there_are_kept(tmp_path: Path) -> None:
    """A client speaks first and the kernel is quick; some Pythons read although they were told to pause."""
    from virtd.rpc.front import Front, _Client
    from virtd.rpc.listener import SocketOptions

    got: list[bytes] = []
    done = asyncio.Event()

    async def upstream(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        got.append(await reader.readexactly(11))
        writer.close()
        done.set()

    server = await asyncio.start_unix_server(upstream, str(tmp_path / "up.sock"))
    front = Front(SocketOptions(path=tmp_path / "s.sock"), str(tmp_path / "up.sock"))
    made = _Client.connection_made

    def eager(self: _Client, transport: asyncio.BaseTransport) -> None:
        made(self, transport)
        self.get_buffer(-1)[:5] = b"hello"  # as such a Python does: read before the halves are joined
        self.buffer_updated(5)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_Client, "connection_made", eager)
        await front.start()
        _, writer = await asyncio.open_unix_connection(str(tmp_path / "s.sock"))
        writer.write(b" world")
        await asyncio.wait_for(done.wait(), 10)
        writer.close()
    assert got == [b"hello world"]
    await front.close()
    server.close()
