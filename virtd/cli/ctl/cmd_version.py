"""``version``: of this program and of the daemon."""

from __future__ import annotations

import sys
from typing import Any

import click

from virtd import __version__
from virtd.cli.ctl.lazy import command
from virtd.cli.ctl.session import Session, pass_session
from virtd.cli.ctl.text import clean


@command("version")
@click.option("--client", "client_only", is_flag=True, help="Of this program only; the daemon is not asked.")
@pass_session
def version(session: Session, *, client_only: bool) -> None:
    """Show the versions of guestctl and of the daemon.

    When no daemon answers, guestctl's own version is shown all the same, and the exit code is 7.
    """
    server: Any = None
    failure: Exception | None = None
    if not client_only:
        try:
            server = session.client().server.info()
        except Exception as error:
            failure = error
    if session.output in {"json", "jsonl", "yaml"}:
        _document(session, server)
    else:
        # Without the printer: this is the command whose start-up time is measured.
        sys.stdout.write(f"guestctl  {__version__}\n")
        if server is not None:
            sys.stdout.write(f"virtd     {clean(server.version)} at {session.client().target}\n")
            if session.output == "wide" or session.verbose:
                _backends(session, server)
    if failure is not None:
        raise failure


def _document(session: Session, server: Any) -> None:
    from virtd.cli.ctl.output import envelope, to_dict

    session.printer.document(
        envelope("Version", client={"version": __version__}, server=None if server is None else to_dict(server))
    )


def _backends(session: Session, server: Any) -> None:
    session.printer.line(f"caller    {server.caller}")
    for backend in server.backends:
        trouble = f": {backend.init_error}" if backend.init_error else ""
        session.printer.line(f"backend   {backend.id} {backend.version}{trouble}".rstrip())
