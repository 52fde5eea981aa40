"""Running guestctl in tests: in this process, as a process, and on a terminal."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import pty
import select
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.rpc.scripted_server import ScriptedServer, operation
from virtd.cli.guestctl import run
from virtd.v1 import guest_pb2, guest_service_pb2, host_pb2

COMMAND = [sys.executable, "-m", "virtd.cli.guestctl"]


@dataclass(frozen=True)
class Result:
    """How a command ended, and what it said."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)

    @property
    def lines(self) -> list[Any]:
        return [json.loads(line) for line in self.out.splitlines()]


class Ctl:
    """guestctl against one server; a call of it runs a command in this process."""

    def __init__(self, server: ScriptedServer, capfd: pytest.CaptureFixture[str]) -> None:
        self.server = server
        self._capfd = capfd

    def __call__(self, *arguments: str) -> Result:
        self._capfd.readouterr()
        code = run(list(arguments))
        shown = self._capfd.readouterr()
        return Result(int(code), shown.out, shown.err)


def environment(server: ScriptedServer, home: Path) -> dict[str, str]:
    kept = {key: os.environ[key] for key in ("PATH", "LANG", "PYTHONPATH") if key in os.environ}
    return {
        **kept,
        "VIRTD_TARGET": server.target,
        "XDG_CONFIG_HOME": str(home),
        "HOME": str(home),
        "TERM": "xterm",
        "PYTHONUNBUFFERED": "1",
    }


def spawn(server: ScriptedServer, home: Path, *arguments: str, **options: Any) -> subprocess.Popen[bytes]:
    """A process of its own, with pipes."""
    pipes = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE, **options}
    return subprocess.Popen([*COMMAND, *arguments], env=environment(server, home), **pipes)


class Terminal:
    """guestctl with a terminal for stdin, stdout and stderr."""

    def __init__(self, server: ScriptedServer, home: Path, *arguments: str, **extra: str) -> None:
        self.pid, self.descriptor = pty.fork()
        if self.pid == 0:  # pragma: no cover - the child
            os.execve(COMMAND[0], [*COMMAND, *arguments], {**environment(server, home), **extra})
        self.seen = b""

    def read_until(self, wanted: bytes, timeout_s: float = 20.0) -> bytes:
        """Everything seen, once it holds ``wanted``."""
        deadline = time.monotonic() + timeout_s
        while wanted not in self.seen:
            left = deadline - time.monotonic()
            assert left > 0, f"{wanted!r} did not come; there was {self.seen!r}"
            if not self._read(left):
                assert wanted in self.seen, f"it ended with {self.seen!r}"
        return self.seen

    def _read(self, timeout_s: float) -> bool:
        if not select.select([self.descriptor], [], [], timeout_s)[0]:
            return True
        try:
            data = os.read(self.descriptor, 65536)
        except OSError as error:
            if error.errno == errno.EIO:
                return False
            raise
        self.seen += data
        return bool(data)

    def write(self, data: bytes) -> None:
        os.write(self.descriptor, data)

    def wait(self, timeout_s: float = 20.0) -> int:
        """Read to the end; the exit code."""
        deadline = time.monotonic() + timeout_s
        while self._read(0.2):
            assert time.monotonic() < deadline, f"it did not end; there was {self.seen!r}"
        _, status = os.waitpid(self.pid, 0)
        self.pid = 0
        return os.waitstatus_to_exitcode(status)

    def close(self) -> None:
        if self.pid:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, 9)
            os.waitpid(self.pid, 0)
        os.close(self.descriptor)


@contextlib.contextmanager
def terminal(server: ScriptedServer, home: Path, *arguments: str, **extra: str) -> Iterator[Terminal]:
    found = Terminal(server, home, *arguments, **extra)
    try:
        yield found
    finally:
        found.close()


def guest(name: str, host: str = "a", state: int = guest_pb2.GUEST_STATE_RUNNING, **fields: Any) -> guest_pb2.Guest:
    found = guest_pb2.Guest(name=f"hosts/{host}/guests/{name}", uid=f"00000000-0000-4000-8000-{name:0>12}", **fields)
    found.spec.vcpus = 2
    found.spec.memory_bytes = 256 * 2**20
    found.status.state = state  # type: ignore[assignment]  # a plain number, for newer ones too
    found.status.presence = guest_pb2.PRESENCE_PRESENT
    return found


def hosts(*names: str) -> host_pb2.ListHostsResponse:
    return host_pb2.ListHostsResponse(hosts=[host_pb2.Host(name=f"hosts/{name}") for name in names])


def listed(*guests: guest_pb2.Guest, silent: tuple[str, ...] = ()) -> guest_service_pb2.ListGuestsResponse:
    response = guest_service_pb2.ListGuestsResponse(guests=guests, resume_token="t1")
    for name in silent:
        entry = response.host_errors.add(host=f"hosts/{name}")
        entry.error.kind, entry.error.reason = "Unavailable", "HOST_UNREACHABLE"
        entry.error.message = f"{name} does not answer"
    return response


def started(name: str = "operations/1", **fields: Any) -> guest_service_pb2.StartGuestResponse:
    return guest_service_pb2.StartGuestResponse(operation=operation(name, **fields))
