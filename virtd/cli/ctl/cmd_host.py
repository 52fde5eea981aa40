"""``host`` and ``capabilities``."""

from __future__ import annotations

import click

from virtd.cli.ctl import kinds
from virtd.cli.ctl.lazy import Group, command
from virtd.cli.ctl.params import Named
from virtd.cli.ctl.session import Session, pass_session


@click.group("host", cls=Group)
def host() -> None:
    """Add, remove and probe hosts (hypervisor endpoints)."""


@host.command("add")
@click.argument("name")
@click.argument("uri")
@click.option("--label", "labels", multiple=True, metavar="K=V", help="A label. Can be repeated.")
@click.option("--dry-run", is_flag=True, help="Check only; add nothing.")
@pass_session
def add(session: Session, *, name: str, uri: str, labels: tuple[str, ...], dry_run: bool) -> None:
    """Add a host, such as qemu+ssh://root@kvm1/system; the URI chooses the backend."""
    from virtd.cli.ctl.spec import labels as parse_labels

    added = session.client().hosts.add(
        name.removeprefix("hosts/"), uri, labels=parse_labels("--label", labels), validate_only=dry_run
    )
    if dry_run:
        session.say(f"{name}: can be added; nothing was")
        return
    state = kinds.enum(added, "state").lower()
    session.say(f"{added.name} added; it is {state}")
    if session.output is not None:
        session.printer.items(kinds.HOSTS, [added])


@host.command("remove")
@click.argument("name", type=Named(kinds.HOSTS))
@click.option("--force", is_flag=True, help="Also when virtd manages guests there; they stay, and become foreign.")
@pass_session
def remove(session: Session, *, name: str, force: bool) -> None:
    """Forget a host that was added; its guests stay as they are."""
    full = f"hosts/{name.removeprefix('hosts/')}"
    session.client().hosts.remove(full, force=force)
    session.say(f"{full} removed")


@host.command("probe")
@click.argument("name", required=False, metavar="[HOST]", type=Named(kinds.HOSTS))
@pass_session
def probe(session: Session, *, name: str | None) -> None:
    """Look at a host now, and show what was found."""
    from virtd.cli.ctl.remote import host_name

    session.printer.items(kinds.HOSTS, [session.client().hosts.probe(host_name(session, name))])


@command("capabilities")
@click.argument("name", required=False, metavar="[HOST]", type=Named(kinds.HOSTS))
@click.option("--guest", help="Of this guest, where guests of a host are of several kinds.", type=Named(kinds.GUESTS))
@click.option("--machine", default="", help="Of guests of this kind, such as xenpvh.")
@pass_session
def capabilities(session: Session, *, name: str | None, guest: str | None, machine: str) -> None:
    """Say what a host can do, how well, how virtd knows, and why not."""
    from virtd.cli.ctl.remote import guest_name, host_name

    whole = guest_name(session, guest) if guest else ""
    full = host_name(session, name or whole.partition("/guests/")[0] or None)
    found = session.client().hosts.capabilities(full, machine=machine, guest=whole)
    extra = {"host": full} if session.printer.format in {"json", "yaml"} else {}
    session.printer.items(kinds.CAPABILITIES, found, **extra)
