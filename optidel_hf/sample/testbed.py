"""
Testbeds: pools in which it is known what every frame is worth, because redundancy and junk were put there.

    OUT/synthetic-pool/images/frame-000123.jpg         generated scenes, each in near copies; or, from real frames,
    OUT/semi-synthetic-pool/images/frame-000123.jpg    ... each drifting, and metadata.csv with its `group`
    OUT/latents.parquet                                scene, scene type, copy and junk of every frame
    OUT/testbed.json, OUT/README.md                    what was asked for, and what it is

The latents lie beside the pool, the files' order is shuffled and their names are numbers: a selection sees pixels.
Every frame is a function of the configuration and its own number: a killed run goes on where it was, and frames that
were deleted are made again.
"""

from __future__ import annotations

import csv
import hashlib
import io
import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
from datasets import Dataset
from PIL import Image
from tqdm import tqdm

from optidel_hf.errors import UserError, changes, named_by
from optidel_hf.files import alone_in, read_json, write_text
from optidel_hf.images import source_sha256
from optidel_hf.parquet import write_parquet
from optidel_hf.sample.junk import JUNK
from optidel_hf.sample.testbed_views import Camera, drifting_frames, generated_scenes
from optidel_hf.sources import find_image_column, open_dataset


LATENTS = "latents.parquet"
JPEG_QUALITY = 92
# One stream of random numbers a purpose; the views' own are in `testbed_views`.
PLAN, SPOIL = 0, 1
# What says nothing about a pool of real frames.
OF_SCENES = ("redundancy", "scene_types", "image_size")


@dataclass(frozen=True)
class TestbedConfig:
    """What the pool is made of; it is a function of this."""

    __test__ = False  # not a test, whatever its name says to pytest

    output_dir: str = field(default="runs/testbed", metadata={"help": "Folder for the pool and its latents."})
    images: str | None = field(
        default=None,
        metadata={"help": "Folder of real frames that drift (semi-synthetic), else scenes are generated."},
    )
    frames: int = field(default=600, metadata={"help": "Frames in the pool, junk included."})
    junk: float = field(default=0.2, metadata={"help": "Share of junk: blur, black, glare, burned-in text in turn."})
    redundancy: int = field(default=5, metadata={"help": "Near copies of each generated scene; 1 for none."})
    scene_types: int = field(default=40, metadata={"help": "Kinds of generated scenes, the rarer the higher."})
    zipf: float = field(
        default=1.0, metadata={"help": "Exponent of Zipf's law: of scene types, or of the copies of real frames."}
    )
    image_size: int = field(default=128, metadata={"help": "Side of generated frames; real ones keep theirs."})
    seed: int = field(default=0, metadata={"help": "Another seed is another pool."})

    def __post_init__(self) -> None:
        if not 0 <= self.junk < 1:
            raise UserError(f"junk is {self.junk}: it is a share of the frames, from 0 to below 1.")
        if min(self.redundancy, self.scene_types, self.usable) < 1 or not 0 <= self.zipf < math.inf:
            raise UserError("frames (beside junk), redundancy and scene_types are at least 1, and zipf at least 0.")
        if self.image_size < 16 or self.seed < 0:
            raise UserError(
                f"image_size is {self.image_size} and seed {self.seed}: frames need at least 16 pixels a side, and a "
                "seed is at least 0."
            )

    @property
    def usable(self) -> int:
        """Frames that are no junk."""
        return self.frames - round(self.junk * self.frames)

    def frames_for(self, usable: int) -> int:
        """Frames of which so many are no junk."""
        return math.ceil(usable / (1 - self.junk))


@dataclass(frozen=True)
class KnownPool:
    """
    A written testbed.

    Args:
        folder (`Path`): what `write_testbed` was told as `output_dir`.
        images (`Path`): folder of the pool's images, all that a selection may see.
        semi_synthetic (`bool`): whether they are real frames that drift.
        redundancy (`int`, *optional*): near copies of each scene; none where a Zipf law gave real frames theirs.
        junk (`float`): share of junk.
    """

    folder: Path
    images: Path
    semi_synthetic: bool
    redundancy: int | None
    junk: float

    @property
    def latents(self) -> Path:
        """What is known of every frame."""
        return self.folder / LATENTS


class Plan(NamedTuple):
    """The latents, arrays over frames: scene, copy (when its scene is looked at), and kind of junk, empty for none."""

    scene: np.ndarray
    copy: np.ndarray
    junk: np.ndarray


