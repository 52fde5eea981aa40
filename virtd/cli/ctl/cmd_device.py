"""``attach``, ``detach``, ``insert``, ``eject``, ``resize`` and ``link``: devices of guests, one at a time."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import click

from virtd.cli.ctl import kinds
from virtd.cli.ctl.lazy import Group, Size, command
from virtd.cli.ctl.params import FunctionT, guest_argument, host_option, reject_option, wait_option
from virtd.cli.ctl.session import Session, pass_session

_MODES = ("live-or-next-boot", "live-only", "next-boot")


def _common() -> Callable[[FunctionT], FunctionT]:
    def add(function: FunctionT) -> FunctionT:
        made: Any = function
        for option in (
            pass_session,
            reject_option(),
            wait_option(),
            click.option("--mode", type=click.Choice(_MODES), default=_MODES[0],
                         help="In the running guest where that is possible (default), there or not at all, or later."),
            host_option("The guest's host."),
        ):  # fmt: skip
            made = option(made)
        return cast("FunctionT", made)

    return add


def _run(
    session: Session, guest: str, host: str | None, call: Callable[[Any, str], Any], done: str, *, wait: bool
) -> None:
    from virtd.cli.ctl.progress import run_operations
    from virtd.cli.ctl.remote import guest_name

    def start(name: str) -> Any:
        return call(session.client().devices, name)

    run_operations(session, [guest_name(session, guest, host)], start, done, wait=wait, kind=kinds.GUESTS)


def _conflict(no_queue: bool) -> Any:
    return "reject" if no_queue else "queue"


def _disk(session: Session, text: str, name: str = "") -> Any:
    from virtd.cli.ctl import spec as build
    from virtd.v1 import guest_pb2 as pb

    made = pb.GuestSpec()
    build.add_disk(made, f"name={name},{text}" if name else text, local=session.address.startswith("unix:"))
    return made.disks[0]


@click.group("attach", cls=Group)
def attach() -> None:
    """Add a disk or an interface to a guest, running or not."""


@attach.command("disk")
@guest_argument()
@click.argument("text", metavar="K=V,...")
@_common()
def attach_disk(
    session: Session, *, guest: str, text: str, host: str | None, mode: Any, wait: bool, no_queue: bool
) -> None:
    """Add a disk; K=V as for `create --disk`: name=data,size=1GiB."""
    disk = _disk(session, text)

    def call(devices: Any, name: str) -> Any:
        return devices.attach_disk(name, disk, mode=mode, on_conflict=_conflict(no_queue))

    _run(session, guest, host, call, f"has disk {disk.name}", wait=wait)


@attach.command("interface")
@guest_argument()
@click.argument("text", metavar="NET")
@_common()
def attach_interface(
    session: Session, *, guest: str, text: str, host: str | None, mode: Any, wait: bool, no_queue: bool
) -> None:
    """Add an interface; NET as for `create --network`: network:default,name=lan."""
    from virtd.cli.ctl import spec as build
    from virtd.v1 import guest_pb2 as pb

    made = pb.GuestSpec()
    build.add_network(made, text)

    def call(devices: Any, name: str) -> Any:
        return devices.attach_interface(name, made.interfaces[0], mode=mode, on_conflict=_conflict(no_queue))

    _run(session, guest, host, call, f"has interface {made.interfaces[0].name}", wait=wait)


@click.group("detach", cls=Group)
def detach() -> None:
    """Take a disk or an interface away from a guest, running or not."""


@detach.command("disk")
@guest_argument()
@click.argument("disk", metavar="DISK")
@click.option("--delete-volume", is_flag=True, help="Also the volume, if virtd created it.")
@_common()
def detach_disk(
    session: Session,
    *,
    guest: str,
    disk: str,
    delete_volume: bool,
    host: str | None,
    mode: Any,
    wait: bool,
    no_queue: bool,
) -> None:
    """Take a disk away; its volume stays in its pool."""

    def call(devices: Any, name: str) -> Any:
        return devices.detach_disk(name, disk, delete_volume=delete_volume, mode=mode, on_conflict=_conflict(no_queue))

    _run(session, guest, host, call, f"is without disk {disk}", wait=wait)


@detach.command("interface")
@guest_argument()
@click.argument("interface", metavar="INTERFACE")
@_common()
def detach_interface(
    session: Session, *, guest: str, interface: str, host: str | None, mode: Any, wait: bool, no_queue: bool
) -> None:
    """Take an interface away."""

    def call(devices: Any, name: str) -> Any:
        return devices.detach_interface(name, interface, mode=mode, on_conflict=_conflict(no_queue))

    _run(session, guest, host, call, f"is without interface {interface}", wait=wait)


@command("insert")
@guest_argument()
@click.argument("disk", metavar="DRIVE")
@click.argument("text", metavar="K=V,...")
@click.option("--force", is_flag=True, help="Also if the guest has locked the tray.")
@_common()
def insert(
    session: Session,
    *,
    guest: str,
    disk: str,
    text: str,
    force: bool,
    host: str | None,
    mode: Any,
    wait: bool,
    no_queue: bool,
) -> None:
    """Put a medium into a CD-ROM drive: file=/path.iso,format=raw, volume= or image=."""
    medium = _disk(session, text, disk)

    def call(devices: Any, name: str) -> Any:
        return devices.insert_medium(name, disk, medium, force=force, mode=mode, on_conflict=_conflict(no_queue))

    _run(session, guest, host, call, f"has the medium in {disk}", wait=wait)


@command("eject")
@guest_argument()
@click.argument("disk", metavar="DRIVE")
@click.option("--force", is_flag=True, help="Also if the guest has locked the tray.")
@_common()
def eject(
    session: Session, *, guest: str, disk: str, force: bool, host: str | None, mode: Any, wait: bool, no_queue: bool
) -> None:
    """Take the medium out of a CD-ROM drive."""

    def call(devices: Any, name: str) -> Any:
        return devices.eject_medium(name, disk, force=force, mode=mode, on_conflict=_conflict(no_queue))

    _run(session, guest, host, call, f"has {disk} empty", wait=wait)


@command("resize")
@guest_argument()
@click.argument("disk", metavar="DISK")
@click.argument("size", metavar="SIZE", type=Size())
@_common()
def resize(
    session: Session, *, guest: str, disk: str, size: int, host: str | None, mode: Any, wait: bool, no_queue: bool
) -> None:
    """Make a disk of a guest larger; the guest sees it at once, its file systems do not grow by themselves."""

    def call(devices: Any, name: str) -> Any:
        return devices.resize_disk(name, disk, size, mode=mode, on_conflict=_conflict(no_queue))

    _run(session, guest, host, call, f"has {disk} larger", wait=wait)


@command("link")
@guest_argument()
@click.argument("interface", metavar="INTERFACE")
@click.argument("state", type=click.Choice(["up", "down"]))
@_common()
def link(
    session: Session, *, guest: str, interface: str, state: str, host: str | None, mode: Any, wait: bool, no_queue: bool
) -> None:
    """Plug an interface's cable in, or out."""

    def call(devices: Any, name: str) -> Any:
        return devices.set_link(name, interface, up=state == "up", mode=mode, on_conflict=_conflict(no_queue))

    _run(session, guest, host, call, f"has {interface} {state}", wait=wait)
