"""
How files get to the Hub: uploads that can be killed, then one commit that makes all of them visible at once.

Files go by their paths, so that memory does not grow with them, and what the server has is not sent again.
A repository that is there is updated: what an earlier push wrote is replaced, what its owner added stays.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from fnmatch import fnmatch
from importlib.metadata import version
from pathlib import Path
from typing import Any, TypeVar

from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi, RepoCard, get_token
from huggingface_hub.errors import HfHubHTTPError, HFValidationError
from huggingface_hub.utils import validate_repo_id
from tqdm.auto import tqdm

from optidel_hf.errors import UserError


logger = logging.getLogger(__name__)

FILES_PER_COMMIT = 25_000
"""What the Hub takes in one commit. More go to a pull request, commit by commit, which is merged when it is whole."""
UPLOADS_AT_ONCE = 8
TAG = "optidel"
"""What our cards are tagged with: a repository with files but without the tag is someone's own."""
OF_THE_WEIGHTS = ("model-index", "model_name", "base_model", "datasets", "metrics")
OBJECTIVE_TAGS = ("vit", "vit_mae")
"""What a card says of its weights, and how it is tagged for them: it is not true of those that replace them."""
INERT = (".gitattributes", "README.md", "LICENSE*")
"""Files beside which a repository counts as empty."""
OURS = {
    "dataset": ("curated/*", "scores/*", "assets/contact_sheet.png", "assets/scores.png"),
    "model": ("*.safetensors*", "backbone/model*.safetensors*", "config.json", "preprocessor_config.json"),
    "space": (),
}
"""Files that a push replaces as a whole: a dataset of fewer shards must not keep the old ones."""

Files = dict[str, Path | bytes]
"""Local files, or short contents, by their paths in the repository."""
Operation = CommitOperationAdd | CommitOperationDelete
T = TypeVar("T")


@dataclass(frozen=True)
class Target:
    """
    A repository as it is before a push.

    Args:
        api (`HfApi`): The client.
        repo_id (`str`): `owner/name`.
        kind (`str`): `dataset`, `model` or `space`.
        url (`str`): Where people find it.
        head (`str`): The commit of main's head.
        there (`tuple[str, ...]`): Paths of the files in it.
        metadata (`dict`): Its card's metadata.
    """

    api: HfApi
    repo_id: str
    kind: str
    url: str
    head: str | None
    there: tuple[str, ...]
    metadata: dict[str, Any]


def push_files(repo_id: str, kind: str, files: Files, private: bool) -> str:
    """
    Upload files, then make all of them visible at once.

    Args:
        repo_id (`str`): `owner/name`; made if it is not there.
        kind (`str`): `dataset`, `model` or `space`.
        files (`dict[str, Path | bytes]`): What to push, by path in the repository; `README.md`, the card, as bytes.
        private (`bool`): Whether a new repository is for its owner alone.

    Returns:
        `str`: The repository's URL.

    Raises:
        UserError: If there is no token, the repository is public though `private`, it is someone's own, or the
            transfer fails.
    """
    refuse_place(repo_id)
    if missing := [path for path in files.values() if isinstance(path, Path) and not path.is_file()]:
        raise UserError(f"{missing[0]} does not exist: run to its end what writes it, then push.")
    with _explained(repo_id):
        target = _open(HfApi(), repo_id, kind, private)
        _refuse_hidden_images(target, files)
        _write(target, files)
    return target.url


def refuse_place(repo_id: str) -> None:
    """
    What would make a push fail at its very beginning, checked without the network.

    Raises:
        UserError: If the name is no repository's, or there is no token.
    """
    try:
        validate_repo_id(repo_id)
    except HFValidationError as error:
        raise UserError(f"'{repo_id}' is no repository on the Hub ({error}): give owner/name.") from None
    if repo_id.count("/") != 1:
        raise UserError(f"'{repo_id}' is no repository on the Hub: give owner/name.")
    if get_token() is None:
        raise UserError("There is no token to push with: run `hf auth login`, or set HF_TOKEN to one that can write.")


def _open(api: HfApi, repo_id: str, kind: str, private: bool) -> Target:
    """Make the repository, or look at the one that is there."""
    sdk = "gradio" if kind == "space" else None
    url = str(api.create_repo(repo_id, repo_type=kind, private=private, exist_ok=True, space_sdk=sdk))
    info = api.repo_info(repo_id, repo_type=kind)
    if private and not info.private:
        raise UserError(f"{url} is public: give --private false, if what you push may be, or another repository.")
    there = tuple(api.list_repo_files(repo_id, repo_type=kind, revision=info.sha))
    metadata: dict[str, Any] = {}
    if "README.md" in there:
        path = api.hf_hub_download(repo_id, "README.md", repo_type=kind, revision=info.sha)
        metadata = RepoCard(Path(path).read_text(encoding="utf-8"), ignore_metadata_errors=True).data.to_dict()
    others = [path for path in there if not _is_any(path, INERT)]
    if others and TAG not in (metadata.get("tags") or []):
        raise UserError(f"{url} holds something else ('{others[0]}' for one): give another repository.")
    return Target(api, repo_id, kind, url, info.sha, there, metadata)


