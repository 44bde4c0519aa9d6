from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from datasets import load_dataset
from huggingface_hub import DatasetCard, ModelCard
from PIL import Image
from transformers import ViTImageProcessorPil, ViTMAEConfig, ViTMAEForPreTraining, ViTModel

from optidel_hf.errors import UserError
from optidel_hf.evaluation.metrics.normdel import normdel
from optidel_hf.publishing.cards import (
    curation_facts,
    curation_inputs,
    render_dataset_card,
    render_metric_card,
    render_model_card,
    score_reliability,
    write_dataset_card,
    write_model_card,
)
from optidel_hf.publishing.provenance import dataset_facts, hub_id, read_provenance, write_provenance
from optidel_hf.publishing.records import read_curation


EXPECTED = Path(__file__).parent / "expected"
RUN = {
    "objective": "mae",
    "model": None,
    "image_size": 32,
    "patch_size": 8,
    "mask_ratio": 0.75,
    "norm_pix_loss": True,
    "steps": 4000,
    "batch_size": 64,
    "base_learning_rate": 1.5e-4,
    "weight_decay": 0.05,
    "seed": 7,
    "n_images": 1234,
    "peak_learning_rate": 3.75e-5,
    "parameters": 3_456_789,
    "seconds": 1234.5,
    "final_loss": 0.43219,
    "device": "cpu",
    "processes": 2,
    "precision": "bf16",
    "versions": {"transformers": "5.24.0", "torch": "2.13.0"},
}
RAW = {"name": "my frames", "hub_id": None, "revision": None, "curation": None}
RAW |= {"images_sha256": "0123456789abcdef", "command": "optidel pretrain"}


@pytest.fixture
def model_folder(tmp_path: Path) -> Path:
    (tmp_path / "pretrain_config.json").write_text(json.dumps(RUN))
    write_provenance(tmp_path, RAW)
    return tmp_path


def rewrite(folder: Path, **changes: Any) -> None:
    (folder / "pretrain_config.json").write_text(json.dumps(RUN | changes))


def with_facts(curation: Path, out: Path, **changes: Any) -> Path:
    """A copy of a curation whose selection says other things of itself."""
    shutil.copytree(curation, out)
    table = pq.read_table(out / "selection.parquet")
    told = json.loads(table.schema.metadata[b"optidel"]) | changes
    table = table.replace_schema_metadata({b"optidel": json.dumps(told).encode()})
    pq.write_table(table, out / "selection.parquet")
    return out


def snippets(card: str) -> str:
    return "\n".join(re.findall(r"```python\n(.*?)```", card, re.DOTALL))


def test_model_card_in_full(model_folder: Path, curation: Path, results: Callable[..., Path]) -> None:
    data = {
        "name": "frames-5pc",
        "hub_id": "you/frames-5pc",
        "revision": "c0ffee",
        "curation": curation_facts(curation),
    }
    write_provenance(model_folder, RAW | data | {"command": "optidel pretrain --dataset you/frames-5pc --steps 4000"})
    card = render_model_card(
        model_folder,
        results(model_folder / "results.json", {"optidel": 0.6123, "random": 0.5877}),
        model_id="you/vit-frames",
        arm="optidel",
        license="cc-by-4.0",
    )
    assert card == (EXPECTED / "model_card.md").read_text()


def test_a_card_names_the_images_of_the_last_steps(model_folder: Path) -> None:
    rewrite(model_folder, last_share=0.2)
    write_provenance(model_folder, RAW | {"last_dataset": "whole", "last_images": 234, "last_images_sha256": "fedcba"})
    card = render_model_card(model_folder)
    assert "\nmy frames, 1,000 images.\n" in card
    assert (
        "\nThey were used as they are: no curation's list (`selection.parquet`) was found beside them.\n\n"
        "The last 20 % of the steps were taken on other images: whole, 234 images, identified by `fedcba`.\n"
    ) in card


def test_a_model_trained_in_python_has_a_card(model_folder: Path) -> None:
    (model_folder / "provenance.json").unlink()
    rewrite(model_folder, images_sha256="0123", model="facebook/vit-mae-base")
    card = render_model_card(model_folder)
    assert "\n# ViT, 32 px, pre-trained on unnamed images\n" in card
    assert "\nunnamed images, 1,234 images.\nIts images are identified by `0123`.\nWhat they are was not" in card
    assert "| starts from | facebook/vit-mae-base |" in card
    assert "```bash" not in card
    rewrite(model_folder, images_sha256="0123", last_share=0.2, last_images=234, last_images_sha256="fedcba")
    assert "on other images: unnamed images, 234 images, identified by `fedcba`" in render_model_card(model_folder)


