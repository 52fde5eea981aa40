"""``python -m tests.guests.boot_check``: proves the demo guest by booting it under plain emulation.

Booted directly, it must say ``demo: ready``, take an address, answer its agent, and power off at
the power button. Then its disk must do the same from the BIOS and, where this machine has the
firmware, from UEFI. Prints how long everything took.
"""

from __future__ import annotations

import contextlib
import json
import re
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.guests.demo import CMDLINE, DemoGuest, build_demo
from tests.guests.tools import GuestBuildError, need_tool, run

# GRUB under UEFI runs out of memory with less; a direct boot is content with 96.
_MEMORY_MIB = 256
_PATIENCE = 90.0
_OVMF = (
    ("/usr/share/OVMF/OVMF_CODE_4M.fd", "/usr/share/OVMF/OVMF_VARS_4M.fd"),
    ("/usr/share/OVMF/OVMF_CODE.fd", "/usr/share/OVMF/OVMF_VARS.fd"),
)


class CheckError(Exception):
    """The guest did not do what it should."""


class JsonSocket:
    """A line of JSON out, a line of JSON back: QMP and the guest agent both speak so."""

    def __init__(self, path: Path) -> None:
        """Connect to the socket that QEMU listens on."""
        self._socket = socket.socket(socket.AF_UNIX)
        self._socket.connect(str(path))
        self._socket.settimeout(1)
        self._unread = b""

    def close(self) -> None:
        """Hang up."""
        self._socket.close()

    def send(self, command: str, **arguments: object) -> None:
        """Send a command."""
        request = {"execute": command, **({"arguments": arguments} if arguments else {})}
        self._socket.sendall(json.dumps(request).encode() + b"\n")

    def receive(self) -> dict[str, Any] | None:
        """Return the next message; None if there is none within a second."""
        while b"\n" not in self._unread:
            try:
                data = self._socket.recv(65536)
            except TimeoutError:
                return None
            if not data:
                raise CheckError("QEMU hung up")
            self._unread += data
        line, _, self._unread = self._unread.partition(b"\n")
        message: dict[str, Any] = json.loads(line.lstrip(b"\xff"))
        return message

    def answer(self) -> object:
        """Return what the next answer returns, skipping events; None if none comes."""
        while (message := self.receive()) is not None:
            if "return" in message:
                return message["return"]
            if "error" in message:
                raise CheckError(f"refused: {message['error']}")
        return None


@dataclass
class Machine:
    """A running QEMU and the folder with its sockets and its serial output."""

    process: subprocess.Popen[bytes]
    folder: Path
    started: float

    @property
    def seconds(self) -> float:
        """How long it has been running."""
        return time.monotonic() - self.started

    def serial(self) -> str:
        """Return all that the guest has printed on its serial port."""
        with contextlib.suppress(FileNotFoundError):
            return (self.folder / "serial").read_text(errors="replace")
        return ""

    def wait_until(self, what: str, condition: Callable[[], bool]) -> float:
        """Wait for the condition; how long the machine had then been running."""
        while not condition():
            if self.seconds > _PATIENCE:
                raise self._failure(f"{what}: not within {_PATIENCE:.0f} s")
            if self.process.poll() is not None:
                raise self._failure(f"{what}: QEMU ended with {self.process.returncode}")
            time.sleep(0.02)
        return self.seconds

    def wait_for_line(self, pattern: str) -> tuple[float, str]:
        """Wait for a line on the serial port; when it came, and what matched."""
        regex = re.compile(pattern, re.MULTILINE)
        when = self.wait_until(pattern, lambda: regex.search(self.serial()) is not None)
        match = regex.search(self.serial())
        return when, match.group().strip() if match else ""

    def wait_for_agent(self) -> float:
        """Wait until the guest agent answers a ping; when it did."""
        self.wait_until("agent socket", (self.folder / "agent").exists)
        agent = JsonSocket(self.folder / "agent")
        with contextlib.closing(agent):

            def answers() -> bool:
                agent.send("guest-ping")
                return agent.answer() is not None

            return self.wait_until("guest-ping", answers)

    def power_off(self) -> float:
        """Press the power button until QEMU ends; how long that took."""
        begin = time.monotonic()
        qmp = JsonSocket(self.folder / "qmp")
        with contextlib.closing(qmp):
            qmp.receive()
            qmp.send("qmp_capabilities")
            qmp.answer()
            while time.monotonic() - begin < _PATIENCE:
                # A press while the guest boots can be lost, and a second one does no harm.
                with contextlib.suppress(BrokenPipeError, ConnectionError, CheckError):
                    qmp.send("system_powerdown")
                with contextlib.suppress(subprocess.TimeoutExpired):
                    self.process.wait(2)
                    return time.monotonic() - begin
        raise self._failure("power button: no effect")

    def _failure(self, message: str) -> CheckError:
        printed = "\n".join(self.serial().splitlines()[-20:])
        return CheckError(f"{message}; last on the serial port:\n{printed}")


