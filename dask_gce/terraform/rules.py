"""How a field of a request body becomes attributes of Terraform's google provider.

Owns the kinds of translation, and the error for what cannot be translated. Which field is which
attribute is in `attributes`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from dask_gce.errors import SettingsError

__all__ = [
    "Rule",
    "as_",
    "block",
    "blocks",
    "inner",
    "listed",
    "only",
    "refusal",
    "said",
    "translate",
]

#: Makes attributes of a field's value and its path.
Rule = Callable[[Any, str], dict[str, Any]]


def translate(value: Any, fields: Mapping[str, Rule], path: str) -> dict[str, Any]:
    """Return the attributes of an object.

    Parameters
    ----------
    value : object
        The object.
    fields : mapping of str to callable
        What becomes of each field.
    path : str
        Where it is in the body, with a dot at the end unless it is the body itself.

    Returns
    -------
    dict
        Attributes and blocks.

    Raises
    ------
    SettingsError
        If it has a field that is not among these, or is no object.
    """
    if not isinstance(value, Mapping):
        raise refusal(path.rstrip("."), f"has {_kind(value)} where an object belongs")
    found: dict[str, Any] = {}
    for key, content in value.items():
        if key not in fields:
            raise refusal(f"{path}{key}", "has no attribute in the google provider of Terraform")
        found.update(fields[key](content, f"{path}{key}"))
    return found


def refusal(path: str, reason: str) -> SettingsError:
    """Make the error about a field that Terraform cannot have.

    Parameters
    ----------
    path : str
        Where the field is in the body.
    reason : str
        What is wrong with it, as a predicate.

    Returns
    -------
    SettingsError
        The error.
    """
    # Without the value, which may be a secret.
    return SettingsError(
        f"instance_overrides: {path} {reason}, so that Terraform cannot make these machines. Leave "
        "it out for this cluster, or make it with GCECluster or dask gce create.",
        key="instance_overrides",
    )


def _kind(value: Any) -> str:
    return "nothing" if value is None else f"a {type(value).__name__}"


def as_(name: str, convert: Callable[[Any], Any] = lambda value: value) -> Rule:
    """Take the same value by another name, perhaps as another type.

    Parameters
    ----------
    name : str
        The attribute.
    convert : callable
        Makes the attribute's value; what it cannot be is an error.

    Returns
    -------
    callable
        The rule.
    """

    def rule(value: Any, path: str) -> dict[str, Any]:
        try:
            return {name: convert(value)}
        except (TypeError, ValueError, AttributeError, KeyError):
            raise refusal(path, f"has {_kind(value)}, which it cannot be") from None

    return rule


def block(name: str, fields: Mapping[str, Rule]) -> Rule:
    """Make a block that may be there once.

    Parameters
    ----------
    name : str
        The block.
    fields : mapping of str to callable
        What becomes of each of its fields.

    Returns
    -------
    callable
        The rule.
    """
    return lambda value, path: {name: translate(value, fields, f"{path}.")}


def blocks(name: str, fields: Mapping[str, Rule]) -> Rule:
    """Make a list of blocks.

    Parameters
    ----------
    name : str
        The blocks.
    fields : mapping of str to callable
        What becomes of each of its fields.

    Returns
    -------
    callable
        The rule.
    """

    def rule(value: Any, path: str) -> dict[str, Any]:
        parts = listed(value, path)
        return {name: [translate(each, fields, f"{path}[{i}].") for i, each in enumerate(parts)]}

    return rule


def only(name: str, fields: Mapping[str, Rule]) -> Rule:
    """Make a block of a list that holds one.

    Parameters
    ----------
    name : str
        The block.
    fields : mapping of str to callable
        What becomes of each of its fields.

    Returns
    -------
    callable
        The rule.
    """

    def rule(value: Any, path: str) -> dict[str, Any]:
        parts = listed(value, path)
        if len(parts) > 1:
            raise refusal(f"{path}[1]", "is one more than the google provider of Terraform takes")
        return {name: translate(parts[0], fields, f"{path}[0].")} if parts else {}

    return rule


def inner(fields: Mapping[str, Rule]) -> Rule:
    """Make attributes of what is around an object out of its fields.

    Parameters
    ----------
    fields : mapping of str to callable
        What becomes of each of its fields.

    Returns
    -------
    callable
        The rule.
    """
    return lambda value, path: translate(value, fields, f"{path}.")


def said(value: Any) -> Rule:
    """Leave out what the provider does anyway.

    Parameters
    ----------
    value : object
        The only value that the field may have.

    Returns
    -------
    callable
        The rule.
    """

    def rule(given: Any, path: str) -> dict[str, Any]:
        if given != value:
            raise refusal(path, f"must be {value!r} in the google provider of Terraform")
        return {}

    return rule


def listed(value: Any, path: str) -> list[Any]:
    """Return a list's elements.

    Parameters
    ----------
    value : object
        The list.
    path : str
        Where it is in the body.

    Returns
    -------
    list
        The elements.

    Raises
    ------
    SettingsError
        If it is no list.
    """
    if not isinstance(value, list | tuple):
        raise refusal(path, f"has {_kind(value)} where a list belongs")
    return list(value)
