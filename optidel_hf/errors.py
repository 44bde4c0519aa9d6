"""The one exception that stands for a user's mistake: the command line prints its sentence and no traceback."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any


class UserError(ValueError):
    """Something the user gave cannot be used. The message names it (file, row, column, flag) and the way out."""


class Diverged(UserError):
    """A training came to a loss or a gradient that is not finite: the same run would come to it again."""


class Preempted(Exception):
    """The run was told to end (SIGTERM), wrote a checkpoint, and goes on from it when it is started again."""


def changes(before: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    """The fields whose values differ, `batch was 8, now 16`; empty where none does, None where one has none."""
    names = [name for name in sorted({*before, *now}) if before.get(name) != now.get(name)]
    return ", ".join(f"{name} was {before.get(name)!r}, now {now.get(name)!r}" for name in names)


@contextmanager
def named_by(**flags: str | None) -> Iterator[None]:
    """
    Have a user's mistake name the flags that were given, where what raises it knows others: `dataset="pool"`.

    Images without a `--revision` and `--dataset_config` of their own are the rule, and `None` says so of other flags.
    """
    flags = {"revision": None, "dataset_config": None, **flags}
    try:
        yield
    except UserError as error:
        named = re.compile(rf"--({'|'.join(flags)})\b")
        words = {name: f"--{flag}" if flag else f"--{name} (not for these images)" for name, flag in flags.items()}
        raise UserError(named.sub(lambda found: words[found[1]], str(error))) from None
