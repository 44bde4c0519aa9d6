"""What the summary claims, and above all what it does not."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest
from simulated import results_table

from optidel_hf.errors import UserError
from optidel_hf.evaluation.metrics.normdel.normdel import normdel
from optidel_hf.evidence import arms
from optidel_hf.evidence.comparison import PRIMARY, Judged, Setting
from optidel_hf.evidence.inference import RankCorrelation, Reached, seeds_needed
from optidel_hf.evidence.measured import with_curation_steps
from optidel_hf.evidence.summary import EFFECTS, summary_text
from optidel_hf.evidence.trials import count_trials, note_trial
from optidel_hf.evidence.wording import (
    correlation_text,
    detectable_text,
    difference_text,
    number_text,
    reached_text,
    table,
)


ARMS = {
    "none": 0.55,
    "full": 0.70,
    "random_images": 0.65,
    "image_mosaics": 0.66,
    "random_crop_mosaics": 0.665,
    "random_patch_mosaics": 0.67,
    "optidel": 0.78,
    "oracle": 0.76,
}


@pytest.fixture(scope="module")
def results() -> pa.Table:
    return results_table(ARMS, splits=["validation", "test"], checkpoints=2)


@pytest.fixture(scope="module")
def text(results) -> str:
    return summary_text(results)


def section(text: str, title: str) -> str:
    return text.split(f"## {title}", 1)[1].split("\n## ", 1)[0]


def line(part: str, *first: str) -> list[str]:
    """The other cells of the table's line that begins with these."""
    start = "| " + " | ".join(first) + " | "
    (found,) = (line for line in part.splitlines() if line.startswith(start))
    return found.removeprefix(start).removesuffix(" |").split(" | ")


def few_runs(arms: dict[str, float], **told) -> pa.Table:
    """A small grid, where it is the choice of runs that counts."""
    return results_table(arms, **{"seeds": 2, "images": 5, "modes": ["probe"], **told})


def test_a_clear_win_is_called_met(text):
    assert text.startswith("# Results on the test part\n")
    assert "**Met**: 4 of the four intervals lie above zero, 0 below it." in section(text, "Primary endpoint")
    assert text.index("## Primary endpoint") < text.index("## Arms at 5 % of the pool, 100 labels")


def test_a_loss_is_called_not_met():
    text = summary_text(results_table(ARMS | {"optidel": 0.68}, splits=["validation", "test"]))
    assert "**Not met**: 2 of the four intervals lie above zero, 2 below it." in text


def test_a_lead_within_its_interval_meets_nothing():
    level = results_table(ARMS | {"optidel": 0.7}, splits=["validation", "test"])
    text = summary_text(level)
    assert "**Not met**: 2 of the four intervals lie above zero, 0 below it." in text
    difference, _, seeds, _ = line(section(text, "Primary endpoint"), "optidel minus full", "probed")
    assert "**" not in difference
    assert seeds == "5 seeds"


def test_without_headroom_nothing_is_claimed(results):
    text = summary_text(results.filter(pc.not_equal(results["arm"], "oracle")))
    assert text.startswith(
        "# Results on the test part: gate not run\n\nThe gate was not run as a whole, and so no claim is supported"
    )
    assert "Without headroom they support no claim." in text
    assert "**Met**" not in text


def test_validation_is_no_result(results):
    text = summary_text(results.filter(pc.equal(results["split"], "validation")))
    assert text.startswith("# Results on the validation part\n")
    assert "On the validation part this is no result" in text


@pytest.mark.parametrize("seeds", [1, 2, 3])
def test_few_seeds_leave_the_endpoint_open(results, seeds):
    text = summary_text(results.filter(pc.less(results["seed"], seeds)))
    assert "Open: the endpoint is judged when all four comparisons have 5 seeds or more." in text
    assert "nan" not in text.lower()
    assert "no claims" in section(text, "Primary endpoint")
    assert "| **" not in text
    assert ("(no interval)" in text) == (seeds == 1)
    assert line(section(text, "Arms at").split("### Probed")[1], "optidel")[-1].endswith("no claims")
    assert "Screening" not in text  # where no arm has more


def test_only_the_seeds_that_both_arms_have_are_compared(results):
    missing = pc.and_(pc.equal(results["arm"], "optidel"), pc.is_in(results["seed"], pa.array([1, 3])))
    partial = results.filter(pc.invert(missing))
    judged = Judged.of(partial, "test")
    by_seed = {(row["arm"], row["seed"]): row["miou"] for row in judged.rows.to_pylist() if row["mode"] == "probe"}
    compared = judged.compare("optidel", "full", "probe").interval
    assert compared.seeds == 3
    assert compared.difference == pytest.approx(
        np.mean([by_seed["optidel", seed] - by_seed["full", seed] for seed in (0, 2, 4)])
    )
    text = summary_text(partial)
    assert "| 3 seeds, no claims | 40 |" in section(text, "Primary endpoint")
    assert "| optidel | 5 % of the pool, 100 labels | probed |" in section(text, "Screening")


