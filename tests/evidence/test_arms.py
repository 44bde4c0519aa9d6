"""Every arm on one tiny pool: what it stores, whence, that nothing is made twice, and that no mask is opened."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from scipy.stats import rankdata

from optidel_hf import images
from optidel_hf.curation.curated import MosaicConfig
from optidel_hf.curation.curation_config import CurationConfig
from optidel_hf.curation.inputs import InputConfig
from optidel_hf.curation.patches import PatchConfig
from optidel_hf.curation.pipeline import curate
from optidel_hf.curation.reference import ReferenceConfig
from optidel_hf.curation.scoring import ScoreConfig
from optidel_hf.curation.selection import eligible, select
from optidel_hf.curation.selection.candidates import rank_within
from optidel_hf.curation.selection.clusters import cluster
from optidel_hf.curation.selection.select import read_pool
from optidel_hf.curation.selection_config import SelectionConfig
from optidel_hf.curation.shards import read_columns
from optidel_hf.errors import UserError
from optidel_hf.evidence import arm_data
from optidel_hf.evidence.arm_data import ArmData, build_arm
from optidel_hf.evidence.arms import ARMS
from optidel_hf.evidence.pool import Pool
from optidel_hf.evidence.rules import likeness
from optidel_hf.files import read_json
from optidel_hf.pretraining.objectives.mae import build_mae
from optidel_hf.pretraining.stored import StoredImages, open_images


BUDGET, USABLE = 0.1, 21
PATCH, SIDE = 32, 48  # of patches when they are scored, and of the images that are stored
STORED = 2  # round(0.1 x 21)
LOOSE = {"max_area": 0.9, "min_area": 0.001, "box_nms_thresh": 0.95, "crop_nms_thresh": 0.95}
SMALL = {"reference_width": 64, "reference_layers": 1, "reference_batch_size": 8, "reference_steps": 2}
KEYS = ["source", "group", "bbox", "crop", "upscale", "fold", "difficulty", "embedding"]
WITHOUT_HARDNESS = {"strategy": "optidel", "hardness_weight": 0.0}
BASELINES = ("semdedup", "meddel", "ccs", "prototypes", "zcore")
OF_PATCHES = {  # what each arm in mosaics of four key patches is chosen by
    "hardest": {"strategy": "hardest"},
    "optidel": {"strategy": "optidel"},
    "easiest_mosaics": {"strategy": "easiest"},
    "medium_mosaics": {"strategy": "medium"},
    "coverage_mosaics": WITHOUT_HARDNESS,
    "learnable_mosaics": {"strategy": "optidel", "score": "learnability"},
    **{f"{name}_mosaics": {"strategy": name} for name in BASELINES},
}
OF_IMAGES = {
    "hardest_images": {"strategy": "hardest"},
    "optidel_images": {"strategy": "optidel"},
    "coverage_images": WITHOUT_HARDNESS,
    **{name: {"strategy": name} for name in BASELINES},
}
BUDGETED = [name for name, arm in ARMS.items() if arm.unit and arm.budgeted and not arm.bytes_of]


pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def planted(image_folder: Path) -> tuple[list[str], torch.Tensor]:
    """Two frames of the pool, as the label pool's images."""
    names = ["frame-05.png", "frame-11.png"]
    frames = [Image.open(image_folder / name) for name in names]
    squares = [images.cut_square(frame, images.centre_square(*frame.size), PATCH) for frame in frames]
    return names, torch.from_numpy(np.stack([np.asarray(square) for square in squares])).permute(0, 3, 1, 2)


@pytest.fixture(scope="module")
def pool(image_folder: Path, tiny_sam: str, tmp_path_factory: pytest.TempPathFactory) -> Pool:
    return Pool(
        InputConfig(str(image_folder), held_out=0.1),
        tmp_path_factory.mktemp("arms") / "out",
        PatchConfig(sam=tiny_sam, patch_size=PATCH, min_image_side=16, **LOOSE),
        ReferenceConfig(**SMALL),
        ScoreConfig(partitions=1, learnability=True),
        MosaicConfig(image_size=SIDE),
        device="cpu",
    )


@pytest.fixture(scope="module")
def opened() -> list[str]:
    """Paths of the images that were opened while the arms were made."""
    return []


@pytest.fixture(scope="module")
def built(pool: Pool, planted: tuple[list[str], torch.Tensor], opened: list[str]) -> dict[str, ArmData]:
    plain = images._open_lazily

    def spy(value: object) -> Image.Image:
        if isinstance(value, dict) and value["bytes"] is None:
            opened.append(value["path"])
        return plain(value)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(images, "_open_lazily", spy)
        return {name: build_arm(name, BUDGET, 0, pool, label_images=planted[1]) for name in ARMS}


