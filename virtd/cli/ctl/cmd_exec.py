"""``exec`` and ``screenshot``: into a guest, and onto its display."""

from __future__ import annotations

import contextlib
import os
import sys
import tempfile
from pathlib import Path

import click

from virtd.cli.ctl import kinds
from virtd.cli.ctl.errors import UsageError
from virtd.cli.ctl.lazy import Command, command
from virtd.cli.ctl.params import guest_argument, host_option
from virtd.cli.ctl.session import Session, pass_session

_INPUT_BYTES = 1024 * 1024
_SIGNAL = 128
_EXEC_S = 60.0


class _Exec(Command):
    """Options may stand anywhere before ``--``; without it, what follows GUEST is the command's."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Find out which of the two it is."""
        ctx.allow_interspersed_args = "--" in args
        return super().parse_args(ctx, args)


@click.command("exec", cls=_Exec)
@guest_argument()
@click.argument("words", nargs=-1, required=True, metavar="[--] COMMAND [ARG...]", type=click.UNPROCESSED)
@host_option("The guest's host.")
@click.option("-i", "--stdin", "use_stdin", is_flag=True, help="Give the command this standard input (at most 1 MiB).")
@click.option("-e", "--env", "environment", multiple=True, metavar="K=V", help="A variable. Can be repeated.")
@pass_session
def exec_(
    session: Session,
    guest: str,
    words: tuple[str, ...],
    host: str | None,
    use_stdin: bool,
    environment: tuple[str, ...],
) -> None:
    """Run a command in a guest by its agent, without a shell.

    The exit code is the command's own (128 + n when signal n ended it). When guestctl itself fails,
    the code is guestctl's and stderr has a line `reason:`. --timeout limits the command; default 60s.
    """
    from virtd.cli.ctl.output import envelope, to_dict
    from virtd.cli.ctl.remote import guest_name
    from virtd.cli.ctl.spec import labels

    variables = labels("--env", environment)
    data = b""
    if use_stdin:
        data = sys.stdin.buffer.read(_INPUT_BYTES + 1)
        if len(data) > _INPUT_BYTES:
            raise UsageError("the standard input is longer than 1 MiB, which is what an agent takes")
    name = guest_name(session, guest, host)
    result = session.client().agent.exec(
        name, words[0], words[1:], environment=variables, input_data=data, timeout_s=session.limit_s or _EXEC_S
    )
    if session.output in {"json", "jsonl", "yaml"}:
        session.printer.document(envelope("ExecResult", item=to_dict(result)))
    else:
        sys.stdout.buffer.write(result.stdout)
        sys.stdout.buffer.flush()
        sys.stderr.buffer.write(result.stderr)
        sys.stderr.buffer.flush()
    for cut, stream in ((result.stdout_truncated, "output"), (result.stderr_truncated, "error output")):
        if cut:
            session.warn(f"the agent cut the {stream}: there was more")
    if result.HasField("signal"):
        session.say(f"signal {result.signal} ended the command")
        raise click.exceptions.Exit(_SIGNAL + result.signal)
    raise click.exceptions.Exit(result.exit_code)


@command("screenshot")
@guest_argument()
@host_option("The guest's host.")
@click.option("-f", "--file", "file", metavar="FILE", help="Where to; default GUEST.png here; - is stdout.")
@pass_session
def screenshot(session: Session, *, guest: str, host: str | None, file: str | None) -> None:
    """Save a picture of a guest's display; prints the file's path."""
    from virtd.cli.ctl.remote import guest_name

    if file == "-" and sys.stdout.isatty():
        raise UsageError("a picture is nothing for a terminal", next="Redirect the output, or give -f FILE.")
    name = guest_name(session, guest, host)
    picture = session.client().console.screenshot(name)
    if file == "-":
        sys.stdout.buffer.write(picture.data)
        return
    kind = picture.mime_type.rpartition("/")[2] or "png"
    ending = {"x-portable-pixmap": "ppm", "jpeg": "jpg"}.get(kind, kind)
    target = Path(file or f"{kinds.last(name)}.{ending}").absolute()
    write_file(target, picture.data)
    session.printer.line(str(target))


def write_file(target: Path, data: bytes) -> None:
    """Whole or not at all; the old file stays when the disk is full."""
    try:
        descriptor, temporary = tempfile.mkstemp(dir=target.parent, prefix=".guestctl-")
    except OSError as error:
        # The directory's name, not the temporary file's, is what the user knows.
        raise OSError(error.errno, error.strerror, str(target.parent)) from error
    try:
        with os.fdopen(descriptor, "wb") as stream:
            mask = os.umask(0)
            os.umask(mask)
            os.fchmod(stream.fileno(), 0o666 & ~mask)
            stream.write(data)
        Path(temporary).replace(target)
    except BaseException:
        with contextlib.suppress(OSError):
            Path(temporary).unlink()
        raise