def test_arms_are_compared_at_the_primary_setting_whatever_else_was_run_more_often():
    arms = {"full": 0.7, "optidel": 0.8}
    more = [few_runs(arms, seeds=4, labels=16), few_runs({"optidel": 0.8}, seeds=4, budget=0.2)]
    judged = Judged.of(pa.concat_tables([*more, few_runs(arms)]))
    assert judged.setting == PRIMARY
    assert [(one.arm, one.setting) for one in judged.headline("probe")] == [
        ("full", Setting(1.0, 100)),
        ("optidel", PRIMARY),
    ]
    assert len(judged.find("full", "probe").runs) == 2


def test_without_the_primary_setting_arms_are_compared_where_most_runs_are():
    first = few_runs({"optidel": 0.8, "random_images": 0.7}, seeds=1, budget=0.2)
    most = few_runs({"optidel": 0.8}, seeds=3, budget=0.1)
    none_and_full = few_runs({"none": 0.6, "full": 0.7}, seeds=5)  # have no budget to be compared at
    assert Judged.of(pa.concat_tables([first, most, none_and_full])).setting == Setting(0.1, 100)
    assert str(Setting(0.1, 0)) == "10 % of the pool, all labels"


def test_a_curve_is_of_one_setting():
    arm, other = (few_runs({"optidel": quality}, checkpoints=2) for quality in (0.7, 0.8))
    other = other.set_column(other.column_names.index("budget"), "budget", pa.array([0.2] * len(other)))
    alone, both = Judged.of(arm), Judged.of(pa.concat_tables([arm, other]))
    for expected, found in zip(alone.curve(alone.series[0]), both.curve(both.series[0])):
        np.testing.assert_array_equal(found, expected)


def test_missing_arms_are_said_to_be_missing(results):
    text = summary_text(results.filter(pc.not_equal(results["arm"], "full")))
    assert "| optidel minus full | fine-tuned | not run | – | – | – |" in text


def test_an_arm_stands_against_random_images_then_against_full(results, text):
    judged = Judged.of(results, "test")
    _, _, *contrasts, _ = line(section(text, "Arms at").split("### Probed")[1], "optidel")
    found = [judged.compare("optidel", other, "probe") for other in ("random_images", "full")]
    assert contrasts == [
        words for one in found for words in (difference_text(one.interval), detectable_text(one.detectable))
    ]


def test_components_stand_in_points_with_the_seeds_that_show_one(results, text):
    found = Judged.of(results, "test").compare("optidel", "full", "probe")
    parts = [
        f"{100 * part:.2f}" for part in (found.components.seed, found.components.image, found.components.residual)
    ]
    cells = line(section(text, "Variance components and seeds needed"), "optidel minus full", "probed")
    needed = seeds_needed(found.components, 40, 0.01)
    assert cells == [*parts, "5 seeds, 40 images", str(needed)]
    few = section(summary_text(few_runs({"full": 0.7, "optidel": 0.8})), "Variance components and seeds needed")
    assert line(few, "optidel minus full", "probed")[-2:] == ["2 seeds, 5 images", "no number: too few images"]


def test_effects_are_named_by_what_they_separate(text):
    effects = section(text, "What the parts of the method do")
    assert "| selection | optidel minus random_patch_mosaics | fine-tuned |" in effects
    assert "| SAM | random_patch_mosaics minus random_crop_mosaics | probed |" in effects
    assert "| zoom | random_crop_mosaics minus image_mosaics | probed |" in effects
    assert {arm for pair in EFFECTS.values() for arm in pair} <= set(arms.ARMS)


def test_normdel_is_of_the_seeds_mean_and_the_budget(results, text):
    miou = Judged.of(results, "test").find("optidel", "probe").interval().difference
    assert f"| {normdel(miou, 0.05):.4f} |" in text
    assert line(section(text, "Arms at").split("### Probed")[1], "none")[1] == "–"  # took no share
    assert "NormDEL, alpha = 1" in text


def test_other_budgets_and_few_seeds_are_screening(results):
    other = results_table({"optidel": 0.8, "random_images": 0.7}, seeds=2, splits=["test"], budget=0.2, checkpoints=2)
    semdedup = results_table({"semdedup": 0.8}, seeds=2, splits=["test"], checkpoints=2)
    text = summary_text(pa.concat_tables([results, other, semdedup]))
    screening = section(text, "Screening: descriptive, no claims")
    assert "| optidel | 20 % of the pool, 100 labels | probed |" in screening
    assert "| semdedup | 5 % of the pool, 100 labels | fine-tuned |" in screening
    assert screening.count("2 seeds, no claims") == 6
    assert "semdedup" not in section(text, "Arms at")


def test_a_grid_elsewhere_does_not_pass_for_the_endpoint():
    text = summary_text(results_table(ARMS, seeds=2, budget=0.2, labels=16))
    assert "at 20 % of the pool, 16 labels instead of 5 % of the pool, 100 labels" in text
    assert "This grid does not hold the primary endpoint." in text


