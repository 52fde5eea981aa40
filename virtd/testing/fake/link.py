"""What the facets of one session share, and how native failures become contract errors."""

from __future__ import annotations

import functools
from collections.abc import Callable, Coroutine, Iterable
from typing import TYPE_CHECKING, Any, Concatenate, Final, ParamSpec, TypeVar
from uuid import UUID

from virtd.backend.api import HostConfig
from virtd.backend.capabilities import absent, native
from virtd.errors import (
    AGENT_DISABLED,
    AGENT_NOT_READY,
    AGENT_STUCK,
    BACKEND_ERROR,
    GUEST_FROZEN,
    GUEST_NOT_FOUND,
    HOST_UNREACHABLE,
    INVALID_STATE,
    SNAPSHOT_NOT_FOUND,
    STORAGE_FULL,
    VOLUME_EXISTS,
    AlreadyExistsError,
    FailedPreconditionError,
    InternalError,
    NativeError,
    NotFoundError,
    Reason,
    ResourceExhaustedError,
    UnavailableError,
    VirtdError,
    unsupported,
)
from virtd.model.guest import GuestState
from virtd.model.host import Capability, CapabilityLevel, GuestKind
from virtd.testing.fake.faults import NativeFailure
from virtd.testing.fake.native import NativeHypervisor
from virtd.testing.fake.options import FIRST, SECOND
from virtd.testing.fake.state import FakeGuest

if TYPE_CHECKING:
    from virtd.testing.fake.world import FakeWorld

P = ParamSpec("P")
T = TypeVar("T")

_ERRORS: Final[dict[str, tuple[type[VirtdError], Reason]]] = {
    "no-guest": (NotFoundError, GUEST_NOT_FOUND),
    "no-snapshot": (NotFoundError, SNAPSHOT_NOT_FOUND),
    "unreachable": (UnavailableError, HOST_UNREACHABLE),
    "active": (FailedPreconditionError, INVALID_STATE),
    "not-running": (FailedPreconditionError, INVALID_STATE),
    "not-paused": (FailedPreconditionError, INVALID_STATE),
    "volume-exists": (AlreadyExistsError, VOLUME_EXISTS),
    "no-space": (ResourceExhaustedError, STORAGE_FULL),
    "agent-away": (UnavailableError, AGENT_NOT_READY),
    "agent-stuck": (UnavailableError, AGENT_STUCK),
    "agent-disabled": (FailedPreconditionError, AGENT_DISABLED),
    "frozen": (FailedPreconditionError, GUEST_FROZEN),
}


def translate(failure: NativeFailure) -> VirtdError:
    """The contract error that a native failure means; the native words travel with it."""
    kind, reason = _ERRORS.get(failure.code, (InternalError, BACKEND_ERROR))
    return kind(reason, failure.message, native=NativeError(failure.call, failure.code, failure.message))


class Link:
    """One session's way to its world."""

    def __init__(self, world: FakeWorld, config: HostConfig, capabilities: Iterable[Capability]) -> None:
        self.world = world
        self.config = config
        self.closed = False
        self._second_without = world.options.second_without
        self.capabilities = tuple(
            Capability(entry.id, CapabilityLevel.PARTIAL, entry.provenance, f"not for guests of the machine {SECOND}")
            if entry.id in self._second_without
            else entry
            for entry in capabilities
        )

    def refuse_without(self, capability: str) -> None:
        """Refuse what this host cannot do, with the capability's own reason.

        :raises UnsupportedError: CAPABILITY_UNSUPPORTED.
        """
        for entry in self.capabilities:
            if entry.id == capability and entry.level is CapabilityLevel.UNSUPPORTED:
                raise unsupported(capability, entry.reason)

    def kinds(self) -> tuple[GuestKind, ...]:
        """The kinds of guests, where they differ."""
        ids = self._second_without
        if not ids:
            return ()
        lost = tuple(absent(id_, f"guests of the machine {SECOND} do not have it") for id_ in sorted(ids))
        return (GuestKind(FIRST, tuple(native(id_) for id_ in sorted(ids))), GuestKind(SECOND, lost))

    def refuse_kind(self, guest: FakeGuest, capability: str) -> None:
        """Refuse what guests of this one's kind do not have.

        :raises UnsupportedError: CAPABILITY_UNSUPPORTED.
        """
        if f'"{SECOND}"' in guest.native:
            for entry in self.kinds()[-1].capabilities if self.kinds() else ():
                if entry.id == capability:
                    raise unsupported(capability, entry.reason)


class Facet:
    """Base of the session and its facets."""

    def __init__(self, link: Link) -> None:
        self._link = link

    @property
    def _world(self) -> FakeWorld:
        return self._link.world

    @property
    def _native(self) -> NativeHypervisor:
        return self._link.world.native

    async def _in_states(self, uuid: UUID, what: str, *states: GuestState) -> FakeGuest:
        """Look a guest up and refuse it unless it is in one of the states."""
        guest = await self._native.guest_lookup(uuid)
        if guest.state not in states:
            raise FailedPreconditionError(
                INVALID_STATE, f"cannot {what} guest {guest.name}: it is {guest.state}", resource=guest.name
            )
        return guest


F_ = TypeVar("F_", bound=Facet)


def spi(
    method: Callable[Concatenate[F_, P], Coroutine[Any, Any, T]],
) -> Callable[Concatenate[F_, P], Coroutine[Any, Any, T]]:
    """A method of the SPI: only contract errors leave it, and none works after ``close``."""

    @functools.wraps(method)
    async def call(self: F_, /, *args: P.args, **kwargs: P.kwargs) -> T:
        if self._link.closed:  # the facet's own attribute, seen from its decorator
            raise UnavailableError(HOST_UNREACHABLE, "the session is closed")
        try:
            return await method(self, *args, **kwargs)
        except NativeFailure as failure:
            raise translate(failure) from failure

    return call