def _refuse_hidden_images(target: Target, files: Files) -> None:
    """A list that replaces images does not take them back: they would stay in the repository's history."""
    folders = {path.split("/")[0] for path in files}
    if "curated" not in folders and any(path.startswith("curated/") for path in target.there):
        raise UserError(
            f"{target.url} holds curated images, which would stay in its history: push the selection alone into "
            "another repository."
        )


def _write(target: Target, files: Files) -> None:
    card = files["README.md"]
    assert isinstance(card, bytes)
    files = {**files, "README.md": _with_kept_metadata(card.decode(), target.metadata).encode()}
    additions = [CommitOperationAdd(path, content) for path, content in sorted(files.items())]
    stale = [path for path in target.there if _is_any(path, OURS[target.kind]) and path not in files]
    operations: list[Operation] = [*additions, *(CommitOperationDelete(path, is_folder=False) for path in stale)]
    if len(operations) <= FILES_PER_COMMIT:
        _upload(target, additions, "main")
        _commit(target, operations, "main", target.head)
        return
    pull = target.api.create_pull_request(target.repo_id, _message(), repo_type=target.kind)
    _upload(target, additions, str(pull.git_reference))
    for part in _parts(operations, FILES_PER_COMMIT):
        _commit(target, part, str(pull.git_reference), None)
    target.api.change_discussion_status(target.repo_id, pull.num, "open", repo_type=target.kind)
    target.api.merge_pull_request(target.repo_id, pull.num, repo_type=target.kind)


def _upload(target: Target, additions: Sequence[CommitOperationAdd], revision: str) -> None:
    with tqdm(total=len(additions), desc=f"push to {target.repo_id}", unit=" files") as bar:
        for part in _parts(additions, UPLOADS_AT_ONCE):
            target.api.preupload_lfs_files(target.repo_id, part, repo_type=target.kind, revision=revision)
            bar.update(len(part))


def _commit(target: Target, operations: Sequence[Operation], revision: str, parent: str | None) -> None:
    """`parent`, where it is given, is what the operations were made for: another head refuses them."""
    target.api.create_commit(
        target.repo_id,
        operations,
        commit_message=_message(),
        repo_type=target.kind,
        revision=revision,
        parent_commit=parent,
    )


def _message() -> str:
    return f"Push with optidel_hf {version('optidel_hf')}"


def _with_kept_metadata(content: str, before: dict[str, Any]) -> str:
    """The new card with what its owner added to the old one's metadata: gating, language, a licence, tags."""
    card = RepoCard(content)
    tags = before.get("tags") or []
    added = [tag for tag in ([tags] if isinstance(tags, str) else tags) if tag not in OBJECTIVE_TAGS]
    card.data["tags"] = list(dict.fromkeys([*card.data["tags"], *added]))
    for name, value in before.items():
        if name not in OF_THE_WEIGHTS and card.data.get(name) in (None, "unknown"):
            card.data[name] = value
    said = re.compile(r"\((declared|declared licence): unknown\)")  # of a model, and of a dataset
    return said.sub(lambda found: f"({found[1]}: {card.data.get('license')})", str(card))


def _is_any(path: str, patterns: Sequence[str]) -> bool:
    """Whether a path fits a pattern of as many folders: `*` is a name or a part of it, no folder."""
    return any(path.count("/") == pattern.count("/") and fnmatch(path, pattern) for pattern in patterns)


def _parts(items: Sequence[T], size: int) -> Iterator[Sequence[T]]:
    return (items[start : start + size] for start in range(0, len(items), size))


@contextmanager
def _explained(repo_id: str) -> Iterator[None]:
    """One sentence for whatever a transfer can fail by: the client's errors, those of its HTTP library, of hf_xet."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        logger.debug("the push failed", exc_info=True)
        raise UserError(
            f"pushing to {repo_id} failed ({_reason(error)}). What was uploaded stays there, not yet visible, and the "
            "same push goes on from it."
        ) from error


def _reason(error: Exception) -> str:
    """What the server said, without the HTTP library's link to an encyclopaedia; a wrapped error with its cause."""
    wrapped = [error, error.__cause__] if error.__cause__ and not isinstance(error, HfHubHTTPError) else [error]
    said = " ".join(f"{type(part).__name__}: {part}" for part in wrapped)
    return " ".join(re.sub(r"For more information check: \S+", "", said).split())
