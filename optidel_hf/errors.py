"""The one exception that stands for a user's mistake: the command line prints its sentence and no traceback."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager


class UserError(ValueError):
    """Something the user gave cannot be used. The message names it (file, row, column, flag) and the way out."""


class Diverged(UserError):
    """A training came to a loss or a gradient that is not finite: the same run would come to it again."""


class Preempted(Exception):
    """The run was told to end (SIGTERM), wrote a checkpoint, and goes on from it when it is started again."""


@contextmanager
def named_by(flag: str) -> Iterator[None]:
    """Have a user's mistake name the flag that was given, where what raises it knows only `--dataset`."""
    try:
        yield
    except UserError as error:
        raise UserError(str(error).replace("--dataset", flag)) from None
