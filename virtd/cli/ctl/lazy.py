"""click groups that import a command when it is used, and options that every command takes."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from importlib import import_module
from typing import TYPE_CHECKING, Any, Final

import click

from virtd.cli.ctl import text

if TYPE_CHECKING:
    from click.shell_completion import CompletionItem

    ParamType = click.ParamType[Any]
else:
    ParamType = click.ParamType  # older versions of click cannot be subscripted

FORMATS: Final = ("table", "wide", "json", "jsonl", "yaml", "csv", "name")
"""What ``-o`` takes."""


@dataclass(frozen=True, slots=True)
class Entry:
    """A command by name: where it is, its line of help, and the section that it stands in."""

    where: str
    help: str
    section: str


class LazyGroup(click.Group):
    """A group whose ``--help`` imports no command and whose commands import only themselves.

    :param entries: the commands; ``where`` is ``module:attribute`` below ``virtd.cli.ctl``.
    :param synonyms: other spellings that people try.
    """

    def __init__(self, *args: Any, entries: dict[str, Entry], synonyms: dict[str, str], **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.entries = entries
        self.synonyms = synonyms

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Names in the order of the help."""
        return list(self.entries)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import and return one command."""
        entry = self.entries.get(self.synonyms.get(cmd_name, cmd_name))
        if entry is None:
            return None
        module, attribute = entry.where.split(":")
        command: click.Command = getattr(import_module(f"virtd.cli.ctl.{module}"), attribute)
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Find the command; an unknown one is a usage error with the nearest name."""
        name = args[0]
        if name not in self.entries and name not in self.synonyms and not name.startswith("-"):
            hint = text.did_you_mean(name, self.entries)
            raise click.UsageError(f"there is no command {name!r}{hint}", ctx)
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Commands by section, from the table alone."""
        for section in dict.fromkeys(entry.section for entry in self.entries.values()):
            with formatter.section(section):
                rows = [(name, entry.help) for name, entry in self.entries.items() if entry.section == section]
                formatter.write_dl(rows)


def _store(ctx: click.Context, param: click.Parameter, value: Any) -> None:
    """Put a global option's value into the session; the one nearest to the command wins."""
    from virtd.cli.ctl.session import Session

    if value is None or value is False or (ctx.resilient_parsing and not value):
        return
    session = ctx.ensure_object(Session)
    setattr(session, str(param.name), value)


class Duration(ParamType):
    """Seconds, or a number with a unit: ``30s``, ``5m``."""

    name = "duration"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        """Parse it."""
        if isinstance(value, float):
            return value
        try:
            return text.parse_duration(str(value))
        except ValueError as error:
            self.fail(str(error), param, ctx)


class Size(ParamType):
    """Bytes, or a number with a unit: ``256MiB``."""

    name = "size"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        """Parse it."""
        if isinstance(value, int):
            return value
        try:
            return text.parse_size(str(value))
        except ValueError as error:
            self.fail(str(error), param, ctx)


class Completed(ParamType):
    """A parameter whose values a shell can complete from :meth:`words`."""

    def words(self, ctx: click.Context, incomplete: str) -> Iterable[str]:
        """The values there are."""
        raise NotImplementedError

    def shell_complete(
        self,
        ctx: click.Context,
        param: click.Parameter,
        incomplete: str,
    ) -> list[CompletionItem]:
        """The words that begin so."""
        from click.shell_completion import CompletionItem

        return [CompletionItem(word) for word in self.words(ctx, incomplete) if word.startswith(incomplete)]


class Format(Completed):
    """One of the output formats."""

    name = "format"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        """Check it."""
        if value not in FORMATS:
            hint = text.did_you_mean(str(value), FORMATS)
            self.fail(f"{value!r} is not one of {', '.join(FORMATS)}{hint}", param, ctx)
        return str(value)

    def words(self, ctx: click.Context, incomplete: str) -> Iterable[str]:
        """The formats."""
        return FORMATS


class GlobalOption(click.Option):
    """An option that stands before or after the command."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, expose_value=False, callback=_store, **kwargs)


def global_options() -> list[GlobalOption]:
    """The options that every command takes, made anew for each."""
    return [
        GlobalOption(["-o", "--output"], type=Format(), metavar="FMT",
                     help="table (default), wide, json, jsonl, yaml, csv or name."),
        GlobalOption(["--context"], metavar="NAME", help="Use this context instead of the current one."),
        GlobalOption(["--target"], metavar="T", help="The daemon: unix:PATH or HOST:PORT."),
        GlobalOption(["--timeout"], type=Duration(), metavar="T",
                     help="Time limit of the command, such as 30s or 5m; what the daemon does goes on."),
        GlobalOption(["--no-color"], is_flag=True, help="No colours; so does the variable NO_COLOR."),
        GlobalOption(["-q", "--quiet"], is_flag=True, help="Say nothing but errors on stderr."),
        GlobalOption(["-v", "--verbose"], is_flag=True, help="Say more on stderr."),
    ]  # fmt: skip


class Command(click.Command):
    """A command that takes the global options as well, in a help section of their own."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        taken = {name for param in self.params for name in param.opts}
        self.params += [option for option in global_options() if not taken.intersection(option.opts)]

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """The command's own options first."""
        own: list[tuple[str, str]] = []
        common: list[tuple[str, str]] = []
        for param in self.get_params(ctx):
            record = param.get_help_record(ctx)
            if record and isinstance(param, click.Option):
                (common if isinstance(param, GlobalOption) else own).append(record)
        for title, rows in (("Options", own), ("Global options", common)):
            if rows:
                with formatter.section(title):
                    formatter.write_dl(rows)


class Group(click.Group):
    """A small group whose commands are :class:`Command`."""

    command_class = Command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """As for :class:`LazyGroup`."""
        if args[0] not in self.commands and not args[0].startswith("-"):
            hint = text.did_you_mean(args[0], self.commands)
            raise click.UsageError(f"there is no command {args[0]!r}{hint}", ctx)
        return super().resolve_command(ctx, args)


def command(name: str, **kwargs: Any) -> Callable[[Callable[..., Any]], Command]:
    """Decorator of a command that takes the global options."""
    return click.command(name, cls=Command, **kwargs)


def joined(words: Sequence[str]) -> str:
    """``a, b or c``."""
    return words[0] if len(words) == 1 else ", ".join(words[:-1]) + f" or {words[-1]}"
