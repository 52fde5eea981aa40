"""A guest moves live between the two nested KVM hosts, through the public API, while a counter in it goes on counting.

Both hosts really use KVM, and their libvirt daemons reach each other over the network, which virtd's own way to them
(forwarded ports of the loopback interface) says nothing of: so it is configured.
"""

from __future__ import annotations

import contextlib
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from virtd_client import Client, errors

from tests.guests import CMDLINE
from virtd.v1.guest_pb2 import BlankSource, DirectKernelBoot, DiskSpec, Guest, GuestSpec
from virtd.v1.operation_pb2 import OPERATION_STATE_CANCELLED, OPERATION_STATE_SUCCEEDED

if TYPE_CHECKING:
    from tests.lab.hosts import LabHost

pytestmark = [pytest.mark.lab, pytest.mark.timeout(900)]

MIB = 2**20
ONE, TWO = "hosts/kvm1", "hosts/kvm2"
ADDRESSES = {"kvm1": "10.9.0.1", "kvm2": "10.9.0.2"}
GUEST = "mig-count"
PATIENCE_S = 300.0


@dataclass
class Daemon:
    """``virtd serve`` with both hosts."""

    directory: Path
    uris: dict[str, str]
    process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        lines = ['[storage]\nallowed_directories = ["/srv/guest"]\n[discovery]\nenabled = false\n']
        for name, uri in self.uris.items():
            lines.append(f'[hosts.{name}]\nuri = "{uri}"\n[hosts.{name}.options]\n')
            lines.append(f'migration_uri = "qemu+tcp://{ADDRESSES[name]}/system"\n')
            lines.append(f'migration_data_uri = "tcp://{ADDRESSES[name]}"\n')
        config = self.directory / "virtd.toml"
        config.write_text("".join(lines))
        binary = Path(sys.executable).parent / "virtd"
        with (self.directory / "log").open("ab") as log:
            self.process = subprocess.Popen(
                [str(binary), "serve", "--config", str(config), "--state-dir", str(self.directory)],
                stdin=subprocess.DEVNULL,
                stderr=log,
            )

    def kill(self) -> None:
        assert self.process is not None
        self.process.kill()
        self.process.wait()

    def client(self) -> Client:
        return Client.connect(f"unix:{self.directory}/run/virtd.sock", timeout_s=120)

    def running(self, guest: str) -> list[str]:
        """Where QEMU runs it, asked of libvirt itself."""
        found = []
        for name, uri in self.uris.items():
            command = ["virsh", "-q", "-c", uri, "list", "--name", "--state-running"]
            listed = subprocess.run(command, check=True, capture_output=True, text=True, timeout=60).stdout.split()
            found += [name] if guest in listed else []
        return found


@pytest.fixture(scope="module")
def daemon(lab_kvm1: LabHost, lab_kvm2: LabHost) -> Iterator[Daemon]:
    with tempfile.TemporaryDirectory(prefix="virtd-lab-") as directory:
        made = Daemon(Path(directory), {"kvm1": lab_kvm1.uri, "kvm2": lab_kvm2.uri})
        try:
            made.start()
            yield made
            with made.client() as client:
                for guest in client.guests.list().guests:
                    if guest.name.endswith(f"/{GUEST}"):
                        client.guests.delete(guest.name, force=True).result(timeout_s=PATIENCE_S)
        finally:
            if made.process is not None and made.process.poll() is None:
                made.process.send_signal(signal.SIGTERM)
                with contextlib.suppress(subprocess.TimeoutExpired):
                    made.process.wait(45)
                made.process.kill()


@pytest.fixture(scope="module")
def booted(daemon: Daemon) -> Guest:
    """A guest under KVM that counts, with a disk."""
    boot = DirectKernelBoot(kernel_path="/srv/guest/vmlinuz", initrd_path="/srv/guest/initrd.img", command_line=CMDLINE)
    spec = GuestSpec(memory_bytes=128 * MIB, direct_kernel_boot=boot)
    spec.disks.append(DiskSpec(name="data", blank=BlankSource(capacity_bytes=16 * MIB)))
    with daemon.client() as client:
        deadline = time.monotonic() + 120
        while client.hosts.get(ONE).state != client.hosts.get(TWO).state or not client.hosts.get(ONE).facts.hypervisor:
            assert time.monotonic() < deadline, "the hosts do not answer"
            time.sleep(0.5)
        made = client.guests.create(ONE, GUEST, Guest(spec=spec), start=True).result(timeout_s=PATIENCE_S)
        client.guests.wait(made.name, condition="agent_ready", timeout_s=PATIENCE_S)
        count = "(i=0; while :; do i=$((i+1)); echo $i > /tmp/count; sleep 1; done) >/dev/null 2>&1 &"
        sh(client, made.name, count)
        sh(client, made.name, "echo on-the-disk | dd of=/dev/vda bs=512 seek=100 conv=sync 2>/dev/null; sync")
        return client.guests.get(made.name)


