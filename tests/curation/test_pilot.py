"""The pilot of `--strategy auto`: where the truth is known it names the better arm, and without a lead it refuses."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from tiny_reference import tiny_patches

from optidel_hf.curation.curated import to_arrow
from optidel_hf.curation.pilot import ARMS, MaePilot, PilotConfig, Train, chooser, find_lead, run_pilot
from optidel_hf.curation.reference import ReferenceConfig
from optidel_hf.errors import UserError
from optidel_hf.parquet import write_parquet
from optidel_hf.theory.hard_margin import solve_nested
from optidel_hf.theory.study import TheoryConfig, draw_pool


class Pool:
    """A perceptron's pool, in which what an arm teaches is known exactly; a hard-margin student is the learner."""

    def __init__(self, ratio: int, fraction: float, probe_angle: float, draw: int) -> None:
        config = TheoryConfig(ratios=[ratio], probe_angle=probe_angle)
        self.points, self.teacher, _ = draw_pool(config, ratio, draw)
        self.count = int(fraction * len(self.points))
        self.order = np.argsort(-np.abs(self.points[:, 0]))  # by the probe's margin, easiest first

    def choose(self, arm: str, count: int) -> np.ndarray:
        start = {"easiest": 0, "medium": (len(self.order) - count) // 2, "optidel": len(self.order) - count}[arm]
        return self.order[start : start + count]

    def train(self, rows: np.ndarray, judged: np.ndarray, seed: int) -> float:
        """1 - h(error) bits: of the family that says the student's label and is wrong with one probability."""
        student = solve_nested(self.points[rows][None], [len(rows)])[0].weights[0]
        error = np.arccos(student @ self.teacher / np.linalg.norm(student)) / np.pi
        return float(1 + error * np.log2(error) + (1 - error) * np.log2(1 - error))

    def truth(self) -> str:
        return max(ARMS, key=lambda arm: self.train(self.choose(arm, self.count), self.order, 0))

    def named(self) -> str | None:
        groups = [str(row) for row in range(len(self.points))]
        try:
            return run_pilot(groups, self.count, self.choose, self.train, PilotConfig().pilot_repeats)["arm"]
        except UserError:
            return None


@pytest.mark.parametrize(
    ("ratio", "fraction", "probe_angle", "better"), [(10, 0.1, 20.0, "easiest"), (50, 0.3, 10.0, "optidel")]
)
def test_where_the_truth_is_clear_the_better_arm_is_named(
    ratio: int, fraction: float, probe_angle: float, better: str
) -> None:
    """Scarce data with a poor probe want easy samples, plentiful data hard ones: in 4 of 5 pools it says so."""
    pools = [Pool(ratio, fraction, probe_angle, draw) for draw in range(5)]
    truths = [pool.truth() for pool in pools]
    assert truths.count(better) >= 4
    named = [pool.named() for pool in pools]
    assert sum(name == truth for name, truth in zip(named, truths)) >= 4
    assert sum(name not in (None, truth) for name, truth in zip(named, truths)) <= 1


def test_where_the_arms_teach_the_same_it_refuses_with_the_figures() -> None:
    def noise(rows: np.ndarray, judged: np.ndarray, seed: int) -> float:
        return 0.4 + 0.01 * rng.normal()

    rng = np.random.default_rng(0)
    told = [refusal(noise) for _ in range(40)]
    refusals = [text for text in told if text]
    assert len(refusals) >= 36
    assert all(
        "includes zero" in text and "at 5 patches, 0." in text and "--pilot_repeats" in text for text in refusals
    )


def refusal(train: Train) -> str:
    """What a pilot says that refuses; nothing of one that names an arm."""
    try:
        run_pilot([str(i) for i in range(50)], 20, lambda arm, count: np.arange(count), train, repeats=5)
    except UserError as error:
        return str(error)
    return ""


def test_a_lead_without_any_learning_is_none() -> None:
    arms = {arm: np.arange(10 * number, 30) for number, arm in enumerate(ARMS)}
    groups = [str(i) for i in range(40)]
    with pytest.raises(UserError, match=r"leads medium by 1\.000 bits, but has learnt less than the mean"):
        run_pilot(groups, 8, lambda arm, count: arms[arm], lambda rows, judged, seed: rows.min() // 10 - 3.0, 2)


def test_the_lead_by_hand() -> None:
    # Leads over the first 1, 2, 3: mean 2, deviation 1; over the last 2, 2, 2.
    bits = np.array([[0.0, -1, 1], [1.0, 1, 3], [0.0, 1, 3]])
    lead = find_lead(bits)
    assert (lead.arm, lead.over) == ("optidel", "easiest")
    # t of 2 degrees of freedom at 1 - 0.05 / 6 is 7.6488.
    assert (lead.gain, lead.low) == (pytest.approx(2.0), pytest.approx(2 - 7.6488 / np.sqrt(3), abs=1e-3))


def test_the_whole_budget_is_one_doubling_away_and_held_out_groups_train_nothing() -> None:
    groups = [f"video-{i // 4}" for i in range(40)]
    seen: list[tuple[int, set[str], set[str]]] = []

    def train(rows: np.ndarray, judged: np.ndarray, seed: int) -> float:
        seen.append((seed, {groups[row] for row in rows}, {groups[row] for row in judged}))
        return float(rows.min() >= 19) + 0.1 * np.log2(counts[len(seen) - 1])

    counts = [10, 20] * len(ARMS) * 2
    arms = {"easiest": np.arange(0, 20), "medium": np.arange(0, 20), "optidel": np.arange(19, 39)}
    found = run_pilot(groups, 40, lambda arm, count: arms[arm][:count], train, repeats=2)
    assert found["counts"] == [10, 20, 40]
    assert found["bits"]["optidel"] == pytest.approx([1 + 0.1 * np.log2(n) for n in (10, 20, 40)])
    assert all(not trained & judged for _, trained, judged in seen)
    held = {seed: judged for seed, _, judged in seen}
    assert held[0] != held[1]
    assert {len(judged) for judged in held.values()} == {2}


def test_finished_runs_are_not_run_again(tmp_path: Path) -> None:
    runs: list[int] = []

    def train(rows: np.ndarray, judged: np.ndarray, seed: int) -> float:
        runs.append(seed)
        if len(runs) == 8:
            raise KeyboardInterrupt
        return float(rows.min() // 10)

    arms = {arm: np.arange(10 * number, 30) for number, arm in enumerate(ARMS)}
    arguments = ([str(i) for i in range(40)], 8, lambda arm, count: arms[arm], train, 2, tmp_path / "pilot.json")
    with pytest.raises(KeyboardInterrupt):
        run_pilot(*arguments)
    run_pilot(*arguments)
    assert len(runs) == 12 + 1
    assert len(json.loads((tmp_path / "pilot.json").read_text())) == 12


def test_a_pilot_of_masked_autoencoders_on_images(tmp_path: Path) -> None:
    patches = tiny_patches(40)
    write_parquet(to_arrow(patches), tmp_path / "patches" / "shard-00000-of-00001.parquet")
    columns = ["source", "group", "bbox", "crop", "upscale"]
    rng = np.random.default_rng(0)
    table = to_arrow(patches.select_columns(columns)).append_column("difficulty", pa.array(rng.normal(size=40)))
    table = table.append_column("fold", pa.array([0] * 40, pa.int8()))
    embedding = pa.FixedSizeListArray.from_arrays(pa.array(rng.normal(size=160).astype(np.float32)), 4)
    table = table.append_column("embedding", embedding)
    reference = ReferenceConfig(reference_batch_size=4, reference_width=64, reference_layers=1)
    train = MaePilot(tmp_path / "patches", reference, 2, tmp_path / "runs", "cpu")
    choose = chooser(table, {"score": "difficulty", "seed": 0})
    assert sorted(choose("easiest", 10).tolist()) == sorted(np.argsort(table["difficulty"].to_numpy())[:10].tolist())
    try:
        text = json.dumps(run_pilot(table["group"].to_pylist(), 16, choose, train, 2))
    except UserError as error:
        text = str(error)
    assert all(arm in text for arm in ARMS)
    assert not (tmp_path / "runs").exists()
    first, again, other = (train(np.arange(8), np.arange(8, 20), seed) for seed in (0, 0, 1))
    assert first == again != other


def test_a_budget_of_which_all_may_be_held_out_is_refused_before_any_training() -> None:
    groups = [str(row // 2) for row in range(40)]
    with pytest.raises(
        UserError, match="The budget of 4 patches is too small for a pilot: of the 1 or 2 of an arm all"
    ):
        run_pilot(groups, 4, lambda arm, count: np.arange(count), lambda *told: pytest.fail("trained"), repeats=20)


def test_an_interval_needs_repeats() -> None:
    with pytest.raises(UserError, match="pilot_repeats is at least 2"):
        PilotConfig(pilot_repeats=1)
