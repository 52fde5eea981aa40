"""The daemon dies at each hypervisor call and journal commit of a migration: there is one guest, where it says."""

from __future__ import annotations

import asyncio
import json
import sys
from pathlib import Path

import pytest

from tests.faults.dying import URI
from tests.faults.dying_migration import OTHER, begin
from tests.support.daemons import Lab, running_lab, short_directory
from virtd.model.names import GuestName
from virtd.model.operation import OperationState
from virtd.testing.fake import WORLDS

# An offline migration is made of calls that other verbs make as well.
CASES = [("live", "after-call"), ("live", "after-commit"), ("offline", "after-call")]


async def die_everywhere(base: Path, how: str, where: str) -> list[Path]:
    """What the daemons have left, that of one that did not die included."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "tests.faults.dying_migration", str(base), how, where,
        stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT,
    )  # fmt: skip
    output, _ = await process.communicate()
    assert process.returncode == 0, output.decode()[-4000:]
    return sorted(base.iterdir(), key=lambda place: int(place.name))


async def check(place: Path, how: str) -> bool:
    """Take over and look; whether the operation had been accepted before the death."""
    async with running_lab(place, uri=URI, hosts={"other": OTHER}, metrics={"interval_s": 3600.0}) as lab:
        other = lab.core.links["other"]
        await other.facts(20.0)
        try:
            return await _judge(lab, how)
        finally:
            WORLDS.forget(URI, lab.link.config.directory)
            WORLDS.forget(OTHER, other.config.directory)


async def _judge(lab: Lab, how: str) -> bool:
    kept = [entry for entry in await lab.core.engine.list() if entry.request_id == "dying-migrate"]
    assert len(kept) <= 1
    operation = await begin(lab)  # the caller repeats it
    assert not kept or operation.name == kept[0].name
    ended = await lab.end(operation)
    assert ended.state is OperationState.SUCCEEDED, ended.error
    assert not [warning for warning in ended.warnings if "left" in warning or "could not" in warning], ended.warnings
    here = json.loads(lab.world.digest())
    there = json.loads(WORLDS.get(OTHER, lab.core.links["other"].config.directory).digest())
    assert here["guests"] == []
    (guest,) = there["guests"]
    state = "RUNNING" if how == "live" else "STOPPED"
    assert (guest["name"], guest["state"], guest["migration"]) == ("a", state, "")
    assert [pool["volumes"] for pool in here["pools"]] == [[]]
    (volume,) = [volume for pool in there["pools"] for volume in pool["volumes"]]
    assert volume["complete"]
    (view,) = lab.core.inventory.guests()
    assert view.key == GuestName("other", "a")
    assert (view.guest.status.state, view.guest.status.current_operations) == (state, ())
    assert view.owned_volumes == (f"virtd/{volume['name']}",)
    for host, names in (("lab", set()), ("other", {volume["name"]})):
        directory = Path(lab.core.links[host].config.directory)
        assert {path.name for path in directory.glob("pool/*")} == names
        assert list(directory.glob("migrations/*")) == []
    return bool(kept)


@pytest.mark.timeout(600)
@pytest.mark.parametrize(("how", "where"), CASES)
async def test_it_dies_everywhere(how: str, where: str) -> None:
    with short_directory() as base:
        places = await die_everywhere(base, how, where)
        taken_up = [await check(place, how) for place in places]
        assert len(places) > 10
        assert sum(taken_up) > 5, "most deaths fall into the operation"
