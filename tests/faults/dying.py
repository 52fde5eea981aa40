"""Daemons that die at exact places: ``python -m tests.faults.dying BASE VERB WHERE``.

Each runs on the fake hypervisor in ``BASE/NUMBER``, carries out one verb, and ends itself, without any tidying up, at
the NUMBERth hypervisor call or journal commit of that verb.  WHERE is ``before-call``, ``after-call``,
``before-commit`` or ``after-commit``.  The first NUMBER for which there is no such place is the last.

``test_die_everywhere.py`` then starts a daemon on what each has left.  The daemons are forked from one process that
has everything imported, but has not started gRPC: a fork is ten times as quick as a new interpreter.
"""

from __future__ import annotations

import asyncio
import os
import sqlite3
import sys
import traceback
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Final

from tests.support.daemons import Lab, blank, call, running_lab
from virtd.model.operation import Operation
from virtd.service.snapshots import Draft as SnapshotDraft
from virtd.store import database as store
from virtd.testing.fake.native import NativeHypervisor

URI: Final = "fake:///dying?persist=1"
EMULATED: Final = ("copy", "copy-revert", "copy-delete", "soft-reboot", "soft-reset")
"""Verbs that virtd carries out itself, as the host cannot."""
DIED: Final = 9
MOST: Final = 80
PLACES: Final = ("before-call", "after-call", "before-commit", "after-commit")


def uri_of(verb: str) -> str:
    """The host for a verb."""
    return f"{URI}&emulate=guest.snapshot,guest.reboot,guest.reset" if verb in EMULATED else URI


class Fate:
    """Counts places, once it is armed, and ends the process at the one that was chosen."""

    def __init__(self, where: str, number: int) -> None:
        self.where, self.number = where, number
        self.armed = False

    def passes(self, where: str) -> None:
        if self.armed and where == self.where:
            self.number -= 1
            if self.number == 0:
                os._exit(DIED)


def install(fate: Fate) -> None:
    """Let fate see every hypervisor call and every commit."""
    native_call = NativeHypervisor._call

    @asynccontextmanager
    async def doomed_call(self: NativeHypervisor, name: str, context: Any = None) -> AsyncIterator[None]:
        fate.passes("before-call")
        async with native_call(self, name, context):
            yield
        fate.passes("after-call")

    NativeHypervisor._call = doomed_call  # type: ignore[method-assign]
    connect = sqlite3.connect

    class Connection(sqlite3.Connection):
        def execute(self, sql: str, *rest: Any) -> sqlite3.Cursor:
            if sql == "COMMIT":
                fate.passes("before-commit")
            cursor = super().execute(sql, *rest)
            if sql == "COMMIT":
                fate.passes("after-commit")
            return cursor

    store.sqlite3.connect = lambda *args, **kwargs: connect(*args, factory=Connection, **kwargs)  # type: ignore[assignment]


