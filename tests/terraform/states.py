"""What a resource is said to be, will be and is: states of Terraform, compared and put together.

Owns the rules that are the same for all resources. What becomes of one at Google is told by
`google_provider`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from plugin import UNKNOWN, Refusal, State
from schema import Block


def check(block: Block, config: State, where: str) -> None:
    """Refuse attributes that are missing, and such as nobody but the provider gives a value."""
    for name, attribute in block.attributes.items():
        if attribute.required and config[name] is None:
            raise Refusal(f"{where}: Missing required argument {name}")
        if attribute.computed_only and config[name] is not None:
            raise Refusal(f"{where}: Value for unconfigurable attribute {name}")
    for name, nested in block.blocks.items():
        for each in config[name] if isinstance(config[name], list) else ():
            check(nested.block, each, f"{where}.{name}")


def with_computed(block: Block, paths: tuple[str, ...], prefix: str) -> Block:
    """Return a block with the optional attributes marked that the provider fills in."""
    attributes = {
        name: dataclasses.replace(each, computed=True)
        if each.optional and f"{prefix}{name}" in paths
        else each
        for name, each in block.attributes.items()
    }
    blocks = {
        name: dataclasses.replace(each, block=with_computed(each.block, paths, f"{prefix}{name}."))
        for name, each in block.blocks.items()
    }
    return Block(attributes, blocks)


def with_unknown(block: Block, proposed: State) -> State:
    """Return what a resource will be that is to be made."""
    planned: State = {}
    for name, value in proposed.items():
        if name in block.attributes:
            computed = block.attributes[name].computed
            planned[name] = UNKNOWN if value is None and computed else value
        elif isinstance(value, list):
            inner = block.blocks[name].block
            planned[name] = [with_unknown(inner, each) for each in value]
        else:
            planned[name] = value
    return planned


def overlay(block: Block, state: State, found: Mapping[str, Any]) -> State:
    """Return a state in which what is said of the resource has the values that were found.

    What was not said, and is nothing that the provider fills in, is not looked at, as most of it is
    by the real one.
    """
    result: State = {}
    for name, value in state.items():
        now = found.get(name)
        if name in block.blocks:
            nested = block.blocks[name]
            ordered = isinstance(now, list) and isinstance(value, list) and nested.nesting == "list"
            if ordered and len(now) == len(value):
                result[name] = [
                    overlay(nested.block, *both) for both in zip(value, now, strict=True)
                ]
            elif ordered and value:
                result[name] = [overlay(nested.block, _blank(nested.block), each) for each in now]
            else:
                result[name] = value
        elif value is UNKNOWN or (name in found and block.attributes[name].computed_only):
            result[name] = now
        elif value is None or name not in found:
            result[name] = value
        else:
            result[name] = _same_or(value, now, name, block)
    return result


def _blank(block: Block) -> State:
    empty = {name: [] for name in block.blocks}
    return {**dict.fromkeys(block.attributes, UNKNOWN), **empty}


def _same_or(value: Any, now: Any, name: str, block: Block) -> Any:
    """Return what was said if it is what was found, in whichever spelling, else what was found."""
    kind = block.attributes[name].type
    if name == "labels":
        # Labels that others have set are none of the configuration's business.
        return {key: now[key] for key in value if key in now}
    if isinstance(kind, list) and kind[0] == "set":
        return value if sorted(value) == sorted(now) else now
    if name == "metadata" and "startup-script" not in value:
        return {key: each for key, each in now.items() if key != "startup-script"}
    if isinstance(value, str) and isinstance(now, str):
        # A URL, a path and a name of the same.
        both = sorted((value, now), key=len)
        return value if both[1].endswith(f"/{both[0].lstrip('/')}") else now
    return now


def known(value: Any) -> Any:
    """Return a value without what is not known yet."""
    if isinstance(value, dict):
        return {key: known(each) for key, each in value.items()}
    if isinstance(value, list):
        return [known(each) for each in value]
    return None if value is UNKNOWN else value
