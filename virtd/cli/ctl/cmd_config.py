"""``config``: contexts."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import click

from virtd.cli.ctl import contexts
from virtd.cli.ctl.errors import CtlError, UsageError
from virtd.cli.ctl.exits import Exit
from virtd.cli.ctl.lazy import Completed, Group
from virtd.cli.ctl.params import FunctionT
from virtd.cli.ctl.session import Session, pass_session


@click.group("config", cls=Group)
def config() -> None:
    """Contexts: named daemons, in $XDG_CONFIG_HOME/virtd/guestctl.toml.

    The daemon is the first of: --target, the context of --context or $GUESTCTL_CONTEXT,
    $VIRTD_TARGET, the current context, the user's own socket, the system's socket.
    """


class _ContextName(Completed):
    name = "context"

    def words(self, ctx: click.Context, incomplete: str) -> Iterable[str]:
        try:
            return contexts.load().entries
        except contexts.ContextError:
            return []


def _name_argument() -> Callable[[FunctionT], FunctionT]:
    return click.argument("name", metavar="NAME", type=_ContextName())


def _change(edit: Any) -> contexts.Contexts:
    try:
        return contexts.change(edit)
    except contexts.ContextError as error:
        raise UsageError(str(error)) from error


@config.command("get-contexts")
@pass_session
def get_contexts(session: Session) -> None:
    """List the contexts; the current one has a star."""
    try:
        loaded = contexts.load()
    except contexts.ContextError as error:
        raise UsageError(str(error)) from error
    rows = [
        {"name": name, "current": name == loaded.current, "target": c.target, "host": c.host, "timeout": c.timeout}
        for name, c in sorted(loaded.entries.items())
    ]
    printer = session.printer
    if printer.format in {"json", "yaml"}:
        from virtd.cli.ctl.output import envelope

        printer.document(envelope("ContextList", items=rows))
    elif printer.format == "jsonl":
        for row in rows:
            printer.json_line(row)
    else:
        printer.items(_kind(), rows)
        if not rows and not printer.structured:
            session.say("no contexts; make one: guestctl config set-context NAME --target unix:PATH")


def _kind() -> Any:
    from virtd.cli.ctl.kinds import Column, Kind

    def column(title: str) -> Column:
        key = title.lower()
        return Column(title, key, lambda row: row[key], lambda value: "*" if value is True else str(value or "-"))

    return Kind("contexts", "Context", "", "", tuple(map(column, ("NAME", "CURRENT", "TARGET", "HOST", "TIMEOUT"))))


@config.command("current-context")
@pass_session
def current_context(session: Session) -> None:
    """Print the name of the current context."""
    try:
        loaded = contexts.load()
    except contexts.ContextError as error:
        raise UsageError(str(error)) from error
    if not loaded.current:
        raise CtlError("there is no current context", Exit.NOT_FOUND, next="guestctl config use-context NAME")
    session.printer.line(loaded.current)


@config.command("use-context")
@_name_argument()
@pass_session
def use_context(session: Session, *, name: str) -> None:
    """Make a context the current one."""

    def edit(known: contexts.Contexts) -> contexts.Contexts:
        known.get(name)
        return contexts.Contexts(name, known.entries)

    _change(edit)
    session.say(f"the current context is {name}")


@config.command("set-context")
@_name_argument()
@click.option("--target", "target", metavar="T", help="The daemon: unix:PATH or HOST:PORT.")
@click.option("--host", "host", metavar="HOST", help="The host, where a command names none.")
@click.option("--timeout", "timeout", metavar="T", help="Time limit of a command, such as 30s.")
@pass_session
def set_context(session: Session, *, name: str, target: str | None, host: str | None, timeout: str | None) -> None:
    """Create or change a context; an empty value takes a setting away. The first one becomes current."""
    changes = {k: v for k, v in {"target": target, "host": host, "timeout": timeout}.items() if v is not None}
    if changes.get("target"):
        from virtd_client._target import parse_target

        try:
            parse_target(changes["target"])
        except ValueError as error:
            raise UsageError(str(error)) from error
    _change(lambda known: contexts.set_entry(known, name, changes))
    session.say(f"context {name} set in {contexts.path()}")


@config.command("delete-context")
@_name_argument()
@pass_session
def delete_context(session: Session, *, name: str) -> None:
    """Delete a context."""

    def edit(known: contexts.Contexts) -> contexts.Contexts:
        known.get(name)
        entries = {key: value for key, value in known.entries.items() if key != name}
        return contexts.Contexts("" if known.current == name else known.current, entries)

    _change(edit)
    session.say(f"context {name} deleted")