async def begin(lab: Lab, verb: str) -> Operation | None:
    """Ask for the verb.  Its guest is ``a``."""
    guests, name = lab.services.guests, lab.name("a")
    request = call(request_id=f"dying-{verb}")
    match verb:
        case "create":
            from tests.support.daemons import HOST, spec
            from virtd.service.guests import GuestDraft

            return await guests.create(request, HOST, "a", GuestDraft(spec(blank(), blank("data"))), start=True)
        case "start":
            return await guests.start(request, name)
        case "stop":
            return await guests.stop(request, name)
        case "shutdown":
            return await guests.shutdown(request, name, 30.0, force_after_timeout=False)
        case "suspend":
            return await guests.suspend(request, name)
        case "reboot" | "soft-reboot":
            return await guests.reboot(request, name)
        case "soft-reset":
            return await guests.reset(request, name)
        case "copy":
            made = await lab.services.snapshots.create(request, name, SnapshotDraft("s1"))
            assert isinstance(made, Operation)
            return made
        case "copy-revert":
            return await lab.services.snapshots.revert(request, name, "s0")
        case "copy-delete":
            return await lab.services.snapshots.delete(request, name, "s0")
        case "snapshot":
            return await lab.services.snapshots.create(request, name, SnapshotDraft("s1", "", memory=True))
        case "revert":
            return await lab.services.snapshots.revert(request, name, "s0")
        case "delete":
            return await guests.delete(request, name, force=True, keep_disks=False, etag="")
        case "volume":
            from virtd.model.guest import DiskFormat

            return await lab.services.storage.create_volume(request, "lab", "virtd", "extra", 1 << 20, DiskFormat.RAW)
        case "seeded":
            from tests.support.daemons import HOST, spec
            from virtd.model.cloud_init import CloudInitSpec, CloudInitUser
            from virtd.service.guests import GuestDraft

            seed = CloudInitSpec(users=(CloudInitUser("ada"),))
            return await guests.create(request, HOST, "a", GuestDraft(spec(blank(), cloud_init=seed)), start=True)
        case "network":
            from virtd.model.network import NetworkMode, NetworkSpec

            lan = NetworkSpec(NetworkMode.NAT, "10.1.0.0/24", autostart=True)
            network = await lab.services.networks.create(request, "lab", "lan", lan)
            assert not isinstance(network, str)
            return network
        case "image":
            from virtd.model.guest import DiskFormat

            return await lab.services.images.import_(request, "i", str(_image(lab)), DiskFormat.RAW)
    raise ValueError(verb)


def _image(lab: Lab) -> Path:
    return Path(lab.daemon.config.state.import_directory) / "i.raw"


async def prepare(lab: Lab, verb: str) -> None:
    """What must be there before."""
    if verb in {"create", "seeded"}:
        return
    if verb == "image":
        _image(lab).write_bytes(bytes(range(256)) * 64)
    if verb.startswith("copy"):
        await lab.created("a", blank(), blank("data"))
        if verb != "copy":
            write(lab, b"then")
            await lab.done(await lab.services.snapshots.create(call(), lab.name("a"), SnapshotDraft("s0")))
        write(lab, b"now")
        return
    await lab.created("a", blank(), start=verb not in {"start", "volume"})
    if verb == "revert":
        await lab.done(await lab.services.snapshots.create(call(), lab.name("a"), SnapshotDraft("s0", "", memory=True)))
        await lab.done(await lab.services.guests.stop(call(), lab.name("a")))


def write(lab: Lab, text: bytes) -> None:
    """Let the guest have written to its disk."""
    (guest,) = lab.world.native.guests.values()
    guest.files.disk["/data"] = text
    lab.world.save()


async def main(place: Path, verb: str, where: str, number: int) -> None:
    """See above."""
    fate = Fate(where, number)
    install(fate)
    async with running_lab(place, uri=uri_of(verb), metrics={"interval_s": 3600.0}) as lab:
        await prepare(lab, verb)
        await asyncio.sleep(0.02)
        fate.armed = True
        await lab.end(await begin(lab, verb))
        os._exit(0)  # nobody is interested in a good end


def fork(place: Path, verb: str, where: str, number: int) -> int:
    """Run one; its process."""
    place.mkdir()
    pid = os.fork()
    if pid:
        return pid
    code = 1
    try:
        asyncio.run(main(place, verb, where, number))
        code = 0
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(code)


def run_all(base: Path, verb: str, where: str) -> None:
    """Run daemons, two at a time, until one does not die."""
    for first in range(1, MOST, 2):
        numbers = (first, first + 1)
        pids = [fork(base / str(number), verb, where, number) for number in numbers]
        codes = [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in pids]
        assert set(codes) <= {0, DIED}, codes
        if codes[0] == 0 and codes[1] == 0:
            return
    raise AssertionError(f"{verb} does not end")


if __name__ == "__main__":
    run_all(Path(sys.argv[1]), sys.argv[2], sys.argv[3])
