"""Saved hosts: booted once, saved as they run, started from there in about a second.

A saved state is the host's disk, as an overlay over the image, and its memory.  It is good for one host, one image,
one version of QEMU and one set of hardware; the key says so.  One that cannot be started is thrown away: the host boots
instead, which takes a minute, and is saved anew.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
import time
from pathlib import Path

from tests.guests.tools import need_tool, run
from tests.lab.image import locked, say
from tests.lab.machine import Machine, shell
from tests.lab.qmp import Qmp, QmpError
from tests.lab.ssh import LabError

_FORMAT = "1"
"""Another one makes all saved states stale: count up when how they are made changes."""

_RESTORE_S = 60.0
_SAVE_S = 300.0
_POLL_S = 0.05
_BANDWIDTH = 1 << 40  # no limit: it is a file


def key(machine: Machine) -> str:
    """What a saved state of the machine is good for."""
    folder = str(machine.image.folder)
    words = [word.replace(folder, "") for word in machine.hardware()]
    version = run("qemu-system-x86_64", "--version").decode().splitlines()[0]
    text = "\0".join([_FORMAT, version, *words])
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def folder(machine: Machine) -> Path:
    """Where the saved state of the machine is, if there is one."""
    return machine.image.folder / f"saved-{machine.host.name}-{key(machine)}"


def start(machine: Machine, *, detached: bool = False) -> None:
    """Start the host, from its saved state if there is one that works, and wait until it answers.

    :raises LabError: when it does not come up; nothing runs then.
    """
    saved = folder(machine)
    if saved.is_dir():
        try:
            _restore(machine, saved, detached=detached)
        except (LabError, QmpError) as error:
            machine.stop()
            say(f"{machine.host.name}: the saved state does not work and is made anew: {_first_line(error)}")
            _discard(machine, saved)
        else:
            return
    save(machine)
    _restore(machine, saved, detached=detached)


def save(machine: Machine) -> None:
    """Boot the host and save it, unless somebody else just did."""
    saved = folder(machine)
    with locked(f"lab-{machine.host.name}") as scratch:
        if saved.is_dir():
            return
        say(f"{machine.host.name}: booting, to save it")
        started = time.monotonic()
        booted = Machine(machine.host, machine.image, scratch / "machine", scratch)
        booted.start(machine.image.disk)
        try:
            booted.wait_ready(machine.host.kind.boot_s, booting=True)
            _write(booted, scratch / "memory.zst")
        finally:
            booted.stop()
        made = scratch / "made"
        made.mkdir()
        os.replace(scratch / "memory.zst", made / "memory.zst")
        os.replace(booted.disk, made / "disk.qcow2")
        # The cache may be moved: what belongs together stays together.
        run("qemu-img", "rebase", "-u", "-F", "raw", "-b", f"../{machine.image.disk.name}", made / "disk.qcow2")
        shutil.copyfile(booted.console_log, made / "console.log")
        for path in machine.image.folder.glob(f"saved-{machine.host.name}-*"):
            shutil.rmtree(path, ignore_errors=True)  # of another version of QEMU
        os.replace(made, saved)
        say(f"{machine.host.name}: saved after {time.monotonic() - started:.0f} s")


def _write(machine: Machine, target: Path) -> None:
    """Write the running machine's memory, and end it."""
    # What programs just did is to be on the disk that is kept.
    machine.ssh.run("sync")
    with machine.qmp() as qmp:
        qmp("migrate-set-parameters", max_bandwidth=_BANDWIDTH)
        qmp("migrate", uri=f"exec:{shell(need_tool('zstd'))} -q -3 -T0 -f -o {shell(target)}")
        _wait(qmp, _SAVE_S)
        with contextlib.suppress(QmpError):
            qmp("quit")  # writes what it still has for the disk
    deadline = time.monotonic() + _RESTORE_S
    while machine.alive():
        if time.monotonic() > deadline:
            raise LabError(f"{machine.host.name}: QEMU does not end after it was saved")
        time.sleep(_POLL_S)


def _restore(machine: Machine, saved: Path, *, detached: bool) -> None:
    machine.start(saved / "disk.qcow2", incoming=True, detached=detached)
    try:
        with machine.qmp() as qmp:
            qmp("migrate-incoming", uri=f"exec:{shell(need_tool('zstd'))} -dcq {shell(saved / 'memory.zst')}")
            _wait(qmp, _RESTORE_S)
            if qmp("query-status")["status"] != "running":
                qmp("cont")
        machine.wait_ready(_RESTORE_S, booting=False)
        machine.set_clock()
    except BaseException:
        machine.stop()
        raise


def _wait(qmp: Qmp, limit_s: float) -> None:
    deadline = time.monotonic() + limit_s
    while True:
        answer = qmp("query-migrate")
        status = answer.get("status")
        if status == "completed":
            return
        if status in {"failed", "cancelled"}:
            raise LabError(f"QEMU's migration {status}: {answer.get('error-desc', 'no reason given')}")
        if time.monotonic() > deadline:
            raise LabError(f"QEMU's migration is {status} after {limit_s:.0f} s")
        time.sleep(_POLL_S)


def _discard(machine: Machine, saved: Path) -> None:
    with locked(f"lab-{machine.host.name}") as scratch, contextlib.suppress(FileNotFoundError):
        os.replace(saved, scratch / "broken")


def _first_line(error: Exception) -> str:
    return str(error).partition("\n")[0]
