"""``operations``: what the daemon is doing and did."""

from __future__ import annotations

import time
from collections.abc import Callable

import click

from virtd.cli.ctl import kinds
from virtd.cli.ctl.errors import CtlError
from virtd.cli.ctl.exits import Exit
from virtd.cli.ctl.lazy import Group
from virtd.cli.ctl.params import FunctionT, Named
from virtd.cli.ctl.session import Session, pass_session


@click.group("operations", cls=Group)
def operations() -> None:
    """List, follow and cancel operations: everything that takes time is one."""


def _argument() -> Callable[[FunctionT], FunctionT]:
    return click.argument("name", metavar="OPERATION", type=Named(kinds.OPERATIONS))


def _full(session: Session, name: str) -> str:
    from virtd.cli.ctl.remote import resource_name

    return resource_name(session, kinds.OPERATIONS, name)


@operations.command("list")
@click.option("--filter", "filter_", metavar="EXPR", default="", help="For example: state=RUNNING")
@pass_session
def list_(session: Session, *, filter_: str) -> None:
    """List the operations that the daemon keeps."""
    from virtd.cli.ctl.cmd_get import show_all

    show_all(session, kinds.OPERATIONS, filter_=filter_)


@operations.command("get")
@_argument()
@pass_session
def get(session: Session, *, name: str) -> None:
    """Show everything about one operation."""
    from virtd.cli.ctl.cmd_describe import show_item

    show_item(session, kinds.OPERATIONS, session.client().operations.get(_full(session, name)).metadata)


@operations.command("watch")
@_argument()
@pass_session
def watch(session: Session, *, name: str) -> None:
    """Follow an operation to its end; the exit code is that of its result."""
    from virtd.cli.ctl.progress import wait_for

    operation = session.client().operations.get(_full(session, name))
    deadline = None if session.limit_s is None else time.monotonic() + session.limit_s
    wait_for(session, operation, deadline=deadline)
    metadata = session.client().operations.get(operation.name).metadata
    session.say(f"{metadata.verb} {metadata.target}: done")
    if session.output is not None:
        session.printer.items(kinds.OPERATIONS, [metadata])


@operations.command("cancel")
@_argument()
@click.option("--wait/--no-wait", default=True, help="Wait until it has ended (default).")
@pass_session
def cancel(session: Session, *, name: str, wait: bool) -> None:
    """Cancel an operation; what it had done is undone."""
    from virtd_client.errors import Cancelled

    from virtd.cli.ctl.progress import wait_for

    operation = session.client().operations.get(_full(session, name))
    operation.cancel()
    if not wait:
        session.say(f"{operation.name}: asked to cancel")
        return
    deadline = None if session.limit_s is None else time.monotonic() + session.limit_s
    try:
        wait_for(session, operation, deadline=deadline)
    except Cancelled:
        session.say(f"{operation.name} cancelled")
        return
    raise CtlError(
        f"{operation.name} had succeeded before the cancel came",
        Exit.CONFLICT,
        "OPERATION_NOT_CANCELLABLE",
        "Look at what it did: guestctl operations get " + kinds.last(operation.name),
    )
