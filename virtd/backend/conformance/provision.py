"""What a backend's author tells the kit."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, Protocol
from uuid import UUID

from virtd.backend.api import Backend, ResolvedGuest, ResolvedInterface
from virtd.model.console import AgentCommand
from virtd.model.guest import Accelerator, DiskFormat

MIB: Final = 1 << 20


class FaultInjector(Protocol):
    """Makes native calls of the backend fail, so that its clean-up can be seen.

    Names of native calls are the backend's own (``guest_create``, ``virDomainCreate``).
    """

    @property
    def hangable(self) -> Collection[str]:
        """Native calls that can hang and, hanging, notice that their operation is cancelled."""

    def recording(self) -> AbstractContextManager[list[str]]:
        """The native calls that are made in the block, in order."""

    def failing(self, call: str, nth: int) -> AbstractContextManager[None]:
        """Let the nth native call of this name in the block fail, once."""

    def hanging(self, call: str) -> AbstractContextManager[None]:
        """Let the native calls of this name in the block hang; leaving the block releases them."""


class Outside(Protocol):
    """What somebody else does to the host, past the session under test."""

    async def define_guest(self, name: str) -> UUID:
        """Define a stopped guest."""

    async def kill_guest(self, uuid: UUID) -> None:
        """End a running guest at once, as a crash of its process would."""

    async def undefine_guest(self, uuid: UUID) -> None:
        """Remove a stopped guest."""


class Connection(Protocol):
    """The way to the host."""

    async def cut(self) -> None:
        """Make the host unreachable; guests go on."""

    async def restore(self) -> None:
        """Make it reachable again."""


class HostFiles(Protocol):
    """Files on a host that is another machine, in a directory that is there for the kit."""

    @property
    def directory(self) -> str:
        """The directory's path on the host.  The provision's ``allowed_directories`` name it."""

    async def write(self, name: str, data: bytes) -> None:
        """Make a file in the directory, or replace it."""

    async def exists(self, name: str) -> bool:
        """Whether there is a file or a directory of that name in it."""


_MARKER: Final = "/tmp/virtd-conformance"  # noqa: S108 - a path in the guest
READ_MARKER: Final = AgentCommand("/bin/cat", (_MARKER,))


def write_marker(text: str) -> AgentCommand:
    """Keep a text in a file of the guest's /tmp (which is memory in the guests that tests use)."""
    return AgentCommand("/bin/tee", (_MARKER,), input_data=text.encode())


GuestMaker = Callable[[str, UUID], ResolvedGuest]
"""Makes the guest of a native name and a UUID."""


@dataclass(frozen=True, kw_only=True)
class Bootable:
    """A guest with a system in it.

    :param guest: makes the guest: its native name and UUID are given.
    :param disk_guest: makes one that boots from its disk, or None.
    :param uefi_guest: makes one that boots with UEFI, or None.
    :param ready_line: printed on the serial console when the system is up.
    :param boot_timeout_s: how long that may take.
    :param agent: a guest agent runs in it.
    :param shell: its serial console has a POSIX shell, which does what the agent does elsewhere: it shows that
        memory and disks keep their contents.
    :param addresses: it takes a network address.
    :param obeys_shutdown: it shuts down when the power button is pressed (again and again).
    :param write_memory: a command that keeps a text in the guest's memory.
    :param read_memory: a command that prints that text.
    :param write_disk: a command that keeps a text on the guest's disk (synced), or None.
    :param read_disk: a command that prints that text (line ends at its end do not count), or None.
    """

    guest: GuestMaker
    ready_line: str
    disk_guest: GuestMaker | None = None
    uefi_guest: GuestMaker | None = None
    boot_timeout_s: float = 60.0
    agent: bool = False
    shell: bool = False
    addresses: bool = False
    obeys_shutdown: bool = False
    write_memory: Callable[[str], AgentCommand] = write_marker
    read_memory: AgentCommand = READ_MARKER
    write_disk: Callable[[str], AgentCommand] | None = None
    read_disk: AgentCommand | None = None


