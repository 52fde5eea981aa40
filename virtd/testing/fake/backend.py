"""The fake backend."""

from __future__ import annotations

from collections.abc import Sequence

from virtd.backend.api import BackendDescriptor, HostCandidate, HostConfig, HostSession
from virtd.backend.capabilities import SUMMARIES, absent, native
from virtd.errors import HOST_UNREACHABLE, UnavailableError
from virtd.testing.fake import lowering
from virtd.testing.fake.link import Link
from virtd.testing.fake.options import SCHEME, parse_uri
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
        reason = "switched off by without= in the fake host's URI"
        capabilities = [absent(id_, reason) if id_ in options.without else native(id_) for id_ in SUMMARIES]
        return FakeSession(Link(world, config, capabilities))
