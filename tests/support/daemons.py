"""A daemon inside the test's own process, on the fake backend, in a directory of its own.

::

    async with running_lab(place) as lab:
        await lab.done(await lab.create("a"))
        lab.world.faults.fail("guest_create")

The event loop, the core and the fake hypervisor are the real ones; so is the API's socket, which most
tests do not use.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import shutil
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import uuid4

from virtd.config import Config, load
from virtd.daemon import Daemon
from virtd.inventory import GuestView, HostLink
from virtd.model.guest import BlankSource, DiskSpec, Guest, GuestSpec, GuestState
from virtd.model.names import GuestName
from virtd.model.operation import Operation, OperationState
from virtd.service import Core, Services
from virtd.service.call import Call
from virtd.service.guests import GuestDraft
from virtd.testing.fake import WORLDS, FakeWorld

MIB = 1 << 20
HOST = "lab"
PATIENCE_S = 20.0
"""How long anything may take before a test gives up; nothing is expected to take so long."""

_calls = itertools.count()


@contextmanager
def short_directory() -> Iterator[Path]:
    """A directory whose name is short enough for sockets; removed at the end."""
    place = Path(tempfile.mkdtemp(prefix="vt-"))
    try:
        yield place
    finally:
        shutil.rmtree(place, ignore_errors=True)


def write_config(place: Path, hosts: Mapping[str, str], sections: Mapping[str, Mapping[str, object]]) -> Path:
    """A configuration file for a daemon that lives in ``place`` alone."""
    merged: dict[str, dict[str, object]] = {
        "state": {"directory": str(place / "state"), "runtime_directory": str(place / "run")},
        "server": {"socket": str(place / "virtd.sock"), "drain_timeout_s": 2.0},
        "discovery": {"enabled": False},
    }
    for name, section in sections.items():
        merged.setdefault(name, {}).update(section)
    lines = []
    for name, section in merged.items():
        lines.append(f"[{name}]")
        # JSON's strings, numbers, booleans and lists of them are TOML's as well.
        lines += [f"{key} = {json.dumps(value)}" for key, value in section.items()]
    for host, uri in hosts.items():
        lines += [f"[hosts.{host}]", f'uri = "{uri}"']
    path = place / "virtd.toml"
    path.write_text("\n".join(lines) + "\n")
    return path


def configuration(place: Path, hosts: Mapping[str, str], **sections: Mapping[str, object]) -> Config:
    """The same, loaded."""
    return load(write_config(place, hosts, sections))


def call(method: str = "test", *, request_id: str = "", fingerprint: str = "", **changes: Any) -> Call:
    """A call by somebody."""
    return Call("tester", method, f"rpc-{next(_calls)}", request_id, fingerprint or request_id, **changes)


def spec(*disks: DiskSpec, **changes: Any) -> GuestSpec:
    """A small guest."""
    return GuestSpec(**{"vcpus": 1, "memory_bytes": 64 * MIB, "disks": disks, **changes})


def blank(name: str = "root", mib: int = 8) -> DiskSpec:
    """A new disk."""
    return DiskSpec(name, blank=BlankSource(mib * MIB))


@dataclass
class Lab:
    """A running daemon with one fake host, ``lab``, and shortcuts."""

    daemon: Daemon
    uri: str

    @property
    def core(self) -> Core:
        return self.daemon.core

    @property
    def services(self) -> Services:
        return self.daemon.services

    @property
    def link(self) -> HostLink:
        return self.core.links[HOST]

    @property
    def world(self) -> FakeWorld:
        return WORLDS.get(self.uri, self.link.config.directory)

    def name(self, guest: str) -> GuestName:
        return GuestName(HOST, guest)

    def view(self, guest: str) -> GuestView:
        return self.core.inventory.get(self.name(guest))

    def guest(self, guest: str) -> Guest:
        return self.view(guest).guest

    def state(self, guest: str) -> GuestState:
        return self.guest(guest).status.state

    async def create(self, guest: str, *disks: DiskSpec, start: bool = False, **changes: Any) -> Operation:
        draft = GuestDraft(spec(*disks, **changes))
        return await self.services.guests.create(call(), HOST, guest, draft, start)

    async def created(self, guest: str, *disks: DiskSpec, start: bool = False, **changes: Any) -> Guest:
        await self.done(await self.create(guest, *disks, start=start, **changes))
        return self.guest(guest)

    async def end(self, operation: Operation | None, timeout_s: float = PATIENCE_S) -> Operation:
        """The operation at its end, whatever that is."""
        assert operation is not None
        ended = await self.core.engine.wait(operation.name, timeout_s)
        assert ended.state.terminal, f"{ended.verb} has not ended: {ended.stage} {ended.notes}"
        return ended

    async def done(self, operation: Operation | None) -> Operation:
        """The operation at its good end."""
        ended = await self.end(operation)
        assert ended.state is OperationState.SUCCEEDED, (ended.verb, ended.error)
        return ended

    async def failed(self, operation: Operation | None, reason: str) -> Operation:
        """The operation at an end with this reason."""
        ended = await self.end(operation)
        assert ended.error is not None, f"{ended.verb} ended {ended.state}"
        assert ended.error.reason == reason, ended.error
        return ended

    async def until(self, holds: Callable[[], bool], timeout_s: float = PATIENCE_S) -> None:
        await until(holds, timeout_s)


async def until(holds: Callable[[], bool], timeout_s: float = PATIENCE_S) -> None:
    """Wait for something that must come to hold."""
    end = time.monotonic() + timeout_s
    while not holds():
        assert time.monotonic() < end, "it did not come to hold in time"
        await asyncio.sleep(0.005)


def fresh_uri(query: str = "") -> str:
    """A world that no other test has."""
    return f"fake:///{uuid4().hex[:8]}{'?' if query else ''}{query}"


@asynccontextmanager
async def running_lab(
    place: Path,
    query: str = "",
    *,
    uri: str = "",
    hosts: Mapping[str, str] | None = None,
    wait: bool = True,
    **sections: Mapping[str, object],
) -> AsyncIterator[Lab]:
    """A daemon with the host ``lab``.

    :param query: options of the fake host; ``uri`` instead gives the whole URI.
    :param hosts: more hosts.
    :param wait: for the host's first answer.
    :param sections: configuration, by section.
    """
    uri = uri or fresh_uri(query)
    daemon = Daemon(configuration(place, {HOST: uri, **(hosts or {})}, **sections))
    async with daemon.running():
        lab = Lab(daemon, uri)
        if wait:
            await lab.link.facts(PATIENCE_S)
        yield lab
