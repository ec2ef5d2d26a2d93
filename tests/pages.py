"""The pages of the documentation, as sequences of blocks that can be run.

Owns: what a page's blocks are, and what the markers between them say. `page_session` runs them,
`test_pages` runs all of them.

A page is run from its first block to its last, in one session: its Python blocks share one process
and one namespace, its bash blocks share a folder, a home and exported variables. Both find a local
Compute Engine of the page's own (``DASK_GCE__API_ENDPOINT``), where every project, zone, machine
type and container image exists, so that ``GCECluster(...)`` and ``dask gce ...`` work as they are
printed. What is in ``/tmp/`` is the session's own, and so are the home and the working folder,
which is empty. Blocks of

- ``python`` are executed, with ``await`` at the top level where they want it; the value of the last
  expression is printed as in a notebook. A cluster that no variable refers to any more is closed
  after the block; all others when the page ends.
- ``pycon`` are executed, and show what they print.
- ``bash`` are run with ``-euo pipefail``. ``PORT``, ``TLS_PORT`` and ``PROJECT`` as whole words are
  the local Compute Engine's, and ``WORD`` is what a block that readers do not see has exported as
  ``PAGE_WORD``. ``gcloud compute`` reaches the local Compute Engine too.
- ``yaml`` are loaded as Dask's configuration and checked against the settings, if they begin with
  ``gce:``.
- ``text``, or nothing, are compared with what the block before them printed: their lines are there,
  in this order. ``...`` stands for anything, also for lines. White space is all the same, and so
  are dates, times of day, the random ends of names, addresses and ports.
- ``json``, ``hcl`` and all others have to have a marker.

Markers are HTML comments before a block, each a comment of its own. Readers do not see them::

    <!-- page: fails: CostLimitExceeded -->

======================= =========================================================================
``machines: KIND``      The machines of the page's local Compute Engine, before its first block;
                        ``light`` (real scheduler, quick workers) unless it says another kind
``tls``                 The page's local Compute Engine also answers over TLS, on TLS_PORT
``python`` and lines    A block that readers do not see: the lines up to ``-->`` are run
``bash`` and lines      The same
``new session``         What ran in Python ends, with its clusters; the next Python block is in a
                        new process, with the variables that bash has exported
``fails: TEXT``         The block ends with an error that says TEXT
``plan``                Python: each ``GCECluster(...)`` is run as ``GCECluster.plan(...)``, for
                        what takes hardware or images that are not here. Nothing is made
``keeps running: TEXT`` bash: it runs on beside the others until the page ends; they begin when
                        it has said TEXT
``answers: TEXT``       bash: it runs at a terminal, where somebody types this and Enter
``in checkout``         bash: it runs in a copy of the repository
``output of: COMMAND``  text: what this bash command prints
``value of: CODE``      text: what ``print(CODE)`` prints in the page's Python
``other numbers``       text, pycon: each number and each duration may be another one
``any order``           text: its lines may be in another order
``excerpt of: FILE``    Not run: its lines are in this file of the repository, in this order
``run by: FILE``        Not run here: this test or script names the page, or has its commands
``needs: WHAT``         Not run: it takes what is not here, one of `NEEDS`. Python is compiled,
                        bash is parsed, and gcloud's own parser reads gcloud's commands. What
                        needs ``real machines`` is run where they are
======================= =========================================================================
"""

from __future__ import annotations

import re
import shutil
import textwrap
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import machines

ROOT = Path(__file__).parents[1]
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md"), *(ROOT / "images").glob("*.md")])

#: What may be here: namespace machines.
REAL_MACHINES = "real machines"

#: What cannot be here, or may be missing.
NEEDS = (
    "a Google account",
    "a container engine",
    "a package index",
    "another shell",
    "hours",
    REAL_MACHINES,
)

#: Programs that pages show, and that a computer may not have. What takes them is left out there.
PROGRAMS = ("gcloud", "jq")

#: The markers that are followed by a value, and those that are not.
_WITH_VALUE = (
    "answers",
    "machines",
    "fails",
    "keeps running",
    "output of",
    "value of",
    "excerpt of",
    "run by",
    "needs",
)
_ALONE = ("new session", "in checkout", "plan", "tls", "other numbers", "any order")

#: Of which a page has at most one, and before its first block.
_OF_PAGE = ("machines", "tls")

#: With one of these a block is not run.
NOT_RUN = ("excerpt of", "run by", "needs")

#: What Sphinx reads, and nobody runs.
_DIRECTIVE = re.compile(r"^\{.*\}")