@contextlib.contextmanager
def machine(*arguments: str | Path) -> Iterator[Machine]:
    """Run QEMU with the arguments and what every check needs; it is gone afterwards."""
    with tempfile.TemporaryDirectory(prefix="virtd-boot-") as name:
        folder = Path(name)
        command = [
            str(need_tool("qemu-system-x86_64")),
            *("-nodefaults", "-no-user-config", "-display", "none", "-no-reboot"),
            *("-machine", "q35", "-accel", "tcg,tb-size=256", "-cpu", "max"),
            *("-m", str(_MEMORY_MIB)),
            *("-serial", f"file:{folder}/serial"),
            *("-qmp", f"unix:{folder}/qmp,server=on,wait=off"),
            *("-chardev", f"socket,id=agent,path={folder}/agent,server=on,wait=off"),
            *("-device", "virtio-serial-pci"),
            *("-device", "virtserialport,chardev=agent,name=org.qemu.guest_agent.0"),
            *("-nic", "user,model=virtio-net-pci"),
            *map(str, arguments),
        ]
        started = time.monotonic()
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
        try:
            yield Machine(process, folder, started)
        finally:
            if process.poll() is None:
                process.kill()
            process.wait()


def check(title: str, *arguments: str | Path) -> None:
    """Boot once, see that the guest does what it should, and print the times."""
    with machine(*arguments) as guest:
        ready, _ = guest.wait_for_line(r"demo: ready\s*$")
        agent = guest.wait_for_agent()
        address, line = guest.wait_for_line(r"demo: ip eth0 10\.0\.2\.\d+/24\s*$")
        off = guest.power_off()
        if guest.process.returncode != 0:
            raise CheckError(f"{title}: QEMU ended with {guest.process.returncode}")
    _print(
        f"{title}: ready {ready:.1f} s, agent {agent:.1f} s, {line!r} {address:.1f} s, off {off:.1f} s after the button"
    )


def check_all(guest: DemoGuest) -> None:
    """Boot the guest in each way it can be booted."""
    check("direct", "-kernel", guest.kernel, "-initrd", guest.initrd, "-append", CMDLINE)
    with tempfile.TemporaryDirectory(prefix="virtd-boot-") as name:
        scratch = Path(name)
        check("BIOS", *_disk(guest, scratch / "bios.qcow2"))
        for code, variables in _OVMF:
            if Path(code).is_file() and Path(variables).is_file():
                own = scratch / "vars.fd"
                shutil.copyfile(variables, own)
                flash = (
                    *("-drive", f"if=pflash,format=raw,unit=0,readonly=on,file={code}"),
                    *("-drive", f"if=pflash,format=raw,unit=1,file={own}"),
                )
                check("UEFI", *flash, *_disk(guest, scratch / "uefi.qcow2"))
                break
        else:
            _print("UEFI: skipped, no firmware here (apt-get install ovmf)")


def _disk(guest: DemoGuest, overlay: Path) -> tuple[str, ...]:
    """Return the arguments for a disk over the guest's, which must stay as it is."""
    run("qemu-img", "create", "-q", "-f", "qcow2", "-b", guest.disk, "-F", "qcow2", overlay)
    return (
        *("-drive", f"if=none,id=disk,format=qcow2,file={overlay}"),
        *("-device", "virtio-blk-pci,drive=disk,bootindex=0"),
    )


def _print(line: str) -> None:
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


def main() -> int:
    """Run the command; its exit code."""
    begin = time.monotonic()
    try:
        guest = build_demo()
        _print(f"build_demo: {time.monotonic() - begin:.2f} s, {guest.kernel.parent}")
        for path in (guest.kernel, guest.initrd, guest.disk):
            _print(f"  {path.name}: {path.stat().st_size / 1e6:.1f} MB")
        check_all(guest)
    except (CheckError, GuestBuildError) as error:
        sys.stderr.write(f"boot check failed: {error}\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
