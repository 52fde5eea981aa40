"""What one run of guestctl knows: its options, its context, its connection, its voice."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from virtd.cli.ctl import text
from virtd.cli.ctl.errors import CtlError, UsageError, report
from virtd.cli.ctl.exits import Exit, together

if TYPE_CHECKING:
    from virtd_client import Client

    from virtd.cli.ctl.contexts import Context
    from virtd.cli.ctl.output import Printer

DEFAULT_TIMEOUT_S = 30.0
"""Limit of one call where ``--timeout`` says nothing.  Waiting for operations has no limit then."""
RIDE_OUT_S = 120.0
"""How long a wait goes on while the daemon is away: it may be restarting."""


class Session:
    """Options as given (None or False: not given), and what follows from them."""

    def __init__(self) -> None:
        self.output: str | None = None
        self.context: str | None = None
        self.target: str | None = None
        self.timeout: float | None = None
        self.no_color = False
        self.quiet = False
        self.verbose = False
        self.codes: list[Exit] = []
        self._context: Context | None = None
        self._clients: dict[float, Client] = {}
        self._printer: Printer | None = None

    # -- where to -----------------------------------------------------------------------------------

    @property
    def settings(self) -> Context:
        """The context in use; an empty one if there is none.

        The first of: ``--context``, ``$GUESTCTL_CONTEXT``, the file's current one.
        """
        if self._context is None:
            from virtd.cli.ctl import contexts

            try:
                loaded = contexts.load()
                name = self.context or os.environ.get("GUESTCTL_CONTEXT") or loaded.current
                self._context = loaded.get(name) if name else contexts.Context()
            except contexts.ContextError as error:
                raise UsageError(str(error), next="`guestctl config get-contexts` lists the contexts.") from error
        return self._context

    @property
    def address(self) -> str:
        """The daemon's address: ``--target``, ``$VIRTD_TARGET``, the context's, or the usual sockets."""
        from virtd_client import default_target

        if self.target:
            return self.target
        chosen = self.context or os.environ.get("GUESTCTL_CONTEXT")
        # A context that was asked for by name is closer to the user than a variable of the shell.
        if chosen and self.settings.target:
            return self.settings.target
        if os.environ.get("VIRTD_TARGET"):
            return default_target()
        return self.settings.target or default_target()

    @property
    def limit_s(self) -> float | None:
        """The time limit that was asked for, in seconds; None: none was."""
        if self.timeout is not None:
            return self.timeout
        return text.parse_duration(self.settings.timeout) if self.settings.timeout else None

    def client(self, *, ride_out_s: float = 0.0) -> Client:
        """The connection, made when it is first needed.

        :param ride_out_s: how long a call is repeated while no daemon answers; the default is not to,
            so that a wrong target is said at once.
        """
        from virtd_client import Client

        if ride_out_s not in self._clients:
            try:
                self._clients[ride_out_s] = Client.connect(
                    self.address, timeout_s=self.limit_s or DEFAULT_TIMEOUT_S, retry_s=ride_out_s
                )
            except ValueError as error:
                raise UsageError(str(error)) from error
        return self._clients[ride_out_s]

    def close(self) -> None:
        """Close what was opened."""
        for client in self._clients.values():
            client.close()
        self._clients.clear()

    # -- stdout -------------------------------------------------------------------------------------

    @property
    def printer(self) -> Printer:
        """Where data goes."""
        if self._printer is None:
            from virtd.cli.ctl.output import Printer

            color = text.wants_color(sys.stdout, off=self.no_color)
            self._printer = Printer(self.output or "table", sys.stdout, color=color)
        return self._printer

    # -- stderr -------------------------------------------------------------------------------------

    @property
    def talks_to_terminal(self) -> bool:
        """Whether a person reads standard error as it comes."""
        return sys.stderr.isatty() and os.environ.get("TERM") != "dumb"

    def say(self, message: str) -> None:
        """Talk, unless ``--quiet``."""
        if not self.quiet:
            sys.stderr.write(text.clean(message) + "\n")
            sys.stderr.flush()

    def detail(self, message: str) -> None:
        """Talk, with ``--verbose`` only."""
        if self.verbose:
            self.say(message)

    def warn(self, message: str) -> None:
        """What must not be overlooked, also with ``--quiet``."""
        sys.stderr.write("warning: " + text.clean(message) + "\n")
        sys.stderr.flush()

    def failed(self, error: CtlError, *, subject: str = "") -> None:
        """Report one of several things as failed and go on; :meth:`exit_code` tells in the end."""
        report(error, subject=subject, color=text.wants_color(sys.stderr, off=self.no_color))
        self.codes.append(error.exit_code)

    def done(self) -> None:
        """Count one of several things as done."""
        self.codes.append(Exit.DONE)

    def partial(self) -> None:
        """Count the whole as incomplete."""
        self.codes.append(Exit.PARTIAL)

    @property
    def exit_code(self) -> Exit:
        """What the command ends with."""
        return together(self.codes)


def pass_session(function: Callable[..., Any]) -> Callable[..., Any]:
    """Decorator: the session as the first argument."""
    import click

    passed: Callable[..., Any] = click.make_pass_decorator(Session, ensure=True)(function)
    return passed
