"""DPO of HH-RLHF does to held-out pairs what TRL's does, after the same pairs in the same order."""

import json
import random
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pytest
from numpy.typing import NDArray

from ray_rl.algorithms.calibration import wilson_interval
from ray_rl.models.packaged import resolve_model
from tests.benchmarks.offline import DIALOGUES, ROWS_PER_STEP, dialogues, run, theirs
from tests.benchmarks.own_offline import example
from tests.learning.runs import MODEL, SEEDS, likelihoods
from tests.learning.tables import bootstrap, printed, share, with_bootstrap

pytestmark = [
    pytest.mark.timeout(7200),
    pytest.mark.skipif(not DIALOGUES.exists(), reason=f"there are no dialogues of HH-RLHF in {DIALOGUES}"),
]
STEPS, HELD_OUT, BETA = 6, 40, 0.1
SETTINGS = {"steps": STEPS, "learning_rate": 1e-5}


@cache
def margins(seed: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """DPO's margins of the held-out pairs of a seed: this project's and TRL's."""
    pairs = list(dialogues(longest=96))
    random.Random(seed).shuffle(pairs)
    held_out = [example(row) for row in pairs[:HELD_OUT]]
    seen = {each.prompt_ids for each in held_out}
    train = [row for row in pairs if tuple(row["prompt_ids"]) not in seen]
    reference = likelihoods(resolve_model(MODEL), held_out).sums_JS
    with TemporaryDirectory() as name:
        rows = Path(name) / "pairs.json"
        rows.write_text(json.dumps(train[: STEPS * ROWS_PER_STEP]))
        own, other = Path(name) / "own", Path(name) / "other"
        run("own_offline", "ray_rl", "dpo", rows, f"--save={own}", **SETTINGS)
        theirs("dpo", rows, f"--save={other}", rows_per_pass=8, checkpointing=False, **SETTINGS)
        chosen_less_rejected = [likelihoods(folder, held_out).sums_JS - reference for folder in (own, other)]
    ours_J, theirs_J = (BETA * (change_JS[:, 0] - change_JS[:, 1]) for change_JS in chosen_less_rejected)
    return ours_J, theirs_J


@pytest.fixture(scope="module")
def table():
    yield from printed(
        f"DPO on HH-RLHF, pairs of up to 96 tokens, {STEPS} steps of {ROWS_PER_STEP} pairs, {len(SEEDS)} seed(s)",
        *("", "held-out pairs", "accuracy (Wilson)", "margin (bootstrap over pairs)"),
    )


def mean(values_J: NDArray[np.float64]) -> float:
    return float(values_J.mean())


def test_held_out_accuracy_and_margin_are_those_of_trl_within_noise(table):
    ours_J, theirs_J = (np.concatenate(each) for each in zip(*(margins(seed) for seed in SEEDS), strict=True))
    for name, margins_J in (("ray_rl", ours_J), ("TRL", theirs_J)):
        table.append([name, str(len(margins_J)), share(margins_J > 0), with_bootstrap(mean, margins_J)])
    differences_J = ours_J - theirs_J
    table.append(
        ["difference", "", f"{(ours_J > 0).mean() - (theirs_J > 0).mean():+.3f}", with_bootstrap(mean, differences_J)]
    )
    low, high = wilson_interval(int((theirs_J > 0).sum()), len(theirs_J))
    assert low <= (ours_J > 0).mean() <= high
    low, high = bootstrap(mean, theirs_J)
    assert low <= ours_J.mean() <= high
    assert np.abs(theirs_J).max() > 0  # training changed the model
