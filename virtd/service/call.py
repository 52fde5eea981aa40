"""What every use case is told of the call it serves, and pages."""

from __future__ import annotations

import base64
import binascii
import operator
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final, Generic, TypeVar

from virtd.errors import PAGE_TOKEN_INVALID, InvalidArgumentError, invalid_field

T = TypeVar("T")

PAGE_DEFAULT: Final = 100
PAGE_MAX: Final = 1000


@dataclass(frozen=True, slots=True)
class Call:
    """One RPC.

    ``caller`` is the authenticated identity, ``rpc_id`` is for logs, ``fingerprint`` a hash of the
    request without its ``request_id``.
    """

    caller: str
    method: str
    rpc_id: str
    request_id: str = ""
    fingerprint: str = ""
    validate_only: bool = False
    reject_conflict: bool = False


@dataclass(frozen=True, slots=True)
class Page(Generic[T]):
    """One page of a list; ``next_page_token`` is empty on the last."""

    items: tuple[T, ...]
    next_page_token: str = ""


PAGE_BYTES: Final = 3 * 2**20
"""Clients in other languages take 4 MiB in one message unless told otherwise."""


def page_of(
    items: Sequence[T],
    page_size: int,
    page_token: str,
    key: Callable[[T], str],
    weight: Callable[[T], int] | None = None,
    *,
    descending: bool = False,
) -> Page[T]:
    """Cut a page out of a list.

    The token names the last item given out, not a number, so that items that come and go between
    pages neither hide others nor show them twice.

    :param key: unique; ``items`` are in its order.
    :param weight: an item's size in bytes; a page is cut short before it becomes too large to receive.
    :param descending: the items are in the reverse of the keys' order.
    :raises InvalidArgumentError: FIELD_INVALID for the size, PAGE_TOKEN_INVALID for the token.
    """
    size = check_page_size(page_size)
    start = 0
    if page_token:
        last = _decode(page_token)
        # The item itself may be gone: it goes on with the first that comes after it.
        comes_after = operator.lt if descending else operator.gt
        start = next((index for index, item in enumerate(items) if comes_after(key(item), last)), len(items))
    chosen = _within(items[start : start + size], weight)
    more = start + len(chosen) < len(items)
    return Page(chosen, _encode(key(chosen[-1])) if more and chosen else "")


def _within(items: Sequence[T], weight: Callable[[T], int] | None) -> tuple[T, ...]:
    """As many of the items as fit into one message; always at least one, so that paging gets on."""
    if weight is None:
        return tuple(items)
    total = 0
    for index, item in enumerate(items):
        total += weight(item)
        if index and total > PAGE_BYTES:
            return tuple(items[:index])
    return tuple(items)


def check_page_size(page_size: int) -> int:
    """The page size to use.

    :raises InvalidArgumentError: FIELD_INVALID, it is negative.
    """
    if page_size < 0:
        raise invalid_field("page_size", "must not be negative")
    return min(page_size or PAGE_DEFAULT, PAGE_MAX)


def _encode(key: str) -> str:
    return base64.urlsafe_b64encode(f"p1:{key}".encode()).decode()


def _decode(token: str) -> str:
    try:
        text = base64.urlsafe_b64decode(token.encode()).decode()
    except (binascii.Error, ValueError):
        text = ""
    if not text.startswith("p1:"):
        raise InvalidArgumentError(PAGE_TOKEN_INVALID, "page_token: not a token of this list")
    return text.removeprefix("p1:")
