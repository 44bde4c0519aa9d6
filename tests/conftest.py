"""Fixtures that several wings share: everything is built here, nothing is downloaded."""

from __future__ import annotations

import os
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hub_server import HubServer
from PIL import Image
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from tqdm import tqdm


os.environ.setdefault("ACCELERATE_USE_CPU", "true")  # where there is a GPU as well: bits are compared, and forks train
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("HF_DATASETS_OFFLINE", "1")
os.environ.setdefault("TRACKIO_DIR", f"{tempfile.gettempdir()}/optidel-tests-trackio")  # not among the user's own runs
# tqdm's own lock is one semaphore for all forks: a child killed while it drew its bar would lock out every later one.
tqdm.set_lock(threading.RLock())


@pytest.fixture(scope="module")
def one_thread() -> Iterator[None]:
    """Bits depend on the number of threads, and those of a parent do not survive a fork."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def realdata() -> Path:
    """The real images, or a skip that says how to get this test run."""
    folder = os.environ.get("OPTIDEL_REALDATA")
    if not folder or not Path(folder).is_dir():
        pytest.skip("OPTIDEL_REALDATA names no folder of real images")
    return Path(folder)


class _NoFloat64(TorchDispatchMode):
    """Refuses what a device without float64 refuses."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        dtypes = {leaf.dtype for leaf in tree_leaves(made) if isinstance(leaf, torch.Tensor)}
        assert torch.float64 not in dtypes, f"{func} gives float64"
        return made


@pytest.fixture
def no_float64() -> TorchDispatchMode:
    """A context in which no tensor may be float64, as on Apple's GPUs (MPS)."""
    return _NoFloat64()


def scene(seed: int, width: int = 96, height: int = 80) -> Image.Image:
    """A smooth background with a few bright discs: something for SAM to cut and for a MAE to predict."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:height, :width]
    ramp = rng.uniform(-0.5, 0.5) * x + rng.uniform(-0.5, 0.5) * y
    picture = 110 + ramp[..., None] + rng.normal(0, 4, (height, width, 3)) + rng.uniform(-30, 30, 3)
    for _ in range(4):
        centre, radius = rng.uniform(0.15, 0.85, 2) * (width, height), rng.uniform(6, 18)
        disc = (x - centre[0]) ** 2 + (y - centre[1]) ** 2 < radius**2
        picture[disc] += rng.uniform(-90, 90, 3)
    return Image.fromarray(picture.clip(0, 255).astype(np.uint8))


@pytest.fixture(scope="session")
def image_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """24 scenes of two sizes, as PNG."""
    folder = tmp_path_factory.mktemp("images")
    for i in range(24):
        scene(i, *((96, 80) if i % 2 else (80, 112))).save(folder / f"frame-{i:02d}.png")
    return folder


@pytest.fixture(scope="session")
def tiny_sam(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A random `SamModel` of 64 px whose filters let a few masks of each scene through."""
    from optidel_hf.sample.sam_export import export_sam, scale_logits
    from optidel_hf.sample.sam_training import SamTrainingConfig, build_sam

    sizes = {"image_size": 64, "hidden_size": 32, "hidden_layers": 1, "decoder_size": 32}
    model = scale_logits(build_sam(SamTrainingConfig(**sizes, seed=3)), 20.0)
    folder = tmp_path_factory.mktemp("tiny-sam")
    thresholds = {"pred_iou_thresh": -9.0, "stability_score_thresh": 0.1, "stability_score_offset": 0.1}
    export_sam(model, folder, {"points_per_side": 4, **thresholds})
    return str(folder)


@pytest.fixture(scope="session")
def hub_server() -> Iterator[HubServer]:
    """One Hub on localhost for all tests."""
    with HubServer() as server:
        yield server


@pytest.fixture
def hub(hub_server: HubServer, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> HubServer:
    """That Hub, empty, and this process's client set up for it: what the environment says before the first import."""
    hub_server.clear()
    settings = {
        "ENDPOINT": hub_server.url,
        "HUGGINGFACE_CO_URL_TEMPLATE": hub_server.url + "/{repo_id}/resolve/{revision}/{filename}",
        "HF_HUB_OFFLINE": False,
        "HF_HUB_DISABLE_XET": True,
        "HF_HUB_CACHE": str(tmp_path / "hub-cache"),
    }
    for name, value in settings.items():
        monkeypatch.setattr(f"huggingface_hub.constants.{name}", value)
    monkeypatch.setenv("HF_TOKEN", hub_server.token)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    return hub_server


@pytest.fixture
def patient(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The seconds for which the client would have waited before it tried again."""
    waits: list[float] = []
    monkeypatch.setattr("huggingface_hub.utils._http.time.sleep", waits.append)
    return waits
