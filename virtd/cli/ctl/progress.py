"""Waiting for operations: a bar on a terminal, plain lines in a pipe, nothing with ``--quiet``."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from typing import Any, Protocol

from virtd.cli.ctl import kinds, text
from virtd.cli.ctl.errors import CtlError, explain
from virtd.cli.ctl.exits import Exit
from virtd.cli.ctl.session import RIDE_OUT_S, Session

_INTERVAL_S = 0.25
_AWAY = frozenset({"DAEMON_UNREACHABLE", "DAEMON_STOPPING", "GRPC_UNAVAILABLE"})


class Show(Protocol):
    """Something that shows how far an operation is."""

    def update(self, metadata: Any) -> None:
        """The operation has got on."""

    def close(self) -> None:
        """Leave the screen as it was."""


class Silent:
    """For ``--quiet``."""

    def update(self, metadata: Any) -> None:
        """Nothing."""

    def close(self) -> None:
        """Nothing."""


def _word(metadata: Any) -> str:
    word: str = metadata.stage or kinds.enum(metadata, "state").lower()
    return f"{word}, waiting for {metadata.waiting_for}" if metadata.waiting_for else word


class Lines:
    """One line for every stage, and for every note of the reason trail with ``--verbose``."""

    def __init__(self, session: Session) -> None:
        self._session = session
        self._last = ""
        self._seen = 0
        self._notes = 0

    def update(self, metadata: Any) -> None:
        """Say what is new."""
        state = kinds.enum(metadata, "state")
        word = _word(metadata)
        self._seen += 1
        # Every operation begins in the queue; that one stays there is news.
        if state == "PENDING" and self._seen == 1:
            return
        if state in {"PENDING", "RUNNING"} and word != self._last:
            self._last = word
            self._session.say(f"{metadata.verb} {metadata.target}: {word}")
        for note in metadata.notes[self._notes :]:
            self._session.detail(f"  {text.moment(note.time)} {note.message}")
        self._notes = len(metadata.notes)

    def close(self) -> None:
        """Nothing."""


class Bar:
    """A progress bar on standard error; it disappears when the operation has ended."""

    def __init__(self, session: Session) -> None:
        # The one place that needs rich: a terminal, and somebody who waits.
        from rich.console import Console
        from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

        console = Console(stderr=True, no_color=session.no_color or None, highlight=False)
        self._progress = Progress(
            SpinnerColumn(),
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=30),
            TextColumn("{task.fields[share]}", markup=False),
            TextColumn("{task.fields[stage]}", markup=False),
            TimeElapsedColumn(),
            console=console,
            transient=True,
        )
        self._task: Any = None
        self._progress.start()

    def update(self, metadata: Any) -> None:
        """Move the bar."""
        known = metadata.HasField("fraction")
        fields: dict[str, Any] = {
            "share": f"{metadata.fraction:>4.0%}" if known else "",
            "stage": text.clean(_word(metadata)),
        }
        if metadata.HasField("bytes_total"):
            fields["stage"] += f" {text.size(metadata.bytes_done)} of {text.size(metadata.bytes_total)}"
        if self._task is None:
            words = text.clean(f"{metadata.verb} {kinds.last(metadata.target)}")
            self._task = self._progress.add_task(words, total=1.0 if known else None, **fields)
        # A total of None makes the bar pulse: the fraction is not known, and none is invented.
        self._progress.update(
            self._task, total=1.0 if known else None, completed=metadata.fraction if known else 0.0, **fields
        )

    def close(self) -> None:
        """Take the bar away."""
        self._progress.stop()


@contextlib.contextmanager
def shown(session: Session) -> Iterator[Show]:
    """The right :class:`Show` for this session."""
    show: Show = Silent() if session.quiet else Bar(session) if session.talks_to_terminal else Lines(session)
    try:
        yield show
    finally:
        show.close()


def wait_for(session: Session, operation: Any, *, deadline: float | None = None) -> Any:
    """Wait for the end of an operation and return its result.

    Rides out a restart of the daemon: the operation survives it.

    :param deadline: moment of :func:`time.monotonic` at which to stop waiting.
    :raises VirtdError: the operation's error.
    :raises CtlError: TIMEOUT, when the time is over; the operation goes on.
    """
    name = operation.name
    try:
        with shown(session) as show:
            final = operation.metadata
            for metadata in _progress(session, operation):
                final = metadata
                show.update(metadata)
                ended = kinds.enum(metadata, "state") not in {"PENDING", "RUNNING"}
                if not ended and deadline is not None and time.monotonic() >= deadline:
                    raise CtlError(
                        f"{name} has not ended in time; it goes on",
                        Exit.TIMEOUT,
                        "CLIENT_TIMEOUT",
                        f"Follow it: guestctl operations watch {kinds.last(name)}; "
                        f"or cancel it: guestctl operations cancel {kinds.last(name)}",
                    )
        for warning in final.warnings:
            session.warn(warning)
        client = session.client(ride_out_s=RIDE_OUT_S)
        return (operation if operation.done else client.operations.get(name)).result()
    except KeyboardInterrupt:
        session.warn(
            f"interrupted; the operation goes on: follow it with `guestctl operations watch {kinds.last(name)}`, "
            f"cancel it with `guestctl operations cancel {kinds.last(name)}`"
        )
        raise


def _progress(session: Session, operation: Any) -> Iterator[Any]:
    """The operation's metadata, also when nothing changes, so that the caller can look at the clock.

    It returns at the end of the operation at once.
    """
    yield operation.metadata
    current = operation
    while not current.done:
        try:
            _step(current)
        except Exception as error:
            if explain(error).reason not in _AWAY:
                raise
            session.detail("the daemon is away; waiting for it")
            current = session.client(ride_out_s=RIDE_OUT_S).operations.get(operation.name)
        yield current.metadata


def _step(operation: Any) -> None:
    """Wait for the end for a moment, and else ask how it is; the operation's own error is not raised."""
    try:
        operation.result(timeout_s=_INTERVAL_S)
    except Exception as error:
        if operation.done:
            return
        if explain(error).reason != "CLIENT_TIMEOUT":
            raise
        operation.refresh()


