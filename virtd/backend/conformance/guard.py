"""Watches a session: only contract errors may leave it."""

from __future__ import annotations

import asyncio
import functools
import inspect
from collections.abc import Awaitable, Callable
from dataclasses import fields
from typing import Any, cast

from virtd.backend.api import Facets, HostSession
from virtd.errors import VirtdError


class ContractViolation(AssertionError):  # noqa: N818 - it is a failed check, not an error of the kit
    """The backend did what no backend may."""


class _Guard:
    """Stands before a session or facet; dynamic, because it must not know what it guards."""

    def __init__(self, target: Any, name: str) -> None:
        self._target = target
        self._name = name

    def __getattr__(self, attribute: str) -> Any:
        value = getattr(self._target, attribute)
        return _guarded(value, f"{self._name}.{attribute}") if inspect.iscoroutinefunction(value) else value


def _guarded(method: Callable[..., Awaitable[Any]], name: str) -> Callable[..., Awaitable[Any]]:
    @functools.wraps(method)
    async def call(*args: Any, **kwargs: Any) -> Any:
        try:
            return await method(*args, **kwargs)
        except (VirtdError, asyncio.CancelledError):
            raise
        except Exception as error:
            message = f"{name} let {type(error).__name__} escape, which is not a contract error: {error}"
            raise ContractViolation(message) from error

    return call


class _GuardedSession(_Guard):
    def __init__(self, session: HostSession) -> None:
        super().__init__(session, "session")
        self._first = facets = session.facets
        self._guarded = Facets(
            **{
                field.name: None if getattr(facets, field.name) is None else _facet(facets, field.name)
                for field in fields(Facets)
            }
        )

    @property
    def facets(self) -> Facets:
        if self._target.facets != self._first:
            message = "the session's facets have changed: they are constant for its life"
            raise ContractViolation(message)
        return self._guarded


def _facet(facets: Facets, name: str) -> Any:
    return _Guard(getattr(facets, name), name)


def guard(session: HostSession) -> HostSession:
    """The same session, watched."""
    return cast("HostSession", _GuardedSession(session))
