"""A lab host as a process: the QEMU that runs it, its ports, its end."""

from __future__ import annotations

import contextlib
import os
import re
import shlex
import signal
import subprocess
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import psutil

from tests.guests.tools import need_tool, run
from tests.lab.image import Image
from tests.lab.kind import Host, NotReadyError
from tests.lab.qmp import Qmp, QmpError
from tests.lab.ssh import LabError, Ssh

READY = b"lab: ready"
FAILED = b"lab: failed"
_POLL_S = 0.1
_CONTROL_S = 30.0
_END_S = 10.0
# Translated code; the default of a GiB is more than a host of ours ever needs.
_TRANSLATION_MIB = 512
_FORWARD = re.compile(r"TCP\[HOST_FORWARD\]\s+\d+\s+127\.0\.0\.1\s+(\d+)\s+\S+\s+(\d+)")


@dataclass
class Machine:
    """One host, running or not, in a folder of its own."""

    host: Host
    image: Image
    directory: Path
    link: Path
    """The folder with the sockets of the private link, which the hosts of one lab share."""

    wanted_ports: Mapping[str, int] = field(default_factory=dict)
    """Ports of the loopback by what they are for; what is not said is any free one."""

    pid: int = 0
    ports: dict[str, int] = field(default_factory=dict)
    process: subprocess.Popen[bytes] | None = None
    """Where this process started it."""

    @property
    def console_log(self) -> Path:
        """All that the host printed on its console."""
        return self.directory / "console.log"

    @property
    def disk(self) -> Path:
        """What the host writes: an overlay."""
        return self.directory / "disk.qcow2"

    @property
    def log(self) -> Path:
        """What QEMU said."""
        return self.directory / "qemu.log"

    def qmp(self) -> Qmp:
        """A connection to QEMU."""
        return Qmp(self.directory / "qmp")

    def start(self, backing: Path, *, incoming: bool = False, detached: bool = False) -> None:
        """Start QEMU with a new overlay over ``backing``; the host boots, or waits for its memory.

        Unless ``detached``, it ends with the process that started it, however that ends.
        """
        form = "raw" if backing == self.image.disk else "qcow2"
        self.directory.mkdir(parents=True, exist_ok=True)
        for name in ("console.log", "disk.qcow2"):
            (self.directory / name).unlink(missing_ok=True)
        run("qemu-img", "create", "-q", "-f", "qcow2", "-F", form, "-b", backing.absolute(), self.disk)
        command = [str(need_tool("qemu-system-x86_64")), *self.hardware(), *self._surroundings()]
        if incoming:
            command += ["-incoming", "defer"]
        if not detached:
            command = [str(need_tool("setpriv")), "--pdeathsig", "KILL", *command]
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True, cwd="/"
            )
        self.pid = self.process.pid
        try:
            self._find_ports(self.process)
        except BaseException:
            self.stop()
            raise

    def hardware(self) -> list[str]:
        """What the machine is; a saved state is good for the same hardware only."""
        kind = self.host.kind
        boot = kind.boot(self.image.boot_folder, self.host)
        arguments = [
            *("-name", f"lab-{self.host.name}", "-nodefaults", "-no-user-config", "-display", "none", "-vga", "none"),
            *("-machine", "q35", "-accel", f"tcg,thread=multi,tb-size={_TRANSLATION_MIB}", "-cpu", kind.cpu),
            *("-m", str(kind.memory_mib), "-smp", str(kind.processors), "-no-reboot"),
            *("-kernel", boot.kernel, "-append", boot.append, "-initrd", boot.initrd),
            *("-device", "virtio-blk-pci,drive=root", "-device", "virtio-net-pci,netdev=out,romfile="),
            *("-device", "virtio-rng-pci"),
        ]
        if self.host.link:
            address = f"52:54:00:09:00:{self.host.link:02x}"
            arguments += ["-device", f"virtio-net-pci,netdev=link,romfile=,mac={address}"]
        return arguments

    def _surroundings(self) -> list[str]:
        """What the machine is connected to."""
        forwards = "".join(
            f",hostfwd=tcp:127.0.0.1:{self.wanted_ports.get(name, 0)}-:{port}"
            for name, port in self.host.kind.ports.items()
        )
        arguments = [
            *("-drive", f"file={_quoted(self.disk)},format=qcow2,if=none,id=root,cache=unsafe"),
            *("-netdev", f"user,id=out{forwards}"),
            *("-chardev", f"socket,id=console,path={_quoted(self.directory / 'console')},server=on,wait=off"),
            *("-serial", "chardev:console", "-qmp", f"unix:{_quoted(self.directory / 'qmp')},server=on,wait=off"),
        ]
        at = arguments.index("-chardev") + 1
        arguments[at] += f",logfile={_quoted(self.console_log)}"
        if self.host.link:
            # Datagrams between two sockets of ours: no port, and no other lab to meet.
            mine, other = (_quoted(self.link / f"link{number}") for number in (self.host.link, _peer(self.host.link)))
            arguments += [
                "-netdev",
                f"dgram,id=link,local.type=unix,local.path={mine},remote.type=unix,remote.path={other}",
            ]
        return arguments

    def _find_ports(self, process: subprocess.Popen[bytes]) -> None:
        """Learn which ports QEMU got."""
        deadline = time.monotonic() + _CONTROL_S
        while True:
            try:
                with self.qmp() as qmp:
                    said = qmp.monitor("info usernet")
                break
            except QmpError as error:
                if process.poll() is not None:
                    raise LabError(f"{self.host.name}: QEMU ended: {self.log.read_text().strip()}") from error
                if time.monotonic() > deadline:
                    raise LabError(f"{self.host.name}: {error}") from error
                time.sleep(0.02)
        inner = {int(guest): int(port) for port, guest in _FORWARD.findall(said)}
        self.ports = {name: inner[port] for name, port in self.host.kind.ports.items()}

    def alive(self) -> bool:
        """Whether its QEMU runs."""
        return is_ours(self.pid, self.directory)

    def wait_ready(self, limit_s: float, *, booting: bool) -> str:
        """Wait until the host answers a real question, and return the answer.

        :raises LabError: when it ended, failed or took too long.
        """
        deadline = time.monotonic() + limit_s
        last = "nothing yet"
        while True:
            if not self.alive():
                raise LabError(f"{self.host.name} ended: {self.log.read_text().strip()}\n{self.console_tail()}")
            printed = self.console_log.read_bytes() if booting and self.console_log.exists() else b""
            if FAILED in printed:
                raise LabError(f"{self.host.name} did not come up:\n{self.console_tail()}")
            if not booting or READY in printed:
                try:
                    return self.host.kind.check(self.ports)
                except NotReadyError as error:
                    last = str(error)
            if time.monotonic() > deadline:
                raise LabError(f"{self.host.name}: not ready after {limit_s:.0f} s: {last}\n{self.console_tail()}")
            time.sleep(_POLL_S)

    def console_tail(self) -> str:
        """The end of what the host printed."""
        with contextlib.suppress(OSError):
            return self.console_log.read_text(errors="replace")[-2000:]
        return ""

    @property
    def ssh(self) -> Ssh:
        """Commands on the host."""
        return Ssh(self.host.name, self.ports["ssh"], self.image.ssh_key)

    def set_clock(self) -> None:
        """Tell a host that was saved what time it is."""
        self.ssh.run(f"date -s @{time.time() + 0.2:.2f} >/dev/null")

    def stop(self) -> None:
        """End its QEMU, which loses nothing that anybody keeps."""
        if self.process is not None:
            # A child's number is not used again before it was waited for.
            self.process.kill()
            self.process.wait(_END_S)
        else:
            end(self.pid, self.directory)


