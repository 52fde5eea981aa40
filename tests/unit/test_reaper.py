"""The reaper: processes without a parent are reaped at once, and exit codes pass through."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import pytest

_ROOT = Path(__file__).resolve().parents[2]
_ORPHAN = """
import os, subprocess, sys, time
from pathlib import Path
orphan = int(subprocess.check_output(["sh", "-c", "sleep 0.3 >/dev/null & echo $!"]))
parent = int(Path(f"/proc/{orphan}/stat").read_text().rpartition(")")[2].split()[1])
assert parent == os.getppid(), f"the orphan belongs to {parent}, not to the reaper"
for _ in range(1000):
    time.sleep(0.01)
    if not Path(f"/proc/{orphan}").exists():
        sys.exit(7)
"""


def reaper(*command: str) -> subprocess.Popen[bytes]:
    return subprocess.Popen([sys.executable, "-m", "tests.tools.reaper", *command], cwd=_ROOT, stdout=subprocess.PIPE)


def test_orphans_are_reaped() -> None:
    with reaper(sys.executable, "-c", _ORPHAN) as running:
        assert running.wait(30) == 7


@pytest.mark.parametrize(("script", "code"), [("exit 0", 0), ("exit 5", 5), ("kill -9 $$", 137)])
def test_exit_code(script: str, code: int) -> None:
    with reaper("sh", "-c", script) as running:
        assert running.wait(30) == code


def test_sigterm_reaches_the_command() -> None:
    with reaper("sh", "-c", "trap 'exit 9' TERM; echo ready; while :; do sleep 0.05; done") as running:
        try:
            assert running.stdout is not None
            assert running.stdout.readline() == b"ready\n"
            running.send_signal(signal.SIGTERM)
            assert running.wait(30) == 9
        finally:
            running.kill()
