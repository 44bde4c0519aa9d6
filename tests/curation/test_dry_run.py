"""The projection: what a few images take, times how many more there are."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest

from optidel_hf import cli
from optidel_hf.curation.dry_run import DryRunConfig, Projection, project
from optidel_hf.curation.inputs import InputConfig, open_sources
from optidel_hf.curation.patch_config import PatchConfig
from optidel_hf.curation.patches import SamPatchExtractor
from optidel_hf.errors import UserError


def test_what_is_measured_is_scaled_to_all_images() -> None:
    lines = str(Projection(3000, 30, 60, 10.0, 90_000, Counter({"no image in this row": 2}), "cpu", 2)).splitlines()
    said = {line[:17].strip(): line[17:].strip() for line in lines}
    assert said["patches an image"] == "2.00"
    assert said["images/s"] == "3.00"
    assert said["rejected"] == "2 of 30: no image in this row"
    assert said["all key patches"] == "6,000"
    assert said["time"] == "8 min 20 s on 2 x cpu"  # 1,000 s, by two
    assert said["cost"] == "0.28 device-hours"
    assert said["disk"] == "9.0 MB in patches/"


def test_of_all_images_it_is_their_patches(image_folder: Path, tiny_sam: str) -> None:
    inputs, config = InputConfig(str(image_folder)), PatchConfig(sam=tiny_sam, patch_size=16)
    rows = SamPatchExtractor(config, "cpu")(open_sources(inputs)[:])
    expected = rows["rejected"].count(None)
    projection = project(inputs, config, 100, "cpu")
    assert (projection.sampled, projection.images, projection.patches) == (24, 24, expected)
    assert projection.reasons.total() == len(rows["rejected"]) - expected
    pictures = sum(len(image["bytes"]) for image in rows["image"] if image is not None)
    assert pictures < projection.stored < pictures + 10_000


def test_nothing_is_written(
    image_folder: Path, tiny_sam: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = ["--dataset", str(image_folder), "--sam", tiny_sam, "--output_dir", str(tmp_path / "out")]
    assert cli.main(["curate", *flags, "--dry_run", "5", "--device", "cpu"]) == 0
    assert "5 of 24 images, evenly spaced, on cpu" in capsys.readouterr().out
    assert not (tmp_path / "out").exists()


def test_no_image_is_refused() -> None:
    with pytest.raises(UserError, match="at least one image"):
        DryRunConfig(0)
