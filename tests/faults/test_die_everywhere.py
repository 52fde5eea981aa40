"""The daemon dies before and after every single hypervisor call and journal commit of an operation.

After each death a daemon takes over what is left.  The operation, if it was accepted, ends once, and the world is
then what it says; a repetition of the request is the same operation; nothing is left over.
"""

from __future__ import annotations

import asyncio
import base64
import json
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.faults.dying import PLACES, begin, uri_of
from tests.support.daemons import Lab, running_lab, short_directory
from virtd.backend.emulate.records import CopyTree, Stage
from virtd.model.event import EventType
from virtd.model.operation import OperationState
from virtd.testing.fake import WORLDS

MAIN = ("create", "start", "snapshot", "delete")
CASES = [(verb, where) for verb in MAIN for where in PLACES]


async def die_everywhere(base: Path, verb: str, where: str) -> list[Path]:
    """What the daemons have left, that of one that did not die included."""
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "tests.faults.dying",
        str(base),
        verb,
        where,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    output, _ = await process.communicate()
    assert process.returncode == 0, output.decode()[-4000:]
    return sorted(base.iterdir(), key=lambda place: int(place.name))


async def check(place: Path, verb: str) -> str:
    """Take over; how the operation ended."""
    uri = uri_of(verb)
    async with running_lab(place, uri=uri) as lab:
        try:
            return await _judge(lab, verb)
        finally:
            WORLDS.forget(uri, lab.link.config.directory)


async def _judge(lab: Lab, verb: str) -> str:
    kept = [entry for entry in await lab.core.engine.list() if entry.request_id == f"dying-{verb}"]
    assert len(kept) <= 1
    # The caller, who does not know what has become of his call, repeats it.
    operation = await begin(lab, verb)
    assert operation is not None
    if kept:
        assert operation.name == kept[0].name
    ended = await lab.end(operation)
    _check_world(lab, verb, ended.state is OperationState.SUCCEEDED)
    if ended.state is not OperationState.SUCCEEDED:
        # Only what cannot be repeated may end in anything else.
        assert verb == "reboot", ended.error
        assert ended.error is not None
        assert ended.error.reason == "OPERATION_INTERRUPTED"
    events = await _all_events(lab)
    ends = [event for event in events if event[1] == ended.name and event[2] in {"SUCCEEDED", "FAILED", "CANCELLED"}]
    assert {end[2] for end in ends} == {ended.state.value}, "the event of the end is in the log"
    removed = [event for event in events if event[0] is EventType.GUEST_REMOVED]
    assert bool(removed) == (verb == "delete")
    return ended.state.value


async def _all_events(lab: Lab) -> list[tuple[EventType, str, str]]:
    await lab.core.events.flush()
    found = []
    position = 0
    while batch := await lab.core.events.read(position, 1000):
        position = batch[-1].revision
        found += [(event.type, event.resource, event.attributes.get("state", "")) for event in batch]
    return found


def _check_world(lab: Lab, verb: str, succeeded: bool) -> None:
    world = json.loads(lab.world.digest())
    guests = {guest["name"]: guest for guest in world["guests"]}
    volumes = [volume for pool in world["pools"] for volume in pool["volumes"]]
    assert all(volume["complete"] for volume in volumes)
    owned = {volume for view in lab.core.inventory.guests() for volume in view.owned_volumes}
    extra = {"virtd/extra"} if verb == "volume" else set()
    assert {f"virtd/{volume['name']}" for volume in volumes} == owned | extra, "each disk is somebody's"
    files = {path.name for path in Path(lab.link.config.directory, "pool").glob("*")}
    assert files == {volume["name"] for volume in volumes}
    assert set(guests) == (set() if verb == "delete" else {"a"})
    known = {view.guest.display_name or view.key.guest: view.guest for view in lab.core.inventory.guests()}
    assert set(known) == set(guests)
    for name, guest in guests.items():
        assert known[name].status.state == guest["state"]
        assert known[name].status.current_operations == ()
        assert all(snapshot["complete"] for snapshot in guest["snapshots"]), "no snapshot is left half made"
    _check_files(lab, verb, {network["record"]["name"]: network["record"] for network in world["networks"]})
    if verb in {"copy", "copy-revert", "copy-delete"}:
        _check_copies(guests["a"], volumes, verb)
        return
    if verb in {"delete", "volume"} or not succeeded:
        return
    state = {"stop": "STOPPED", "shutdown": "STOPPED", "suspend": "SUSPENDED"}.get(verb, "RUNNING")
    assert guests["a"]["state"] == state
    assert len(volumes) == (2 if verb in {"create", "seeded"} else 1)
    if verb in {"soft-reboot", "soft-reset"}:
        # Where a daemon has died after the start and before it could write that down, it is not started again.
        assert guests["a"]["boots"] == 2
    names = [snapshot["name"] for snapshot in guests["a"]["snapshots"]]
    assert names == {"snapshot": ["s1"], "revert": ["s0"]}.get(verb, [])


def _check_copies(guest: dict[str, Any], volumes: list[dict[str, Any]], verb: str) -> None:
    """The snapshots are whole, the guest's disks are volumes that are, and they hold what they should."""
    paths = {volume["path"] for volume in volumes}
    records = CopyTree.of_text(guest["records"])
    assert [record.name for record in records.records] == {"copy": ["s1"], "copy-revert": ["s0"]}.get(verb, [])
    assert all(record.stage is Stage.COMPLETE for record in records.records)
    held = {copy.volume for record in records.records for copy in record.disks}
    assert held < {volume["name"] for volume in volumes}
    assert len(volumes) == 2 + len(held), "nothing is left over"
    disks = {disk["path"] for disk in json.loads(guest["native"])["disks"]}
    assert disks == paths - {volume["path"] for volume in volumes if volume["name"] in held}
    content = {"/data": base64.b64encode(b"then" if verb == "copy-revert" else b"now").decode()}
    assert guest["disk"] == content


def _check_files(lab: Lab, verb: str, networks: dict[str, dict[str, object]]) -> None:
    assert list(Path(lab.link.config.directory, "seeds").glob("*")) == [], "a seed with its secrets is left"
    images = [path.name for path in Path(lab.daemon.config.state.images_directory).iterdir()]
    assert [name.startswith("sha256-") for name in images] == ([True] if verb == "image" else [])
    assert set(networks) == {"default", "isolated"} | ({"lan"} if verb == "network" else set())
    if verb == "network":
        assert (networks["lan"]["active"], networks["lan"]["autostart"]) == (True, True)


async def dies_and_is_taken_over(verb: str, where: str) -> None:
    """Every death of one verb at one kind of place, and what came after."""
    with short_directory() as base:
        places = await die_everywhere(base, verb, where)
        assert len(places) > 3
        for place in places:
            await check(place, verb)


@pytest.mark.timeout(600)
@pytest.mark.parametrize(("verb", "where"), CASES)
async def test_it_dies_everywhere(verb: str, where: str) -> None:
    await dies_and_is_taken_over(verb, where)
