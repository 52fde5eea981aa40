"""Sockets that a service manager passes in."""

from __future__ import annotations

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