def write_testbed(config: TestbedConfig) -> Path:
    """
    Write a testbed, or what is missing of it.

    Returns:
        `Path`: the folder of the pool's images. The latents are `latents.parquet` two folders above.

    Raises:
        `UserError`: the folder holds another testbed or something else, or another process writes it; fewer usable
            frames than real ones, or than one scene's copies, are asked for; or a real frame cannot be read.
    """
    output = Path(config.output_dir)
    with named_by(dataset="images", image_column=None):
        real = open_dataset(config.images) if config.images else None
        identity = _identify(real) if real else None
    plan, types = plan_real(config, len(real)) if real else plan_generated(config)
    output.mkdir(parents=True, exist_ok=True)
    with alone_in(output):
        _claim(output, config, identity)
        if not _is_whole(output, bool(real), config.frames):
            _write(output, config, real, plan, types)
    return _images(output, bool(real))


def _write(output: Path, config: TestbedConfig, real: Dataset | None, plan: Plan, types: np.ndarray) -> None:
    """What is missing of a testbed; the latents come last."""
    pool, seed = _images(output, bool(real)), config.seed
    pool.mkdir(parents=True, exist_ok=True)
    camera = drifting_frames(real, seed) if real else generated_scenes(types, config.image_size, seed)
    _write_frames(pool, plan, types, camera, seed)
    if real:
        sources = real["source"]
        groups = [sources[scene] for scene in plan.scene]
        _write_csv(pool / "metadata.csv", [("file_name", "group"), *zip(frame_names(config.frames), groups)])
    write_text(describe(config, plan), output / "README.md")
    write_parquet(_latents(config, plan, types), output / LATENTS)


def _is_whole(output: Path, real: bool, frames: int) -> bool:
    """Whether a testbed was finished and nothing of its pool was deleted since."""
    there = {path.name for path in _images(output, real).glob("*")}
    return (output / LATENTS).exists() and there.issuperset([*frame_names(frames), *["metadata.csv"] * real])


def open_testbed(folder: str | Path) -> KnownPool:
    """
    Find a testbed that was written.

    Raises:
        `UserError`: if there is none, or it is not whole.
    """
    folder = Path(folder)
    if not (folder / LATENTS).exists():
        raise UserError(f"{folder} holds no whole testbed (no {LATENTS}): `optidel testbed` writes one or goes on.")
    asked = read_json(folder / "testbed.json")
    real = asked["images"] is not None
    if not _is_whole(folder, real, asked["frames"]):
        raise UserError(f"{folder} has lost some of its pool: the same `optidel testbed` makes that again.")
    return KnownPool(folder, _images(folder, real), real, None if real else asked["redundancy"], asked["junk"])


def frame_names(frames: int) -> list[str]:
    """The names of a pool's files."""
    return [f"frame-{number:06d}.jpg" for number in range(frames)]


def plan_generated(config: TestbedConfig) -> tuple[Plan, np.ndarray]:
    """The plan of generated scenes with `redundancy` copies each, and the types (scenes,), which follow Zipf's law."""
    if config.usable < config.redundancy:
        raise UserError(
            f"{config.redundancy} copies of a scene need more than {config.usable} frames that are no junk: give at "
            f"least --frames {config.frames_for(config.redundancy)}, or a lower --redundancy."
        )
    rng = np.random.default_rng([config.seed, PLAN])
    scene, copy = np.divmod(np.arange(config.usable), config.redundancy)
    shares = np.arange(1, config.scene_types + 1) ** -config.zipf
    types = rng.choice(config.scene_types, scene[-1] + 1, p=shares / shares.sum())
    return _with_junk(rng, scene, copy, config.frames), types


def plan_real(config: TestbedConfig, images: int) -> tuple[Plan, np.ndarray]:
    """The plan of real frames, each at least once and as often as Zipf's law says; types (0,) are not known."""
    if config.usable < images:
        raise UserError(
            f"{config.images} has {images} images and the pool only {config.usable} frames that are no junk: give at "
            f"least --frames {config.frames_for(images)}."
        )
    rng = np.random.default_rng([config.seed, PLAN])
    shares = rng.permutation(np.arange(1, images + 1) ** -config.zipf)
    ends = np.rint(np.cumsum(shares / shares.sum()) * (config.usable - images)).astype(int)
    times = 1 + np.diff(ends, prepend=0)
    scene = np.repeat(np.arange(images), times)
    copy = np.arange(len(scene)) - np.repeat(np.cumsum(times) - times, times)
    return _with_junk(rng, scene, copy, config.frames), np.zeros(0, dtype=int)


def _with_junk(rng: np.random.Generator, scene: np.ndarray, copy: np.ndarray, frames: int) -> Plan:
    """Further copies of random scenes, to be spoiled, among the usable ones; all in random order."""
    spoiled = rng.choice(scene, frames - len(scene))
    kinds = np.array([*JUNK])[np.arange(len(spoiled)) % len(JUNK)]
    later = copy.max() + 1 + np.arange(len(spoiled))
    order = rng.permutation(frames)
    columns = (scene, spoiled), (copy, later), (np.full(len(scene), ""), kinds)
    return Plan(*(np.concatenate(column)[order] for column in columns))


