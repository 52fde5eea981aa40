"""What stands in for a backend that is not there."""

from __future__ import annotations

from collections.abc import Sequence

from virtd.backend.api import BackendDescriptor, HostCandidate, HostConfig, HostSession
from virtd.errors import VirtdError


class MissingBackend:
    """A backend for a host whose own one is missing: every attempt to open the host says why.

    So one plugin that fails to load, or one wrong URI, costs its own hosts and no other.

    :param error: why.
    """

    def __init__(self, error: VirtdError) -> None:
        self._error = error
        self._descriptor = BackendDescriptor(
            id="", title="", version="", uri_schemes=(), capabilities=(), native_format=""
        )

    @property
    def descriptor(self) -> BackendDescriptor:
        """Empty."""
        return self._descriptor

    async def discover(self) -> Sequence[HostCandidate]:
        """Nothing."""
        return ()

    async def open(self, config: HostConfig) -> HostSession:
        """Never succeeds.

        :raises VirtdError: why there is no backend.
        """
        raise self._error
