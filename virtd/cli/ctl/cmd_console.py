"""``console``: a guest's serial console, for a person or for a pipe."""

from __future__ import annotations

import re
import sys

import click

from virtd.cli.ctl.errors import UsageError
from virtd.cli.ctl.lazy import Duration, command
from virtd.cli.ctl.params import guest_argument, host_option
from virtd.cli.ctl.session import Session, pass_session

_IDLE_S = 2.0


@command("console")
@guest_argument()
@host_option("The guest's host.")
@click.option("--read-only", is_flag=True, help="Only read.")
@click.option("--take", is_flag=True, help="Be the only one who writes, until you leave; others go on reading.")
@click.option("--log", is_flag=True, help="Print what the daemon still holds of the output, and end.")
@click.option("--from-start", is_flag=True, help="Begin with what the daemon still holds.")
@click.option("--until", metavar="REGEX", help="End when the output matches; exit code 124 if it does not in time.")
@click.option("--for", "seconds", type=Duration(), metavar="T", help="End after this time.")
@click.option(
    "--idle",
    type=Duration(),
    default=_IDLE_S,
    metavar="T",
    show_default="2s",
    help="In a pipe: after the end of the input, end when nothing came for this time.",
)
@pass_session
def console(
    session: Session,
    guest: str,
    host: str | None,
    read_only: bool,
    take: bool,
    log: bool,
    from_start: bool,
    until: str | None,
    seconds: float | None,
    idle: float,
) -> None:
    """Use a guest's serial console.

    On a terminal every key goes to the guest; ^] (Control and ]) leaves. In a pipe stdin is copied to
    the guest and its output to stdout, until --until matches, --for is over, or stdin has ended and
    the guest is silent.
    """
    from virtd.cli.ctl.remote import guest_name

    if take and (read_only or log):
        raise UsageError("--take is for writing: it does not go with --read-only and --log")
    pattern = None
    if until is not None:
        try:
            pattern = re.compile(until.encode())
        except re.error as error:
            raise UsageError(f"--until {until!r}: {error}") from error
    name = guest_name(session, guest, host)
    if log:
        sys.stdout.buffer.write(session.client().console.read_log(name).data)
        sys.stdout.buffer.flush()
        return
    from virtd.cli.ctl.terminal import Dialogue

    Dialogue(
        session,
        name,
        read_only=read_only,
        offset=0 if from_start else None,
        until=pattern,
        seconds=session.limit_s if seconds is None else seconds,
        idle_s=idle,
        take=take,
    ).run()
