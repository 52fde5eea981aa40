"""Results and arguments that are the same in both flavours and are no messages of the API."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Literal, TypeAlias

if TYPE_CHECKING:
    from virtd.v1.capability_pb2 import ErrorRecord
    from virtd.v1.event_pb2 import Event
    from virtd.v1.guest_pb2 import Guest
    from virtd.v1.guest_service_pb2 import HostError
    from virtd.v1.snapshot_pb2 import Snapshot

OnConflict: TypeAlias = Literal["queue", "reject"]
"""When another operation works on the guest: wait in its queue, or raise Conflict at once."""

SnapshotLocationName: TypeAlias = Literal["auto", "internal", "external"]
"""Where a snapshot shall be kept."""

BackupKindName: TypeAlias = Literal["auto", "full", "incremental"]
"""How much a backup shall hold."""

DiskPolicyName: TypeAlias = Literal["delete", "keep", "trash"]
"""What becomes of a deleted guest's disks."""

CloneModeName: TypeAlias = Literal["full", "linked"]
MigrationModeName: TypeAlias = Literal["auto", "live", "offline"]
"""How a clone gets its disks."""

UpdateModeName: TypeAlias = Literal["live-or-next-boot", "live-only", "next-boot"]
"""When changes of a running guest's spec take effect."""

DiskFormatName: TypeAlias = Literal["qcow2", "raw"]
"""Format of a disk image."""


PreallocationName: TypeAlias = Literal["none", "metadata", "full"]
"""How much of a new volume's room is taken at once."""

TransferProgress: TypeAlias = Callable[[int, int], None]
"""Called now and then with the bytes that are there and the size of the whole."""


@dataclass(frozen=True, slots=True)
class GuestList(Sequence["Guest"]):
    """What ``guests.list`` found: a sequence of guests, and what a list must not hide."""

    guests: tuple[Guest, ...]
    """The guests, by name.  Those of hosts in ``host_errors`` are as last seen."""
    host_errors: tuple[HostError, ...]
    """Hosts that did not answer."""
    resume_token: str
    """Watching from here misses nothing after this list."""

    # Sequence's two overloads of this are not worth their lines: a slice is taken of `guests`.
    def __getitem__(self, index: int) -> Guest:  # type: ignore[override]
        return self.guests[index]

    def __len__(self) -> int:
        return len(self.guests)

    def __iter__(self) -> Iterator[Guest]:
        return iter(self.guests)


@dataclass(frozen=True, slots=True)
class SnapshotList(Sequence["Snapshot"]):
    """What ``snapshots.list`` found: a sequence of snapshots, and what a list must not hide."""

    snapshots: tuple[Snapshot, ...]
    """The snapshots; parents before children."""
    errors: tuple[ErrorRecord, ...] = ()
    """Guests and hosts whose snapshots could not be listed, by ``resource``; only with ``-`` in the parent."""

    def __getitem__(self, index: int) -> Snapshot:  # type: ignore[override]  # as in GuestList
        return self.snapshots[index]

    def __len__(self) -> int:
        return len(self.snapshots)

    def __iter__(self) -> Iterator[Snapshot]:
        return iter(self.snapshots)


@dataclass(frozen=True, slots=True)
class EventPage:
    """What ``events.pull`` found."""

    events: tuple[Event, ...]
    """Events, in order."""
    resume_token: str
    """For the next call."""


ResetCause: TypeAlias = Literal["EXPIRED", "LOG_REPLACED", "INITIAL_INTERRUPTED"]


@dataclass(frozen=True, slots=True)
class Reset:
    """In a watch: events may be missing here.  Forget what was seen, and list again.

    ``cause`` is ``EXPIRED`` (the daemon no longer holds the events since the token), ``LOG_REPLACED``
    (its event log began anew) or ``INITIAL_INTERRUPTED`` (the connection was lost within the
    initial state, which begins again).  With ``initial_state`` the present state follows by itself
    and ends with :class:`InitialDone`; without it, list.  The watch goes on from ``resume_token``.
    """

    cause: ResetCause
    resume_token: str


@dataclass(frozen=True, slots=True)
class InitialDone:
    """In a watch with ``initial_state``: the present state has been sent; what follows are changes."""

    resume_token: str


WatchItem: TypeAlias = "Event | Reset | InitialDone"
"""What a watch yields."""


@dataclass(frozen=True, slots=True)
class ConsoleData:
    """In a console: bytes that the guest printed."""

    offset: int
    """Offset of the first of them since the daemon first saw the guest."""
    data: bytes


@dataclass(frozen=True, slots=True)
class ConsoleNotice:
    """In a console: something happened.

    ``CLOSED`` and ``OPENED``: the guest stopped, or runs again.  ``TAKEN`` and ``RELEASED``: ``caller`` has
    taken the right to write, or given it back.  ``DROPPED``: what was typed was not sent, as
    ``caller`` has that right.
    """

    kind: str
    caller: str = ""


@dataclass(frozen=True, slots=True)
class ExecOutput:
    """What a program in a guest wrote to its ``stdout`` or ``stderr``."""

    channel: str
    data: bytes


ConsoleItem: TypeAlias = ConsoleData | ConsoleNotice
"""What a console session yields."""

CONSOLE_INPUT_BYTES: Final = 64 * 1024
"""Most bytes of input in one message."""
