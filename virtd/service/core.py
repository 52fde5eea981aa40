"""What the use cases share: the one object that holds the daemon's parts, and its lookups."""

from __future__ import annotations

import functools
from collections.abc import Awaitable, Callable, Coroutine, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Concatenate, Final, ParamSpec, Protocol, TypeVar

from virtd.backend.api import HostConfig
from virtd.backend.capabilities import require
from virtd.errors import (
    GUEST_NOT_ADOPTED,
    HOST_NOT_FOUND,
    INVALID_STATE,
    FailedPreconditionError,
    NotFoundError,
)
from virtd.events import EventLog
from virtd.inventory import GuestView, HostLink, Inventory
from virtd.inventory.rules import CAPABILITY_OF, LEGAL_STATES
from virtd.inventory.usage import UsageHistory
from virtd.model.guest import Guest, Origin, Presence
from virtd.model.names import GuestName
from virtd.model.operation import Operation
from virtd.model.trash import DiskPolicy
from virtd.operations import Engine, Submission
from virtd.plugins import PluginManager
from virtd.service.call import Call
from virtd.service.fetching import FetchOptions
from virtd.service.freezes import Freezes
from virtd.service.trashcan import TrashCan
from virtd.store import Database

if TYPE_CHECKING:
    from virtd.service.bases import Bases

SETTLE_S: Final = 10.0
"""How long a change waits for the first answer of a host that has just been begun to be connected."""

P = ParamSpec("P")
R = TypeVar("R")


@dataclass(frozen=True, slots=True)
class StrategyOptions:
    """How run strategies start guests again; times in seconds.

    :param backoff_first_s: how long the second start after a failure waits; the first does not wait, and
        each later one waits twice as long.
    :param backoff_max_s: no start waits longer.
    :param stable_s: a guest that has run so long has not failed.
    :param halt_s: how long a guest that shall be HALTED may take to shut down, and how long virtd waits
        before it asks again.
    """

    backoff_first_s: float = 10.0
    backoff_max_s: float = 300.0
    stable_s: float = 600.0
    halt_s: float = 120.0


@dataclass(frozen=True, slots=True)
class CoreOptions:
    """Settings that use cases need."""

    state_directory: Path
    image_directory: Path
    allowed_directories: tuple[str, ...] = ()
    watcher_buffer: int = 10_000
    start_timeout_s: float = 300.0
    on_delete: DiskPolicy = DiskPolicy.DELETE
    trash_retention_s: float | None = 7 * 86_400.0
    strategy: StrategyOptions = field(default_factory=StrategyOptions)
    shutdown_timeout_s: float = 120.0
    repositories: Mapping[str, Path] = field(default_factory=dict)
    """Backup repositories by name; ``default`` is below the state directory unless it is named here."""
    console_log_bytes: int = 4 * 2**20
    agent_file_bytes: int = 64 * 2**20
    fetch: FetchOptions = field(default_factory=FetchOptions)
    """From where images are fetched, and how large they may be."""


