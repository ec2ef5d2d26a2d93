r"""The `filter` language of lists: text in, predicate out.

The language is the part of AIP-160 that Compute Engine documents for its lists
(https://google.aip.dev/160, and `filter` of any list method), and the older `name eq REGEX`:

- ``labels.team = x``, ``name != n``, ``labels.team:*`` (has the key), ``name:part`` (contains),
  ``id < 5``; values bare or quoted
- ``a AND b``, ``(a) (b)``, ``a OR b`` (which binds tighter than AND), ``NOT a``, ``-a``,
  parentheses
- ``operationGroupId eq ".*\bx\b.*"`` and ``ne``: regular expressions on the whole value
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from typing import Any

from dask_gce.emulator.errors import APIError

Resource = Mapping[str, Any]
Predicate = Callable[[Resource], bool]

#: How deep a filter may be nested: deeper than anybody writes, and far from Python's limit.
_DEEPEST = 50

_TOKEN = re.compile(
    r"""\s*(?:
        (?P<paren>[()])
      | (?P<operator><=|>=|!=|=|:|<|>)
      | (?P<quoted>"(?:[^"\\]|\\.)*"|'(?:[^'\\]|\\.)*')
      | (?P<word>[^\s()=!<>:"']+)
    )""",
    re.VERBOSE,
)


def _malformed(text: str) -> APIError:
    return APIError(
        400,
        "invalid",
        f"Invalid value for field 'filter': '{text}'. Invalid list filter expression.",
    )


class _Parser:
    """Recursive descent over a filter's tokens."""

    def __init__(self, text: str) -> None:
        self.text = text
        self.tokens = list(self._tokenize())
        self.position = 0
        self.depth = 0

    def _tokenize(self) -> Iterator[tuple[str, str]]:
        position = 0
        text = self.text.rstrip()
        while position < len(text):
            match = _TOKEN.match(text, position)
            if match is None or match.lastgroup is None:
                raise _malformed(self.text)
            yield match.lastgroup, match[match.lastgroup]
            position = match.end()

    def peek(self) -> tuple[str, str]:
        if self.position < len(self.tokens):
            return self.tokens[self.position]
        return "end", ""

    def take(self) -> tuple[str, str]:
        token = self.peek()
        self.position += 1
        return token

    def parse(self) -> Predicate:
        predicate = self.conjunction()
        if self.peek()[0] != "end":
            raise _malformed(self.text)
        return predicate

    def conjunction(self) -> Predicate:
        terms = [self.disjunction()]
        while self.peek() not in (("end", ""), ("paren", ")")):
            if self.peek() == ("word", "AND"):
                self.take()
            terms.append(self.disjunction())
        return terms[0] if len(terms) == 1 else lambda one: all(term(one) for term in terms)

    def disjunction(self) -> Predicate:
        terms = [self.term()]
        while self.peek() == ("word", "OR"):
            self.take()
            terms.append(self.term())
        return terms[0] if len(terms) == 1 else lambda one: any(term(one) for term in terms)

    def term(self) -> Predicate:
        self.depth += 1
        if self.depth > _DEEPEST:
            raise _malformed(self.text)
        try:
            return self.single()
        finally:
            self.depth -= 1

    def single(self) -> Predicate:
        kind, text = self.peek()
        if kind == "word" and text in ("NOT", "-"):
            self.take()
            negated = self.term()
            return lambda one: not negated(one)
        if kind == "word" and text.startswith("-"):
            self.tokens[self.position] = (kind, text[1:])
            negated = self.term()
            return lambda one: not negated(one)
        if (kind, text) == ("paren", "("):
            self.take()
            inner = self.conjunction()
            if self.take() != ("paren", ")"):
                raise _malformed(self.text)
            return inner
        if kind == "word":
            return self.comparison()
        raise _malformed(self.text)

    def comparison(self) -> Predicate:
        path = self.take()[1].split(".")
        kind, operator = self.take()
        if kind == "word" and operator in ("eq", "ne"):
            return self.regular_expression(path, wanted=operator == "eq")
        if kind != "operator":
            raise _malformed(self.text)
        value = self.value()
        if operator == ":":
            if value == "*":
                return lambda one: any(True for _ in _values(one, path))
            return lambda one: any(_has(found, value) for found in _values(one, path))
        if operator == "!=":
            return lambda one: all(_text(found) != value for found in _values(one, path))
        if operator == "=":
            return lambda one: any(_text(found) == value for found in _values(one, path))
        return lambda one: any(_ordered(found, operator, value) for found in _values(one, path))

    def regular_expression(self, path: list[str], *, wanted: bool) -> Predicate:
        try:
            pattern = re.compile(self.value())
        except (re.error, OverflowError, RecursionError):
            raise _malformed(self.text) from None
        return lambda one: (
            wanted
            == any(pattern.fullmatch(_text(found)) is not None for found in _values(one, path))
        )

    def value(self) -> str:
        kind, text = self.take()
        if kind == "quoted":
            return re.sub(r"\\([\"'\\])", r"\1", text[1:-1])
        if kind != "word":
            raise _malformed(self.text)
        # A bare value may hold what is an operator elsewhere: times and links do.
        while self.peek() == ("operator", ":"):
            text += self.take()[1]
            if self.peek()[0] == "word":
                text += self.take()[1]
        return text


def _values(resource: Any, path: list[str]) -> Iterator[Any]:
    if isinstance(resource, list):
        for item in resource:
            yield from _values(item, path)
    elif not path:
        yield resource
    elif isinstance(resource, dict) and path[0] in resource:
        yield from _values(resource[path[0]], path[1:])


def _text(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    return str(value)


def _has(found: Any, value: str) -> bool:
    if isinstance(found, str):
        return value in found
    if isinstance(found, Mapping):
        return value in found
    return _text(found) == value


def _ordered(found: Any, operator: str, value: str) -> bool:
    left: Any = _text(found)
    right: Any = value
    # What is no number on both sides is compared as text.
    with suppress(ValueError):
        left, right = float(left), float(right)
    if operator == "<":
        return bool(left < right)
    if operator == "<=":
        return bool(left <= right)
    if operator == ">":
        return bool(left > right)
    return bool(left >= right)


def parse_filter(text: str) -> Predicate:
    """Return a function that tells whether a resource passes a filter.

    Parameters
    ----------
    text : str
        The filter.

    Returns
    -------
    callable
        Takes a resource, returns a bool.

    Raises
    ------
    APIError
        The filter is malformed.

    Examples
    --------
    >>> parse_filter("labels.team = a AND status = RUNNING")(
    ...     {"labels": {"team": "a"}, "status": "RUNNING"}
    ... )
    True
    """
    return _Parser(text).parse()
