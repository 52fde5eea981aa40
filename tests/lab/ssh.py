"""Commands on a host, by ssh."""

from __future__ import annotations

import subprocess
from dataclasses import dataclass
from pathlib import Path

from tests.guests.tools import need_tool


class LabError(Exception):
    """The lab cannot do what was asked; the message says why and what to do."""


@dataclass(frozen=True, slots=True)
class Ssh:
    """How to reach a host: a port of the loopback, and root's key."""

    name: str
    port: int
    key: Path

    def command(self, timeout_s: float) -> list[str]:
        """The program and its arguments, up to the host's command."""
        return [
            *(str(need_tool("ssh")), "-F", "none", "-i", str(self.key), "-p", str(self.port)),
            *("-o", "BatchMode=yes", "-o", "StrictHostKeyChecking=no", "-o", "UserKnownHostsFile=/dev/null"),
            *("-o", "IdentitiesOnly=yes", "-o", "LogLevel=ERROR", "-o", f"ConnectTimeout={max(1, int(timeout_s))}"),
            "root@127.0.0.1",
        ]

    def run(self, command: str, timeout_s: float = 30.0) -> str:
        """Run a shell command on the host, as root, and return what it printed.

        :raises LabError: when it fails, with its output, or when it takes longer.
        """
        try:
            done = subprocess.run(
                [*self.command(timeout_s), command],
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                timeout=timeout_s,
                check=False,
            )
        except subprocess.TimeoutExpired:
            raise LabError(f"{self.name}: {command}: no end after {timeout_s:.0f} s") from None
        if done.returncode:
            said = (done.stdout + done.stderr).strip()
            raise LabError(f"{self.name}: {command}: exit code {done.returncode}: {said}")
        return done.stdout
