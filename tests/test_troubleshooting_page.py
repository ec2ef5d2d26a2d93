"""Troubleshooting quotes what the package says, and has an entry for each kind of error."""

from __future__ import annotations

import ast
import functools
import inspect
import re
import textwrap
from collections.abc import Iterator
from pathlib import Path

import pytest

from dask_gce import errors, failures, member

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "troubleshooting.md").read_text("utf-8")

#: What stands for a value in a message.
VALUE = "\0"


def plain(text: str) -> str:
    """Return a text with its white space all the same."""
    return re.sub(r"\s+", " ", text).strip()


def quotes() -> list[str]:
    """Return what the page quotes: its block quotes, with ... for what differs each time."""
    found = re.findall(r"(?:^> .*\n)+", PAGE, re.MULTILINE)
    return [plain(re.sub(r"^> ", "", each, flags=re.MULTILINE)) for each in found]


def text_of(node: ast.AST) -> str:
    """Return the text of a string in source, with VALUE for what is put in."""
    if isinstance(node, ast.Constant):
        return str(node.value)
    assert isinstance(node, ast.JoinedStr)
    return "".join(text_of(v) if isinstance(v, ast.Constant) else VALUE for v in node.values)


def strings(tree: ast.AST) -> Iterator[str]:
    """Return all texts of some source but docstrings."""
    inner = {
        id(v) for node in ast.walk(tree) if isinstance(node, ast.JoinedStr) for v in node.values
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.Expr):
            inner.add(id(node.value))
        if id(node) in inner:
            continue
        if isinstance(node, ast.JoinedStr) or (
            isinstance(node, ast.Constant) and isinstance(node.value, str)
        ):
            yield plain(text_of(node))


@functools.cache
def messages() -> list[str]:
    """Return everything that the package may say: on this computer, and on machines."""
    said = []
    for path in (ROOT / "dask_gce").rglob("*.py"):
        if "emulator" not in path.parts:
            said += strings(ast.parse(path.read_text("utf-8")))
    for path in (ROOT / "dask_gce" / "guest").glob("*.sh"):
        for text in re.findall(r'"((?:[^"\\]|\\.)*)"', path.read_text("utf-8")):
            said.append(plain(re.sub(r"\$\{[^}]*\}|\$\w+", VALUE, text)))
    return said


def pieces_of(quote: str) -> list[str]:
    """Return what of a quote is the same each time."""
    return [piece.strip() for piece in quote.split("...") if piece.strip()]


def matches(quote: str, message: str) -> bool:
    """Tell whether a message says what is quoted."""
    return bool(re.search(".*".join(map(re.escape, pieces_of(quote))), message))


@pytest.mark.parametrize("quote", quotes())
def test_what_is_quoted_is_said(quote):
    assert sum(map(len, pieces_of(quote))) >= 15, "too little to be known by"
    assert any(matches(quote, message) for message in messages())


def test_there_are_quotes():
    assert len(quotes()) >= 40


@pytest.mark.parametrize("name", errors.__all__)
def test_every_error_is_named(name):
    assert f"`{name}`" in PAGE


def steps(function: object) -> list[str]:
    """Return the next steps that a function chooses from."""
    tree = ast.parse(textwrap.dedent(inspect.getsource(function)))
    said = [
        text for node in ast.walk(tree) if isinstance(node, ast.Return) for text in strings(node)
    ]
    return [step for step in said if len(step.replace(VALUE, "")) >= 30]


STEPS = [*steps(failures._next_step), *steps(member.Member._next_step)]


@pytest.mark.parametrize("step", STEPS)
def test_every_next_step_of_the_commonest_errors_has_an_entry(step):
    assert any(matches(quote, step) for quote in quotes())


def test_a_quote_that_nobody_says_is_found_out():
    assert not any(matches("The scheduler of cluster ... is on fire", each) for each in messages())
    assert matches(
        "Cluster ... is closed; make a new one", plain("Cluster \0 is closed; make a new one.")
    )


@pytest.mark.parametrize("entry", re.split(r"^### ", PAGE, flags=re.MULTILINE)[1:])
def test_every_entry_says_what_to_do(entry):
    title, _, rest = entry.partition("\n")
    assert title
    assert re.sub(r"^(> .*|\s*)$", "", rest, flags=re.MULTILINE).strip()
