"""``backup`` and ``trash``: what brings a guest back."""

from __future__ import annotations

import time
from typing import Any

import click

from virtd.cli.ctl import kinds
from virtd.cli.ctl.exits import Exit
from virtd.cli.ctl.lazy import Group
from virtd.cli.ctl.params import Named, guest_argument, host_option, reject_option, wait_option
from virtd.cli.ctl.session import Session, pass_session


def _run(session: Session, names: list[str], call: Any, done: str, *, wait: bool, kind: kinds.Kind | None) -> None:
    from virtd.cli.ctl.progress import run_operations

    run_operations(session, names, call, done, wait=wait, kind=kind)


def _backup(name: str) -> str:
    return f"backups/{name.removeprefix('backups/')}"


@click.group("backup", cls=Group)
def backup() -> None:
    """Back guests up, check backups, restore and delete them."""


@backup.command("create")
@guest_argument()
@click.argument("backup_id", metavar="[BACKUP]", required=False)
@click.option("--kind", "how", type=click.Choice(["auto", "full", "incremental"]), default="auto",
              help="auto (default): incremental where that is possible, else full, and it says why.")  # fmt: skip
@click.option("--repository", default="", metavar="REPO", help="Where to keep it.")
@click.option("--quiesce", is_flag=True, help="Have the guest's agent freeze its file systems for the moment.")
@click.option("--description", default="", metavar="TEXT", help="Text of your own.")
@host_option("The guest's host.")
@wait_option()
@reject_option()
@pass_session
def create(
    session: Session,
    *,
    guest: str,
    backup_id: str | None,
    how: Any,
    repository: str,
    quiesce: bool,
    description: str,
    host: str | None,
    wait: bool,
    no_queue: bool,
) -> None:
    """Back a guest up; without BACKUP its name is the guest's and the time."""
    from virtd.cli.ctl.remote import guest_name

    name = guest_name(session, guest, host)
    id_ = backup_id or f"{kinds.last(name)[:46]}-{time.strftime('%Y%m%dt%H%M%S', time.gmtime())}"

    def call(_: str) -> Any:
        return session.client().backups.create(
            name, id_, kind=how, repository=repository, quiesce=quiesce, description=description,
            on_conflict="reject" if no_queue else "queue",
        )  # fmt: skip

    _run(session, [_backup(id_)], call, "made", wait=wait, kind=kinds.BACKUPS)


@backup.command("list")
@click.argument("guest", metavar="[GUEST]", required=False, type=Named(kinds.GUESTS))
@host_option("The guest's host.")
@pass_session
def list_(session: Session, *, guest: str | None, host: str | None) -> None:
    """List the backups of a guest, or all: those of guests that are gone as well."""
    from virtd.cli.ctl.remote import guest_name

    source = guest_name(session, guest, host) if guest else ""
    found = session.client().backups.list(source)
    session.printer.items(kinds.BACKUPS, list(found))
    if not found and not session.printer.structured:
        session.say("no backups")


@backup.command("verify")
@click.argument("name", metavar="BACKUP", type=Named(kinds.BACKUPS))
@pass_session
def verify(session: Session, *, name: str) -> None:
    """Read a backup and all that it needs, and compare every digest. Exit code 1: it is damaged."""
    from virtd.cli.ctl.progress import wait_for

    found = wait_for(session, session.client().backups.verify(_backup(name)))
    problems = list(found.problems)
    session.printer.items(kinds.VERIFICATIONS, problems)
    if problems:
        session.codes.append(Exit.FAILED)
    else:
        session.say(f"{_backup(name)} is whole")


