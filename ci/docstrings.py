"""Validate the docstring of everything public in the package, by numpydoc's rules.

numpydoc's own hook reads source text, in which a dataclass has no parameters; this imports the
modules instead. Objects are taken from ``__all__`` where a module has one.
"""

from __future__ import annotations

import functools
import importlib
import inspect
import pkgutil
import re
import sys
from collections.abc import Iterator
from types import ModuleType

from numpydoc.validate import validate

import dask_gce

# Good habits where they help, not duties of every object.
OPTIONAL = {
    "ES01",  # extended summary
    "EX01",  # examples
    "SA01",  # see also
    "GL01",  # text starts on the line of the opening quotes
    "GL02",
    "GL03",
    "RT02",  # the name of a single returned value
    "YD01",
}
# One sentence may be all there is to say: "Return the region of a zone." needs no section that
# repeats it. Whoever opens sections owes all of them.
NOT_FOR_ONE_LINERS = {"PR01", "RT01"}


def modules() -> Iterator[ModuleType]:
    """Yield the package and every public module in it."""
    yield dask_gce
    for found in pkgutil.walk_packages(dask_gce.__path__, "dask_gce."):
        if not found.name.rpartition(".")[2].startswith("_"):
            yield importlib.import_module(found.name)


def public_objects(module: ModuleType) -> Iterator[tuple[str, object]]:
    """Yield the public classes, functions and methods that a module defines, by full name."""
    names = getattr(module, "__all__", [name for name in vars(module) if name[0] != "_"])
    for name in names:
        thing = vars(module).get(name)
        if getattr(thing, "__module__", None) != module.__name__:
            continue
        if inspect.isfunction(thing) or inspect.isclass(thing):
            yield f"{module.__name__}.{name}", thing
        if inspect.isclass(thing):
            for member, value in vars(thing).items():
                if member[0] != "_" and is_documented_here(thing, member, value):
                    yield f"{module.__name__}.{name}.{member}", value


def is_documented_here(owner: type, name: str, value: object) -> bool:
    """Tell methods and properties from data, and from overrides that inherit their docstring."""
    kinds = (property, functools.cached_property, classmethod, staticmethod)
    if not (inspect.isfunction(value) or isinstance(value, kinds)):
        return False
    inherited = any(hasattr(base, name) for base in owner.__mro__[1:])
    return bool(value.__doc__) or not inherited


def faults(name: str) -> Iterator[str]:
    """Yield what numpydoc finds wrong with one object."""
    result = validate(name)
    ignored = OPTIONAL | (set() if "\n" in result["docstring"].strip() else NOT_FOR_ONE_LINERS)
    for code, message in result["errors"]:
        # A dataclass's private fields are parameters too, but nobody is to pass them.
        private = code == "PR01" and not re.search(r"'[^_]\w*'", message)
        if code not in ignored and not private:
            yield f"{result['file']}:{result['file_line']}: {name}: {code} {message}"


def main() -> int:
    """Print every fault and return the exit status."""
    checked, found = 0, 0
    for module in modules():
        if not module.__doc__:
            print(f"{module.__file__}:1: {module.__name__}: GL08 the module has no docstring")
            found += 1
        for name, _ in public_objects(module):
            checked += 1
            for fault in faults(name):
                print(fault)
                found += 1
    print(f"{checked} public objects, {found} faults")
    return bool(found)


if __name__ == "__main__":
    sys.exit(main())
