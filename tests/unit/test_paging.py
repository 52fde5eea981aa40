"""Pages: nothing is shown twice or hidden while items come and go."""

from __future__ import annotations

import base64
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from virtd.errors import FIELD_INVALID, PAGE_TOKEN_INVALID, InvalidArgumentError
from virtd.service.call import PAGE_BYTES, PAGE_DEFAULT, PAGE_MAX, Page, page_of


def same(item: str) -> str:
    return item


def walk(size: int, items: Callable[[], list[str]], *, descending: bool = False) -> list[str]:
    found: list[str] = []
    token = ""
    while True:
        page = page_of(items(), size, token, same, descending=descending)
        found += page.items
        token = page.next_page_token
        if not token:
            return found


@given(st.sets(st.text(max_size=8), max_size=40), st.integers(1, 12), st.booleans())
def test_pages_together_are_the_list(names: set[str], size: int, descending: bool) -> None:
    items = sorted(names, reverse=descending)
    assert walk(size, lambda: items, descending=descending) == items


@given(
    st.sets(st.integers(0, 99), min_size=1, max_size=40),
    st.lists(st.tuples(st.booleans(), st.integers(0, 99)), max_size=30),
    st.integers(1, 5),
    st.booleans(),
)
def test_what_stays_is_shown_once(
    start: set[int], changes: list[tuple[bool, int]], size: int, descending: bool
) -> None:
    now = {f"{number:02}" for number in start}
    always = set(now)
    plan = iter(changes)

    def items() -> list[str]:
        shown = sorted(now, reverse=descending)
        for add, number in [change for change in (next(plan, None), next(plan, None)) if change is not None]:
            (now.add if add else now.discard)(f"{number:02}")
            if not add:
                always.discard(f"{number:02}")
        return shown

    found = walk(size, items, descending=descending)
    assert len(found) == len(set(found)), "nothing twice"
    assert always <= set(found), "what was there all the time is shown"
    assert found == sorted(found, reverse=descending)


def test_the_last_page_has_no_token() -> None:
    assert page_of(["a", "b"], 2, "", same) == Page(("a", "b"), "")
    assert page_of([], 2, "", same) == Page((), "")
    assert page_of(["a", "b", "c"], 2, "", same).next_page_token


def test_sizes() -> None:
    items = [f"{number:05}" for number in range(3000)]
    assert len(page_of(items, 0, "", same).items) == PAGE_DEFAULT
    assert len(page_of(items, 10**9, "", same).items) == PAGE_MAX
    with pytest.raises(InvalidArgumentError) as caught:
        page_of(items, -1, "", same)
    assert caught.value.reason is FIELD_INVALID
    assert caught.value.record.violations[0].field == "page_size"


def test_a_page_is_cut_before_it_is_too_large_to_receive() -> None:
    items = [f"{number:02}" for number in range(10)]
    assert len(page_of(items, 10, "", same, lambda _item: PAGE_BYTES // 3).items) == 3
    assert len(page_of(items, 10, "", same, lambda _item: PAGE_BYTES * 2).items) == 1


@pytest.mark.parametrize(
    "token", ["x", "%%%", "ü", base64.b64encode(b"\xff\xfe").decode(), base64.b64encode(b"q1:a").decode()]
)
def test_strangers_tokens(token: str) -> None:
    with pytest.raises(InvalidArgumentError) as caught:
        page_of(["a"], 1, token, same)
    assert caught.value.reason is PAGE_TOKEN_INVALID
