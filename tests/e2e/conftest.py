"""A real daemon as a process, on a private libvirt with real QEMU guests."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from virtd_client import Client, errors

from tests.guests import CMDLINE, DemoGuest, build_demo
from tests.qemu.fixtures import demo, libvirt_host
from virtd.libvirt.private import PrivateLibvirt
from virtd.v1.guest_pb2 import BlankSource, DirectKernelBoot, DiskSpec, Guest, GuestSpec, InterfaceSpec

__all__ = ["demo", "libvirt_host"]

MIB = 2**20
BIN = Path(sys.executable).parent


@dataclass
class Virtd:
    """``virtd serve`` on a private libvirt; the host is ``hosts/kvm``."""

    directory: Path
    libvirt: PrivateLibvirt
    guest: DemoGuest
    extra_config: str = ""
    process: subprocess.Popen[bytes] | None = None
    clients: list[Client] = field(default_factory=list)

    @property
    def target(self) -> str:
        return f"unix:{self.directory}/run/virtd.sock"

    def start(self) -> None:
        config = self.directory / "virtd.toml"
        config.write_text(
            f'[hosts.kvm]\nuri = "{self.libvirt.uri}"\n'
            f'[storage]\nallowed_directories = ["{self.guest.kernel.parent}", "{self.directory}/import"]\n'
            f"[metrics]\ninterval_s = 1\n{self.extra_config}"
        )
        command = [str(BIN / "virtd"), "serve", "--config", str(config), "--state-dir", str(self.directory)]
        with (self.directory / "log").open("ab") as log:
            self.process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stderr=log)
        deadline = time.monotonic() + 30
        with Client.connect(self.target, timeout_s=30) as client:
            while True:
                assert self.process.poll() is None, (self.directory / "log").read_text()[-3000:]
                with contextlib.suppress(errors.Unavailable):
                    client.server.info()
                    return
                assert time.monotonic() < deadline, "virtd does not serve"

    def kill(self) -> None:
        assert self.process is not None
        self.process.kill()
        self.process.wait()

    def stop(self) -> None:
        if self.process is not None and self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
            try:
                self.process.wait(45)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()
                raise

    def client(self) -> Client:
        client = Client.connect(self.target, timeout_s=60)
        self.clients.append(client)
        return client

    def spec(self, *, boots: bool = True, disk: bool = True) -> Guest:
        spec = GuestSpec(memory_bytes=(192 if boots else 32) * MIB)
        if boots:
            spec.direct_kernel_boot.CopyFrom(
                DirectKernelBoot(
                    kernel_path=str(self.guest.kernel), initrd_path=str(self.guest.initrd), command_line=CMDLINE
                )
            )
            spec.interfaces.append(InterfaceSpec(name="net0"))
        if disk:
            spec.disks.append(DiskSpec(name="data", blank=BlankSource(capacity_bytes=16 * MIB)))
        return Guest(spec=spec)

    def virsh(self, *arguments: str) -> str:
        done = subprocess.run(
            ["virsh", "-q", "-c", self.libvirt.uri, *arguments], check=True, capture_output=True, text=True
        )
        return done.stdout

    def guestctl(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        environment = os.environ | {"XDG_CONFIG_HOME": str(self.directory)}
        return subprocess.run(
            [str(BIN / "guestctl"), "--target", self.target, *arguments],
            check=False,
            capture_output=True,
            text=True,
            env=environment,
            stdin=subprocess.DEVNULL,
        )


def _remove_all(virtd: Virtd) -> None:
    """Delete every guest that virtd made: what a test leaves must not meet the next one."""
    with Client.connect(virtd.target, timeout_s=60) as client:
        for guest in client.guests.list().guests:
            if "delete" in guest.status.allowed_actions:
                with contextlib.suppress(errors.NotFound):
                    client.guests.delete(guest.name, force=True).result(timeout_s=60)
        if client.trash.list():
            client.trash.purge().result(timeout_s=60)


@pytest.fixture(scope="module")
def virtd_process(libvirt_host: PrivateLibvirt) -> Iterator[Virtd]:
    with serving(libvirt_host) as virtd:
        yield virtd


@contextlib.contextmanager
def serving(libvirt_host: PrivateLibvirt, extra_config: str = "") -> Iterator[Virtd]:
    """A daemon, and nothing of it afterwards."""
    directory = Path(tempfile.mkdtemp(prefix="virtd-e2e-"))
    directory.chmod(0o711)
    virtd = Virtd(directory, libvirt_host, build_demo(), extra_config)
    try:
        virtd.start()
        yield virtd
        _remove_all(virtd)
    finally:
        for client in virtd.clients:
            client.close()
        virtd.stop()
        # The next module's daemon makes one in a directory of its own.
        for verb in ("pool-destroy", "pool-undefine"):
            with contextlib.suppress(subprocess.CalledProcessError):
                virtd.virsh(verb, "virtd")
        shutil.rmtree(directory, ignore_errors=True)


@pytest.fixture
def virtd(virtd_process: Virtd) -> Iterator[Virtd]:
    """The module's daemon, running, and clean of guests after each test."""
    if virtd_process.process is None or virtd_process.process.poll() is not None:
        virtd_process.start()
    yield virtd_process
    if virtd_process.process is None or virtd_process.process.poll() is not None:
        virtd_process.start()
    _remove_all(virtd_process)
