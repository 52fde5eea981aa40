"""What ``lab-up`` started, written down: which processes, which ports."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import tempfile
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path

from tests.lab.image import HERE, Image
from tests.lab.kind import Host
from tests.lab.machine import Machine
from tests.lab.ssh import LabError

ROOT = HERE.parents[1]


@dataclass
class HostState:
    """A host that was started."""

    pid: int
    ports: dict[str, int]
    image: str
    """The folder of the image that it runs from: it stays that one when the recipe changes."""

    def machine(self, host: Host, directory: Path) -> Machine:
        """The machine, to ask and to end."""
        machine = Machine(host, Image(host.kind, Path(self.image)), directory / host.name, directory)
        machine.pid, machine.ports = self.pid, dict(self.ports)
        return machine


@dataclass
class State:
    """All that one clone's ``lab-up`` started."""

    hosts: dict[str, HostState] = field(default_factory=dict)
    virtd: int = 0
    """The process number of its virtd."""

    context: str = ""
    """The guestctl context that was written."""


def directory(root: Path = ROOT) -> Path:
    """Where the lab of a clone lives.

    Not in the clone: a socket's path may have 107 bytes only.
    """
    clone = hashlib.sha256(str(root.resolve()).encode()).hexdigest()[:8]
    return Path(tempfile.gettempdir()) / f"virtd-playground-{os.geteuid()}-{clone}"


@contextlib.contextmanager
def locked(place: Path) -> Iterator[None]:
    """Hold the lab's lock; two commands at once wait for each other."""
    with place.with_suffix(".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def load(place: Path) -> State:
    """What was written down; nothing, where nothing was.

    :raises LabError: when it cannot be understood.
    """
    file = place / "state.json"
    try:
        document = json.loads(file.read_text())
        hosts = {name: HostState(**entry) for name, entry in document["hosts"].items()}
        return State(hosts, int(document["virtd"]), str(document["context"]))
    except FileNotFoundError:
        return State()
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise LabError(
            f"{file} cannot be understood ({error}): end the qemu-system-x86_64 processes that have {place} in their "
            "command line, and remove that folder"
        ) from error


def save(place: Path, state: State) -> None:
    """Write it down, at once or not at all."""
    place.mkdir(mode=0o700, parents=True, exist_ok=True)
    new = place / "state.json.new"
    new.write_text(json.dumps(asdict(state), indent=1))
    os.replace(new, place / "state.json")
