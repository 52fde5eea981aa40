"""``get`` and ``hosts``: lists."""

from __future__ import annotations

from typing import Any

import click

from virtd.cli.ctl import kinds
from virtd.cli.ctl.errors import CtlError, UsageError, explain
from virtd.cli.ctl.lazy import command
from virtd.cli.ctl.params import NamedOfType, TypeWord, host_option
from virtd.cli.ctl.session import Session, pass_session

_WATCHED = (kinds.GUESTS, kinds.HOSTS, kinds.OPERATIONS)


@command("get")
@click.argument("type_", metavar="TYPE", type=TypeWord())
@click.argument("names", metavar="[NAME...]", nargs=-1, type=NamedOfType())
@host_option("Only of this host.")
@click.option("--guest", metavar="GUEST", help="Only snapshots of this guest.")
@click.option("--pool", metavar="POOL", help="Only volumes of this pool.")
@click.option(
    "--filter",
    "filter_",
    metavar="EXPR",
    default="",
    help="For guests and operations, for example: status.state=RUNNING AND labels.env=prod",
)
@click.option("--watch", "-w", is_flag=True, help="Go on with what changes (guests, hosts, operations).")
@pass_session
def get(
    session: Session,
    type_: str,
    names: tuple[str, ...],
    host: str | None,
    guest: str | None,
    pool: str | None,
    filter_: str,
    watch: bool,
) -> None:
    """List resources of a type, or show some of them.

    TYPE is guests, hosts, snapshots, pools, volumes, networks, images, operations, metrics or audit,
    in the singular, the plural or short (g, h, snap, vol, net, img, op).

    NAME is a full resource name (hosts/a/guests/b), host/guest, or a bare id that is unique.

    A host that does not answer gives the rest of the list, a warning and exit code 8.
    """
    kind = kinds.find(type_)
    assert kind is not None
    if guest and kind is not kinds.SNAPSHOTS:
        raise UsageError("--guest is for snapshots")
    if pool and kind is not kinds.VOLUMES:
        raise UsageError("--pool is for volumes")
    if watch and kind not in _WATCHED:
        raise UsageError(f"{kind.plural} cannot be watched", next="guests, hosts and operations can.")
    if names and filter_:
        raise UsageError("--filter and names do not go together")
    if watch:
        from virtd.cli.ctl.follow import follow

        follow(session, kind, names, host, filter_)
    elif names:
        _some(session, kind, names, host)
    else:
        show_all(session, kind, host=host, filter_=filter_, guest=guest, pool=pool)


def show_all(
    session: Session,
    kind: kinds.Kind,
    *,
    host: str | None = None,
    filter_: str = "",
    guest: str | None = None,
    pool: str | None = None,
) -> None:
    """Print everything of a kind, and say what could not be asked."""
    from virtd.cli.ctl.remote import guest_name, listing, resource_name, warn_of_hosts

    parent = ""
    if guest:
        parent = guest_name(session, guest, host)
    elif pool:
        parent = resource_name(session, kinds.POOLS, pool, host)
    found = listing(session, kind, host=host, filter_=filter_, parent=parent)
    _print(session, kind, found.items, found.host_errors, found.resume_token)
    if not found.items and not found.host_errors and not session.printer.structured:
        where = f" on {host}" if host else ""
        session.say(f"no {kind.plural}{where}{' match' if filter_ else ''}")
    warn_of_hosts(session, found.host_errors)


def _some(session: Session, kind: kinds.Kind, names: tuple[str, ...], host: str | None) -> None:
    """Each name has its own fate: what is found is shown, what is not is reported."""
    from virtd.cli.ctl.remote import fetch, resource_name

    if not kind.pattern:
        raise UsageError(f"{kind.plural} have no names")
    items = []
    failures: list[tuple[str, CtlError]] = []
    for name in dict.fromkeys(names):
        try:
            items.append(fetch(session, kind, resource_name(session, kind, name, host)))
        except Exception as error:
            failure = explain(error)
            if len(names) == 1 or failure.reason == "DAEMON_UNREACHABLE":
                raise
            failures.append((name, failure))
        else:
            session.done()
    if items or session.printer.structured:
        _print(session, kind, items)
    for name, failure in failures:
        session.failed(failure, subject=name)


def _print(
    session: Session, kind: kinds.Kind, items: list[Any], host_errors: list[Any] | None = None, token: str = ""
) -> None:
    from virtd.cli.ctl.output import to_dict

    extra: dict[str, Any] = {}
    if session.printer.format in {"json", "yaml"}:
        extra["hostErrors"] = [to_dict(entry) for entry in host_errors or []]
        if kind is kinds.GUESTS and token:
            extra["resumeToken"] = token
    session.printer.items(kind, items, **extra)


@command("hosts")
@pass_session
def hosts(session: Session) -> None:
    """List the hosts: the same as `guestctl get hosts`."""
    show_all(session, kinds.HOSTS)
