"""Terraform's string templates: what is typed stays as it is, what only Terraform knows is put in.

Owns the escapes, and the stand-ins: text that nobody else can have typed takes the place of what is
not known before Terraform runs, goes through all that makes requests, and becomes a reference.

Source: `Strings and Templates
<https://developer.hashicorp.com/terraform/language/expressions/strings>`_.
"""

from __future__ import annotations

import secrets
from collections.abc import Mapping
from typing import Any

__all__ = ["StandIns", "escape"]


def escape(text: str) -> str:
    """Return a text as it is written in a template, so that nothing of it is one.

    Parameters
    ----------
    text : str
        Any text.

    Returns
    -------
    str
        The template whose value it is.

    Examples
    --------
    >>> escape("${name} costs $5, %{if} not %d")
    '$${name} costs $5, %%{if} not %d'
    """
    return text.replace("${", "$${").replace("%{", "%%{")


class StandIns:
    """Stand-ins for what only Terraform knows.

    Examples
    --------
    >>> stand_ins = StandIns()
    >>> name = stand_ins.new("local.name")
    >>> stand_ins.render({"text": f"{name}: ${{HOME}}", "numbers": [1, None]})
    {'text': '${local.name}: $${HOME}', 'numbers': [1, None]}
    """

    def __init__(self) -> None:
        self._expressions: dict[str, str] = {}

    def new(self, expression: str, text: str | None = None) -> str:
        """Return a new stand-in.

        Parameters
        ----------
        expression : str
            The expression that takes its place.
        text : str or None
            The stand-in, which must be part of nothing else; None to draw one, which may be a name
            by RFC 1035.

        Returns
        -------
        str
            The stand-in.
        """
        # Names are no longer than this, and what is made of them has to be as long as it may be.
        text = f"z{secrets.token_hex(8)}" if text is None else text
        self._expressions[text] = f"${{{expression}}}"
        return text

    def render(self, value: Any) -> Any:
        """Return JSON data as templates.

        Parameters
        ----------
        value : object
            JSON data, its strings any text with stand-ins in it.

        Returns
        -------
        object
            The same, its strings, also the keys, as templates.
        """
        if isinstance(value, str):
            text = escape(value)
            # Long ones first: one may be the beginning of another.
            for each in sorted(self._expressions, key=len, reverse=True):
                text = text.replace(each, self._expressions[each])
            return text
        if isinstance(value, Mapping):
            return {self.render(key): self.render(each) for key, each in value.items()}
        if isinstance(value, list | tuple):
            return [self.render(each) for each in value]
        return value
