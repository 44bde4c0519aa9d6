"""The gate opens where pre-training helps and a choice could, and stays shut for every other reason."""

from __future__ import annotations

import pyarrow as pa
import pyarrow.compute as pc
import pytest
from simulated import results_table

from optidel_hf.evidence.gate import headroom


ARMS = {"none": 0.6, "full": 0.7, "random_images": 0.66, "oracle": 0.72, "optidel": 0.69}


def without(results: pa.Table, **dropped: str) -> pa.Table:
    keep = [any(row[name] != value for name, value in dropped.items()) for row in results.to_pylist()]
    return results.filter(pa.array(keep))


@pytest.fixture(scope="module")
def results() -> pa.Table:
    return results_table(ARMS, seeds=3)


def test_it_passes_where_both_differences_lie_above_zero(results):
    gate = headroom(results)
    assert gate.passed
    assert gate.sentence.startswith("Headroom (validation part, 5 % of the pool, 100 labels;")
    assert gate.sentence.count("on 3 seeds") == 4


def test_one_mode_without_the_oracle_is_not_passed(results):
    gate = headroom(without(results, arm="oracle", mode="probe"))
    assert (gate.verdict, gate.passed) == ("gate not run", False)
    assert gate.sentence.startswith("The gate was not run as a whole, and so no claim is supported (validation part")
    assert "oracle minus random_images, probed: not run" in gate.sentence
    assert gate.sentence.count(": not run") == 1


def test_a_pool_that_harms_is_not_passed():
    gate = headroom(results_table(ARMS | {"none": 0.75}, seeds=3))
    assert "full minus none, fine-tuned: −" in gate.sentence
    assert (gate.verdict, gate.passed) == ("no headroom", False)
    assert gate.sentence.startswith("No headroom shown")


def test_the_pool_is_compared_before_any_arm_with_a_budget_is_there():
    gate = headroom(results_table({"none": 0.6, "full": 0.7}, seeds=3, labels=16, modes=["probe"]))
    assert "full minus none, probed: +" in gate.sentence
    assert gate.verdict == "gate not run"


def test_one_seed_is_not_passed(results):
    assert not headroom(results.filter(pc.equal(results["seed"], 0))).passed


def test_only_the_validation_part_is_looked_at():
    test = results_table(ARMS, seeds=3, splits=["test"])
    assert headroom(test).verdict == "gate not run"
    assert "no run was judged on the validation part" in headroom(test).sentence
    level = results_table(dict.fromkeys(ARMS, 0.7), seeds=3)
    assert not headroom(pa.concat_tables([level, test])).passed
