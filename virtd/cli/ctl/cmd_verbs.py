"""Verbs of guests: ``start``, ``stop`` and their like, each for several guests at once."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import click

from virtd.cli.ctl import kinds
from virtd.cli.ctl.errors import UsageError, explain
from virtd.cli.ctl.lazy import Command, Duration, command
from virtd.cli.ctl.params import guest_argument, guests_argument, host_option, reject_option, wait_option
from virtd.cli.ctl.session import Session, pass_session


def _resolved(session: Session, given: tuple[str, ...], host: str | None) -> list[str]:
    """Full names, each once; a name that is found nowhere fails alone."""
    from virtd.cli.ctl.remote import guest_name

    names: list[str] = []
    for entry in given:
        try:
            names.append(guest_name(session, entry, host))
        except Exception as error:
            failure = explain(error)
            # A wrong command line does nothing at all, and one guest is the whole command.
            if len(given) == 1 or isinstance(failure, UsageError) or failure.reason == "DAEMON_UNREACHABLE":
                raise
            session.failed(failure, subject=entry)
    return list(dict.fromkeys(names))


def _policy(no_queue: bool) -> Any:
    return "reject" if no_queue else "queue"


def _act(
    session: Session,
    guests: tuple[str, ...],
    host: str | None,
    call: Callable[[str], Any],
    done: str,
    *,
    wait: bool,
    kind: kinds.Kind | None = kinds.GUESTS,
) -> None:
    from virtd.cli.ctl.progress import run_operations

    run_operations(session, _resolved(session, guests, host), call, done, wait=wait, kind=kind)


def _verb(name: str, done: str, text: str) -> Command:
    """A verb without options of its own."""

    @command(name, help=text)
    @guests_argument()
    @host_option("The host of these guests.")
    @wait_option()
    @reject_option()
    @pass_session
    def run(session: Session, *, guests: tuple[str, ...], host: str | None, wait: bool, no_queue: bool) -> None:
        def call(guest: str) -> Any:
            return getattr(session.client().guests, name)(guest, on_conflict=_policy(no_queue))

        _act(session, guests, host, call, done, wait=wait)

    verb: Command = run
    return verb


start = _verb("start", "started", "Start guests, or restore suspended ones.")
stop = _verb("stop", "stopped", "Cut the power of guests at once. What they had not written is lost.")
reboot = _verb("reboot", "rebooted", "Ask guests to reboot.")
reset = _verb("reset", "reset", "Reset guests at once, as by the reset button.")
pause = _verb("pause", "paused", "Stop the virtual CPUs of guests; their memory is kept.")
resume = _verb("resume", "resumed", "Let paused guests go on.")
suspend = _verb("suspend", "suspended", "Save running guests to disk and stop them; `start` restores them.")


@command("shutdown")
@guests_argument()
@host_option("The host of these guests.")
@click.option(
    "--timeout-s",
    "patience",
    type=Duration(),
    metavar="T",
    help="How long the guest may take; the daemon's default is 120s.",
)
@click.option("--force-after", is_flag=True, help="Cut the power when that time is over.")
@wait_option()
@reject_option()
@pass_session
def shutdown(
    session: Session,
    guests: tuple[str, ...],
    host: str | None,
    patience: float | None,
    force_after: bool,
    wait: bool,
    no_queue: bool,
) -> None:
    """Ask guests to shut down, again and again until they obey.

    A guest that does not obey in time runs on (reason SHUTDOWN_IGNORED, exit code 124), unless
    --force-after.
    """

    def call(guest: str) -> Any:
        return session.client().guests.shutdown(
            guest, timeout_s=patience or 0, force_after_timeout=force_after, on_conflict=_policy(no_queue)
        )

    _act(session, guests, host, call, "shut down", wait=wait)


@command("delete")
@guests_argument()
@host_option("The host of these guests.")
@click.option("--force", is_flag=True, help="Stop a running guest first.")
@click.option("--keep-disks", is_flag=True, help="Keep the disks that virtd created for it.")
@wait_option()
@reject_option()
@pass_session
def delete(
    session: Session,
    guests: tuple[str, ...],
    host: str | None,
    force: bool,
    keep_disks: bool,
    wait: bool,
    no_queue: bool,
) -> None:
    """Delete guests, their snapshots, and the disks that virtd created for them.

    A running guest is not deleted without --force.
    """

    def call(guest: str) -> Any:
        return session.client().guests.delete(guest, force=force, keep_disks=keep_disks, on_conflict=_policy(no_queue))

    _act(session, guests, host, call, "deleted", wait=wait, kind=None)


@command("adopt")
@guests_argument()
@host_option("The host of these guests.")
@wait_option()
@pass_session
def adopt(session: Session, *, guests: tuple[str, ...], host: str | None, wait: bool) -> None:
    """Take guests under management that were defined outside virtd. Nothing in them changes."""

    def call(guest: str) -> Any:
        return session.client().guests.adopt(guest)

    _act(session, guests, host, call, "adopted", wait=wait)


@command("label")
@guest_argument()
@click.argument("changes", nargs=-1, required=True, metavar="KEY=VALUE|KEY-...")
@host_option("The guest's host.")
@pass_session
def label(session: Session, *, guest: str, changes: tuple[str, ...], host: str | None) -> None:
    """Set labels (KEY=VALUE) and remove them (KEY-)."""
    from virtd.cli.ctl.remote import guest_name

    to_set, to_remove = {}, []
    for change in changes:
        key, separator, value = change.partition("=")
        if separator and key:
            to_set[key] = value
        elif not separator and change.endswith("-") and len(change) > 1:
            to_remove.append(change[:-1])
        else:
            raise UsageError(f"{change!r} is neither KEY=VALUE nor KEY-")
    name = guest_name(session, guest, host)
    client = session.client()
    known = client.guests.get(name)
    labels = {key: value for key, value in known.labels.items() if key not in to_remove} | to_set
    changed = type(known)(name=name, labels=labels)
    # The etag of what was read: labels that somebody else set in between are not lost.
    updated = client.guests.update(changed, update_fields=["labels"], etag=known.etag)
    session.say(f"{name} labelled")
    if session.output is not None:
        session.printer.items(kinds.GUESTS, [updated])
