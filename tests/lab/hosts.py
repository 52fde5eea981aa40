"""Lab hosts as tests see them, and the lab of one test run."""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, Literal

from tests.lab import saved
from tests.lab.image import build
from tests.lab.machine import Machine, end_all
from tests.lab.registry import HOSTS
from tests.lab.ssh import LabError, Ssh

Signal = Literal["STOP", "CONT", "KILL", "start"]

_PREFIX: Final = "virtd-lab-"
_OWNER: Final = "owner"  # its lock is held by who uses the directory


@dataclass
class LabHost:
    """A host that runs."""

    name: str
    kind: str
    """``kvm`` or ``xen``."""

    uri: str
    tls_uri: str
    """With the client's certificate; empty for a host from the environment that has none."""

    ssh_port: int
    console_log: Path
    directory: Path
    ssh_key: Path = field(default_factory=Path)

    def run(self, command: str, timeout_s: float = 30) -> str:
        """Run a shell command on the host, as root, and return what it printed.

        :raises LabError: when it fails, with its output, or when it takes longer.
        """
        if not self.ssh_port:
            raise LabError(f"{self.name} comes from the environment: set {variable(self.name, 'SSH')}=PORT:KEYFILE")
        return Ssh(self.name, self.ssh_port, self.ssh_key).run(command, timeout_s)

    def signal_libvirtd(self, name: Signal) -> None:
        """Stop (SIGSTOP), continue or kill (SIGKILL) the host's libvirtd; ``start`` starts it after a kill."""
        if name == "start":
            self.run("libvirtd -d -l")
        else:
            self.run(f"kill -{name} $(cat /run/libvirtd.pid)")


class Lab:
    """The hosts of one test run, each started when it is first asked for, all in one directory."""

    def __init__(self, directory: Path, environ: Mapping[str, str] | None = None) -> None:
        self.directory = directory
        self._environ = os.environ if environ is None else environ
        self._machines: dict[str, Machine] = {}

    def host(self, name: str) -> LabHost:
        """The host of that name, running.

        :raises LabError: when it cannot be started.
        """
        if given := from_environment(name, self._environ, self.directory):
            return given
        if name not in self._machines or not self._machines[name].alive():
            host = HOSTS[name]
            machine = Machine(host, build(host.kind), self.directory / name, self.directory)
            saved.start(machine)
            self._machines[name] = machine
        return described(self._machines[name])

    def machine(self, name: str) -> Machine:
        """The process behind a host that was started here."""
        return self._machines[name]

    def close(self) -> None:
        """End all hosts."""
        machines = list(self._machines.values())
        self._machines.clear()
        end_all(machines)


def described(machine: Machine) -> LabHost:
    """What tests are told about a running machine."""
    kind = machine.host.kind
    return LabHost(
        name=machine.host.name,
        kind=kind.name,
        uri=kind.uri(machine.ports),
        tls_uri=kind.tls_uri(machine.ports, machine.image.pki),
        ssh_port=machine.ports["ssh"],
        console_log=machine.console_log,
        directory=machine.directory,
        ssh_key=machine.image.ssh_key,
    )


def variable(name: str, what: str) -> str:
    """The environment variable that says something about a host."""
    return f"VIRTD_LAB_{name.upper()}_{what}"


def from_environment(name: str, environ: Mapping[str, str], directory: Path) -> LabHost | None:
    """The host that the environment names instead of one of ours, if it does.

    ``VIRTD_LAB_KVM1_URI`` is its address; ``..._TLS_URI``, and ``..._SSH`` as ``PORT:KEYFILE``, are for the tests that
    need them.
    """
    uri = environ.get(variable(name, "URI"))
    if not uri:
        return None
    port, _, key = environ.get(variable(name, "SSH"), "").partition(":")
    if port and not (port.isdecimal() and key):
        raise LabError(f"{variable(name, 'SSH')} is not PORT:KEYFILE")
    return LabHost(
        name=name,
        kind=HOSTS[name].kind.name,
        uri=uri,
        tls_uri=environ.get(variable(name, "TLS_URI"), ""),
        ssh_port=int(port or 0),
        console_log=directory / "console.log",
        directory=directory,
        ssh_key=Path(key),
    )


@contextlib.contextmanager
def private_lab() -> Iterator[Lab]:
    """A lab in a temporary directory, and nothing of it afterwards.

    Its hosts end with this process even if that is killed; the directory is then removed by the next run.
    """
    remove_abandoned()
    # Not pytest's directory: a socket's path may have 107 bytes only.
    directory = Path(tempfile.mkdtemp(prefix=_PREFIX))
    with (directory / "new").open("w") as owner:
        fcntl.flock(owner, fcntl.LOCK_EX)
        (directory / "new").rename(directory / _OWNER)  # never seen without the lock
        lab = Lab(directory)
        try:
            yield lab
        finally:
            lab.close()
            shutil.rmtree(directory, ignore_errors=True)


def remove_abandoned() -> None:
    """Remove the directories of runs that were killed."""
    for directory in Path(tempfile.gettempdir()).glob(f"{_PREFIX}*"):
        with contextlib.suppress(OSError), (directory / _OWNER).open() as owner:
            fcntl.flock(owner, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(directory, ignore_errors=True)