def test_a_base_model_is_what_it_was_when_training_began(model_folder: Path) -> None:
    rewrite(model_folder, model="models/warm-start")  # a folder that is not there where the card is written
    for told, linked in ({"base_model": None}, False), ({"base_model": "you/warm-start"}, True):
        write_provenance(model_folder, RAW | told | {"weights": "0123"})
        assert ("base_model: you/warm-start" in render_model_card(model_folder)) == linked
        assert "base_model: models" not in render_model_card(model_folder)


@pytest.mark.parametrize(
    ("tiles", "said"), [(1, "whole images, cut to squares"), (4, "mosaics of 4 whole images each")]
)
def test_whole_images_are_not_called_patches(
    curation: Path, model_folder: Path, tmp_path: Path, tiles: int, said: str
) -> None:
    out = with_facts(curation, tmp_path / "out", unit="image", tiles_per_mosaic=tiles)
    write_provenance(model_folder, RAW | {"curation": curation_facts(out)})
    dataset, model = render_dataset_card(out), render_model_card(model_folder)
    assert f"curated images for pre-training: {said}, chosen from" in dataset
    assert f"They are {said}, " in model
    assert "patches from" not in model
    assert ("A mosaic has seams" in dataset) == (tiles > 1)


def test_another_score_is_not_the_papers(curation: Path, tmp_path: Path) -> None:
    cards = {
        score: render_dataset_card(with_facts(curation, tmp_path / score, strategy="hardest", score=score))
        for score in ("cond_entropy", "contrast")
    }
    assert "as the OptiDEL paper does" in cards["cond_entropy"]
    assert "`hardest` ranks by `contrast` here, which is not the OptiDEL paper's score." in cards["contrast"]


def test_a_curation_is_credited_for_its_curated_images_alone(curation: Path, tmp_path: Path) -> None:
    facts = curation_facts(curation)
    folder = curation / "curated"
    for dataset in (folder, folder / "*.parquet", folder / "shard-00000-of-00001.parquet"):
        assert dataset_facts(str(dataset))["curation"] == facts
    (tmp_path / "curated").mkdir()  # by another's hand
    others = (curation / "patches", curation / "images", curation / "images" / "*.parquet", tmp_path / "curated")
    for other in others:
        assert dataset_facts(str(other))["curation"] is None


def test_dataset_card_in_full(curation: Path) -> None:
    card = render_dataset_card(curation, name="Frames, 5 %", repo_id="you/frames-5pc", license="cc-by-4.0")
    assert card == (EXPECTED / "dataset_card.md").read_text()


def test_selection_card_in_full(curation: Path) -> None:
    card = render_dataset_card(curation, repo_id="you/frames-list", license="cc-by-4.0", selection_only=True)
    assert card == (EXPECTED / "selection_card.md").read_text()


def test_metric_card_in_full() -> None:
    card = render_metric_card(Path(normdel.__file__), "you/normdel")
    assert card == (EXPECTED / "metric_card.md").read_text()


