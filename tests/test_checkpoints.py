from __future__ import annotations

import hashlib
from pathlib import Path

import pytest
from hub_server import HubServer

from optidel_hf.checkpoints import checkpoint_fingerprint
from optidel_hf.errors import UserError


CONFIG = {"config.json": b'{"model_type": "vit"}'}


def test_weights_on_the_hub_are_known_by_their_commit(hub: HubServer) -> None:
    repo = hub.put("me/vit", "models", CONFIG)
    first = repo.history["main"][-1].oid
    assert checkpoint_fingerprint("me/vit") == first
    second = repo.commit("main", dict(repo.files), "again").oid
    assert checkpoint_fingerprint("me/vit") == checkpoint_fingerprint("me/vit", "main") == second
    assert checkpoint_fingerprint("me/vit", first) == first != second


def test_without_a_network_the_commit_is_that_which_lies_here(hub: HubServer, monkeypatch: pytest.MonkeyPatch) -> None:
    repo = hub.put("me/vit", "models", CONFIG)
    here = checkpoint_fingerprint("me/vit")
    repo.commit("main", dict(repo.files), "again")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    assert checkpoint_fingerprint("me/vit") == here


@pytest.mark.parametrize(("name", "revision"), [("me/nothing", None), ("me/vit", "v9"), ("not a name", None)])
def test_what_is_not_there_is_named(hub: HubServer, name: str, revision: str | None) -> None:
    hub.put("me/vit", "models", CONFIG)
    with pytest.raises(UserError, match=f"{name} is no folder here and no checkpoint on the Hub"):
        checkpoint_fingerprint(name, revision)


def test_local_weights_are_known_by_their_hash(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").write_bytes(b"weights")
    (tmp_path / "config.json").write_bytes(CONFIG["config.json"])
    told = checkpoint_fingerprint(str(tmp_path))
    assert told == hashlib.sha256(hashlib.sha256(b"weights").digest()).hexdigest()
    (tmp_path / "config.json").write_bytes(b"{}")
    assert checkpoint_fingerprint(str(tmp_path)) == told
