"""``network``: networks of hosts, and who has which address."""

from __future__ import annotations

from typing import Any

import click

from virtd.cli.ctl import kinds
from virtd.cli.ctl.lazy import Group
from virtd.cli.ctl.params import Named, host_option, wait_option
from virtd.cli.ctl.session import Session, pass_session


@click.group("network", cls=Group)
def network() -> None:
    """Create, start, stop and delete networks; show their leases."""


@network.command("create")
@click.argument("network_id", metavar="NETWORK")
@click.option("--mode", default="nat", metavar="M", help="nat (default), isolated, route or bridge.")
@click.option("--cidr", metavar="NET", help="Its addresses, such as 192.168.150.0/24.")
@click.option("--dhcp", metavar="FIRST-LAST", help="Hand out these addresses.")
@click.option("--no-dhcp", is_flag=True, help="Hand out none.")
@click.option("--bridge", metavar="BR", help="Mode bridge: the host's bridge. Others: the name of the new one.")
@click.option("--domain", metavar="NAME", help="DNS domain of the guests.")
@click.option("--autostart/--no-autostart", default=True, help="Start it with the host (default).")
@host_option("Where; needed when there are several hosts.")
@wait_option()
@pass_session
def create(
    session: Session,
    *,
    network_id: str,
    mode: str,
    cidr: str | None,
    dhcp: str | None,
    no_dhcp: bool,
    bridge: str | None,
    domain: str | None,
    autostart: bool,
    host: str | None,
    wait: bool,
) -> None:
    """Create a network and start it."""
    from virtd.cli.ctl.netspec import network_spec
    from virtd.cli.ctl.progress import run_operations
    from virtd.cli.ctl.remote import host_name

    parent = host_name(session, host)
    spec = network_spec(mode, cidr, None if no_dhcp else dhcp, bridge, domain, dhcp_off=no_dhcp, autostart=autostart)

    def call(_: str) -> Any:
        return session.client().networks.create(parent, network_id, spec)

    run_operations(session, [f"{parent}/networks/{network_id}"], call, "created", wait=wait, kind=kinds.NETWORKS)


def _verb(name: str, done: str, text: str, kind: kinds.Kind | None) -> None:
    @network.command(name, help=text)
    @click.argument("names", nargs=-1, required=True, metavar="NETWORK...", type=Named(kinds.NETWORKS))
    @host_option("The networks' host.")
    @wait_option()
    @pass_session
    def run(session: Session, *, names: tuple[str, ...], host: str | None, wait: bool) -> None:
        from virtd.cli.ctl.progress import run_operations
        from virtd.cli.ctl.remote import resource_name

        full = list(dict.fromkeys(resource_name(session, kinds.NETWORKS, entry, host) for entry in names))

        def call(entry: str) -> Any:
            return getattr(session.client().networks, name)(entry)

        run_operations(session, full, call, done, wait=wait, kind=kind)

    assert run is not None


_verb("start", "started", "Start networks.", kinds.NETWORKS)
_verb("stop", "stopped", "Stop networks; one that running guests use stays.", kinds.NETWORKS)
_verb("delete", "deleted", "Delete networks; one that guests use stays.", None)


@network.command("leases")
@click.argument("name", metavar="NETWORK", type=Named(kinds.NETWORKS))
@host_option("The network's host.")
@pass_session
def leases(session: Session, *, name: str, host: str | None) -> None:
    """Show who has which address of a network, by its DHCP server."""
    from virtd.cli.ctl.remote import resource_name

    found = session.client().networks.leases(resource_name(session, kinds.NETWORKS, name, host))
    session.printer.items(kinds.LEASES, found)
    if not found:
        session.say("no address was handed out")
