"""What the server keeps, in memory: repositories with branches of commits, large files by hash, pull requests."""

from __future__ import annotations

import hashlib
from base64 import b64decode
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any


# What the Hub's own `.gitattributes` sends to large file storage, as far as this project writes it.
LARGE = (".parquet", ".safetensors", ".png", ".bin", ".arrow")


@dataclass(frozen=True)
class File:
    """A file at one commit."""

    content: bytes
    large: bool

    @cached_property
    def sha256(self) -> str:
        return hashlib.sha256(self.content).hexdigest()

    @property
    def oid(self) -> str:
        """What the Hub names in `preupload`: the sha256 of a large file, git's hash of a regular one."""
        return self.sha256 if self.large else self.blob

    @cached_property
    def blob(self) -> str:
        """Git's hash: of the content, or of a large file's pointer (its first 40 digits stand for that)."""
        if self.large:
            return self.sha256[:40]
        return hashlib.sha1(b"blob %d\0" % len(self.content) + self.content).hexdigest()


@dataclass(frozen=True)
class Commit:
    """All files of a repository at one moment."""

    files: dict[str, File]
    title: str
    number: int

    @cached_property
    def oid(self) -> str:
        named = "".join(f"{path}:{file.oid}\n" for path, file in sorted(self.files.items()))
        return hashlib.sha1(f"{self.number}\n{self.title}\n{named}".encode()).hexdigest()


@dataclass
class PullRequest:
    """A branch beside main, and whether it has been merged."""

    number: int
    title: str
    status: str = "draft"


@dataclass
class Repo:
    """One repository."""

    kind: str
    name: str
    private: bool
    history: dict[str, list[Commit]] = field(default_factory=lambda: {"main": [Commit({}, "initial commit", 0)]})
    pulls: list[PullRequest] = field(default_factory=list)

    @property
    def files(self) -> dict[str, File]:
        """What everyone sees: the head of main."""
        return self.history["main"][-1].files

    def find(self, revision: str) -> Commit | None:
        """The commit that a branch or hash stands for."""
        if revision in self.history:
            return self.history[revision][-1]
        return next((c for commits in self.history.values() for c in commits if c.oid == revision), None)

    def commit(self, branch: str, files: dict[str, File], title: str) -> Commit:
        """Put a commit on a branch."""
        number = sum(map(len, self.history.values()))
        self.history[branch].append(Commit(files, title, number))
        return self.history[branch][-1]

    def open_pull_request(self, title: str) -> PullRequest:
        """Begin a branch at main's head."""
        pull = PullRequest(len(self.pulls) + 1, title)
        self.pulls.append(pull)
        self.history[f"refs/pr/{pull.number}"] = [self.history["main"][-1]]
        return pull

    def merge(self, pull: PullRequest) -> None:
        """Make a pull request's files main's."""
        head = self.history[f"refs/pr/{pull.number}"][-1]
        self.commit("main", head.files, f"{pull.title} (#{pull.number})")
        pull.status = "merged"


def apply(files: dict[str, File], lines: list[dict[str, Any]], objects: dict[str, bytes]) -> dict[str, File]:
    """
    The files after a commit's operations.

    Raises:
        `KeyError`: naming the hash of a large file that was never uploaded.
    """
    files = dict(files)
    for line in lines:
        value = line["value"]
        if line["key"] == "file":
            files[value["path"]] = File(b64decode(value["content"]), large=False)
        elif line["key"] == "lfsFile":
            files[value["path"]] = File(objects[value["oid"]], large=True)
        elif line["key"] == "deletedFile":
            del files[value["path"]]
        elif line["key"] == "deletedFolder":
            files = {
                path: file for path, file in files.items() if not path.startswith(value["path"].rstrip("/") + "/")
            }
    return files
