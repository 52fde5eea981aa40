"""A private libvirtd for tests, sessions on it, and guests that are gone afterwards.

Import what you need into a ``conftest.py``::

    from tests.qemu.fixtures import demo, host, libvirt_host, session  # noqa: F401

``libvirt_host`` is one daemon for the whole test session; its guests, disks and process are removed
at the end, also after failures.  A missing libvirtd or QEMU is a failure, not a skip: these tests are
the proof that the product works.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import os
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import libvirt
import pytest
from virtd_kvm.backend import KvmBackend
from virtd_kvm.session import KvmSession

from tests.guests import CMDLINE, DemoGuest, build_demo
from tests.guests.cache import cache_root
from virtd.backend.api import (
    HostConfig,
    NativeEvent,
    ResolvedDisk,
    ResolvedGuest,
    ResolvedInterface,
    VolumeRequest,
)
from virtd.errors import OPERATION_CANCELLED, CancelledError
from virtd.libvirt import events
from virtd.libvirt.private import PrivateLibvirt
from virtd.model.guest import (
    Accelerator,
    DirectKernelBoot,
    DiskBus,
    DiskFormat,
    GraphicsSpec,
    GuestState,
    InterfaceKind,
)

MIB = 1 << 20
DEMO_MEMORY = 192 * MIB
BOOT_S = 90.0
READY = b"demo: ready"
_PREFIX = "virtd-lv-"
_OWNER = "owner"  # the test process holds its lock


class Context:
    """A call context that records what it is told, and can be cancelled."""

    def __init__(self) -> None:
        self.operation_id = f"test-{uuid4().hex[:8]}"
        self.deadline_s: float | None = None
        self.fractions: list[float | None] = []
        self.bytes_done: list[int | None] = []
        self.notes: list[str] = []
        self.warnings: list[str] = []
        self._cancelled = asyncio.Event()

    def progress(
        self, fraction: float | None = None, *, bytes_done: int | None = None, bytes_total: int | None = None
    ) -> None:
        self.fractions.append(fraction)
        self.bytes_done.append(bytes_done)

    def note(self, message: str) -> None:
        self.notes.append(message)

    def warn(self, message: str) -> None:
        self.warnings.append(message)

    def cancel(self) -> None:
        self._cancelled.set()

    def checkpoint(self) -> None:
        if self._cancelled.is_set():
            raise CancelledError(OPERATION_CANCELLED, "cancelled by the test")

    async def wait_cancelled(self) -> None:
        await self._cancelled.wait()


@contextlib.contextmanager
def private_libvirt(*, network_namespace: bool = False) -> Iterator[PrivateLibvirt]:
    """A private libvirtd in a temporary directory; everything that runs on it is ended afterwards.

    Also after SIGTERM, which unwinds the run as Ctrl-C does.  What a killed run has left is removed first.
    """
    remove_abandoned()
    # Not pytest's directory: a socket's path may have 107 bytes only.
    directory = Path(tempfile.mkdtemp(prefix=_PREFIX))
    daemon = PrivateLibvirt(directory, cache=cache_root() / "libvirt", network_namespace=network_namespace)
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        with (directory / "new").open("w") as owner:
            fcntl.flock(owner, fcntl.LOCK_EX)
            (directory / "new").rename(directory / _OWNER)  # never seen without the lock
            daemon.start_blocking()
            yield daemon
    finally:
        _end(daemon)
        signal.signal(signal.SIGTERM, before)


def remove_abandoned() -> None:
    """End the daemons of runs that were killed: their directories are there, but nobody holds the lock."""
    for directory in Path(tempfile.gettempdir()).glob(f"{_PREFIX}*"):
        with contextlib.suppress(OSError), (directory / _OWNER).open() as owner:
            fcntl.flock(owner, fcntl.LOCK_EX | fcntl.LOCK_NB)
            _end(PrivateLibvirt(directory, cache=cache_root() / "libvirt"))


def _end(daemon: PrivateLibvirt) -> None:
    _destroy_all(daemon)
    daemon.stop_blocking()
    _kill_leftovers(daemon.directory)
    shutil.rmtree(daemon.directory, ignore_errors=True)


def _destroy_all(daemon: PrivateLibvirt) -> None:
    if not daemon.answers():
        return
    events.ensure_running()
    with contextlib.suppress(libvirt.libvirtError):
        connection = libvirt.open(daemon.uri)
        for domain in connection.listAllDomains(libvirt.VIR_CONNECT_LIST_DOMAINS_ACTIVE):
            with contextlib.suppress(libvirt.libvirtError):
                domain.destroy()
        for network in connection.listAllNetworks(libvirt.VIR_CONNECT_LIST_NETWORKS_ACTIVE):
            with contextlib.suppress(libvirt.libvirtError):
                network.destroy()
        connection.close()


def _kill_leftovers(directory: Path) -> None:
    """End guests that the daemon could not (it was dead): their pid files say which processes they are."""
    for pid_file in directory.glob("run/libvirt/qemu/run/*.pid"):
        _kill_named(pid_file, "qemu")
    for pid_file in directory.glob("run/qemu/*.pid"):
        _kill_named(pid_file, "qemu")
    for pid_file in directory.glob("run/network/*.pid"):
        _kill_named(pid_file, "dnsmasq")


def _kill_named(pid_file: Path, program: str) -> None:
    with contextlib.suppress(OSError, ValueError):
        pid = int(pid_file.read_text())
        if program in Path(f"/proc/{pid}/cmdline").read_text():
            os.kill(pid, signal.SIGKILL)


class DaemonConnection:
    """The way to a private daemon, for the conformance kit: cut by stopping it, guests go on."""

    def __init__(self, daemon: PrivateLibvirt) -> None:
        self._daemon = daemon

    async def cut(self) -> None:
        await self._daemon.stop()

    async def restore(self) -> None:
        await self._daemon.start()


@pytest.fixture(scope="session")
def libvirt_host() -> Iterator[PrivateLibvirt]:
    """One private libvirtd for all tests."""
    with private_libvirt() as daemon:
        yield daemon


@pytest.fixture(scope="session")
def demo() -> DemoGuest:
    """The demo guest's files."""
    return build_demo()