@dataclass(slots=True)
class Core:
    """The daemon's parts."""

    database: Database
    events: EventLog
    inventory: Inventory
    engine: Engine
    plugins: PluginManager
    options: CoreOptions
    links: dict[str, HostLink] = field(default_factory=dict)
    start_time: datetime = field(default_factory=lambda: datetime.now(UTC))
    usage: UsageHistory = field(init=False)
    trash: TrashCan = field(init=False)
    freezes: Freezes = field(init=False)
    bases: Bases = field(init=False)
    """Set by make_services: it is made of what is made of this."""

    def __post_init__(self) -> None:
        self.freezes = Freezes(self.database, self.inventory, self.link)
        self.usage = UsageHistory(self.database)
        self.trash = TrashCan(self.database, self.options.state_directory / "trash")
        self.inventory.on_samples = self.usage.observe

    def link(self, host: str) -> HostLink:
        """The link of a host.

        :raises NotFoundError: HOST_NOT_FOUND.
        """
        link = self.links.get(host)
        if link is None:
            raise NotFoundError(
                HOST_NOT_FOUND, f"there is no host {host}; hosts: {self._host_names()}", resource=f"hosts/{host}"
            )
        return link

    def _host_names(self) -> str:
        return ", ".join(sorted(self.links)) or "none"

    async def settled(self, host: str) -> None:
        """Just after the start, wait for a host's first answer: it is worth more than "not connected yet".

        :raises NotFoundError: HOST_NOT_FOUND.
        """
        await self.link(host).settled(SETTLE_S)

    def view(self, name: GuestName) -> GuestView:
        """A guest.

        :raises NotFoundError: HOST_NOT_FOUND or GUEST_NOT_FOUND.
        """
        self.link(name.host)
        return self.inventory.get(name)

    def check_verb(self, name: GuestName, verb: str, *, managed: bool = True, now: bool = True) -> GuestView:
        """The guest, if this verb is possible on it now: the gate before every side effect.

        :param managed: whether the guest must be virtd's own.
        :param now: False: other operations come first, so that the state of now says little about the
            state then; the verb's own call finds out when its turn comes.

        The order of the checks is the order of what a caller can do about them: does it exist, is it
        ours, can the host do it, is it in the right state.

        :raises NotFoundError: HOST_NOT_FOUND or GUEST_NOT_FOUND.
        :raises FailedPreconditionError: GUEST_NOT_ADOPTED or INVALID_STATE.
        :raises UnsupportedError: CAPABILITY_UNSUPPORTED.
        :raises UnavailableError: HOST_UNREACHABLE.
        """
        view = self.view(name)
        status = view.guest.status
        if managed and status.origin is Origin.FOREIGN:
            raise FailedPreconditionError(
                GUEST_NOT_ADOPTED,
                f"{name.guest} was defined outside virtd and is never touched before it is adopted",
                resource=str(name),
                allowed_actions=("adopt",),
            )
        link = self.link(name.host)
        capability = CAPABILITY_OF.get(verb)
        if capability is not None:
            require(link.capabilities_of(view.guest.spec.machine), capability, resource=str(name))
        _ = link.session  # reachable?
        illegal = status.state not in LEGAL_STATES[verb] or (status.presence is Presence.ABSENT and verb != "delete")
        if now and illegal:
            raise invalid_state(view.guest, verb)
        return view


class _HasCore(Protocol):
    _core: Core


S = TypeVar("S", bound=_HasCore)


def once(
    method: Callable[Concatenate[S, Call, P], Awaitable[R]],
) -> Callable[Concatenate[S, Call, P], Coroutine[Any, Any, R | Operation]]:
    """A use case that starts an operation: repetitions of its ``request_id`` get the first one's."""

    @functools.wraps(method)
    async def wrapper(self: S, call: Call, /, *args: P.args, **kwargs: P.kwargs) -> R | Operation:
        async def work() -> R:
            return await method(self, call, *args, **kwargs)

        return await self._core.engine.once(call.caller, call.request_id, call.fingerprint, work)

    return wrapper


def submission(call: Call, target: str, queue: str, warnings: Sequence[str] = ()) -> Submission:
    """The engine's view of a call."""
    return Submission(
        caller=call.caller,
        target=target,
        queue=queue,
        request_id=call.request_id,
        fingerprint=call.fingerprint,
        reject_conflict=call.reject_conflict,
        warnings=tuple(warnings),
    )


def is_local(config: HostConfig) -> bool:
    """Whether the host's files are this machine's files."""
    return not config.uri.partition("://")[2].partition("/")[0]


def invalid_state(guest: Guest, verb: str) -> FailedPreconditionError:
    """INVALID_STATE with what would be allowed."""
    allowed = guest.status.allowed_actions
    where = "ABSENT" if guest.status.presence is Presence.ABSENT else guest.status.state.value
    return FailedPreconditionError(
        INVALID_STATE,
        f"cannot {verb} {guest.name}: it is {where}; allowed now: {', '.join(allowed) or 'nothing'}",
        resource=guest.name,
        metadata={"state": guest.status.state.value, "verb": verb},
        allowed_actions=allowed,
    )


def attributes_of(guest: Guest) -> Mapping[str, str | None]:
    """The fields of a guest that filters can name."""
    status, spec = guest.status, guest.spec
    return {
        "name": guest.name,
        "uid": str(guest.uid),
        "display_name": guest.display_name,
        "status.state": status.state.value,
        "status.state_reason": status.state_reason,
        "status.origin": status.origin.value,
        "status.presence": status.presence.value,
        "spec.vcpus": None if spec.vcpus is None else str(spec.vcpus),
        "spec.memory_bytes": None if spec.memory_bytes is None else str(spec.memory_bytes),
        **{f"labels.{key}": value for key, value in guest.labels.items()},
    }
