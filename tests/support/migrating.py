"""Two fake hosts between which a guest moves, for tests of migration."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.support.daemons import PATIENCE_S, Lab, call, fresh_uri, running_lab, short_directory
from virtd.errors import VirtdError
from virtd.inventory import GuestView
from virtd.model.guest import Guest
from virtd.model.migration import FindingSeverity, MigrationRequest
from virtd.model.names import GuestName
from virtd.model.operation import Operation
from virtd.testing.fake import WORLDS, FakeWorld

COPY = MigrationRequest("other", copy_storage=True)
MARK = b"written by the guest"


class Pair:
    """A daemon with the hosts ``lab`` and ``other``."""

    def __init__(self, lab: Lab, other: str) -> None:
        self.lab = lab
        self.services, self.core = lab.services, lab.core
        self.here = lab.world
        self.there: FakeWorld = WORLDS.get(other, self.core.links["other"].config.directory)
        self.name, self.moved = lab.name("a"), GuestName("other", "a")

    async def migrate(self, request: MigrationRequest = COPY, **options: Any) -> Operation:
        answer = await self.services.migrations.migrate(call(**options), self.name, request)
        assert isinstance(answer, Operation)
        return answer

    async def done(self, request: MigrationRequest = COPY) -> Operation:
        return await self.lab.done(await self.migrate(request))

    async def reasons(self, request: MigrationRequest = COPY, name: GuestName | None = None) -> dict[str, str]:
        """The findings of a check: reason -> severity."""
        found = await self.services.migrations.check(name or self.name, request)
        assert found.possible == all(one.severity is not FindingSeverity.CRITICAL for one in found.findings)
        assert all(one.remedy for one in found.findings if one.severity is FindingSeverity.CRITICAL)
        return {finding.reason: finding.severity.value for finding in found.findings}

    async def refused(self, reason: Any, request: MigrationRequest = COPY, name: GuestName | None = None) -> VirtdError:
        before = (self.here.digest(), self.there.digest())
        with pytest.raises(VirtdError) as caught:
            await self.services.migrations.migrate(call(), name or self.name, request)
        assert caught.value.reason is reason, caught.value
        assert (self.here.digest(), self.there.digest()) == before
        return caught.value

    def view(self, name: GuestName) -> GuestView | None:
        return self.core.inventory.find(name)

    def guest(self) -> Guest:
        return self.core.inventory.get(self.moved).guest

    def running(self) -> list[str]:
        """On which hosts a copy of the guest runs, by what the hypervisors have themselves."""
        return [
            host
            for host, world in (("lab", self.here), ("other", self.there))
            for guest in world.native.guests.values()
            if guest.active_now and guest.migration != "incoming"
        ]

    def known(self) -> list[str]:
        """Where the guest is defined or waits."""
        return [host for host, world in (("lab", self.here), ("other", self.there)) if world.native.guests]

    def volumes(self, world: FakeWorld) -> list[str]:
        return sorted(name for pool in world.native.pools.values() for name in pool.volumes)


@pytest.fixture
def place() -> Iterator[Path]:
    with short_directory() as directory:
        yield directory


@asynccontextmanager
async def pair(place: Path, query: str = "", **sections: Any) -> AsyncIterator[Pair]:
    other = fresh_uri(query)
    async with running_lab(place, hosts={"other": other}, metrics={"interval_s": 3600.0}, **sections) as lab:
        await lab.core.links["other"].facts(PATIENCE_S)
        yield Pair(lab, other)


@pytest.fixture
async def two(place: Path) -> AsyncIterator[Pair]:
    async with pair(place) as made:
        yield made


def write_marks(two: Pair) -> None:
    guest = next(iter(two.here.native.guests.values()))
    guest.files.memory["/run/mark"] = MARK
    guest.files.disk["/mark"] = MARK
