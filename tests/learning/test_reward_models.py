"""A reward model learns a known rule and how sure it may be; labels by chance teach it nothing.

The rule `correct` is measured without a claim: it needs arithmetic, which no single word of an answer gives away.
"""

from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pytest
from numpy.typing import NDArray

from ray_rl.algorithms.calibration import calibration_error, reliability
from tests.learning.rules import Rule, comparisons, write
from tests.learning.runs import SEEDS, held_out, score_margins, trained
from tests.learning.tables import printed, share, with_bootstrap

pytestmark = pytest.mark.timeout(7200)
RECIPE = "reward_smollm2-135m_cpu"
PAIRS = 288
STEPS: dict[Rule, int] = {"order": 8, "shuffled": 8, "correct": 24}
SETTINGS = ("data.held_out=0.25", "model.dtype=float32", "algorithm.batch_size=8")


def error_of(margins_J: NDArray[np.float64]) -> float:
    """The expected calibration error of the scores."""
    return calibration_error(reliability(margins_J))


@cache
def measured(rule: Rule, seed: int, *changes: str) -> NDArray[np.float64]:
    """The margins of the held-out pairs after a run with changed settings.

    They are those of transformers, which agree with the evaluation of the run.
    """
    with TemporaryDirectory() as folder:
        path = write(comparisons(rule, seed=seed, count=PAIRS), Path(folder) / "pairs.jsonl")
        overrides = (f"data.path={path}", f"run.seed={seed}", f"run.steps={STEPS[rule]}", *SETTINGS, *changes)
        metrics = trained(" ".join([f"{rule}, seed {seed}", *changes]), RECIPE, Path(folder), *overrides)
        margins_J = score_margins(Path(folder) / "run" / "export", held_out(RECIPE, *overrides))
    assert metrics["eval/accuracy"] == pytest.approx((margins_J > 0).mean(), abs=1.01 / len(margins_J))
    assert metrics["eval/margin"] == pytest.approx(margins_J.mean(), rel=1e-3, abs=1e-3)
    return margins_J


@pytest.fixture(scope="module")
def table():
    yield from printed(
        f"Reward models, steps of 8 pairs, learning rate 3e-5, {len(SEEDS)} seed(s)",
        *("rule", "steps", "held-out pairs", "accuracy (Wilson)", "lowest and highest seed"),
        *("calibration error (bootstrap over pairs)", "mean margin"),
    )


def of_all_seeds(rule: Rule, table) -> list[NDArray[np.float64]]:
    """The margins by seed, which are added to the table."""
    found = [measured(rule, seed) for seed in SEEDS]
    margins_J = np.concatenate(found)
    seeds = [(each > 0).mean() for each in found]
    accuracy = (share(margins_J > 0), f"{min(seeds):.3f}, {max(seeds):.3f}")
    error = with_bootstrap(error_of, margins_J)
    table.append((f"`{rule}`", str(STEPS[rule]), str(len(margins_J)), *accuracy, error, f"{margins_J.mean():.2f}"))
    return found


def test_the_order_of_words_is_learned_with_calibrated_scores(table):
    for margins_J in of_all_seeds("order", table):
        assert (margins_J > 0).mean() > 0.9
        assert error_of(margins_J) < 0.05


def test_labels_by_chance_teach_nothing(table):
    margins_J = np.concatenate(of_all_seeds("shuffled", table))
    assert abs((margins_J > 0).mean() - 0.5) < 0.15


def test_right_and_wrong_sums_are_measured(table):
    for margins_J in of_all_seeds("correct", table):
        assert np.isfinite(margins_J).all()
        assert np.ptp(margins_J) > 0
