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
@click.option("--trash", "to_trash", is_flag=True, help="Into the trash, from which it can be recovered.")
@wait_option()
@reject_option()
@pass_session
def delete(
    session: Session,
    guests: tuple[str, ...],
    host: str | None,
    force: bool,
    keep_disks: bool,
    to_trash: bool,
    wait: bool,
    no_queue: bool,
) -> None:
    """Delete guests, their snapshots, and the disks that virtd created for them.

    A running guest is not deleted without --force.
    """
    if keep_disks and to_trash:
        raise UsageError("--keep-disks and --trash exclude each other: the trash keeps them")

    def call(guest: str) -> Any:
        return session.client().guests.delete(
            guest, force=force, keep_disks=keep_disks, disk_policy="trash" if to_trash else None,
            on_conflict=_policy(no_queue),
        )  # fmt: skip

    _act(session, guests, host, call, "is in the trash" if to_trash else "deleted", wait=wait, kind=None)


@command("clone")
@guest_argument()
@click.argument("new", metavar="NEW")
@click.option("--linked", is_flag=True, help="Share what is on the disks now, instead of copying it.")
@click.option("--pool", default="", metavar="POOL", help="The pool for the new disks.")
@click.option("--start", "start_", is_flag=True, help="Start it as well.")
@click.option("--display-name", default="", metavar="TEXT", help="Title of the new guest.")
@host_option("The host of both.")
@wait_option()
@reject_option()
@pass_session
def clone(
    session: Session,
    guest: str,
    new: str,
    linked: bool,
    pool: str,
    start_: bool,
    display_name: str,
    host: str | None,
    wait: bool,
    no_queue: bool,
) -> None:
    """Make a new guest like a stopped one, with disks, MAC addresses and a UUID of its own."""

    def call(name: str) -> Any:
        return session.client().guests.clone(
            name, new, mode="linked" if linked else "full", pool=pool, start=start_, display_name=display_name,
            on_conflict=_policy(no_queue),
        )  # fmt: skip

    _act(session, (guest,), host, call, f"cloned as {new}", wait=wait)


def _protection(name: str, done: str, text: str, *, on: bool) -> Command:
    @command(name, help=text)
    @guests_argument()
    @host_option("The host of these guests.")
    @wait_option()
    @pass_session
    def run(session: Session, *, guests: tuple[str, ...], host: str | None, wait: bool) -> None:
        def call(guest: str) -> Any:
            from virtd.v1 import guest_pb2 as pb

            wanted = pb.Guest(name=guest, spec=pb.GuestSpec(deletion_protection=on))
            return session.client().guests.change(wanted, ["spec.deletion_protection"])

        _act(session, guests, host, call, done, wait=wait)

    verb: Command = run
    return verb


protect = _protection("protect", "protected", "Protect guests from being deleted.", on=True)
unprotect = _protection("unprotect", "no longer protected", "Let protected guests be deleted again.", on=False)


@command("release")
@guests_argument()
@host_option("The host of these guests.")
@wait_option()
@pass_session
def release(session: Session, *, guests: tuple[str, ...], host: str | None, wait: bool) -> None:
    """Let go of guests: they stay as they are, virtd forgets them. The inverse of adopt."""

    def call(guest: str) -> Any:
        return session.client().guests.release(guest)

    _act(session, guests, host, call, "released", wait=wait)


@command("discard")
@guests_argument()
@host_option("The host of these guests.")
@wait_option()
@pass_session
def discard(session: Session, *, guests: tuple[str, ...], host: str | None, wait: bool) -> None:
    """Throw the saved memory of suspended guests away: they are stopped then, as after a power cut."""

    def call(guest: str) -> Any:
        return session.client().guests.discard_saved_state(guest)

    _act(session, guests, host, call, "stopped, without its saved state", wait=wait)


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
