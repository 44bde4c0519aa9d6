"""Command-line arguments from dataclasses, over a YAML file: flags win over the file, the file over defaults."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

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
    parser = HfArgumentParser(list(dataclasses), prog=prog, description=description)
    parser.add_argument("--config", metavar="FILE", help="YAML file of `flag: value` lines; flags given here win.")
    if file := _config_file(arguments):
        _apply_file(parser, file)
    values = vars(parser.parse_args(list(arguments)))
    values.pop("config")
    try:
        return parser.parse_dict(values)
    except ValueError as error:
        raise UserError(str(error)) from None


def _config_file(arguments: Sequence[str]) -> Path | None:
    """The value of `--config`, read before the parser is complete: the file may hold what is required."""
    finder = argparse.ArgumentParser(add_help=False)
    finder.add_argument("--config", type=Path)
    return finder.parse_known_args(list(arguments))[0].config


def _apply_file(parser: HfArgumentParser, path: Path) -> None:
    if not path.is_file():
        raise UserError(f"--config {path}: no such file.")
    try:
        values = yaml.safe_load(path.read_text()) or {}
    except yaml.YAMLError as error:
        raise UserError(f"--config {path} is not YAML: {error}") from None
    flags = {action.dest for action in parser._actions}
    unknown = [key for key in values if key not in flags]
    if unknown:
        raise UserError(f"--config {path}: '{unknown[0]}' is no flag of this command; --help lists them.")
    parser.set_defaults(**values)
    for action in parser._actions:
        action.required = action.required and action.dest not in values
