"""Arguments and options that several commands share, with completion of names."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, TypeVar

import click

from virtd.cli.ctl import kinds
from virtd.cli.ctl.lazy import Completed
from virtd.cli.ctl.text import did_you_mean

FunctionT = TypeVar("FunctionT", bound="Callable[..., Any]")

_COMPLETION_S = 2.0
"""A shell that waits for a completion must not hang: better none."""


def _names(ctx: click.Context, kind: kinds.Kind, incomplete: str) -> list[str]:
    """Names of a kind as the user would type them; nothing at all when anything goes wrong."""
    try:
        from virtd.cli.ctl.remote import listing
        from virtd.cli.ctl.session import Session

        session = ctx.ensure_object(Session)
        session.timeout = _COMPLETION_S
        names = [item.name for item in listing(session, kind).items]
    except Exception:
        return []
    ids = [name.rpartition("/")[2] for name in names]
    if "/" in incomplete:
        collection = names[0].split("/")[0] if names else ""
        full = bool(collection) and incomplete.startswith(f"{collection}/")
        return names if full else ["/".join(name.split("/")[1::2]) for name in names]
    # An id that stands for several is completed with what tells them apart.
    return [i if ids.count(i) == 1 else "/".join(n.split("/")[1::2]) for n, i in zip(names, ids, strict=True)]


class Named(Completed):
    """The name of a resource, completed from the daemon."""

    def __init__(self, kind: kinds.Kind) -> None:
        self.kind = kind
        self.name = kind.kind.lower()

    def words(self, ctx: click.Context, incomplete: str) -> Iterable[str]:
        """The names there are now."""
        return _names(ctx, self.kind, incomplete)


class NamedOfType(Completed):
    """A name whose type is an earlier argument (``describe TYPE NAME``)."""

    name = "name"

    def words(self, ctx: click.Context, incomplete: str) -> Iterable[str]:
        """The names of that type."""
        kind = kinds.find(str(ctx.params.get("type_") or ""))
        return _names(ctx, kind, incomplete) if kind else []


class TypeWord(Completed):
    """A type of resource: plural, singular or short."""

    name = "type"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        """Check it."""
        if kinds.find(str(value)) is None:
            known = ", ".join(kind.plural for kind in kinds.GETTABLE)
            hint = did_you_mean(str(value), kinds.words())
            self.fail(f"there is no type {value!r}{hint} (types: {known})", param, ctx)
        return str(value)

    def words(self, ctx: click.Context, incomplete: str) -> Iterable[str]:
        """The types."""
        return [kind.plural for kind in kinds.GETTABLE]


def host_option(text: str = "On this host.") -> Callable[[FunctionT], FunctionT]:
    """``--host``."""
    return click.option("--host", "host", metavar="HOST", type=Named(kinds.HOSTS), help=text)


def guest_argument() -> Callable[[FunctionT], FunctionT]:
    """GUEST."""
    return click.argument("guest", type=Named(kinds.GUESTS), metavar="GUEST")


def guests_argument() -> Callable[[FunctionT], FunctionT]:
    """GUEST..."""
    return click.argument("guests", type=Named(kinds.GUESTS), nargs=-1, required=True, metavar="GUEST...")


def wait_option() -> Callable[[FunctionT], FunctionT]:
    """``--wait/--no-wait``."""
    return click.option(
        "--wait/--no-wait", default=True, help="Wait for the end of the operation (default), or print its name."
    )


def reject_option() -> Callable[[FunctionT], FunctionT]:
    """``--no-queue``."""
    return click.option(
        "--no-queue",
        is_flag=True,
        help="Fail at once when another operation works on the guest, instead of queueing behind it.",
    )
