"""The local Hub against the real client: what it must do for the other tests to mean anything."""

from __future__ import annotations

from pathlib import Path

import pytest
from huggingface_hub import CommitOperationAdd, HfApi
from huggingface_hub.errors import (
    EntryNotFoundError,
    HfHubHTTPError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)
from huggingface_hub.utils import get_session

from hub_server import Fault, HubServer


def commit(path: str, content: bytes, **kwargs: str) -> str:
    operations = [CommitOperationAdd(path, content)]
    return HfApi().create_commit("me/x", operations, commit_message="add", repo_type="dataset", **kwargs).oid


@pytest.fixture
def repo(hub: HubServer) -> HfApi:
    api = HfApi()
    assert str(api.create_repo("me/x", repo_type="dataset", private=True)) == f"{hub.url}/datasets/me/x"
    return api


def test_what_is_committed_comes_back(repo: HfApi, hub: HubServer) -> None:
    hub.part_size = 50
    content = bytes(range(123))
    first, second = commit("data/a.parquet", content), commit("README.md", b"---\nlicense: mit\n---\n")
    assert hub.uploads == [hub.repo("me/x").files["data/a.parquet"].sha256]
    assert [call for call in hub.calls if call.startswith("PUT")] == [
        f"PUT /lfs/{hub.uploads[0]}/{i}" for i in (1, 2, 3)
    ]
    assert sorted(repo.list_repo_files("me/x", repo_type="dataset")) == ["README.md", "data/a.parquet"]
    assert repo.list_repo_files("me/x", repo_type="dataset", revision=first) == ["data/a.parquet"]
    assert repo.repo_info("me/x", repo_type="dataset").sha == second
    file = repo.hf_hub_download("me/x", "data/a.parquet", repo_type="dataset")
    assert Path(file).read_bytes() == content

    headers = {"Authorization": f"Bearer {hub.token}", "Range": "bytes=100-109"}
    part = get_session().get(f"{hub.url}/datasets/me/x/resolve/main/data/a.parquet", headers=headers)
    assert (part.status_code, part.content) == (206, content[100:110])
    assert part.headers["Content-Range"] == "bytes 100-109/123"


def test_what_is_not_there_is_said_so(repo: HfApi) -> None:
    with pytest.raises(EntryNotFoundError):
        repo.hf_hub_download("me/x", "nothing", repo_type="dataset")
    with pytest.raises(RevisionNotFoundError):
        repo.list_repo_files("me/x", repo_type="dataset", revision="v9")
    with pytest.raises(RepositoryNotFoundError):
        repo.repo_info("me/x")  # a dataset is no model
    with pytest.raises(ValueError, match="no metadata"):
        commit("README.md", b"no front matter")


def test_a_commit_on_an_older_head_is_refused(repo: HfApi) -> None:
    first = commit("a.txt", b"a")
    commit("b.txt", b"b", parent_commit=first)
    with pytest.raises(HfHubHTTPError, match="412"):
        commit("c.txt", b"c", parent_commit=first)


def test_a_wrong_or_missing_token_opens_nothing(repo: HfApi, hub: HubServer) -> None:
    for api in (HfApi(token=False), HfApi(token="hf_wrong")):
        for call in (api.repo_info, api.create_repo):
            with pytest.raises(HfHubHTTPError, match="401"):
                call("me/x", repo_type="dataset")
    with pytest.raises(HfHubHTTPError, match="403"):
        repo.create_repo("you/x")
    assert repo.whoami()["name"] == "me"
    hub.put("me/open", "datasets", {"a.txt": b"a"})
    assert HfApi(token=False).list_repo_files("me/open", repo_type="dataset") == ["a.txt"]


@pytest.mark.parametrize(
    ("fault", "waits"),
    [
        (Fault("PUT /lfs", status=500, times=2), [1, 2]),
        (Fault("PUT /lfs", status=429, retry_after=3, times=1), [4]),  # the client adds a second
        (Fault("PUT /lfs", cut=True, times=1), [1]),
        (Fault("PUT /lfs", wait=0.1, times=1), []),
    ],
    ids=["500", "429", "cut", "slow"],
)
def test_faults_fail_and_pass(
    repo: HfApi, hub: HubServer, patient: list[float], fault: Fault, waits: list[float]
) -> None:
    hub.arm(fault)
    commit("a.parquet", bytes(100_000))
    assert patient == waits
    assert len(hub.uploads) == 1
    assert len(hub.repo("me/x").files["a.parquet"].content) == 100_000
