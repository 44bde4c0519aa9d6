"""
The grid in words: `results.md`, from the rows of `results.parquet` alone.

The primary endpoint comes first, then every arm, what each part of the method does, cost and measurements, and how
many seeds it takes. A grid whose gate has not passed says so in its title; fewer than 5 seeds are "no claims"; every
difference stands with its interval and its minimum detectable difference. Only seeds that both arms have are compared.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import pyarrow as pa

from optidel_hf.drawing import save_figure
from optidel_hf.evaluation.metrics.normdel.normdel import normdel
from optidel_hf.evidence.arms import ARMS
from optidel_hf.evidence.comparison import (
    BASELINES,
    ENDPOINT,
    ENDPOINT_MODES,
    PRIMARY,
    TEST,
    Comparison,
    Judged,
    Series,
)
from optidel_hf.evidence.figure import results_figure
from optidel_hf.evidence.gate import Gate, headroom
from optidel_hf.evidence.inference import FEWEST_SEEDS, seeds_needed
from optidel_hf.evidence.measured import cost_section, level_section, measure_section
from optidel_hf.evidence.wording import (
    MISSING,
    detectable_text,
    difference_text,
    level_text,
    mode_words,
    points,
    seeds_text,
    table,
)
from optidel_hf.files import write_text


EFFECTS = {
    "selection": ("optidel", "random_patch_mosaics"),
    "SAM": ("random_patch_mosaics", "random_crop_mosaics"),
    "zoom": ("random_crop_mosaics", "image_mosaics"),
    "mosaics of whole images": ("image_mosaics", "random_images"),
    "the published rule": ("hardest", "random_patch_mosaics"),
    "ours over the published rule": ("optidel", "hardest"),
    "the pool, as images": ("optidel", "full"),
    "the pool, as mosaics": ("optidel", "full_mosaics"),
    "random images, of equal bytes": ("optidel", "random_equal_bytes"),
    "random images, of equal compute": ("optidel", "random_equal_compute"),
    "the pool, of equal compute": ("optidel", "full_equal_compute"),
    "the same from the scorer": ("optidel", "full_equal_compute_from_scorer"),
    "key patches under the same rule": ("optidel", "optidel_images"),
    "coverage of whole images": ("coverage_images", "random_images"),
    "hardness beside cover": ("optidel", "cover_mosaics"),
    "hardness beside coverage": ("optidel", "coverage_mosaics"),
    "medium difficulty in a cluster": ("cover_medium_mosaics", "cover_mosaics"),
    "learnability in place of difficulty": ("learnable_mosaics", "optidel"),
    "masks like a lesion's": ("lesion_like_mosaics", "optidel"),
    "nine tiles": ("optidel_m9", "optidel"),
    "sixteen tiles": ("optidel_m16", "optidel"),
    "tile-aware augmentation": ("optidel_tile_augmentation", "optidel"),
    "half of the budget on whole images": ("optidel_half", "optidel"),
    "a last fifth on whole images": ("optidel_last_whole", "optidel"),
}
ALPHA = 1.0
"""The weight of the share of data in NormDEL."""
READING = f"""\
Differences are in points of mIoU with a 95 % interval over seeds and test images at once: Student's t over the seeds,
a bootstrap over the images (`optidel_hf.evidence.inference`); images that `--downstream_groups` puts together, such as
a video's, count as one. MDD is the minimum detectable difference: the least true difference whose interval lies off
zero with 95 % power. Bold: the interval lies off zero and rests on {FEWEST_SEEDS} seeds or more. Only the primary
endpoint was fixed beforehand; all else is descriptive, and its intervals are not adjusted for their number."""
CONTRAST = ["contrast", "mode", "points", "MDD", "seeds", "images"]


def write_summary(results: pa.Table, folder: Path, trials: Mapping[str, int] | None = None) -> None:
    """
    Write `results.md` and `results.png`.

    Args:
        results (`pyarrow.Table`): The rows of `results.parquet`, of a whole grid or of a part of it.
        folder (`Path`): Where they are written.
        trials (`Mapping[str, int]`, *optional*): See [`summary_text`].
    """
    write_text(summary_text(results, trials), folder / "results.md")
    save_figure(results_figure(results), folder / "results.png")


def summary_text(results: pa.Table, trials: Mapping[str, int] | None = None) -> str:
    """
    The summary as Markdown: of the test part where any run was judged there, else of the validation part.

    Args:
        results (`pyarrow.Table`): The rows of `results.parquet`.
        trials (`Mapping[str, int]`, *optional*): By arm, how many configurations were read off the validation part.
    """
    judged = Judged.of(results)
    gate = headroom(results)
    sections = [
        f"# Results on the {judged.split} part{gate.verdict and f': {gate.verdict}'}",
        gate.sentence,
        READING,
        *_draws_section(judged),
        *_origin_section(judged),
        *_endpoint_section(judged, gate),
        *_arm_section(judged),
        *_effect_section(judged),
        *cost_section(judged),
        *measure_section(judged),
        *level_section(judged),
        *_seed_section(judged),
        *_screening_section(judged),
        *_trial_section(trials or {}),
    ]
    return "\n\n".join(sections) + "\n"


def _draws_section(judged: Judged) -> list[str]:
    """By how many draws of labels each model is judged, where they are several."""
    told = judged.rows["label_draws"].to_pylist() if "label_draws" in judged.rows.column_names else []
    if max(told, default=1) == 1:
        return []
    draws = " or ".join(map(str, sorted(set(told))))
    return [f"Each seed's model is judged by {draws} draws of labels, head and order, put together."]


def _origin_section(judged: Judged) -> list[str]:
    """Where the rows are from, if not from one state of the code on one machine."""
    told = {
        name: sorted(set(judged.rows[name].to_pylist()))
        for name in ("commit", "hardware")
        if name in judged.rows.column_names
    }
    several = [f"{len(found)} of {name} ({'; '.join(found)})" for name, found in told.items() if len(found) > 1]
    return [f"These rows are not of one origin: {', '.join(several)}."] if several else []


def _endpoint_section(judged: Judged, gate: Gate) -> list[str]:
    """The four intervals, and what they say together."""
    title = "## Primary endpoint"
    if judged.setting != PRIMARY:
        title = f"## The primary endpoint's contrasts, at {judged.setting} instead of {PRIMARY}"
    found = [(a, b, mode, judged.compare(a, b, mode)) for a, b in ENDPOINT for mode in ENDPOINT_MODES]
    rows = [_contrast_row(*parts) for parts in found]
    return [title, table(CONTRAST, rows), _verdict(judged, gate, [comparison for *_, comparison in found])]


def _verdict(judged: Judged, gate: Gate, found: Sequence[Comparison | None]) -> str:
    if judged.setting != PRIMARY:
        return "This grid does not hold the primary endpoint."
    known = [comparison.interval for comparison in found if comparison and comparison.supports_claims]
    if len(known) < len(found):
        return f"Open: the endpoint is judged when all four comparisons have {FEWEST_SEEDS} seeds or more."
    above, below = sum(interval.low > 0 for interval in known), sum(interval.high < 0 for interval in known)
    counts = f"{above} of the four intervals lie above zero, {below} below it."
    if not gate.passed:
        return f"{counts} Without headroom they support no claim."
    part = (
        "" if judged.split == TEST else " On the validation part this is no result: the endpoint is read off the test."
    )
    return f"**{'Met' if above == len(known) else 'Not met'}**: {counts}{part}"


def _arm_section(judged: Judged) -> list[str]:
    """Every arm with seeds enough at the headline setting: mIoU, NormDEL, and against random images and full."""
    header = [
        "arm",
        "mIoU, %",
        f"NormDEL, alpha = {ALPHA:g}",
        "minus random_images",
        "MDD",
        "minus full",
        "MDD",
        "seeds",
    ]
    parts = [f"## Arms at {judged.setting}"]
    for mode in judged.modes:
        rows = [_arm_row(judged, one) for one in judged.headline(mode) if not _is_screening(judged, one)]
        parts += [f"### {mode_words(mode).capitalize()}", table(header, rows)]
    return parts


def _arm_row(judged: Judged, one: Series) -> list[str]:
    interval = one.interval()
    contrasts: list[str] = []
    for other in BASELINES:
        found = None if other == one.arm else judged.compare(one.arm, other, one.mode)
        contrasts += [difference_text(found.interval), detectable_text(found.detectable)] if found else [MISSING] * 2
    share = one.setting.budget
    known = share > 0 and not ARMS[one.arm].bytes_of  # an arm of equal bytes takes another share than the budget
    score = f"{normdel(interval.difference, share, ALPHA):.4f}" if known else MISSING
    return [one.arm, level_text(interval), score, *contrasts, seeds_text(interval.seeds)]


def _is_screening(judged: Judged, one: Series) -> bool:
    """Whether runs are off the headline setting, or of too few seeds in a grid where others have enough."""
    enough = any(len(other.runs) >= FEWEST_SEEDS for other in judged.headline(one.mode))
    return not judged.at_headline(one) or (enough and len(one.runs) < FEWEST_SEEDS)


def _effect_section(judged: Judged) -> list[str]:
    """What each part of the method does, and whether it does as well as the pool."""
    rows = [
        [name, *_contrast_row(a, b, mode, found)]
        for name, (a, b) in EFFECTS.items()
        for mode in judged.modes
        if (found := judged.compare(a, b, mode))
    ]
    note = '"Beats full" needs both comparisons with the pool.'
    return ["## What the parts of the method do", table(["effect of", *CONTRAST], rows), note] if rows else []


def _contrast_row(a: str, b: str, mode: str, found: Comparison | None) -> list[str]:
    named = [f"{a} minus {b}", mode_words(mode)]
    if found is None:
        return [*named, "not run", MISSING, MISSING, MISSING]
    seeds, images = found.interval.seeds, found.interval.images
    return [*named, difference_text(found.interval), detectable_text(found.detectable), seeds_text(seeds), str(images)]


def _seed_section(judged: Judged) -> list[str]:
    """What the endpoint's differences vary with, and how many seeds show one point."""
    rows = []
    for a, b in ENDPOINT:
        for mode in ENDPOINT_MODES:
            if (found := judged.compare(a, b, mode)) and found.interval.seeds > 1:
                rows.append([f"{a} minus {b}", mode_words(mode), *_component_cells(found)])
    if not rows:
        return []
    header = ["contrast", "mode", "seed", "image x arm", "residual", "estimated on", "seeds for 1 point"]
    note = "Standard deviations in points. Seeds for 1 point: with 95 % power on as many images, 5 at least."
    return ["## Variance components and seeds needed", table(header, rows), note]


def _component_cells(found: Comparison) -> list[str]:
    parts, images = found.components, found.interval.images
    needed = seeds_needed(parts, images)
    words = str(needed) if needed else "no number: too few images"
    deviations = [points(value, signed=False) for value in (parts.seed, parts.image, parts.residual)]
    return [*deviations, f"{found.interval.seeds} seeds, {images} images", words]


def _screening_section(judged: Judged) -> list[str]:
    """All that is not in the tables of arms: other budgets and labels, and arms of few seeds."""
    rows = [
        [one.arm, str(one.setting), mode_words(one.mode), level_text(one.interval()), seeds_text(len(one.runs))]
        for one in judged.series
        if _is_screening(judged, one)
    ]
    title = "## Screening: descriptive, no claims"
    return [title, table(["arm", "setting", "mode", "mIoU, %", "seeds"], rows)] if rows else []


def _trial_section(trials: Mapping[str, int]) -> list[str]:
    """How often each arm's validation part was read for a choice."""
    if not trials:
        return []
    return [
        "## Trials: configurations read off the validation part",
        table(["arm", "trials"], [[arm, str(count)] for arm, count in trials.items()]),
        "By the grids in this folder's parent, on these images.",
    ]
