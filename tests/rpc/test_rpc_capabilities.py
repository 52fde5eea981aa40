"""What a host can do, and what was proven of it, over the public socket of a real daemon."""

from __future__ import annotations

import asyncio
import tempfile
from collections.abc import AsyncIterator
from pathlib import Path
from uuid import uuid4

import pytest
from virtd_client import AsyncClient, errors

from virtd.backend import verified
from virtd.config.model import Config, DiscoveryConfig, HostEntry, ServerConfig, StateConfig, StorageConfig
from virtd.daemon import Daemon
from virtd.v1 import capability_pb2 as cap
from virtd.v1 import guest_pb2, host_pb2

VERIFIED, PROBED = cap.CAPABILITY_PROVENANCE_VERIFIED, cap.CAPABILITY_PROVENANCE_PROBED
NATIVE, PARTIAL, UNSUPPORTED = (
    cap.CAPABILITY_LEVEL_NATIVE,
    cap.CAPABILITY_LEVEL_PARTIAL,
    cap.CAPABILITY_LEVEL_UNSUPPORTED,
)
KINDS = "hosts/kinds"


@pytest.fixture
async def client() -> AsyncIterator[AsyncClient]:
    lacking = "guest.screenshot"
    queries = {"plain": "", "lame": f"?without={lacking}", "kinds": f"?second_without={lacking},guest.suspend"}
    with tempfile.TemporaryDirectory(prefix="virtd-") as name:
        root = Path(name)
        config = Config(
            server=ServerConfig(socket=root / "virtd.sock", socket_mode=0o600, drain_timeout_s=5),
            state=StateConfig(directory=root / "state", runtime_directory=root / "run"),
            storage=StorageConfig(allowed_directories=()),
            hosts=tuple(HostEntry(id=id_, uri=f"fake:///{uuid4().hex}{query}") for id_, query in queries.items()),
            discovery=DiscoveryConfig(enabled=False),
        )
        async with Daemon(config).running(), AsyncClient.connect(f"unix:{root}/virtd.sock") as made:
            for id_ in queries:
                await _connected(made, f"hosts/{id_}")
                await made.hosts.probe(f"hosts/{id_}")
            yield made


async def _connected(client: AsyncClient, name: str) -> None:
    for _ in range(200):
        if (await client.hosts.get(name)).state == host_pb2.HOST_STATE_CONNECTED:
            return
        await asyncio.sleep(0.05)
    raise AssertionError(f"{name} does not connect")


async def _told(client: AsyncClient, name: str, **of: str) -> dict[str, cap.Capability]:
    return {entry.id: entry for entry in await client.hosts.capabilities(name, **of)}


async def test_a_host_like_one_of_a_report_is_verified(client: AsyncClient) -> None:
    (report,) = [run for run in verified.shipped() if run.environment.backend == "fake"]
    told = await _told(client, "hosts/plain")
    assert {id_ for id_, entry in told.items() if entry.provenance == VERIFIED} == set(report.levels)
    pause = told["guest.pause"]
    assert (pause.provenance, pause.level, pause.verified_with) == (VERIFIED, NATIVE, "fake 1")
    assert pause.verified_time.ToSeconds() == int(report.time.timestamp())
    facts = (await client.hosts.get("hosts/plain")).facts
    assert list(facts.capabilities) == list(told.values()), "the host itself says the same"


async def test_a_probe_that_denies_is_not_overruled(client: AsyncClient) -> None:
    told = await _told(client, "hosts/lame")
    picture = told["guest.screenshot"]
    assert (picture.level, picture.provenance, picture.verified_with) == (UNSUPPORTED, PROBED, "")
    assert not picture.HasField("verified_time")
    assert told["guest.pause"].provenance == VERIFIED


async def test_kinds_of_guests(client: AsyncClient) -> None:
    facts = (await client.hosts.get(KINDS)).facts
    assert [kind.machine for kind in facts.guest_kinds] == ["fake-1", "fake-2"]
    levels = [(await _told(client, KINDS, machine=of))["guest.screenshot"].level for of in ("", "fake-1", "fake-2")]
    assert levels == [PARTIAL, NATIVE, UNSUPPORTED]
    assert "fake-2" in (await _told(client, KINDS, machine="fake-2"))["guest.screenshot"].reason


async def test_one_guest_is_of_its_kind_and_refused_by_that(client: AsyncClient) -> None:
    for machine, level in (("fake-1", NATIVE), ("fake-2", UNSUPPORTED)):
        wanted = guest_pb2.Guest(spec=guest_pb2.GuestSpec(memory_bytes=64 << 20, machine=machine))
        operation = await client.guests.create(KINDS, machine, wanted, start=True)
        guest = (await operation.result()).name
        assert (await _told(client, KINDS, guest=guest))["guest.screenshot"].level == level
        actions = (await client.guests.get(guest)).status.allowed_actions
        assert ("suspend" in actions) == (level == NATIVE)
    with pytest.raises(errors.Unsupported) as refused:
        await client.console.screenshot(f"{KINDS}/guests/fake-2")
    assert "guests of the machine fake-2 do not have it" in str(refused.value)


@pytest.mark.parametrize(
    ("of", "field", "words"),
    [
        ({"machine": "xenpv"}, "machine", "no kind of its guests"),
        ({"machine": "fake-1", "guest": f"{KINDS}/guests/one"}, "machine", "leave the machine out"),
        ({"guest": "hosts/plain/guests/one"}, "guest", "not a guest of hosts/kinds"),
        ({"guest": "one"}, "guest", "hosts/{host}/guests/{guest}"),
    ],
)
async def test_bad_questions(client: AsyncClient, of: dict[str, str], field: str, words: str) -> None:
    with pytest.raises(errors.InvalidArgument) as refused:
        await client.hosts.capabilities(KINDS, **of)
    (violation,) = refused.value.violations
    assert violation.field == field
    assert words in violation.description
    if of.get("machine") == "xenpv":
        assert list(violation.alternatives) == ["fake-1", "fake-2"]


async def test_a_host_of_one_kind_and_a_guest_that_is_not_there(client: AsyncClient) -> None:
    with pytest.raises(errors.InvalidArgument, match="of one kind"):
        await client.hosts.capabilities("hosts/plain", machine="fake-1")
    with pytest.raises(errors.NotFound):
        await client.hosts.capabilities(KINDS, guest=f"{KINDS}/guests/nobody")