def tiles(data: ArmData) -> list[list[dict]]:
    return read_columns(Path(data.dataset), ["tiles"])["tiles"].to_pylist()


def sources(data: ArmData) -> list[str]:
    return [tile["source"] for mosaic in tiles(data) for tile in mosaic]


def scores(pool: Pool, unit: str) -> pa.Table:
    folder = pool.output / "seed-0000" / unit / "scores"
    names = pq.read_schema(next(folder.glob("*.parquet"))).names
    return read_columns(folder, [name for name in names if name != "image"])


def selected(table: pa.Table, unit: str, **options: Any) -> list[list[dict]]:
    """What `select` takes for the arms' budget: the source and the crop of every tile, by image and slot."""
    tiles = 4 if unit == "patch" else 1
    found = select(table, budget=BUDGET, images=USABLE, tiles_per_mosaic=tiles, **options)
    rows = table.select(["source", "crop"]).take(found.rows[np.lexsort((found.slot, found.mosaic))]).to_pylist()
    return [rows[first : first + tiles] for first in range(0, len(rows), tiles)]


def places(data: ArmData) -> list[list[dict]]:
    return [[{name: tile[name] for name in ("source", "crop")} for tile in mosaic] for mosaic in tiles(data)]


def ranks_of(data: ArmData, pool: Pool, values: np.ndarray) -> np.ndarray:
    """The values of the arm's tiles, of one a key patch."""
    stock = read_columns(pool.output / "seed-0000" / "patch" / "scores", ["source", "crop"]).to_pylist()
    row_of = {(patch["source"], tuple(patch["crop"])): row for row, patch in enumerate(stock)}
    return values[[row_of[tile["source"], tuple(tile["crop"])] for mosaic in tiles(data) for tile in mosaic]]


def pixels(folder: Path | str) -> torch.Tensor:
    stored = open_images(str(folder), size=SIDE)
    assert isinstance(stored, StoredImages)
    return stored.read_all(1)


@pytest.mark.parametrize("name", BUDGETED)
def test_arms_of_one_budget_store_the_same_pixels(name: str, built: dict[str, ArmData]) -> None:
    arm, facts = ARMS[name], built[name].facts
    assert facts["stored_pixels"] == STORED * SIDE**2
    mosaics = tiles(built[name])
    assert len(mosaics) == facts["images"] == STORED * arm.shrink**2
    assert {len(mosaic) for mosaic in mosaics} == ({1, 4} if arm.whole else {arm.tiles})
    assert facts["sources"] == len(set(sources(built[name])))
    assert facts["curation_seconds"] > 0
    assert {"null_entropy", "cond_entropy", "coverage"} < set(facts)


def test_full_stores_every_usable_image_once_and_its_mosaics_a_quarter(built: dict[str, ArmData]) -> None:
    assert built["full"].facts["images"] == USABLE
    assert len(set(sources(built["full"]))) == len(sources(built["full"])) == USABLE
    assert built["full_mosaics"].facts["images"] == USABLE // 4
    assert len(set(sources(built["full_mosaics"]))) == len(sources(built["full_mosaics"])) == USABLE // 4 * 4


def test_no_pretraining_is_no_dataset(built: dict[str, ArmData]) -> None:
    assert built["none"].dataset is None
    assert set(built["none"].facts.values()) == {0.0}


def test_held_out_images_are_in_no_arm(pool: Pool, built: dict[str, ArmData]) -> None:
    held = set(pq.read_table(pool.output / "image" / "held_out.parquet")["source"].to_pylist())
    assert len(held) == 24 - USABLE
    for data in built.values():
        assert data.dataset is None or held.isdisjoint(sources(data))


@pytest.mark.parametrize("name", ["optidel", "hardest", "random_images"])
def test_product_arms_are_what_curate_makes(name: str, pool: Pool, built: dict[str, ArmData], tmp_path: Path) -> None:
    arm = ARMS[name]
    config = CurationConfig(
        pool.inputs,
        str(tmp_path / "out"),
        replace(pool.patches, unit=arm.unit),
        pool.reference,
        pool.score,
        SelectionConfig(budget=BUDGET, strategy=arm.strategy, tiles_per_mosaic=arm.tiles),
        pool.mosaic,
        reuse=str(pool.output / "seed-0000" / arm.unit),
        device="cpu",
    )
    assert torch.equal(pixels(curate(config) / "curated"), pixels(built[name].dataset))


