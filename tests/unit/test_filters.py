"""Filters: grammar, meaning, positions of errors, limits."""

from __future__ import annotations

from collections.abc import Mapping

import pytest
from hypothesis import given
from hypothesis import strategies as st

from virtd.errors import FILTER_INVALID, InvalidArgumentError
from virtd.service.filters import MAX_LENGTH, compile_filter

FIELDS = ("name", "state", "size", "labels.*")
WEB: Mapping[str, str] = {"name": "web-1", "state": "RUNNING", "size": "1024", "labels.env": "prod"}


def matches(text: str, record: Mapping[str, str] = WEB) -> bool:
    return compile_filter(text, FIELDS)(record.get)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", True),
        ("   ", True),
        ("state=RUNNING", True),
        ("state=running", True),
        ("state=Running", False),
        ("state!=RUNNING", False),
        ("state = STOPPED", False),
        ("name=web-1", True),
        ("name=web-*", True),
        ("name=*-1", True),
        ("name=*x*", False),
        ("name!=web-*", False),
        ("name=web-?", False),
        ("name=[w]eb-1", False),
        ("name:EB-", True),
        ("name:db", False),
        ('name="web-1"', True),
        ('name="a\\"b"', False),
        ("labels.env:*", True),
        ("labels.zone:*", False),
        ("labels.zone=x", False),
        ("labels.zone!=x", True),
        ("size>1000", True),
        ("size>=1024", True),
        ("size<1024", False),
        ("size<=999", False),
        ("size<9", False),
        ("name<x", True),
        ("labels.zone<5", False),
        ("state=RUNNING AND size>1", True),
        ("state=RUNNING size>9999", False),
        ("state=STOPPED OR name:web", True),
        ("state=STOPPED OR state=PAUSED", False),
        ("state=STOPPED AND name:x OR name:web", True),
        ("state=STOPPED AND (name:x OR name:web)", False),
        ("NOT state=STOPPED", True),
        ("-state=RUNNING", False),
        ("NOT NOT state=RUNNING", True),
        ("NOT (state=RUNNING AND name:web)", False),
        ("state=RUNNING OR state=STOPPED AND name:nothing", True),
    ],
)
def test_meaning(text: str, expected: bool) -> None:
    assert matches(text) is expected


@pytest.mark.parametrize(
    ("text", "position", "what"),
    [
        ("colour=red", 1, "unknown field 'colour'; known are labels.*, name, size, state"),
        ("state", 6, "an operator is expected after 'state'"),
        ("state=", 7, "a value is expected after '='"),
        ("state=RUNNING AND", 18, "a field is expected"),
        ("(state=RUNNING", 15, "a ')' is missing"),
        ("state=RUNNING)", 14, "unexpected ')'"),
        ("=x", 1, "a field is expected"),
        ('name="open', 6, "cannot read"),
        ("state==RUNNING", 7, "a value is expected"),
        ("OR state=RUNNING", 1, "unknown field 'OR'"),
        ("state=RUNNING OR OR name:x", 18, "unknown field 'OR'"),
        ("(" * 30 + "state=RUNNING" + ")" * 30, 21, "nested too deeply"),
        ("NOT " * 400 + "state=RUNNING", 81, "nested too deeply"),
        ("x" * (MAX_LENGTH + 1), 1, "longer than"),
    ],
)
def test_what_is_wrong_is_said_with_its_place(text: str, position: int, what: str) -> None:
    with pytest.raises(InvalidArgumentError) as caught:
        compile_filter(text, FIELDS)
    error = caught.value
    assert error.reason is FILTER_INVALID
    assert error.record.violations[0].field == "filter"
    assert what in error.message
    assert error.record.metadata["position"] == str(position)


@given(
    st.text(max_size=60)
    | st.lists(st.sampled_from([*FIELDS, "(", ")", "=", ":", "AND", "OR", "NOT", "-", '"', "*", "x"]), max_size=15).map(
        " ".join
    )
)
def test_any_text_is_understood_or_refused(text: str) -> None:
    try:
        predicate = compile_filter(text, FIELDS)
    except InvalidArgumentError as error:
        assert 1 <= int(error.record.metadata["position"]) <= len(text) + 1
    else:
        assert isinstance(predicate(WEB.get), bool)
        assert isinstance(predicate({}.get), bool)


@given(st.text(alphabet=st.characters(blacklist_categories=["Cs"]), min_size=1, max_size=30))
def test_any_value_can_be_quoted(value: str) -> None:
    quoted = '"' + value.replace("\\", "\\\\").replace('"', '\\"') + '"'
    if "*" in value:
        return
    assert matches(f"name={quoted}", {"name": value})
    assert not matches(f"name!={quoted}", {"name": value})


def test_many_stars_are_quick() -> None:
    assert not matches("name=" + "*a" * 50 + "b", {"name": "a" * 2000})
