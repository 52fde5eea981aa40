"""Prometheus' own checker, for tests: taken out of Debian's package, which is not installed.

Installing the package would start a server on the machine of whoever runs the tests.
"""

from __future__ import annotations

import fcntl
import shutil
import subprocess
import tempfile
from pathlib import Path

from tests.guests.cache import cache_root


def promtool() -> Path:
    """The program; unpacked into the cache at the first call.

    :raises subprocess.CalledProcessError: the package cannot be had.
    """
    installed = shutil.which("promtool")
    if installed:
        return Path(installed)
    directory = cache_root() / "promtool"
    program = directory / "promtool"
    directory.mkdir(parents=True, exist_ok=True)
    with (directory / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not program.exists():
            with tempfile.TemporaryDirectory(dir=directory) as scratch:
                # As this user, not as apt's own: that one may not write here.
                command = ["apt-get", "-o", "APT::Sandbox::User=root", "-q", "download", "prometheus"]
                subprocess.run(command, cwd=scratch, check=True, capture_output=True)
                (package,) = Path(scratch).glob("*.deb")
                subprocess.run(["dpkg-deb", "-x", package, f"{scratch}/root"], check=True)
                Path(scratch, "root/usr/bin/promtool").rename(program)
    return program