def sh(client: Client, guest: str, script: str) -> str:
    done = client.agent.exec(guest, "/bin/sh", ["-c", script], timeout_s=60)
    assert done.exit_code == 0, done
    return str(done.stdout.decode())


def count(client: Client, guest: str) -> int:
    return int(sh(client, guest, "cat /tmp/count"))


def test_it_moves_with_its_disk_and_counts_on(daemon: Daemon, booted: Guest) -> None:
    with daemon.client() as client:
        assert client.hosts.get(ONE).facts.default_accelerator == "KVM"
        before = count(client, booted.name)
        check = client.migrations.check(booted.name, TWO, copy_storage=True)
        assert check.possible, check
        operation = client.migrations.migrate(booted.name, TWO, copy_storage=True)
        moved = operation.result(timeout_s=PATIENCE_S)
        assert (moved.name, moved.uid) == (f"{TWO}/guests/{GUEST}", booted.uid)
        assert daemon.running(GUEST) == ["kvm2"]
        after = count(client, moved.name)
        assert after > before, "it went on, and did not begin anew"
        assert "on-the-disk" in sh(client, moved.name, "dd if=/dev/vda bs=512 skip=100 count=1 2>/dev/null")
        data = operation.refresh().result_data
        assert int(data["downtime_ms"]) < 60_000
        assert int(data["sent_bytes"]) > MIB
        assert not list(client.volumes.list(f"{ONE}/pools/virtd"))


def test_a_cancel_leaves_it_there(daemon: Daemon, booted: Guest) -> None:
    name = f"{TWO}/guests/{GUEST}"
    with daemon.client() as client:
        before = count(client, name)
        operation = client.migrations.migrate(name, ONE, copy_storage=True, bandwidth_bytes_per_s=MIB)
        deadline = time.monotonic() + PATIENCE_S
        while not (now := operation.refresh()).bytes_done:
            assert not operation.done, now
            assert time.monotonic() < deadline
            time.sleep(0.2)
        operation.cancel()
        with pytest.raises(errors.VirtdError):
            operation.result(timeout_s=PATIENCE_S)
        assert operation.refresh().state == OPERATION_STATE_CANCELLED
        assert daemon.running(GUEST) == ["kvm2"]
        assert count(client, name) > before
        assert not list(client.volumes.list(f"{ONE}/pools/virtd"))


def test_post_copy_while_the_daemon_is_killed(daemon: Daemon, booted: Guest) -> None:
    """It goes back, allowed to switch to post-copy, and virtd dies meanwhile."""
    name, home = f"{TWO}/guests/{GUEST}", f"{ONE}/guests/{GUEST}"
    with daemon.client() as client:
        before = count(client, name)
        operation = client.migrations.migrate(name, ONE, copy_storage=True, post_copy=True)
        deadline = time.monotonic() + PATIENCE_S
        while (now := operation.refresh()).stage != "move" or not now.bytes_done:
            assert not operation.done, now
            assert time.monotonic() < deadline
            time.sleep(0.1)
    daemon.kill()
    assert len(daemon.running(GUEST)) <= 1
    daemon.start()
    with daemon.client() as client:
        again = client.operations.get(operation.name)
        again.result(timeout_s=PATIENCE_S)
        metadata = again.refresh()
        assert metadata.state == OPERATION_STATE_SUCCEEDED
        assert metadata.recovered
        assert daemon.running(GUEST) == ["kvm1"]
        client.guests.wait(home, condition="agent_ready", timeout_s=PATIENCE_S)
        assert count(client, home) > before
        assert client.guests.get(home).uid == booted.uid
