"""``describe``: everything about one resource."""

from __future__ import annotations

import click

from virtd.cli.ctl import kinds
from virtd.cli.ctl.lazy import command
from virtd.cli.ctl.params import NamedOfType, TypeWord, host_option
from virtd.cli.ctl.session import Session, pass_session


@command("describe")
@click.argument("type_", metavar="TYPE", type=TypeWord())
@click.argument("name", metavar="NAME", type=NamedOfType())
@host_option("The host, where NAME alone could mean several.")
@pass_session
def describe(session: Session, *, type_: str, name: str, host: str | None) -> None:
    """Show everything about one resource, with the field names of the API.

    With -o json or yaml: one document {apiVersion, kind, item}.
    """
    kind = kinds.find(type_)
    assert kind is not None
    show(session, kind, name, host)


def show(session: Session, kind: kinds.Kind, name: str, host: str | None = None) -> None:
    """Fetch and print one resource."""
    from virtd.cli.ctl.remote import fetch, resource_name

    item = fetch(session, kind, resource_name(session, kind, name, host))
    show_item(session, kind, item)


def show_item(session: Session, kind: kinds.Kind, item: object) -> None:
    """Print one resource in full."""
    from virtd.cli.ctl.output import describe as lines_of
    from virtd.cli.ctl.output import envelope, to_dict

    if session.printer.format in {"json", "jsonl", "yaml"}:
        session.printer.document(envelope(kind.kind, item=to_dict(item)))
    elif session.printer.structured:
        session.printer.items(kind, [item])
    else:
        for line in lines_of(item):
            session.printer.line(line)