def _write_frames(pool: Path, plan: Plan, types: np.ndarray, camera: Camera, seed: int) -> None:
    """The frames that are not there yet, scene by scene, and the scenes of a type after one another."""
    paths = [pool / name for name in frame_names(len(plan.scene))]
    rank = types[plan.scene] if len(types) else plan.scene
    missing: dict[int, list[int]] = {}
    for number in np.lexsort((plan.copy, plan.scene, rank)):
        if not paths[number].exists():
            missing.setdefault(int(plan.scene[number]), []).append(int(number))
    done = len(paths) - sum(map(len, missing.values()))
    with tqdm(total=len(paths), initial=done, desc="testbed", unit="frame") as progress:
        for scene, numbers in missing.items():
            views = [(number, float(plan.copy[number])) for number in numbers]
            for number, frame in zip(numbers, camera(scene, views)):
                if kind := plan.junk[number]:
                    frame = JUNK[kind](frame, np.random.default_rng([seed, SPOIL, number]))
                _write_jpeg(frame, paths[number])
                progress.update()


def _write_jpeg(frame: np.ndarray, path: Path) -> None:
    partial = path.with_name(f".{path.name}.partial")
    Image.fromarray(frame).save(partial, "JPEG", quality=JPEG_QUALITY)
    partial.replace(path)


def _images(output: Path, real: bool) -> Path:
    """Where the pool lies: its path says what it is."""
    return output / ("semi-synthetic-pool" if real else "synthetic-pool") / "images"


def _write_csv(path: Path, rows: Sequence[Sequence[str]]) -> None:
    text = io.StringIO(newline="")
    csv.writer(text, lineterminator="\n").writerows(rows)
    write_text(text.getvalue(), path)


def _identify(real: Dataset) -> str:
    """What tells real frames from others: how many there are, and a hash of their names and files."""
    values = zip(real["source"], real[find_image_column(real)])
    content = hashlib.sha256()
    for name, value in values:
        content.update(f"{name} {source_sha256(value)}\n".encode())
    return f"{len(real)} {content.hexdigest()[:16]}"


def _claim(output: Path, config: TestbedConfig, images: str | None) -> None:
    """Write what is asked for, or refuse a folder in which something else was begun."""
    asked = {**asdict(config), "images": images}
    for name in ("output_dir", *(OF_SCENES if images else ())):
        del asked[name]
    path = output / "testbed.json"
    if path.exists():
        if changed := changes(read_json(path), asked):
            raise UserError(f"{output} holds another testbed ({changed}); give another folder or delete it.")
    elif output.exists() and any(output.iterdir()):
        raise UserError(f"{output} holds files that are not a testbed; give a new or an empty folder.")
    else:
        write_text(json.dumps(asked, indent=2) + "\n", path)


def _latents(config: TestbedConfig, plan: Plan, types: np.ndarray) -> pa.Table:
    kinds = types[plan.scene] if len(types) else [None] * len(plan.scene)
    return pa.table(
        {
            "source": frame_names(config.frames),
            "scene": pa.array(plan.scene, pa.int32()),
            "scene_type": pa.array(kinds, pa.int32()),
            "copy": pa.array(plan.copy, pa.int32()),
            "junk": pa.array([kind or None for kind in plan.junk.tolist()], pa.string()),
        }
    )


def describe(config: TestbedConfig, plan: Plan) -> str:
    """The text of the testbed's README.md."""
    scenes, junk = len(np.unique(plan.scene)), int((plan.junk != "").sum())
    rest = config.usable % config.redundancy
    last = f", the last scene in {rest}" if rest else ""
    what = (
        f"**Semi-synthetic.** {scenes} real frames drift (pan, zoom, roll, exposure, motion blur), each into as many "
        "copies as a Zipf law gives it. The real data's licence holds for these copies too, and results on this pool "
        "are results on a semi-synthetic pool, never on the real frames. The column `group` of metadata.csv "
        "(`--group_column group`) names the frame that a copy comes from, as a video's name would: a selection that "
        "is told it need not find the copies, so say which of the two was run."
        if config.images
        else f"**Synthetic.** {scenes} generated colonoscopy-like scenes of up to {config.scene_types} types, whose "
        f"frequency follows a Zipf law, in {config.redundancy} near copies each{last} (pan, zoom, roll, exposure, "
        "motion blur). A type is a wall seen through an endoscope. No real image is in it."
    )
    return (
        f"# Testbed: {config.frames} frames, of which {junk} are junk\n\n{what}\n\n"
        "Junk (blur, black, glare, burned-in text in equal parts) spoils further copies of random scenes.\n"
        "`latents.parquet` says what every frame is: it is for judging a selection and must not be given to one.\n"
    )
