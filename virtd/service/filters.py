"""Filter expressions: a subset of AIP-160.

``expression = term { ("AND" | "OR") term }`` with the usual precedence, ``NOT``, ``-`` and parentheses;
``term = field operator value``.  Operators: ``=`` ``!=`` ``:`` (has; for text: contains) ``<`` ``<=``
``>`` ``>=``.  Values are words or ``"quoted"``; ``*`` in a value of ``=`` and ``!=`` matches any text.
Comparison ignores case for enum-like values only if written in lower case by the user: ``state=running``
equals ``RUNNING``.
"""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Callable, Collection
from typing import Any, Final

from virtd.errors import FILTER_INVALID, FieldViolation, InvalidArgumentError

Lookup = Callable[[str], str | None]
Predicate = Callable[[Lookup], bool]

MAX_LENGTH: Final = 2000
_MAX_DEPTH: Final = 20
_TOKEN: Final = re.compile(
    r"\s*(?:(?P<open>\()|(?P<close>\))|(?P<op>!=|<=|>=|=|:|<|>)|(?P<quoted>\"(?:[^\"\\]|\\.)*\")"
    r"|(?P<minus>-(?=[A-Za-z(]))|(?P<word>[^\s()=!<>:\"]+))"
)


def compile_filter(text: str, fields: Collection[str]) -> Predicate:
    """Parse a filter.

    :param fields: the fields that may be named; ``labels.*`` allows any field with that prefix.
    :returns: a predicate on a function that gives the text of a field, or None if it has none.
    :raises InvalidArgumentError: FILTER_INVALID, with the position.
    """
    if not text.strip():
        return lambda _lookup: True
    if len(text) > MAX_LENGTH:
        raise _bad(f"longer than {MAX_LENGTH} characters", 0)
    return _Parser(text, fields).parse()


class _Parser:
    def __init__(self, text: str, fields: Collection[str]) -> None:
        self._fields = fields
        self._tokens: list[tuple[str, str, int]] = []
        position = 0
        while text[position:].strip():
            match = _TOKEN.match(text, position)
            if match is None or match.lastgroup is None:
                raise _bad(f"cannot read {text[position : position + 20]!r}", position)
            self._tokens.append((match.lastgroup, match.group(match.lastgroup), match.start(match.lastgroup)))
            position = match.end()
        self._tokens.append(("end", "", len(text)))
        self._at = 0
        self._depth = 0

    def parse(self) -> Predicate:
        predicate = self._or()
        kind, value, position = self._tokens[self._at]
        if kind != "end":
            raise _bad(f"unexpected {value!r}", position)
        return predicate

    def _or(self) -> Predicate:
        terms = [self._and()]
        while self._keyword("OR"):
            terms.append(self._and())
        return terms[0] if len(terms) == 1 else lambda lookup: any(term(lookup) for term in terms)

    def _and(self) -> Predicate:
        terms = [self._not()]
        while self._keyword("AND") or self._tokens[self._at][0] in ("word", "open", "minus"):
            if self._tokens[self._at][1] == "OR":
                break
            terms.append(self._not())
        return terms[0] if len(terms) == 1 else lambda lookup: all(term(lookup) for term in terms)

    def _not(self) -> Predicate:
        position = self._tokens[self._at][2]
        if self._keyword("NOT") or self._take("minus"):
            self._deeper(position)
            inner = self._not()
            self._depth -= 1
            return lambda lookup: not inner(lookup)
        return self._term()

    def _term(self) -> Predicate:
        kind, value, position = self._tokens[self._at]
        if kind == "open":
            self._deeper(position)
            self._at += 1
            inner = self._or()
            if not self._take("close"):
                raise _bad("a ')' is missing", self._tokens[self._at][2])
            self._depth -= 1
            return inner
        if kind != "word":
            raise _bad("a field is expected", position)
        self._check_field(value, position)
        self._at += 1
        operator_kind, operator, operator_position = self._tokens[self._at]
        if operator_kind != "op":
            raise _bad(f"an operator is expected after {value!r}", operator_position)
        self._at += 1
        value_kind, wanted, value_position = self._tokens[self._at]
        if value_kind not in ("word", "quoted"):
            raise _bad(f"a value is expected after {operator!r}", value_position)
        self._at += 1
        if value_kind == "quoted":
            wanted = re.sub(r"\\(.)", r"\1", wanted[1:-1])
        return _comparison(value, operator, wanted)

    def _deeper(self, position: int) -> None:
        self._depth += 1
        if self._depth > _MAX_DEPTH:
            raise _bad("nested too deeply", position)

    def _check_field(self, field: str, position: int) -> None:
        if field in self._fields:
            return
        if any(known.endswith(".*") and field.startswith(known[:-1]) for known in self._fields):
            return
        raise _bad(f"unknown field {field!r}; known are {', '.join(sorted(self._fields))}", position)

    def _keyword(self, word: str) -> bool:
        kind, value, _ = self._tokens[self._at]
        if kind == "word" and value == word:
            self._at += 1
            return True
        return False

    def _take(self, wanted: str) -> bool:
        if self._tokens[self._at][0] == wanted:
            self._at += 1
            return True
        return False


def _comparison(field: str, operator: str, wanted: str) -> Predicate:
    if operator in ("=", "!="):
        negate = operator == "!="
        if "*" in wanted:
            pattern = re.compile(fnmatch.translate(wanted.replace("[", "[[]").replace("?", "[?]")))
            return lambda lookup: (pattern.match(lookup(field) or "") is not None) != negate
        return lambda lookup: _equal(lookup(field), wanted) != negate
    if operator == ":":
        if wanted == "*":
            return lambda lookup: bool(lookup(field))
        return lambda lookup: wanted.lower() in (lookup(field) or "").lower()
    compare: Callable[[Any, Any], bool] = {
        "<": lambda a, b: a < b,
        "<=": lambda a, b: a <= b,
        ">": lambda a, b: a > b,
        ">=": lambda a, b: a >= b,
    }[operator]

    def ordered(lookup: Lookup) -> bool:
        value = lookup(field)
        if value is None:
            return False
        try:
            return bool(compare(float(value), float(wanted)))
        except ValueError:
            return bool(compare(value, wanted))

    return ordered


def _equal(value: str | None, wanted: str) -> bool:
    return value == wanted or (value is not None and wanted.islower() and value == wanted.upper())


def _bad(what: str, position: int) -> InvalidArgumentError:
    return InvalidArgumentError(
        FILTER_INVALID,
        f"filter: {what} (at character {position + 1})",
        metadata={"position": str(position + 1)},
        violations=(FieldViolation("filter", what),),
    )
