"""The service manager's protocol, spoken to a socket of our own."""

from __future__ import annotations

import os
import socket
import uuid
from pathlib import Path

import pytest

from virtd.obs.sdnotify import notify, watchdog_interval_s


def received(address: str, bind: str) -> bytes:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(bind)
        manager.settimeout(5)
        assert notify("READY=1\nSTATUS=serving", {"NOTIFY_SOCKET": address})
        return manager.recv(1000)


def test_notify_by_path(tmp_path: Path) -> None:
    path = str(tmp_path / "n")
    assert received(path, path) == b"READY=1\nSTATUS=serving"


def test_notify_by_abstract_name() -> None:
    name = f"virtd-test-{uuid.uuid4()}"
    assert received(f"@{name}", f"\0{name}") == b"READY=1\nSTATUS=serving"


@pytest.mark.parametrize("address", ["", "/no/such/socket", "relative", "vsock:2:1"])
def test_nobody_listens(address: str) -> None:
    assert notify("READY=1", {"NOTIFY_SOCKET": address}) is False
    assert notify("READY=1", {}) is False


@pytest.mark.parametrize(
    ("environ", "seconds"),
    [
        ({}, None),
        ({"WATCHDOG_USEC": "30000000"}, 15.0),
        ({"WATCHDOG_USEC": "30000000", "WATCHDOG_PID": str(os.getpid())}, 15.0),
        ({"WATCHDOG_USEC": "30000000", "WATCHDOG_PID": "1"}, None),
        ({"WATCHDOG_USEC": "0"}, None),
        ({"WATCHDOG_USEC": "x"}, None),
    ],
)
def test_watchdog(environ: dict[str, str], seconds: float | None) -> None:
    assert watchdog_interval_s(environ) == seconds