async def eventually(
    condition: Callable[[], Awaitable[Any]] | Callable[[], Any], timeout_s: float = 10.0, *, every_s: float = 0.05
) -> Any:
    """Wait until ``condition`` is true and return what it gave; fail loudly otherwise."""
    deadline = time.monotonic() + timeout_s
    while True:
        found = condition()
        if asyncio.iscoroutine(found):
            found = await found
        if found:
            return found
        assert time.monotonic() < deadline, f"not true within {timeout_s:g} s: {condition}"
        await asyncio.sleep(every_s)


@dataclass
class Events:
    """What a session's event source has said."""

    seen: list[NativeEvent] = field(default_factory=list)

    async def run(self, session: KvmSession) -> None:
        source = session.facets.event_source
        assert source is not None
        async for event in source.events():
            self.seen.append(event)

    def of(self, uuid: UUID | None) -> list[NativeEvent]:
        return [event for event in self.seen if event.uuid == uuid]

    def states(self, uuid: UUID) -> list[tuple[str, str]]:
        return [(event.state.value, event.reason) for event in self.of(uuid) if event.state is not None]


@dataclass
class Lab:
    """A session on the private daemon, with helpers that clean up after themselves."""

    session: KvmSession
    events: Events
    demo: DemoGuest
    daemon: PrivateLibvirt
    directory: Path
    guests: list[UUID] = field(default_factory=list)
    volumes: list[str] = field(default_factory=list)

    async def volume(self, name: str, format_: DiskFormat = DiskFormat.QCOW2, **changes: Any) -> ResolvedDisk:
        """A volume in the default pool, as a disk."""
        storage = self.session.facets.storage
        assert storage is not None
        await storage.ensure_default_pool(Context())
        self.volumes.append(name)
        changes.setdefault("capacity_bytes", 64 * MIB)
        made = await storage.create_volume(VolumeRequest("virtd", name, format_, **changes), Context())
        return ResolvedDisk(name.partition(".")[0], made.path, format_, DiskBus.VIRTIO)

    def resolved(self, label: str, **changes: Any) -> ResolvedGuest:
        """A guest with a system: the demo guest by direct kernel boot."""
        uuid = uuid4()
        self.guests.append(uuid)
        fields: dict[str, Any] = {
            "uuid": uuid,
            "name": f"{label}-{uuid.hex[:6]}",
            "vcpus": 1,
            "memory_bytes": DEMO_MEMORY,
            "accelerator": Accelerator.TCG,
            "direct_kernel_boot": DirectKernelBoot(str(self.demo.kernel), str(self.demo.initrd), CMDLINE),
            "interfaces": (ResolvedInterface("net", InterfaceKind.USER, mac_of(uuid)),),
            "graphics": GraphicsSpec(),
        }
        return ResolvedGuest(**{**fields, **changes})

    def empty(self, label: str, **changes: Any) -> ResolvedGuest:
        """A guest with nothing to boot: it starts in a third of a second and stays up."""
        small = {"memory_bytes": 32 * MIB, "direct_kernel_boot": None, "interfaces": (), "graphics": None}
        return self.resolved(label, **{**small, **changes})

    async def defined(self, guest: ResolvedGuest) -> UUID:
        await self.session.define_guest(guest, Context())
        return guest.uuid

    async def running(self, guest: ResolvedGuest) -> UUID:
        await self.defined(guest)
        await self.session.start_guest(guest.uuid, Context())
        return guest.uuid

    async def booted(self, guest: ResolvedGuest) -> UUID:
        """Start it and wait until the system in it is up."""
        uuid = await self.running(guest)
        console = self.session.facets.serial_console
        assert console is not None
        stream = await console.open_console(uuid)
        await read_until(stream, READY, BOOT_S)
        await stream.close()
        return uuid

    async def state(self, uuid: UUID) -> GuestState:
        return (await self.session.get_guest(uuid)).state

    async def reaches(self, uuid: UUID, state: GuestState, timeout_s: float = 30.0) -> None:
        async def there() -> bool:
            return await self.state(uuid) is state

        await eventually(there, timeout_s)

    async def agent_answers(self, uuid: UUID, timeout_s: float = 60.0) -> None:
        agent = self.session.facets.agent
        assert agent is not None

        async def answers() -> bool:
            with contextlib.suppress(Exception):
                await agent.ping_agent(uuid)
                return True
            return False

        await eventually(answers, timeout_s, every_s=0.3)

    async def clean_up(self) -> None:
        for uuid in self.guests:
            await self.session.stop_guest(uuid, Context())
            await self.session.undefine_guest(uuid, Context())
        storage = self.session.facets.storage
        assert storage is not None
        for name in self.volumes:
            await storage.delete_volume("virtd", name, Context())

    def qemu_pid(self, name: str) -> int:
        """The process of a running guest of the private daemon."""
        return int((self.daemon.directory / "run" / "qemu" / f"{name}.pid").read_text())

    def virsh(self, *arguments: str) -> str:
        """What somebody else does by virsh."""
        done = subprocess.run(
            ["virsh", "-c", self.daemon.uri, *arguments], capture_output=True, text=True, check=False, timeout=60
        )
        assert done.returncode == 0, done.stderr
        return done.stdout


