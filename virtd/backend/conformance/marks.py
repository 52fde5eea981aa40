"""What makes a check of a function, and the outcomes that are no failures."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Coroutine
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from virtd.backend.conformance.kit import Kit


class NotRun(Exception):  # noqa: N818 - not an error: an outcome
    """The provision gives no means to check this; the message says what is missing.

    :param elsewhere: there is nothing to check here, because another check proves the same.
    """

    def __init__(self, message: str, *, elsewhere: bool = False) -> None:
        super().__init__(message)
        self.elsewhere = elsewhere


class Undeclared(Exception):  # noqa: N818 - not an error: an outcome
    """What the check needs is a capability that the host does not declare."""

    def __init__(self, capability: str) -> None:
        super().__init__(capability)
        self.capability = capability


def check(
    *capabilities: str, proof: bool = True, about: Callable[..., str] | None = None
) -> Callable[[Callable[..., Coroutine[Any, Any, None]]], Callable[..., None]]:
    """Make a check of an async function whose argument ``kit`` is the host under test.

    :param capabilities: the check is of these; where one is not declared, its refusal is checked instead.
    :param proof: the check shows that the capability works (or else that it is robust).
    :param about: gives the capability of a parametrized check from its arguments.
    """

    def _named(parameters: dict[str, Any]) -> tuple[str, ...]:
        ids = (*capabilities, about(**parameters)) if about else capabilities
        return tuple(filter(None, ids))

    def decorate(body: Callable[..., Coroutine[Any, Any, None]]) -> Callable[..., None]:
        @functools.wraps(body)
        def test(*args: Any, **kwargs: Any) -> None:
            __tracebackhide__ = True
            kit: Kit = kwargs["kit"]
            parameters = {key: value for key, value in kwargs.items() if key != "kit"}
            name, ids = check_name(body, parameters), _named(parameters)
            kit.execute(name, ids, lambda: body(*args, **kwargs), proof=proof)

        test.__dict__["virtd_check"] = body
        test.__dict__["virtd_proves"] = lambda parameters: _named(parameters) if proof else ()
        return test

    return decorate


def check_name(body: Callable[..., object], parameters: dict[str, Any]) -> str:
    """A check's name in the report: ``TestVerbs.test_verb[pause-RUNNING]``."""
    ordered = [parameters[name] for name in inspect.signature(body).parameters if name in parameters]
    values = "-".join(str(value) for value in ordered)
    return f"{body.__qualname__}[{values}]" if values else body.__qualname__
