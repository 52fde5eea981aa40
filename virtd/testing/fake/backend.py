"""The fake backend."""

from __future__ import annotations

from collections.abc import Sequence

from virtd.backend.api import BackendDescriptor, HostCandidate, HostConfig, HostSession
from virtd.backend.capabilities import SCREENSHOT, SNAPSHOT, SUMMARIES, absent, emulated, native
from virtd.backend.emulate import power, screenshots, snapshots
from virtd.errors import HOST_UNREACHABLE, UnavailableError
from virtd.model.host import Capability
from virtd.testing.fake import lowering
from virtd.testing.fake.link import Link
from virtd.testing.fake.options import SCHEME, FakeOptions, parse_uri
from virtd.testing.fake.session import VERSION, FakeSession
from virtd.testing.fake.world import WORLDS, Worlds


class FakeBackend:
    """See :class:`virtd.backend.api.Backend`.

    :param worlds: the worlds that its hosts live in; the process's own by default.
    """

    def __init__(self, worlds: Worlds | None = None) -> None:
        self.worlds = worlds or WORLDS
        self._descriptor = BackendDescriptor(
            id="fake",
            title="Simulated guests, for tests and for people who write clients",
            version=VERSION,
            uri_schemes=(SCHEME,),
            capabilities=tuple(native(id_) for id_ in SUMMARIES),
            native_format=lowering.NATIVE_FORMAT,
            options=lowering.OPTIONS,
        )

    @property
    def descriptor(self) -> BackendDescriptor:
        """See the SPI."""
        return self._descriptor

    async def discover(self) -> Sequence[HostCandidate]:
        """Nothing: a fake host is only there if somebody configures it."""
        return ()

    async def open(self, config: HostConfig) -> HostSession:
        """See the SPI."""
        options = parse_uri(config.uri)
        world = self.worlds.get(config.uri, config.directory)
        if not world.native.connected:
            raise UnavailableError(HOST_UNREACHABLE, "the fake hypervisor is disconnected")
        return FakeSession(Link(world, config, capabilities_of(options)))


def capabilities_of(options: FakeOptions) -> list[Capability]:
    """What a fake host with these options can do."""
    reason = "switched off by without= in the fake host's URI"
    stated = {id_: absent(id_, reason) if id_ in options.without else native(id_) for id_ in SUMMARIES}
    by_virtd = {entry.id: entry for entry in power.CAPABILITIES}
    by_virtd[SCREENSHOT] = emulated(SCREENSHOT, screenshots.HOW)
    stated |= {id_: by_virtd[id_] for id_ in options.emulate if id_ in by_virtd}
    if SNAPSHOT in options.emulate:
        stated |= {entry.id: entry for entry in snapshots.CAPABILITIES}
    return list(stated.values())
