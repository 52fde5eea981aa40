"""A real daemon as a process, that manages hosts of the lab; tests speak to it through the public API."""

from __future__ import annotations

import contextlib
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from virtd_client import Client, errors

from virtd.v1.guest_pb2 import DirectKernelBoot, Guest, GuestSpec

MIB = 2**20
FILES = "/srv/guest"
"""Where every host of the lab has its guests' files."""
KVM_CMDLINE = "console=ttyS0 quiet"
XEN_CMDLINE = "console=hvc0 quiet cryptomgr.notests rodata=off mitigations=off audit=0 lsm=none"
_BIN = Path(sys.executable).parent


@dataclass
class LabVirtd:
    """``virtd serve``; ``hosts`` are its hosts, their URIs by their ids, ``options`` what else is said of them."""

    directory: Path
    hosts: Mapping[str, str]
    options: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    process: subprocess.Popen[bytes] | None = None
    clients: list[Client] = field(default_factory=list)

    def start(self) -> None:
        """Returns when it serves."""
        config = self.directory / "virtd.toml"
        hosts = "".join(f'[hosts.{host}]\nuri = "{uri}"\n' for host, uri in self.hosts.items())
        for host, options in self.options.items():
            hosts += f"[hosts.{host}.options]\n" + "".join(f'{key} = "{value}"\n' for key, value in options.items())
        config.write_text(f'{hosts}[storage]\nallowed_directories = ["{FILES}"]\n[discovery]\nenabled = false\n')
        command = [str(_BIN / "virtd"), "serve", "--config", str(config), "--state-dir", str(self.directory)]
        with (self.directory / "log").open("ab") as log:
            self.process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stderr=log)
        deadline = time.monotonic() + 60
        with Client.connect(self._target, timeout_s=60) as client:
            while True:
                assert self.process.poll() is None, (self.directory / "log").read_text()[-3000:]
                with contextlib.suppress(errors.Unavailable):
                    client.server.info()
                    return
                assert time.monotonic() < deadline, "virtd does not serve"

    def stop(self) -> None:
        """Returns when it has ended."""
        if self.process is not None and self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
            try:
                self.process.wait(60)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()
                raise

    def kill(self) -> None:
        """By ``kill -9``; :meth:`start` starts it again."""
        assert self.process is not None
        self.process.kill()
        self.process.wait()

    def client(self) -> Client:
        """A client that is closed with the daemon."""
        client = Client.connect(self._target, timeout_s=180)
        self.clients.append(client)
        return client

    def virsh(self, host: str, *arguments: str) -> str:
        """What libvirt itself says."""
        done = subprocess.run(
            ["virsh", "-q", "-c", self.hosts[host], *arguments], check=True, capture_output=True, text=True
        )
        return done.stdout

    @property
    def _target(self) -> str:
        return f"unix:{self.directory}/run/virtd.sock"


@contextlib.contextmanager
def serving(hosts: Mapping[str, str], options: Mapping[str, Mapping[str, str]] | None = None) -> Iterator[LabVirtd]:
    """A daemon, and nothing of it afterwards."""
    directory = Path(tempfile.mkdtemp(prefix="virtd-lab-"))
    virtd = LabVirtd(directory, hosts, options or {})
    try:
        virtd.start()
        yield virtd
    finally:
        for client in virtd.clients:
            client.close()
        virtd.stop()
        shutil.rmtree(directory, ignore_errors=True)


def kernel_guest(memory_mib: int, *, initrd: str, kernel: str = "vmlinuz", command_line: str = KVM_CMDLINE) -> Guest:
    """A guest that boots one of the lab's kernels."""
    boot = DirectKernelBoot(kernel_path=f"{FILES}/{kernel}", initrd_path=f"{FILES}/{initrd}", command_line=command_line)
    return Guest(spec=GuestSpec(memory_bytes=memory_mib * MIB, direct_kernel_boot=boot))


class Shell:
    """The shell on a guest's serial console, by the console's log and one writer.

    Guests print ticks and the kernel's messages in between: they are taken out of what a command prints.
    """

    def __init__(self, client: Client, name: str) -> None:
        self._client = client
        self._name = name
        self._count = 0

    def wait(self, pattern: str, timeout_s: float = 240) -> re.Match[str]:
        """Until the console has shown it, from the guest's start on."""
        return self._seen(0, pattern, timeout_s)

    def run(self, script: str, timeout_s: float = 60) -> str:
        """What a command prints."""
        self._count += 1
        begin = self._client.console.read_log(self._name).next_offset
        with self._client.console.attach(self._name, take=True) as session:
            # The quotes keep the marks out of the echo of the line itself.
            session.write(f"echo fr''om-{self._count}; {script}; echo t''o-{self._count}\n".encode())
            said = self._seen(begin, rf"from-{self._count}\n((?s:.*?))to-{self._count}\b", timeout_s).group(1)
        lines = said.replace("\x1b[6n", "").splitlines()
        return "\n".join(line for line in lines if not re.match(r"tick \d+|\[ *\d+\.\d+\]", line)).strip()

    def _seen(self, offset: int, pattern: str, timeout_s: float) -> re.Match[str]:
        deadline = time.monotonic() + timeout_s
        while True:
            said = self._client.console.read_log(self._name, offset=offset).data.decode(errors="replace")
            said = said.replace("\r", "")
            if found := re.search(pattern, said):
                return found
            assert time.monotonic() < deadline, f"not seen on the console: {pattern}; the end of it: {said[-500:]}"
            time.sleep(0.3)
