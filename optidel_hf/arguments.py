"""Command-line arguments from dataclasses, over a YAML file: flags win over the file, the file over defaults."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from dataclasses import MISSING, Field, fields
from pathlib import Path
from typing import Any, NoReturn

import yaml
from transformers import HfArgumentParser

from optidel_hf.errors import UserError


def parse(dataclasses: Sequence[type], arguments: Sequence[str], prog: str, description: str) -> tuple[Any, ...]:
    """
    Parse `arguments` into one instance of each dataclass.

    Args:
        dataclasses (`Sequence[type]`): their fields become flags, their `metadata["help"]` the help text.
        arguments (`Sequence[str]`): flags, among them `--config file.yaml`.
        prog (`str`): name of the command in its help.
        description (`str`): first line of its help.

    Raises:
        `UserError`: for an unreadable file, an unknown key in it, or a value that a dataclass refuses.
    """
    parser = _Parser(list(dataclasses), prog=prog, description=description, allow_abbrev=False)
    for action in parser._actions:
        if action.nargs == "+" and not action.required:
            action.nargs = "*"  # an empty list in a file, or a flag that takes its list back
        if action.const is False:  # `--no_NAME`, which HfArgumentParser gives the help of --NAME
            action.help = f"The opposite of --{action.dest}."
    fields = {action.dest for action in parser._actions} - {"help"}
    parser.add_argument("--config", metavar="FILE", help="YAML file of `flag: value` lines; flags given here win.")
    file = config_file(arguments)
    values = vars(parser.parse_args([*(_flags_of(file, fields) if file else []), *arguments]))
    values.pop("config")
    values = {name: _at_home(value) for name, value in values.items()}
    try:
        return parser.parse_dict(values)
    except ValueError as error:
        raise UserError(str(error)) from None


def as_flags(*configs: Any) -> list[str]:
    """The flags that give these dataclasses again: one for every field that is not at its default."""
    pairs = [(field, getattr(config, field.name)) for config in configs for field in fields(config)]
    return [part for field, value in pairs if value != _default(field) for part in _flag(field.name, value)]


def named_paths(entries: Sequence[str]) -> dict[str, str]:
    """
    `name=path` entries by name; a path alone, also that of a folder with an equals sign in it, is named by its end.

    Raises:
        `UserError`: if two have the same name.
    """
    pairs = [
        entry.split("=", 1) if "=" in entry and not Path(entry).is_dir() else [Path(entry).name, entry]
        for entry in entries
    ]
    named = dict(pairs)
    if len(named) < len(pairs):
        raise UserError(f"Two of {', '.join(entries)} have the same name: tell them apart by name=path.")
    return named


class _Yaml(yaml.SafeLoader):
    """YAML in which true and false alone are booleans, as in YAML 1.2: `mixed_precision: no` means the word."""


_BOOLEAN = "tag:yaml.org,2002:bool"
_Yaml.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if tag != _BOOLEAN]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_Yaml.add_implicit_resolver(_BOOLEAN, re.compile("true|True|TRUE|false|False|FALSE"), list("tTfF"))


class _Parser(HfArgumentParser):
    """A parser whose errors are one sentence, without the usage of fifty flags."""

    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message} (--help lists the flags).")


def config_file(arguments: Sequence[str]) -> Path | None:
    """The value of `--config`, which is read before the rest: the file may hold what is required."""
    finder = _Parser([], add_help=False, allow_abbrev=False)
    finder.add_argument("--config", type=Path)
    file = finder.parse_known_args(list(arguments))[0].config
    return file and file.expanduser()


def _flags_of(path: Path, fields: set[str]) -> list[str]:
    """The lines of a YAML file as flags, so that the parser checks them as it checks those of the command line."""
    try:
        values = yaml.load(path.read_text(encoding="utf-8"), _Yaml) or {}
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"--config {path} cannot be read: {error}") from None
    except yaml.YAMLError as error:
        raise UserError(f"--config {path} is not YAML: {error}") from None
    if not isinstance(values, dict):
        raise UserError(f"--config {path} holds no `flag: value` lines.")
    if unknown := [key for key in values if key not in fields]:
        raise UserError(f"--config {path}: '{unknown[0]}' is no flag of this command; --help lists them.")
    given = {key: value for key, value in values.items() if value is not None}
    return [flag for key, value in given.items() for flag in _flag(key, value)]


def _at_home(value: Any) -> Any:
    """A path, or each of a list's, with the home folder for a `~` that no shell has replaced."""
    if isinstance(value, list):
        return [_at_home(part) for part in value]
    if not isinstance(value, str):
        return value
    name, equals, path = value.partition("=") if re.match(r"[\w.%+-]+=~", value) else ("", "", value)
    return name + equals + os.path.expanduser(path)


def _default(field: Field) -> Any:
    return field.default if field.default_factory is MISSING else field.default_factory()


def _flag(key: str, value: Any) -> list[str]:
    return [f"--{key}", *map(str, value)] if isinstance(value, list) else [f"--{key}={value}"]
