"""The main job on a real guest, through the public API alone: what ``make demo`` runs.

Every step is checked, and the exit code is 0 only if all of them really happened.  The daemon is the
real ``virtd serve`` in a state directory of its own; with no libvirt on the machine it runs a private one.
Nothing is left behind but the screenshot.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TypeVar

from virtd_client import Client, ConsoleData, errors

from tests.guests import CMDLINE, DemoGuest, build_demo
from virtd.v1.event_pb2 import Event
from virtd.v1.guest_pb2 import (
    ACCELERATOR_AUTO,
    GUEST_STATE_RUNNING,
    GUEST_STATE_STOPPED,
    Accelerator,
    BlankSource,
    DirectKernelBoot,
    DiskSpec,
    Guest,
    GuestSpec,
    GuestState,
    InterfaceSpec,
)
from virtd.v1.host_pb2 import HOST_STATE_CONNECTED
from virtd.v1.operation_pb2 import OPERATION_STATE_RUNNING, OPERATION_STATE_SUCCEEDED

T = TypeVar("T")
MIB = 2**20
READY_LINE = b"demo: ready"
SERVING_S = 30.0
BOOT_S = 180.0
ROOT = Path(__file__).resolve().parents[2]


class DemoError(Exception):
    """A step did not happen."""


class Steps:
    """What took how long, as it happens and as a table at the end."""

    def __init__(self) -> None:
        self.rows: list[tuple[str, float, str]] = []

    @contextmanager
    def step(self, title: str) -> Iterator[list[str]]:
        """Time a step; what is appended to the list becomes its note."""
        notes: list[str] = []
        print(f"--> {title}", flush=True)
        started = time.monotonic()
        yield notes
        seconds = time.monotonic() - started
        note = "; ".join(notes)
        self.rows.append((title, seconds, note))
        print(f"    {seconds:6.2f} s  {note}", flush=True)

    def table(self) -> str:
        """All steps."""
        width = max(len(title) for title, _, _ in self.rows)
        lines = [f"{'step':<{width}}  {'seconds':>7}  note", f"{'-' * width}  {'-' * 7}  {'-' * 40}"]
        lines += [f"{title:<{width}}  {seconds:7.2f}  {note}" for title, seconds, note in self.rows]
        total = sum(seconds for _, seconds, _ in self.rows)
        return "\n".join([*lines, f"{'all steps':<{width}}  {total:7.2f}"])


class Daemon:
    """``virtd serve`` as a process of its own."""

    def __init__(self, state: Path) -> None:
        self.state = state
        self.socket = state / "run" / "virtd.sock"
        self.log = state / "virtd.log"
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> float:
        """Start it; the seconds until it serves."""
        started = time.monotonic()
        command = [sys.executable, "-m", "virtd.cli.daemon", "serve", "--state-dir", str(self.state)]
        # The default configuration, whatever this machine's owner has configured.
        environment = os.environ | {"VIRTD_CONFIG": str(self.state / "virtd.toml")}
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stderr=log, env=environment)
        while True:
            if self._process.poll() is not None:
                raise DemoError(f"virtd ended with {self._process.returncode}:\n{self.log.read_text()[-2000:]}")
            if time.monotonic() - started > SERVING_S:
                raise DemoError(f"virtd does not serve:\n{self.log.read_text()[-2000:]}")
            # A new client each time: one that was refused waits longer and longer before it tries again.
            with contextlib.suppress(errors.Unavailable):
                with Client.connect(f"unix:{self.socket}", timeout_s=SERVING_S, retry_s=0) as client:
                    client.server.info()
                return time.monotonic() - started
            time.sleep(0.02)

    def kill(self) -> None:
        """SIGKILL: no chance to write anything down."""
        assert self._process is not None
        self._process.kill()
        self._process.wait()

    def stop(self) -> None:
        """SIGTERM, and wait."""
        if self._process is not None and self._process.poll() is None:
            self._process.terminate()
            try:
                self._process.wait(60)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()


class Demo:
    """The steps, in order."""

    def __init__(self, client: Client, daemon: Daemon, steps: Steps, guest: DemoGuest, output: Path) -> None:
        self.client = client
        self.daemon = daemon
        self.steps = steps
        self.guest = guest
        self.output = output
        self.host = ""
        self.name = ""

    def run(self) -> None:
        """All steps."""
        self.find_host()
        self.create()
        self.read_console()
        self.show_address()
        self.execute()
        self.snapshot()
        self.screenshot()
        self.kill_guest()
        self.kill_daemon()
        self.shut_down()
        self.delete()

    def find_host(self) -> None:
        with self.steps.step("find this machine's hypervisor") as note:
            host = self._poll("a host that answers", 60.0, self._connected_host)
            self.host = host
            found = self.client.hosts.get(host)
            note.append(f"{host} ({found.origin}): {found.facts.hypervisor} {found.facts.hypervisor_version}")
        with self.steps.step("probe the accelerators") as note:
            facts = self.client.hosts.probe(self.host).facts
            for entry in facts.accelerators:
                note.append(f"{entry.accelerator} {'works' if entry.usable else 'does not work: ' + entry.reason}")

    def _connected_host(self) -> str | None:
        for host in self.client.hosts.list():
            if host.state == HOST_STATE_CONNECTED:
                return host.name
        return None

    def create(self) -> None:
        spec = GuestSpec(
            vcpus=1,
            memory_bytes=192 * MIB,
            accelerator=ACCELERATOR_AUTO,
            direct_kernel_boot=DirectKernelBoot(
                kernel_path=str(self.daemon.state / "import" / "vmlinuz"),
                initrd_path=str(self.daemon.state / "import" / "initrd.img"),
                command_line=f"{CMDLINE} demo.name=demo",
            ),
            disks=[DiskSpec(name="data", blank=BlankSource(capacity_bytes=64 * MIB))],
            interfaces=[InterfaceSpec(name="net0")],
        )
        with self.steps.step("create and start a guest") as note:
            operation = self.client.guests.create(self.host, "demo", Guest(spec=spec), start=True)
            stages = [metadata.stage for metadata in operation.progress()]
            created = operation.result(timeout_s=120)
            self.name = created.name
            self._expect_state(GUEST_STATE_RUNNING)
            kind = Accelerator.Name(created.status.accelerator).removeprefix("ACCELERATOR_")
            note.append(f"{created.name} runs with {kind}; stages {', '.join(dict.fromkeys(filter(None, stages)))}")

    def read_console(self) -> None:
        with self.steps.step("stream its serial console to the ready line") as note:
            note.append(self._console_line(READY_LINE, BOOT_S, offset=0))

    def show_address(self) -> None:
        with self.steps.step("wait for its agent and its address") as note:
            self._ready()
            guest = self.client.guests.get(self.name)
            addresses = [entry for entry in guest.status.addresses if ":" not in entry.address]
            if not addresses:
                raise DemoError("the guest has no IPv4 address")
            note.extend(f"{a.address}/{a.prefix_length} ({a.source})" for a in addresses)

    def execute(self) -> None:
        with self.steps.step("execute a command in it by the agent") as note:
            note.append(self._in_guest("/bin/uname", "-sr"))

    def snapshot(self) -> None:
        mark = "/tmp/changed-after-the-snapshot"
        with self.steps.step("take a snapshot with memory") as note:
            snapshot = self.client.snapshots.create(self.name, "before", memory=True).result(timeout_s=120)
            note.append(snapshot.name)
        with self.steps.step("change something") as note:
            self._in_guest("/bin/touch", mark)
            if not self._exists_in_guest(mark):
                raise DemoError("the change is not there")
            note.append(f"{mark} is there")
        with self.steps.step("revert, and see that it is gone") as note:
            self.client.snapshots.revert(f"{self.name}/snapshots/before").result(timeout_s=120)
            self._ready()
            if self._exists_in_guest(mark):
                raise DemoError("the change is still there after the revert")
            note.append(f"{mark} is gone, and the guest runs on")

    def screenshot(self) -> None:
        with self.steps.step("take a screenshot") as note:
            picture = self.client.console.screenshot(self.name)
            if picture.mime_type != "image/png" or not picture.data.startswith(b"\x89PNG\r\n\x1a\n"):
                raise DemoError(f"not a PNG: {picture.mime_type}")
            self.output.mkdir(parents=True, exist_ok=True)
            path = self.output / "demo-screenshot.png"
            path.write_bytes(picture.data)
            note.append(f"{path} ({len(picture.data)} bytes)")

    def kill_guest(self) -> None:
        with self.steps.step("kill its QEMU from outside, and see the event") as note:
            uid = self.client.guests.get(self.name).uid
            pid = qemu_pid(uid)
            token = self.client.events.pull().resume_token
            started = time.monotonic()
            os.kill(pid, signal.SIGKILL)
            event = self._next_event(uid, token)
            seconds = time.monotonic() - started
            note.append(
                f"{event.attributes['previous_state']} -> {event.attributes['state']} "
                f"({event.attributes['reason']}) after {seconds:.2f} s"
            )
            if event.attributes["state"] not in ("STOPPED", "CRASHED"):
                raise DemoError(f"unexpected state {event.attributes['state']}")

    def _next_event(self, uid: str, token: str) -> Event:
        pulled = self.client.events.pull(
            resume_token=token, filter=f"type=GUEST_STATE_CHANGED AND uid={uid}", wait_s=20.0
        )
        if not pulled.events:
            raise DemoError("no event came within 20 s")
        return pulled.events[0]

    def kill_daemon(self) -> None:
        with self.steps.step("start it again") as note:
            console = self.client.console.read_log(self.name)
            self.client.guests.start(self.name).result(timeout_s=120)
            note.append(self._console_line(READY_LINE, BOOT_S, offset=console.next_offset))
            self._ready()
        with self.steps.step("kill virtd in the middle of an operation, and see it end") as note:
            operation = self.client.guests.shutdown(self.name, timeout_s=90)
            self._poll("the operation at work", 10.0, lambda: self._is_running(operation.name))
            self.daemon.kill()
            note.append(f"virtd serves again after {self.daemon.start():.2f} s")
            self.client.operations.get(operation.name).result(timeout_s=120)
            metadata = self.client.operations.get(operation.name).metadata
            if metadata.state != OPERATION_STATE_SUCCEEDED or not metadata.recovered:
                raise DemoError(f"the operation was not recovered: {metadata}")
            self._expect_state(GUEST_STATE_STOPPED)
            note.append(f"{metadata.verb} was recovered and has succeeded")

    def shut_down(self) -> None:
        with self.steps.step("start it once more"):
            console = self.client.console.read_log(self.name)
            self.client.guests.start(self.name).result(timeout_s=120)
            self._console_line(READY_LINE, BOOT_S, offset=console.next_offset)
        with self.steps.step("shut it down by ACPI") as note:
            self.client.guests.shutdown(self.name, timeout_s=90).result(timeout_s=120)
            guest = self._expect_state(GUEST_STATE_STOPPED)
            note.append(f"{GuestState.Name(guest.status.state)} ({guest.status.state_reason})")

    def delete(self) -> None:
        with self.steps.step("delete it and its disk") as note:
            disk = self.client.guests.get(self.name).status.disks[0].path
            self.client.guests.delete(self.name).result(timeout_s=60)
            try:
                self.client.guests.get(self.name)
            except errors.NotFound as gone:
                note.append(gone.reason)
            else:
                raise DemoError("the guest is still listed")
            if Path(disk).exists():
                raise DemoError(f"its disk {disk} is still there")

    # ------------------------------------------------------------------------------------- helpers

    def _is_running(self, operation: str) -> bool:
        return self.client.operations.get(operation).metadata.state == OPERATION_STATE_RUNNING

    def _ready(self) -> None:
        self.client.guests.wait(self.name, condition="agent-ready", timeout_s=60)
        self.client.guests.wait(self.name, condition="network-ready", timeout_s=60)

    def _expect_state(self, state: GuestState.ValueType) -> Guest:
        guest = self.client.guests.get(self.name)
        if guest.status.state != state:
            raise DemoError(f"the guest is {GuestState.Name(guest.status.state)}, not {GuestState.Name(state)}")
        return guest

    def _in_guest(self, path: str, *arguments: str) -> str:
        result = self.client.agent.exec(self.name, path, list(arguments), timeout_s=30)
        if result.exit_code != 0:
            raise DemoError(f"{path} ended with {result.exit_code}: {result.stderr.decode()}")
        return result.stdout.decode().strip()

    def _exists_in_guest(self, path: str) -> bool:
        return self.client.agent.exec(self.name, "/bin/test", ["-e", path], timeout_s=30).exit_code == 0

    def _console_line(self, wanted: bytes, timeout_s: float, *, offset: int) -> str:
        seen = b""
        with self.client.console.attach(self.name, read_only=True, offset=offset) as console:
            # A guest that prints nothing must not keep us for ever: closing ends the loop.
            timer = threading.Timer(timeout_s, console.close)
            timer.start()
            try:
                for item in console:
                    if isinstance(item, ConsoleData):
                        seen += item.data
                        if wanted in seen:
                            return wanted.decode()
            finally:
                timer.cancel()
        raise DemoError(f"no {wanted!r} on the console; it printed {seen[-500:]!r}")

    def _poll(self, what: str, timeout_s: float, look: Callable[[], T | None]) -> T:
        deadline = time.monotonic() + timeout_s
        while time.monotonic() < deadline:
            found = look()
            if found:
                return found
            time.sleep(0.05)
        raise DemoError(f"waited in vain for {what}")


def qemu_pid(uid: str) -> int:
    """The process of a guest, as anybody on the machine can find it."""
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal():
            try:
                command = (entry / "cmdline").read_bytes()
            except OSError:
                continue
            if uid.encode() in command and b"qemu" in command.split(b"\0")[0]:
                return int(entry.name)
    raise DemoError(f"no QEMU process with the UUID {uid}")


def stop_private_libvirt(state: Path) -> None:
    """Stop the private libvirt that virtd leaves running for its guests."""
    from virtd.libvirt.private import PrivateLibvirt

    directory = state / "hosts" / "local" / "private"
    if directory.is_dir():
        PrivateLibvirt(directory).stop_blocking()


def main() -> int:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else "")
    parser.add_argument("--output", type=Path, default=ROOT / "build", help="where the screenshot goes")
    options = parser.parse_args()
    steps = Steps()
    with ExitStack() as stack:
        with steps.step("build the demo guest"):
            guest = build_demo()
        # Short, since sockets are in it; searchable, since QEMU may run as another user.
        state = Path(tempfile.mkdtemp(prefix="virtd-demo-"))
        stack.callback(shutil.rmtree, state, ignore_errors=True)
        state.chmod(0o711)
        (state / "virtd.toml").write_text("# all defaults\n")
        imported = state / "import"
        imported.mkdir(mode=0o711)
        shutil.copyfile(guest.kernel, imported / "vmlinuz")
        shutil.copyfile(guest.initrd, imported / "initrd.img")
        daemon = Daemon(state)
        stack.callback(stop_private_libvirt, state)
        stack.callback(daemon.stop)
        client = stack.enter_context(Client.connect(f"unix:{daemon.socket}", timeout_s=60))
        demo = Demo(client, daemon, steps, guest, options.output)
        try:
            with steps.step("start virtd") as note:
                note.append(f"serving after {daemon.start():.2f} s")
            demo.run()
        except (DemoError, errors.VirtdError) as error:
            print(f"\nFAILED: {error}\n\n{steps.table()}", file=sys.stderr)
            print(f"\nthe daemon's last lines:\n{daemon.log.read_text()[-3000:]}", file=sys.stderr)
            return 1
        finally:
            _remove_guest(demo)
    print(f"\n{steps.table()}\n\nThe demo has done all of its {len(steps.rows)} steps.")
    return 0


def _remove_guest(demo: Demo) -> None:
    """Leave nothing behind, also after a failure."""
    if demo.name:
        try:
            demo.client.guests.delete(demo.name, force=True).result(timeout_s=60)
        except errors.NotFound:
            pass
        except errors.VirtdError as error:
            print(f"could not remove {demo.name}: {error}", file=sys.stderr)


if __name__ == "__main__":
    sys.exit(main())
