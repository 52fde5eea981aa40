"""A client of QEMU's machine protocol: commands one after the other, events ignored."""

from __future__ import annotations

import json
import socket
from pathlib import Path
from types import TracebackType
from typing import Any, Self


class QmpError(Exception):
    """QEMU refused a command, or is gone; the message is QEMU's."""


class Qmp:
    """A connection to QEMU's control socket."""

    def __init__(self, path: Path, timeout_s: float = 60.0) -> None:
        self._socket = socket.socket(socket.AF_UNIX)
        try:
            self._socket.settimeout(timeout_s)
            self._socket.connect(str(path))
            self._stream = self._socket.makefile("rb")
            self._read()
        except OSError as error:
            self._socket.close()
            raise QmpError(f"QEMU's control socket {path}: {error}") from error
        self("qmp_capabilities")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stream.close()
        self._socket.close()

    def __call__(self, command: str, **arguments: Any) -> Any:
        """Run a command and return what it returns."""
        request = {"execute": command, "arguments": {key.replace("_", "-"): arguments[key] for key in arguments}}
        try:
            self._socket.sendall(json.dumps(request).encode() + b"\n")
            while True:
                answer = self._read()
                if "return" in answer:
                    return answer["return"]
                if "error" in answer:
                    raise QmpError(f"{command}: {answer['error']['desc']}")
        except OSError as error:
            raise QmpError(f"{command}: {error}") from error

    def monitor(self, line: str) -> str:
        """Run a command of the monitor for people, where there is no other; return what it printed."""
        answer: str = self("human-monitor-command", **{"command-line": line})
        return answer

    def _read(self) -> dict[str, Any]:
        line = self._stream.readline()
        if not line:
            raise QmpError("QEMU closed its control socket")
        answer: dict[str, Any] = json.loads(line)
        return answer