def run_operations(
    session: Session,
    subjects: list[str],
    start: Callable[[str], Any],
    done: str,
    *,
    wait: bool,
    kind: kinds.Kind | None,
) -> None:
    """Start one operation for each subject, wait for all of them, report each by its own fate.

    They run side by side: all are started before the first is waited for.

    :param start: starts the operation of one subject (a full resource name).
    :param done: the word that says it is done (``started``).
    :param kind: what the results are; None: nothing that can be shown.
    """
    deadline = None if session.limit_s is None else time.monotonic() + session.limit_s
    started: list[tuple[str, Any, float]] = []
    for subject in subjects:
        try:
            began = time.monotonic()
            started.append((subject, start(subject), began))
        except Exception as error:
            failure = explain(error)
            session.failed(failure, subject=subject)
            if failure.reason == "DAEMON_UNREACHABLE":
                break
    if not wait:
        session.printer.items(kinds.OPERATIONS, [operation.metadata for _, operation, _ in started])
        session.codes += [Exit.DONE] * len(started)
        return
    results = []
    for index, (subject, operation, began) in enumerate(started):
        try:
            result = wait_for(session, operation, deadline=deadline)
        except KeyboardInterrupt:
            for _, other, _ in started[index + 1 :]:
                session.warn(f"{other.name} goes on as well")
            raise
        except Exception as error:
            session.failed(explain(error), subject=subject)
            continue
        session.done()
        session.say(f"{subject} {done} ({text.duration(time.monotonic() - began)})")
        results.append(result)
    if kind is not None and session.output is not None:
        session.printer.items(kind, results)