@pytest.mark.parametrize("figure", ["hardware", "command", "inputs"])
def test_a_figure_that_the_curation_did_not_record_is_named(curation: Path, tmp_path: Path, figure: str) -> None:
    out = shutil.copytree(curation, tmp_path / "out")
    config = json.loads((out / "config.json").read_text())
    del config[figure]
    (out / "config.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match="name" if figure == "inputs" else figure):
        render_dataset_card(out)


def test_a_dataset_of_the_hub_is_named_with_its_commit(curation: Path, tmp_path: Path) -> None:
    record = read_curation(curation)
    record.config["inputs"] = {"dataset": "you/frames", "revision": None}
    sources = [f"you/frames@c0ffee/train#{row}" for row in range(record.selection.num_rows)]
    record.selection = record.selection.set_column(0, "source", [sources])
    assert curation_inputs(record)[0]["revision"] == "c0ffee"


def test_inputs_are_the_models_that_were_used_beside_the_images(curation: Path) -> None:
    record = read_curation(curation)
    reference = {"reference": "facebook/vit-mae-base", "reference_revision": "c0ffee", "weights": None}
    record.stages["reference"]["fields"] = reference
    images, sam, scorer = curation_inputs(record)
    assert (images["role"], sam["role"]) == ("source images", "SAM")
    told = {"role": "reference model", "name": "facebook/vit-mae-base", "revision": "c0ffee", "hash": None}
    assert scorer == told
    record.stages["patches"]["fields"]["unit"] = "image"  # no SAM cuts whole images
    assert curation_inputs(record) == [images, told]


def test_reliability_is_of_what_was_compared(curation: Path) -> None:
    record = read_curation(curation)
    record.calibration[0]["reliability"] = None
    record.agreement = {"between_folds": None, "between_models": 0.6, "second_reference": "facebook/vit-mae-base"}
    assert {row["what"]: row["values"] for row in score_reliability(record)} == {
        "between two mask partitions": [pytest.approx(0.8)],
        "of the mean over 3 partition(s) (Spearman-Brown)": [0.92],
        "between the reference model and `facebook/vit-mae-base`": [0.6],
    }


@pytest.mark.parametrize(("mosaics", "said"), [(999, "n<1K"), (1_000, "1K<n<10K"), (100_000, "100K<n<1M")])
def test_a_dataset_is_found_by_its_size(curation: Path, tmp_path: Path, mosaics: int, said: str) -> None:
    out = shutil.copytree(curation, tmp_path / "out")
    shutil.rmtree(out / "scores")
    table = pq.read_table(out / "selection.parquet")
    many = table.take(np.resize(np.arange(len(table)), mosaics))
    column = many.column_names.index("mosaic")
    pq.write_table(many.set_column(column, "mosaic", pa.array(range(mosaics))), out / "selection.parquet")
    assert DatasetCard(render_dataset_card(out)).data.size_categories == said


@pytest.mark.parametrize(
    ("dataset", "kind", "name"), [("you/polyps", "you/polyps", "you/polyps"), ("/data/labels", "custom", "labels")]
)
def test_scores_name_a_dataset_of_the_hub_and_no_ones_folders(
    model_folder: Path, results: Callable[..., Path], dataset: str, kind: str, name: str
) -> None:
    path = results(model_folder / "results.json", {"optidel": 0.6})
    told = json.loads(path.read_text())
    path.write_text(json.dumps(told | {"config": told["config"] | {"dataset": dataset}}))
    scores = ModelCard(render_model_card(model_folder, path, arm="optidel")).data.eval_results
    assert {(score.dataset_type, score.dataset_name) for score in scores} == {(kind, name)}


def test_a_card_tells_what_the_model_knows_of_held_out_images(model_folder: Path) -> None:
    assert "Held-out V-information: not measured" in render_model_card(model_folder)
    figures = {"v_information": 0.4126, "low": 0.39, "high": 0.44, "frames": 150, "groups": 141, "target": "raw"}
    (model_folder / "held_out.json").write_text(json.dumps(figures))
    said = "0.413 (95 % 0.390 to 0.440; 150 frames, 141 groups), bits per value, raw pixels."
    assert f"\nHeld-out V-information: {said}\n" in render_model_card(model_folder)


def test_model_card_without_curation_and_results(model_folder: Path) -> None:
    card = write_model_card(model_folder).read_text()
    assert "no curation's list" in card
    assert "was not evaluated" in card
    assert "None" not in card
    assert ModelCard(card).data.license == "unknown"
    assert ModelCard(card).data.datasets is None


def test_the_settings_in_the_card_are_those_of_the_run(model_folder: Path) -> None:
    rewrite(model_folder, output_dir="---\n```", warmup_steps=None)
    block = re.search(r"```yaml\n(.*?)\n```\n\n</details>", render_model_card(model_folder), re.DOTALL)
    assert block is not None
    assert yaml.safe_load(block[1]) == json.loads((model_folder / "pretrain_config.json").read_text())


def test_base_model_is_linked_only_where_the_hub_has_it(model_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rewrite(model_folder, model="facebook/vit-mae-base")
    write_provenance(model_folder, RAW | {"weights": "25b184"})
    card = render_model_card(model_folder)
    assert ModelCard(card).data.base_model == "facebook/vit-mae-base"
    assert "| starts from | facebook/vit-mae-base (25b184) |" in card
    monkeypatch.chdir(model_folder)
    Path("facebook/vit-mae-base").mkdir(parents=True)
    assert ModelCard(render_model_card(model_folder)).data.base_model is None


def test_a_path_that_is_gone_is_no_name_on_the_hub() -> None:
    names = ["you/frames", "you/frames-5pct.v2", "../frames", "./frames", "you/.frames", "you/frames/train", "frames"]
    assert [name for name in names if hub_id(name)] == ["you/frames", "you/frames-5pct.v2"]


@pytest.mark.parametrize("figure", ["peak_learning_rate", "n_images", "seed", "device", "final_loss", "versions"])
@pytest.mark.parametrize("absent", [True, False])
def test_a_missing_figure_is_named(model_folder: Path, figure: str, absent: bool) -> None:
    run = {name: value for name, value in RUN.items() if name != figure} if absent else RUN | {figure: None}
    (model_folder / "pretrain_config.json").write_text(json.dumps(run))
    with pytest.raises(UserError, match=figure):
        render_model_card(model_folder)


def test_the_card_of_a_contrastive_model_speaks_of_no_autoencoder(model_folder: Path) -> None:
    rewrite(model_folder, objective="simclr", temperature=0.1, projection_size=128)
    card = render_model_card(model_folder)
    assert "| objective | simclr, temperature 0.1, projections of 128 values |" in card
    assert "projection_head.safetensors" in card
    assert not re.search("autoencod|mae|masked|decoder", card, re.IGNORECASE)
    assert "A Simple Framework for Contrastive Learning" in card


def test_an_unfinished_training_has_no_card(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="has not finished"):
        render_model_card(tmp_path)


def test_one_seed_has_no_interval(model_folder: Path) -> None:
    row = {"arm": "a", "mode": "probe", "seeds": 1, "miou_mean": 0.5, "miou_low": None, "miou_high": None}
    (model_folder / "results.json").write_text(json.dumps({"summary": [row]}))
    card = render_model_card(model_folder, model_folder)
    assert "| a | probe | 50.00 | none | 1 |" in card


def test_the_model_card_s_code_runs(model_folder: Path) -> None:
    config = ViTMAEConfig(
        image_size=32,
        patch_size=8,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=64,
        decoder_hidden_size=32,
        decoder_num_hidden_layers=1,
        decoder_num_attention_heads=2,
        decoder_intermediate_size=64,
    )
    ViTMAEForPreTraining(config).save_pretrained(model_folder)
    backbone = ViTModel.from_pretrained(model_folder, add_pooling_layer=False)
    processor = ViTImageProcessorPil(size={"height": 32, "width": 32})
    for folder, part in ((model_folder, None), (model_folder / "backbone", backbone)):
        processor.save_pretrained(folder)
        if part is not None:
            part.save_pretrained(folder)
    names: dict[str, Any] = {}
    exec(snippets(render_model_card(model_folder)), names)
    features = names["features"](Image.new("RGB", (40, 40), (120, 60, 30)))
    assert np.asarray(features).shape == (1, 17, 32)
    assert isinstance(names["model"], ViTMAEForPreTraining)


def test_the_dataset_loads_with_its_card_beside_it(curation: Path, tmp_path: Path) -> None:
    out = shutil.copytree(curation, tmp_path / "out")
    card = write_dataset_card(out, license="cc-by-4.0").read_text()
    assert DatasetCard(card).data.license == "cc-by-4.0"
    dataset = load_dataset(str(out / "curated"), split="train", cache_dir=str(tmp_path / "cache"))
    assert len(dataset) == 4
    assert set(dataset.column_names) == {"image", "tiles"}


def test_only_what_was_ranked_by_hardness_is_called_hard(curation: Path, tmp_path: Path) -> None:
    for weight, score, said in (
        (1.0, "difficulty", "hard patches after trimming"),
        (1.0, "learnability", "`optidel` by learnability: patches"),
        (0.0, "difficulty", "`optidel` without hardness: patches"),
    ):
        told = {"strategy": "optidel", "hardness_weight": weight, "score": score}
        card = render_dataset_card(with_facts(curation, tmp_path / f"{score}-{weight}", **told))
        assert said in card
        assert ("They are hard" in card) == said.startswith("hard")


def test_a_dataset_card_needs_a_selection(curation: Path, tmp_path: Path) -> None:
    (tmp_path / "inputs.parquet").write_bytes((curation / "inputs.parquet").read_bytes())
    with pytest.raises(UserError, match="selection"):
        render_dataset_card(tmp_path)


def test_what_the_command_line_knew_wins_over_what_the_run_recorded(tmp_path: Path) -> None:
    run = {"images_sha256": "of the run", "last_images": 5}
    assert read_provenance(tmp_path, run)["images_sha256"] == "of the run"
    write_provenance(tmp_path, {"name": "frames", "images_sha256": "told"})
    assert read_provenance(tmp_path, run) == {"images_sha256": "told", "last_images": 5, "name": "frames"}
