"""The private libvirtd of the tests goes away with the run that started it, however the run ends."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from tests.qemu.fixtures import remove_abandoned
from virtd.libvirt.private import PrivateLibvirt

_ROOT = Path(__file__).resolve().parents[2]
_RUN = """
import time
from tests.qemu.fixtures import private_libvirt
with private_libvirt() as daemon:
    print(daemon.directory, flush=True)
    time.sleep(60)
"""


@pytest.mark.parametrize("ending", [signal.SIGTERM, signal.SIGKILL])
def test_daemon_of_an_ended_run_is_removed(ending: signal.Signals) -> None:
    with subprocess.Popen([sys.executable, "-c", _RUN], cwd=_ROOT, stdout=subprocess.PIPE, text=True) as run:
        try:
            assert run.stdout is not None
            daemon = PrivateLibvirt(run.stdout.readline().strip())
            pid = daemon.pid
            assert pid is not None
            remove_abandoned()
            assert daemon.pid == pid, "a daemon whose run goes on is left alone"
            run.send_signal(ending)
            run.wait(30)
        finally:
            run.kill()
    if ending is signal.SIGKILL:
        assert daemon.pid == pid
        remove_abandoned()
    assert not daemon.directory.exists()
    for _ in range(200):  # it gives up the lock of its pid file a moment before it ends
        if not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE:
            return
        time.sleep(0.05)
    pytest.fail(f"libvirtd {pid} still runs")
