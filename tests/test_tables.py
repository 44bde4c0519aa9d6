"""A table of several splits and a `map` row by row are refused in words, wherever Python users hand them over."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any
from unittest.mock import ANY

import pytest
from datasets import Dataset, DatasetDict, Image, IterableDataset

from optidel_hf import SamPatchExtractor, VInformationScorer, curated_dataset, fit_scorer, select
from optidel_hf.curation.contrastive_scoring import calibrate_contrastive
from optidel_hf.curation.patches import PatchConfig
from optidel_hf.curation.reference import ReferenceConfig, calibrate_checkpoint
from optidel_hf.curation.scoring import ScoreConfig
from optidel_hf.errors import UserError


SPLITS = DatasetDict(train=Dataset.from_dict({"source": ["a"]}), test=Dataset.from_dict({"source": ["b"]}))
STREAM = IterableDataset.from_generator(lambda: iter([{"source": "a"}]))
GIVEN = (ReferenceConfig("given"), ScoreConfig())
USES: dict[str, Callable[[Any], Any]] = {
    "select": lambda table: select(table, budget=0.5),
    "fit_scorer": lambda table: fit_scorer(table, "unused"),
    "calibrate_checkpoint": lambda table: calibrate_checkpoint(table, "unused", *GIVEN),
    "calibrate_contrastive": lambda table: calibrate_contrastive(table, "unused", "given"),
    "curated_dataset": lambda table: curated_dataset(table, ANY, SPLITS["train"]),
    "its images": lambda table: curated_dataset(SPLITS["train"], ANY, table),
}


@pytest.mark.parametrize("use", [use for use in USES if use != "select"])
def test_an_arrow_table_is_for_select_alone(use: str) -> None:
    with pytest.raises(UserError, match=r"is of type Table: give a datasets\.Dataset"):
        USES[use](SPLITS["train"].data.table)


@pytest.mark.parametrize("use", USES)
def test_several_splits_are_refused(use: str) -> None:
    with pytest.raises(UserError, match=r"is of type DatasetDict, with train, test: give one of them, as \['train'\]"):
        USES[use](SPLITS)
    with pytest.raises(UserError, match="is of type IterableDataset: give"):
        USES[use](STREAM)


@pytest.mark.parametrize("use", ["fit_scorer", "calibrate_checkpoint", "calibrate_contrastive"])
def test_images_without_a_patch_are_named(use: str) -> None:
    columns = {name: ["a", "b"] for name in ("image", "source", "group")}
    with pytest.raises(UserError, match="`patches` has no column 'crop'"):
        USES[use](Dataset.from_dict(columns))
    with pytest.raises(UserError, match=r"Row 1 of `patches` has no patch, .* leave such rows out"):
        USES[use](Dataset.from_dict({**columns, "crop": [[0, 0, 9], None]}))


@pytest.mark.parametrize("stage", [SamPatchExtractor, lambda: VInformationScorer("x")])
def test_map_without_batches_is_refused(stage: Callable[[], Any], image_folder: Any) -> None:
    images = Dataset.from_dict({"image": [str(next(image_folder.glob("*.png")))]}).cast_column(
        "image", Image(decode=False)
    )
    with pytest.raises(
        UserError, match="Column 'image' came as one value in place of many: call `map` with batched=True"
    ):
        images.map(stage())


def test_a_missing_image_column_is_named() -> None:
    extractor = SamPatchExtractor(PatchConfig(unit="image"))
    with pytest.raises(UserError, match="no column 'image', only picture, source"):
        extractor({"picture": [b""], "source": ["a"]})
