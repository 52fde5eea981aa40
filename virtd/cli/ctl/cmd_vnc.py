"""``vnc``: a guest's display for any VNC viewer of this machine, through the daemon."""

from __future__ import annotations

import contextlib
import socket
import subprocess
import threading
from typing import Any

import click

from virtd.cli.ctl.errors import CtlError, explain
from virtd.cli.ctl.lazy import command
from virtd.cli.ctl.params import guest_argument, host_option
from virtd.cli.ctl.session import Session, pass_session

_CHUNK = 64 * 1024


@command("vnc")
@guest_argument()
@host_option("The guest's host.")
@click.option(
    "--port", type=click.IntRange(0, 65535), default=0, help="Listen on this port of 127.0.0.1; default: any."
)
@click.option("--viewer", metavar="PROGRAM", help="Start this viewer with 127.0.0.1::PORT, and end with it.")
@pass_session
def vnc(session: Session, *, guest: str, host: str | None, port: int, viewer: str | None) -> None:
    """Let a VNC viewer of this machine show a guest's display.

    Prints the address to connect to. The display itself is reached through the daemon, with a ticket for
    each connection; nothing is opened to the network. Ends with ^C.
    """
    from virtd.cli.ctl.remote import guest_name

    name = guest_name(session, guest, host)
    session.client().console.ticket(name)  # says at once if there is no display
    with socket.create_server(("127.0.0.1", port)) as listener:
        address = listener.getsockname()[1]
        session.printer.line(f"vnc://127.0.0.1:{address}")
        program = _start(viewer, address)
        if program is not None:
            threading.Thread(target=_until_exit, args=(program, listener), daemon=True).start()
        try:
            while True:
                connection, _ = listener.accept()
                threading.Thread(target=_serve, args=(session, name, connection), daemon=True).start()
        except OSError:
            return  # the viewer has ended
        finally:
            if program is not None and program.poll() is None:
                program.terminate()


def _start(viewer: str | None, port: int) -> subprocess.Popen[bytes] | None:
    if viewer is None:
        return None
    try:
        return subprocess.Popen([viewer, f"127.0.0.1::{port}"])
    except OSError as error:
        raise CtlError(f"the viewer {viewer!r} cannot be run: {error.strerror}") from error


def _until_exit(program: subprocess.Popen[bytes], listener: socket.socket) -> None:
    program.wait()
    with contextlib.suppress(OSError):
        listener.shutdown(socket.SHUT_RDWR)  # wakes accept(), which close() would not


def _serve(session: Session, name: str, connection: socket.socket) -> None:
    """Copy both ways until one side ends."""
    with connection:
        try:
            console = session.client().console
            graphics = console.graphics(console.ticket(name).ticket)
        except Exception as error:
            session.warn(f"no display: {explain(error)}")
            return
        try:
            threading.Thread(target=_send, args=(connection, graphics), daemon=True).start()
            while data := graphics.read():
                connection.sendall(data)
        except Exception as error:
            session.detail(f"the connection to the display ended: {error}")
        finally:
            graphics.close()
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)


def _send(connection: socket.socket, graphics: Any) -> None:
    with contextlib.suppress(Exception):
        while data := connection.recv(_CHUNK):
            graphics.write(data)
    graphics.close()
