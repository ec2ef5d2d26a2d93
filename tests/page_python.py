"""The program that runs the Python blocks of one page, one after the other, in one namespace.

It reads a request a line from standard input, and answers each with a line of JSON. At the end of
its input it ends as any interpreter does, with all that the blocks have left to that.
"""

from __future__ import annotations

import ast
import asyncio
import contextlib
import doctest
import inspect
import io
import json
import linecache
import os
import sys
import traceback
from typing import Any


class _Plans(ast.NodeTransformer):
    """Make a plan of each cluster."""

    def visit_Call(self, node: ast.Call) -> ast.AST:
        self.generic_visit(node)
        if isinstance(node.func, ast.Name) and node.func.id == "GCECluster":
            node.func = ast.copy_location(
                ast.Attribute(value=node.func, attr="plan", ctx=ast.Load()), node.func
            )
        return node


class Namespace:
    """What the blocks of a page have defined, and where the next one runs."""

    def __init__(self) -> None:
        import __main__

        # What is to be pickled by Dask has to be of a module; as in a notebook, that is __main__.
        self._names = __main__.__dict__
        self._loop: asyncio.AbstractEventLoop | None = None

    def run(self, mode: str, place: str, code: str) -> None:
        """Run a block."""
        if mode == "pycon":
            for example in doctest.DocTestParser().get_examples(code, place):
                self._execute(compile(example.source, place, "single", _FLAGS, True))
            return
        # For tracebacks, which else show this program's lines.
        linecache.cache[place] = (len(code), None, code.splitlines(keepends=True), place)
        tree = ast.parse(code, place)
        if mode == "plan":
            tree = ast.fix_missing_locations(_Plans().visit(tree))
        last = tree.body.pop() if tree.body and isinstance(tree.body[-1], ast.Expr) else None
        self._execute(compile(tree, place, "exec", _FLAGS, True))
        if last is not None:
            # As a notebook does, whose blocks these may be.
            shown = ast.Interactive([last])
            self._execute(compile(shown, place, "single", _FLAGS, True))

    def _execute(self, code: Any) -> None:
        if code.co_flags & inspect.CO_COROUTINE:
            if self._loop is None:
                self._loop = asyncio.new_event_loop()
            self._loop.run_until_complete(eval(code, self._names))  # noqa: S307  # our own pages
        else:
            exec(code, self._names)  # noqa: S102  # our own pages

    def close_unnamed(self) -> None:
        """Close the clusters to which no name leads any more."""
        if "distributed" not in sys.modules:
            return
        from distributed import Client, SpecCluster

        named: set[int] = set()
        for value in list(self._names.values()):
            named.add(id(value))
            if isinstance(value, Client):
                named.add(id(value.cluster))
        for cluster in list(SpecCluster._instances):
            if id(cluster) not in named and not getattr(cluster, "asynchronous", True):
                cluster.close()


_FLAGS = ast.PyCF_ALLOW_TOP_LEVEL_AWAIT


def main() -> None:
    """Answer requests until there are no more."""
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    # What programs print that are started here is no answer.
    os.dup2(2, 1)
    namespace = Namespace()
    for line in sys.stdin:
        request = json.loads(line)
        printed, error = io.StringIO(), None
        with contextlib.redirect_stdout(printed), contextlib.redirect_stderr(printed):
            try:
                namespace.run(request["mode"], request["place"], request["code"])
                namespace.close_unnamed()
            except BaseException:  # noqa: BLE001  # also SystemExit is only told
                error = traceback.format_exc()
        answers.write(json.dumps({"printed": printed.getvalue(), "error": error}) + "\n")
        answers.flush()


if __name__ == "__main__":
    main()
