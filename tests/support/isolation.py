"""What a host that hangs costs the others: calls are timed before and during, and a watch listens all the time."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

from virtd_client import Client
from virtd_client.types import Reset

from virtd.v1.event_pb2 import EVENT_TYPE_GUEST_STATE_CHANGED, EVENT_TYPE_HOST_CHANGED, Event
from virtd.v1.host_pb2 import HOST_STATE_CONNECTED, HOST_STATE_UNREACHABLE

MORE_S = 1.0
"""So much longer than before a call may take while another host hangs."""


@dataclass
class Times:
    """How long calls took, by their kind; a call that fails ends the test."""

    seconds: dict[str, list[float]] = field(default_factory=dict)

    @property
    def count(self) -> int:
        return sum(map(len, self.seconds.values()))

    def worst(self) -> dict[str, float]:
        return {kind: max(found) for kind, found in self.seconds.items()}

    def check_against(self, before: Times) -> None:
        """None took longer than the slowest of its kind before, and the time that is allowed for noise."""
        base = before.worst()
        late = {
            kind: (round(took, 3), round(base[kind], 3))
            for kind, took in self.worst().items()
            if took > base[kind] + MORE_S
        }
        assert not late, f"slower than before, (now, before) in seconds: {late}"


def traffic(client: Client, guest: str, *, calls: int, every_s: float = 0.0) -> Times:
    """Calls to the host of a running guest, and to all hosts together: reads from memory and from the host, changes."""
    host = guest.rpartition("/guests/")[0]

    def turn() -> None:
        client.guests.pause(guest).result(timeout_s=60)
        client.guests.resume(guest).result(timeout_s=60)

    kinds: dict[str, Callable[[], object]] = {
        "list all": lambda: client.guests.list("hosts/-"),
        "list one": lambda: client.guests.list(host),
        "get": lambda: client.guests.get(guest),
        "hosts": client.hosts.list,
        "pools": lambda: client.pools.list(host),
        "networks": lambda: client.networks.list(host),
        "change": turn,
        "operations": client.operations.list,
    }
    times = Times()
    begin = time.monotonic()
    for number in range(calls):
        kind = list(kinds)[number % len(kinds)]
        started = time.monotonic()
        kinds[kind]()
        times.seconds.setdefault(kind, []).append(time.monotonic() - started)
        time.sleep(max(0.0, begin + (number + 1) * every_s - time.monotonic()))
    return times


@dataclass
class Listener:
    """What a watch has seen."""

    events: list[Event] = field(default_factory=list)
    resets: list[Reset] = field(default_factory=list)
    token: str = ""

    def host_states(self, host: str) -> list[int]:
        """The states that a host came to, without repetitions."""
        found: list[int] = []
        for event in list(self.events):
            if event.type == EVENT_TYPE_HOST_CHANGED and event.resource == host and event.host.state not in found[-1:]:
                found.append(event.host.state)
        return found

    def states(self, guest: str) -> list[str]:
        """The states that a guest came to."""
        return [
            event.attributes["state"]
            for event in list(self.events)
            if event.type == EVENT_TYPE_GUEST_STATE_CHANGED and event.resource == guest
        ]

    def went_and_came_back(self, host: str) -> bool:
        """Whether the watch was told both."""
        states = self.host_states(host)
        return HOST_STATE_UNREACHABLE in states and states[-1] == HOST_STATE_CONNECTED

    def check_no_gap(self, client: Client, first: str) -> None:
        """The watch saw what the log has, each once, in order."""
        assert self.resets == []
        revisions = [event.revision for event in self.events]
        assert revisions == sorted(set(revisions))
        logged: list[int] = []
        token = first
        while not logged or logged[-1] < revisions[-1]:
            page = client.events.pull(token, max_events=1000)
            assert page.events, "the log ends before the watch"
            logged += [event.revision for event in page.events]
            token = page.resume_token
        assert [revision for revision in logged if revision <= revisions[-1]] == revisions


@contextlib.contextmanager
def listening(client: Client) -> Iterator[tuple[Listener, str]]:
    """A watch from now on, and the token of its beginning."""
    first = client.events.pull().resume_token
    listener = Listener()
    watch = client.events.watch(resume_token=first)

    def read() -> None:
        for item in watch:
            if isinstance(item, Event):
                listener.events.append(item)
            elif isinstance(item, Reset):
                listener.resets.append(item)

    thread = threading.Thread(target=read)
    thread.start()
    try:
        yield listener, first
    finally:
        watch.close()
        thread.join(10)


def until(what: str, holds: Callable[[], object], timeout_s: float) -> None:
    """Wait for something that must come to hold."""
    deadline = time.monotonic() + timeout_s
    while not holds():
        assert time.monotonic() < deadline, f"not within {timeout_s:g} s: {what}"
        time.sleep(0.05)


def stale(client: Client, guest: str) -> bool:
    """Whether the list over all hosts is whole, has an error for the guest's host, and says that the guest is old."""
    host = guest.rpartition("/guests/")[0]
    page = client.guests.list("hosts/-")
    errors: Sequence[str] = [error.host for error in page.host_errors if error.error.reason == "HOST_UNREACHABLE"]
    found = {entry.name: entry for entry in page.guests}
    return errors == [host] and found[guest].status.HasField("stale_since")
