"""Whether what is written for the google provider is what it takes, by its published schema.

Owns the comparison of names, types and nesting. Strings that are templates may become anything.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import schema
from schema import Block

#: What Terraform itself has for every resource.
META = frozenset({"count", "depends_on", "for_each", "lifecycle", "provider"})

_SCALARS: dict[str, tuple[type, ...]] = {
    "string": (str,),
    "number": (int, float),
    "bool": (bool,),
}


def faults(resource: str, attributes: Mapping[str, Any]) -> Iterator[str]:
    """Tell what of a resource the provider would not take, but for what is missing in it."""
    resources = schema.load()
    if resource not in resources:
        yield f"{resource}: there is no such resource"
        return
    given = {key: value for key, value in attributes.items() if key not in META}
    yield from _of_block(resources[resource], given, resource)


def missing(resource: str, attributes: Mapping[str, Any]) -> Iterator[str]:
    """Tell what the provider insists on and does not get."""
    yield from _missing(schema.load()[resource], attributes, resource)


def _of_block(block: Block, given: Any, path: str) -> Iterator[str]:
    if not isinstance(given, Mapping):
        yield f"{path}: {given!r} where an object belongs"
        return
    for key, value in given.items():
        here = f"{path}.{key}"
        if key in block.attributes:
            attribute = block.attributes[key]
            if not (attribute.required or attribute.optional):
                yield f"{here}: only the provider says it"
            elif value is not None:
                yield from _of_type(attribute.type, value, here)
        elif key in block.blocks:
            nested = block.blocks[key]
            several = value if isinstance(value, list) else [value]
            if isinstance(value, list) == (nested.most == 1):
                yield f"{here}: is {'one block' if nested.most == 1 else 'a list of blocks'}"
            for each in several:
                yield from _of_block(nested.block, each, here)
        else:
            yield f"{here}: the provider has no such attribute"


def _of_type(kind: Any, value: Any, path: str) -> Iterator[str]:
    if isinstance(value, str) and value.startswith("${") and value.endswith("}"):
        return
    if isinstance(kind, str):
        wrong_flag = isinstance(value, bool) and kind != "bool"
        if wrong_flag or not isinstance(value, _SCALARS[kind]):
            yield f"{path}: {value!r} is no {kind}"
        return
    collection, element = kind
    if collection == "map":
        if not isinstance(value, dict):
            yield f"{path}: {value!r} is no map"
            return
        for key, each in value.items():
            yield from _of_type(element, each, f"{path}[{key!r}]")
        return
    if not isinstance(value, list):
        yield f"{path}: {value!r} is no {collection}"
        return
    for each in value:
        yield from _of_type(element, each, f"{path}[]")


def _missing(block: Block, given: Mapping[str, Any], path: str) -> Iterator[str]:
    for key, attribute in block.attributes.items():
        if attribute.required and key not in given:
            yield f"{path}.{key}"
    for key, nested in block.blocks.items():
        if nested.required and key not in given:
            yield f"{path}.{key}"
        value = given.get(key, [])
        for each in value if isinstance(value, list) else [value]:
            yield from _missing(nested.block, each, f"{path}.{key}")


def paths(attributes: Mapping[str, Any], path: str = "") -> set[str]:
    """Return what is said, as paths of attributes; a map is one."""
    found = set()
    for key, value in attributes.items():
        found.add(f"{path}{key}")
        for each in value if isinstance(value, list) else [value]:
            if isinstance(each, Mapping):
                found |= paths(each, f"{path}{key}.")
    return found


def settable(block: Block, path: str = "") -> set[str]:
    """Return what can be said, as paths of attributes and of blocks."""
    found = {
        f"{path}{key}" for key, each in block.attributes.items() if each.required or each.optional
    }
    for key, nested in block.blocks.items():
        found.add(f"{path}{key}")
        if key != "timeouts":
            found |= settable(nested.block, f"{path}{key}.")
    return found