def plain_guest(name: str, uuid: UUID) -> ResolvedGuest:
    """The smallest guest: one processor, 32 MiB, nothing to boot."""
    return ResolvedGuest(uuid=uuid, name=name, vcpus=1, memory_bytes=32 * MIB, accelerator=Accelerator.TCG)


@dataclass(frozen=True, kw_only=True)
class Provision:
    """One backend on one host, and what there is to check it with.

    :param backend: the backend under test.
    :param uri: the host; the kit makes and removes guests whose names begin with ``conf-``.
    :param label: the report's name (``qemu-tcg``); the backend's id by default.
    :param host: who the host is, for the matrix's column; the hypervisor and its version by default.
    :param machine: the kind of guest (``ResolvedGuest.machine``) that is checked, on hosts whose kinds of guests
        differ; the makers of guests make guests of this kind.
    :param accelerator: what guests run with where a check does not ask for another.
    :param guest: makes a guest that can be started, whatever happens in it then.
    :param up_line: printed on the serial console of ``guest`` when its system can do its part in what the host asks of
        it; for hosts (Xen) where suspending, for one, is no affair of the hypervisor alone.  Started guests are waited
        for; by default they are used at once.
    :param disk_format: of disks that are plugged into running guests.
    :param interface: what is plugged into running guests, with another name and MAC address; by default of the
        kind USER.
    :param bootable: a guest with a system in it; without it the checks of console, agent and
        contents of snapshots are NOT_RUN.
    :param faults: without it the checks of clean-up after native failures are NOT_RUN.
    :param outside: without it the checks of foreign guests and crashes are NOT_RUN.
    :param connection: without it the checks of lost connections are NOT_RUN.
    :param digest: a text that describes all that the host has, for "nothing is left behind"; what the
        SPI shows is compared in any case.
    :param network_cidr: a range of addresses in which networks may be made; without it their checks are
        NOT_RUN.
    :param peer: the URI of a second host of the backend, to which guests can migrate; without it the checks
        of migrations are NOT_RUN.
    :param peer_options: that host's options.
    :param files: for a host that is another machine: how files get there; by default the host is this machine.
    :param directory: ``HostConfig.directory``; a temporary one by default.
    :param allowed_directories: see HostConfig.
    :param options: see HostConfig.
    :param call_timeout_s: see HostConfig.
    :param parallel: how many guests are made at the same time.
    :param max_faults: how many native calls of one SPI call are made to fail; None: each of them.
    :param robust_elsewhere: on a host that is slow: where the same backend is checked to stand failures, cancels and
        unknown guests; such checks are then NOT_RUN here.
    :param check_timeout_s: how long one check may take.
    :param event_timeout_s: how long an event may take to arrive.
    :param golden_directory: the expected results of ``lower``; without it they are NOT_RUN.
    :param report: where the report goes, if pytest's option does not say.
    """

    backend: Backend
    uri: str
    label: str = ""
    host: str = ""
    machine: str = ""
    accelerator: Accelerator = Accelerator.TCG
    guest: GuestMaker = plain_guest
    up_line: str = ""
    disk_format: DiskFormat = DiskFormat.QCOW2
    interface: ResolvedInterface | None = None
    bootable: Bootable | None = None
    faults: FaultInjector | None = None
    outside: Outside | None = None
    connection: Connection | None = None
    digest: Callable[[], str] | None = None
    network_cidr: str = ""
    peer: str = ""
    peer_options: Mapping[str, str] = field(default_factory=dict)
    files: HostFiles | None = None
    directory: Path | None = None
    allowed_directories: tuple[str, ...] = ()
    options: Mapping[str, str] = field(default_factory=dict)
    call_timeout_s: float = 30.0
    parallel: int = 50
    max_faults: int | None = None
    robust_elsewhere: str = ""
    check_timeout_s: float = 60.0
    event_timeout_s: float = 5.0
    golden_directory: Path | None = None
    report: Path | None = None
