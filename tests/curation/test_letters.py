"""The network that finds letters, and the recipe that trains it."""

from __future__ import annotations

import runpy
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from optidel_hf.curation.letters import CELL, SURE, WEIGHTS, LetterNet, letters, scaled


RECIPE = Path(__file__).parents[2] / "recipes" / "train_letters.py"


pytestmark = pytest.mark.usefixtures("one_thread")


def test_the_share_is_that_of_sure_cells() -> None:
    pixels = torch.randint(0, 256, (3, 3, 64, 64), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    pixels[0] = 120
    network = LetterNet()
    network.load_state_dict(load_file(WEIGHTS))
    with torch.no_grad():
        logits = network(scaled(pixels))
    assert logits.shape == (3, 1, 64 // CELL, 64 // CELL)
    assert torch.equal(letters(pixels), (logits.sigmoid() > SURE).float().mean((1, 2, 3)))


def test_the_recipe_writes_weights_that_the_network_takes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = ["--pictures", "4", "--patches", "12", "--steps", "2", "--batch_size", "4"]
    written = []
    for name in ("one", "two"):
        monkeypatch.setattr(sys, "argv", ["train_letters.py", "--output_dir", str(tmp_path / name), *sizes])
        runpy.run_path(str(RECIPE), run_name="__main__")
        written.append(load_file(tmp_path / name / "letters.safetensors"))
    LetterNet().load_state_dict(written[0])
    assert {weight.dtype for weight in written[0].values()} == {torch.float16}
    assert all(torch.equal(written[0][name], written[1][name]) for name in written[0])
    assert all(weight.isfinite().all() for weight in written[0].values())


def test_some_drawn_patches_have_letters_and_most_have_none() -> None:
    recipe = runpy.run_path(str(RECIPE))
    pictures = recipe["generate_pictures"](0, 2)
    ink = [recipe["draw_patch"](recipe["np"].random.default_rng([0, i]), pictures)[1] for i in range(100)]
    cells = recipe["lettered_cells"](torch.from_numpy(recipe["np"].stack(ink)))
    assert cells.shape == (100, 1, 64 // CELL, 64 // CELL)
    assert 25 < cells.flatten(1).any(1).sum() < 55