@pytest.mark.parametrize(
    ("name", "unit", "options"),
    [(name, unit, how) for unit, arms in (("patch", OF_PATCHES), ("image", OF_IMAGES)) for name, how in arms.items()],
)
def test_arms_are_chosen_by_their_strategy(
    name: str, unit: str, options: dict[str, Any], pool: Pool, built: dict[str, ArmData]
) -> None:
    assert places(built[name]) == selected(scores(pool, unit), unit, **options)


def test_lesion_like_patches_are_hard_times_likeness(pool: Pool, built: dict[str, ArmData]) -> None:
    table = scores(pool, "patch")
    table = table.take(np.flatnonzero(eligible(table["upscale"].to_numpy(), SelectionConfig.max_upscale)))
    hardness = rank_within(table["difficulty"].to_numpy(), table["fold"].to_numpy())
    values = pa.array(hardness * likeness(table, scores(pool, "image")), pa.float32())
    table = table.set_column(table.schema.get_field_index("difficulty"), "difficulty", values)
    assert places(built["lesion_like_mosaics"]) == selected(table, "patch", max_upscale=np.inf)


@pytest.mark.parametrize(
    ("name", "made_from"),
    [
        ("random_images", ["inputs", "image"]),
        ("hardest_images", ["inputs", "image", "seed-0000/image"]),
        ("random_patch_mosaics", ["inputs", "patch"]),
        ("hardest", ["inputs", "patch", "seed-0000/patch"]),
    ],
)
def test_an_arms_seconds_are_its_own_and_those_of_what_it_is_made_from(
    name: str, made_from: list[str], pool: Pool, built: dict[str, ArmData]
) -> None:
    folders = [pool.output / place for place in (*made_from, f"arms/{name}_0.1_0000")]
    seconds = [read_json(folder / "seconds.json")["seconds"] for folder in folders]
    assert min(seconds) > 0
    assert built[name].facts["curation_seconds"] == pytest.approx(sum(seconds))


def test_oracle_finds_planted_frames(planted: tuple[list[str], torch.Tensor], built: dict[str, ArmData]) -> None:
    assert sorted(sources(built["oracle"])) == planted[0]
    assert set(sources(built["oracle_coverage"])) & set(planted[0])


def test_random_crops_have_the_sizes_of_the_patches_that_optidel_chose(
    image_folder: Path, built: dict[str, ArmData]
) -> None:
    def shares(name: str) -> list[float]:
        chosen = [tile for mosaic in tiles(built[name]) for tile in mosaic]
        return sorted(t["crop"][2] / min(Image.open(image_folder / t["source"]).size) for t in chosen)

    np.testing.assert_allclose(shares("random_crop_mosaics"), shares("optidel"), atol=0.5 / 80)


def test_easiest_of_each_image_is_rdeds_rule(pool: Pool, built: dict[str, ArmData]) -> None:
    names = ["source", "crop", "cond_entropy", "fold", "upscale"]
    rows = read_columns(pool.output / "seed-0000" / "patch" / "scores", names).to_pylist()
    enlarged = [row["upscale"] > 2 for row in rows]
    if np.mean(enlarged) < 0.1:  # as for every strategy, they are left out where they are few
        rows = [row for row, much in zip(rows, enlarged) if not much]
    best: dict[str, dict] = {}
    for row in rows:
        if row["source"] not in best or row["cond_entropy"] < best[row["source"]]["cond_entropy"]:
            best[row["source"]] = row
    mosaics = tiles(built["easiest_per_image_mosaics"])
    chosen = [mosaic[slot] for slot in range(4) for mosaic in mosaics]  # by slot, then mosaic: by rising rank
    for fold in (0, 1):
        of_fold = sorted((row for row in best.values() if row["fold"] == fold), key=lambda row: row["cond_entropy"])
        kept = [tile["crop"] for tile in chosen if best[tile["source"]]["fold"] == fold]
        assert kept == [row["crop"] for row in of_fold[: len(kept)]]
    assert len({tile["source"] for tile in chosen}) == 4 * STORED


def test_whole_images_by_mean_loss_are_the_hardest(pool: Pool, built: dict[str, ArmData]) -> None:
    names = ["source", "recon_error", "fold"]
    rows = read_columns(pool.output / "seed-0000" / "image" / "scores", names).to_pylist()
    hardest = {max((r for r in rows if r["fold"] == f), key=lambda r: r["recon_error"])["source"] for f in (0, 1)}
    assert set(sources(built["hardest_images"])) == hardest  # two images of two folds: one each