@backup.command("restore")
@click.argument("name", metavar="BACKUP", type=Named(kinds.BACKUPS))
@click.argument("guest_id", metavar="NEW-GUEST")
@click.option("--pool", default="", metavar="POOL", help="The pool for its disks.")
@click.option("--start", is_flag=True, help="Start it as well.")
@click.option("--keep-identity", is_flag=True, help="Its UUID and MAC addresses too; only if the original is gone.")
@host_option("Where to; default: the host that it was on.")
@wait_option()
@pass_session
def restore(
    session: Session,
    *,
    name: str,
    guest_id: str,
    pool: str,
    start: bool,
    keep_identity: bool,
    host: str | None,
    wait: bool,
) -> None:
    """Make a new guest of a backup; never over one that is there."""
    from virtd.cli.ctl.remote import host_name

    parent = host_name(session, host) if host else ""

    def call(entry: str) -> Any:
        return session.client().backups.restore(
            entry, guest_id, parent=parent, pool=pool, start=start, keep_identity=keep_identity
        )

    _run(session, [_backup(name)], call, f"restored as {guest_id}", wait=wait, kind=kinds.GUESTS)


@backup.command("delete")
@click.argument("names", nargs=-1, required=True, metavar="BACKUP...", type=Named(kinds.BACKUPS))
@click.option("--with-increments", is_flag=True, help="Also the backups that need it.")
@wait_option()
@pass_session
def delete(session: Session, *, names: tuple[str, ...], with_increments: bool, wait: bool) -> None:
    """Delete backups; one that others need stays."""

    def call(entry: str) -> Any:
        return session.client().backups.delete(entry, with_increments=with_increments)

    _run(session, list(dict.fromkeys(map(_backup, names))), call, "deleted", wait=wait, kind=None)


@click.group("trash", cls=Group)
def trash() -> None:
    """Guests that were deleted with `delete --trash`: list, recover, purge."""


def _entry(session: Session, name: str) -> str:
    """An entry by its name, or by the id of the only guest in the trash that was called so."""
    from virtd.cli.ctl.errors import UsageError

    if name.startswith("trash/"):
        return name
    found = session.client().trash.list()
    same = [entry.name for entry in found if name in (kinds.last(entry.name), kinds.last(entry.guest.name))]
    if len(same) > 1:
        raise UsageError(f"there are {len(same)} of {name!r} in the trash: {', '.join(same)}", next="Name one of them.")
    return same[0] if same else f"trash/{name}"


@trash.command("list")
@host_option("Guests of this host only.")
@pass_session
def trash_list(session: Session, *, host: str | None) -> None:
    """List what is in the trash, and until when."""
    from virtd.cli.ctl.remote import parent_name

    found = list(session.client().trash.list(parent_name(session, host)))
    session.printer.items(kinds.TRASH, found)
    if not found and not session.printer.structured:
        session.say("the trash is empty")


@trash.command("recover")
@click.argument("name", metavar="GUEST", type=Named(kinds.TRASH))
@click.option("--as", "guest_id", default="", metavar="NEW", help="Under this id, where the old one is taken.")
@wait_option()
@pass_session
def recover(session: Session, *, name: str, guest_id: str, wait: bool) -> None:
    """Bring a deleted guest back, with its disks."""

    def call(entry: str) -> Any:
        return session.client().trash.recover(entry, guest_id=guest_id)

    _run(session, [_entry(session, name)], call, "recovered", wait=wait, kind=kinds.GUESTS)


@trash.command("purge")
@click.argument("names", nargs=-1, metavar="[GUEST...]", type=Named(kinds.TRASH))
@click.option("--all", "every", is_flag=True, help="Everything in the trash.")
@wait_option()
@pass_session
def purge(session: Session, *, names: tuple[str, ...], every: bool, wait: bool) -> None:
    """Delete for good what is in the trash."""
    from virtd.cli.ctl.errors import UsageError

    if every == bool(names):
        raise UsageError("name guests, or give --all")

    def call(entry: str) -> Any:
        return session.client().trash.purge(entry)

    full = ["trash/-"] if every else list(dict.fromkeys(_entry(session, name) for name in names))
    _run(session, full, call, "purged", wait=wait, kind=None)
