"""``wait``: until a guest is in a state, or ready."""

from __future__ import annotations

import time
from typing import Final

import click

from virtd.cli.ctl import kinds
from virtd.cli.ctl.errors import explain
from virtd.cli.ctl.lazy import command
from virtd.cli.ctl.params import guests_argument, host_option
from virtd.cli.ctl.session import RIDE_OUT_S, Session, pass_session

STATES: Final = ("running", "stopped", "paused", "suspended", "crashed")
CONDITIONS: Final = ("booted", "agent-ready", "cloud-init-done", "network-ready")
_DEFAULT_S = 300.0


@command("wait")
@guests_argument()
@host_option("The host of these guests.")
@click.option(
    "--for",
    "goal",
    required=True,
    metavar="GOAL",
    type=click.Choice([*STATES, *CONDITIONS, "deleted"], case_sensitive=False),
    help=f"One of: {', '.join((*STATES, *CONDITIONS))}, deleted.",
)
@pass_session
def wait(session: Session, *, guests: tuple[str, ...], host: str | None, goal: str) -> None:
    """Wait until guests are in a state, a condition of theirs holds, or they are deleted.

    Running is not ready: agent-ready and network-ready are conditions of their own. --timeout is the
    limit for all of them together; default 5m; exit code 124 when it is over.
    """
    deadline = time.monotonic() + (session.limit_s or _DEFAULT_S)
    reached = []
    for given in guests:
        try:
            guest = _one(session, given, host, goal, deadline)
        except Exception as error:
            failure = explain(error)
            if len(guests) == 1 or failure.reason == "DAEMON_UNREACHABLE":
                raise
            session.failed(failure, subject=given)
            continue
        session.done()
        session.say(f"{given}: {goal}")
        if guest is not None:
            reached.append(guest)
    if session.output is not None:
        session.printer.items(kinds.GUESTS, reached)


def _one(session: Session, given: str, host: str | None, goal: str, deadline: float) -> object | None:
    from virtd.cli.ctl.errors import CtlError
    from virtd.cli.ctl.exits import Exit
    from virtd.cli.ctl.remote import guest_name

    try:
        name = guest_name(session, given, host)
    except CtlError as error:
        # Not found is what was waited for; that it cannot be known is not.
        if goal == "deleted" and error.exit_code is Exit.NOT_FOUND:
            return None
        raise
    session.client().server.info()  # without patience: where no daemon is, that is said at once
    guests = session.client(ride_out_s=RIDE_OUT_S).guests
    session.detail(f"waiting for {name}: {goal}")
    left = max(0.001, deadline - time.monotonic())
    if goal == "deleted":
        return guests.wait(name, deleted=True, timeout_s=left)
    if goal in STATES:
        return guests.wait(name, state=goal, timeout_s=left)
    return guests.wait(name, condition=goal, timeout_s=left)
