"""Every setting as an option, made from gce.yaml, which has a comment for each.

Owns the names, the help and the spelling of values; whether a value is right is found out where all
settings are checked. gce.yaml is read as text, since its help is in its comments, and since loading
it as YAML would cost whoever only wants another command.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final, TypeVar

import click

__all__ = ["SettingOption", "SettingsCommand", "parse_settings", "setting_options"]

F = TypeVar("F", bound=Callable[..., object])

_FILE: Final = Path(__file__).parents[1] / "gce.yaml"
_SECTION = re.compile(r"  # (?P<title>.*)")
_SETTING = re.compile(r"  (?P<key>[a-z-]+): +(?P<default>\S.*?) +# (?P<comment>.*)")


class SettingOption(click.Option):
    """An option for one setting; it can be given several times for a list.

    Parameters
    ----------
    key : str
        The setting, as it is written in gce.yaml.
    default : str
        Its default, as it is written there.
    comment : str
        Its comment.
    section : str
        The section that it is in.
    """

    def __init__(self, key: str, default: str, comment: str, section: str) -> None:
        choices = ["true", "false"] if default in {"true", "false"} else []
        super().__init__(
            [f"--{key}"],
            multiple=True,
            metavar="|".join(choices) or "VALUE",
            help=comment if "null:" in comment else f"{comment}  [default: {default}]",
            shell_complete=lambda ctx, param, incomplete: [
                each for each in choices if each.startswith(incomplete)
            ],
        )
        self.section = section


class SettingsCommand(click.Command):
    """A command whose help shows settings by the sections of gce.yaml."""

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the command's own options first, then those of settings.

        Parameters
        ----------
        ctx : click.Context
            The context.
        formatter : click.HelpFormatter
            What to write to.
        """
        sections: dict[str, list[tuple[str, str]]] = {"Options": []}
        for parameter in self.get_params(ctx):
            # Newer clicks have a record of arguments too, which their usage shows well enough.
            record = parameter.get_help_record(ctx) if isinstance(parameter, click.Option) else None
            title = parameter.section if isinstance(parameter, SettingOption) else "Options"
            if record is not None:
                sections.setdefault(title, []).append(record)
        for title, records in sections.items():
            with formatter.section(title):
                formatter.write_dl(records)


def _read_settings() -> Iterator[SettingOption]:
    section = ""
    for line in _FILE.read_text(encoding="utf-8").splitlines():
        if found := _SECTION.fullmatch(line):
            section = found["title"]
        elif found := _SETTING.fullmatch(line):
            yield SettingOption(found["key"], found["default"], found["comment"], section)


def setting_options(
    *, without: Sequence[str] = (), only: Sequence[str] | None = None
) -> Callable[[F], F]:
    """Return a decorator that adds an option for each setting.

    Parameters
    ----------
    without : sequence of str
        Settings to leave out.
    only : sequence of str or None
        The settings to take; None for all.

    Returns
    -------
    callable
        Decorator of a command's function, which gets the options as `parse_settings` takes them.
    """

    def add(function: F) -> F:
        options = [
            each
            for each in _read_settings()
            if each.name not in without and (only is None or each.name in only)
        ]
        # As click's own decorators do: they are applied from the last to the first.
        found = function.__dict__.setdefault("__click_params__", [])
        found.extend(reversed(options))
        return function

    return add


def parse_settings(typed: Mapping[str, Sequence[str]]) -> dict[str, Any]:
    """Read the options' values as YAML, as configuration files are.

    Parameters
    ----------
    typed : mapping of str to sequence of str
        What was typed for each setting, once for each time that its option was given.

    Returns
    -------
    dict
        Keyword arguments. An option that was given several times becomes a list.

    Raises
    ------
    click.BadParameter
        If a value is no YAML.

    Examples
    --------
    >>> parse_settings({"zone": ["us-east1-b", "us-east1-c"], "n_workers": ["4"], "labels": []})
    {'zone': ['us-east1-b', 'us-east1-c'], 'n_workers': 4}
    """
    return {
        key: _parse(key, texts[0]) if len(texts) == 1 else [_parse(key, each) for each in texts]
        for key, texts in typed.items()
        if texts
    }


def _parse(key: str, text: str) -> Any:
    import yaml

    try:
        return yaml.safe_load(text)
    except yaml.YAMLError:
        # Without the value, and without YAML's own words, which quote it: it may be a password.
        raise click.BadParameter(
            "is not YAML; put braces or brackets around several, and quotes around all of it.",
            param_hint=f"--{key.replace('_', '-')}",
        ) from None
