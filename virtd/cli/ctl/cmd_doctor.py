"""``doctor``: what is wrong with the daemon's hosts, and what to do about it."""

from __future__ import annotations

import click

from virtd.cli.ctl import kinds
from virtd.cli.ctl.exits import Exit
from virtd.cli.ctl.lazy import command
from virtd.cli.ctl.params import Named
from virtd.cli.ctl.session import Session, pass_session


@command("doctor")
@click.argument("name", required=False, metavar="[HOST]", type=Named(kinds.HOSTS))
@click.option("--all", "every", is_flag=True, help="Also what is as it should be.")
@pass_session
def doctor(session: Session, *, name: str | None, every: bool) -> None:
    """Look over a host, or all: KVM, permissions, versions, conflicts, space; and say what to do.

    Exit code 1 when there is a problem; warnings alone are 0.
    """
    from virtd.cli.ctl.remote import host_name

    client = session.client()
    hosts = [host_name(session, name)] if name else [host.name for host in client.hosts.list()]
    if not hosts:
        session.warn("the daemon has no host: guestctl host add NAME URI, or install libvirt and start it again")
        session.codes.append(Exit.FAILED)
        return
    found = [(host, check) for host in hosts for check in client.hosts.diagnose(host)]
    problems = [pair for pair in found if kinds.enum(pair[1], "status") == "PROBLEM"]
    if session.printer.structured:
        for host in hosts:
            checks = [check for of, check in found if of == host]
            session.printer.items(kinds.CHECKS, checks, rows=[(host, check) for check in checks], host=host)
    else:
        shown = found if every else [pair for pair in found if kinds.enum(pair[1], "status") != "OK"]
        session.printer.items(kinds.CHECKS, [check for _, check in shown], rows=shown)
        fine = len(found) - len(shown)
        if fine:
            session.say(f"{fine} of {len(found)} checks found nothing to do (--all shows them)")
    if problems:
        session.codes.append(Exit.FAILED)