def test_untiled_patches_are_those_of_the_mosaics(built: dict[str, ArmData]) -> None:
    def crops(name: str) -> list[tuple]:
        return sorted((t["source"], *t["crop"]) for mosaic in tiles(built[name]) for t in mosaic)

    assert crops("hard_patches_small") == crops("hardest")
    assert set(crops("hard_patches_full")) < set(crops("hardest"))
    small = next(Path(built["hard_patches_small"].dataset).glob("*.parquet"))
    assert images.open_image(pq.read_table(small)["image"][0].as_py()).size == (SIDE // 2, SIDE // 2)


def test_covering_looks_at_groups_and_at_no_difficulty(pool: Pool, built: dict[str, ArmData]) -> None:
    assert built["cover_mosaics"].facts["groups"] == 4 * STORED  # as there are more than enough
    table = read_columns(pool.output / "seed-0000" / "patch" / "scores", ["difficulty", "fold"])
    hardness = rank_within(table["difficulty"].to_numpy(), table["fold"].to_numpy())
    chosen = {name: ranks_of(built[name], pool, hardness).mean() for name in ("cover_mosaics", "optidel")}
    assert chosen["cover_mosaics"] < 0.75 < chosen["optidel"]


def test_medium_patches_lie_between_quantiles_of_their_cluster(pool: Pool, built: dict[str, ArmData]) -> None:
    stock = read_columns(pool.output / "seed-0000" / "patch" / "scores", KEYS)
    candidates = read_pool(stock, max_upscale=SelectionConfig.max_upscale)
    label = cluster(candidates, 4 * STORED, seed=0).label
    place = np.empty(len(candidates))
    for code in np.unique(label):
        rows = np.flatnonzero(label == code)
        place[rows] = rankdata(candidates.hardness[rows], "ordinal") - 1
        place[rows] /= max(1, len(rows) - 1)
    by_row = np.full(stock.num_rows, np.nan)
    by_row[candidates.rows] = place
    chosen = ranks_of(built["cover_medium_mosaics"], pool, by_row)
    assert chosen.min() >= 0.5
    assert chosen.max() <= 0.9


def test_a_compact_mask_inside_the_image_is_like_a_lesion() -> None:
    whole = pa.table({"source": ["a"], "bbox": [[0.0, 0.0, 99.0, 49.0]]})  # 100 x 50 pixels
    boxes = [[10.0, 10.0, 19.0, 9.0], [10.0, 10.0, 19.0, 9.0], [0.0, 10.0, 19.0, 9.0], [80.0, 40.0, 19.0, 9.0]]
    area = np.array([200, 100, 200, 200]) / 5000
    patches = pa.table({"source": ["a"] * 4, "bbox": boxes, "area": area})
    assert likeness(patches, whole) == pytest.approx([1, 0.5, 0.75, 0.5])


@pytest.mark.parametrize(("name", "last"), [("optidel_half", 0), ("optidel_last_whole", 1)])
def test_a_part_of_the_budget_is_whole_images(name: str, last: int, built: dict[str, ArmData]) -> None:
    mosaic, whole = tiles(built[name])
    assert [len(mosaic), len(whole)] == [4, 1]
    assert whole[0] in [tile for image in tiles(built["random_images"]) for tile in image]
    assert built[name].last == last


def test_as_many_bytes_are_as_many_whole_images_as_take_them(built: dict[str, ArmData]) -> None:
    facts = {name: built[name].facts for name in ("optidel", "full", "random_equal_bytes")}
    each = facts["full"]["stored_bytes"] / USABLE
    assert facts["random_equal_bytes"]["images"] == round(facts["optidel"]["stored_bytes"] / each)
    assert {len(image) for image in tiles(built["random_equal_bytes"])} == {1}


def test_arms_of_equal_compute_have_the_data_of_others(built: dict[str, ArmData]) -> None:
    assert tiles(built["random_equal_compute"]) == tiles(built["random_images"])
    assert tiles(built["full_equal_compute"]) == tiles(built["full_equal_compute_from_scorer"]) == tiles(built["full"])


def test_one_arm_starts_from_the_scorer_that_chose_for_optidel(pool: Pool, built: dict[str, ArmData]) -> None:
    start = built["full_equal_compute_from_scorer"].start
    assert start is not None
    assert Path(start) == pool.output / "seed-0000" / "patch" / "reference" / "fold-0"
    assert build_mae(start).config.hidden_size == SMALL["reference_width"]
    assert {data.start for name, data in built.items() if not ARMS[name].from_scorer} == {None}


@pytest.mark.parametrize("name", ["hardest", "optidel"])
def test_tiles_are_measured_as_their_patches_were_scored(name: str, built: dict[str, ArmData]) -> None:
    stored = [tile["cond_entropy"] for mosaic in tiles(built[name]) for tile in mosaic]
    assert built[name].facts["cond_entropy"] == pytest.approx(np.mean(stored), abs=1e-4)


def test_nothing_but_the_pools_images_is_opened(
    image_folder: Path, built: dict[str, ArmData], opened: list[str]
) -> None:
    assert set(opened) == {str(path) for path in image_folder.iterdir()}


def test_arms_are_made_once_and_again_the_same(pool: Pool, built: dict[str, ArmData]) -> None:
    path = next(Path(built["optidel"].dataset).glob("*.parquet"))
    made, written = path.read_bytes(), path.stat().st_mtime_ns
    assert build_arm("optidel", BUDGET, 0, pool) == built["optidel"]
    assert path.stat().st_mtime_ns == written
    path.unlink()
    (path.parents[1] / "facts.json").unlink()
    again = build_arm("optidel", BUDGET, 0, pool)
    assert path.read_bytes() == made
    seconds = {name: data.facts.pop("curation_seconds") for name, data in (("a", again), ("b", built["optidel"]))}
    assert again == built["optidel"]
    assert seconds["a"] == seconds["b"]


def test_a_seed_redraws_but_patches_are_cut_once(pool: Pool, built: dict[str, ArmData]) -> None:
    other = build_arm("hardest", BUDGET, 1, replace(pool, measured=False))
    shard = next((pool.output / "patch" / "patches").glob("*.parquet"))
    assert (pool.output / "seed-0001" / "patch" / "patches" / shard.name).samefile(shard)
    folds = [pq.read_table(pool.output / f"seed-000{seed}/patch/reference/folds.parquet") for seed in (0, 1)]
    assert not folds[0].equals(folds[1])
    assert "coverage" not in other.facts
    drawn = [sources(build_arm("random_patch_mosaics", BUDGET, seed, pool)) for seed in (0, 1)]
    assert drawn[0] != drawn[1]


def test_a_killed_build_keeps_its_shards_and_its_seconds(pool: Pool, monkeypatch: pytest.MonkeyPatch) -> None:
    unmeasured = replace(pool, measured=False)

    def die(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(arm_data, "count_contents", die)
        with pytest.raises(KeyboardInterrupt):
            build_arm("random_images", BUDGET, 7, unmeasured)
    folder = pool.output / "arms" / "random_images_0.1_0007"
    shard = next((folder / "curated").glob("*.parquet"))
    written = shard.stat().st_mtime_ns
    assert not (folder / "facts.json").exists()
    build_arm("random_images", BUDGET, 7, unmeasured)
    assert (folder / "facts.json").exists()
    assert shard.stat().st_mtime_ns == written


def test_another_configuration_is_refused_in_the_same_folder(pool: Pool, built: dict[str, ArmData]) -> None:
    with pytest.raises(UserError, match=r"random_images_0\.1_0000 was made from another"):
        build_arm("random_images", BUDGET, 0, replace(pool, mosaic=MosaicConfig(image_size=16)))


def test_a_pool_may_be_spelled_otherwise(
    pool: Pool, built: dict[str, ArmData], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    images = Path(pool.inputs.dataset)
    monkeypatch.chdir(images.parent)
    again = build_arm("random_images", BUDGET, 0, replace(pool, inputs=replace(pool.inputs, dataset=images.name)))
    assert again.dataset == built["random_images"].dataset


def test_what_cannot_be_made_is_said(pool: Pool) -> None:
    with pytest.raises(UserError, match="Arm 'best' is not known: choose one of none, full"):
        build_arm("best", BUDGET, 0, pool)
    with pytest.raises(UserError, match="needs label_images"):
        build_arm("oracle", BUDGET, 3, pool)
    with pytest.raises(UserError, match="image_size 32 is no multiple of 3"):
        build_arm("optidel_m9", BUDGET, 0, replace(pool, mosaic=MosaicConfig(image_size=32)))
    with pytest.raises(UserError, match="needs 84 patches and the pool has 21"):
        build_arm("image_mosaics", 1.0, 0, pool)