def mac_of(uuid: UUID) -> str:
    """A MAC address of QEMU's range, from a UUID."""
    return "52:54:00:" + ":".join(f"{byte:02x}" for byte in uuid.bytes[:3])


async def read_until(stream: Any, text: bytes, timeout_s: float) -> bytes:
    """Read a console until ``text`` has been seen."""
    found = b""
    async with asyncio.timeout(timeout_s):
        while text not in found:
            data = await stream.read()
            assert data, f"the console closed after {found[-500:]!r}"
            found += data
    return found


@contextlib.asynccontextmanager
async def open_lab(daemon: PrivateLibvirt, demo: DemoGuest, directory: Path, **changes: Any) -> AsyncIterator[Lab]:
    """A session on a daemon, with clean-up."""
    config = HostConfig("test", daemon.uri, str(directory), **changes)
    opened = await KvmBackend().open(config)
    assert isinstance(opened, KvmSession)
    seen = Events()
    reader = asyncio.create_task(seen.run(opened))
    lab = Lab(opened, seen, demo, daemon, directory)
    try:
        yield lab
    finally:
        try:
            await lab.clean_up()
        finally:
            await opened.close()
            async with asyncio.timeout(5):
                await reader


@pytest.fixture
async def lab(libvirt_host: PrivateLibvirt, demo: DemoGuest) -> AsyncIterator[Lab]:
    """A session on the shared private daemon."""
    # One directory for all: it is where the daemon's default pool lies.
    directory = libvirt_host.directory / "virtd"
    directory.mkdir(exist_ok=True)
    async with open_lab(libvirt_host, demo, directory) as opened:
        yield opened


@pytest.fixture
async def test_driver(tmp_path: Path) -> AsyncIterator[KvmSession]:
    """Libvirt's in-process test driver: a world of its own."""
    opened = await KvmBackend().open(HostConfig("test", "test:///default", str(tmp_path)))
    assert isinstance(opened, KvmSession)
    try:
        yield opened
    finally:
        await opened.close()