def test_several_draws_of_labels_are_said(results):
    drawn = [results.append_column("label_draws", pa.array([count] * len(results))) for count in (1, 5)]
    told = ["judged by 5 draws of labels" in summary_text(one) for one in (results, *drawn)]
    assert told == [False, False, True]
    mixed = few_runs({"full": 0.7, "optidel": 0.7}).append_column("label_draws", pa.array([1, 5, 1, 5]))
    assert "judged by 1 or 5 draws of labels" in summary_text(mixed)


def test_steps_to_fulls_level_come_from_the_checkpoints(text):
    levels = section(text, "Steps to full's level")
    assert "| optidel | fine-tuned | 200 [200, 200] | 5 |" in levels
    assert "| random_images | probed | not reached" in levels


def test_facts_are_means_over_seeds_and_their_absence_is_no_zero(results):
    arms = results["arm"].to_pylist()
    measured = results.append_column(
        "vinfo_held_out", pa.array([ARMS[arm] if arm != "none" else None for arm in arms])
    )
    text = summary_text(measured)
    assert "| none | 0 % | – |" in section(text, "The three measurements")
    assert "Rank correlation of (iii) with mIoU over arms, probed: 1.00 (95 %" in text
    assert "The three measurements" not in summary_text(results)


def test_curation_is_also_told_in_the_steps_that_its_time_would_have_bought(results):
    rows = with_curation_steps(results).to_pylist()  # 400 steps in 60 s, curation in 30 s
    assert {(row["arm"] == "none", row["curation_steps"]) for row in rows} == {(True, 0.0), (False, 200.0)}


def test_unequal_samples_seen_are_said(results):
    seen = [row["images_seen"] * (1 + (row["arm"] == "full")) for row in results.to_pylist()]
    unequal = results.set_column(results.column_names.index("images_seen"), "images_seen", pa.array(seen))
    assert "**Not all arms saw equally many images**" in summary_text(unequal)
    assert "All pre-trained arms saw equally many images." in summary_text(results)


def test_different_test_images_are_refused(results):
    other = results_table({"optidel": 0.8}, seeds=6, splits=["test"], images=30, checkpoints=2)
    with pytest.raises(UserError, match=r"optidel.*was judged on 30 and 40 images, depending on the seed"):
        summary_text(pa.concat_tables([results, other.filter(pc.equal(other["seed"], 5))]))


def test_arms_that_were_judged_on_different_images_are_not_compared():
    results = pa.concat_tables([few_runs({"full": 0.7}), few_runs({"optidel": 0.8}, images=4)])
    with pytest.raises(UserError, match=r"Arms optidel and full .* were judged on 4 and 5 images"):
        Judged.of(results).compare("optidel", "full", "probe")


def test_trials_are_counted_by_configuration(tmp_path, results, text):
    path = tmp_path / "trials.jsonl"
    assert count_trials(path, "here") == {}
    for part, code in (("here", "a"), ("here", "a"), ("here", "b"), ("elsewhere", "c")):
        note_trial(path, part, code, {"arm": "optidel", "seed": 0})
    trials = count_trials(path, "here")
    assert trials == {"optidel": 2}
    assert "| optidel | 2 |" in section(summary_text(results, trials), "Trials")
    assert "Trials" not in text  # of none


def test_rows_of_several_origins_are_said_to_be_that(results):
    one = results.append_column("commit", pa.array(["abc"] * len(results)))
    assert "not of one origin" not in summary_text(one)
    names = ["abc" if seed else "def" for seed in results["seed"].to_pylist()]
    text = summary_text(results.append_column("commit", pa.array(names)).append_column("hardware", pa.array(names)))
    assert "These rows are not of one origin: 2 of commit (abc; def), 2 of hardware (abc; def)." in text


def test_an_arm_of_equal_bytes_has_no_share_to_be_judged_by():
    text = summary_text(results_table(ARMS | {"random_equal_bytes": 0.66}))
    row = next(line for line in text.splitlines() if line.startswith("| random_equal_bytes |"))
    assert row.split(" | ")[2] == "–"


def test_figures_are_as_long_as_they_are_exact():
    values = [None, np.nan, 0.0, 0.012345, 99.4, 1234567.8, -1234.5]
    assert [number_text(value) for value in values] == ["–", "–", "0", "0.0123", "99.4", "1,234,568", "-1,234"]
    found = [Reached(1200, 800, np.inf, 5), Reached(np.inf, np.inf, np.inf, 5), Reached(1200, np.nan, np.nan, 1)]
    assert [reached_text(one) for one in found] == [
        "1,200 [800, not reached]",
        "not reached [not reached, not reached]",
        "1,200 (no interval)",
    ]
    correlations = [RankCorrelation(-0.5, -0.9, 0.25, 6), RankCorrelation(0.5, np.nan, np.nan, 4)]
    correlations += [RankCorrelation(np.nan, np.nan, np.nan, 1)]
    assert [correlation_text(one) for one in correlations] == [
        "−0.50 (95 % −0.90 to 0.25; 6 arms)",
        "0.50 (no interval; 4 arms)",
        "not measured (1 arm with both)",
    ]


def test_a_table_has_as_many_rules_as_columns():
    assert table(["arm", "a", "b"], [["x", "1", "2"]]).splitlines()[1] == "| --- | ---: | ---: |"
