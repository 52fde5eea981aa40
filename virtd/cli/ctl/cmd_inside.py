"""``cp`` and ``agent``: files of guests, and what their agents tell and do."""

from __future__ import annotations

import sys
from pathlib import Path

import click

from virtd.cli.ctl import text
from virtd.cli.ctl.errors import UsageError
from virtd.cli.ctl.lazy import Duration, Group, command
from virtd.cli.ctl.params import guest_argument, host_option
from virtd.cli.ctl.session import Session, pass_session


def _split(given: str) -> tuple[str, str]:
    """``GUEST:PATH``, or ``""`` and a path of this machine (``./a:b`` is one)."""
    guest, colon, path = given.partition(":")
    if colon and guest and not given.startswith((".", "/")):
        return guest, path
    return "", given


@command("cp")
@click.argument("source", metavar="SOURCE")
@click.argument("destination", metavar="TARGET")
@host_option("The guest's host.")
@click.option("--mode", metavar="OCTAL", help="Mode of the file in the guest, such as 0755.")
@pass_session
def cp(session: Session, *, source: str, destination: str, host: str | None, mode: str | None) -> None:
    """Copy a file into or out of a guest by its agent: one of the two is GUEST:PATH; - is stdin or stdout.

    The file in the guest is replaced as a whole, or stays as it was.
    """
    from virtd.cli.ctl.remote import guest_name

    (from_guest, from_path), (to_guest, to_path) = _split(source), _split(destination)
    if bool(from_guest) == bool(to_guest):
        raise UsageError("one of SOURCE and TARGET is a file in a guest: GUEST:PATH")
    name = guest_name(session, from_guest or to_guest, host)
    client = session.client()
    if to_guest:
        data = _read(from_path)
        if not to_path or to_path.endswith("/"):
            to_path += Path(from_path).name if from_path != "-" else ""
        client.agent.write_file(name, to_path, data, mode=_octal(mode))
        session.say(f"{text.size(len(data))} written to {name}:{to_path}")
        return
    if mode:
        raise UsageError("--mode is for files in guests")
    data = client.agent.read_file(name, from_path)
    if to_path == "-":
        sys.stdout.buffer.write(data)
        sys.stdout.buffer.flush()
        return
    file = Path(to_path)
    if file.is_dir():
        file /= from_path.rpartition("/")[2]
    from virtd.cli.ctl.cmd_exec import write_file

    write_file(file.absolute(), data)
    session.say(f"{text.size(len(data))} written to {file}")


def _read(path: str) -> bytes:
    try:
        return sys.stdin.buffer.read() if path == "-" else Path(path).read_bytes()
    except OSError as error:
        raise UsageError(f"{path}: {error.strerror}") from error


def _octal(mode: str | None) -> int | None:
    if mode is None:
        return None
    try:
        found = int(mode, 8)
    except ValueError:
        found = -1
    if not 0 <= found <= 0o7777:  # noqa: PLR2004 - the bits that there are
        raise UsageError(f"--mode {mode!r} is not octal, such as 0644")
    return found


@click.group("agent", cls=Group)
def agent() -> None:
    """What a guest's agent tells and does: freeze, thaw, os-info."""


@agent.command("freeze")
@guest_argument()
@click.option("--for", "seconds", type=Duration(), default="30s", metavar="T",
              help="Thaw by itself after this time (default 30s).")  # fmt: skip
@host_option("The guest's host.")
@pass_session
def freeze(session: Session, *, guest: str, seconds: float, host: str | None) -> None:
    """Freeze the file systems of a guest: nothing is written until they are thawed."""
    from virtd.cli.ctl.remote import guest_name

    name = guest_name(session, guest, host)
    found = session.client().agent.freeze(name, timeout_s=seconds)
    session.say(f"{name}: {found.frozen_count} file systems frozen, until `guestctl agent thaw`, at most {seconds:g} s")


@agent.command("thaw")
@guest_argument()
@host_option("The guest's host.")
@pass_session
def thaw(session: Session, *, guest: str, host: str | None) -> None:
    """Thaw the file systems of a guest; also when none is frozen."""
    from virtd.cli.ctl.remote import guest_name

    name = guest_name(session, guest, host)
    session.say(f"{name}: {session.client().agent.thaw(name)} file systems thawed")


@agent.command("os-info")
@guest_argument()
@host_option("The guest's host.")
@pass_session
def os_info(session: Session, *, guest: str, host: str | None) -> None:
    """Say what system runs in a guest, as its agent tells."""
    from virtd.cli.ctl.output import describe, envelope, to_dict
    from virtd.cli.ctl.remote import guest_name

    found = session.client().agent.os_info(guest_name(session, guest, host))
    if session.printer.format in {"json", "jsonl", "yaml"}:
        session.printer.document(envelope("AgentOsInfo", item=to_dict(found)))
        return
    for line in describe(found):
        session.printer.line(line)
