"""``volume`` and ``image``."""

from __future__ import annotations

from typing import Any

import click

from virtd.cli.ctl import kinds
from virtd.cli.ctl.lazy import Group, Size
from virtd.cli.ctl.params import Named, host_option, wait_option
from virtd.cli.ctl.session import Session, pass_session

_FORMATS = click.Choice(["qcow2", "raw"], case_sensitive=False)


@click.group("volume", cls=Group)
def volume() -> None:
    """Create and delete volumes of pools."""


@volume.command("create")
@click.argument("pool", type=Named(kinds.POOLS))
@click.argument("volume_id", metavar="VOLUME")
@click.option("--size", type=Size(), required=True, metavar="SIZE", help="Size that a guest sees, such as 10GiB.")
@click.option("--format", "form", type=_FORMATS, help="qcow2 (default) or raw.")
@host_option("The pool's host.")
@wait_option()
@pass_session
def create(session: Session, *, pool: str, volume_id: str, size: int, form: Any, host: str | None, wait: bool) -> None:
    """Create an empty volume in a pool."""
    from virtd.cli.ctl.progress import run_operations
    from virtd.cli.ctl.remote import resource_name

    parent = resource_name(session, kinds.POOLS, pool, host)

    def call(_: str) -> Any:
        return session.client().volumes.create(parent, volume_id, size, format=form)

    run_operations(session, [f"{parent}/volumes/{volume_id}"], call, "created", wait=wait, kind=kinds.VOLUMES)


@volume.command("delete")
@click.argument("names", nargs=-1, required=True, metavar="VOLUME...", type=Named(kinds.VOLUMES))
@host_option("The volumes' host.")
@wait_option()
@pass_session
def delete(session: Session, *, names: tuple[str, ...], host: str | None, wait: bool) -> None:
    """Delete volumes; one that a guest uses stays."""
    from virtd.cli.ctl.progress import run_operations
    from virtd.cli.ctl.remote import resource_name

    full = list(dict.fromkeys(resource_name(session, kinds.VOLUMES, name, host) for name in names))

    def call(name: str) -> Any:
        return session.client().volumes.delete(name)

    run_operations(session, full, call, "deleted", wait=wait, kind=None)


@click.group("image", cls=Group)
def image() -> None:
    """Import and delete images, the read-only sources of disks."""


@image.command("import")
@click.argument("image_id", metavar="IMAGE")
@click.argument("path", metavar="FILE")
@click.option("--format", "form", type=_FORMATS, required=True, help="Its true format, qcow2 or raw: never guessed.")
@wait_option()
@pass_session
def import_(session: Session, *, image_id: str, path: str, form: Any, wait: bool) -> None:
    """Copy a file of the daemon's machine into the catalogue."""
    from virtd.cli.ctl.progress import run_operations
    from virtd.cli.ctl.spec import local_path

    image_id = image_id.removeprefix("images/")
    file = local_path(path, local=session.address.startswith("unix:"))

    def call(_: str) -> Any:
        return session.client().images.import_(image_id, file, form)

    run_operations(session, [f"images/{image_id}"], call, "imported", wait=wait, kind=kinds.IMAGES)


@image.command("delete")
@click.argument("names", nargs=-1, required=True, metavar="IMAGE...", type=Named(kinds.IMAGES))
@wait_option()
@pass_session
def delete_image(session: Session, *, names: tuple[str, ...], wait: bool) -> None:
    """Delete images; one that a volume is based on stays."""
    from virtd.cli.ctl.progress import run_operations

    full = list(dict.fromkeys(f"images/{name.removeprefix('images/')}" for name in names))

    def call(name: str) -> Any:
        return session.client().images.delete(name)

    run_operations(session, full, call, "deleted", wait=wait, kind=None)
