"""Which weights a checkpoint's name stands for, and whether it is of the kind that is needed."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.resources import files
from pathlib import Path

from transformers import AutoConfig, AutoImageProcessor
from transformers.utils import (
    CONFIG_NAME,
    SAFE_WEIGHTS_INDEX_NAME,
    SAFE_WEIGHTS_NAME,
    cached_file,
    extract_commit_hash,
)
from transformers.utils import logging as transformers_logging

from optidel_hf.errors import UserError


SAFETENSORS = (SAFE_WEIGHTS_NAME, SAFE_WEIGHTS_INDEX_NAME)
EMBEDDED = "embedded"  # a name, not a path, so that configurations are equal on every machine


def checkpoint_path(name: str) -> str:
    """The folder or Hub id that `from_pretrained` takes; `"embedded"` is the SAM that the package ships."""
    return str(files("optidel_hf") / "sample" / "sam_tiny") if name == EMBEDDED else name


def checkpoint_commit(name: str, revision: str | None = None) -> str | None:
    """
    The commit that a revision of a Hub repository stands for now; a folder has none.

    Without a network it is that which lies in the cache.

    Raises:
        `UserError`: if there is neither such a folder nor such a repository.
    """
    if Path(checkpoint_path(name)).is_dir():
        return None
    try:
        commit: str | None = extract_commit_hash(cached_file(name, CONFIG_NAME, revision=revision), None)
    except (OSError, ValueError) as error:
        raise UserError(f"{name} is no folder here and no checkpoint on the Hub: {error}") from None
    return commit


def checkpoint_fingerprint(name: str, revision: str | None = None) -> str:
    """
    What identifies the weights: the sha256 of a local safetensors file, or the commit of a Hub repository.

    Raises:
        `UserError`: if there is neither such a folder nor such a repository.
    """
    if commit := checkpoint_commit(name, revision):
        return commit
    fingerprint = hashlib.sha256()
    for path in sorted(Path(checkpoint_path(name)).glob("*.safetensors")):
        with path.open("rb") as file:
            fingerprint.update(hashlib.file_digest(file, "sha256").digest())
    return fingerprint.hexdigest()


def folder_fingerprint(folder: str | Path) -> str:
    """The sha256 of all files in a folder, which a cache is to notice; of no file where it is no folder here."""
    fingerprint = hashlib.sha256()
    for path in sorted(path for path in Path(folder).rglob("*") if path.is_file()):
        fingerprint.update(str(path.relative_to(folder)).encode())
        with path.open("rb") as file:
            fingerprint.update(hashlib.file_digest(file, "sha256").digest())
    return fingerprint.hexdigest()


def require_kind(flag: str, name: str, revision: str | None, kind: str, example: str) -> None:
    """
    Refuse a checkpoint that is missing, has no image processor or no safetensors, or is a model of another kind.

    Args:
        flag (`str`): the flag that named it, for the message.
        kind (`str`): the `model_type` that is needed.
        example (`str`): a checkpoint that would do.

    Raises:
        `UserError`: before any image is read.
    """
    path = checkpoint_path(name)
    try:
        found = AutoConfig.from_pretrained(path, revision=revision).model_type
        AutoImageProcessor.from_pretrained(path, revision=revision)
    except (OSError, ValueError) as error:
        raise UserError(f"{flag} {name} cannot be loaded: {error} Give a checkpoint such as {example}.") from None
    if found != kind:
        raise UserError(f"{flag} {name} is a '{found}' model, not a '{kind}': give a checkpoint such as {example}.")
    refuse_pickle(path, revision, f"{flag} {name}")


def refuse_pickle(checkpoint: str, revision: str | None = None, said: str | None = None, subfolder: str = "") -> None:
    """
    Refuse a checkpoint without safetensors: pickled weights run what their author wrote.

    To ask transformers for safetensors is not enough: it would look for weights that a service converted.

    Args:
        checkpoint (`str`): folder or Hub id; one that is not there is left to whoever loads it.
        revision (`str`, *optional*): branch, tag or commit on the Hub.
        said (`str`, *optional*): how the user named it.
        subfolder (`str`, *optional*): of the checkpoint, in which its files lie.

    Raises:
        `UserError`: with the way out.
    """
    config, *weights = (str(Path(subfolder) / file) for file in (CONFIG_NAME, *SAFETENSORS))
    known, *found = (locate_file(checkpoint, file, revision) for file in (config, *weights))
    if known and not any(found):
        raise UserError(
            f"{said or checkpoint} has no {SAFE_WEIGHTS_NAME}, and pickled weights (pytorch_model.bin) are never "
            "read: save it with transformers' `save_pretrained`."
        )


def locate_file(checkpoint: str, file: str, revision: str | None = None) -> Path | None:
    """Where a file of a folder, or of a repository on the Hub that can be reached, lies here; None if it has none."""
    try:
        path = cached_file(checkpoint, file, revision=revision)
    except OSError:
        return None
    return Path(path) if path else None


@contextmanager
def quiet_about_unused_weights() -> Iterator[None]:
    """Keep transformers from listing weights as unexpected: an encoder may well be taken out of a larger model."""
    verbosity = transformers_logging.get_verbosity()
    transformers_logging.set_verbosity_error()
    try:
        yield
    finally:
        transformers_logging.set_verbosity(verbosity)