def end_all(machines: Iterable[Machine]) -> None:
    """End them all, also when ending one fails; then the first failure is raised."""
    with contextlib.ExitStack() as stack:
        for machine in machines:
            stack.callback(machine.stop)


def is_ours(pid: int, directory: Path) -> bool:
    """Whether the process is the QEMU of the machine in that folder: numbers are used again."""
    if not pid:
        return False
    try:
        process = psutil.Process(pid)
        if process.status() == psutil.STATUS_ZOMBIE:
            return False
        return any(f"{directory}/" in word for word in process.cmdline())
    except psutil.Error:
        return False


def end(pid: int, directory: Path) -> None:
    """End the process, if it is the QEMU of the machine in that folder, and wait until it is gone."""
    if not is_ours(pid, directory):
        return
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)
    deadline = time.monotonic() + _END_S
    while is_ours(pid, directory):
        if time.monotonic() > deadline:
            raise LabError(f"process {pid} does not end after SIGKILL")
        time.sleep(0.02)


def _peer(number: int) -> int:
    """The other end of a private link: 1 and 2 have one, 3 and 4."""
    return number + 1 if number % 2 else number - 1


def _quoted(path: Path) -> str:
    """A path as a value in QEMU's options, where a comma ends a value."""
    return str(path).replace(",", ",,")


def shell(path: Path) -> str:
    """A path in a shell command."""
    return shlex.quote(str(path))
