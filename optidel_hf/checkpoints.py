"""Which weights a checkpoint's name stands for."""

from __future__ import annotations

import hashlib
from importlib.resources import files
from pathlib import Path

from huggingface_hub import HfApi


EMBEDDED = "embedded"  # a name, not a path, so that configurations are equal on every machine


def checkpoint_path(name: str) -> str:
    """The folder or Hub id that `from_pretrained` takes; `"embedded"` is the SAM that the package ships."""
    return str(files("optidel_hf") / "sample" / "sam_tiny") if name == EMBEDDED else name


def checkpoint_fingerprint(name: str, revision: str | None = None) -> str:
    """What identifies the weights: the sha256 of a local safetensors file, or the commit of a Hub repository."""
    folder = Path(checkpoint_path(name))
    if not folder.is_dir():
        return str(HfApi().model_info(name, revision=revision).sha)
    fingerprint = hashlib.sha256()
    for path in sorted(folder.glob("*.safetensors")):
        with path.open("rb") as file:
            fingerprint.update(hashlib.file_digest(file, "sha256").digest())
    return fingerprint.hexdigest()
