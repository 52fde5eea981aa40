"""Both flavours of the Python client behind one async face, so that each test is written once.

The sync client's calls run on threads; what it returns of its own classes is wrapped again.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import virtd_client

# Plain methods in both flavours: they only prepare something.
_PLAIN = {"watch", "attach", "with_timeout", "progress"}
_END = object()


class Threaded:
    """A sync object with the face of its async counterpart."""

    def __init__(self, inner: Any) -> None:
        self._inner = inner

    def __getattr__(self, name: str) -> Any:
        value = getattr(self._inner, name)
        if not callable(value):
            return _wrapped(value)

        def plain(*args: Any, **kwargs: Any) -> Any:
            return _wrapped(value(*args, **kwargs))

        async def threaded(*args: Any, **kwargs: Any) -> Any:
            return _wrapped(await asyncio.to_thread(value, *args, **kwargs))

        return plain if name in _PLAIN else threaded

    async def __aenter__(self) -> Any:
        await asyncio.to_thread(self._inner.__enter__)
        return self

    async def __aexit__(self, *args: object) -> None:
        await asyncio.to_thread(self._inner.__exit__, *args)

    def __aiter__(self) -> Any:
        return self

    async def __anext__(self) -> Any:
        item = await asyncio.to_thread(next, self._inner, _END)
        if item is _END:
            raise StopAsyncIteration
        return item

    def __await__(self) -> Any:
        # Only an async operation is awaitable; a test that awaits one means its result.
        return self.result().__await__()


def _wrapped(value: Any) -> Any:
    if isinstance(value, tuple):
        return tuple(_wrapped(item) for item in value)
    if type(value).__module__.startswith("virtd_client._sync") or hasattr(value, "__next__"):
        return Threaded(value)
    return value


def connect(flavour: str, target: str, **options: Any) -> Any:
    """A client of a flavour, ``async`` or ``sync``."""
    if flavour == "async":
        return virtd_client.AsyncClient.connect(target, **options)
    return Threaded(virtd_client.Client.connect(target, **options))


async def take(iterator: AsyncIterator[Any], count: int, timeout_s: float = 20) -> list[Any]:
    """The next ``count`` items."""
    async with asyncio.timeout(timeout_s):
        return [await anext(iterator) for _ in range(count)]
