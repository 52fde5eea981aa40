"""``snapshot``: the snapshots of a guest."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import click

from virtd.cli.ctl import kinds
from virtd.cli.ctl.errors import UsageError
from virtd.cli.ctl.lazy import Group
from virtd.cli.ctl.params import FunctionT, Named, guest_argument, host_option, reject_option, wait_option
from virtd.cli.ctl.session import Session, pass_session

_FORMS = "SNAPSHOT is an id, beside GUEST, or alone guest/snapshot, host/guest/snapshot or a full name."


@click.group("snapshot", cls=Group)
def snapshot() -> None:
    """Take, list, revert and delete snapshots of guests."""


def snapshot_name(session: Session, given: tuple[str, ...], host: str | None) -> str:
    """The full name of ``GUEST SNAPSHOT``, or of one argument that holds both."""
    from virtd.cli.ctl.remote import guest_name, resource_name

    if len(given) == 1:
        guest, slash, id_ = given[0].rpartition("/")
        if slash and "/" not in guest:
            return f"{guest_name(session, guest, host)}/snapshots/{id_}"
        if not slash:
            raise UsageError(f"which guest's snapshot {given[0]!r}?", next="Write GUEST SNAPSHOT, or GUEST/SNAPSHOT.")
        return resource_name(session, kinds.SNAPSHOTS, given[0])
    guest, id_ = given
    if "/" in id_ or not id_:
        raise UsageError(f"{id_!r} is not the id of a snapshot")
    return f"{guest_name(session, guest, host)}/snapshots/{id_}"


def _snapshot_argument() -> Callable[[FunctionT], FunctionT]:
    def check(ctx: click.Context, _: click.Parameter, value: tuple[str, ...]) -> tuple[str, ...]:
        if len(value) > 2:  # noqa: PLR2004 - GUEST and SNAPSHOT
            raise click.UsageError(f"one snapshot at a time: what is {value[2]!r}?", ctx)
        return value

    return click.argument(
        "given", nargs=-1, required=True, metavar="[GUEST] SNAPSHOT", type=Named(kinds.GUESTS), callback=check
    )


def _run(session: Session, name: str, call: Any, done: str, *, wait: bool, kind: kinds.Kind | None) -> None:
    from virtd.cli.ctl.progress import run_operations

    run_operations(session, [name], call, done, wait=wait, kind=kind)


@snapshot.command("create")
@guest_argument()
@click.argument("snapshot_id", metavar="SNAPSHOT")
@host_option("The guest's host.")
@click.option("--memory", is_flag=True, help="Include the memory of the running guest.")
@click.option(
    "--location",
    type=click.Choice(["auto", "internal", "external"]),
    default="auto",
    help="In the disk images, or in files beside them; auto (default) takes what the guest can have.",
)
@click.option("--quiesce", is_flag=True, help="Have the guest's agent freeze its file systems for the moment.")
@click.option("--description", default="", metavar="TEXT", help="Text of your own.")
@wait_option()
@reject_option()
@pass_session
def create(
    session: Session,
    guest: str,
    snapshot_id: str,
    host: str | None,
    memory: bool,
    location: Any,
    quiesce: bool,
    description: str,
    wait: bool,
    no_queue: bool,
) -> None:
    """Take a snapshot of a guest."""
    name = snapshot_name(session, (guest, snapshot_id), host)
    parent = name.rpartition("/snapshots/")[0]

    def call(_: str) -> Any:
        return session.client().snapshots.create(
            parent, snapshot_id, memory=memory, location=location, quiesce=quiesce, description=description,
            on_conflict="reject" if no_queue else "queue",
        )  # fmt: skip

    _run(session, name, call, "taken", wait=wait, kind=kinds.SNAPSHOTS)


@snapshot.command("list")
@click.argument("guest", metavar="[GUEST]", required=False, type=Named(kinds.GUESTS))
@host_option("The guest's host; without GUEST: of all guests there.")
@pass_session
def list_(session: Session, *, guest: str | None, host: str | None) -> None:
    """List the snapshots of a guest, or of all; parents stand before children."""
    from virtd.cli.ctl.cmd_get import show_all

    show_all(session, kinds.SNAPSHOTS, host=host, guest=guest)


@snapshot.command("describe", help=f"Show everything about one snapshot. {_FORMS}")
@_snapshot_argument()
@host_option("The guest's host.")
@pass_session
def describe(session: Session, *, given: tuple[str, ...], host: str | None) -> None:
    """See the help."""
    from virtd.cli.ctl.cmd_describe import show_item

    name = snapshot_name(session, given, host)
    show_item(session, kinds.SNAPSHOTS, session.client().snapshots.get(name))


@snapshot.command(
    "revert", help=f"Make the guest what it was then. What it is now is lost unless it was snapshotted. {_FORMS}"
)
@_snapshot_argument()
@host_option("The guest's host.")
@wait_option()
@reject_option()
@pass_session
def revert(session: Session, *, given: tuple[str, ...], host: str | None, wait: bool, no_queue: bool) -> None:
    """See the help."""

    def call(name: str) -> Any:
        return session.client().snapshots.revert(name, on_conflict="reject" if no_queue else "queue")

    _run(session, snapshot_name(session, given, host), call, "is what the guest is now", wait=wait, kind=kinds.GUESTS)


@snapshot.command("delete", help=f"Delete a snapshot; its children keep their data. {_FORMS}")
@_snapshot_argument()
@click.option("--children", is_flag=True, help="Also all snapshots that descend from it.")
@host_option("The guest's host.")
@wait_option()
@reject_option()
@pass_session
def delete(
    session: Session, *, given: tuple[str, ...], children: bool, host: str | None, wait: bool, no_queue: bool
) -> None:
    """See the help."""

    def call(name: str) -> Any:
        return session.client().snapshots.delete(name, children=children, on_conflict="reject" if no_queue else "queue")

    _run(session, snapshot_name(session, given, host), call, "deleted", wait=wait, kind=None)