_FENCE = re.compile(r"^(?P<indent> *)(?P<fence>`{3,}|~{3,})(?P<language>[^`]*)$")
_MARKER = re.compile(r"^ *<!-- page: (?P<text>.*?)(?P<end>-->)?$")

LANGUAGES = ("python", "pycon", "bash", "yaml", "text", "json", "hcl")


class PageError(Exception):
    """A page that cannot be read: a marker that is none, or is in the wrong place."""


@dataclass(frozen=True)
class Block:
    """A block of a page.

    Attributes
    ----------
    place : str
        The page and the line where its text begins.
    language : str
        One of `LANGUAGES`.
    text : str
        What is in it.
    markers : dict
        The markers before it, with their values; those without a value have "".
    hidden : bool
        Whether readers do not see it.
    """

    place: str
    language: str
    text: str
    markers: dict[str, str] = field(default_factory=dict)
    hidden: bool = False

    @property
    def reason(self) -> str | None:
        """Why it is not run here; None if it is."""
        found = [f"{key}: {self.markers[key]}" for key in NOT_RUN if key in self.markers]
        if found == [f"needs: {REAL_MACHINES}"] and machines.find_obstacle() is None:
            return None
        if not found and self.language == "bash":
            found = [f"needs: {one}" for one in PROGRAMS if _is_missing(one, self.text)]
        return found[0] if found else None


def _is_missing(program: str, text: str) -> bool:
    used = re.search(rf"(^|[|;(&])\s*{program}\s", text, re.MULTILINE)
    return used is not None and shutil.which(program) is None


@dataclass(frozen=True)
class Page:
    """A page and what it says of itself."""

    path: Path
    blocks: list[Block]
    machines: str = "light"
    tls: bool = False

    @property
    def name(self) -> str:
        """Its path in the repository."""
        return name_of(self.path)


def name_of(path: Path) -> str:
    """Return the path in the repository, or the name of a page from elsewhere."""
    return str(path.relative_to(ROOT)) if path.is_relative_to(ROOT) else path.name


def read_page(path: Path) -> Page:
    """Read a page.

    Raises
    ------
    PageError
        A marker is unknown, stands before nothing, or contradicts the block behind it.
    """
    of_page: dict[str, str] = {}
    blocks: list[Block] = []
    pending: dict[str, str] = {}
    for number, kind, text, markers in _pieces(path):
        place = f"{name_of(path)}:{number}"
        if kind == "marker":
            key, value = _understand(place, text)
            if key in _OF_PAGE:
                if blocks or key in of_page:
                    raise PageError(f"{place}: '{key}' belongs before the page's first block, once")
                of_page[key] = value
            elif key in pending:
                raise PageError(f"{place}: '{key}' twice before one block")
            else:
                pending[key] = value
            continue
        hidden = kind == "hidden"
        block = Block(place, markers, text, pending, hidden)
        _check(block)
        blocks.append(block)
        pending = {}
    if pending:
        raise PageError(f"{name_of(path)}: no block behind the marker {pending}")
    return Page(path, blocks, of_page.get("machines", "light"), "tls" in of_page)


def _pieces(path: Path) -> Iterator[tuple[int, str, str, str]]:
    """Yield what is in a page: line, kind (marker, hidden, block), text, language."""
    lines = path.read_text(encoding="utf-8").split("\n")
    at = 0
    while at < len(lines):
        line = lines[at]
        start = at
        at += 1
        if fence := _FENCE.match(line):
            while at < len(lines) and lines[at].strip() != fence["fence"]:
                at += 1
            if at == len(lines):
                raise PageError(f"{name_of(path)}:{start + 1}: a block without an end")
            text = textwrap.dedent("\n".join(lines[start + 1 : at])) + "\n"
            at += 1
            language = fence["language"].strip() or "text"
            if not _DIRECTIVE.match(language):
                yield start + 2, "block", text, language
        elif marker := _MARKER.match(line):
            said = marker["text"].strip()
            if marker["end"]:
                yield start + 1, "marker", said, ""
                continue
            while at < len(lines) and not lines[at].rstrip().endswith("-->"):
                at += 1
            if at == len(lines):
                raise PageError(f"{name_of(path)}:{start + 1}: a comment without an end")
            if lines[at].strip() != "-->" or said not in ("python", "bash"):
                raise PageError(
                    f"{name_of(path)}:{start + 1}: only 'python' and 'bash' have lines,"
                    " which end with a line of '-->'"
                )
            code = textwrap.dedent("\n".join(lines[start + 1 : at])) + "\n"
            yield start + 2, "hidden", code, said
            at += 1
        elif "<!-- page" in line:
            raise PageError(f"{name_of(path)}:{start + 1}: a marker has a line of its own: {line}")


