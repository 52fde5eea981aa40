"""``volume`` and ``image``."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from virtd.cli.ctl import kinds, text
from virtd.cli.ctl.errors import UsageError
from virtd.cli.ctl.lazy import Group, Size
from virtd.cli.ctl.params import Named, host_option, wait_option
from virtd.cli.ctl.session import Session, pass_session

_FORMATS = click.Choice(["qcow2", "raw"], case_sensitive=False)
_EVERY_BYTES = 64 * 2**20


def _run(session: Session, name: str, call: Any, done: str, *, wait: bool, kind: kinds.Kind | None) -> None:
    from virtd.cli.ctl.progress import run_operations

    run_operations(session, [name], call, done, wait=wait, kind=kind)


def _full(session: Session, kind: kinds.Kind, name: str, host: str | None) -> str:
    from virtd.cli.ctl.remote import resource_name

    return resource_name(session, kind, name, host)


def _transferred(session: Session) -> Callable[[int, int], None] | None:
    """Says now and then how far a transfer is; None for those who do not want to hear it."""
    if not session.talks_to_terminal or session.quiet:
        return None
    told = 0

    def tell(done: int, whole: int) -> None:
        nonlocal told
        if done - told >= _EVERY_BYTES or done == whole:
            told = done
            session.say(f"{text.size(done)} of {text.size(whole)}")

    return tell


@click.group("volume", cls=Group)
def volume() -> None:
    """Create, resize, copy, transfer and delete volumes of pools."""


@volume.command("create")
@click.argument("pool", type=Named(kinds.POOLS))
@click.argument("volume_id", metavar="VOLUME")
@click.option("--size", type=Size(), required=True, metavar="SIZE", help="Size that a guest sees, such as 10GiB.")
@click.option("--format", "form", type=_FORMATS, help="qcow2 (default) or raw.")
@click.option("--preallocation", type=click.Choice(["none", "metadata", "full"]), help="Take the room at once.")
@host_option("The pool's host.")
@wait_option()
@pass_session
def create(
    session: Session,
    *,
    pool: str,
    volume_id: str,
    size: int,
    form: Any,
    preallocation: Any,
    host: str | None,
    wait: bool,
) -> None:
    """Create an empty volume in a pool."""
    parent = _full(session, kinds.POOLS, pool, host)

    def call(_: str) -> Any:
        return session.client().volumes.create(parent, volume_id, size, format=form, preallocation=preallocation)

    _run(session, f"{parent}/volumes/{volume_id}", call, "created", wait=wait, kind=kinds.VOLUMES)


@volume.command("resize")
@click.argument("name", metavar="VOLUME", type=Named(kinds.VOLUMES))
@click.option("--size", type=Size(), required=True, metavar="SIZE", help="The new size.")
@click.option("--allow-shrink", is_flag=True, help="Also smaller: what lies behind the new end is lost.")
@host_option("The volume's host.")
@wait_option()
@pass_session
def resize(session: Session, *, name: str, size: int, allow_shrink: bool, host: str | None, wait: bool) -> None:
    """Change the size of a volume that no running guest uses; `resize` is for those."""

    def call(entry: str) -> Any:
        return session.client().volumes.resize(entry, size, allow_shrink=allow_shrink)

    _run(session, _full(session, kinds.VOLUMES, name, host), call, "resized", wait=wait, kind=kinds.VOLUMES)


@volume.command("clone")
@click.argument("name", metavar="VOLUME", type=Named(kinds.VOLUMES))
@click.argument("volume_id", metavar="NEW")
@click.option("--pool", "pool", metavar="POOL", type=Named(kinds.POOLS), help="Into this pool; default: the same.")
@click.option("--format", "form", type=_FORMATS, help="Convert to this format.")
@host_option("The volume's host.")
@wait_option()
@pass_session
def clone(
    session: Session, *, name: str, volume_id: str, pool: str | None, form: Any, host: str | None, wait: bool
) -> None:
    """Copy a volume."""
    source = _full(session, kinds.VOLUMES, name, host)
    parent = _full(session, kinds.POOLS, pool, host) if pool else source.rpartition("/volumes/")[0]

    def call(_: str) -> Any:
        return session.client().volumes.clone(source, volume_id, destination_parent=parent, format=form)

    _run(session, f"{parent}/volumes/{volume_id}", call, "copied", wait=wait, kind=kinds.VOLUMES)


@volume.command("upload")
@click.argument("pool", type=Named(kinds.POOLS))
@click.argument("volume_id", metavar="VOLUME")
@click.argument("file", metavar="FILE")
@click.option("--format", "form", type=_FORMATS, required=True, help="Its true format, qcow2 or raw: never guessed.")
@host_option("The pool's host.")
@wait_option()
@pass_session
def upload(session: Session, *, pool: str, volume_id: str, file: str, form: Any, host: str | None, wait: bool) -> None:
    """Make a volume of a file of this machine. A broken connection is taken up where it broke."""
    parent = _full(session, kinds.POOLS, pool, host)
    path = _readable(file)

    def call(_: str) -> Any:
        return session.client().volumes.upload(parent, volume_id, path, form, progress=_transferred(session))

    _run(session, f"{parent}/volumes/{volume_id}", call, "uploaded", wait=wait, kind=kinds.VOLUMES)


@volume.command("download")
@click.argument("name", metavar="VOLUME", type=Named(kinds.VOLUMES))
@click.argument("file", metavar="FILE")
@click.option("--force", is_flag=True, help="Replace FILE if it is there.")
@host_option("The volume's host.")
@pass_session
def download(session: Session, *, name: str, file: str, force: bool, host: str | None) -> None:
    """Save a volume as a file of this machine; prints its SHA-256."""
    full = _full(session, kinds.VOLUMES, name, host)
    path = Path(file)
    if path.exists() and not force:
        raise UsageError(f"{file} is there already", next="Choose another file, or --force.")
    digest = session.client().volumes.download(full, path, progress=_transferred(session))
    session.printer.line(f"{digest}  {file}")


@volume.command("delete")
@click.argument("names", nargs=-1, required=True, metavar="VOLUME...", type=Named(kinds.VOLUMES))
@host_option("The volumes' host.")
@wait_option()
@pass_session
def delete(session: Session, *, names: tuple[str, ...], host: str | None, wait: bool) -> None:
    """Delete volumes; one that a guest uses stays."""
    from virtd.cli.ctl.progress import run_operations

    full = list(dict.fromkeys(_full(session, kinds.VOLUMES, name, host) for name in names))

    def call(name: str) -> Any:
        return session.client().volumes.delete(name)

    run_operations(session, full, call, "deleted", wait=wait, kind=None)


@click.group("image", cls=Group)
def image() -> None:
    """Import, upload and delete images, the read-only sources of disks."""


@image.command("import")
@click.argument("image_id", metavar="IMAGE")
@click.argument("source", metavar="FILE|URL")
@click.option("--format", "form", type=_FORMATS, required=True, help="Its true format, qcow2 or raw: never guessed.")
@click.option("--digest", default="", metavar="sha256:HEX", help="What it must be; anything else is refused.")
@wait_option()
@pass_session
def import_(session: Session, *, image_id: str, source: str, form: Any, digest: str, wait: bool) -> None:
    """Copy a file of the daemon's machine, or what a URL gives the daemon, into the catalogue."""
    from virtd.cli.ctl.spec import local_path

    image_id = image_id.removeprefix("images/")
    url = source if "://" in source else ""
    file = "" if url else local_path(source, local=session.address.startswith("unix:"))

    def call(_: str) -> Any:
        return session.client().images.import_(image_id, file, form, url=url, digest=digest)

    _run(session, f"images/{image_id}", call, "imported", wait=wait, kind=kinds.IMAGES)


@image.command("upload")
@click.argument("image_id", metavar="IMAGE")
@click.argument("file", metavar="FILE")
@click.option("--format", "form", type=_FORMATS, required=True, help="Its true format, qcow2 or raw: never guessed.")
@wait_option()
@pass_session
def upload_image(session: Session, *, image_id: str, file: str, form: Any, wait: bool) -> None:
    """Make an image of a file of this machine."""
    image_id = image_id.removeprefix("images/")
    path = _readable(file)

    def call(_: str) -> Any:
        client = session.client()
        started = client.uploads.start_image(image_id, path.stat().st_size, form)
        return client.uploads.complete(started, path, progress=_transferred(session))

    _run(session, f"images/{image_id}", call, "uploaded", wait=wait, kind=kinds.IMAGES)


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


def _readable(file: str) -> Path:
    path = Path(file)
    try:
        with path.open("rb"):
            return path
    except OSError as error:
        raise UsageError(f"{file}: {error.strerror}") from error
