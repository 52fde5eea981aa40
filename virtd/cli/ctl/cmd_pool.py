"""``pool``: places for volumes."""

from __future__ import annotations

from typing import Any

import click

from virtd.cli.ctl import kinds
from virtd.cli.ctl.errors import UsageError
from virtd.cli.ctl.lazy import Group
from virtd.cli.ctl.params import Named, host_option, wait_option
from virtd.cli.ctl.session import Session, pass_session


@click.group("pool", cls=Group)
def pool() -> None:
    """Create, start, stop and delete storage pools."""


@pool.command("create")
@click.argument("pool_id", metavar="POOL")
@click.option("--path", metavar="DIR", help="A directory of the host, or where an NFS export is mounted.")
@click.option("--volume-group", metavar="VG", help="An LVM volume group of the host, instead.")
@click.option("--nfs", metavar="SERVER:EXPORT", help="An NFS export, mounted at --path.")
@click.option("--autostart", is_flag=True, help="Start it with the host.")
@host_option("Where; needed when there are several hosts.")
@wait_option()
@pass_session
def create(
    session: Session,
    *,
    pool_id: str,
    path: str | None,
    volume_group: str | None,
    nfs: str | None,
    autostart: bool,
    host: str | None,
    wait: bool,
) -> None:
    """Create a pool of a directory, a volume group or an NFS export, and start it."""
    from virtd.cli.ctl.progress import run_operations
    from virtd.cli.ctl.remote import host_name

    if volume_group and (nfs or path):
        raise UsageError("--volume-group excludes --path and --nfs")
    if not volume_group and not path:
        raise UsageError("--path is missing", next="A directory of the host, or --volume-group VG.")
    server, colon, exported = (nfs or "").partition(":")
    if nfs and not (server and colon and exported):
        raise UsageError(f"--nfs {nfs!r} is not SERVER:EXPORT")
    parent = host_name(session, host)

    def call(_: str) -> Any:
        pools = session.client().pools
        if volume_group:
            return pools.create_logical(parent, pool_id, volume_group, autostart=autostart)
        if nfs:
            return pools.create_nfs(parent, pool_id, server, exported, path or "", autostart=autostart)
        return pools.create_directory(parent, pool_id, path or "", autostart=autostart)

    run_operations(session, [f"{parent}/pools/{pool_id}"], call, "created", wait=wait, kind=kinds.POOLS)


def _verb(name: str, done: str, text: str) -> None:
    @pool.command(name, help=text)
    @click.argument("names", nargs=-1, required=True, metavar="POOL...", type=Named(kinds.POOLS))
    @host_option("The pools' host.")
    @wait_option()
    @pass_session
    def run(session: Session, *, names: tuple[str, ...], host: str | None, wait: bool) -> None:
        from virtd.cli.ctl.progress import run_operations
        from virtd.cli.ctl.remote import resource_name

        full = list(dict.fromkeys(resource_name(session, kinds.POOLS, entry, host) for entry in names))

        def call(entry: str) -> Any:
            return getattr(session.client().pools, name)(entry)

        run_operations(session, full, call, done, wait=wait, kind=kinds.POOLS)

    assert run is not None


_verb("start", "started", "Make pools usable.")
_verb("stop", "stopped", "Make pools unusable; what is in them stays.")
_verb("refresh", "refreshed", "Look at pools anew, for what was put there without virtd.")


@pool.command("autostart")
@click.argument("name", metavar="POOL", type=Named(kinds.POOLS))
@click.argument("on", type=click.Choice(["on", "off"]))
@host_option("The pool's host.")
@wait_option()
@pass_session
def autostart_(session: Session, *, name: str, on: str, host: str | None, wait: bool) -> None:
    """Whether a pool starts with its host."""
    from virtd.cli.ctl.progress import run_operations
    from virtd.cli.ctl.remote import resource_name

    def call(entry: str) -> Any:
        return session.client().pools.update(entry, autostart=on == "on")

    full = resource_name(session, kinds.POOLS, name, host)
    run_operations(session, [full], call, f"autostart {on}", wait=wait, kind=kinds.POOLS)


@pool.command("delete")
@click.argument("names", nargs=-1, required=True, metavar="POOL...", type=Named(kinds.POOLS))
@click.option("--remove-directory", is_flag=True, help="Also the directory, which must be empty.")
@host_option("The pools' host.")
@wait_option()
@pass_session
def delete(session: Session, *, names: tuple[str, ...], remove_directory: bool, host: str | None, wait: bool) -> None:
    """Forget pools; the volumes in them stay as files. One that guests use stays."""
    from virtd.cli.ctl.progress import run_operations
    from virtd.cli.ctl.remote import resource_name

    full = list(dict.fromkeys(resource_name(session, kinds.POOLS, entry, host) for entry in names))

    def call(entry: str) -> Any:
        return session.client().pools.delete(entry, remove_directory=remove_directory)

    run_operations(session, full, call, "deleted", wait=wait, kind=None)
