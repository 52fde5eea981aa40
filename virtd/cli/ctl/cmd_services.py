"""``services``: what the daemon's API offers, as gRPC reflection tells it."""

from __future__ import annotations

import click

from virtd.cli.ctl.lazy import command
from virtd.cli.ctl.session import Session, pass_session


@command("services")
@click.argument("service", required=False)
@pass_session
def services(session: Session, *, service: str | None) -> None:
    """List the services of the daemon's API, or the methods of one.

    The list is the daemon's own (gRPC reflection), so it also shows what this program has no command for.
    """
    from virtd.cli.ctl.errors import CtlError
    from virtd.cli.ctl.exits import Exit
    from virtd.cli.ctl.output import envelope

    found = session.client().server.services()
    if service is not None:
        chosen = {name: methods for name, methods in found.items() if service in (name, name.rpartition(".")[2])}
        if not chosen:
            raise CtlError(f"the daemon has no service {service!r}", Exit.NOT_FOUND)
        found = chosen
    printer = session.printer
    if session.output in {"json", "jsonl", "yaml"}:
        items = [{"name": name, "methods": list(methods)} for name, methods in found.items()]
        printer.document(envelope("ServiceList", items=items))
    elif service is not None or session.output == "wide":
        for name, methods in found.items():
            for method in methods:
                printer.line(f"{name}/{method}")
    else:
        for name in found:
            printer.line(name)
