"""
Stages on disk: which fields determined a folder's contents, and the hash that ties it to the stage before it.

A changed field invalidates its stage and those after it, no other. In the same output it is refused; `--reuse` takes
the finished stages before it over into another output.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import stat
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from optidel_hf.errors import UserError, changes
from optidel_hf.files import write_text


# How much is computed at once, in a forward pass: results are the same up to rounding, so that a run which was out of
# memory may go on with less.
BATCH_SIZES = ("points_per_batch", "images_per_batch", "patches_per_batch")


@dataclass(frozen=True)
class Stage:
    """
    One stage of a curation output.

    Args:
        folder (`Path`): where its files lie.
        fields (`dict`): the configuration that determines its result, and nothing else.
        upstream (`str`): hash of the stage before it.
    """

    folder: Path
    fields: dict[str, Any]
    upstream: str

    @property
    def hash(self) -> str:
        """sha256 over fields and upstream hash."""
        return digest([self.fields, self.upstream])

    def claim(self) -> Path:
        """
        Take the folder for this configuration, new or as it was left.

        Raises:
            `UserError`: naming the fields, if the folder was made with other ones.
        """
        record = self.folder / "config.json"
        if record.exists():
            self._refuse_changes(_read_record(record))
        elif any(self.folder.glob("shard-*")):
            raise UserError(f"{self.folder} holds shards and no config.json that says of what: move it away.")
        else:
            facts = {"fields": self.fields, "upstream": self.upstream, "hash": self.hash}
            write_text(json.dumps(facts, indent=2, sort_keys=True) + "\n", record)
        return self.folder

    def forget_what_made_nothing(self) -> None:
        """Remove a folder that holds its `config.json` alone, so that an empty run blocks no other configuration."""
        if self.folder.is_dir() and os.listdir(self.folder) == ["config.json"]:
            self.release()
            self.folder.rmdir()

    def release(self) -> None:
        """Leave the folder to any configuration: one that was claimed and came to no result."""
        (self.folder / "config.json").unlink()

    def take_over(self, other_output: Path) -> None:
        """Link this stage's files from another output, if they were made by the same configuration and inputs."""
        theirs = other_output / self.folder.name
        record = theirs / "config.json"
        if self.folder.exists() or not record.exists() or _read_record(record)["hash"] != self.hash:
            return
        partial = self.folder.with_name(f".{self.folder.name}.partial")
        shutil.rmtree(partial, ignore_errors=True)
        hidden = shutil.ignore_patterns(".*")
        shutil.copytree(theirs, partial, copy_function=_link, ignore=hidden)
        for folder, _, _ in os.walk(partial):  # which took the modes of folders that may be read-only
            os.chmod(folder, os.stat(folder).st_mode | stat.S_IRWXU)
        partial.rename(self.folder)

    def _refuse_changes(self, record: dict[str, Any]) -> None:
        if record["hash"] == self.hash:
            return
        said = changes(record["fields"], json.loads(_json(self.fields)))
        raise UserError(
            f"{self.folder} was made with another configuration ({said or 'an earlier stage or its input changed'}). "
            f"Run `optidel curate --reuse {self.folder.parent} --output_dir <another folder> ...` with the new "
            "values: it takes over the finished stages before it."
        )


def _read_record(path: Path) -> dict[str, Any]:
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(record, dict) or not {"fields", "hash"} <= record.keys():
            raise ValueError("no fields and no hash of a stage")
        return record
    except ValueError as error:  # no JSON, no text, or another program's
        raise UserError(
            f"{path} is damaged ({error}), and so nothing tells what {path.parent} was made by: move that folder away."
        ) from None


def determining(config: Any) -> dict[str, Any]:
    """A stage's dataclass as `fields` of a [`Stage`]: batch sizes, which may change on the way, at their defaults."""
    defaults = type(config)()
    return {name: getattr(defaults, name) if name in BATCH_SIZES else value for name, value in asdict(config).items()}


def digest(value: Any) -> str:
    """sha256 of a JSON-serialisable value."""
    return hashlib.sha256(_json(value).encode()).hexdigest()


def _json(value: Any) -> str:
    return json.dumps(value, sort_keys=True)


def _link(source: str, target: str) -> None:
    try:
        os.link(source, target)
    except OSError:  # another file system, or one without hard links
        shutil.copyfile(source, target)