def _understand(place: str, text: str) -> tuple[str, str]:
    key, colon, value = text.partition(":")
    key, value = key.strip(), value.strip()
    if (key in _WITH_VALUE and value) or (key in _ALONE and not colon):
        return key, value
    raise PageError(f"{place}: no marker is written '{text}'; see tests/pages.py")


def _check(block: Block) -> None:
    """Raise if a block's markers are not for it."""
    languages = {
        "keeps running": ("bash",),
        "answers": ("bash",),
        "in checkout": ("bash",),
        "plan": ("python",),
        "output of": ("text",),
        "value of": ("text",),
        "other numbers": ("text", "pycon"),
        "any order": ("text",),
        "fails": ("python", "bash"),
    }
    for key in block.markers:
        if block.language not in languages.get(key, (block.language,)):
            raise PageError(f"{block.place}: '{key}' is not for a block of {block.language}")
    if block.language not in LANGUAGES:
        raise PageError(f"{block.place}: nobody knows how to run '{block.language}'")
    if block.language in ("json", "hcl") and block.reason is None:
        raise PageError(f"{block.place}: a block of {block.language} needs a marker that says why")
    if block.markers.get("needs", NEEDS[0]) not in NEEDS:
        raise PageError(f"{block.place}: what it needs is none of {', '.join(NEEDS)}")
    if sum(key in block.markers for key in NOT_RUN) > 1:
        raise PageError(f"{block.place}: one reason is enough for not being run")


#: What differs from one run to the next.
_VARYING = (
    (re.compile(r"\d{4}-\d\d-\d\d[ T]\d\d:\d\d:\d\dZ?"), "<time>"),
    (re.compile(r"\d{4}-\d\d-\d\d"), "<date>"),
    (re.compile(r"\b\d\d:\d\d(:\d\d)?\b"), "<time>"),
    (re.compile(r"\b\d{1,3}\.\d{1,3}\.\d{1,3}\.\d{1,3}\b"), "<address>"),
    (re.compile(r"(?<=>|\w):\d{4,5}\b"), ":<port>"),
    (re.compile(r"-(?=[0-9a-f]*\d|[a-f]{4})[0-9a-f]{4,8}\b"), "-<random>"),
    (re.compile(r"\b0x[0-9a-f]+\b"), "<id>"),
)
_DURATION = re.compile(r"\b\d+(\.\d+)? ?(d|h|min|m|s)(?![a-z])( ?\d+ ?(h|min|m|s)(?![a-z]))*")
_HOURS = re.compile(r"\bmachine (hours?|minutes?)\b")
_NUMBER = re.compile(r"\d+(\.\d+)?")


def find_difference(
    shown: str, printed: str, *, other_numbers: bool = False, any_order: bool = False
) -> str | None:
    """Return the first line of a text that is not in what was printed; None if all are there.

    Parameters
    ----------
    shown : str
        The text of a page.
    printed : str
        What there is.
    other_numbers : bool
        Whether each number may be another one.
    any_order : bool
        Whether the lines may be in another order.

    Examples
    --------
    >>> find_difference("a  1\\n...\\nc", "a 1\\nb\\nd")
    'c'
    >>> find_difference("a ... at 03:20:54", "a and b at 12:00:00") is None
    True
    """

    def plain(text: str) -> str:
        for pattern, replacement in _VARYING:
            text = pattern.sub(replacement, text)
        if other_numbers:
            text = _HOURS.sub("machine <unit>", _DURATION.sub("<duration>", text))
            text = _NUMBER.sub("<number>", text)
        return " ".join(text.split())

    # Lines may be broken elsewhere on a page than where they were printed: what must be there is
    # a paragraph, and a line where those that are printed are as short.
    lines = [plain(line) for line in printed.splitlines()]
    at = 0
    for line in filter(None, map(plain, shown.splitlines())):
        if line == "...":
            continue
        pattern = re.compile(".*".join(map(re.escape, line.split("..."))))
        if any_order:
            at = 0
        while at < len(lines) and not pattern.fullmatch(lines[at]):
            at += 1
        if at == len(lines):
            break
        if any_order:
            del lines[at]
        at += 1
    else:
        return None
    whole = ".*".join(map(re.escape, plain(shown).split("...")))
    if re.search(f"(?:^|\\s){whole}(?:\\s|$)", plain(printed)):
        return None
    return line
